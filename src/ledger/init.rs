//! Starting a run: a checkpoint becomes the first state, the genesis becomes entry 0.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use gradledger_kernels::{bytes as f32_bytes, widen};

use crate::{
    import::checkpoint::Checkpoint,
    merkle::pieces::PieceHasher,
    store::{
        StoreError,
        artifacts::CheckpointWriter,
        files::{Disk, Files, read_whole},
        hub::{self, GivenError},
        keys::{self, heads::HeadSigner},
        lock::WriterLock,
        log::{LogError, LogReader, LogWriter},
        place::Place,
    },
    types::{
        digest::Digest,
        grid::{Grid, Unblockable},
        json,
        manifest::{ArtifactType, Descriptor, ManifestId, group},
        progress::Progress,
        record::{AnchorPlace, FileId, Genesis, LogKeys, MinersPolicy, RoundsEntry},
        rule::{Rule, SparseMeanSgd},
        tensor::{Dtype, TensorSpec, check_name},
    },
};

use super::{Ledger, LedgerError};

/// Version of the records that are written and read.
pub(super) const GENESIS_VERSION: u64 = 1;

/// Bytes of a tensor that are read at once.
const CHUNK_BYTES: u64 = 16 << 20;

/// What a run starts from.
#[derive(Clone, Debug)]
pub struct InitOptions<'a> {
    /// The run's name.
    pub run: String,
    /// What the logs' origins start with.
    pub origin: String,
    /// safetensors file, or directory of safetensors or of a PyTorch distributed checkpoint.
    pub checkpoint: &'a Path,
    /// Takes the tensors below this prefix and drops it.
    pub select: Option<&'a str>,
    /// The fold rule.
    pub rule: SparseMeanSgd,
    /// Records tensors that the rule cannot take instead of refusing them.
    pub frozen: bool,
    /// Who may submit.
    pub miners: MinersPolicy,
    /// Where the log key lies or is made, if not in the ledger.
    pub key_file: Option<&'a Path>,
    /// Where the run will be anchored, if it will.
    pub anchor: Option<AnchorPlace>,
    /// Small files that go with the model: `config.json`, a tokenizer's.
    pub files: &'a [PathBuf],
}

impl<'a> InitOptions<'a> {
    /// A run of listed peers that takes the whole checkpoint, keeps its key and is not anchored.
    #[must_use]
    pub fn new(run: &str, origin: &str, checkpoint: &'a Path, rule: SparseMeanSgd) -> Self {
        Self {
            run: run.to_owned(),
            origin: origin.to_owned(),
            checkpoint,
            select: None,
            rule,
            frozen: false,
            miners: MinersPolicy::Listed,
            key_file: None,
            anchor: None,
            files: &[],
        }
    }
}

/// A checkpoint or a name that no run can start from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// Some tensors would never change, which has to be wanted.
    #[error(
        "the rule cannot take {count} of the tensors, the first {name:?} since {why}; \
         --frozen records them and never changes them"
    )]
    Unblockable {
        /// How many.
        count: usize,
        /// The first of them.
        name: String,
        /// Why.
        why: Unblockable,
    },
    /// Nothing would ever change.
    #[error("the checkpoint has no tensor that the rule takes{}", list(.left_out))]
    Nothing {
        /// What was not selected.
        left_out: Vec<String>,
    },
    /// A directory with other things in it.
    #[error("{path} holds {name:?}, which is not of a ledger; give a new or an empty directory")]
    Occupied {
        /// The directory.
        path: PathBuf,
        /// One of them.
        name: PathBuf,
    },
    /// A file that was to go with the model.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why it cannot be read.
        source: io::Error,
    },
    /// Files that cannot go with the model.
    #[error(transparent)]
    Given(#[from] GivenError),
    /// A run's name or origin is not one.
    #[error("{what} {found:?} is not 1 to 128 printable characters without spaces or '+'")]
    Name {
        /// The run's name or the origin.
        what: &'static str,
        /// What was given.
        found: String,
    },
}

fn list(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [first, ..] => {
            format!("; {} were left out, the first {first:?} (see --select)", names.len())
        }
    }
}

/// Tensors that a rule does not take, with the reason.
pub type FrozenTensors = Vec<(String, Unblockable)>;

/// What an init came to.
#[derive(Debug)]
pub struct InitReport {
    /// The ledger, open for reading.
    pub ledger: Ledger,
    /// Tensors that the rule does not take, and why.
    pub frozen: FrozenTensors,
    /// What was not taken from the checkpoint: optimizer state, non-tensors, other prefixes.
    pub left_out: Vec<String>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").field("root", &self.place().root).finish_non_exhaustive()
    }
}

/// Makes a ledger in `root` on the local disk.
///
/// f16 and bf16 are widened to f32 exactly; what the rule does not take keeps its dtype. Killed
/// before its end it leaves no ledger, and the same call starts over.
///
/// # Errors
///
/// [`LedgerError::Exists`], [`InitError`], or what reading the checkpoint gives.
pub fn init(
    root: &Path,
    options: &InitOptions<'_>,
    progress: &dyn Progress,
) -> Result<InitReport, LedgerError> {
    init_in(Arc::new(Disk), root, options, progress)
}

/// As [`init`], through another door to the disk.
///
/// # Errors
///
/// As [`init`].
pub fn init_in(
    files: Arc<dyn Files>,
    root: &Path,
    options: &InitOptions<'_>,
    progress: &dyn Progress,
) -> Result<InitReport, LedgerError> {
    options.rule.check()?;
    check_word("the run's name", &options.run)?;
    check_word("the origin", &options.origin)?;
    let given = given(options.files)?;
    let checkpoint = Checkpoint::open(options.checkpoint, options.select)?;
    let (states, frozen) = states(&checkpoint, options)?;
    let place = Place::new(files.clone(), root);
    let at = |source| StoreError::Io { path: root.to_owned(), source };
    files.create_dir_all(root).map_err(at)?;
    check_absent(&place)?;
    check_unoccupied(&place)?;
    let lock = WriterLock::acquire(root)?;
    check_absent(&place)?; // Another init may have been faster.
    super::writer::empty_tmp(&place)?;
    progress.begin("init", checkpoint.tensors().iter().map(TensorSpec::bytes).sum());
    let model = store_state(&place, &checkpoint, &states, progress)?;
    progress.end();
    for (_, bytes) in &given {
        hub::put_given(&place, bytes)?;
    }
    start_logs(&place, options, model, given.into_iter().map(|(file, _)| file).collect())?;
    drop(lock);
    let ledger = Ledger::open_in(files, root)?;
    Ok(InitReport { ledger, frozen, left_out: checkpoint.left_out().to_vec() })
}

/// The files that go with the model, and their bytes.
fn given(paths: &[PathBuf]) -> Result<Vec<(FileId, Vec<u8>)>, InitError> {
    let read = |path: &PathBuf| {
        let file = |source| InitError::File { path: path.clone(), source };
        let bytes = read_whole(&Disk, path, hub::GIVEN_BYTES_MAX).map_err(file)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (length, sha256) = (bytes.len() as u64, Digest::of(&bytes));
        Ok((FileId { name, bytes: length, sha256 }, bytes))
    };
    if paths.len() > hub::GIVEN_MAX {
        return Err(GivenError::Many { found: paths.len() }.into());
    }
    let mut given = paths.iter().map(read).collect::<Result<Vec<_>, InitError>>()?;
    given.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    let files: Vec<FileId> = given.iter().map(|(file, _)| file.clone()).collect();
    hub::check_given(&files)?;
    Ok(given)
}

/// That the directory is no ledger yet.
fn check_absent(place: &Place) -> Result<(), LedgerError> {
    match LogReader::open(place.files.clone(), &place.rounds_log()) {
        Err(LogError::Absent { .. }) => Ok(()),
        Ok(log) if log.size() == 0 => Ok(()),
        Ok(_) => Err(LedgerError::Exists { path: place.root.clone() }),
        Err(error) => Err(error.into()),
    }
}

/// What lies in a ledger's directory. A key may be put there before `init`.
const OURS: [&str; 10] = [
    "lock",
    "tmp",
    "segments",
    "hashes",
    "hub",
    "keys",
    "log",
    "quarantine",
    "tables",
    "open-round.json",
];

/// That nothing of the user's is in the directory: what lies in `tmp` will be removed.
fn check_unoccupied(place: &Place) -> Result<(), LedgerError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        |source| StoreError::Io { path, source }
    };
    let root = &place.root;
    let names = place.files.list(root).map_err(at(root))?;
    let ours = |name: &&PathBuf| !OURS.iter().any(|ours| name.as_os_str() == *ours);
    let mut foreign = names.iter().find(ours).cloned();
    // A ledger's `tmp` comes after its lock.
    let tmp = place.tmp();
    if !WriterLock::exists(root) && place.files.exists(&tmp).map_err(at(&tmp))? {
        let names = place.files.list(&tmp).map_err(at(&tmp))?;
        foreign = foreign.or(names.first().map(|name| Path::new("tmp").join(name)));
    }
    match foreign {
        Some(name) => Err(InitError::Occupied { path: root.clone(), name }.into()),
        None => Ok(()),
    }
}

/// A word that can stand in an origin and in a terminal.
fn check_word(what: &'static str, word: &str) -> Result<(), InitError> {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && c != '+';
    let fits = check_name(word).is_ok() && word.chars().count() <= 128 && word.chars().all(plain);
    if fits { Ok(()) } else { Err(InitError::Name { what, found: word.to_owned() }) }
}

/// A tensor of the first state: its place in the source, and what the state holds.
struct StateTensor {
    source: usize,
    spec: TensorSpec,
}

/// The first state's tensors in manifest order, and those that stay frozen.
fn states(
    checkpoint: &Checkpoint,
    options: &InitOptions<'_>,
) -> Result<(Vec<StateTensor>, FrozenTensors), LedgerError> {
    let (mut states, mut frozen) = (Vec::new(), Vec::new());
    for (source, spec) in checkpoint.tensors().iter().enumerate() {
        let spec = match Grid::of(spec, options.rule.chunk) {
            Ok(_) => spec.with_dtype(Dtype::F32)?,
            Err(why) => {
                frozen.push((spec.name().to_owned(), why));
                spec.clone()
            }
        };
        states.push(StateTensor { source, spec });
    }
    if states.len() == frozen.len() {
        return Err(InitError::Nothing { left_out: checkpoint.left_out().to_vec() }.into());
    }
    if let Some((name, why)) = frozen.first().filter(|_| !options.frozen) {
        let (name, why) = (name.clone(), why.clone());
        return Err(InitError::Unblockable { count: frozen.len(), name, why }.into());
    }
    states.sort_by(|a, b| a.spec.name().cmp(b.spec.name()));
    Ok((states, frozen))
}

fn store_state(
    place: &Place,
    checkpoint: &Checkpoint,
    states: &[StateTensor],
    progress: &dyn Progress,
) -> Result<ManifestId, LedgerError> {
    let mut writer = CheckpointWriter::create(place)?;
    for StateTensor { source, spec } in states {
        let from = checkpoint.tensors()[*source].dtype();
        let of = Descriptor::new(ArtifactType::Tensor, group::WEIGHTS, spec, Digest::default());
        let mut hasher = PieceHasher::new();
        let (mut raw, mut wide) = (Vec::new(), Vec::new());
        let (total, mut at) = (spec.elements() * from.bytes(), 0);
        while at < total {
            let now = CHUNK_BYTES.min(total - at);
            raw.resize(usize::try_from(now).expect("a chunk fits in memory"), 0);
            checkpoint.read(*source, at, &mut raw)?;
            let bytes = widened(from, spec.dtype(), &raw, &mut wide);
            hasher.update(bytes);
            writer.write(&of, bytes)?;
            progress.advance(now);
            at += now;
        }
        if total == 0 {
            writer.write(&of, &[])?;
        }
        writer.commit(hasher.finish())?;
    }
    Ok(writer.finish()?)
}

/// `raw` as the state holds it: widened into `wide`, or as it is.
fn widened<'a>(from: Dtype, to: Dtype, raw: &'a [u8], wide: &'a mut Vec<f32>) -> &'a [u8] {
    if from == to {
        return raw;
    }
    wide.resize(raw.len() / 2, 0.0);
    match from {
        Dtype::Bf16 => widen::bf16_slice_to_f32(raw, wide),
        Dtype::F16 => widen::f16_slice_to_f32(raw, wide),
        _ => unreachable!("only bf16 and f16 are widened"),
    }
    f32_bytes::of_f32(wide)
}

/// Makes both logs; the genesis in the rounds log is what makes the directory a ledger.
fn start_logs(
    place: &Place,
    options: &InitOptions<'_>,
    model: ManifestId,
    files: Vec<FileId>,
) -> Result<(), LedgerError> {
    let key_path = options.key_file.map_or_else(|| place.log_key(0), Path::to_owned);
    let (seed, guard) = keys::load_or_create(&place.files, &key_path)?;
    let signer = |log: &str| {
        let origin = format!("{}/{log}", options.origin);
        HeadSigner::new(&seed, &origin, guard.clone()).map_err(StoreError::from)
    };
    let (rounds, submissions) = (signer("rounds")?, signer("submissions")?);
    let log_keys = LogKeys {
        rounds: rounds.verifier().to_string(),
        submissions: submissions.verifier().to_string(),
    };
    let genesis = Genesis {
        version: GENESIS_VERSION,
        run: options.run.clone(),
        origin: options.origin.clone(),
        model,
        rule: Rule::SparseMeanSgd(options.rule.clone()),
        log_keys,
        miners: options.miners.clone(),
        netuid: options.anchor.map(|place| place.netuid),
        chain_genesis: options.anchor.map(|place| place.chain_genesis),
        anchor_hotkey: options.anchor.map(|place| place.hotkey),
        files,
    };
    let entry = json::to_vec(&RoundsEntry::Genesis(Box::new(genesis)));
    open_log(place, place.submissions_log(), submissions)?;
    let mut rounds = open_log(place, place.rounds_log(), rounds)?;
    if rounds.size() == 0 {
        rounds.append(&[entry])?;
        return Ok(());
    }
    // A genesis was committed and only its head not published, which opening the log made good.
    let log = LogReader::open(place.files.clone(), &place.rounds_log())?;
    if rounds.size() == 1 && log.entry(0)? == entry {
        return Ok(());
    }
    Err(LedgerError::Exists { path: place.root.clone() })
}

/// A new log, or the one that a killed init left.
fn open_log(place: &Place, dir: PathBuf, signer: HeadSigner) -> Result<LogWriter, LedgerError> {
    let there = place.files.exists(&dir.join("tree-state"));
    if there.map_err(|source| StoreError::Io { path: dir.clone(), source })? {
        Ok(LogWriter::open(place.files.clone(), &dir, signer)?)
    } else {
        Ok(LogWriter::create(place.files.clone(), &dir, signer)?)
    }
}
