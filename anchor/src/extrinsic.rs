//! The signed transaction that set a commitment: who signed it and what it asked for.
//!
//! A signed extrinsic (version 4) is a length, `84`, the signer's address (`00` and its key), the
//! signature (`01` for sr25519 and 64 bytes), what the runtime's transaction extensions add (era,
//! nonce, tip, ...), and the call. The extensions change with the runtime, so the call is read from
//! the end. The signature is not verified: it is over data of the chain that stands in no extrinsic,
//! and the state proof already shows what the chain accepted.

use parity_scale_codec::{Compact, Decode};

use crate::{
    commitment::{Field, encode_fields},
    hash::Hash32,
};

/// Version 4, signed.
const SIGNED_V4: u8 = 0x84;

/// Bytes of pallet and call index before the arguments.
const INDEX_BYTES: usize = 2;

/// An extrinsic that is not the one that set a commitment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum ExtrinsicError {
    #[error("the extrinsic's length does not fit its bytes")]
    Length,
    #[error("the extrinsic starts with {found:02x?}, not {expected:02x?}: {what}")]
    Layout { what: &'static str, expected: u8, found: Option<u8> },
    #[error("the extrinsic is signed by {found}, not {expected}")]
    Signer { expected: Hash32, found: Hash32 },
    #[error("the extrinsic does not end in the call that sets these fields in subnet {netuid}")]
    Call { netuid: u16 },
}

/// The arguments of `set_commitment`: netuid (u16) and the fields. The runtime's two bytes of pallet
/// and call index, `12 00` on subtensor, stand before them.
pub fn call_arguments(netuid: u16, fields: &[Field]) -> Vec<u8> {
    [&netuid.to_le_bytes()[..], &encode_fields(fields)].concat()
}

/// Checks that `extrinsic` is signed by `hotkey` and sets `fields` in `netuid`.
///
/// # Errors
///
/// [`ExtrinsicError`] names the first thing that is otherwise.
pub fn check(
    extrinsic: &[u8],
    hotkey: &Hash32,
    netuid: u16,
    fields: &[Field],
) -> Result<(), ExtrinsicError> {
    let input = &mut &extrinsic[..];
    let Compact(length) = Compact::<u32>::decode(input).map_err(|_| ExtrinsicError::Length)?;
    if input.len() != length as usize {
        return Err(ExtrinsicError::Length);
    }
    expect(input, SIGNED_V4, "a signed extrinsic of version 4")?;
    expect(input, 0, "an address that is an account's key")?;
    let found = Hash32(Decode::decode(input).map_err(|_| ExtrinsicError::Length)?);
    if found != *hotkey {
        return Err(ExtrinsicError::Signer { expected: *hotkey, found });
    }
    expect(input, 1, "an sr25519 signature")?;
    <[u8; 64]>::decode(input).map_err(|_| ExtrinsicError::Length)?;
    let arguments = call_arguments(netuid, fields);
    if input.ends_with(&arguments) && input.len() >= arguments.len() + INDEX_BYTES {
        return Ok(());
    }
    Err(ExtrinsicError::Call { netuid })
}

fn expect(input: &mut &[u8], expected: u8, what: &'static str) -> Result<(), ExtrinsicError> {
    let found = u8::decode(input).ok();
    if found == Some(expected) {
        return Ok(());
    }
    Err(ExtrinsicError::Layout { what, expected, found })
}
