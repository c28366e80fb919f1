//! What a server did not do as asked.

use std::{io, path::PathBuf};

/// An answer that is none, or not what was asked for.
///
/// None of these says anything about the bytes of a ledger: a server that cannot be read is not yet
/// one that lies about them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum RemoteError {
    #[error("{url:?} is no URL of a server: {reason}")]
    Url { url: String, reason: &'static str },
    #[error("{proxy:?} is no URL of a proxy: {source}")]
    Proxy { proxy: String, source: reqwest::Error },
    #[error("preparing to connect: {source}")]
    Client { source: reqwest::Error },
    #[error("{path} does not lie on this server", path = path.display())]
    Outside { path: PathBuf },
    #[error("{url}: not there")]
    Absent { url: String },
    #[error("{url}: cannot be reached: {}", innermost(.source))]
    Unreachable { url: String, source: reqwest::Error },
    #[error("{url}: the server answers {status}{}", hint(*.status))]
    Refused { url: String, status: u16 },
    #[error("{url}: the server is busy and asks to come back in {seconds} s")]
    Busy { url: String, seconds: u64 },
    #[error("{url}: sends on to {to:?}; redirects are not followed: give the URL that it leads to")]
    Redirect { url: String, to: String },
    #[error("{url}: asked for {asked}, the answer is of {answered}")]
    Range { url: String, asked: String, answered: String },
    #[error("{url}: the answer has more than the {bytes_max} bytes asked for")]
    TooLong { url: String, bytes_max: u64 },
    #[error("{url}: the answer ends after {found} of {expected} bytes")]
    Cut { url: String, expected: u64, found: u64 },
    #[error("{url}: too slow: {found} bytes in {seconds} s")]
    Slow { url: String, found: u64, seconds: u64 },
    #[error("{url}: it changed while it was read")]
    Changed { url: String },
    #[error("{url}: not a list of names: {reason}")]
    Listing { url: String, reason: String },
}

impl RemoteError {
    /// Whether an I/O error is one of these.
    pub fn is_behind(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }

    /// Whether the same question may be answered if it is asked again.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Cut { .. } | Self::Slow { .. } => true,
            Self::Refused { status, .. } => matches!(status, 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }
}

impl From<RemoteError> for io::Error {
    fn from(error: RemoteError) -> Self {
        let kind = match &error {
            RemoteError::Absent { .. } => io::ErrorKind::NotFound,
            RemoteError::Slow { .. } => io::ErrorKind::TimedOut,
            RemoteError::Outside { .. } => io::ErrorKind::InvalidInput,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// The last cause: what the system said, without the layers between.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    if error.is_timeout() { "it did not answer in time".to_owned() } else { cause.to_string() }
}

fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => ": it lets nobody in without credentials, which this program does not send",
        429 | 503 => ": it is overloaded; try again later",
        _ => "",
    }
}
