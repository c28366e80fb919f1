//! The first sweep: choose, quantise, pack. See `schema/encode.md`.

use gradledger_kernels::{
    codes,
    quantise::{Quantised, quantise, sum},
    topk::{Scratch, select},
};
use rayon::prelude::*;
use serde::Serialize;

use super::{
    DeltaError, Sweep,
    bands::{Band, each_band},
    inputs::{Inputs, Roots},
    output::Draft,
};
use crate::{
    codec::{
        book::Book,
        layout::{DeltaGroup, TensorLayout},
    },
    merkle::{manifest::manifest_id, pieces::Pieces},
    types::{digest::Digest, grid::Grid, manifest::ManifestId},
};

/// What one tensor's part of a delta holds.
#[derive(Clone, Debug, Serialize)]
pub struct TensorReport {
    /// The tensor; `total` for all.
    pub name: String,
    /// Elements of the tensor.
    pub elements: u64,
    /// Elements that are sent.
    pub sent: u64,
    /// Bytes of positions, codes and book.
    pub bytes: u64,
    /// L2 norm of base less trained.
    pub norm_gradient: f64,
    /// L2 norm of the error that was encoded: the gradient and what had been kept.
    pub norm_error: f64,
    /// L2 norm of what is sent, as it decodes.
    pub norm_sent: f64,
    /// `1 - |error - sent|^2 / |error|^2`; 1 if the error is zero.
    pub energy_kept: f64,
    /// Added to every value of the book; none for all tensors.
    pub shift: Option<f32>,
    /// The quantiser's scale; none for all tensors.
    pub scale: Option<f32>,
    /// How often each code occurs.
    pub codes: Vec<u64>,
}

impl TensorReport {
    /// What `tensors` come to together.
    pub(super) fn total(tensors: &[Self]) -> Self {
        let count = |of: fn(&Self) -> u64| tensors.iter().map(of).sum();
        let squares = |of: fn(&Self) -> f64| tensors.iter().map(of).sum::<f64>();
        let error = squares(|t| t.norm_error * t.norm_error);
        let lost = squares(|t| (1.0 - t.energy_kept) * t.norm_error * t.norm_error);
        let mut codes = vec![0; tensors.first().map_or(0, |t| t.codes.len())];
        for tensor in tensors {
            codes.iter_mut().zip(&tensor.codes).for_each(|(sum, count)| *sum += count);
        }
        Self {
            name: "total".to_owned(),
            elements: count(|t| t.elements),
            sent: count(|t| t.sent),
            bytes: count(|t| t.bytes),
            norm_gradient: squares(|t| t.norm_gradient * t.norm_gradient).sqrt(),
            norm_error: error.sqrt(),
            norm_sent: squares(|t| t.norm_sent * t.norm_sent).sqrt(),
            energy_kept: kept(error, lost),
            shift: None,
            scale: None,
            codes,
        }
    }
}

fn kept(error_squares: f64, lost_squares: f64) -> f64 {
    if error_squares == 0.0 { 1.0 } else { 1.0 - lost_squares / error_squares }
}

/// A delta that was written but not published.
pub(super) struct Encoded<'f> {
    pub delta: ManifestId,
    pub roots: Roots,
    pub reports: Vec<TensorReport>,
    pub output: Draft<'f>,
}

/// One tensor's part, as it goes to the output.
pub(super) struct Sent<'a> {
    pub tensor: &'a TensorLayout,
    /// Packed positions.
    pub index: Vec<u8>,
    /// A code a byte.
    pub codes: Vec<u8>,
    /// Packed codes.
    pub packed: Vec<u8>,
    pub book: Book,
    pub scale: f32,
}

/// Encodes every tensor, and writes each as it is done.
pub(super) fn encode<'f>(
    sweep: &Sweep<'f>,
    inputs: &Inputs<'_>,
) -> Result<Encoded<'f>, DeltaError> {
    let job = sweep.job;
    let mut output = Draft::create(sweep.files, job)?;
    let (mut roots, mut reports, mut artifacts) = (Roots::default(), Vec::new(), Vec::new());
    for tensor in &job.layout.tensors {
        let (root, report, sent) = encode_tensor(sweep, inputs, tensor)?;
        artifacts.push(sweep.pool.install(|| roots_of(&sent)));
        output.tensor(&sent)?;
        roots.0.push(root);
        reports.push(report);
    }
    output.finish(job)?;
    let manifest = job.layout.delta_manifest(|group, at| root_in(&artifacts[at], group))?;
    Ok(Encoded { delta: manifest_id(&manifest), roots, reports, output })
}

/// Roots in the order of [`DeltaGroup::ALL`].
pub(super) type ArtifactRoots = [Digest; 3];

pub(super) fn root_in(roots: &ArtifactRoots, group: DeltaGroup) -> Digest {
    let [book, code, index] = *roots;
    match group {
        DeltaGroup::Book => book,
        DeltaGroup::Code => code,
        DeltaGroup::Index => index,
    }
}

fn roots_of(sent: &Sent<'_>) -> ArtifactRoots {
    let book = sent.book.to_bytes();
    [&book, &sent.packed, &sent.index].map(|bytes| Pieces::of(bytes).artifact.root)
}

fn encode_tensor<'a>(
    sweep: &Sweep<'_>,
    inputs: &Inputs<'_>,
    tensor: &'a TensorLayout,
) -> Result<((Digest, Digest), TensorReport, Sent<'a>), DeltaError> {
    let mut kept = Kept::default();
    let roots = each_band(sweep, inputs, tensor, |band| {
        sweep.pool.install(|| kept.take(tensor, band));
        Ok(())
    })?;
    let job = inputs.job;
    let (sent, report) = sweep.pool.install(|| kept.quantise(tensor, job.range));
    let checked = sent.book.check(job.rule.dialect);
    checked.map_err(|source| DeltaError::Book { tensor: tensor.name.clone(), source })?;
    Ok((roots, report, sent))
}

/// What is kept of a tensor so far: positions and values of whole blocks.
#[derive(Default)]
struct Kept {
    positions: Vec<u16>,
    values: Vec<f32>,
    gradient_squares: f64,
    error_squares: f64,
}

impl Kept {
    fn take(&mut self, tensor: &TensorLayout, band: &Band) {
        self.gradient_squares += band.seen.gradient_squares;
        self.error_squares += band.seen.error_squares;
        let (k, blocks) = (small(tensor.k), small(band.blocks));
        let before = self.values.len();
        self.positions.resize(before + blocks * k, 0);
        self.values.resize(before + blocks * k, 0.0);
        let places = self.positions[before..].par_chunks_exact_mut(k);
        let values = self.values[before..].par_chunks_exact_mut(k);
        places.zip(values).enumerate().for_each_init(
            || (Scratch::default(), Vec::new()),
            |(scratch, block), (at, (positions, values))| {
                gather(&tensor.grid, &band.error, at, block);
                select(block, scratch, positions);
                for (value, &position) in values.iter_mut().zip(&*positions) {
                    *value = block[usize::from(position)];
                }
            },
        );
    }

    fn quantise<'a>(self, tensor: &'a TensorLayout, range: u32) -> (Sent<'a>, TensorReport) {
        let Self { positions, values, gradient_squares, error_squares } = self;
        let Quantised { shift, scale, lookup, codes: code, counts } =
            quantise(&values, 1 << tensor.code_bits, range);
        let book = Book { lookup, shift };
        let decoded: Vec<f32> = book.lookup.iter().map(|value| value + shift).collect();
        let chosen = sum(&values, |v| f64::from(v) * f64::from(v));
        let missed = missed_squares(&values, &code, &decoded);
        let counted = counts.iter().zip(&decoded);
        let sent_squares: f64 =
            counted.map(|(&count, &v)| count as f64 * (f64::from(v) * f64::from(v))).sum();
        drop(values);
        let (mut index, mut packed) = (Vec::new(), Vec::new());
        codes::pack_index(&positions, &mut index).expect("positions are below 4,096");
        codes::pack_codes(&code, small(tensor.k), tensor.code_bits, &mut packed)
            .expect("codes are below the number of bins");
        let lost = (error_squares - chosen).max(0.0) + missed;
        let report = TensorReport {
            name: tensor.name.clone(),
            elements: tensor.grid.rows * tensor.grid.columns,
            sent: positions.len() as u64,
            bytes: (index.len() + packed.len()) as u64 + tensor.book_bytes(),
            norm_gradient: gradient_squares.sqrt(),
            norm_error: error_squares.sqrt(),
            norm_sent: sent_squares.sqrt(),
            energy_kept: kept(error_squares, lost),
            shift: Some(shift),
            scale: Some(scale),
            codes: counts,
        };
        (Sent { tensor, index, codes: code, packed, book, scale }, report)
    }
}

/// The sum of the squares of what quantising loses of the values that are sent.
fn missed_squares(values: &[f32], code: &[u8], decoded: &[f32]) -> f64 {
    let miss = |(&value, &code): (&f32, &u8)| {
        let miss = f64::from(value) - f64::from(decoded[usize::from(code)]);
        miss * miss
    };
    let run = |(values, code): (&[f32], &[u8])| values.iter().zip(code).map(miss).sum::<f64>();
    let runs: Vec<f64> =
        values.par_chunks(1 << 16).zip(code.par_chunks(1 << 16)).map(run).collect();
    runs.iter().sum()
}

/// Block `at` of a band, row-major, into `block`.
fn gather(grid: &Grid, band: &[f32], at: usize, block: &mut Vec<f32>) {
    block.clear();
    for run in runs(grid, at) {
        block.extend_from_slice(&band[run]);
    }
}

/// Where the rows of block `at` lie in a band of whole units.
pub(super) fn runs(grid: &Grid, at: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let (height, width) = (small(grid.block_rows), small(grid.block_columns));
    let (columns, across) = (small(grid.columns), small(grid.unit_blocks()));
    // A 1-D tensor's blocks lie one after the other: each is a unit of one row.
    let (first, stride) = match grid.rows {
        1 => (at * width, width),
        _ => (at / across * height * columns + at % across * width, columns),
    };
    (0..height).map(move |row| first + row * stride..first + row * stride + width)
}

/// A size within a band.
pub(super) fn small(n: u64) -> usize {
    usize::try_from(n).expect("a band fits in memory")
}
