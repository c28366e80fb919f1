//! The writer's turns: a step that waits for a chain holds up nobody who writes meanwhile.
//!
//! What such a step reads it reads from a ledger of its own; what it writes it writes in a turn, which
//! looks again at what may have changed since. One command alone has the writer to itself, a server
//! that takes uploads shares it with them, and one that only serves takes it for each turn.

use std::path::PathBuf;

use super::{Ledger, LedgerError, last_head::LastHead, submit::SubmitHandle, writer::LedgerWriter};

/// Whoever lets others at the ledger's writer, one at a time.
pub trait Turns {
    /// Does something with the writer when it is its turn.
    ///
    /// # Errors
    ///
    /// What `task` gives, or why there is no writer.
    fn with<T: Send + 'static>(
        &mut self,
        task: impl FnOnce(&mut LedgerWriter) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError>;

    /// The ledger as it stands.
    ///
    /// # Errors
    ///
    /// As [`Turns::with`].
    fn look(&mut self) -> Result<Ledger, LedgerError> {
        self.with(|writer| Ok(writer.ledger().clone()))
    }
}

impl Turns for LedgerWriter {
    fn with<T: Send + 'static>(
        &mut self,
        task: impl FnOnce(&mut LedgerWriter) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        task(self)
    }
}

impl Turns for SubmitHandle {
    fn with<T: Send + 'static>(
        &mut self,
        task: impl FnOnce(&mut LedgerWriter) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        SubmitHandle::with(self, task)
    }
}

/// Opens the ledger for writing for each turn, so that other processes write between them.
#[derive(Clone, Debug)]
pub struct Visits {
    /// The ledger's directory.
    pub root: PathBuf,
    /// Where the log key lies, if not in the ledger.
    pub key_file: Option<PathBuf>,
    /// Heads that somebody kept, which the logs have to lead to.
    pub last_heads: Vec<LastHead>,
}

impl Turns for Visits {
    /// [`LedgerError::Locked`] while another process writes.
    fn with<T: Send + 'static>(
        &mut self,
        task: impl FnOnce(&mut LedgerWriter) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let key_file = self.key_file.as_deref();
        task(&mut LedgerWriter::open_after(&self.root, key_file, &self.last_heads)?)
    }

    fn look(&mut self) -> Result<Ledger, LedgerError> {
        Ledger::open(&self.root)
    }
}
