//! Where a command reads a ledger from: a directory, or a server. The one place that tells them apart.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;

use crate::{
    ledger::{Ledger, LedgerError},
    store::{
        files::Disk,
        place::Place,
        remote::{HttpOptions, Remote},
    },
};

use super::exit::CliError;

/// The ledger that a command reads.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// The ledger: a directory, or the http or https URL of a server.
    #[arg(required = true)]
    ledger: Option<PathBuf>,
    #[command(flatten)]
    proxy: ProxyArgs,
}

/// How servers are reached.
#[derive(Debug, Args)]
pub struct ProxyArgs {
    /// The proxy through which a URL is reached; none is taken from the environment otherwise.
    #[arg(long, value_name = "URL", env = "GRADLEDGER_PROXY")]
    proxy: Option<String>,
}

impl ProxyArgs {
    /// How servers are asked.
    pub fn http(&self) -> HttpOptions {
        HttpOptions { proxy: self.proxy.clone(), ..HttpOptions::default() }
    }
}

impl SourceArgs {
    /// Opens the ledger for reading.
    pub fn open(&self) -> Result<Ledger, CliError> {
        open(self.path(), &self.proxy)
    }

    /// Where its files are.
    pub fn place(&self) -> Result<Place, CliError> {
        place(self.path(), &self.proxy)
    }

    fn path(&self) -> &Path {
        self.ledger.as_deref().expect("clap asks for it")
    }
}

/// Opens the ledger of this name for reading.
pub fn open(ledger: &Path, proxy: &ProxyArgs) -> Result<Ledger, CliError> {
    let place = place(ledger, proxy)?;
    let opened = Ledger::open_in(place.files.clone(), &place.root);
    opened.map_err(|error| unserved(ledger, error))
}

/// Where the files of the ledger of this name are.
fn place(ledger: &Path, proxy: &ProxyArgs) -> Result<Place, CliError> {
    match url(ledger) {
        Some(url) => served(url, proxy),
        None => Ok(Place::new(Arc::new(Disk), ledger)),
    }
}

/// The files that the server at `url` serves.
pub fn served(url: &str, proxy: &ProxyArgs) -> Result<Place, CliError> {
    let remote = Remote::new(url, &proxy.http())?;
    let root = remote.root().to_owned();
    Ok(Place { files: Arc::new(remote), root })
}

/// The URL that a ledger's name is, if it is one.
pub fn url(ledger: &Path) -> Option<&str> {
    let text = ledger.to_str()?;
    let scheme = |scheme: &str| {
        text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    (scheme("http://") || scheme("https://")).then_some(text)
}

/// A command that takes a directory alone says so of a URL.
pub fn explained(error: CliError) -> CliError {
    match error {
        CliError::Ledger(LedgerError::NoLedger { path }) if url(&path).is_some() => {
            CliError::NeedsDirectory { path }
        }
        error => error,
    }
}

/// A server without a ledger is none that `init` would make one of.
fn unserved(ledger: &Path, error: LedgerError) -> CliError {
    match (url(ledger), error) {
        (Some(url), LedgerError::NoLedger { .. }) => {
            CliError::NoLedgerServed { url: url.to_owned() }
        }
        (_, error) => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_told_from_a_directory() {
        for name in ["http://127.0.0.1:8472", "HTTPS://example.org/run"] {
            assert_eq!(url(Path::new(name)), Some(name));
        }
        for name in ["/tmp/run", "http", "http:/x", "ftp://x", "runs/http://x"] {
            assert_eq!(url(Path::new(name)), None, "{name}");
        }
    }
}
