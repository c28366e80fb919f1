//! Why a delta was not made.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    codec::book::BookError,
    import::{
        checkpoint::ImportError, safetensors::SafetensorsError, templar::TemplarError,
        templar_writer::WriteError, torch::TorchError,
    },
    store::{StoreError, segment::SegmentError},
    types::{
        digest::Digest,
        manifest::ManifestError,
        rule::RuleError,
        tensor::{Dtype, TensorError},
    },
};

/// A delta that was not made. The state is as it was before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum DeltaError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Segment(#[from] SegmentError),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    Rule(#[from] RuleError),
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("making {threads} threads: {source}")]
    Threads { threads: usize, source: rayon::ThreadPoolBuildError },
    #[error("round {round} is beyond 2^53 - 1")]
    Round { round: u64 },
    #[error("the decay is {found}; it is 0 to 1")]
    Decay { found: f32 },
    #[error("the base has no tensor that the rule takes")]
    Nothing,
    #[error("the {which} has no tensor {name:?}, which the rule folds; see --select")]
    Missing { which: &'static str, name: String },
    #[error("tensor {name:?} of the {which} is {dtype} {found:?}; the base's is {expected:?}")]
    Shape { which: &'static str, name: String, dtype: Dtype, found: Vec<u64>, expected: Vec<u64> },
    #[error(
        "element {element} of {tensor} is NaN or infinite after the gradient was added to the kept \
         error; nothing was made"
    )]
    NonFinite { tensor: String, element: u64 },
    #[error("{tensor}: {source}; the rule would refuse the delta, and nothing was made")]
    Book { tensor: String, source: BookError },
    #[error(
        "the {which} changed while the delta was made: {tensor} has other values; run it again"
    )]
    Changed { which: &'static str, tensor: String },
    #[error("{} is not a state of kept errors for this model: {what}", path.display())]
    State { path: PathBuf, what: String },
    #[error("{}: {source}", path.display())]
    StateFile { path: PathBuf, source: SafetensorsError },
    #[error(
        "{} was advanced for round {state} already, so round {round} cannot be made from it; put \
         back a copy from before, or start with a new state file",
        path.display()
    )]
    Behind { path: PathBuf, round: u64, state: u64 },
    #[error(
        "{} was advanced for round {round} with {what}, and a round's error is kept once; to send \
         another delta for it put back a copy of the state from before, or start with a new state \
         file",
        path.display()
    )]
    Other { path: PathBuf, round: u64, what: &'static str },
    #[error(
        "the state was advanced for round {round} with delta {delta}, which is not at {} any more, \
         and cannot be made from this state again: bring it back, or put back a copy of the state \
         from before",
        path.display()
    )]
    Gone { path: PathBuf, round: u64, delta: Digest },
    #[error(
        "{} is there and is not delta {expected} ({found}); give another --out, or remove it",
        path.display()
    )]
    Occupied { path: PathBuf, expected: Digest, found: String },
    #[error("{}: {source}", path.display())]
    Templar { path: PathBuf, source: Box<TemplarError> },
    #[error("{}: {source}", path.display())]
    Torch { path: PathBuf, source: TorchError },
    #[error("{}: tensor {tensor:?} is not as the model has it", path.display())]
    Sent { path: PathBuf, tensor: String },
}

impl DeltaError {
    /// Makes an I/O error at `path` out of the operating system's.
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
