//! A native run: one real submission of a real hotkey file, and any number of made-up statements
//! around it, whose deltas are nowhere and which therefore never count.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use gradledger::{
    codec::sr25519::SecretKey,
    ledger::{
        Ledger,
        init::{InitOptions, init},
        seal::{FoldOptions, seal},
        writer::LedgerWriter,
    },
    types::{
        bits::F32Bits,
        digest::Digest,
        manifest::ManifestId,
        progress::Silent,
        record::MinersPolicy,
        refusal::{Code, Refusal},
        rule::{Dialect, Mean, Norm, SparseMeanSgd},
        submission::{Fetched, Outcome, SignatureHex, Signed, Submission},
    },
};

use super::ledger::{Fixture, gradient};

/// The seed of the hotkey that submits; there are two more.
const SEED: [u8; 32] = [1; 32];

/// The public key of a miner.
pub fn hotkey(number: u8) -> Digest {
    SecretKey::from_seed(&[number; 32]).public().to_digest()
}

/// The `i`-th made-up submission: of two hotkeys and a uid, for seven rounds, some of them twice.
pub fn made_up(i: u64) -> Submission {
    let of = if i % 11 == 10 { i - 10 } else { i };
    let delta = ManifestId { root: Digest::of(&of.to_le_bytes()), count: 6, bytes: 100 + of };
    let refusal = Refusal::new(Code::NonFinite, Some("weight"), "a number", "NaN");
    let round = 1 + of % 7;
    if of % 5 == 0 {
        return Submission::Fetched(Fetched {
            round,
            base: delta,
            uid: 7,
            file: format!("gradient-{of}"),
            source_bytes: of,
            source_sha256: delta.root,
            outcome: Outcome::Refused(refusal),
        });
    }
    Submission::Signed(Signed {
        round,
        base: Digest::of(b"base"),
        delta,
        hotkey: hotkey(2 + (of % 2) as u8),
        // Two signatures of one statement differ.
        signature: SignatureHex([i as u8; 64]),
        refused: Some(refusal),
    })
}

/// A native ledger and what its miner submits.
pub struct SignedRun {
    fixture: Fixture,
}

impl SignedRun {
    /// A run that lists three hotkeys and has no submission yet.
    pub fn new() -> Self {
        let run = Self { fixture: Fixture::new() };
        let rule = SparseMeanSgd {
            dialect: Dialect::Native,
            chunk: 8,
            top_k: 4,
            bins: 4,
            lr_f32: F32Bits(0.5),
            mean: Mean::Contributors,
            norm: Norm::HistogramF64,
        };
        let checkpoint = run.fixture.checkpoint();
        let options = InitOptions {
            miners: MinersPolicy::Hotkeys((1..=3).map(hotkey).collect()),
            ..InitOptions::new("signed", "signed.invalid/run", &checkpoint, rule)
        };
        init(&run.ledger(), &options, &Silent).expect("a new ledger");
        for (name, uid) in [("delta.pt", 7), ("other.pt", 12)] {
            fs::write(run.path(name), gradient(1, uid)).expect("a new file");
        }
        let secret: String = SEED.iter().map(|byte| format!("{byte:02x}")).collect();
        let json = serde_json::json!({ "secretSeed": format!("0x{secret}") });
        fs::write(run.path("hotkey"), json.to_string()).expect("a new file");
        run
    }

    pub fn ledger(&self) -> PathBuf {
        self.fixture.root()
    }

    /// A file beside the ledger: `delta.pt`, `other.pt` and `hotkey` are there.
    pub fn path(&self, name: &str) -> PathBuf {
        self.fixture.dir().join(name)
    }

    pub fn open(&self) -> Ledger {
        Ledger::open(&self.ledger()).expect("a ledger")
    }

    pub fn writer(&self) -> LedgerWriter {
        LedgerWriter::open(&self.ledger(), None).expect("a ledger without a writer")
    }

    /// Appends made-up submissions `from..to`. No check takes their signatures for good.
    pub fn append(&self, from: u64, to: u64) {
        self.append_each(from, to, made_up);
    }

    /// Appends `count` files that were fetched in place of signed ones: a round with them is sealed.
    pub fn append_fetched(&self, count: u64) {
        self.append_each(0, count, |i| made_up(5 * i));
    }

    fn append_each(&self, from: u64, to: u64, submission: impl Fn(u64) -> Submission) {
        let mut writer = self.writer();
        for start in (from..to).step_by(1000) {
            let entries: Vec<_> = (start..to.min(start + 1000)).map(&submission).collect();
            writer.append_submissions(&entries).expect("an append");
        }
    }

    pub fn seal(&self, round: u64) {
        seal(&mut self.writer(), round, FoldOptions::default(), &Silent).expect("a seal");
    }

    /// `submit` of the miner's delta for round 1.
    pub fn submit(&self, delta: &str) -> Command {
        let mut command = program(&["submit", "--round", "1", "--json", "--key"]);
        command.arg(self.path("hotkey")).arg(self.ledger()).arg(self.path(delta));
        command
    }
}

pub fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradledger"));
    command.args(arguments);
    command
}

/// What a command printed, which succeeds.
pub fn document(command: &mut Command) -> serde_json::Value {
    let Output { status, stdout, stderr } = command.output().expect("a program");
    assert!(status.success(), "{status}: {}", String::from_utf8_lossy(&stderr));
    serde_json::from_slice(&stdout).expect("a document")
}

/// All bytes below a directory, by path.
pub fn bytes_below(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = super::model::all_files(dir);
    files.into_iter().map(|path| (path.clone(), fs::read(path).expect("a file"))).collect()
}

/// Writes the mark that calls an index's files whole, as they are.
pub fn mark(root: &Path) {
    use gradledger::merkle::pieces::Pieces;
    let backend = fs::read_dir(root).expect("a directory").map(|entry| entry.expect("it").path());
    let backend = backend.into_iter().find(|path| path.is_dir()).expect("a backend's directory");
    let name = backend.file_name().and_then(|name| name.to_str()).expect("its name");
    let mut text = format!("gradledger-index/1 {name}\n");
    for (path, bytes) in bytes_below(&backend) {
        let artifact = Pieces::of(&bytes).artifact;
        let name = path.strip_prefix(root).expect("below it").display();
        text += &format!("{} {} {name}\n", artifact.bytes, artifact.root);
    }
    fs::write(root.join("closed"), text).expect("a file");
}
