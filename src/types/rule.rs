//! Fold rules: an enum with stored ids that are never reused, and each rule's parameters.

use serde::{Deserialize, Serialize};

use super::{bits::F32Bits, grid::BLOCK_ELEMENTS};

/// A fold rule and its parameters, as the genesis and each round record store it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "id")]
#[non_exhaustive]
pub enum Rule {
    /// Mean of sparse, quantised, norm-clipped deltas, then one SGD step.
    ///
    /// Source: SparseLoCo (arXiv 2508.15706), outer step as Templar 2.1.28 runs it; the exact order
    /// of operations is `schema/fold.md`.
    #[serde(rename = "sparse-mean-sgd/1")]
    SparseMeanSgd(SparseMeanSgd),
}

/// Parameters of `sparse-mean-sgd/1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparseMeanSgd {
    /// Which checks admit a delta, the miners' order, and what a non-finite result means.
    pub dialect: Dialect,
    /// Target length of a block's side in elements.
    pub chunk: u64,
    /// Entries kept of each block, at most.
    pub top_k: u64,
    /// Size of a book: 4, 16 or 256.
    pub bins: u64,
    /// Outer learning rate.
    pub lr_f32: F32Bits,
    /// What the sum of an element's contributions is divided by.
    pub mean: Mean,
    /// How norms, median and factors are computed.
    pub norm: Norm,
}

/// Whose customs a run follows where systems differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// As Templar's gather and outer step: miners in gather order; a tensor with a non-finite
    /// delta is left unchanged.
    Templar,
    /// Ours: miners by uid, then hotkey bytes; values of 2^60 and more are refused; a non-finite result
    /// fails the seal.
    Native,
}

/// The divisor of an element's sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mean {
    /// The number of miners that sent the element, as Templar's code does.
    Contributors,
    /// The number of accepted miners, as the paper writes.
    All,
}

/// The norm recipe; it also sets the number type of median and factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Norm {
    /// `sqrt(sum over codes of count * v^2)` in f64: free of order. Median and factor in f64.
    #[serde(rename = "histogram-f64")]
    HistogramF64,
    /// The bits of torch's CPU kernel. Median and factor in f32.
    #[serde(rename = "torch-cpu-f32")]
    TorchCpuF32,
}

/// Parameters that no rule takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum RuleError {
    #[error("chunk is {found}; it is 2 to 4096")]
    Chunk { found: u64 },
    #[error("top-k is {found}; it is 2 to 4096")]
    TopK { found: u64 },
    #[error("bins is {found}; it is 4, 16 or 256")]
    Bins { found: u64 },
    #[error("the learning rate {found} is not a finite number above 0")]
    Lr { found: String },
}

impl SparseMeanSgd {
    /// Whether the parameters are ones the rule takes.
    ///
    /// # Errors
    ///
    /// [`RuleError`] names the first that is not.
    pub fn check(&self) -> Result<(), RuleError> {
        if !BLOCK_ELEMENTS.contains(&self.chunk) {
            return Err(RuleError::Chunk { found: self.chunk });
        }
        if !BLOCK_ELEMENTS.contains(&self.top_k) {
            return Err(RuleError::TopK { found: self.top_k });
        }
        if ![4, 16, 256].contains(&self.bins) {
            return Err(RuleError::Bins { found: self.bins });
        }
        let lr = self.lr_f32.0;
        if !lr.is_finite() || lr <= 0.0 {
            return Err(RuleError::Lr { found: lr.to_string() });
        }
        Ok(())
    }

    /// Bits of a code: 2, 4 or 8.
    pub fn code_bits(&self) -> u32 {
        self.bins.ilog2()
    }
}
