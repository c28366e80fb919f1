//! How alike two miners' deltas are: positions in common, and the cosine of their values.
//!
//! Of all blocks where they are few, else of runs of blocks spread evenly over the model. Miners who
//! trained on other data share few positions, those who copied share nearly all.

use gradledger_kernels::codes;

use crate::{
    codec::{
        book::Book,
        layout::{Layout, TensorLayout},
    },
    store::{
        place::Place,
        segment::{SegmentError, delta::DeltaSegments, place::delta},
    },
    types::manifest::ManifestId,
};

/// Entries that are compared at most, over all pairs of a round: about a second.
const COMPARED_MAX: u64 = 1 << 27;

/// Fewest and most blocks of a sample.
const SAMPLE_BLOCKS: std::ops::RangeInclusive<u64> = 16..=4096;

/// Blocks of a sample that lie together: one read a miner and column.
const RUN_BLOCKS: u64 = 16;

/// Two miners, by their place in the list.
pub(super) struct Pair {
    pub a: usize,
    pub b: usize,
    /// Positions of the sample that both sent.
    pub common: u64,
    /// Of the decoded values of the sample, before clipping; none if one is zero.
    pub cosine: Option<f64>,
}

/// What was found of a round.
pub(super) struct Overlaps {
    pub pairs: Vec<Pair>,
    /// Positions of the sample that each miner sent.
    pub positions: u64,
    pub blocks_sampled: u64,
    pub blocks: u64,
}

impl Overlaps {
    /// Positions that both of a pair sent, of those that each sent.
    pub fn share(&self, pair: &Pair) -> f64 {
        pair.common as f64 / (self.positions as f64).max(1.0)
    }
}

/// Some blocks of one tensor.
struct Run<'a> {
    tensor: &'a TensorLayout,
    first: u64,
    blocks: u64,
}

/// Compares each two of `deltas`, which were accepted and so fit the layout.
pub(super) fn overlaps(
    place: &Place,
    layout: &Layout,
    deltas: &[ManifestId],
) -> Result<Overlaps, SegmentError> {
    let open = |id: &ManifestId| DeltaSegments::open(&*place.files, &delta(&place.root, id.root));
    let opened = deltas.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let miners = deltas.len();
    let runs = sample(layout, miners as u64);
    let mut tally = Tally {
        common: vec![0; miners * miners],
        dot: vec![0.0; miners * miners],
        squares: vec![0.0; miners],
    };
    for run in &runs {
        let sent = opened.iter().map(|d| read(d, run)).collect::<Result<Vec<_>, _>>()?;
        tally.add(run.tensor, &sent);
    }
    let mut pairs = Vec::new();
    for a in 0..miners {
        for b in a + 1..miners {
            let at = a * miners + b;
            let size = (tally.squares[a] * tally.squares[b]).sqrt();
            let cosine = (size > 0.0).then(|| tally.dot[at] / size);
            pairs.push(Pair { a, b, common: tally.common[at], cosine });
        }
    }
    Ok(Overlaps {
        pairs,
        positions: runs.iter().map(|run| run.blocks * run.tensor.k).sum(),
        blocks_sampled: runs.iter().map(|run| run.blocks).sum(),
        blocks: layout.tensors.iter().map(|t| t.grid.blocks()).sum(),
    })
}

/// Which blocks are compared for so many miners.
fn sample(layout: &Layout, miners: u64) -> Vec<Run<'_>> {
    let blocks: u64 = layout.tensors.iter().map(|t| t.grid.blocks()).sum();
    let k = layout.tensors.iter().map(|t| t.k).max().unwrap_or(1);
    let pairs = (miners * miners.saturating_sub(1) / 2).max(1);
    let wanted = (COMPARED_MAX / (pairs * k)).clamp(*SAMPLE_BLOCKS.start(), *SAMPLE_BLOCKS.end());
    // (First block over all tensors, blocks) of each run; all in one if they are few.
    let spread = wanted / RUN_BLOCKS;
    let wanted: Vec<(u64, u64)> = if blocks <= wanted {
        vec![(0, blocks)]
    } else {
        let first = |at: u64| (u128::from(at) * u128::from(blocks) / u128::from(spread)) as u64;
        (0..spread).map(|at| (first(at), RUN_BLOCKS)).collect()
    };
    let mut runs = Vec::new();
    let mut before = 0;
    for tensor in &layout.tensors {
        let here = tensor.grid.blocks();
        for &(first, blocks) in &wanted {
            let (start, end) = (first.max(before), (first + blocks).min(before + here));
            if start < end {
                runs.push(Run { tensor, first: start - before, blocks: end - start });
            }
        }
        before += here;
    }
    runs
}

/// One miner's entries of a run.
struct Sent {
    positions: Vec<u16>,
    values: Vec<f32>,
}

fn read(delta: &DeltaSegments, run: &Run<'_>) -> Result<Sent, SegmentError> {
    let Run { tensor, first, blocks } = *run;
    let name = &tensor.name;
    let small = |n: u64| usize::try_from(n).expect("a sample fits in memory");
    let mut book = vec![0; small(tensor.book_bytes())];
    delta.book(name)?.read_at(0, &mut book)?;
    let book = Book::from_bytes(&book);
    let mut index = vec![0; small(blocks * tensor.index_bytes_per_block())];
    delta.index(name)?.read_at(first * tensor.index_bytes_per_block(), &mut index)?;
    let mut code = vec![0; small(blocks * tensor.code_bytes_per_block())];
    delta.code(name)?.read_at(first * tensor.code_bytes_per_block(), &mut code)?;
    let mut sent = Sent { positions: Vec::new(), values: Vec::new() };
    codes::unpack_index(&index, &mut sent.positions);
    let decoded: Vec<f32> = book.lookup.iter().map(|value| value + book.shift).collect();
    codes::values(&code, small(tensor.k), tensor.code_bits, &decoded, &mut sent.values);
    Ok(sent)
}

/// Sums over the sample, per pair and per miner.
struct Tally {
    common: Vec<u64>,
    dot: Vec<f64>,
    squares: Vec<f64>,
}

impl Tally {
    fn add(&mut self, tensor: &TensorLayout, sent: &[Sent]) {
        let (miners, k) = (sent.len(), tensor.k as usize); // At most 4,096.
        // What a miner sent of each element of a block.
        let mut dense: Vec<Option<f32>> = vec![None; tensor.grid.block_elements() as usize];
        for (a, one) in sent.iter().enumerate() {
            self.squares[a] += one.values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
            for (block, (positions, values)) in
                one.positions.chunks(k).zip(one.values.chunks(k)).enumerate()
            {
                for (&position, &value) in positions.iter().zip(values) {
                    // Intake refuses a position outside its block; these bytes were not re-hashed.
                    if let Some(place) = dense.get_mut(usize::from(position)) {
                        *place = Some(value);
                    }
                }
                for (b, other) in sent.iter().enumerate().skip(a + 1) {
                    let at = a * miners + b;
                    let entries = block * k..(block + 1) * k;
                    let theirs =
                        other.positions[entries.clone()].iter().zip(&other.values[entries]);
                    for (&position, &value) in theirs {
                        if let Some(Some(ours)) = dense.get(usize::from(position)) {
                            self.common[at] += 1;
                            self.dot[at] += f64::from(*ours) * f64::from(value);
                        }
                    }
                }
                for &position in positions {
                    if let Some(place) = dense.get_mut(usize::from(position)) {
                        *place = None;
                    }
                }
            }
        }
    }
}
