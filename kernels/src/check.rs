//! Which fault of an input is reported: the one answer for the reference and every fast copy.
//!
//! Lengths first. Then the lowest block, in it the first miner, of that miner the first entry; an index out of range
//! comes before a repeat.

use crate::band::{BLOCK_LEN_MAX, Band, Contribution, MINERS_MAX};
use crate::{KernelError, Stream};

/// That `band` is one, that there are at most 255 contributions, and that their slices have its lengths.
///
/// # Errors
///
/// Those of [`Band::validate`], [`KernelError::Miners`], or [`KernelError::Length`] of the first miner, of its index, code,
/// levels in this order.
pub fn lengths(band: &Band, contributions: &[Contribution<'_>]) -> Result<(), KernelError> {
    band.validate()?;
    if contributions.len() > MINERS_MAX {
        return Err(KernelError::Miners {
            miners: contributions.len(),
        });
    }
    for (miner, sent) in contributions.iter().enumerate() {
        for (stream, expected, found) in [
            (
                Stream::Index,
                band.blocks() * band.index_bytes_per_block(),
                sent.index.len(),
            ),
            (
                Stream::Code,
                band.blocks() * band.code_bytes_per_block(),
                sent.code.len(),
            ),
            (Stream::Levels, band.bins(), sent.levels.len()),
        ] {
            if expected != found {
                return Err(KernelError::Length {
                    miner,
                    stream,
                    expected,
                    found,
                });
            }
        }
    }
    Ok(())
}

/// That the state has one value an element of `band`.
///
/// # Errors
///
/// [`KernelError::StateLength`].
pub fn state(band: &Band, state: &[f32]) -> Result<(), KernelError> {
    let (expected, found) = (band.elements(), state.len());
    if expected == found {
        Ok(())
    } else {
        Err(KernelError::StateLength { expected, found })
    }
}

/// That every index is below the block's length and stands once in its block.
///
/// Reads index bytes only. The lengths must have been checked.
///
/// # Errors
///
/// [`KernelError::IndexOutOfRange`] or [`KernelError::Repeated`], in the order the module states.
pub fn indices(band: &Band, contributions: &[Contribution<'_>]) -> Result<(), KernelError> {
    let bytes = band.index_bytes_per_block();
    for block in 0..band.blocks() {
        for (miner, sent) in contributions.iter().enumerate() {
            let index = &sent.index[block * bytes..][..bytes];
            block_indices(index, band.block_len(), miner, block as u64)?;
        }
    }
    Ok(())
}

/// One miner's indices of one block.
fn block_indices(
    packed: &[u8],
    block_len: usize,
    miner: usize,
    block: u64,
) -> Result<(), KernelError> {
    let mut seen = [0u64; BLOCK_LEN_MAX / 64];
    for (entry, index) in crate::codes::indices(packed).enumerate() {
        if usize::from(index) >= block_len {
            return Err(KernelError::IndexOutOfRange {
                miner,
                block,
                entry,
                index,
                block_len,
            });
        }
        let (word, bit) = (usize::from(index) / 64, 1u64 << (index % 64));
        if seen[word] & bit != 0 {
            let first = crate::codes::indices(packed)
                .position(|earlier| earlier == index)
                .expect("it was seen at an entry before this one");
            return Err(KernelError::Repeated {
                miner,
                block,
                index,
                first,
                entry,
            });
        }
        seen[word] |= bit;
    }
    Ok(())
}
