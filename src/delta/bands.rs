//! Bands: whole rows of blocks, streamed. One thread reads ahead while the others compute.

use std::{
    sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    thread,
};

use gradledger_kernels::feedback::{Seen, accumulate};

use super::{DeltaError, Sweep, inputs::Inputs};
use crate::{codec::layout::TensorLayout, types::digest::Digest};

/// A tensor in units (see [`crate::types::grid::Grid::unit_blocks`]), some of which are a band.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    unit_elements: u64,
    unit_blocks: u64,
    units: u64,
    units_per_band: u64,
}

impl Cut {
    pub(super) fn new(tensor: &TensorLayout, band_bytes: u64) -> Self {
        let unit_blocks = tensor.grid.unit_blocks();
        let unit_elements = unit_blocks * tensor.grid.block_elements();
        let units_per_band = (band_bytes / (4 * unit_elements)).max(1);
        Self {
            unit_elements,
            unit_blocks,
            units: tensor.grid.blocks() / unit_blocks,
            units_per_band,
        }
    }

    /// (first unit, number of units) of each band.
    pub(super) fn bands(self) -> impl Iterator<Item = (u64, u64)> {
        let Self { units, units_per_band: step, .. } = self;
        (0..units.div_ceil(step)).map(move |band| (band * step, step.min(units - band * step)))
    }

    /// Elements of `units` units, which are held in memory.
    pub(super) fn elements(self, units: u64) -> usize {
        usize::try_from(units * self.unit_elements).expect("a band fits in memory")
    }
}

/// Some rows of blocks of the error, the round's gradient added.
pub(super) struct Band {
    /// The first block.
    pub first_block: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// `decay * kept + (base - trained)`, row-major.
    pub error: Vec<f32>,
    /// Sums of squares.
    pub seen: Seen,
}

/// What the reader hands over.
struct Loaded {
    first_unit: u64,
    units: u64,
    base: Vec<f32>,
    trained: Vec<f32>,
    /// What was kept.
    error: Vec<f32>,
}

/// Calls `take` with every band of a tensor in order; gives the roots of base and trained values.
///
/// # Errors
///
/// [`DeltaError::NonFinite`] names the first element that is no number; `take`'s own, and the inputs'.
pub(super) fn each_band(
    sweep: &Sweep<'_>,
    inputs: &Inputs<'_>,
    tensor: &TensorLayout,
    mut take: impl FnMut(&mut Band) -> Result<(), DeltaError>,
) -> Result<(Digest, Digest), DeltaError> {
    let cut = Cut::new(tensor, inputs.job.band_bytes);
    thread::scope(|scope| {
        let (to, from) = sync_channel(1);
        let (spare_to, spare) = channel();
        let reader = scope.spawn(move || read(sweep, inputs, tensor, &to, &spare));
        compute(inputs, tensor, cut, from, &spare_to, sweep, &mut take)?;
        reader.join().expect("the reader does not panic")
    })
}

fn compute(
    inputs: &Inputs<'_>,
    tensor: &TensorLayout,
    cut: Cut,
    from: Receiver<Loaded>,
    spare: &Sender<[Vec<f32>; 3]>,
    sweep: &Sweep<'_>,
    take: &mut impl FnMut(&mut Band) -> Result<(), DeltaError>,
) -> Result<(), DeltaError> {
    for loaded in from {
        let Loaded { first_unit, units, base, trained, mut error } = loaded;
        let decay = inputs.job.decay;
        let seen = sweep.pool.install(|| accumulate(&base, &trained, decay, &mut error));
        if let Some(at) = seen.non_finite {
            let element = first_unit * cut.unit_elements + at;
            return Err(DeltaError::NonFinite { tensor: tensor.name.clone(), element });
        }
        let (first_block, blocks) = (first_unit * cut.unit_blocks, units * cut.unit_blocks);
        let mut band = Band { first_block, blocks, error, seen };
        take(&mut band)?;
        sweep.progress.advance(4 * band.error.len() as u64);
        // The reader may be done already: then nobody wants the buffers back.
        let _ = spare.send([base, trained, band.error]);
    }
    Ok(())
}

fn read(
    sweep: &Sweep<'_>,
    inputs: &Inputs<'_>,
    tensor: &TensorLayout,
    to: &SyncSender<Loaded>,
    spare: &Receiver<[Vec<f32>; 3]>,
) -> Result<(Digest, Digest), DeltaError> {
    let job = inputs.job;
    let cut = Cut::new(tensor, job.band_bytes);
    let (mut before, mut after) = (job.base.open(tensor)?, job.trained.open(tensor)?);
    for (first_unit, units) in cut.bands() {
        let [mut base, mut trained, mut error] = spare.try_recv().unwrap_or_default();
        for buffer in [&mut base, &mut trained, &mut error] {
            buffer.resize(cut.elements(units), 0.0);
        }
        // Hashing uses the pool.
        sweep.pool.install(|| {
            before.read(&mut base)?;
            after.read(&mut trained)
        })?;
        match inputs.old {
            Some(old) => old.read(tensor, first_unit * cut.unit_elements, &mut error)?,
            None => error.fill(0.0),
        }
        if to.send(Loaded { first_unit, units, base, trained, error }).is_err() {
            break; // The other side failed and says why.
        }
    }
    Ok((before.root(), after.root()))
}
