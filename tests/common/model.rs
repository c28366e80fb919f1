//! A small model, what miners send for it, and a ledger to put both in.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use gradledger::{
    ledger::{
        At, Ledger, LedgerError,
        import::{Gradients, ImportReport, Peers, import_templar},
        init::{InitOptions, InitReport, init},
        seal::{FoldOptions, SealReport, seal},
        writer::LedgerWriter,
    },
    types::{
        bits::F32Bits,
        progress::Silent,
        rule::{Dialect, Mean, Norm, SparseMeanSgd},
        tensor::Dtype,
    },
};
use tempfile::TempDir;

use super::Random;

/// A tensor of a checkpoint.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    pub fn new(name: &str, dtype: Dtype, shape: &[u64], bytes: Vec<u8>) -> Self {
        let elements: u64 = shape.iter().product();
        assert_eq!(bytes.len() as u64, elements * dtype.bytes(), "{name}");
        Self { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes }
    }

    pub fn f32(name: &str, shape: &[u64], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new(name, Dtype::F32, shape, bytes)
    }

    /// Values of about 1 in magnitude.
    pub fn random(name: &str, shape: &[u64], random: &mut Random) -> Self {
        let elements: u64 = shape.iter().product();
        let values: Vec<f32> = (0..elements).map(|_| small(random)).collect();
        Self::f32(name, shape, &values)
    }

    pub fn values(&self) -> Vec<f32> {
        floats(&self.bytes)
    }

    /// Rows, columns, and both sides of a block, as `schema/fold.md` cuts them.
    pub fn grid(&self, chunk: u64) -> Grid {
        let (rows, columns) = match *self.shape {
            [columns] => (1, columns),
            [rows, columns] => (rows, columns),
            _ => panic!("{} has no blocks", self.name),
        };
        let side = |n: u64| (1..=chunk).rev().find(|d| n.is_multiple_of(*d)).unwrap();
        Grid { rows, columns, height: side(rows), width: side(columns) }
    }
}

/// How a tensor is cut.
#[derive(Clone, Copy)]
pub struct Grid {
    pub rows: u64,
    pub columns: u64,
    pub height: u64,
    pub width: u64,
}

impl Grid {
    pub fn block_len(&self) -> u64 {
        self.height * self.width
    }

    pub fn blocks(&self) -> u64 {
        self.rows * self.columns / self.block_len()
    }

    /// The element of the tensor that `index` of `block` is.
    pub fn element(&self, block: u64, index: u64) -> usize {
        let across = self.columns / self.width;
        let row = block / across * self.height + index / self.width;
        let column = block % across * self.width + index % self.width;
        (row * self.columns + column) as usize
    }
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect()
}

/// -1 to 1.
pub fn small(random: &mut Random) -> f32 {
    (random.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
}

/// Writes a safetensors file, byte for byte as the format says.
pub fn safetensors(path: &Path, tensors: &[Tensor]) {
    let mut header = BTreeMap::new();
    let mut at = 0;
    for t in tensors {
        let end = at + t.bytes.len();
        let (dtype, shape) = (t.dtype.name(), &t.shape);
        header.insert(
            t.name.clone(),
            serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [at, end]}),
        );
        at = end;
    }
    let json = serde_json::to_vec(&header).unwrap();
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend(json);
    tensors.iter().for_each(|t| file.extend(&t.bytes));
    fs::write(path, file).unwrap();
}

/// What one miner sends for one tensor, before it is packed.
#[derive(Clone)]
pub struct Sent {
    /// Per block, k distinct positions.
    pub index: Vec<Vec<u16>>,
    /// Per block, k codes.
    pub codes: Vec<Vec<u8>>,
    pub lookup: Vec<f32>,
    pub shift: f32,
}

/// What one miner sends, by tensor.
pub type Delta = BTreeMap<String, Sent>;

/// Tensors and the rule that folds them.
#[derive(Clone)]
pub struct Model {
    pub tensors: Vec<Tensor>,
    pub rule: SparseMeanSgd,
}

impl Model {
    /// Three tensors of 6, 2 and 13 blocks.
    pub fn small(dialect: Dialect) -> Self {
        let mut random = Random(11);
        let tensors = vec![
            Tensor::random("a.weight", &[16, 24], &mut random),
            Tensor::random("b.bias", &[10], &mut random),
            Tensor::random("c.odd", &[13, 6], &mut random),
        ];
        Self { tensors, rule: rule(dialect, 8, 4, 4) }
    }

    pub fn tensor(&self, name: &str) -> &Tensor {
        self.tensors.iter().find(|t| t.name == name).unwrap()
    }

    /// The tensors that the rule folds, in manifest order.
    pub fn folded(&self) -> Vec<&Tensor> {
        let folds = |t: &&Tensor| {
            let float = matches!(t.dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16);
            let float = float && !t.bytes.is_empty();
            float && (1..=2).contains(&t.shape.len()) && t.grid(self.rule.chunk).block_len() > 1
        };
        let mut folded: Vec<&Tensor> = self.tensors.iter().filter(folds).collect();
        folded.sort_by(|a, b| a.name.cmp(&b.name));
        folded
    }

    pub fn k(&self, tensor: &Tensor) -> u64 {
        self.rule.top_k.min(tensor.grid(self.rule.chunk).block_len()) & !1
    }

    /// A delta with distinct positions and a random book.
    pub fn delta(&self, random: &mut Random) -> Delta {
        let sent = |tensor: &&Tensor| {
            let (grid, k) = (tensor.grid(self.rule.chunk), self.k(tensor));
            let lookup = (0..self.rule.bins).map(|_| small(random)).collect();
            let mut sent =
                Sent { index: vec![], codes: vec![], lookup, shift: small(random) / 8.0 };
            for _ in 0..grid.blocks() {
                let mut free: Vec<u16> = (0..grid.block_len() as u16).collect();
                let mut take = |_| free.swap_remove(random.below(free.len() as u64) as usize);
                sent.index.push((0..k).map(&mut take).collect());
                sent.codes.push((0..k).map(|_| random.below(self.rule.bins) as u8).collect());
            }
            (tensor.name.clone(), sent)
        };
        self.folded().iter().map(sent).collect()
    }
}

pub fn rule(dialect: Dialect, chunk: u64, top_k: u64, bins: u64) -> SparseMeanSgd {
    let norm = match dialect {
        Dialect::Templar => Norm::TorchCpuF32,
        Dialect::Native => Norm::HistogramF64,
    };
    let (lr_f32, mean) = (F32Bits(0.4), Mean::Contributors);
    SparseMeanSgd { dialect, chunk, top_k, bins, lr_f32, mean, norm }
}

/// A ledger and the directories that files for it are put in.
pub struct Run {
    pub dir: TempDir,
}

impl Run {
    pub fn new(model: &Model) -> Self {
        Self::frozen(model, false).unwrap().0
    }

    /// As [`Run::new`], with or without `--frozen`.
    pub fn frozen(model: &Model, frozen: bool) -> Result<(Self, InitReport), LedgerError> {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = dir.path().join("checkpoint.safetensors");
        safetensors(&checkpoint, &model.tensors);
        let run = Self { dir };
        let report = run.init(&checkpoint, model.rule.clone(), frozen)?;
        Ok((run, report))
    }

    pub fn init(
        &self,
        checkpoint: &Path,
        rule: SparseMeanSgd,
        frozen: bool,
    ) -> Result<InitReport, LedgerError> {
        let options = InitOptions {
            frozen,
            ..InitOptions::new("test", "test.example/run", checkpoint, rule)
        };
        init(&self.path(), &options, &Silent)
    }

    /// The ledger.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("ledger")
    }

    /// Where the files of a round lie.
    pub fn files(&self, round: u64) -> PathBuf {
        self.dir.path().join(format!("files-{round}"))
    }

    pub fn put(&self, round: u64, uid: u16, bytes: &[u8]) -> String {
        fs::create_dir_all(self.files(round)).unwrap();
        let name = file_name(round, uid);
        fs::write(self.files(round).join(&name), bytes).unwrap();
        name
    }

    pub fn open(&self) -> Ledger {
        Ledger::open(&self.path()).unwrap()
    }

    pub fn writer(&self) -> LedgerWriter {
        LedgerWriter::open(&self.path(), None).unwrap()
    }

    pub fn try_import(
        &self,
        round: u64,
        listed: &[u16],
        reserve: &[u16],
    ) -> Result<ImportReport, LedgerError> {
        let peers = Peers { listed: listed.to_vec(), reserve: reserve.to_vec() };
        let files = self.files(round);
        let from = Gradients::Directory(&files);
        import_templar(&mut self.writer(), round, &from, Some(peers), &Silent)
    }

    pub fn import(&self, round: u64, listed: &[u16], reserve: &[u16]) -> ImportReport {
        self.try_import(round, listed, reserve).unwrap()
    }

    pub fn try_seal(&self, round: u64) -> Result<SealReport, LedgerError> {
        seal(&mut self.writer(), round, fold_options(), &Silent)
    }

    pub fn seal(&self, round: u64) -> SealReport {
        self.try_seal(round).unwrap()
    }

    /// The logical bytes of a tensor of the state at `at`.
    pub fn stored(&self, at: At, name: &str) -> Vec<u8> {
        let ledger = self.open();
        let checkpoint = ledger.checkpoint(ledger.state(at).unwrap()).unwrap();
        let position = checkpoint.manifest().position("weights", name).unwrap();
        let mut bytes = vec![0; checkpoint.manifest().descriptors()[position].bytes as usize];
        checkpoint.tensor(position).unwrap().read_exact(&mut bytes).unwrap();
        bytes
    }
}

pub fn file_name(round: u64, uid: u16) -> String {
    format!("gradient-{round}-{uid}-v2.1.28.pt")
}

pub fn fold_options() -> FoldOptions {
    FoldOptions { threads: 2, ..FoldOptions::default() }
}

/// The uids that were folded, in ledger order.
pub fn accepted(report: &SealReport) -> Vec<u16> {
    report.accepted.iter().map(|line| line.uid.unwrap()).collect()
}

/// (uid, reason) of those who were not.
pub fn rejected(report: &SealReport) -> Vec<(u16, String)> {
    report.rejected.iter().map(|line| (line.uid.unwrap(), line.reason.clone())).collect()
}

/// Copies a directory with all below it.
pub fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_all(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Every file below a directory, sorted.
pub fn all_files(below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![below.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}
