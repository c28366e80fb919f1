//! Layer 4, delta: a miner's base and trained checkpoint become a delta, and what it keeps back.
//!
//! `cli` hands in where the two are, `ledger`'s rule says how tensors are cut. Two sweeps:
//! `encode` streams both once, chooses and quantises, and the delta is published; then
//! `feedback` streams them again and writes what the delta, as it was read back, leaves of the
//! error. The arithmetic is `schema/encode.md`, the state file `schema/feedback.md`.
//!
//! Order of what becomes durable: the delta, then the state. The state names the round and the
//! delta that it was advanced for, so that a command which is run again after any crash gives the
//! same delta and applies the feedback once.
//!
//! Memory: a few bands of at most [`BAND_BYTES`] (or one row of blocks), and what is kept of the
//! largest tensor: 7 to 12 bytes an entry.

mod bands;
mod encode;
mod error;
mod feedback;
mod inputs;
mod output;

use std::{path::Path, sync::Arc};

use rayon::{ThreadPool, ThreadPoolBuilder};
use serde::Serialize;

pub use self::{
    encode::TensorReport,
    error::DeltaError,
    inputs::Weights,
    output::{Format, Output},
};
use self::{
    feedback::Feedback,
    inputs::{Inputs, Roots},
    output::Published,
};
use crate::{
    codec::layout::Layout,
    store::files::Files,
    types::{
        bits::F32Bits, digest::Digest, json::INTEGER_MAX, manifest::ManifestId, progress::Progress,
        rule::SparseMeanSgd,
    },
};

/// Bytes of a band's values, unless one row of blocks takes more.
pub const BAND_BYTES: u64 = 8 << 20;

/// What to make a delta of, and how.
pub struct DeltaJob<'a> {
    /// The state that training started from.
    pub base: &'a Weights,
    /// What training made of it.
    pub trained: &'a Weights,
    /// The base's tensors as the rule cuts them.
    pub layout: &'a Layout,
    /// The rule whose checks the delta has to pass.
    pub rule: &'a SparseMeanSgd,
    /// The round it is for.
    pub round: u64,
    /// How many standard deviations the codes span.
    pub range: u32,
    /// What the kept error is multiplied with before a round's gradient is added.
    pub decay: f32,
    /// Where the kept error lies, if it is kept.
    pub state: Option<&'a Path>,
    /// Where the delta goes; nowhere in a dry run.
    pub output: Option<Output<'a>>,
    /// Threads; 0 means one a core.
    pub threads: usize,
    /// Bytes of a band: see [`BAND_BYTES`]. It changes no bit.
    pub band_bytes: u64,
}

/// Parameters and inputs of one round: what a state was advanced with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Made {
    /// The round.
    pub round: u64,
    /// Root of the manifest of the base's tensors that the rule takes, as f32.
    pub base: Digest,
    /// The same of the trained checkpoint.
    pub trained: Digest,
    /// What the error was multiplied with.
    pub decay_f32: F32Bits,
    /// Standard deviations that the codes span.
    pub range: u32,
    /// Target length of a block's side.
    pub chunk: u64,
    /// Entries kept of a block, at most.
    pub top_k: u64,
    /// Size of a book.
    pub bins: u64,
}

/// What a delta holds, and what it cost.
#[derive(Clone, Debug, Serialize)]
pub struct DeltaReport {
    /// What it was made with.
    #[serde(flatten)]
    pub made: Made,
    /// The delta.
    pub delta: ManifestId,
    /// Whether the state had been advanced for it already, so that nothing was done.
    pub already_made: bool,
    /// Each tensor, in manifest order; empty if it was already made.
    pub tensors: Vec<TensorReport>,
    /// All tensors together; none if it was already made.
    pub total: Option<TensorReport>,
}

/// Makes a delta, and advances the state that keeps the rest.
///
/// The same job again gives the same bits, whatever the threads and the bands. Run again after a
/// crash it goes on; run again after it was done it says so and changes nothing.
///
/// # Errors
///
/// [`DeltaError`]: inputs that do not fit together, a value that is not finite, a state that was
/// advanced for this round with other inputs or for a later one, something else at the delta's
/// place, or the disk. The state is as it was then.
pub fn make(
    job: &DeltaJob<'_>,
    files: &Arc<dyn Files>,
    progress: &dyn Progress,
) -> Result<DeltaReport, DeltaError> {
    check(job)?;
    let threads = job.threads;
    let pool = ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|n| format!("delta-{n}"))
        .build()
        .map_err(|source| DeltaError::Threads { threads, source })?;
    let sweep = Sweep { job, pool: &pool, files: &**files, progress };
    let old = match job.state {
        Some(path) => Feedback::open(&**files, path, job.layout)?,
        None => None,
    };
    if let Some(done) = old.as_ref().filter(|old| old.made().round >= job.round) {
        return sweep.made_before(done);
    }
    sweep.make(old.as_ref())
}

fn check(job: &DeltaJob<'_>) -> Result<(), DeltaError> {
    job.rule.check()?;
    if job.round > INTEGER_MAX as u64 {
        return Err(DeltaError::Round { round: job.round });
    }
    if !(0.0..=1.0).contains(&job.decay) {
        return Err(DeltaError::Decay { found: job.decay });
    }
    if job.layout.tensors.is_empty() {
        return Err(DeltaError::Nothing);
    }
    job.layout.tensors.iter().try_for_each(|tensor| {
        job.base.check(tensor)?;
        job.trained.check(tensor)
    })
}

/// One job under way.
struct Sweep<'a> {
    job: &'a DeltaJob<'a>,
    pool: &'a ThreadPool,
    files: &'a dyn Files,
    progress: &'a dyn Progress,
}

impl Sweep<'_> {
    fn make(&self, old: Option<&Feedback>) -> Result<DeltaReport, DeltaError> {
        let inputs = Inputs { job: self.job, old };
        self.begin("delta");
        let encoded = encode::encode(self, &inputs)?;
        self.progress.end();
        let made = self.made(&encoded.roots);
        if let Some(output) = self.job.output {
            let published = encoded.output.publish(self.files, output, self.job, encoded.delta)?;
            if let Some(path) = self.job.state {
                self.begin("error feedback");
                feedback::advance(self, &inputs, &published, &made, &encoded, path)?;
                self.progress.end();
            }
        }
        let (delta, tensors) = (encoded.delta, encoded.reports);
        let total = TensorReport::total(&tensors);
        Ok(DeltaReport { made, delta, already_made: false, tensors, total: Some(total) })
    }

    /// The state says that it was advanced for this round, or a later one.
    fn made_before(&self, done: &Feedback) -> Result<DeltaReport, DeltaError> {
        let path = || done.path().to_owned();
        let (found, round) = (done.made(), self.job.round);
        if found.round > round {
            return Err(DeltaError::Behind { path: path(), round, state: found.round });
        }
        self.begin("comparing inputs");
        let made = self.made(&inputs::roots(self)?);
        self.progress.end();
        if &made != found {
            let what = found.difference(&made);
            return Err(DeltaError::Other { path: path(), round, what });
        }
        if let Some(output) = self.job.output {
            let there = self.files.exists(output.path);
            if !there.map_err(DeltaError::io(output.path))? {
                let (path, delta) = (output.path.to_owned(), done.delta().root);
                return Err(DeltaError::Gone { path, round, delta });
            }
            Published::check(self.files, output, self.job, done.delta())?;
            // Whoever made it may have been killed before its name was durable.
            for path in [output.path, done.path()] {
                self.files.sync_dir(output::parent(path)).map_err(DeltaError::io(path))?;
            }
        }
        let (delta, tensors) = (done.delta(), Vec::new());
        Ok(DeltaReport { made, delta, already_made: true, tensors, total: None })
    }

    fn begin(&self, step: &str) {
        let elements = |t: &crate::codec::layout::TensorLayout| t.grid.rows * t.grid.columns;
        self.progress.begin(step, self.job.layout.tensors.iter().map(|t| 4 * elements(t)).sum());
    }

    fn made(&self, roots: &Roots) -> Made {
        let DeltaJob { rule, round, range, decay, .. } = *self.job;
        let (base, trained) = roots.manifests(self.job.layout);
        let decay_f32 = F32Bits(decay);
        let SparseMeanSgd { chunk, top_k, bins, .. } = *rule;
        Made { round, base, trained, decay_f32, range, chunk, top_k, bins }
    }
}

impl Made {
    /// The first thing in which `other` is not the same.
    fn difference(&self, other: &Self) -> &'static str {
        match () {
            () if self.base != other.base => "another base",
            () if self.trained != other.trained => "another trained checkpoint",
            () => "other parameters",
        }
    }
}
