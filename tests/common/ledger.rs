//! Scenarios of a ledger: a small model, a few gradient files, and the commands on them.
//!
//! A new command is a new [`Step`] and what it acknowledges a new [`Fact`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use gradledger::{
    anchor::file::FileChain,
    export::{ExportDtype, FileSet, SHARD_BYTES_MAX, export},
    import::templar_writer::{GradientMetadata, GradientTensor, GradientWriter},
    ledger::{
        Anchored, At, Ledger, LedgerError,
        anchor::{AnchorOptions, anchor},
        fsck::fsck,
        gc::gc,
        import::{Gradients, Peers, import_templar},
        init::{InitOptions, init_in},
        replay::{ReplayOptions, replay},
        retention::Kept,
        rotate::rotate_key,
        seal::{FoldOptions, seal},
        submit::{Known, Receipt, Submitter, open_round, statement_of, submit_batch},
        uploads::{Commit, UploadDesk, UploadError},
        writer::LedgerWriter,
    },
    merkle::head::TreeHead,
    store::{
        config::UploadsChoice,
        files::{Files, read_whole},
        segment::{delta::DeltaSegments, place},
    },
    types::{
        bits::F32Bits,
        digest::Digest,
        manifest::ManifestId,
        progress::Silent,
        record::MinersPolicy,
        rule::{Dialect, Mean, Norm, SparseMeanSgd},
        submission::{Miner, Outcome, SignatureHex, Submission},
        upload::{UploadRequest, UploadState},
    },
};

use super::{
    Random,
    memfs::{MemFs, Survival},
    miner::{self, Signatures},
    scenario::{Failed, Scenario},
};

/// What the scenarios start from: a model of two tensors and gradient files as Templar's miners write
/// them, one damaged; and a real directory for the lock file, which is not opened through [`Files`].
pub struct Fixture {
    dir: tempfile::TempDir,
    pool: rayon::ThreadPool,
    /// Files that go with the model.
    given: Vec<PathBuf>,
    signatures: Signatures,
}

/// The rounds that there are files for.
pub const ROUNDS: [u64; 4] = [101, 102, 103, 104];

/// Who is listed in a native run, by number, and how many deltas there are.
pub const MINERS: u8 = 3;
pub const DELTAS: u64 = 4;

/// Who is expected: in the first round one good file, one that is refused, one reserve without a file
/// in its place, one reserve that is not needed.
pub fn peers(round: u64) -> Peers {
    if round == ROUNDS[0] {
        Peers { listed: vec![7, 3], reserve: vec![41, 55] }
    } else {
        Peers { listed: vec![7, 12], reserve: vec![] }
    }
}

/// The model: names, shapes, and the blocks that chunks of 8 give.
const MODEL: [(&str, &[u64], &[u64]); 2] = [("bias", &[16], &[2]), ("weight", &[16, 16], &[2, 2])];

/// A safetensors file of the model's first state.
fn model() -> Vec<u8> {
    let (mut header, mut data, mut random) = (serde_json::Map::new(), Vec::new(), Random(1));
    for (name, shape, _) in MODEL {
        let start = data.len();
        for _ in 0..shape.iter().product() {
            data.extend((random.below(1000) as f32 / 1000.0 - 0.5).to_le_bytes());
        }
        let tensor = serde_json::json!({
            "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]
        });
        header.insert(name.to_owned(), tensor);
    }
    let header = serde_json::Value::from(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

/// A gradient file: four values of each block, other ones for each miner and round.
pub fn gradient(round: u64, uid: u16) -> Vec<u8> {
    let mut random = Random(round << 16 | u64::from(uid));
    let mut writer = GradientWriter::new(Vec::new(), "temp").expect("a folder's name");
    for (name, _, blocks) in MODEL {
        let count = blocks.iter().product();
        let (mut idxs, mut vals) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let first = random.below(4);
            for [a, b] in [[first, first + 1], [first + 2, first + 3]] {
                idxs.extend([a as u8, (b << 4) as u8, (b >> 4) as u8]);
            }
            vals.extend([0; 4].map(|_: u8| random.below(4) as u8));
        }
        let tensor = GradientTensor {
            name,
            idxs: &idxs,
            vals: &vals,
            vals_shape: &[blocks, &[4]].concat(),
            shift: 0.125,
            scale: 0.5,
            lookup: &[-1.0, -0.25, 0.25, 1.0],
        };
        writer.tensor(&tensor).expect("a tensor of the model");
    }
    let (window, sample_digest) = (round as i64, "0123456789abcdef0123456789abcdef");
    let metadata = GradientMetadata { window, global_step: 1, sample_digest, sample_count: 1 };
    writer.finish(&metadata).expect("a file in memory")
}

impl Fixture {
    /// Writes what is needed.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread");
        fs::write(dir.path().join("model.safetensors"), model()).expect("a new file");
        for round in ROUNDS {
            let to = dir.path().join(format!("w{round}"));
            fs::create_dir(&to).expect("a new directory");
            for uid in [3, 7, 12, 55] {
                let mut bytes = gradient(round, uid);
                if uid == 3 {
                    let middle = bytes.len() / 2;
                    bytes.truncate(middle);
                }
                let name = format!("gradient-{round}-{uid}-v2.1.28.pt");
                fs::write(to.join(name), bytes).expect("a new file");
            }
        }
        fs::create_dir(dir.path().join("ledger")).expect("a new directory");
        let fixture = Self { dir, pool, given: vec![], signatures: Signatures::default() };
        miner::write_list(&fixture.miners(), MINERS);
        (1..=MINERS).for_each(|number| miner::write_key(&fixture.key(number), number));
        let tensors = MODEL.map(|(name, _, blocks)| (name, blocks.iter().product()));
        (1..=DELTAS)
            .for_each(|number| miner::write_delta(&fixture.delta(number), number, &tensors));
        fixture
    }

    /// The same with small files that go with the model.
    pub fn with_files(mut self) -> Self {
        for (name, bytes) in [("config.json", &b"{}"[..]), ("vocab.txt", &[b'v'; 5000])] {
            let path = self.dir.path().join(name);
            fs::write(&path, bytes).expect("a new file");
            self.given.push(path);
        }
        self
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where the ledger lies, on any disk.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("ledger")
    }

    pub fn checkpoint(&self) -> PathBuf {
        self.dir.path().join("model.safetensors")
    }

    pub fn gradients(&self, round: u64) -> PathBuf {
        self.dir.path().join(format!("w{round}"))
    }

    /// The list of miners of a native run.
    pub fn miners(&self) -> PathBuf {
        self.dir.path().join("miners")
    }

    /// The hotkey file of miner `number`.
    pub fn key(&self, number: u8) -> PathBuf {
        self.dir.path().join(format!("hotkey-{number}"))
    }

    /// Delta segments that a miner may send.
    pub fn delta(&self, number: u64) -> PathBuf {
        self.dir.path().join(format!("delta-{number}"))
    }

    /// Where heads are anchored.
    pub fn chain(&self) -> PathBuf {
        self.dir.path().join("chain")
    }

    /// The path that a word in capitals stands for in a command line.
    pub fn place(&self, word: &str) -> Option<PathBuf> {
        let digits = word.find(|c: char| c.is_ascii_digit()).unwrap_or(word.len());
        let (kind, number) = word.split_at(digits);
        let number: u64 = number.parse().unwrap_or_default();
        Some(match kind {
            "LEDGER" => self.root(),
            "CHECKPOINT" => self.checkpoint(),
            "GRADIENTS" => self.gradients(number),
            "MINERS" => self.miners(),
            "KEY" => self.key(number as u8),
            "DELTA" => self.delta(number),
            "CHAIN" => self.chain(),
            _ => return None,
        })
    }

    /// Does one step; acknowledged facts are added. What was done already succeeds.
    pub fn step(
        &self,
        step: &Step,
        root: &Path,
        files: &Arc<dyn Files>,
        facts: &mut Vec<Fact>,
    ) -> Result<(), LedgerError> {
        // One thread, so that calls come in the same order each time.
        self.pool.install(|| match step {
            Step::Init => self.init(Dialect::Templar, root, files, facts),
            Step::InitNative => self.init(Dialect::Native, root, files, facts),
            Step::Submit(round, sent) => {
                let mut writer = LedgerWriter::open_in(files.clone(), root, None)?;
                facts.extend(self.submit(&mut writer, *round, sent)?);
                Ok(())
            }
            Step::Upload(round, number, delta) => {
                facts.extend(self.upload(root, files, *round, *number, *delta)?);
                Ok(())
            }
            Step::Open => LedgerWriter::open_in(files.clone(), root, None).map(drop),
            Step::Index => {
                let mut writer = LedgerWriter::open_in(files.clone(), root, None)?;
                let (ledger, index) = writer.index(&Silent)?;
                for (at, submission) in ledger.submissions(0..ledger.submissions_log().size())? {
                    let (miner, round) = (submission.miner(), submission.round());
                    let found = index.miner(ledger, miner, round)?;
                    facts.push(Fact::Found { miner, round, at: found });
                    assert_eq!(found, Some(at), "the index leads elsewhere");
                }
                for sealed in ledger.sealed() {
                    let found = index.round(ledger, sealed.record.round)?;
                    assert_eq!(found, Some(sealed.index), "the index leads elsewhere");
                }
                Ok(())
            }
            Step::Import(round, peers) => {
                let mut writer = LedgerWriter::open_in(files.clone(), root, None)?;
                let dir = self.gradients(*round);
                let gradients = Gradients::Directory(&dir);
                let report =
                    import_templar(&mut writer, *round, &gradients, Some(peers.clone()), &Silent);
                for file in done_before(report)?.into_iter().flat_map(|r| r.files) {
                    let (index, uid) = (file.index, file.uid);
                    facts.push(Fact::Statement { index, uid, outcome: file.outcome });
                }
                Ok(())
            }
            Step::Gc(keep_every) => {
                let mut writer = LedgerWriter::open_in(files.clone(), root, None)?;
                let keep_every = (*keep_every).try_into().expect("it is not 0");
                let report = gc(&mut writer, keep_every, &Silent)?;
                assert!(report.obstacles.is_empty(), "{:?}", report.obstacles);
                facts.push(Fact::Collected);
                Ok(())
            }
            Step::Seal(round) => {
                let mut writer = LedgerWriter::open_in(files.clone(), root, None)?;
                let report = seal(&mut writer, *round, one_thread(), &Silent)?;
                let (round, record, next) = (*round, report.record, report.next);
                let accepted = report.accepted.len();
                let rejected = report.rejected.into_iter().map(|line| line.reason).collect();
                facts.push(Fact::Sealed { round, record, next, accepted, rejected });
                Ok(())
            }
            Step::Anchor => {
                let mut writer = LedgerWriter::open_in(files.clone(), root, None)?;
                let mut chain = FileChain::new(files.clone(), self.chain());
                let report = anchor(&mut writer, &mut chain, AnchorOptions::default(), &Silent)?;
                facts.push(Fact::Anchored { size: report.anchor.size, value: report.anchor.value });
                Ok(())
            }
            Step::Rotate => {
                let mut writer = LedgerWriter::open_in(files.clone(), root, None)?;
                // An operator who looks first whether it was done.
                if writer.ledger().keys().rotations() == 0 {
                    rotate_key(&mut writer, None)?;
                }
                let newest = writer.ledger().keys().newest();
                let (index, key) = (newest.index, newest.log_keys.rounds.clone());
                facts.push(Fact::Rotated { index, key });
                Ok(())
            }
        })
    }

    /// Hands all of `sent` (miner and delta) in as one batch. A round that is sealed takes none.
    fn submit(
        &self,
        writer: &mut LedgerWriter,
        round: u64,
        sent: &[(u8, u64)],
    ) -> Result<Vec<Fact>, LedgerError> {
        let ledger = writer.ledger();
        if open_round(ledger)? > round {
            return Ok(vec![]);
        }
        let hand_in = |&(number, delta): &(u8, u64)| {
            miner::hand_in(ledger, round, number, &self.delta(delta), &self.signatures)
        };
        let batch = sent.iter().map(hand_in).collect::<Result<Vec<_>, _>>()?;
        let answers = submit_batch(writer, &mut Known::default(), &batch)?;
        let receipt = |answer: Result<Receipt, _>| match answer {
            Ok(receipt) => Fact::Receipt(Box::new(receipt)),
            Err(refusal) => panic!("{refusal}"),
        };
        Ok(answers.into_iter().map(receipt).collect())
    }

    /// Hands a delta in as a server takes it: announced, sent in parts that are kept, committed twice.
    fn upload(
        &self,
        root: &Path,
        files: &Arc<dyn Files>,
        round: u64,
        number: u8,
        delta: u64,
    ) -> Result<Vec<Fact>, LedgerError> {
        let writer = LedgerWriter::open_in(files.clone(), root, None)?;
        let ledger = Ledger::open_in(files.clone(), root)?;
        if open_round(&ledger)? > round {
            return Ok(vec![]);
        }
        let submitter = Submitter::start(writer);
        let facts = {
            // The thread's calls and ours never overlap: each waits for the other.
            let choice = UploadsChoice { part_bytes: 1 << 16, ..UploadsChoice::default() };
            let desk = UploadDesk::open(&ledger, submitter.handle(), choice).map(Arc::new);
            desk.and_then(|desk| {
                desk.sweep()?;
                self.send(&desk, &ledger, round, number, delta)
            })
        };
        submitter.finish();
        facts.map_err(|error| match error {
            UploadError::Ledger(error) => error,
            other => LedgerError::Submit { reason: other.to_string(), full: false },
        })
    }

    fn send(
        &self,
        desk: &Arc<UploadDesk>,
        ledger: &Ledger,
        round: u64,
        number: u8,
        delta: u64,
    ) -> Result<Vec<Fact>, UploadError> {
        let staged = miner::stage(ledger, round, &self.delta(delta));
        let (run, base) = (ledger.run_id(), ledger.newest().root);
        let statement = miner::statement(run, round, base, staged.delta(), number);
        let mut request = UploadRequest {
            method: String::new(),
            path: String::new(),
            run,
            round,
            base,
            delta: staged.delta(),
            signature: None,
        };
        let hotkey = miner::public(number);
        let token = Digest([number; 32]);
        let UploadState { id, hashes_bytes, missing, .. } = desk.create(&request, hotkey, token)?;
        if let Some(bytes) = hashes_bytes {
            let hashes = staged.hashes().expect("it was staged");
            let mut receiving = desk.receive(id, token, None, bytes)?;
            receiving.write(&hashes)?;
            receiving.finish(Digest::of(&hashes))?;
        }
        for part in missing {
            let bytes = staged.part(part).expect("it was staged");
            let mut receiving = desk.receive(id, token, Some(part.offset), part.bytes)?;
            receiving.write(&bytes)?;
            receiving.finish(Digest::of(&bytes))?;
            let left = desk.state(id, token)?.missing;
            assert!(!left.contains(&part), "{part:?} was acknowledged");
        }
        request.signature = Some(SignatureHex(self.signatures.of(&statement, number)));
        let commit = || match desk.commit(id, &request, hotkey)? {
            Commit::Done(receipt) => Ok(receipt),
            Commit::Pending(pending) => pending.run(),
        };
        let receipt = commit()?;
        assert_eq!(commit()?, receipt, "the same receipt again");
        let receipt = serde_json::from_slice(&receipt).expect("a receipt");
        Ok(vec![Fact::Receipt(Box::new(receipt))])
    }

    fn init(
        &self,
        dialect: Dialect,
        root: &Path,
        files: &Arc<dyn Files>,
        facts: &mut Vec<Fact>,
    ) -> Result<(), LedgerError> {
        let checkpoint = self.checkpoint();
        let options = InitOptions {
            miners: match dialect {
                Dialect::Templar => MinersPolicy::Listed,
                Dialect::Native => MinersPolicy::Hotkeys((1..=MINERS).map(miner::public).collect()),
            },
            files: &self.given,
            ..InitOptions::new(
                "crash",
                "crash.invalid/ledger",
                &checkpoint,
                SparseMeanSgd {
                    dialect,
                    chunk: 8,
                    top_k: 4,
                    bins: 4,
                    lr_f32: F32Bits(0.4),
                    mean: Mean::Contributors,
                    norm: match dialect {
                        Dialect::Templar => Norm::TorchCpuF32,
                        Dialect::Native => Norm::HistogramF64,
                    },
                },
            )
        };
        match init_in(files.clone(), root, &options, &Silent) {
            Ok(report) => {
                facts.push(Fact::Run(report.ledger.run_id()));
                facts.push(Fact::Model(report.ledger.genesis().model));
                Ok(())
            }
            Err(LedgerError::Exists { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// A round that is sealed is not imported again, and says so.
fn done_before<T>(report: Result<T, LedgerError>) -> Result<Option<T>, LedgerError> {
    match report {
        Ok(report) => Ok(Some(report)),
        Err(LedgerError::RoundSealed { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn one_thread() -> FoldOptions {
    FoldOptions { threads: 1, ..FoldOptions::default() }
}

/// One command on a ledger.
#[derive(Clone, Debug)]
pub enum Step {
    Init,
    /// A run whose miners sign for their deltas.
    InitNative,
    Open,
    /// Statements of one round in one batch: who sends which delta.
    Submit(u64, Vec<(u8, u64)>),
    /// An upload for one round: whose, and which delta.
    Upload(u64, u8, u64),
    Import(u64, Peers),
    Seal(u64),
    /// Every how many rounds a state is kept.
    Gc(u64),
    Rotate,
    /// The newest head goes to a text file on the same disk.
    Anchor,
    /// Brings up the index, which lies on the real disk and outlives every cut.
    Index,
}

impl Step {
    pub fn import(round: u64) -> Self {
        Self::Import(round, peers(round))
    }
}

/// What a ledger acknowledged.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// Its run, whose id no two inits share.
    Run(Digest),
    /// The first state.
    Model(ManifestId),
    /// What the index led to.
    Found {
        miner: Miner,
        round: u64,
        at: Option<u64>,
    },
    Statement {
        index: u64,
        uid: u16,
        outcome: &'static str,
    },
    /// A signed statement is in the log.
    Receipt(Box<Receipt>),
    Sealed {
        round: u64,
        record: Digest,
        next: ManifestId,
        accepted: usize,
        rejected: Vec<String>,
    },
    /// Another key signs from this entry on.
    Rotated {
        index: u64,
        key: String,
    },
    /// A gc was done to its end.
    Collected,
    /// A head stands outside.
    Anchored {
        size: u64,
        value: Digest,
    },
}

/// Steps on a ledger.
pub struct LedgerScenario<'f> {
    pub fixture: &'f Fixture,
    pub name: &'static str,
    /// The disk before, and what was acknowledged on it.
    pub base: MemFs,
    pub known: Vec<Fact>,
    pub steps: Vec<Step>,
    /// What each state is exported as.
    exports: BTreeMap<Digest, Digest>,
    sealed: BTreeMap<u64, ManifestId>,
    /// Every file of the ledger before, and after undisturbed steps, by its digest.
    start: Tree,
    end: Tree,
}

type Tree = BTreeMap<PathBuf, Digest>;

impl<'f> LedgerScenario<'f> {
    /// `steps` after `before`, each of which is durable.
    pub fn new(fixture: &'f Fixture, name: &'static str, before: &[Step], steps: &[Step]) -> Self {
        let (mut base, mut known) = (MemFs::new(), Vec::new());
        base.create_dir_all(fixture.dir()).expect("an empty disk");
        base = base.restart(Survival::Torn);
        for step in before {
            let done = fixture.step(step, &fixture.root(), &base.handle(), &mut known);
            done.expect("an undisturbed step");
        }
        Self::on(fixture, name, base.restart(Survival::Dropped), known, steps)
    }

    /// `steps` on a disk as it is.
    pub fn on(
        fixture: &'f Fixture,
        name: &'static str,
        base: MemFs,
        known: Vec<Fact>,
        steps: &[Step],
    ) -> Self {
        let steps = steps.to_vec();
        let (exports, sealed, start, end) = Default::default();
        let mut scenario = Self { fixture, name, base, known, steps, exports, sealed, start, end };
        let whole = scenario.base.fork(None);
        scenario.note_states(&whole);
        if !scenario.known.is_empty() {
            scenario.start = tree(&*whole.handle(), &fixture.root()).expect("a directory");
        }
        scenario.act(whole.handle(), &mut vec![]).expect("undisturbed steps");
        scenario.note_states(&whole);
        scenario.end = tree(&*whole.handle(), &fixture.root()).expect("a directory");
        scenario
    }

    /// With what `other` knows of the states: here some may be dropped already.
    pub fn knowing(mut self, other: &Self) -> Self {
        self.exports.extend(other.exports.clone());
        self
    }

    /// Notes what was sealed, and what the states that are kept are exported as.
    fn note_states(&mut self, disk: &MemFs) {
        let Ok(ledger) = Ledger::open_in(disk.handle(), &self.fixture.root()) else { return };
        let kept = Kept::load(&ledger).expect("a list of states");
        for sealed in ledger.sealed() {
            let (round, next) = (sealed.record.round, sealed.record.next);
            self.sealed.insert(round, next);
            if kept.has(next) {
                let bits = exported(&ledger, At::Round(round)).expect("a state");
                self.exports.insert(next.root, bits);
            }
        }
    }

    fn fact(&self, ledger: &Ledger, fact: &Fact) -> Result<(), Failed> {
        let there = match fact {
            Fact::Run(id) => ledger.run_id() == *id,
            Fact::Model(id) => ledger.genesis().model == *id,
            Fact::Found { miner, round, at } => at.is_some_and(|at| {
                let found = ledger.submissions(at..at + 1).ok();
                found.is_some_and(|found| {
                    (found[0].1.miner(), found[0].1.round()) == (*miner, *round)
                })
            }),
            Fact::Statement { index, uid, outcome } => {
                let found = ledger.submissions(*index..*index + 1)?;
                matches!(&found[..], [(_, Submission::Fetched(fetched))]
                    if fetched.uid == *uid && kind(&fetched.outcome) == *outcome)
            }
            Fact::Rotated { index, key } => ledger
                .keys()
                .terms()
                .iter()
                .any(|term| (term.index, &term.log_keys.rounds) == (*index, key)),
            Fact::Receipt(receipt) => holds(ledger, receipt)?,
            Fact::Anchored { size, value } => {
                let text = read_whole(&*ledger.place().files, &self.fixture.chain(), 1 << 20)?;
                let text = String::from_utf8(text)?;
                let told = |a: &Anchored| (a.record.size, a.record.value) == (*size, *value);
                let lines = text.lines().filter(|line| *line == value.to_hex()).count();
                ledger.anchors().iter().filter(|anchor| told(anchor)).count() == 1 && lines == 1
            }
            Fact::Sealed { round, record, next, .. } => {
                let sealed = &ledger.sealed()[ledger.position(*round)?];
                sealed.leaf == *record
                    && sealed.record.next == *next
                    && self.has_bits(ledger, *round, *next)?
            }
            Fact::Collected => {
                let found = tree(&*ledger.place().files, &self.fixture.root())?;
                // A power cut may bring back what another gc, which was killed, had removed.
                let back = |(path, digest): &(&PathBuf, &Digest)| {
                    self.end.get(*path) != Some(digest) && self.start.get(*path) != Some(digest)
                };
                let there = self.end.keys().all(|path| found.contains_key(path));
                there && !found.iter().any(|file| back(&file))
            }
        };
        if there { Ok(()) } else { Err(format!("{fact:?} is lost").into()) }
    }
}

/// Whether a receipt proves what it says, and the log as it now is goes on from its head.
pub fn holds(ledger: &Ledger, receipt: &Receipt) -> Result<bool, Failed> {
    let (key, log) = (ledger.genesis().log_keys.submissions.parse()?, ledger.submissions_log());
    receipt.verify(&key)?;
    let head = TreeHead::open(receipt.head.as_bytes(), &key)?;
    Ok(log.entry(receipt.index)? == receipt.entry.as_bytes()
        && log.root_at(head.size)? == head.root
        && receipt.run_id == ledger.run_id())
}

/// What no two submissions may share: a signed statement, or a fetched file's miner and round.
fn identity(ledger: &Ledger, submission: &Submission) -> String {
    match submission {
        Submission::Signed(signed) => statement_of(ledger.run_id(), signed).id().to_hex(),
        _ => format!("{} {}", submission.round(), submission.miner()),
    }
}

impl LedgerScenario<'_> {
    /// Whether a sealed state is exported as ever, or folded again to the same root if it was dropped.
    fn has_bits(&self, ledger: &Ledger, round: u64, next: ManifestId) -> Result<bool, Failed> {
        if Kept::load(ledger)?.has(next) {
            return Ok(exported(ledger, At::Round(round))? == self.exports[&next.root]);
        }
        let options = ReplayOptions { rounds: round..=round, tensor: None, fold: one_thread() };
        let report = replay(ledger, &options, &Silent)?;
        Ok(report.rounds.iter().map(|r| r.next).eq([next]))
    }
}

/// Every file below a directory, by its digest.
fn tree(files: &dyn Files, below: &Path) -> Result<Tree, Failed> {
    let mut found = Tree::new();
    for name in files.list(below)? {
        let path = below.join(name);
        match read_whole(files, &path, u64::MAX) {
            Ok(bytes) => drop(found.insert(path, Digest::of(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                found.extend(tree(files, &path)?);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

fn kind(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Delta(_) => "delta",
        Outcome::Refused(_) => "refused",
        Outcome::Unread => "unread",
    }
}

/// What all files of an export hash to.
pub fn exported(ledger: &Ledger, at: At) -> Result<Digest, Failed> {
    let out = MemFs::new();
    let state = ledger.checkpoint(ledger.state(at)?)?;
    let set = FileSet::of(state.manifest(), ExportDtype::F32, SHARD_BYTES_MAX)?;
    export(&state, &set, &out, Path::new("/out"), &Silent)?;
    let mut all = Vec::new();
    for (path, bytes) in out.files() {
        writeln!(all, "{} {}", path.display(), bytes.len())?;
        all.extend(bytes);
    }
    Ok(Digest::of(&all))
}

impl Scenario for LedgerScenario<'_> {
    type Fact = Fact;

    fn name(&self) -> &str {
        self.name
    }

    fn disk(&self) -> MemFs {
        self.base.fork(None)
    }

    fn act(&self, files: Arc<dyn Files>, facts: &mut Vec<Fact>) -> Result<(), Failed> {
        for step in &self.steps {
            self.fixture.step(step, &self.fixture.root(), &files, facts)?;
        }
        // A gc comes to the same files, whatever was cut before.
        if let (Some(Step::Gc(_)), false) = (self.steps.last(), self.end.is_empty()) {
            let found = tree(&*files, &self.fixture.root())?;
            let names: BTreeSet<_> = found.keys().chain(self.end.keys()).collect();
            let other = names.into_iter().find(|name| found.get(*name) != self.end.get(*name));
            return other.map_or(Ok(()), |name| Err(format!("not the same: {name:?}").into()));
        }
        Ok(())
    }

    fn recover(&self, files: Arc<dyn Files>) -> Result<(), Failed> {
        match self.fixture.step(&Step::Open, &self.fixture.root(), &files, &mut vec![]) {
            // Until init has published the head of its genesis, it is to be run again.
            Err(LedgerError::NoLedger { .. } | LedgerError::NoHead { .. })
                if self.known.is_empty() =>
            {
                Ok(())
            }
            done => Ok(done?),
        }
    }

    fn check(&self, files: Arc<dyn Files>, facts: &[Fact]) -> Result<(), Failed> {
        let ledger = match Ledger::open_in(files, &self.fixture.root()) {
            Err(LedgerError::NoLedger { .. } | LedgerError::NoHead { .. })
                if self.known.is_empty() && facts.is_empty() =>
            {
                return Ok(());
            }
            opened => opened?,
        };
        fsck(&ledger, one_thread(), &Silent)?;
        // A delta lies there as a whole, or an import would take a part of one for all of it.
        let (files, root) = (&*ledger.place().files, &self.fixture.root());
        for delta in place::all(files, root, place::Kind::Delta)? {
            DeltaSegments::open(files, &delta)?;
        }
        for fact in self.known.iter().chain(facts) {
            self.fact(&ledger, fact)?;
        }
        for sealed in ledger.sealed() {
            let (round, found) = (sealed.record.round, sealed.record.next);
            if self.sealed.get(&round) != Some(&found) {
                return Err(format!("round {round} was sealed as {found:?}").into());
            }
        }
        let mut stated = BTreeSet::new();
        for (index, submission) in ledger.submissions(0..ledger.submissions_log().size())? {
            if !stated.insert(identity(&ledger, &submission)) {
                return Err(format!("statement {index} repeats an earlier one").into());
            }
        }
        Ok(())
    }

    fn lasting(&self, facts: Vec<Fact>) -> Vec<Fact> {
        let ours = |fact: &Fact| match fact {
            Fact::Run(_) => !self.known.is_empty(),
            Fact::Rotated { .. } => self.same_heads(),
            _ => true,
        };
        facts.into_iter().filter(ours).collect()
    }

    fn records(&self) -> Vec<PathBuf> {
        ["log.key.heads", "log-1.key.heads"]
            .map(|name| self.fixture.root().join("keys").join(name))
            .to_vec()
    }

    fn same_heads(&self) -> bool {
        let rotates = self.steps.iter().any(|step| matches!(step, Step::Rotate));
        let next = self.fixture.root().join("keys/log-1.key");
        !self.known.is_empty() && (!rotates || self.base.files().contains_key(&next))
    }
}
