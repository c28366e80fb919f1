//! Error feedback: what a miner adds to what it kept back, before it chooses what to send.
//!
//! Source: Templar 2.1.28, `prepare_gradient_dict`: `e = decay * e + (base - trained)`.

use rayon::prelude::*;

/// Elements whose squares are summed in one go.
const RUN: usize = 1 << 14;

/// What was seen on the way: sums of squares, and the first element that is no number.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// Of `base - trained`.
    pub gradient_squares: f64,
    /// Of the new `e`.
    pub error_squares: f64,
    /// The first element whose `e` is NaN or infinite.
    pub non_finite: Option<u64>,
}

impl Seen {
    /// Adds what was seen of the `elements` that follow `before` others.
    pub fn add(&mut self, next: Self, before: u64) {
        self.gradient_squares += next.gradient_squares;
        self.error_squares += next.error_squares;
        self.non_finite = self.non_finite.or(next.non_finite.map(|at| at + before));
    }
}

/// `error = decay * error + (base - trained)`, element by element in f32, each operation rounded.
///
/// The sums are of f64 in a fixed order: they do not depend on the number of threads.
///
/// # Panics
///
/// If the slices differ in length.
pub fn accumulate(base: &[f32], trained: &[f32], decay: f32, error: &mut [f32]) -> Seen {
    assert!(base.len() == error.len() && trained.len() == error.len(), "one element of each");
    let runs: Vec<Seen> = error
        .par_chunks_mut(RUN)
        .zip(base.par_chunks(RUN).zip(trained.par_chunks(RUN)))
        .map(|(error, (base, trained))| accumulate_run(base, trained, decay, error))
        .collect();
    let mut seen = Seen::default();
    for (at, run) in runs.into_iter().enumerate() {
        seen.add(run, (at * RUN) as u64);
    }
    seen
}

fn accumulate_run(base: &[f32], trained: &[f32], decay: f32, error: &mut [f32]) -> Seen {
    // Eight lanes each: one sum would wait for its own last addition.
    let (mut gradients, mut errors) = ([0.0f64; 8], [0.0f64; 8]);
    let mut finite = true;
    for ((error, base), trained) in error.chunks_mut(8).zip(base.chunks(8)).zip(trained.chunks(8)) {
        for (lane, ((error, base), trained)) in error.iter_mut().zip(base).zip(trained).enumerate()
        {
            let gradient = base - trained;
            *error = decay * *error + gradient;
            gradients[lane] += f64::from(gradient) * f64::from(gradient);
            errors[lane] += f64::from(*error) * f64::from(*error);
            finite &= error.is_finite();
        }
    }
    let total = |lanes: [f64; 8]| lanes.iter().fold(0.0, |sum, lane| sum + lane);
    let at = || error.iter().position(|e| !e.is_finite()).map(|at| at as u64);
    Seen {
        gradient_squares: total(gradients),
        error_squares: total(errors),
        non_finite: if finite { None } else { at() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_roundings_are_kept() {
        // Fused, the product would not be rounded before the addition.
        let (base, trained, decay) = ([1.0f32 + f32::EPSILON], [1.0f32], 0.95f32);
        let mut error = [0.1f32];
        accumulate(&base, &trained, decay, &mut error);
        assert_eq!(error[0], 0.95f32 * 0.1 + f32::EPSILON);
        let mut found = 0;
        for at in 0..1000 {
            let (old, base) = (at as f32 * 0.37, at as f32 * 1e-3);
            let mut error = [old];
            accumulate(&[base], &[0.0], decay, &mut error);
            assert_eq!(error[0].to_bits(), (decay * old + base).to_bits());
            found += u32::from(error[0] != decay.mul_add(old, base));
        }
        assert!(found > 0, "some of these differ when fused");
    }

    #[test]
    fn the_first_element_that_is_no_number_is_named() {
        let n = 3 * RUN + 5;
        let (base, mut trained) = (vec![0.0; n], vec![0.0; n]);
        trained[2 * RUN + 7] = f32::INFINITY;
        trained[3 * RUN] = f32::NAN;
        let seen = accumulate(&base, &trained, 0.5, &mut vec![0.0; n]);
        assert_eq!(seen.non_finite, Some(2 * RUN as u64 + 7));
    }

    #[test]
    fn sums_of_squares() {
        let seen = accumulate(&[3.0, 0.0], &[0.0, 4.0], 1.0, &mut [1.0, 0.0]);
        assert_eq!((seen.gradient_squares, seen.error_squares), (25.0, 32.0));
    }
}
