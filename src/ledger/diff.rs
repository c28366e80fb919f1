//! Two states of a ledger compared: per tensor how many elements changed, and by how much.

use serde::Serialize;

use crate::{
    store::artifacts::StoredCheckpoint,
    types::{progress::Progress, tensor::Dtype},
};

use super::{At, Ledger, LedgerError, retention::Kept};

/// Bytes of a tensor that are compared at once.
const CHUNK_BYTES: u64 = 8 << 20;

/// How a tensor differs between two states.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct TensorDiff {
    /// Its name.
    pub name: String,
    /// Number of elements.
    pub elements: u64,
    /// Elements whose bits differ.
    pub changed: u64,
    /// The largest |b - a|; null for a dtype that is not compared as numbers.
    pub max_abs: Option<f64>,
    /// Root of the mean of (b - a)^2 over all elements.
    pub rms: Option<f64>,
}

/// Compares the states at `from` and `to`, tensor by tensor.
///
/// # Errors
///
/// [`LedgerError::Dropped`], or others if one of them is missing or does not have its root.
pub fn diff(
    ledger: &Ledger,
    from: At,
    to: At,
    progress: &dyn Progress,
) -> Result<Vec<TensorDiff>, LedgerError> {
    let kept = Kept::load(ledger)?;
    let a = ledger.checkpoint(kept.require(ledger, from)?)?;
    let b = ledger.checkpoint(kept.require(ledger, to)?)?;
    progress.begin("diff", a.manifest().bytes());
    // Names and shapes never change in a run, so positions are the same in both.
    let diffs = (0..a.manifest().descriptors().len())
        .map(|position| diff_tensor(&a, &b, position, progress))
        .collect::<Result<_, _>>()?;
    progress.end();
    Ok(diffs)
}

fn diff_tensor(
    a: &StoredCheckpoint,
    b: &StoredCheckpoint,
    position: usize,
    progress: &dyn Progress,
) -> Result<TensorDiff, LedgerError> {
    let descriptor = &a.manifest().descriptors()[position];
    let numbers = descriptor.dtype == Dtype::F32;
    let mut diff = TensorDiff {
        name: descriptor.name.clone(),
        elements: descriptor.bytes / descriptor.dtype.bytes(),
        changed: 0,
        max_abs: numbers.then_some(0.0),
        rms: numbers.then_some(0.0),
    };
    if b.manifest().descriptors()[position].root == descriptor.root {
        progress.advance(descriptor.bytes);
        return Ok(diff);
    }
    let (mut from, mut to) = (a.tensor(position)?, b.tensor(position)?);
    let (mut left, mut squares, mut max) = (descriptor.bytes, 0.0f64, 0.0f64);
    let (mut x, mut y) = (Vec::new(), Vec::new());
    let width = usize::try_from(descriptor.dtype.bytes()).expect("at most 8");
    while left > 0 {
        let now = left.min(CHUNK_BYTES);
        for (reader, bytes) in [(&mut from, &mut x), (&mut to, &mut y)] {
            bytes.resize(usize::try_from(now).expect("a chunk fits in memory"), 0);
            reader.read_exact(bytes)?;
        }
        let pairs = x.chunks_exact(width).zip(y.chunks_exact(width));
        diff.changed += pairs.filter(|(p, q)| p != q).count() as u64;
        if numbers {
            for (p, q) in x.as_chunks::<4>().0.iter().zip(y.as_chunks::<4>().0) {
                let change = f64::from(f32::from_le_bytes(*q)) - f64::from(f32::from_le_bytes(*p));
                squares += change * change;
                max = if change.abs() > max || change.is_nan() { change.abs() } else { max };
            }
        }
        progress.advance(now);
        left -= now;
    }
    if numbers {
        diff.max_abs = Some(max);
        diff.rms = Some((squares / diff.elements as f64).sqrt());
    }
    Ok(diff)
}
