//! Made-up rounds that every copy of the fold is compared on with the reference.

use gradledger_kernels::{
    Band, Contribution, Divisor, Findings, KernelError, Step, codes, reference,
};

/// xorshift64*.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From `from` to `to`, both included.
    pub fn within(&mut self, from: usize, to: usize) -> usize {
        from + (self.bits() >> 11) as usize % (to - from + 1)
    }

    pub fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.within(0, of.len() - 1)]
    }

    pub fn chance(&mut self, one_in: usize) -> bool {
        self.within(1, one_in) == 1
    }

    /// An ordinary number, or with `special` rarely anything at all.
    pub fn float(&mut self, special: bool) -> f32 {
        const SPECIAL: [u32; 14] = [
            0x0000_0000,
            0x8000_0000,
            0x0000_0001,
            0x8000_0001,
            0x007f_ffff,
            0x0080_0000,
            0x7f7f_ffff,
            0xff7f_ffff,
            0x7f00_0000,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0000,
            0xffc0_1234,
            0x7f80_0001,
        ];
        if special && self.chance(6) {
            return f32::from_bits(self.one_of(&SPECIAL));
        }
        if special && self.chance(6) {
            return f32::from_bits(self.bits() as u32);
        }
        let sign = (self.bits() as u32) & 0x8000_0000;
        let exponent = self.within(110, 130) as u32;
        f32::from_bits(sign | exponent << 23 | (self.bits() as u32 & 0x7f_ffff))
    }
}

/// What one miner sent, owned.
#[derive(Clone)]
pub struct Sent {
    pub index: Vec<u8>,
    pub code: Vec<u8>,
    pub levels: Vec<f32>,
}

pub struct Case {
    pub band: Band,
    pub sent: Vec<Sent>,
    pub step: Step,
    pub state: Vec<f32>,
}

impl Case {
    pub fn random(random: &mut Random, band: Band, miners: usize, special: bool) -> Self {
        let sent = (0..miners).map(|_| Sent::random(random, &band, special)).collect();
        let divisor = if random.chance(3) {
            Divisor::All(random.within(1, 300) as u32)
        } else {
            Divisor::Contributors
        };
        let lr = if special && random.chance(8) { random.float(true) } else { 0.4 };
        let state = (0..band.elements()).map(|_| random.float(special)).collect();
        Self { band, sent, step: Step { lr, divisor }, state }
    }

    pub fn contributions(&self) -> Vec<Contribution<'_>> {
        self.sent
            .iter()
            .map(|s| Contribution { index: &s.index, code: &s.code, levels: &s.levels })
            .collect()
    }

    pub fn reference(&self) -> (Result<Findings, KernelError>, Vec<f32>) {
        let mut state = self.state.clone();
        (reference::fold(&self.band, &self.contributions(), self.step, &mut state), state)
    }
}

impl Sent {
    pub fn random(random: &mut Random, band: &Band, special: bool) -> Self {
        let (mut index, mut code) = (Vec::new(), Vec::new());
        let mut all: Vec<u16> = (0..band.block_len() as u16).collect();
        for _ in 0..band.blocks() {
            for at in 0..band.k {
                let from = random.within(at, all.len() - 1);
                all.swap(at, from);
            }
            codes::pack_index(&all[..band.k], &mut index).unwrap();
        }
        // Any bytes, padding included.
        code.extend((0..band.blocks() * band.code_bytes_per_block()).map(|_| random.bits() as u8));
        let levels = (0..band.bins()).map(|_| random.float(special)).collect();
        Self { index, code, levels }
    }
}

pub fn same_bits(found: &[f32], expected: &[f32], label: &str) {
    let differs = (0..expected.len()).find(|&at| found[at].to_bits() != expected[at].to_bits());
    let at = differs.map(|at| (at, found[at], expected[at]));
    assert_eq!((found.len(), at), (expected.len(), None), "{label}");
}

pub fn random_k(random: &mut Random, block_len: usize) -> usize {
    let most = if random.chance(4) { block_len } else { block_len.min(70) };
    random.within(1, most / 2) * 2
}

/// Any shape of block, up to `elements_max` elements or one block.
pub fn random_band(random: &mut Random, elements_max: usize) -> Band {
    let block_len_max = random.one_of(&[6usize, 40, 300, 4096]);
    let (block_rows, block_columns) = loop {
        let rows = if random.chance(4) { 1 } else { random.within(1, 70) };
        let columns = random.within(1, block_len_max.div_ceil(rows));
        if (2..=4096).contains(&(rows * columns)) {
            break (rows, columns);
        }
    };
    let block_len = block_rows * block_columns;
    let blocks_max = (elements_max / block_len).max(1);
    let down = random.within(1, blocks_max.min(9));
    let across = random.within(1, blocks_max / down);
    Band {
        rows: down * block_rows,
        columns: across * block_columns,
        block_rows,
        block_columns,
        k: random_k(random, block_len),
        code_bits: random.one_of(&[2, 4, 8]),
    }
}
