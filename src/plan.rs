//! Layer 4, the plan: one pass over the codes of all accepted deltas gives a round's scalars.
//!
//! With the plan the fold is element-wise: any range of any tensor can be replayed alone.

use gradledger_kernels::{
    KernelError,
    clip::{factors_f32, factors_f64},
    codes,
    levels::levels,
    norm::{TorchCpuNorm, histogram_f64},
};
use rayon::prelude::*;

use crate::{
    codec::{
        book::{Book, BookError},
        layout::{DeltaGroup, Layout, TensorLayout},
    },
    store::{StoreError, artifacts::StoredDelta},
    types::{
        plan::{Plan, PlanRow},
        progress::Progress,
        rule::{Norm, SparseMeanSgd},
    },
};

/// A plan that cannot be derived.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanStepError {
    /// A delta's bytes are missing or do not have their root.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored book that intake would refuse: it should not have been accepted.
    #[error("miner {miner} in ledger order, {tensor}: {source}")]
    Book {
        /// Place in ledger order.
        miner: usize,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        source: BookError,
    },
    /// Stored codes that intake would refuse.
    #[error("miner {miner} in ledger order, {tensor}: {source}")]
    Codes {
        /// Place in ledger order.
        miner: usize,
        /// The tensor.
        tensor: String,
        /// What is wrong with them.
        source: KernelError,
    },
}

/// Codes that are decoded at once, in bytes.
const CODE_BYTES_AT_ONCE: u64 = 256 << 10;

/// Derives a round's scalars from its accepted deltas, which are in ledger order.
///
/// Per tensor and miner the counts of each code and the norm; per tensor the lower median of the
/// norms and from it each miner's factor. Parallel over tensors and miners on the current rayon
/// pool; within one of them in file order, as the norm's recipe may ask.
///
/// # Errors
///
/// [`PlanStepError`] if a delta's bytes are missing, do not have their root, or break the rules that
/// intake holds deltas to.
///
/// # Source
///
/// `schema/fold.md`, steps 1 to 3.
pub fn plan(
    layout: &Layout,
    rule: &SparseMeanSgd,
    deltas: &[StoredDelta],
    progress: &dyn Progress,
) -> Result<Plan, PlanStepError> {
    let pairs: Vec<_> = layout
        .tensors
        .iter()
        .flat_map(|t| deltas.iter().enumerate().map(move |d| (t, d)))
        .collect();
    let scalars = pairs
        .into_par_iter()
        .map(|(tensor, (miner, delta))| {
            let scalars = scalars(tensor, rule, miner, delta)?;
            progress.advance(tensor.grid.blocks() * tensor.code_bytes_per_block());
            Ok(scalars)
        })
        .collect::<Result<Vec<_>, PlanStepError>>()?;
    let mut rows = Vec::with_capacity(scalars.len());
    for tensor in scalars.chunks(deltas.len().max(1)) {
        let norms: Vec<f64> = tensor.iter().map(|(norm, _)| *norm).collect();
        let factors = factors(rule.norm, &norms);
        for ((norm, counts), factor) in tensor.iter().zip(factors) {
            rows.push(PlanRow { norm: *norm, factor, counts: counts.clone() });
        }
    }
    Ok(Plan { bins: 1 << rule.code_bits(), miners: deltas.len(), rows })
}

/// Bytes that [`plan`] reports as progress.
pub fn planned_bytes(layout: &Layout, deltas: &[StoredDelta]) -> u64 {
    let tensor = |t: &TensorLayout| t.grid.blocks() * t.code_bytes_per_block();
    layout.tensors.iter().map(tensor).sum::<u64>() * deltas.len() as u64
}

/// Each miner's factor in a tensor, from the norms of all of them.
pub fn factors(norm: Norm, norms: &[f64]) -> Vec<f32> {
    match norm {
        Norm::HistogramF64 => factors_f64(norms),
        // These were f32 before they were stored as f64, so nothing is rounded here.
        Norm::TorchCpuF32 => {
            factors_f32(&norms.iter().map(|&norm| norm as f32).collect::<Vec<_>>())
        }
    }
}

/// Norm and code counts of one miner's values in one tensor.
fn scalars(
    tensor: &TensorLayout,
    rule: &SparseMeanSgd,
    miner: usize,
    delta: &StoredDelta,
) -> Result<(f64, Vec<u64>), PlanStepError> {
    let name = || tensor.name.clone();
    let book = Book::from_bytes(&delta.book(&tensor.name)?);
    book.check(rule.dialect).map_err(|source| PlanStepError::Book {
        miner,
        tensor: name(),
        source,
    })?;
    // A factor of 1 changes no value: these are `lookup + shift`.
    let values = levels(&book.lookup, book.shift, 1.0);
    let mut counts = vec![0; values.len()];
    let mut torch = TorchCpuNorm::new();
    let (mut packed, mut decoded) = (Vec::new(), Vec::new());
    let mut reader = delta.open_artifact(DeltaGroup::Code, &tensor.name)?;
    let (k, bits) = (usize::try_from(tensor.k).expect("k is at most 4096"), tensor.code_bits);
    let blocks_at_once = CODE_BYTES_AT_ONCE / tensor.code_bytes_per_block();
    let mut blocks_left = tensor.grid.blocks();
    while blocks_left > 0 {
        let blocks = blocks_at_once.min(blocks_left);
        let bytes = blocks * tensor.code_bytes_per_block();
        packed.resize(usize::try_from(bytes).expect("at most 256 KiB"), 0);
        reader.read_exact(&mut packed)?;
        codes::check_padding(&packed, k, bits).map_err(|source| PlanStepError::Codes {
            miner,
            tensor: name(),
            source,
        })?;
        codes::count(&packed, k, bits, &mut counts);
        if rule.norm == Norm::TorchCpuF32 {
            decoded.clear();
            codes::values(&packed, k, bits, &values, &mut decoded);
            torch.push(&decoded);
        }
        blocks_left -= blocks;
    }
    let norm = match rule.norm {
        Norm::HistogramF64 => histogram_f64(&counts, &values),
        Norm::TorchCpuF32 => f64::from(torch.finish()),
    };
    Ok((norm, counts))
}
