//! The arithmetic's stage: a band's state is checked, then each round is applied and hashed while the
//! band is at hand.
//!
//! Bands are independent, so as many as there are threads are under way, and none waits for the last
//! thread of another. An engine beside the processor takes its place here: [`Loaded`] in, [`Folded`]
//! out, in any order.

use std::sync::mpsc::{Receiver, Sender};

use gradledger_kernels::{Contribution, Findings, KernelError, bytes as f32_bytes, cpu};

use super::{
    At, FoldError, FoldJob, Folded, FoldedRound, Loaded, Numbered, Parts, RoundFold, contributions,
    moved,
};
use crate::merkle::pieces::PiecePart;

/// Folds every band that comes and hands it on; with no path it is checked only.
pub(super) fn compute(
    job: &FoldJob<'_>,
    path: Option<cpu::Path>,
    from: &Receiver<Numbered<Loaded>>,
    to: &Sender<Numbered<Folded>>,
) {
    job.pool.in_place_scope_fifo(|scope| {
        for (number, loaded) in from {
            let to = to.clone();
            scope.spawn_fifo(move |_| {
                let folded = loaded.and_then(|loaded| fold_band(job, path, loaded));
                // The writer may have failed already: then nobody wants it.
                let _ = to.send((number, folded));
            });
        }
    });
}

fn fold_band(
    job: &FoldJob<'_>,
    path: Option<cpu::Path>,
    loaded: Loaded,
) -> Result<Folded, FoldError> {
    let Loaded { at, mut room, unchecked, levels } = loaded;
    let At { tensor, first_unit, units, .. } = at;
    let (_, tensor) = job.tensors[tensor];
    let cut = job.cut(tensor);
    let first_element = first_unit * cut.unit_elements;
    let Parts { state, rows } = room.parts(job, &cut, units)?;
    let sent = contributions(&levels, rows, cut.row_bytes(units));
    unchecked.check(f32_bytes::of_f32(state))?;
    let mut rounds = Vec::with_capacity(job.rounds.len());
    let Some(path) = path else { return Ok(Folded { at, room, rounds }) };
    for (number, (round, sent)) in job.rounds.iter().zip(&sent).enumerate() {
        let found = if round.claims(tensor) {
            look(path, &cut.band(units), sent, round, state)
        } else {
            apply(path, &cut.band(units), sent, round, state)
        };
        let found = found.map_err(|source| job.refused(at, number, source))?;
        let findings = moved(found, first_element);
        let pieces = PiecePart::of(4 * first_element, f32_bytes::of_f32(state));
        rounds.push(FoldedRound { pieces, findings });
    }
    Ok(Folded { at, room, rounds })
}

/// Applies a round.
fn apply(
    path: cpu::Path,
    band: &gradledger_kernels::Band,
    contributions: &[Contribution<'_>],
    round: &RoundFold<'_>,
    state: &mut [f32],
) -> Result<Findings, KernelError> {
    if contributions.is_empty() {
        return Ok(Findings::default());
    }
    cpu::fold(path, band, contributions, round.step, state)
}

/// What a round would meet that says that it left the tensor unchanged.
fn look(
    path: cpu::Path,
    band: &gradledger_kernels::Band,
    contributions: &[Contribution<'_>],
    round: &RoundFold<'_>,
    state: &[f32],
) -> Result<Findings, KernelError> {
    let found = apply(path, band, contributions, round, &mut state.to_vec())?;
    Ok(Findings { next_non_finite: None, ..found })
}
