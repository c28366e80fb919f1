//! What is wrong, or soon will be, with a machine and a ledger's configuration, and what to mend.
//!
//! `fsck` and `audit` ask whether a ledger is true; this asks whether a command would run here. It
//! reads, measures the disk with one file that has no name, and takes no lock: it may be run while
//! another process writes.

mod configuration;
mod machine;

use std::{fmt, path::Path, sync::Arc};

use serde::Serialize;

use super::Ledger;
use crate::store::{files::Files, place::Place};

/// How a thing stands, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Nothing to do.
    Ok,
    /// It works, and there is something to know or to do.
    Warning,
    /// A command would fail.
    Failure,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Examined {
    /// Which: a word for scripts.
    pub name: &'static str,
    /// How it stands.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it; none if all is well.
    pub mend: Option<String>,
}

impl Examined {
    fn ok(name: &'static str, found: impl ToString) -> Self {
        Self { name, status: Status::Ok, found: found.to_string(), mend: None }
    }

    fn bad(
        name: &'static str,
        status: Status,
        found: impl ToString,
        mend: impl Into<String>,
    ) -> Self {
        Self { name, status, found: found.to_string(), mend: Some(mend.into()) }
    }

    /// `found` as a warning with `mend` if `wrong`, else as it should be.
    fn warn_if(
        wrong: bool,
        name: &'static str,
        found: impl ToString,
        mend: impl Into<String>,
    ) -> Self {
        if wrong { Self::bad(name, Status::Warning, found, mend) } else { Self::ok(name, found) }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "failure",
        })
    }
}

/// Looks at the machine, for a ledger in `dir` or one to be made there.
pub fn examine_machine(files: &dyn Files, dir: &Path) -> Vec<Examined> {
    machine::examine(files, dir)
}

/// Looks at the ledger in `root`; `key_file` is where its log key lies if not in the ledger.
///
/// If the ledger does not open, what needs it open is left out.
pub fn examine_ledger(
    files: &Arc<dyn Files>,
    root: &Path,
    key_file: Option<&Path>,
) -> Vec<Examined> {
    let place = Place::new(files.clone(), root);
    let mut found = vec![configuration::config(&place)];
    match Ledger::open_in(files.clone(), root) {
        Ok(ledger) => {
            found.push(configuration::opened(&ledger));
            found.extend(configuration::examine(&ledger, key_file));
        }
        Err(error) => found.push(Examined::bad(
            "ledger",
            Status::Failure,
            error,
            "`gradledger init` starts a ledger; one that was damaged is brought back from a copy",
        )),
    }
    found
}
