//! Training: Adam on a miner's own part of the text.

use rayon::prelude::*;

use super::model::{CONTEXT, Model, Random};

/// Windows whose gradients make one step.
const BATCH: usize = 32;

/// Adam's learning rate and how much of the old means is kept (Kingma and Ba 2014).
const RATE: f32 = 0.003;
const KEEP_MEAN: f32 = 0.9;
const KEEP_SQUARE: f32 = 0.99;

/// Every how many bytes the loss looks at one.
const LOSS_STRIDE: usize = 16;

/// What a miner's optimizer keeps from round to round.
pub struct Trainer {
    random: Random,
    mean: Model,
    square: Model,
    /// `KEEP_MEAN` and `KEEP_SQUARE` to the power of the steps taken.
    kept: (f32, f32),
}

impl Trainer {
    pub fn new(seed: u64) -> Self {
        let (mean, square) = (Model::zeros(), Model::zeros());
        Self { random: Random(seed), mean, square, kept: (1.0, 1.0) }
    }

    /// Takes `steps` steps from `base` on windows of `text` drawn at random.
    pub fn train(&mut self, base: &Model, text: &[u8], steps: u32) -> Model {
        let mut model = base.clone();
        for _ in 0..steps {
            let starts = [(); BATCH].map(|()| self.random.below(text.len() - CONTEXT));
            let gradient = model.gradient(text, &starts);
            self.step(&mut model, &gradient);
        }
        model
    }

    fn step(&mut self, model: &mut Model, gradient: &Model) {
        self.kept.0 *= KEEP_MEAN;
        self.kept.1 *= KEEP_SQUARE;
        let (mean_seen, square_seen) = (1.0 - self.kept.0, 1.0 - self.kept.1);
        let (means, squares) = (self.mean.tensors_mut(), self.square.tensors_mut());
        let state = means.into_iter().zip(squares);
        let tensors = model.tensors_mut().into_iter().zip(gradient.tensors()).zip(state);
        for ((values, slopes), (means, squares)) in tensors {
            for at in 0..values.len() {
                let slope = slopes[at];
                means[at] += (1.0 - KEEP_MEAN) * (slope - means[at]);
                squares[at] += (1.0 - KEEP_SQUARE) * (slope * slope - squares[at]);
                let (mean, square) = (means[at] / mean_seen, squares[at] / square_seen);
                values[at] -= RATE * mean / (square.sqrt() + 1e-8);
            }
        }
    }
}

/// Mean surprise a byte over all of `text`, in nats, looked at in every 16th place. A model that knows
/// nothing has ln 128, some 4.85.
pub fn loss(model: &Model, text: &[u8]) -> f64 {
    let windows: Vec<&[u8]> = text.windows(CONTEXT + 1).step_by(LOSS_STRIDE).collect();
    let surprises: Vec<f64> = windows.par_iter().map(|window| model.surprise(window)).collect();
    surprises.iter().sum::<f64>() / surprises.len() as f64
}

#[cfg(test)]
mod tests {
    use super::{super::model::TENSORS, *};

    #[test]
    fn training_learns_a_short_text_by_heart() {
        let text = b"to be or not to be, that is the question; ".repeat(3);
        let before = Model::random(1);
        let after = Trainer::new(2).train(&before, &text, 30);
        let (before, after) = (loss(&before, &text), loss(&after, &text));
        assert!((before - 128_f64.ln()).abs() < 0.1, "{before}");
        assert!(after < 0.5, "{before} -> {after}");
    }

    #[test]
    fn every_tensor_takes_part() {
        let before = Model::random(1);
        let after = Trainer::new(2).train(&before, b"the work and the license", 1);
        for ((name, _), (a, b)) in
            TENSORS.iter().zip(before.tensors().into_iter().zip(after.tensors()))
        {
            assert_ne!(a, b, "{name}");
        }
    }
}
