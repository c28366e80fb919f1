//! A model and a round of deltas that nobody trained, in the layouts of the real ones.
//!
//! `tools/layer.rs` writes them for people, `benches/steps.rs` and `tests/memory.rs` for themselves.
//! Every byte follows from the seed, whatever the number of threads. Memory: 8 MiB a thread for the
//! model, positions and codes of one tensor a thread for the deltas.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
};

use gradledger::import::templar_writer::{GradientMetadata, GradientTensor, GradientWriter};
use gradledger_kernels::codes::pack_index;
use rayon::prelude::*;

/// Elements a side of a block, as Templar cuts them.
pub const CHUNK: u64 = 64;

/// Entries kept of a block.
pub const TOP_K: u64 = 64;

/// Levels of a code.
pub const BINS: usize = 4;

/// Version in the names of the gradient files: the one whose layout they have.
const VERSION: &str = "2.1.28";

/// Elements of the model that are made at once: 4 MiB.
const RUN: usize = 1 << 20;

/// A tensor's name and shape.
pub struct Tensor {
    /// Its name in both files.
    pub name: String,
    /// Rows and columns, or columns alone.
    pub shape: Vec<u64>,
}

/// What to make.
pub struct Synthetic {
    /// Everything follows from it.
    pub seed: u64,
    /// The round that the gradient files are for.
    pub round: u64,
    /// How many miners send one; their uids count from 1.
    pub miners: u16,
    /// The model.
    pub tensors: Vec<Tensor>,
}

/// One layer of the 72B model, `fraction` of each matrix's rows in whole blocks.
pub fn layer(fraction: f64) -> Vec<Tensor> {
    let matrix = |name: &str, rows: u64, columns: u64| {
        let blocks = (rows as f64 * fraction / CHUNK as f64).round().max(1.0);
        let rows = blocks as u64 * CHUNK;
        Tensor { name: format!("layers.0.{name}.weight"), shape: vec![rows, columns] }
    };
    let norm = |name: &str| Tensor { name: format!("layers.0.{name}.weight"), shape: vec![8192] };
    vec![
        matrix("attention.wq", 8192, 8192),
        matrix("attention.wk", 1024, 8192),
        matrix("attention.wv", 1024, 8192),
        matrix("attention.wo", 8192, 8192),
        matrix("feed_forward.w1", 28672, 8192),
        matrix("feed_forward.w2", 8192, 28672),
        matrix("feed_forward.w3", 28672, 8192),
        norm("attention_norm"),
        norm("ffn_norm"),
    ]
}

impl Tensor {
    fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Blocks along each dimension. Every side is a multiple of [`CHUNK`].
    fn blocks(&self) -> Vec<u64> {
        self.shape.iter().map(|side| side / CHUNK).collect()
    }

    fn block_elements(&self) -> u64 {
        CHUNK.pow(self.shape.len() as u32)
    }
}

impl Synthetic {
    /// Bytes of the model's values.
    pub fn model_bytes(&self) -> u64 {
        4 * self.tensors.iter().map(Tensor::elements).sum::<u64>()
    }

    /// The model's file below `dir`.
    pub fn model_path(&self, dir: &Path) -> PathBuf {
        dir.join("base.safetensors")
    }

    /// A miner's file below `dir`.
    pub fn gradient_path(&self, dir: &Path, uid: u16) -> PathBuf {
        dir.join(format!("gradient-{}-{uid}-v{VERSION}.pt", self.round))
    }

    /// The miners' uids.
    pub fn uids(&self) -> std::ops::RangeInclusive<u16> {
        1..=self.miners
    }

    /// Writes the model to its place below `dir`.
    pub fn write_model(&self, dir: &Path) -> io::Result<()> {
        let mut out = File::create(self.model_path(dir))?;
        let header = self.header();
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        for (at, tensor) in (0..).zip(&self.tensors) {
            let (runs, elements) = (tensor.elements().div_ceil(RUN as u64), tensor.elements());
            let runs: Vec<u64> = (0..runs).collect();
            for runs in runs.chunks(2 * rayon::current_num_threads()) {
                let bytes = |&run: &u64| {
                    let left = elements - run * RUN as u64;
                    self.weights(at, run, left.min(RUN as u64) as usize)
                };
                for run in runs.par_iter().map(bytes).collect::<Vec<_>>() {
                    out.write_all(&run)?;
                }
            }
        }
        Ok(())
    }

    /// Writes every miner's file to its place below `dir`.
    pub fn write_gradients(&self, dir: &Path) -> io::Result<()> {
        self.uids().into_par_iter().try_for_each(|uid| {
            let path = self.gradient_path(dir, uid);
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let out = BufWriter::with_capacity(1 << 20, File::create(&path)?);
            let mut writer =
                GradientWriter::new(out, &format!("temp_{stem}")).map_err(io::Error::other)?;
            for (at, tensor) in (0..).zip(&self.tensors) {
                self.write_delta(&mut writer, uid, at, tensor)?;
            }
            let metadata = GradientMetadata {
                window: self.round as i64,
                global_step: 1,
                sample_digest: &format!("{:032x}", self.random(uid, u64::MAX).next()),
                sample_count: 512,
            };
            writer.finish(&metadata).map_err(io::Error::other)?.flush()
        })
    }

    /// The header of a safetensors file, padded as that format asks.
    fn header(&self) -> String {
        let mut at = 0;
        let entry = |tensor: &Tensor| {
            let start = at;
            at += 4 * tensor.elements();
            let value = serde_json::json!({
                "dtype": "F32", "shape": tensor.shape, "data_offsets": [start, at]
            });
            (tensor.name.clone(), value)
        };
        let entries: serde_json::Map<_, _> = self.tensors.iter().map(entry).collect();
        let text = serde_json::Value::Object(entries).to_string();
        format!("{text:width$}", width = text.len().next_multiple_of(8))
    }

    /// Weights within 0.04 of zero, as bytes.
    fn weights(&self, tensor: u64, run: u64, elements: usize) -> Vec<u8> {
        let mut random = self.random(0, tensor << 32 | run);
        let mut bytes = Vec::with_capacity(4 * elements);
        for _ in 0..elements / 2 {
            let bits = random.next();
            let pair = [weight(bits as u32), weight((bits >> 32) as u32)];
            bytes.extend_from_slice(pair.map(f32::to_le_bytes).as_flattened());
        }
        bytes
    }

    fn write_delta<W: io::Write>(
        &self,
        writer: &mut GradientWriter<W>,
        uid: u16,
        at: u64,
        tensor: &Tensor,
    ) -> io::Result<()> {
        let mut random = self.random(uid, at);
        let scale = 1e-3 * (1.0 + (random.next() % 1000) as f32 / 1000.0);
        let blocks = tensor.blocks();
        let count = blocks.iter().product::<u64>() as usize;
        let k = TOP_K.min(tensor.block_elements()) as usize;
        let mut idxs = Vec::with_capacity(count * k * 3 / 2);
        let mut vals = Vec::with_capacity(count * k);
        for _ in 0..count {
            let positions = positions(&mut random, tensor.block_elements() as u16);
            pack_index(&positions[..k], &mut idxs).expect("positions are below 4,096");
            let mut codes = 0;
            for entry in 0..k {
                if entry % 32 == 0 {
                    codes = random.next();
                }
                vals.push((codes & (BINS as u64 - 1)) as u8);
                codes >>= 2;
            }
        }
        let vals_shape: Vec<u64> = blocks.into_iter().chain([k as u64]).collect();
        let delta = GradientTensor {
            name: &tensor.name,
            idxs: &idxs,
            vals: &vals,
            vals_shape: &vals_shape,
            shift: scale / 64.0,
            scale: f64::from(scale),
            lookup: &[-1.5 * scale, -0.5 * scale, 0.5 * scale, 1.5 * scale],
        };
        writer.tensor(&delta).map_err(io::Error::other)
    }

    fn random(&self, uid: u16, what: u64) -> Random {
        let mut seed = Random(self.seed);
        let mut key = Random(seed.next() ^ u64::from(uid));
        Random(key.next() ^ what)
    }
}

/// The first positions of a walk through a block (its elements a power of two) that meets each once.
fn positions(random: &mut Random, block_elements: u16) -> [u16; TOP_K as usize] {
    let bits = random.next();
    // Full period modulo a power of two: the factor is 1 modulo 4, the increment odd.
    let (factor, increment) = ((bits as u16) & !3 | 1, (bits >> 16) as u16 | 1);
    let mut at = (bits >> 32) as u16;
    std::array::from_fn(|_| {
        at = at.wrapping_mul(factor).wrapping_add(increment);
        at & (block_elements - 1)
    })
}

/// Evenly spread in -0.04 to 0.04.
fn weight(bits: u32) -> f32 {
    (f32::from_bits(1.0_f32.to_bits() | bits >> 9) - 1.5) * 0.08
}

/// splitmix64: any seed is a good one.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
