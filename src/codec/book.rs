//! A tensor's book: the lookup value of each code, and the shift that is added to it. See
//! `schema/delta.md`.

use crate::types::rule::Dialect;

/// Native: |lookup + shift| must stay below this, so that sums and norms cannot overflow.
pub const MAGNITUDE: f32 = (1u64 << 60) as f32;

/// Lookup values and shift, f32 each.
#[derive(Clone, Debug)]
pub struct Book {
    /// One value a code.
    pub lookup: Vec<f32>,
    /// Added to each.
    pub shift: f32,
}

/// A book that a rule refuses.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum BookError {
    #[error("the lookup of code {code} is {value}")]
    Lookup { code: usize, value: f32 },
    #[error("the shift is {value}")]
    Shift { value: f32 },
    #[error("the value of code {code} is {value}, not below 2^60 in magnitude")]
    Magnitude { code: usize, value: f32 },
}

impl Book {
    /// Reads logical bytes: `bins` lookup values, then the shift, little-endian.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut values: Vec<f32> =
            bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
        let shift = values.pop().unwrap_or(0.0);
        Self { lookup: values, shift }
    }

    /// The logical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.lookup.iter().chain([&self.shift]).flat_map(|value| value.to_le_bytes()).collect()
    }

    /// Whether `dialect` takes this book; every entry counts, used or not.
    ///
    /// # Errors
    ///
    /// [`BookError`] names the first entry that is not finite, then (native) the first that is too
    /// large.
    pub fn check(&self, dialect: Dialect) -> Result<(), BookError> {
        if !self.shift.is_finite() {
            return Err(BookError::Shift { value: self.shift });
        }
        let not_finite = self.lookup.iter().position(|value| !value.is_finite());
        if let Some(code) = not_finite {
            return Err(BookError::Lookup { code, value: self.lookup[code] });
        }
        if dialect == Dialect::Native {
            for (code, lookup) in self.lookup.iter().enumerate() {
                let value = lookup + self.shift;
                if value.abs() >= MAGNITUDE {
                    return Err(BookError::Magnitude { code, value });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unused_entry_that_is_not_finite_is_refused() {
        let book = |last: f32, shift| Book { lookup: vec![0.0, 1.0, 2.0, last], shift };
        for dialect in [Dialect::Templar, Dialect::Native] {
            assert_eq!(book(3.0, 0.5).check(dialect), Ok(()));
            assert!(matches!(
                book(f32::NAN, 0.5).check(dialect),
                Err(BookError::Lookup { code: 3, .. })
            ));
            assert!(matches!(
                book(3.0, f32::INFINITY).check(dialect),
                Err(BookError::Shift { .. })
            ));
        }
    }

    #[test]
    fn two_to_the_sixtieth_is_refused_by_the_native_rule_alone() {
        let book = |value| Book { lookup: vec![0.0, value], shift: 0.0 };
        let below = f32::from_bits(MAGNITUDE.to_bits() - 1);
        assert_eq!(book(below).check(Dialect::Native), Ok(()));
        assert!(matches!(
            book(-MAGNITUDE).check(Dialect::Native),
            Err(BookError::Magnitude { code: 1, .. })
        ));
        assert_eq!(book(-MAGNITUDE).check(Dialect::Templar), Ok(()));
        // Finite entries whose sum is not: too large as well.
        let overflow = Book { lookup: vec![f32::MAX], shift: f32::MAX };
        assert!(matches!(overflow.check(Dialect::Native), Err(BookError::Magnitude { .. })));
    }

    #[test]
    fn a_book_reads_back() {
        let book = Book { lookup: vec![1.0, -0.0], shift: f32::MIN_POSITIVE };
        assert_eq!(Book::from_bytes(&book.to_bytes()).to_bytes(), book.to_bytes());
    }
}
