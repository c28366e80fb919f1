//! The operator's way into a server that holds the ledger's writer: a socket in the ledger's directory,
//! which only its owner may open. `gradledger seal` uses it when the ledger is served.
//!
//! One line of JSON each way: `{"seal": ROUND, "threads": N}`, and a report or an error.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixListener,
};

use super::{Node, uploads::Door};
use crate::{
    ledger::seal::{FoldOptions, SealReport},
    types::progress::Silent,
};

/// Longest question that is read.
const LINE_BYTES_MAX: u64 = 4 << 10;

/// What the server is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Which round is sealed.
    pub seal: u64,
    /// Threads of the arithmetic; 0 means one a core.
    pub threads: usize,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The round is sealed.
    Sealed(SealReport),
    /// It is not.
    Error(String),
}

/// Where the socket of the ledger in `root` is.
pub fn path(root: &Path) -> PathBuf {
    root.join("serve.sock")
}

/// The socket, for its owner alone; gone when it is dropped.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Listens in the directory of a ledger whose writer lock is held. Within a runtime.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn bind(root: &Path) -> io::Result<Self> {
        let path = path(root);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {} // What is there is of a server that was killed: the lock is ours.
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path })
    }

    /// Does what it is asked, one order after the other.
    pub async fn run(&self, node: Arc<Node>, door: Arc<Door>) {
        loop {
            let Ok((stream, _)) = self.listener.accept().await else { continue };
            let (reading, mut writing) = stream.into_split();
            let mut line = String::new();
            let mut reading = tokio::io::BufReader::new(reading.take(LINE_BYTES_MAX));
            let read =
                tokio::time::timeout(super::uploads::ORDER_WAIT, reading.read_line(&mut line));
            let outcome = match (read.await, serde_json::from_str::<Order>(&line)) {
                (Ok(Ok(_)), Ok(order)) => seal(&node, &door, order).await,
                _ => Outcome::Error("an order is one line of JSON".to_owned()),
            };
            let mut answer = serde_json::to_vec(&outcome).expect("texts and numbers");
            answer.push(b'\n');
            // Whoever is gone by now asks again: the round is sealed once.
            let _ = writing.write_all(&answer).await;
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Seals a round, or the open one.
pub async fn seal_round(
    node: &Arc<Node>,
    door: &Arc<Door>,
    round: Option<u64>,
    threads: usize,
) -> Result<SealReport, String> {
    let (desk, ours) = (door.desk().clone(), node.clone());
    let sealed = tokio::task::spawn_blocking(move || {
        let options = FoldOptions { threads, ..FoldOptions::default() };
        let report = desk.seal(round, options, Arc::new(Silent)).map_err(|e| e.to_string())?;
        if let Err(error) = ours.look_now() {
            tracing::error!(%error, "the ledger does not read");
        }
        tracing::info!(round = report.round, accepted = report.accepted.len(), "sealed");
        Ok(report)
    });
    sealed.await.unwrap_or_else(|error| Err(error.to_string()))
}

async fn seal(node: &Arc<Node>, door: &Arc<Door>, order: Order) -> Outcome {
    match seal_round(node, door, Some(order.seal), order.threads).await {
        Ok(report) => Outcome::Sealed(report),
        Err(error) => {
            tracing::error!(round = order.seal, %error, "not sealed");
            Outcome::Error(error)
        }
    }
}

/// Asks the server that serves the ledger in `root`; nothing if none does.
///
/// # Errors
///
/// The operating system's, and an answer that is none.
pub fn order(root: &Path, order: Order) -> io::Result<Option<Outcome>> {
    let mut stream = match UnixStream::connect(path(root)) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        connected => connected?,
    };
    let mut line = serde_json::to_vec(&order)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(Some(serde_json::from_str(&answer)?))
}
