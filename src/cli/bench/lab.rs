//! A state on the disk and twenty deltas for it, stored as a ledger stores them; and passes over them.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::Arc,
};

use gradledger_kernels::{
    Divisor, Step, bytes as f32_bytes,
    made_up::Round,
    rates::{COLUMNS, MINERS_MAX, STRIP},
};
use rayon::ThreadPool;

use crate::{
    cli::exit::CliError,
    codec::{
        book::Book,
        layout::{Layout, TensorLayout},
    },
    fold::{Engine, FoldJob, FoldOutput, RoundFold, TensorOutcome, fold},
    intake::{
        admit::Expected,
        native::{NativeAdmission, admit_segments},
    },
    ledger::LedgerError,
    merkle::pieces::PieceHasher,
    plan::plan,
    store::{
        StoreError,
        artifacts::{CheckpointWriter, StoredCheckpoint, StoredDelta},
        files::{Disk, forget},
        place::Place,
        segment::{self, delta::DeltaWriter, tensor::TensorWriter},
    },
    types::{
        bits::F32Bits,
        digest::Digest,
        manifest::{ArtifactType, Descriptor, group},
        plan::Plan,
        progress::{Progress, Silent},
        rule::{Dialect, Mean, Norm, SparseMeanSgd},
        tensor::{Dtype, TensorSpec},
    },
};

const NAME: &str = "made-up.weight";
const LR: f32 = 0.4;
const STRIP_BYTES: u64 = 4 * STRIP as u64;

/// A directory that is gone when this is.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Everything that a pass needs.
pub struct Lab<'p> {
    scratch: Scratch,
    pool: &'p ThreadPool,
    spec: TensorSpec,
    base: StoredCheckpoint,
    layout: Layout,
    deltas: Vec<StoredDelta>,
    plan: Plan,
}

impl<'p> Lab<'p> {
    /// Makes a state of about `gib` GiB in a directory of its own below `dir`. Of `round`, rows of blocks are
    /// sent again where the state has more.
    pub fn make(
        dir: &Path,
        gib: f64,
        round: &Round,
        pool: &'p ThreadPool,
        progress: &dyn Progress,
    ) -> Result<Self, CliError> {
        let path = dir.join(format!(".gradledger-bench-{}", process::id()));
        let io = |source| CliError::Io { path: path.clone(), source };
        fs::create_dir(&path).map_err(io)?;
        let scratch = Scratch(path.clone());
        let place = Place::new(Arc::new(Disk), &path);
        fs::create_dir_all(place.tmp()).map_err(io)?;
        let strips = ((gib * (1u64 << 30) as f64 / STRIP_BYTES as f64) as u64).max(2);
        let spec = TensorSpec::new(NAME, Dtype::F32, &[64 * strips, COLUMNS as u64])
            .map_err(LedgerError::from)?;
        progress.begin("making a state", spec.bytes());
        let base = make_state(&place, &spec, progress).map_err(LedgerError::from)?;
        progress.end();
        let layout = Layout::of(base.manifest(), &RULE).map_err(LedgerError::from)?;
        let delta_bytes = strips * round.strip_bytes() as u64;
        progress.begin("making deltas", MINERS_MAX as u64 * delta_bytes);
        let mut deltas = Vec::with_capacity(MINERS_MAX);
        for miner in 0..MINERS_MAX {
            deltas.push(make_delta(&place, &layout, round, miner).map_err(LedgerError::from)?);
            progress.advance(delta_bytes);
        }
        progress.end();
        let plan = pool.install(|| plan(&layout, &RULE, &deltas, &Silent));
        let plan = plan.map_err(LedgerError::from)?;
        Ok(Self { scratch, pool, spec, base, layout, deltas, plan })
    }

    /// Threads of the arithmetic.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Bytes of the state.
    pub fn state_bytes(&self) -> u64 {
        self.spec.bytes()
    }

    /// Bytes of all deltas, as their rows are.
    pub fn delta_bytes(&self) -> u64 {
        let tensor = &self.layout.tensors[0];
        let row = tensor.index_bytes_per_block() + tensor.code_bytes_per_block();
        tensor.grid.blocks() * row * self.deltas.len() as u64
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.scratch.0
    }

    /// The file that holds the state.
    pub fn state_file(&self) -> PathBuf {
        let descriptor = &self.base.manifest().descriptors()[0];
        segment::place::tensor(self.dir(), &descriptor.artifact(), descriptor.dtype)
    }

    /// Where a pass writes.
    pub fn output(&self) -> PathBuf {
        self.dir().join("tmp/next.parquet")
    }

    /// Removes what the last pass that writes wrote, which takes a while.
    pub fn clear(&self) -> Result<(), CliError> {
        let path = self.output();
        fs::remove_file(&path).map_err(|source| CliError::Io { path, source })
    }

    /// The files that a round reads, that of the state first.
    pub fn files(&self) -> Result<Vec<PathBuf>, CliError> {
        let (state, mut deltas) = (self.state_file(), Vec::new());
        let mut dirs = vec![self.dir().join("segments")];
        while let Some(dir) = dirs.pop() {
            let io = |source| CliError::Io { path: dir.clone(), source };
            for entry in fs::read_dir(&dir).map_err(io)? {
                let path = entry.map_err(io)?.path();
                if path.is_dir() {
                    dirs.push(path);
                } else if path != state {
                    deltas.push(path);
                }
            }
        }
        Ok([vec![state], deltas].concat())
    }

    /// Has the system forget what it keeps of them.
    pub fn forget(&self) -> Result<(), CliError> {
        let one = |path: PathBuf| forget(&path).map_err(|source| CliError::Io { path, source });
        self.files()?.into_iter().try_for_each(one)
    }

    /// One pass over the state: so many rounds are folded by `engine`, and the last state is written and
    /// synced if it `writes`.
    pub fn pass(&self, engine: Engine, rounds: usize, writes: bool) -> Result<(), CliError> {
        let round = || RoundFold {
            deltas: &self.deltas,
            plan: &self.plan,
            step: Step { lr: LR, divisor: Divisor::Contributors },
            skipped: None,
        };
        let job = FoldJob {
            base: &self.base,
            tensors: self.layout.tensors.iter().enumerate().collect(),
            rounds: (0..rounds).map(|_| round()).collect(),
            pool: self.pool,
            engine,
        };
        let create = || TensorWriter::create(&Disk, &self.output(), &self.spec);
        let writer = writes.then(create).transpose();
        let mut output = Output(writer.map_err(StoreError::from).map_err(LedgerError::from)?);
        fold(&job, &mut output, &Silent).map_err(LedgerError::from)?;
        Ok(())
    }
}

const RULE: SparseMeanSgd = SparseMeanSgd {
    dialect: Dialect::Native,
    chunk: 64,
    top_k: 64,
    bins: 4,
    lr_f32: F32Bits(LR),
    mean: Mean::Contributors,
    norm: Norm::HistogramF64,
};

fn make_state(
    place: &Place,
    spec: &TensorSpec,
    progress: &dyn Progress,
) -> Result<StoredCheckpoint, StoreError> {
    let descriptor = Descriptor::new(ArtifactType::Tensor, group::WEIGHTS, spec, Digest::default());
    let (mut writer, mut hasher) = (CheckpointWriter::create(place)?, PieceHasher::new());
    let mut strip: Vec<f32> = (0..STRIP).map(|at| at as f32 * 1e-7 - 0.02).collect();
    for _ in 0..spec.bytes() / STRIP_BYTES {
        let bytes = f32_bytes::of_f32(&strip);
        writer.write(&descriptor, bytes)?;
        hasher.update(bytes);
        progress.advance(STRIP_BYTES);
        strip.rotate_left(1); // No two pieces are alike.
    }
    writer.commit(hasher.finish())?;
    StoredCheckpoint::open(place, writer.finish()?)
}

fn make_delta(
    place: &Place,
    layout: &Layout,
    round: &Round,
    miner: usize,
) -> Result<StoredDelta, StoreError> {
    let (tensor, sent) = (&layout.tensors[0], place.tmp().join("sent"));
    let strips = (tensor.grid.rows / 64) as usize;
    // Otherwise all rows of one miner would be those of another.
    let row = |strip: usize| round.contributions(miner + 1, strip % round.strips_held(), 1)[miner];
    let mut writer = DeltaWriter::create(&Disk, &sent, 1 << tensor.code_bits)?;
    let mut rows = writer.tensor(&tensor.name, tensor.k, tensor.grid.blocks())?;
    (0..strips).try_for_each(|strip| rows.write_index(row(strip).index))?;
    (0..strips).try_for_each(|strip| rows.write_code(row(strip).code))?;
    rows.finish()?;
    let book = Book { lookup: row(0).levels.to_vec(), shift: 0.0 };
    writer.book(&tensor.name, &book.to_bytes())?;
    writer.finish()?;
    let expected = Expected { layout, rule: &RULE, round: 1 };
    let admitted = admit_segments(&sent, expected, place, "admitted")?;
    fs::remove_dir_all(&sent).map_err(|source| StoreError::Io { path: sent.clone(), source })?;
    let NativeAdmission::Stored { delta, refused: None } = admitted else {
        unreachable!("a delta was made that intake refuses: {admitted:?}")
    };
    StoredDelta::open(place, delta)
}

/// Writes the state, or nothing.
struct Output(Option<TensorWriter>);

impl FoldOutput for Output {
    fn state(&mut self, _: &TensorLayout, bytes: &[u8]) -> Result<(), StoreError> {
        match &mut self.0 {
            Some(writer) => Ok(writer.write(bytes)?),
            None => Ok(()),
        }
    }

    fn done(&mut self, _: &TensorLayout, _: Vec<TensorOutcome>) -> Result<(), StoreError> {
        match self.0.take() {
            Some(writer) => Ok(writer.finish()?),
            None => Ok(()),
        }
    }
}
