//! The reader's stage: bands in order, each with the miners' rows for it.

use std::sync::{
    Arc,
    mpsc::{Receiver, SyncSender},
};

use gradledger_kernels::{bytes as f32_bytes, levels::levels};

use super::{At, FoldError, FoldJob, Levels, Loaded, Numbered, Room, RoundFold};
use crate::{
    codec::{
        book::Book,
        layout::{DeltaGroup, TensorLayout},
    },
    store::{
        StoreError,
        artifacts::{ArtifactReader, StoredDelta},
    },
    types::{manifest::PIECE_BYTES, plan::PlanRow},
};

/// Bytes that all streams of rows keep at a time, unless a piece each is more.
const HELD_BYTES_MAX: u64 = 64 << 20;

/// Reads every band into room to spare and hands it on; ends early if a later stage did.
pub(super) fn load(job: &FoldJob<'_>, spare: &Receiver<Room>, to: &SyncSender<Numbered<Loaded>>) {
    let (mut number, mut held) = (0, Vec::new());
    for at in 0..job.tensors.len() {
        let mut hand_on = |band| {
            number += 1;
            to.send((number - 1, Ok(band))).is_ok()
        };
        match load_tensor(job, at, &mut held, spare, &mut hand_on) {
            Ok(true) => {}
            Ok(false) => return, // A later stage failed and has said so.
            Err(error) => {
                // The writer reports it; if the writer is gone, there is nobody to tell.
                let _ = to.send((number, Err(error)));
                return;
            }
        }
    }
}

/// Says whether anybody wants more. `held` is what readers of the tensor before held their pieces in.
fn load_tensor(
    job: &FoldJob<'_>,
    at: usize,
    held: &mut Vec<Vec<u8>>,
    spare: &Receiver<Room>,
    hand_on: &mut dyn FnMut(Loaded) -> bool,
) -> Result<bool, FoldError> {
    let (planned, tensor) = job.tensors[at];
    let cut = job.cut(tensor);
    let mut base = job.base.tensor(tensor.position)?;
    let pieces = held_pieces(2 * job.contributions());
    let mut hold = || (pieces, held.pop().unwrap_or_default());
    let open = |round: &RoundFold<'_>| -> Result<Vec<Streams>, StoreError> {
        round.deltas.iter().map(|delta| Streams::open(delta, tensor, &mut hold)).collect()
    };
    let mut streams = job.rounds.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let levels = Arc::new(levels_of(job, planned, tensor)?);
    for (first_unit, units, last) in cut.bands() {
        let Ok(mut room) = spare.recv() else { return Ok(false) };
        let parts = room.parts(job, &cut, units)?;
        let unchecked = base.fetch(f32_bytes::of_f32_mut(parts.state))?;
        let bytes = cut.row_bytes(units);
        let rows = parts.rows.chunks_exact_mut(bytes.total());
        for (rows, stream) in rows.zip(streams.iter_mut().flatten()) {
            let (index, code) = rows.split_at_mut(bytes.index);
            stream.index.read_exact(index)?;
            stream.code.read_exact(code)?;
        }
        let at = At { tensor: at, first_unit, units, last };
        if !hand_on(Loaded { at, room, unchecked, levels: levels.clone() }) {
            return Ok(false);
        }
    }
    let readers = streams.into_iter().flatten().flat_map(|of| [of.index, of.code]);
    held.extend(readers.map(ArtifactReader::into_room));
    Ok(true)
}

/// Pieces that each of `streams` readers keeps.
fn held_pieces(streams: u64) -> usize {
    let pieces = HELD_BYTES_MAX / PIECE_BYTES / streams.max(1);
    usize::try_from(pieces).unwrap_or(usize::MAX)
}

/// One miner's two streams of one tensor.
struct Streams {
    index: ArtifactReader,
    code: ArtifactReader,
}

impl Streams {
    fn open(
        delta: &StoredDelta,
        tensor: &TensorLayout,
        hold: &mut impl FnMut() -> (usize, Vec<u8>),
    ) -> Result<Self, StoreError> {
        let mut open = |group| -> Result<ArtifactReader, StoreError> {
            let mut reader = delta.open_artifact(group, &tensor.name)?;
            let (pieces, room) = hold();
            reader.hold(pieces, room);
            Ok(reader)
        };
        Ok(Self { index: open(DeltaGroup::Index)?, code: open(DeltaGroup::Code)? })
    }
}

/// Per round and miner: the clipped value of each code.
fn levels_of(
    job: &FoldJob<'_>,
    planned: usize,
    tensor: &TensorLayout,
) -> Result<Levels, StoreError> {
    let of_round = |round: &RoundFold<'_>| {
        let rows = round.plan.tensor(planned);
        let of_miner = |(delta, row): (&StoredDelta, &PlanRow)| {
            let book = Book::from_bytes(&delta.book(&tensor.name)?);
            Ok(levels(&book.lookup, book.shift, row.factor))
        };
        round.deltas.iter().zip(rows).map(of_miner).collect()
    };
    job.rounds.iter().map(of_round).collect()
}
