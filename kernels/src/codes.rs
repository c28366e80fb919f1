//! Codes and indices in their packed form, a block at a time.
//!
//! Codes: `k` of `bits` bits (2, 4 or 8) a block, least significant bits first, padded with zeros
//! to a byte a block. Indices: 12 bits, two in three bytes, `b0 = a & 255`, `b1 = a >> 8 | (b & 15)
//! << 4`, `b2 = b >> 4`.
//!
//! The caller has checked lengths against its shapes: every function here panics on a `bits` other
//! than 2, 4 and 8, on `k` 0, and on lengths that are not whole blocks. No value of any byte makes
//! one panic.

use crate::KernelError;

/// Bytes of the codes of one block.
#[inline]
#[must_use]
pub const fn bytes_per_block(k: usize, bits: u32) -> usize {
    (k * bits as usize).div_ceil(8)
}

/// Code `entry` of one block.
///
/// # Panics
///
/// If `code` is too short.
#[inline]
#[must_use]
pub fn code_at(code: &[u8], entry: usize, bits: u32) -> u8 {
    let at = entry * bits as usize;
    let mask = (u16::MAX >> (16 - bits)) as u8;
    code[at / 8] >> (at % 8) & mask
}

/// Adds to `counts` how often each code occurs in the blocks of `code`. Padding is not counted.
///
/// # Panics
///
/// See the module; and if `counts` has not one number a code.
pub fn count(code: &[u8], k: usize, bits: u32, counts: &mut [u64]) {
    let block_bytes = whole_blocks(code.len(), k, bits);
    assert_eq!(counts.len(), 1 << bits, "one number a code");
    let per_byte = (8 / bits) as usize;
    let left = k % per_byte;
    let mut full = [0u64; 256];
    if left == 0 {
        count_bytes(code, &mut full);
    } else {
        let mut last = [0u64; 256];
        for block in code.chunks_exact(block_bytes) {
            block[..block_bytes - 1].iter().for_each(|&byte| full[usize::from(byte)] += 1);
            last[usize::from(block[block_bytes - 1])] += 1;
        }
        spread(&last, left, bits, counts);
    }
    spread(&full, per_byte, bits, counts);
}

/// How often each byte occurs.
fn count_bytes(bytes: &[u8], counts: &mut [u64; 256]) {
    // Four tables: equal neighbours would wait for each other's store.
    let mut tables = [[0u64; 256]; 4];
    let (fours, rest) = bytes.as_chunks::<4>();
    for four in fours {
        for (table, &byte) in tables.iter_mut().zip(four) {
            table[usize::from(byte)] += 1;
        }
    }
    rest.iter().for_each(|&byte| tables[0][usize::from(byte)] += 1);
    for table in &tables {
        counts.iter_mut().zip(table).for_each(|(count, more)| *count += more);
    }
}

/// From how often each byte occurs to how often each code does, the lowest `codes` of a byte.
fn spread(bytes: &[u64; 256], codes: usize, bits: u32, counts: &mut [u64]) {
    for (byte, &times) in (0..=255u8).zip(bytes) {
        for entry in 0..codes {
            counts[usize::from(code_at(&[byte], entry, bits))] += times;
        }
    }
}

/// Appends to `out` what each code of `code` stands for by `table`, in file order.
///
/// # Panics
///
/// See the module; and if `table` has not one value a code.
pub fn values(code: &[u8], k: usize, bits: u32, table: &[f32], out: &mut Vec<f32>) {
    let block_bytes = whole_blocks(code.len(), k, bits);
    assert_eq!(table.len(), 1 << bits, "one value a code");
    let blocks = code.len() / block_bytes;
    out.reserve(blocks * k);
    match bits {
        2 => expand(code, block_bytes, k, &by_byte::<4>(table, bits), out),
        4 => expand(code, block_bytes, k, &by_byte::<2>(table, bits), out),
        _ => expand(code, block_bytes, k, &by_byte::<1>(table, bits), out),
    }
}

/// What the `N` codes of each byte stand for.
fn by_byte<const N: usize>(table: &[f32], bits: u32) -> [[f32; N]; 256] {
    std::array::from_fn(|byte| {
        std::array::from_fn(|entry| table[usize::from(code_at(&[byte as u8], entry, bits))])
    })
}

fn expand<const N: usize>(
    code: &[u8],
    block_bytes: usize,
    k: usize,
    table: &[[f32; N]; 256],
    out: &mut Vec<f32>,
) {
    let left = k % N;
    if left == 0 {
        out.extend(code.iter().flat_map(|&byte| table[usize::from(byte)]));
        return;
    }
    for block in code.chunks_exact(block_bytes) {
        let (full, last) = block.split_at(block_bytes - 1);
        out.extend(full.iter().flat_map(|&byte| table[usize::from(byte)]));
        out.extend_from_slice(&table[usize::from(last[0])][..left]);
    }
}

/// Appends to `out` the packed form of `codes`, one a byte, whole blocks of `k`.
///
/// # Errors
///
/// [`KernelError::CodeOutOfRange`] for the first code that does not fit `bits`. `out` is as it was
/// then.
///
/// # Panics
///
/// See the module.
pub fn pack_codes(codes: &[u8], k: usize, bits: u32, out: &mut Vec<u8>) -> Result<(), KernelError> {
    assert!(matches!(bits, 2 | 4 | 8), "a code has 2, 4 or 8 bits");
    assert!(k > 0 && codes.len().is_multiple_of(k), "whole blocks of k codes");
    // First all at once: to look for the place of one that does not fit takes longer.
    let all = codes.iter().fold(0, |all, code| all | code);
    if bits < 8
        && all >> bits != 0
        && let Some(position) = codes.iter().position(|&code| code >> bits != 0)
    {
        return Err(KernelError::CodeOutOfRange {
            position,
            code: codes[position],
            code_bits: bits,
        });
    }
    out.reserve(codes.len() / k * bytes_per_block(k, bits));
    match bits {
        2 => pack::<4, 2>(codes, k, out),
        4 => pack::<2, 4>(codes, k, out),
        _ => out.extend_from_slice(codes),
    }
    Ok(())
}

/// `N` codes of `BITS` bits a byte, each block from a new byte on.
fn pack<const N: usize, const BITS: u32>(codes: &[u8], k: usize, out: &mut Vec<u8>) {
    let byte = |codes: &[u8]| codes.iter().rev().fold(0, |byte: u8, code| byte << BITS | code);
    if k.is_multiple_of(N) {
        out.extend(codes.as_chunks::<N>().0.iter().map(|codes| byte(codes)));
        return;
    }
    for block in codes.chunks_exact(k) {
        out.extend(block.chunks(N).map(byte));
    }
}

/// Appends to `out` the codes of `code`, one a byte. The inverse of [`pack_codes`].
///
/// # Panics
///
/// See the module.
pub fn unpack_codes(code: &[u8], k: usize, bits: u32, out: &mut Vec<u8>) {
    let block_bytes = whole_blocks(code.len(), k, bits);
    out.reserve(code.len() / block_bytes * k);
    for block in code.chunks_exact(block_bytes) {
        out.extend((0..k).map(|entry| code_at(block, entry, bits)));
    }
}

/// That the bits after the last code of every block are zero.
///
/// # Errors
///
/// [`KernelError::Padding`] for the first block where they are not.
///
/// # Panics
///
/// See the module.
pub fn check_padding(code: &[u8], k: usize, bits: u32) -> Result<(), KernelError> {
    let block_bytes = whole_blocks(code.len(), k, bits);
    let used = (k * bits as usize) % 8;
    if used == 0 {
        return Ok(());
    }
    for (block, codes) in code.chunks_exact(block_bytes).enumerate() {
        let byte = codes[block_bytes - 1];
        if byte >> used != 0 {
            return Err(KernelError::Padding { block: block as u64, byte });
        }
    }
    Ok(())
}

/// The 12-bit numbers of `packed`, in order. Bytes after the last whole three are ignored.
#[inline]
pub fn indices(packed: &[u8]) -> impl Iterator<Item = u16> + Clone + '_ {
    packed.as_chunks::<3>().0.iter().flat_map(|&three| unpack_pair(three))
}

/// Two 12-bit numbers from three bytes.
#[inline(always)]
pub(crate) fn unpack_pair([b0, b1, b2]: [u8; 3]) -> [u16; 2] {
    let (b0, b1, b2) = (u16::from(b0), u16::from(b1), u16::from(b2));
    [b0 | (b1 & 15) << 8, b1 >> 4 | b2 << 4]
}

/// Appends to `out` the packed form of `index`, an even number of indices.
///
/// # Errors
///
/// [`KernelError::IndexTooWide`] for the first index above 4095. `out` is as it was then.
///
/// # Panics
///
/// If the number of indices is odd.
pub fn pack_index(index: &[u16], out: &mut Vec<u8>) -> Result<(), KernelError> {
    let (pairs, odd) = index.as_chunks::<2>();
    assert!(odd.is_empty(), "two indices in three bytes");
    if let Some(position) = index.iter().position(|&index| index > 0xfff) {
        return Err(KernelError::IndexTooWide { position, index: index[position] });
    }
    out.reserve(pairs.len() * 3);
    for &[a, b] in pairs {
        out.extend([a as u8, (a >> 8 | (b & 15) << 4) as u8, (b >> 4) as u8]);
    }
    Ok(())
}

/// Appends to `out` the indices of `packed`. The inverse of [`pack_index`].
///
/// # Panics
///
/// If `packed` is not whole threes of bytes.
pub fn unpack_index(packed: &[u8], out: &mut Vec<u16>) {
    assert!(packed.len().is_multiple_of(3), "two indices in three bytes");
    out.reserve(packed.len() / 3 * 2);
    out.extend(indices(packed));
}

/// Bytes of one block, after the checks that the module states.
fn whole_blocks(code_bytes: usize, k: usize, bits: u32) -> usize {
    assert!(matches!(bits, 2 | 4 | 8), "a code has 2, 4 or 8 bits");
    assert!(k > 0, "a block has codes");
    let block_bytes = bytes_per_block(k, bits);
    assert!(code_bytes.is_multiple_of(block_bytes), "whole blocks of codes");
    block_bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bits, k, and whole blocks of codes that fit.
    fn blocks() -> impl Strategy<Value = (u32, usize, Vec<u8>)> {
        (prop::sample::select(vec![2u32, 4, 8]), 1usize..70, 0usize..5).prop_flat_map(
            |(bits, k, n)| {
                let top = ((1u32 << bits) - 1) as u8;
                (Just(bits), Just(k), prop::collection::vec(0..=top, n * k))
            },
        )
    }

    proptest! {
        #[test]
        fn codes_come_back_and_their_padding_is_zero((bits, k, codes) in blocks()) {
            let mut packed = Vec::new();
            pack_codes(&codes, k, bits, &mut packed).unwrap();
            prop_assert_eq!(packed.len(), codes.len() / k * bytes_per_block(k, bits));
            prop_assert_eq!(check_padding(&packed, k, bits), Ok(()));
            let mut back = Vec::new();
            unpack_codes(&packed, k, bits, &mut back);
            prop_assert_eq!(back, codes);
        }

        #[test]
        fn counts_and_values_are_those_of_the_codes((bits, k, codes) in blocks(), noise: u8) {
            let mut packed = Vec::new();
            pack_codes(&codes, k, bits, &mut packed).unwrap();
            let used = k * bits as usize % 8;
            if used != 0 {
                // Neither reads the padding.
                let block = bytes_per_block(k, bits);
                packed.chunks_mut(block).for_each(|codes| codes[block - 1] |= noise << used);
            }
            let mut counts = vec![0; 1 << bits];
            count(&packed, k, bits, &mut counts);
            let table: Vec<f32> = (0..1 << bits).map(|code| code as f32 * 1.5 - 7.0).collect();
            let mut decoded = Vec::new();
            values(&packed, k, bits, &table, &mut decoded);
            let mut by_hand = vec![0; 1 << bits];
            codes.iter().for_each(|&code| by_hand[usize::from(code)] += 1);
            prop_assert_eq!(counts, by_hand);
            prop_assert_eq!(decoded, codes.iter().map(|&code| table[usize::from(code)]).collect::<Vec<_>>());
        }

        #[test]
        fn indices_come_back(mut index in prop::collection::vec(0u16..4096, 0..100)) {
            index.truncate(index.len() & !1);
            let (mut packed, mut back) = (Vec::new(), Vec::new());
            pack_index(&index, &mut packed).unwrap();
            prop_assert_eq!(packed.len(), index.len() / 2 * 3);
            unpack_index(&packed, &mut back);
            prop_assert_eq!(back, index);
        }
    }

    #[test]
    fn the_packed_layout_is_the_documented_one() {
        let mut out = Vec::new();
        pack_index(&[0xabc, 0x123], &mut out).unwrap();
        assert_eq!(out, [0xbc, 0x3a, 0x12]);
        out.clear();
        pack_codes(&[1, 2, 3, 0, 1, 1], 6, 2, &mut out).unwrap();
        assert_eq!(out, [0b00_11_10_01, 0b01_01]);
        out.clear();
        pack_codes(&[1, 2, 15, 4, 5, 6], 3, 4, &mut out).unwrap();
        assert_eq!(out, [0x21, 0x0f, 0x54, 0x06]);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_position() {
        let mut out = vec![9];
        let refused = pack_codes(&[3, 3, 4, 5], 2, 2, &mut out);
        assert_eq!(
            refused,
            Err(KernelError::CodeOutOfRange { position: 2, code: 4, code_bits: 2 })
        );
        let refused = pack_index(&[0, 4096], &mut out);
        assert_eq!(refused, Err(KernelError::IndexTooWide { position: 1, index: 4096 }));
        assert_eq!(out, [9]);
    }

    #[test]
    fn padding_other_than_zero_is_refused() {
        assert_eq!(
            check_padding(&[0x0f, 0x1f], 2, 2),
            Err(KernelError::Padding { block: 1, byte: 0x1f })
        );
        assert_eq!(check_padding(&[0xff, 0xff], 4, 2), Ok(()));
    }
}
