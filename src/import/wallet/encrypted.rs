//! Key files under a password: `$NACL`, a nonce of 24 bytes, then a NaCl secretbox of the JSON.
//!
//! The box is XSalsa20-Poly1305; its key is Argon2i 1.3 of the password with 8 passes over 512 MiB
//! in 1 lane. The salt is the same in every file, so equal passwords make equal keys. Older files were
//! encrypted in two other ways, which are named and not read.
//!
//! Cost: [`ARGON_KIB`] of memory while a file is opened, allocated then and wiped after.

use std::fmt;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use crypto_secretbox::{AeadInPlace, Key, KeyInit, Nonce, Tag, XSalsa20Poly1305};
use zeroize::{Zeroize, Zeroizing};

use super::KeyfileError;

/// Memory that opening a file takes, in KiB: libsodium's "sensitive" limit.
pub const ARGON_KIB: u32 = 512 * 1024;

/// Passes over that memory.
const ARGON_PASSES: u32 = 8;

/// The salt of every file.
const SALT: [u8; 16] = [
    0x13, 0x71, 0x83, 0xdf, 0xf1, 0x5a, 0x09, 0xbc, 0x9c, 0x90, 0xb5, 0x51, 0x87, 0x39, 0xe9, 0xb1,
];

/// What an encrypted file starts with.
const TAG: &[u8] = b"$NACL";

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;
const MAC_BYTES: usize = 16;

const _: () = assert!(KEY_BYTES == XSalsa20Poly1305::KEY_SIZE);
const _: () = assert!(NONCE_BYTES == XSalsa20Poly1305::NONCE_SIZE);
const _: () = assert!(MAC_BYTES == XSalsa20Poly1305::TAG_SIZE);

/// How files were encrypted before; neither is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Legacy {
    /// `$ANSIBLE_VAULT`.
    AnsibleVault,
    /// A token that starts with `gAAAA`.
    Fernet,
}

impl Legacy {
    /// Which of them `bytes` start as, if one.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(b"$ANSIBLE_VAULT") {
            Some(Self::AnsibleVault)
        } else if bytes.starts_with(b"gAAAA") {
            Some(Self::Fernet)
        } else {
            None
        }
    }
}

impl fmt::Display for Legacy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AnsibleVault => "Ansible Vault",
            Self::Fernet => "Fernet",
        })
    }
}

/// The parts of an encrypted file.
pub(super) struct Sealed<'a> {
    nonce: &'a [u8; NONCE_BYTES],
    mac: &'a [u8; MAC_BYTES],
    cipher: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// Takes the file apart, if it is an encrypted one.
    pub fn of(bytes: &'a [u8]) -> Result<Option<Self>, KeyfileError> {
        let Some(rest) = bytes.strip_prefix(TAG) else { return Ok(None) };
        let parts = rest
            .split_first_chunk()
            .and_then(|(nonce, rest)| Some((nonce, rest.split_first_chunk()?)));
        let (nonce, (mac, cipher)) = parts.ok_or(KeyfileError::Truncated {
            found: bytes.len(),
            least: TAG.len() + NONCE_BYTES + MAC_BYTES,
        })?;
        Ok(Some(Self { nonce, mac, cipher }))
    }

    /// What is in the box.
    pub fn open(&self, password: &str) -> Result<Zeroizing<Vec<u8>>, KeyfileError> {
        let key = key(password)?;
        let mut text = Zeroizing::new(self.cipher.to_vec());
        XSalsa20Poly1305::new(Key::from_slice(&*key))
            .decrypt_in_place_detached(
                Nonce::from_slice(self.nonce),
                b"",
                &mut text,
                Tag::from_slice(self.mac),
            )
            .map_err(|_| KeyfileError::WrongPassword)?;
        Ok(text)
    }
}

/// The key of a password.
fn key(password: &str) -> Result<Zeroizing<[u8; KEY_BYTES]>, KeyfileError> {
    let params = Params::new(ARGON_KIB, ARGON_PASSES, 1, Some(KEY_BYTES))
        .expect("these limits are within Argon2's");
    let memory_error = |_| KeyfileError::Memory { mib: ARGON_KIB / 1024 };
    let blocks = params.block_count();
    let mut memory: Vec<Block> = Vec::new();
    memory.try_reserve_exact(blocks).map_err(memory_error)?;
    memory.resize(blocks, Block::default());
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    Argon2::new(Algorithm::Argon2i, Version::V0x13, params)
        .hash_password_into_with_memory(password.as_bytes(), &SALT, &mut *key, &mut memory)
        .expect("a password of less than 4 GiB, a salt of 16 bytes and enough blocks");
    // Whoever finds the last block has the key.
    memory.iter_mut().for_each(Zeroize::zeroize);
    Ok(key)
}
