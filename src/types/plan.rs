//! The plan: the scalars of a round. With them the fold is element-wise. See `schema/plan.md`.

/// Bytes of a row before its counts: norm f64, factor f32, flags u32.
const HEAD_BYTES: usize = 16;
const _: () = assert!(HEAD_BYTES == size_of::<f64>() + size_of::<f32>() + size_of::<u32>());

/// The canonical NaNs of stored scalars.
pub const NAN_F32: u32 = 0x7fc0_0000;
/// See [`NAN_F32`].
pub const NAN_F64: u64 = 0x7ff8_0000_0000_0000;

/// One miner's scalars in one tensor.
#[derive(Clone, Debug)]
pub struct PlanRow {
    /// L2 norm of the miner's values in this tensor.
    pub norm: f64,
    /// What the values are multiplied with: 0 to 1, or the canonical NaN.
    pub factor: f32,
    /// How often each code occurs.
    pub counts: Vec<u64>,
}

/// The scalars of a round: rows tensor-major in manifest order, miners in ledger order.
///
/// Tensors that the rule does not take have no rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Codes of a book: the length of every row's counts.
    pub bins: usize,
    /// Miners of the round.
    pub miners: usize,
    /// `tensors x miners` rows.
    pub rows: Vec<PlanRow>,
}

impl PartialEq for PlanRow {
    /// Bitwise: a NaN equals itself, and -0 is not 0.
    fn eq(&self, other: &Self) -> bool {
        self.norm.to_bits() == other.norm.to_bits()
            && self.factor.to_bits() == other.factor.to_bits()
            && self.counts == other.counts
    }
}

/// Bytes that are not a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum PlanError {
    #[error("a plan of {rows} rows and {bins} bins has {expected} bytes, not {found}")]
    Length { rows: usize, bins: usize, expected: usize, found: usize },
    #[error("row {row}: the flags are {found:#x}, not 0")]
    Flags { row: usize, found: u32 },
    #[error("row {row}: the factor {found:#010x} is neither in 0..=1 nor the canonical NaN")]
    Factor { row: usize, found: u32 },
    #[error("row {row}: the norm {found:#018x} is neither 0 or more nor the canonical NaN")]
    Norm { row: usize, found: u64 },
}

impl Plan {
    /// Bytes of one row.
    pub const fn row_bytes(bins: usize) -> usize {
        HEAD_BYTES + 8 * bins
    }

    /// The rows of tensor number `tensor` (of those the rule takes), miners in ledger order.
    pub fn tensor(&self, tensor: usize) -> &[PlanRow] {
        &self.rows[tensor * self.miners..][..self.miners]
    }

    /// The logical bytes, little-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.rows.len() * Self::row_bytes(self.bins));
        for row in &self.rows {
            let norm = if row.norm.is_nan() { NAN_F64 } else { row.norm.to_bits() };
            let factor = if row.factor.is_nan() { NAN_F32 } else { row.factor.to_bits() };
            bytes.extend_from_slice(&norm.to_le_bytes());
            bytes.extend_from_slice(&factor.to_le_bytes());
            bytes.extend_from_slice(&0u32.to_le_bytes());
            for count in &row.counts {
                bytes.extend_from_slice(&count.to_le_bytes());
            }
        }
        bytes
    }

    /// Reads logical bytes of `tensors x miners` rows.
    ///
    /// # Errors
    ///
    /// [`PlanError`]: another length, flags other than 0, a factor outside 0..=1 or a negative norm.
    pub fn from_bytes(
        bytes: &[u8],
        tensors: usize,
        miners: usize,
        bins: usize,
    ) -> Result<Self, PlanError> {
        let rows = tensors * miners;
        let expected = rows * Self::row_bytes(bins);
        if bytes.len() != expected {
            return Err(PlanError::Length { rows, bins, expected, found: bytes.len() });
        }
        let read = |(row, bytes): (usize, &[u8])| {
            let (head, counts) = bytes.split_at(HEAD_BYTES);
            let norm = u64::from_le_bytes(array(&head[..8]));
            let factor = u32::from_le_bytes(array(&head[8..12]));
            let flags = u32::from_le_bytes(array(&head[12..]));
            if flags != 0 {
                return Err(PlanError::Flags { row, found: flags });
            }
            // Bit patterns of 0 to 1 (or to infinity) are contiguous; -0 is outside.
            if factor > 1f32.to_bits() && factor != NAN_F32 {
                return Err(PlanError::Factor { row, found: factor });
            }
            if norm > f64::INFINITY.to_bits() && norm != NAN_F64 {
                return Err(PlanError::Norm { row, found: norm });
            }
            let counts = counts.chunks_exact(8).map(|b| u64::from_le_bytes(array(b))).collect();
            Ok(PlanRow { norm: f64::from_bits(norm), factor: f32::from_bits(factor), counts })
        };
        let rows = bytes
            .chunks_exact(Self::row_bytes(bins))
            .enumerate()
            .map(read)
            .collect::<Result<_, _>>()?;
        Ok(Self { bins, miners, rows })
    }
}

/// A slice of exactly `N` bytes as an array.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the caller cut exactly N bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let row = |norm, factor| PlanRow { norm, factor, counts: vec![1, 2, 3, 4] };
        Plan { bins: 4, miners: 2, rows: vec![row(0.5, 1.0), row(f64::INFINITY, f32::NAN)] }
    }

    #[test]
    fn a_plan_reads_back() {
        let bytes = plan().to_bytes();
        assert_eq!(bytes.len(), 2 * 48);
        assert_eq!(Plan::from_bytes(&bytes, 1, 2, 4).unwrap().to_bytes(), bytes);
    }

    #[test]
    fn a_reader_refuses_other_bytes() {
        let bytes = plan().to_bytes();
        let with = |at: usize, byte: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            Plan::from_bytes(&bytes, 1, 2, 4).unwrap_err()
        };
        assert!(matches!(with(12, 1), PlanError::Flags { row: 0, .. }));
        assert!(matches!(with(11, 0x40), PlanError::Factor { row: 0, .. }));
        assert!(matches!(with(7, 0xbf), PlanError::Norm { row: 0, .. }));
        assert!(matches!(with(48 + 8, 1), PlanError::Factor { row: 1, .. }));
        assert!(matches!(
            Plan::from_bytes(&bytes[1..], 1, 2, 4),
            Err(PlanError::Length { found: 95, .. })
        ));
    }
}
