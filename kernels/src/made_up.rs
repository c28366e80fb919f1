//! A round made up from a seed, for benches: the shape of a large matrix, and what miners send for it.

use crate::{Band, Contribution, codes};

/// What one miner sends, owned.
struct Sent {
    index: Vec<u8>,
    code: Vec<u8>,
    levels: [f32; 4],
}

/// A matrix in blocks of 64 x 64, of which each miner sends 64 elements in codes of 2 bits, as
/// Templar's do.
pub struct Round {
    band: Band,
    sent: Vec<Sent>,
}

/// Rows and columns of a block, and how many of its elements are sent.
const SIDE: usize = 64;

impl Round {
    /// `rows` x `columns`, multiples of 64. Indices are as good as random, distinct in a block.
    #[must_use]
    pub fn new(rows: usize, columns: usize, miners: usize, seed: u64) -> Self {
        let band =
            Band { rows, columns, block_rows: SIDE, block_columns: SIDE, k: SIDE, code_bits: 2 };
        let mut random = Random(seed | 1);
        let sent = (0..miners).map(|_| Sent::new(&band, &mut random)).collect();
        Self { band, sent }
    }

    /// How many rows of blocks there are.
    #[must_use]
    pub fn strips_held(&self) -> usize {
        self.band.rows / SIDE
    }

    /// Bytes that a miner sends for a row of blocks.
    #[must_use]
    pub fn strip_bytes(&self) -> usize {
        let row = self.band.index_bytes_per_block() + self.band.code_bytes_per_block();
        self.band.columns / SIDE * row
    }

    /// So many rows of blocks as a band.
    #[must_use]
    pub fn strips(&self, count: usize) -> Band {
        Band { rows: count * SIDE, ..self.band }
    }

    /// What the first `miners` miners send for `count` rows of blocks from the `first`th on.
    #[must_use]
    pub fn contributions(
        &self,
        miners: usize,
        first: usize,
        count: usize,
    ) -> Vec<Contribution<'_>> {
        let across = self.band.columns / SIDE;
        let (from, to) = (first * across, (first + count) * across);
        let (index, code) = (self.band.index_bytes_per_block(), self.band.code_bytes_per_block());
        self.sent[..miners]
            .iter()
            .map(|sent| Contribution {
                index: &sent.index[from * index..to * index],
                code: &sent.code[from * code..to * code],
                levels: &sent.levels,
            })
            .collect()
    }
}

impl Sent {
    fn new(band: &Band, random: &mut Random) -> Self {
        let mut all: Vec<u16> = (0..band.block_len() as u16).collect();
        let mut index = Vec::new();
        for _ in 0..band.blocks() {
            for at in 0..band.k {
                let from = at + random.below(all.len() - at);
                all.swap(at, from);
            }
            codes::pack_index(&all[..band.k], &mut index).expect("indices of a block");
        }
        let bytes = band.blocks() * band.code_bytes_per_block();
        let code = (0..bytes).map(|_| random.below(256) as u8).collect();
        Self { index, code, levels: [-2e-3, -1e-3, 1e-3, 2e-3] }
    }
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 20) as usize % end
    }
}
