//! SS58 addresses: a public key in base58, with a prefix that names the network and a checksum.
//!
//! Only prefix 42 ("any Substrate network"), which Bittensor uses. The checksum is the first two
//! bytes of BLAKE2b-512 over `SS58PRE`, the prefix and the key.

use blake2::{Blake2b512, Digest as _};

use crate::types::digest::Digest;

/// The prefix of Bittensor's addresses.
pub const PREFIX: u8 = 42;

/// Length of the checksum in bytes.
const CHECK_BYTES: usize = 2;

/// Length of what is written in base58: prefix, key, checksum.
const ADDRESS_BYTES: usize = 1 + Digest::BYTES + CHECK_BYTES;

/// The longest text that is decoded; base58 takes quadratic time.
const TEXT_BYTES_MAX: usize = 64;

const _: () = assert!(ADDRESS_BYTES == 35);

/// Text that is not an address of prefix 42.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Ss58Error {
    /// Another alphabet or length.
    #[error("it is not {ADDRESS_BYTES} bytes in base58")]
    NotAnAddress,
    /// An address, but of another network.
    #[error("its prefix is {found}, not {PREFIX}")]
    Prefix {
        /// The first byte.
        found: u8,
    },
    /// A character was mistyped.
    #[error("its checksum is wrong")]
    Checksum,
}

/// The address of a public key.
pub fn encode(key: Digest) -> String {
    let mut bytes = [0; ADDRESS_BYTES];
    bytes[0] = PREFIX;
    bytes[1..=Digest::BYTES].copy_from_slice(key.as_bytes());
    let check = checksum(&bytes);
    bytes[1 + Digest::BYTES..].copy_from_slice(&check);
    bs58::encode(bytes).into_string()
}

/// The public key of an address. Whether it is a point of the curve is not asked here.
///
/// # Errors
///
/// [`Ss58Error`] if `text` is not what [`encode`] writes.
pub fn decode(text: &str) -> Result<Digest, Ss58Error> {
    let mut bytes = [0; ADDRESS_BYTES];
    if text.len() > TEXT_BYTES_MAX || bs58::decode(text).onto(&mut bytes) != Ok(ADDRESS_BYTES) {
        return Err(Ss58Error::NotAnAddress);
    }
    if bytes[0] != PREFIX {
        return Err(Ss58Error::Prefix { found: bytes[0] });
    }
    if bytes[1 + Digest::BYTES..] != checksum(&bytes) {
        return Err(Ss58Error::Checksum);
    }
    let mut key = Digest::default();
    key.0.copy_from_slice(&bytes[1..=Digest::BYTES]);
    Ok(key)
}

/// The checksum over prefix and key.
fn checksum(bytes: &[u8; ADDRESS_BYTES]) -> [u8; CHECK_BYTES] {
    let hash = Blake2b512::new()
        .chain_update(b"SS58PRE")
        .chain_update(&bytes[..1 + Digest::BYTES])
        .finalize();
    [hash[0], hash[1]]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Alice's well-known development key, as every Substrate tool prints it.
    const ALICE: (&str, &str) = (
        "d43593c715fdd31c61141abd04a99fd6822c8558854ccde39a5684e7a56da27d",
        "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY",
    );

    #[test]
    fn an_address_reads_back() {
        let key: Digest = ALICE.0.parse().unwrap();
        assert_eq!(encode(key), ALICE.1);
        assert_eq!(decode(ALICE.1), Ok(key));
        for key in [Digest([0; 32]), Digest([255; 32])] {
            assert_eq!(decode(&encode(key)), Ok(key));
        }
    }

    #[test]
    fn a_mistyped_address_is_refused() {
        assert_eq!(decode(&ALICE.1.replace("Kut", "Kuu")), Err(Ss58Error::Checksum));
        // Polkadot's own prefix, 0, the same key.
        let polkadot = "15oF4uVJwmo4TdGW7VfQxNLavjCXviqxT9S1MgbjMNHr6Sp5";
        assert_eq!(decode(polkadot), Err(Ss58Error::Prefix { found: 0 }));
        let long = ALICE.1.repeat(1000);
        let none = ["", "5", "0OIl", "1111", &ALICE.1[..40], "é5G", &long];
        for text in none {
            assert_eq!(decode(text), Err(Ss58Error::NotAnAddress), "{text:?}");
        }
    }
}
