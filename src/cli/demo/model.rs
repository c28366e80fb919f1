//! A byte-level language model, small enough to train while one watches.
//!
//! The last [`CONTEXT`] bytes, each looked up in a table, go through one hidden layer of ReLU units to
//! a probability for each possible next byte (Bengio et al. 2003). Gradients are in closed form.
//!
//! Every operation is IEEE 754 in a fixed order, exp and ln included, so that every machine trains
//! the same bits.

/// Bytes that the model knows: ASCII.
pub const BYTES: usize = 128;

/// How many bytes back it looks.
pub const CONTEXT: usize = 8;

const EMBED: usize = 16;
const INPUT: usize = CONTEXT * EMBED;
const HIDDEN: usize = 192;

/// Sums that a dot product keeps beside each other, in a fixed order that a processor can do at once.
const LANES: usize = 16;
const _: () = assert!(HIDDEN.is_multiple_of(LANES) && BYTES.is_multiple_of(LANES));

/// The tensors: name and shape.
pub const TENSORS: [(&str, &[u64]); 5] = [
    ("embed.weight", &[BYTES as u64, EMBED as u64]),
    ("hidden.bias", &[HIDDEN as u64]),
    ("hidden.weight", &[INPUT as u64, HIDDEN as u64]),
    ("out.bias", &[BYTES as u64]),
    ("out.weight", &[HIDDEN as u64, BYTES as u64]),
];

/// Random numbers from a seed (SplitMix64).
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to 1, without 1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    /// Below `n`, which is small.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Parameters, or a gradient of them: row-major, in the order of [`TENSORS`].
#[derive(Clone, Default)]
pub struct Model {
    pub embed: Vec<f32>,
    pub hidden_bias: Vec<f32>,
    pub hidden: Vec<f32>,
    pub out_bias: Vec<f32>,
    pub out: Vec<f32>,
}

/// What the model makes of one context.
struct Pass {
    input: [f32; INPUT],
    hidden: [f32; HIDDEN],
    /// Probability of each next byte.
    next: [f32; BYTES],
}

impl Model {
    pub fn zeros() -> Self {
        let mut model = Self::default();
        for (tensor, (_, shape)) in model.tensors_mut().into_iter().zip(TENSORS) {
            tensor.resize(shape.iter().product::<u64>() as usize, 0.0);
        }
        model
    }

    pub fn random(seed: u64) -> Self {
        let (mut model, mut random) = (Self::zeros(), Random(seed));
        let Self { embed, hidden, out, .. } = &mut model;
        for (tensor, scale) in [(embed, 0.5), (hidden, 0.12), (out, 0.08)] {
            tensor.iter_mut().for_each(|value| *value = (2.0 * random.unit() - 1.0) * scale);
        }
        model
    }

    pub fn tensors(&self) -> [&Vec<f32>; 5] {
        [&self.embed, &self.hidden_bias, &self.hidden, &self.out_bias, &self.out]
    }

    pub fn tensors_mut(&mut self) -> [&mut Vec<f32>; 5] {
        let Self { embed, hidden_bias, hidden, out_bias, out } = self;
        [embed, hidden_bias, hidden, out_bias, out]
    }

    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|tensor| tensor.len()).sum()
    }

    /// How surprised the model is by the byte at the end of `window`, in nats: -ln of the probability
    /// that it gave to it. A window is [`CONTEXT`] bytes and the next.
    pub fn surprise(&self, window: &[u8]) -> f64 {
        let given = self.pass(window).next[usize::from(window[CONTEXT])];
        -ln(f64::from(given.max(f32::MIN_POSITIVE)))
    }

    fn pass(&self, context: &[u8]) -> Pass {
        let mut input = [0.0; INPUT];
        for (slot, &byte) in input.chunks_exact_mut(EMBED).zip(context) {
            slot.copy_from_slice(row::<EMBED>(&self.embed, byte.into()));
        }
        let mut hidden = [0.0; HIDDEN];
        hidden.copy_from_slice(&self.hidden_bias);
        for (at, &x) in input.iter().enumerate() {
            add_scaled(&mut hidden, row::<HIDDEN>(&self.hidden, at), x);
        }
        let mut next = [0.0; BYTES];
        next.copy_from_slice(&self.out_bias);
        for (at, h) in hidden.iter_mut().enumerate() {
            *h = h.max(0.0);
            if *h > 0.0 {
                add_scaled(&mut next, row::<BYTES>(&self.out, at), *h);
            }
        }
        softmax(&mut next);
        Pass { input, hidden, next }
    }

    /// The mean gradient of the surprise at the windows of `text` that start at `starts`.
    pub fn gradient(&self, text: &[u8], starts: &[usize]) -> Self {
        let mut gradient = Self::zeros();
        for &start in starts {
            self.add_gradient(&text[start..=start + CONTEXT], &mut gradient);
        }
        let count = starts.len() as f32;
        gradient.tensors_mut().into_iter().flatten().for_each(|value| *value /= count);
        gradient
    }

    fn add_gradient(&self, window: &[u8], gradient: &mut Self) {
        let Pass { input, hidden, next } = self.pass(window);
        // Of softmax and -ln together: the probabilities, less 1 where the truth is.
        let mut error = next;
        error[usize::from(window[CONTEXT])] -= 1.0;
        add_scaled(&mut gradient.out_bias, &error, 1.0);
        let mut back = [0.0; HIDDEN];
        for (at, &h) in hidden.iter().enumerate().filter(|(_, h)| **h > 0.0) {
            add_scaled(row_mut::<BYTES>(&mut gradient.out, at), &error, h);
            back[at] = dot(row::<BYTES>(&self.out, at), &error);
        }
        add_scaled(&mut gradient.hidden_bias, &back, 1.0);
        for (at, &x) in input.iter().enumerate() {
            add_scaled(row_mut::<HIDDEN>(&mut gradient.hidden, at), &back, x);
            let (byte, part) = (usize::from(window[at / EMBED]), at % EMBED);
            row_mut::<EMBED>(&mut gradient.embed, byte)[part] +=
                dot(row::<HIDDEN>(&self.hidden, at), &back);
        }
    }

    /// `bytes` bytes that the model writes after `start`, drawn with the squares of its probabilities:
    /// likelier ones oftener than it thinks.
    pub fn write(&self, start: &str, bytes: usize, random: &mut Random) -> String {
        let mut text = start.as_bytes().to_vec();
        for _ in 0..bytes {
            let weights = self.pass(&text[text.len() - CONTEXT..]).next.map(|p| p * p);
            let mut left = random.unit() * weights.iter().sum::<f32>();
            let mut beyond = |weight: &f32| {
                left -= weight;
                left < 0.0
            };
            text.push(weights.iter().position(&mut beyond).unwrap_or(BYTES - 1) as u8);
        }
        text.into_iter().map(char::from).collect()
    }
}

fn row<const COLUMNS: usize>(tensor: &[f32], at: usize) -> &[f32] {
    &tensor[at * COLUMNS..(at + 1) * COLUMNS]
}

fn row_mut<const COLUMNS: usize>(tensor: &mut [f32], at: usize) -> &mut [f32] {
    &mut tensor[at * COLUMNS..(at + 1) * COLUMNS]
}

fn add_scaled(to: &mut [f32], from: &[f32], by: f32) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += by * from;
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

fn softmax(values: &mut [f32]) {
    let largest = values.iter().copied().fold(f32::MIN, f32::max);
    values.iter_mut().for_each(|value| *value = exp(*value - largest));
    let sum: f32 = values.iter().sum();
    values.iter_mut().for_each(|value| *value /= sum);
}

/// e^x for x of at most 0. The C library's differs from system to system.
fn exp(x: f32) -> f32 {
    // ln 2 in two parts: the first has so few bits that its product is exact.
    const LN_2: [f32; 2] = [355.0 / 512.0, -2.121_944_4e-4];
    if x < -80.0 {
        return 0.0;
    }
    let twos = (x * std::f32::consts::LOG2_E - 0.5) as i32;
    let rest = x - twos as f32 * LN_2[0] - twos as f32 * LN_2[1];
    let series = (1..=8).rev().fold(1.0, |sum, n| 1.0 + sum * rest / n as f32);
    series * f32::from_bits(((127 + twos) as u32) << 23)
}

/// ln x for a normal x above 0; see [`exp`].
fn ln(x: f64) -> f64 {
    const FRACTION: u64 = (1 << 52) - 1;
    let (twos, fraction) = ((x.to_bits() >> 52) as i64 - 1023, x.to_bits() & FRACTION);
    let mantissa = f64::from_bits(fraction | (1023 << 52));
    // ln m = 2 artanh((m - 1) / (m + 1)), of which at most 1/3 goes into the series.
    let z = (mantissa - 1.0) / (mantissa + 1.0);
    let series = (0..20).rev().fold(0.0, |sum, n| sum * z * z + 1.0 / f64::from(2 * n + 1));
    2.0 * z * series + twos as f64 * std::f64::consts::LN_2
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"The quick brown fox jumps over the lazy dog.";

    /// The closed form against the slope between two points, for parameters of every tensor.
    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        let starts: Vec<usize> = (0..TEXT.len() - CONTEXT).step_by(3).collect();
        let loss = |model: &Model| -> f64 {
            let of = |&start: &usize| model.surprise(&TEXT[start..=start + CONTEXT]);
            starts.iter().map(of).sum::<f64>() / starts.len() as f64
        };
        let mut model = Model::random(7);
        let gradient = model.gradient(TEXT, &starts);
        let (mut random, step) = (Random(3), 1.0 / 1024.0);
        for tensor in 0..TENSORS.len() {
            // The largest, which must not be missed, and some at random.
            let slopes = gradient.tensors()[tensor].clone();
            let largest =
                (0..slopes.len()).max_by(|&a, &b| slopes[a].abs().total_cmp(&slopes[b].abs()));
            let others = (0..8).map(|_| random.below(slopes.len()));
            for at in largest.into_iter().chain(others) {
                let mut at_offset = |offset: f32| {
                    model.tensors_mut()[tensor][at] += offset;
                    let loss = loss(&model);
                    model.tensors_mut()[tensor][at] -= offset;
                    loss
                };
                let [below, here, above] = [-step, 0.0, step].map(&mut at_offset);
                let (left, right) =
                    ((here - below) / f64::from(step), (above - here) / f64::from(step));
                let (name, found) = (TENSORS[tensor].0, f64::from(slopes[at]));
                // Where a unit turns on or off the slope has a step, and lies between the two sides.
                let error = 1e-4 + 0.01 * found.abs();
                let between = left.min(right) - error..left.max(right) + error;
                assert!(between.contains(&found), "{name}[{at}]: {found}, slopes {left}, {right}");
            }
            assert!(slopes.iter().any(|slope| slope.abs() > 1e-3), "a gradient of nothing");
        }
    }

    #[test]
    fn exp_and_ln_are_those_of_the_library_to_its_precision() {
        for n in 0..4000 {
            let x = -0.02 * n as f32;
            assert!((exp(x) - x.exp()).abs() <= 4.0 * f32::EPSILON * x.exp(), "exp {x}");
            let x = f64::from(n).exp2().recip().max(1e-300) * (1.0 + f64::from(n) / 4000.0);
            assert!((ln(x) - x.ln()).abs() <= 8.0 * f64::EPSILON * x.ln().abs().max(1.0), "ln {x}");
        }
        assert_eq!((exp(0.0), exp(-200.0), ln(1.0)), (1.0, 0.0, 0.0));
    }

    /// Training is the same on every machine: these bits were computed once.
    #[test]
    fn the_first_gradient_has_the_bits_it_always_had() {
        let gradient = Model::random(1).gradient(TEXT, &[0, 5, 9, 20]);
        let bits = gradient
            .tensors()
            .into_iter()
            .flatten()
            .fold(0_u64, |sum, value| sum.rotate_left(5) ^ u64::from(value.to_bits()));
        assert_eq!(bits, 0xbbb4_ecb1_ce8a_87a7);
    }
}
