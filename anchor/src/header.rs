//! Block headers: SCALE bytes, known by their BLAKE2b-256 hash, each naming its parent.
//!
//! A header is believed because its hash is: from a GRANDPA justification, a later header, or
//! somebody who has a node.

use parity_scale_codec::{Compact, Decode, Error as ScaleError};
use serde::{Deserialize, Serialize};

use crate::hash::{Hash32, blake2b_256};

/// A block: its height and its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockId {
    /// Height; the genesis has 0.
    pub number: u32,
    /// BLAKE2b-256 of the header.
    pub hash: Hash32,
}

impl std::fmt::Display for BlockId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "block {} ({})", self.number, self.hash)
    }
}

/// What a header says, of what matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The block.
    pub id: BlockId,
    /// Hash of the block before.
    pub parent: Hash32,
    /// Root of the state after the block.
    pub state_root: Hash32,
    /// Root over the block's extrinsics.
    pub extrinsics_root: Hash32,
}

/// Bytes that are no header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum HeaderError {
    #[error("not a header: {0}")]
    Scale(#[from] ScaleError),
    #[error("the header goes on for {bytes} bytes after its end")]
    Long { bytes: usize },
    #[error("a header's digest has no item of kind {kind}")]
    Digest { kind: u8 },
}

impl Header {
    /// Reads one header.
    ///
    /// # Errors
    ///
    /// [`HeaderError`] if the bytes are not exactly one.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, HeaderError> {
        let header = Self::take(&mut bytes)?;
        if bytes.is_empty() { Ok(header) } else { Err(HeaderError::Long { bytes: bytes.len() }) }
    }

    /// Reads the header that `input` starts with.
    pub(crate) fn take(input: &mut &[u8]) -> Result<Self, HeaderError> {
        let bytes = *input;
        let parent = Hash32(Decode::decode(input)?);
        let Compact(number) = Compact::<u32>::decode(input)?;
        let state_root = Hash32(Decode::decode(input)?);
        let extrinsics_root = Hash32(Decode::decode(input)?);
        let Compact(items) = Compact::<u32>::decode(input)?;
        for _ in 0..items {
            skip_digest_item(input)?;
        }
        let hash = blake2b_256(&bytes[..bytes.len() - input.len()]);
        Ok(Self { id: BlockId { number, hash }, parent, state_root, extrinsics_root })
    }
}

/// Seals, consensus messages and the like: read for their length alone.
///
/// Their numbers are those of `sp-runtime`'s `DigestItem`.
fn skip_digest_item(input: &mut &[u8]) -> Result<(), HeaderError> {
    match u8::decode(input)? {
        // Other.
        0 => _ = Vec::<u8>::decode(input)?,
        // Consensus, Seal, PreRuntime: an engine's four letters, then its bytes.
        4..=6 => _ = <([u8; 4], Vec<u8>)>::decode(input)?,
        // RuntimeEnvironmentUpdated.
        8 => {}
        kind => return Err(HeaderError::Digest { kind }),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parent, number 4, roots, and one digest item of each kind.
    fn bytes() -> Vec<u8> {
        let mut bytes = [&[1; 32][..], &[16], &[2; 32], &[3; 32], &[5 << 2]].concat();
        bytes.extend([0, 4, 9]);
        for kind in [4, 5, 6] {
            bytes.extend([kind, b'a', b'u', b'r', b'a', 8, 1, 2]);
        }
        bytes.push(8);
        bytes
    }

    #[test]
    fn a_header_is_read_to_its_last_byte() {
        let bytes = bytes();
        let header = Header::decode(&bytes).unwrap();
        assert_eq!(header.id, BlockId { number: 4, hash: blake2b_256(&bytes) });
        assert_eq!(header.parent, Hash32([1; 32]));
        assert_eq!(header.state_root, Hash32([2; 32]));
        assert_eq!(header.extrinsics_root, Hash32([3; 32]));
        for end in 0..bytes.len() {
            assert!(matches!(Header::decode(&bytes[..end]), Err(HeaderError::Scale(_))), "{end}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(Header::decode(&longer), Err(HeaderError::Long { bytes: 1 }));
    }

    #[test]
    fn an_unknown_item_and_a_number_spelled_long_are_refused() {
        let mut unknown = bytes();
        *unknown.last_mut().unwrap() = 7;
        assert_eq!(Header::decode(&unknown), Err(HeaderError::Digest { kind: 7 }));
        // 4 as a two-byte compact integer: another hash, the same fields.
        let bytes = bytes();
        let long = [&bytes[..32], &[0b01 | 16, 0], &bytes[33..]].concat();
        assert!(matches!(Header::decode(&long), Err(HeaderError::Scale(_))));
    }
}
