//! What the chain stores for a hotkey in a subnet: `Commitments.CommitmentOf`.
//!
//! A value is SCALE of deposit (u64), block (u32) and fields. Fields are kept as their bytes: the
//! digest among them is read, the others may be anybody's and are only passed on. The source is the
//! `commitments` pallet of subtensor; the bytes are in `schema/anchor.md`.

use parity_scale_codec::{Compact, Decode, Encode, Error as ScaleError};

use crate::hash::{Hash32, Hex, twox_64, twox_128};

/// The byte that starts a `Data::Sha256`.
pub const SHA256: u8 = 131;

/// The byte that is `Data::ResetBondsFlag`, which is never sent: it resets a miner's bonds.
pub const RESET_BONDS: u8 = 135;

/// The storage key of `CommitmentOf` for a hotkey in a subnet.
///
/// `twox_128("Commitments") | twox_128("CommitmentOf") | netuid u16 | twox_64(hotkey) | hotkey`.
pub fn storage_key(netuid: u16, hotkey: &Hash32) -> Vec<u8> {
    [
        &twox_128(b"Commitments")[..],
        &twox_128(b"CommitmentOf"),
        &netuid.to_le_bytes(),
        &twox_64(&hotkey.0),
        &hotkey.0,
    ]
    .concat()
}

/// A stored value that is not understood, or holds no one digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum CommitmentError {
    #[error("not a commitment: {0}")]
    Scale(#[from] ScaleError),
    #[error("the commitment goes on for {bytes} bytes after its end")]
    Long { bytes: usize },
    #[error("a commitment has no field of kind {kind}")]
    Kind { kind: u8 },
    #[error("the commitment has {found} SHA-256 fields; an anchor has one")]
    Digests { found: usize },
}

/// A field of a commitment, as its SCALE bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field(Hex);

impl Field {
    /// `Data::Sha256(digest)`.
    pub fn sha256(digest: &Hash32) -> Self {
        Self(Hex([&[SHA256], &digest.0[..]].concat()))
    }

    /// `Data::Raw`, of at most 128 bytes.
    pub fn raw(bytes: &[u8]) -> Option<Self> {
        let kind = u8::try_from(bytes.len()).ok().filter(|length| *length <= 128)? + 1;
        Some(Self(Hex([&[kind], bytes].concat())))
    }

    /// `Data::ResetBondsFlag`, to compare with: it is never sent.
    pub fn reset_bonds() -> Self {
        Self(Hex(vec![RESET_BONDS]))
    }

    /// The digest, if that is what it is.
    pub fn digest(&self) -> Option<Hash32> {
        let digest = self.0.0.strip_prefix(&[SHA256])?;
        digest.try_into().ok().map(Hash32)
    }

    /// Its SCALE bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.0
    }

    fn take(input: &mut &[u8]) -> Result<Self, CommitmentError> {
        let bytes = *input;
        match u8::decode(input)? {
            0 | RESET_BONDS => {}
            // Raw bytes, the length in the kind.
            raw @ 1..=129 => skip(input, usize::from(raw) - 1)?,
            // BLAKE2, SHA-256, Keccak, SHA-3.
            130..=133 => skip(input, 32)?,
            // Encrypted until a round of drand.
            134 => _ = <(Vec<u8>, u64)>::decode(input)?,
            // Raw bytes, more of them.
            136 => _ = Vec::<u8>::decode(input)?,
            kind => return Err(CommitmentError::Kind { kind }),
        }
        Ok(Self(Hex(bytes[..bytes.len() - input.len()].to_vec())))
    }
}

fn skip(input: &mut &[u8], bytes: usize) -> Result<(), ScaleError> {
    *input = input.get(bytes..).ok_or("a field ends early")?;
    Ok(())
}

/// The value of `CommitmentOf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commitment {
    /// What the chain holds back for it, in rao.
    pub deposit: u64,
    /// The block in which it was set.
    pub block: u32,
    /// What was committed to.
    pub fields: Vec<Field>,
}

impl Commitment {
    /// Reads a stored value.
    ///
    /// # Errors
    ///
    /// [`CommitmentError`] if the bytes are not exactly one.
    pub fn decode(bytes: &[u8]) -> Result<Self, CommitmentError> {
        let input = &mut &bytes[..];
        let deposit = u64::decode(input)?;
        let block = u32::decode(input)?;
        let Compact(count) = Compact::<u32>::decode(input)?;
        let fields = (0..count).map(|_| Field::take(input)).collect::<Result<_, _>>()?;
        if !input.is_empty() {
            return Err(CommitmentError::Long { bytes: input.len() });
        }
        Ok(Self { deposit, block, fields })
    }

    /// The one digest among the fields.
    ///
    /// # Errors
    ///
    /// [`CommitmentError::Digests`] if there is none, or more than one: two heads would be anchored
    /// at once, and one of them could be a fork.
    pub fn digest(&self) -> Result<Hash32, CommitmentError> {
        match self.fields.iter().filter_map(Field::digest).collect::<Vec<_>>()[..] {
            [digest] => Ok(digest),
            ref digests => Err(CommitmentError::Digests { found: digests.len() }),
        }
    }

    /// SCALE bytes of the fields, as in a call that sets them.
    pub fn encoded_fields(&self) -> Vec<u8> {
        encode_fields(&self.fields)
    }
}

/// SCALE bytes of `CommitmentInfo`: the fields behind their number.
pub fn encode_fields(fields: &[Field]) -> Vec<u8> {
    let mut bytes = Compact(fields.len() as u32).encode();
    fields.iter().for_each(|field| bytes.extend(field.as_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(fields: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0; 8];
        bytes.extend(7u32.to_le_bytes());
        bytes.push((fields.len() as u8) << 2);
        fields.iter().for_each(|field| bytes.extend(*field));
        bytes
    }

    #[test]
    fn the_one_digest_is_found_among_other_fields() {
        let digest = Hash32([5; 32]);
        let ours = Field::sha256(&digest);
        let others: [&[u8]; 7] = [
            &[0],
            &[1],
            &[3, 1, 2],
            &[[132].as_slice(), &[9; 32]].concat(),
            &[134, 8, 1, 2, 0, 0, 0, 0, 0, 0, 0, 1],
            &[RESET_BONDS],
            &[136, 4, 1],
        ];
        for other in others {
            for fields in [[other, ours.as_bytes()], [ours.as_bytes(), other]] {
                let read = Commitment::decode(&value(&fields)).unwrap();
                assert_eq!((read.block, read.digest()), (7, Ok(digest)));
                assert_eq!(read.encoded_fields(), value(&fields)[12..]);
            }
            let none = Commitment::decode(&value(&[other])).unwrap();
            assert_eq!(none.digest(), Err(CommitmentError::Digests { found: 0 }));
        }
        let two = Commitment::decode(&value(&[ours.as_bytes(); 2])).unwrap();
        assert_eq!(two.digest(), Err(CommitmentError::Digests { found: 2 }));
    }

    #[test]
    fn values_of_another_form_are_refused() {
        let good = value(&[Field::sha256(&Hash32([5; 32])).as_bytes()]);
        for end in 0..good.len() {
            assert!(matches!(Commitment::decode(&good[..end]), Err(CommitmentError::Scale(_))));
        }
        let longer = [&good[..], &[0]].concat();
        assert_eq!(Commitment::decode(&longer), Err(CommitmentError::Long { bytes: 1 }));
        let unknown = Commitment::decode(&value(&[&[137]]));
        assert_eq!(unknown, Err(CommitmentError::Kind { kind: 137 }));
    }

    proptest! {
        #[test]
        fn no_value_panics(bytes: Vec<u8>, fields: Vec<u8>) {
            let _ = Commitment::decode(&bytes);
            let _ = Commitment::decode(&[&value(&[])[..12], &[0xfe, 0xff, 0xff, 0xff], &fields].concat());
        }
    }
}
