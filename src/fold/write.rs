//! The writer's stage: bands as they come, handed out in order.

use std::{
    collections::BTreeMap,
    sync::mpsc::{Receiver, Sender},
};

use gradledger_kernels::{Findings, bytes as f32_bytes};

use super::{FoldError, FoldJob, FoldOutput, Folded, Numbered, Room, TensorOutcome};
use crate::{merkle::pieces::PieceHasher, types::progress::Progress};

/// Hands every band's bytes to `output` and what each round made of a tensor when it is whole.
///
/// Of several errors the one of the first band is given.
pub(super) fn write(
    job: &FoldJob<'_>,
    from: &Receiver<Numbered<Folded>>,
    spare: &Sender<Room>,
    output: &mut dyn FoldOutput,
    progress: &dyn Progress,
) -> Result<(), FoldError> {
    let (mut waiting, mut next) = (BTreeMap::new(), 0);
    let mut tensor = Tensor::default();
    for (number, folded) in from {
        waiting.insert(number, folded);
        while let Some(folded) = waiting.remove(&next) {
            next += 1;
            let room = tensor.take(job, folded?, output, progress)?;
            // The reader may be done already: then nobody wants it back.
            let _ = spare.send(room);
        }
    }
    Ok(())
}

/// The tensor under way: what each round has made of it so far.
#[derive(Default)]
struct Tensor {
    rounds: Vec<(PieceHasher, Findings)>,
}

impl Tensor {
    fn take(
        &mut self,
        job: &FoldJob<'_>,
        folded: Folded,
        output: &mut dyn FoldOutput,
        progress: &dyn Progress,
    ) -> Result<Room, FoldError> {
        let Folded { at, mut room, rounds } = folded;
        let (_, tensor) = job.tensors[at.tensor];
        let parts = room.parts(job, &job.cut(tensor), at.units)?;
        let bytes = f32_bytes::of_f32(parts.state);
        if output.wants_state() {
            output.state(tensor, bytes)?;
        }
        progress.advance(bytes.len() as u64);
        self.rounds.resize_with(rounds.len(), Default::default);
        for ((hasher, findings), band) in self.rounds.iter_mut().zip(rounds) {
            hasher.append(band.pieces);
            *findings = findings.merged(band.findings);
        }
        if at.last {
            let outcome = |(hasher, findings): (PieceHasher, _)| TensorOutcome {
                pieces: hasher.finish(),
                findings,
            };
            output.done(tensor, self.rounds.drain(..).map(outcome).collect())?;
        }
        Ok(room)
    }
}
