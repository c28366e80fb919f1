//! Bittensor hotkey files: the secret with which a miner signs, plain or under a password.
//!
//! `keyfile` reads the JSON, `encrypted` the box around it. What is taken and what is refused is in
//! `schema/wallet.md`. Where a password comes from is the caller's business.
//!
//! Trust: the file is its owner's, but nothing in it is believed: it is bounded, and its key must be
//! that of the public key and address beside it. Secrets are wiped from memory when dropped, as far
//! as the crates that hold them allow, and stand in no error. Whoever reads a plain file can sign.

pub mod encrypted;
mod keyfile;

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

pub use self::keyfile::KeyfileError;
use crate::{
    codec::{sr25519::SecretKey, ss58},
    types::digest::Digest,
};

/// Largest key file that is read; real ones are below one KiB.
pub const FILE_BYTES_MAX: usize = 64 * 1024;

/// A miner's identity: its secret, public key and address, which are known to belong together.
pub struct Hotkey {
    secret: SecretKey,
    address: String,
}

/// A key file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalletError {
    /// The file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file was read, and refused.
    #[error("{path}: {source}")]
    Keyfile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: KeyfileError,
    },
}

impl Hotkey {
    /// Reads the key file at `path`.
    ///
    /// `password` is asked once, and only if the file is encrypted and whole. Opening such a file
    /// takes 512 MiB of memory and seconds of work on one core, as its format wants it; see
    /// [`encrypted`]. Nothing is taken for a plain file.
    ///
    /// # Errors
    ///
    /// [`WalletError`]; none shows what a secret field holds.
    pub fn load(
        path: &Path,
        password: &mut dyn FnMut() -> io::Result<Zeroizing<String>>,
    ) -> Result<Self, WalletError> {
        let io_error = |source| WalletError::Io { path: path.to_owned(), source };
        // One buffer of the largest size: a growing one would leave copies of the secret behind.
        let mut buffer = Zeroizing::new(vec![0; FILE_BYTES_MAX + 1]);
        let file_bytes = File::open(path)
            .and_then(|mut file| read_up_to(&mut file, &mut buffer))
            .map_err(io_error)?;
        Self::from_bytes(&buffer[..file_bytes], password)
            .map_err(|source| WalletError::Keyfile { path: path.to_owned(), source })
    }

    /// Reads the bytes of a key file; see [`Hotkey::load`].
    ///
    /// # Errors
    ///
    /// [`KeyfileError`] if they are longer than [`FILE_BYTES_MAX`] or not a usable key file.
    pub fn from_bytes(
        bytes: &[u8],
        password: &mut dyn FnMut() -> io::Result<Zeroizing<String>>,
    ) -> Result<Self, KeyfileError> {
        if bytes.len() > FILE_BYTES_MAX {
            return Err(KeyfileError::TooLarge);
        }
        if let Some(method) = encrypted::Legacy::of(bytes) {
            return Err(KeyfileError::Legacy { method });
        }
        let secret = match encrypted::Sealed::of(bytes)? {
            Some(sealed) => {
                let password = password().map_err(|source| KeyfileError::NoPassword { source })?;
                keyfile::secret(&sealed.open(&password)?)?
            }
            None => keyfile::secret(bytes)?,
        };
        let address = ss58::encode(secret.public().to_digest());
        Ok(Self { secret, address })
    }

    /// The public key, as it stands in statements and records.
    pub fn public(&self) -> Digest {
        self.secret.public().to_digest()
    }

    /// The public key as an SS58 address of prefix 42, as wallets show it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What signs.
    pub fn secret(&self) -> &SecretKey {
        &self.secret
    }
}

impl fmt::Debug for Hotkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hotkey({})", self.address)
    }
}

/// Fills `buffer` from its start until it is full or `from` ends; how many bytes that were.
fn read_up_to(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}
