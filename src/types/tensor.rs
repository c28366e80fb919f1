//! What a tensor is called, what its elements are, and its shape.

use std::fmt;

use serde::{Deserialize, Serialize};
use unicode_normalization::is_nfc;

/// Element type, spelled as in safetensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)] // The spelling is the meaning.
pub enum Dtype {
    #[serde(rename = "BOOL")]
    Bool,
    #[serde(rename = "U8")]
    U8,
    #[serde(rename = "I8")]
    I8,
    #[serde(rename = "F8_E4M3")]
    F8E4m3,
    #[serde(rename = "F8_E5M2")]
    F8E5m2,
    #[serde(rename = "U16")]
    U16,
    #[serde(rename = "I16")]
    I16,
    #[serde(rename = "F16")]
    F16,
    #[serde(rename = "BF16")]
    Bf16,
    #[serde(rename = "U32")]
    U32,
    #[serde(rename = "I32")]
    I32,
    #[serde(rename = "F32")]
    F32,
    #[serde(rename = "U64")]
    U64,
    #[serde(rename = "I64")]
    I64,
    #[serde(rename = "F64")]
    F64,
}

impl Dtype {
    /// Every dtype with its safetensors spelling.
    pub const ALL: [(Self, &'static str); 15] = [
        (Self::Bool, "BOOL"),
        (Self::U8, "U8"),
        (Self::I8, "I8"),
        (Self::F8E4m3, "F8_E4M3"),
        (Self::F8E5m2, "F8_E5M2"),
        (Self::U16, "U16"),
        (Self::I16, "I16"),
        (Self::F16, "F16"),
        (Self::Bf16, "BF16"),
        (Self::U32, "U32"),
        (Self::I32, "I32"),
        (Self::F32, "F32"),
        (Self::U64, "U64"),
        (Self::I64, "I64"),
        (Self::F64, "F64"),
    ];

    /// The safetensors spelling, such as `BF16`.
    pub fn name(self) -> &'static str {
        match Self::ALL.iter().find(|(dtype, _)| *dtype == self) {
            Some((_, name)) => name,
            None => unreachable!("ALL lists every dtype"),
        }
    }

    /// The dtype spelled `name` in safetensors.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, n)| *n == name).map(|(dtype, _)| *dtype)
    }

    /// Bytes of one element.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Bool | Self::U8 | Self::I8 | Self::F8E4m3 | Self::F8E5m2 => 1,
            Self::U16 | Self::I16 | Self::F16 | Self::Bf16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Whether the state holds such a tensor as f32: f32 itself, and what widens to it exactly.
    pub const fn widens_to_f32(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Longest tensor name in bytes.
pub const NAME_BYTES_MAX: usize = 512;

/// Largest rank of a tensor, whatever its use.
pub const RANK_MAX: usize = 8;

/// A name or a shape that the ledger does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// Names are 1 to 512 bytes.
    #[error("a tensor name is 1 to {NAME_BYTES_MAX} bytes, not {bytes}")]
    NameLength {
        /// Its length.
        bytes: usize,
    },
    /// Control characters would let a name write over a terminal.
    #[error("the tensor name {name:?} holds a control character")]
    NameControl {
        /// The name.
        name: String,
    },
    /// Two spellings of one name must not be two tensors.
    #[error("the tensor name {name:?} is not in Unicode normalization form C")]
    NameForm {
        /// The name.
        name: String,
    },
    /// Rank above [`RANK_MAX`].
    #[error("tensor {name:?} has {rank} dimensions; at most {RANK_MAX} are taken")]
    Rank {
        /// The tensor.
        name: String,
        /// Its rank.
        rank: usize,
    },
    /// The bytes do not fit in 2^53 (the largest integer of a record).
    #[error("tensor {name:?} of shape {shape:?} is larger than 2^53 bytes")]
    Size {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<u64>,
    },
}

/// Whether `name` may name a tensor: 1 to 512 bytes, NFC, no control characters.
///
/// # Errors
///
/// The first rule that it breaks.
pub fn check_name(name: &str) -> Result<(), TensorError> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(TensorError::NameLength { bytes: name.len() });
    }
    if name.chars().any(char::is_control) {
        return Err(TensorError::NameControl { name: name.to_owned() });
    }
    if !is_nfc(name) {
        return Err(TensorError::NameForm { name: name.to_owned() });
    }
    Ok(())
}

/// Name, dtype and shape of a tensor; its sizes are known to fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
}

impl TensorSpec {
    /// A checked spec.
    ///
    /// # Errors
    ///
    /// [`TensorError`] if the name is not taken or the size does not fit in 2^53 bytes.
    pub fn new(name: &str, dtype: Dtype, shape: &[u64]) -> Result<Self, TensorError> {
        check_name(name)?;
        if shape.len() > RANK_MAX {
            return Err(TensorError::Rank { name: name.to_owned(), rank: shape.len() });
        }
        // A zero dimension must not hide others whose product overflows.
        shape
            .iter()
            .try_fold(dtype.bytes(), |bytes, &n| bytes.checked_mul(n.max(1)))
            .filter(|&bytes| bytes < 1 << 53)
            .ok_or_else(|| TensorError::Size { name: name.to_owned(), shape: shape.to_vec() })?;
        Ok(Self { name: name.to_owned(), dtype, shape: shape.to_vec() })
    }

    /// The tensor's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its dimensions, outermost first.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Length of its logical bytes.
    pub fn bytes(&self) -> u64 {
        self.elements() * self.dtype.bytes()
    }

    /// The same tensor with another element type.
    ///
    /// # Errors
    ///
    /// [`TensorError::Size`] if it does not fit then.
    pub fn with_dtype(&self, dtype: Dtype) -> Result<Self, TensorError> {
        Self::new(&self.name, dtype, &self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_two_readers_could_take_for_one_are_refused() {
        assert!(TensorSpec::new("layers.0.wq", Dtype::F32, &[2, 3]).is_ok());
        assert!(matches!(check_name(""), Err(TensorError::NameLength { .. })));
        assert!(matches!(check_name("a\u{1b}[2J"), Err(TensorError::NameControl { .. })));
        assert!(matches!(check_name("e\u{301}"), Err(TensorError::NameForm { .. })));
    }

    #[test]
    fn sizes_that_overflow_are_refused_even_behind_a_zero() {
        for shape in [&[1 << 63][..], &[1 << 32, 1 << 32], &[0, u64::MAX, 2], &[1 << 51]] {
            assert!(matches!(
                TensorSpec::new("x", Dtype::F32, shape),
                Err(TensorError::Size { .. })
            ));
        }
        assert_eq!(TensorSpec::new("x", Dtype::F32, &[0, 5]).unwrap().bytes(), 0);
        assert_eq!(TensorSpec::new("x", Dtype::F32, &[]).unwrap().bytes(), 4);
    }
}
