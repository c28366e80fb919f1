//! The arithmetic's stage on a card: each lane takes the next band, checks, folds and hashes it there.
//!
//! The state crosses the bus once each way, however many rounds there are, and only to the card where
//! nobody wants its bytes; roots and digests come back. While one lane computes, others copy.

use std::sync::{
    Mutex,
    mpsc::{Receiver, Sender},
};

use gradledger_kernels::{
    Findings, Step,
    cuda::{CudaError, Gpu, Lane, Made, Round, Span, Threads},
};

use super::{
    At, FoldError, FoldJob, Folded, FoldedRound, Loaded, Numbered, Parts, contributions, moved,
};
use crate::merkle::pieces::PiecePart;

/// Bands on the card at a time: one comes, one goes, and two keep it busy.
pub(super) const LANES: usize = 4;

/// Bytes of a band, at most: enough pieces to hash at once.
const BAND_BYTES_MAX: u64 = 2 << 30;

/// Bytes of state and rows of a band for a card with so much free memory, and a host.
///
/// Beside them a lane has digests; both leave a fifth to others. Of the host's memory half is used.
pub(super) fn band_bytes(card_bytes: u64, host_bytes: Option<u64>) -> u64 {
    let on_card = card_bytes / 5 * 4 / LANES as u64;
    let on_host = host_bytes.map_or(u64::MAX, |bytes| bytes / 2 / (LANES as u64 + 2));
    BAND_BYTES_MAX.min(on_card / 5 * 4).min(on_host)
}

/// Folds every band that comes and hands it on.
pub(super) fn compute(
    job: &FoldJob<'_>,
    gpu: &Gpu,
    wanted: bool,
    from: Receiver<Numbered<Loaded>>,
    to: &Sender<Numbered<Folded>>,
) {
    let from = Mutex::new(from);
    let next = || from.lock().map_or(None, |from| from.recv().ok());
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                let mut lane = Lane::new(gpu, Threads::default()).map_err(Some);
                while let Some((number, loaded)) = next() {
                    let folded = loaded.and_then(|loaded| match &mut lane {
                        Ok(lane) => fold_band(job, lane, wanted, loaded),
                        Err(error) => {
                            Err(error.take().map_or_else(|| failed_before(gpu), FoldError::from))
                        }
                    });
                    // The writer may have failed already: then nobody wants it.
                    let _ = to.send((number, folded));
                }
            });
        }
    });
}

/// What a lane says of later bands that could not be made.
fn failed_before(gpu: &Gpu) -> FoldError {
    let ordinal = gpu.description().ordinal;
    CudaError::Failed { ordinal, text: "no stream could be made".to_owned() }.into()
}

fn fold_band(
    job: &FoldJob<'_>,
    lane: &mut Lane<'_>,
    wanted: bool,
    loaded: Loaded,
) -> Result<Folded, FoldError> {
    let Loaded { at, mut room, unchecked, levels } = loaded;
    let At { tensor, first_unit, units, last } = at;
    let (_, tensor) = job.tensors[tensor];
    let cut = job.cut(tensor);
    let first_element = first_unit * cut.unit_elements;
    let Parts { state, rows } = room.parts(job, &cut, units)?;
    // First the base as it is: its digests come with the others.
    let nobody = Round { contributions: Vec::new(), step: NO_STEP, apply: false };
    let sent = contributions(&levels, rows, cut.row_bytes(units));
    let rounds = job.rounds.iter().zip(sent).map(|(round, contributions)| Round {
        contributions,
        step: round.step,
        apply: !round.claims(tensor),
    });
    let rounds: Vec<_> = std::iter::once(nobody).chain(rounds).collect();
    let (offset, bytes) = (4 * first_element, 4 * state.len() as u64);
    let made = lane.fold(&cut.band(units), Span { offset, last }, &rounds, state, wanted);
    let mut made = made.map_err(|error| match error {
        CudaError::Kernel { round, source } => job.refused(at, round - 1, source),
        error => error.into(),
    })?;
    unchecked.check_digests(&made.remove(0).digests)?;
    let folded = made.into_iter().zip(&rounds[1..]).map(|(made, round)| {
        let Made { findings, head, digests, tail, root } = made;
        let findings = match round.apply {
            true => findings,
            false => Findings { next_non_finite: None, ..findings },
        };
        let pieces = PiecePart { offset, bytes, head, digests, tail, root };
        FoldedRound { pieces, findings: moved(findings, first_element) }
    });
    let rounds = folded.collect();
    Ok(Folded { at, room, rounds })
}

/// Nobody sent anything.
const NO_STEP: Step = Step { lr: 0.0, divisor: gradledger_kernels::Divisor::Contributors };
