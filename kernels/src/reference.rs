//! The meaning of a fold: plain, slow, element by element. Every fast copy equals it bit for bit.
//!
//! Per element, miners in slice order, in f32 from +0: `sum = sum + level; count = count + 1`. Where at least one miner sent
//! the element: `delta = sum / count` (or the number in [`Divisor::All`]), then `p = fma(-lr, delta, p)` with one rounding. An
//! element nobody sent keeps its bits, -0 and NaN payloads included. A NaN result has the bits 7fc00000.
//!
//! Source: SparseLoCo (arXiv 2508.15706), outer step, dividing by contributors as Templar's code does.

use crate::band::{Band, Contribution, Divisor, Findings, Step};
use crate::{KernelError, canonical, check, codes, fma};

/// Folds one band into `state`, in place.
///
/// # Shapes
///
/// - `contributions`: at most 255, in ledger order, each with every block of the band.
/// - `state`: f32 `[rows, columns]`, row-major.
///
/// # Errors
///
/// What [`check`] finds first. `state` is unspecified then.
pub fn fold(
    band: &Band,
    contributions: &[Contribution<'_>],
    step: Step,
    state: &mut [f32],
) -> Result<Findings, KernelError> {
    check::lengths(band, contributions)?;
    check::state(band, state)?;
    let mut findings = Findings::default();
    each_delta(band, contributions, step.divisor, |element, delta| {
        let next = fma::fma_f32(-step.lr, delta, state[element]);
        findings.note(element as u64, delta, next);
        state[element] = canonical(next);
    })?;
    Ok(findings)
}

/// The aggregated delta of a band, f32 `[rows, columns]`, row-major: 0 where nobody sent anything.
///
/// # Errors
///
/// What [`check`] finds first.
pub fn aggregate(
    band: &Band,
    contributions: &[Contribution<'_>],
    divisor: Divisor,
) -> Result<Vec<f32>, KernelError> {
    check::lengths(band, contributions)?;
    let mut dense = vec![0.0; band.elements()];
    each_delta(band, contributions, divisor, |element, delta| {
        dense[element] = canonical(delta)
    })?;
    Ok(dense)
}

/// Calls `visit(element, delta)` for every element that somebody sent, once, blocks in order.
fn each_delta(
    band: &Band,
    contributions: &[Contribution<'_>],
    divisor: Divisor,
    mut visit: impl FnMut(usize, f32),
) -> Result<(), KernelError> {
    check::indices(band, contributions)?;
    let (index_bytes, code_bytes) = (band.index_bytes_per_block(), band.code_bytes_per_block());
    for block in 0..band.blocks() {
        let mut sum = vec![0.0f32; band.block_len()];
        let mut count = vec![0u32; band.block_len()];
        for sent in contributions {
            let index = codes::indices(&sent.index[block * index_bytes..][..index_bytes]);
            let code = &sent.code[block * code_bytes..][..code_bytes];
            for (entry, index) in index.map(usize::from).enumerate() {
                let level = sent.levels[usize::from(codes::code_at(code, entry, band.code_bits))];
                sum[index] += level;
                count[index] += 1;
            }
        }
        for index in 0..band.block_len() {
            if count[index] > 0 {
                visit(
                    band.element(block, index),
                    sum[index] / divisor.of(count[index]),
                );
            }
        }
    }
    Ok(())
}
