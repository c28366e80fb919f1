//! SHA-256: of a stream, of a slice, of every piece of a slice.
//!
//! A stream and a single slice are sha2's work. Pieces are independent, so [`hash_pieces`] hashes
//! several at once: sixteen in the lanes of AVX-512, eight in those of AVX2, or two streams of SHA
//! instructions, which alone would wait for each other. Every [`Path`] gives sha2's digests.
//!
//! Source: FIPS 180-4, section 6.2.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod lanes;
mod path;
#[cfg(target_arch = "x86_64")]
mod sha_ni;

use rayon::prelude::*;
use sha2::Digest;

pub use path::Path;

/// A digest.
pub type Digest32 = [u8; 32];

/// A stream being hashed.
#[derive(Clone, Debug, Default)]
pub struct Sha256(sha2::Sha256);

impl Sha256 {
    /// Of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// The digest of all bytes taken.
    #[must_use]
    pub fn finish(self) -> Digest32 {
        self.0.finalize().into()
    }
}

/// The digest of `data`.
#[must_use]
pub fn sha256(data: &[u8]) -> Digest32 {
    sha2::Sha256::digest(data).into()
}

/// Pieces of one task: as many as the widest path hashes at once. Of 64 KiB each they still fit a
/// second cache.
pub const TASK_PIECES: usize = 16;

/// Appends to `out` the digest of every piece of `data`, in order: `piece_bytes` each, the last one
/// maybe shorter. Nothing for no data.
///
/// Parallel over runs of [`TASK_PIECES`] in the current rayon pool, on the best path. What is one run is
/// hashed on this thread.
///
/// # Panics
///
/// If `piece_bytes` is 0.
pub fn hash_pieces(data: &[u8], piece_bytes: usize, out: &mut Vec<Digest32>) {
    hash_pieces_on(Path::best(), data, piece_bytes, out);
}

/// [`hash_pieces`] on a path of the caller's choice.
///
/// # Panics
///
/// If `piece_bytes` is 0, or if this processor cannot run `path`.
pub fn hash_pieces_on(path: Path, data: &[u8], piece_bytes: usize, out: &mut Vec<Digest32>) {
    assert!(piece_bytes > 0, "a piece has bytes");
    assert!(path.is_available(), "this processor cannot run the path {path}");
    let first = out.len();
    out.resize(first + data.len().div_ceil(piece_bytes), [0; 32]);
    let task_bytes = piece_bytes.saturating_mul(TASK_PIECES);
    if data.len() <= task_bytes {
        return hash_task(path, data, piece_bytes, &mut out[first..]);
    }
    out[first..]
        .par_chunks_mut(TASK_PIECES)
        .zip(data.par_chunks(task_bytes))
        .for_each(|(digests, data)| hash_task(path, data, piece_bytes, digests));
}

/// Hashes at most [`TASK_PIECES`] pieces on this thread.
fn hash_task(path: Path, data: &[u8], piece_bytes: usize, out: &mut [Digest32]) {
    let (whole, short) = data.split_at(data.len() - data.len() % piece_bytes);
    let pieces: Vec<&[u8]> = whole.chunks_exact(piece_bytes).collect();
    let (digests, of_short) = out.split_at_mut(pieces.len());
    hash_equal(path, &pieces, digests);
    of_short.iter_mut().for_each(|digest| *digest = sha256(short));
}

/// Hashes slices of one length.
fn hash_equal(path: Path, pieces: &[&[u8]], out: &mut [Digest32]) {
    // Below these numbers the next path is faster than a wide one with most lanes idle.
    match path {
        #[cfg(target_arch = "x86_64")]
        Path::Avx512 if pieces.len() >= 10 => {
            // SAFETY: callers have asked whether the path is available.
            in_batches(pieces, out, |state, lanes| unsafe { avx512::compress(state, lanes) });
        }
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 if pieces.len() >= 6 => {
            // SAFETY: as above.
            in_batches(pieces, out, |state, lanes| unsafe { avx2::compress(state, lanes) });
        }
        #[cfg(target_arch = "x86_64")]
        Path::Avx512 | Path::ShaNi if pieces.len() >= 2 && Path::ShaNi.is_available() => {
            // SAFETY: the guard has asked.
            in_batches(pieces, out, |state, lanes| unsafe { sha_ni::compress(state, lanes) });
        }
        _ => out.iter_mut().zip(pieces).for_each(|(digest, piece)| *digest = sha256(piece)),
    }
}

/// FIPS 180-4, 5.3.3.
#[cfg(target_arch = "x86_64")]
const INITIAL: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// Bytes of a block of SHA-256.
#[cfg(target_arch = "x86_64")]
const BLOCK: usize = 64;

/// Word `i` of the chaining value of each of `N` messages, in `[i]`.
#[cfg(target_arch = "x86_64")]
type State<const N: usize> = [[u32; N]; 8];

/// Hashes slices of one length, `N` at a time. `compress` takes whole blocks of `N` messages.
#[cfg(target_arch = "x86_64")]
fn in_batches<const N: usize>(
    pieces: &[&[u8]],
    out: &mut [Digest32],
    compress: impl Fn(&mut State<N>, [&[u8]; N]),
) {
    for (pieces, out) in pieces.chunks(N).zip(out.chunks_mut(N)) {
        // Lanes to spare hash the first piece again.
        let lanes: [&[u8]; N] = std::array::from_fn(|lane| *pieces.get(lane).unwrap_or(&pieces[0]));
        let mut state = INITIAL.map(|word| [word; N]);
        let whole = lanes[0].len() - lanes[0].len() % BLOCK;
        compress(&mut state, lanes.map(|piece| &piece[..whole]));
        let tails = lanes.map(|piece| Tail::of(piece, whole));
        compress(&mut state, std::array::from_fn(|lane| tails[lane].blocks()));
        for (lane, digest) in out.iter_mut().enumerate() {
            for (bytes, words) in digest.as_chunks_mut::<4>().0.iter_mut().zip(&state) {
                *bytes = words[lane].to_be_bytes();
            }
        }
    }
}

/// A message's last bytes and its padding: one block or two.
#[cfg(target_arch = "x86_64")]
struct Tail {
    bytes: [u8; 2 * BLOCK],
    length: usize,
}

#[cfg(target_arch = "x86_64")]
impl Tail {
    /// Of `message`, whose bytes before `from` lie in whole blocks.
    fn of(message: &[u8], from: usize) -> Self {
        let rest = &message[from..];
        let length = if rest.len() + 9 <= BLOCK { BLOCK } else { 2 * BLOCK };
        let mut bytes = [0; 2 * BLOCK];
        bytes[..rest.len()].copy_from_slice(rest);
        bytes[rest.len()] = 0x80;
        bytes[length - 8..length].copy_from_slice(&(message.len() as u64 * 8).to_be_bytes());
        Self { bytes, length }
    }

    fn blocks(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// FIPS 180-4, 4.2.2.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
static ROUND: [u32; 64] = [
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
];

#[cfg(test)]
mod tests {
    use super::{Path, Sha256, hash_pieces, hash_pieces_on, sha256};

    fn hex(digest: [u8; 32]) -> String {
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// FIPS 180-4, examples.
    #[test]
    fn known_digests() {
        assert_eq!(
            hex(sha256(b"")),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(
            hex(sha256(b"abc")),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_stream_hashes_as_its_whole() {
        let data: Vec<u8> = (0..1000u32).map(|i| (i * i) as u8).collect();
        let mut stream = Sha256::new();
        data.chunks(37).for_each(|chunk| stream.update(chunk));
        assert_eq!(stream.finish(), sha256(&data));
    }

    #[test]
    fn pieces_are_appended_in_order_and_the_last_may_be_short() {
        let data: Vec<u8> = (0..1000u32).map(|i| (i * 7) as u8).collect();
        for length in [0, 1, 63, 64, 65, 128, 1000] {
            let mut digests = vec![[7; 32]];
            hash_pieces(&data[..length], 64, &mut digests);
            assert_eq!(digests[0], [7; 32]);
            assert_eq!(digests.len(), 1 + length.div_ceil(64));
            for (digest, piece) in digests[1..].iter().zip(data[..length].chunks(64)) {
                assert_eq!(*digest, sha256(piece));
            }
        }
    }

    /// Every length about the ends of a block and of the padding, every number of pieces about the
    /// numbers of lanes, every alignment.
    #[test]
    fn every_path_gives_the_digests_of_sha2() {
        let mut bits = 0x9e37_79b9_7f4a_7c15u64;
        let data: Vec<u8> = (0..1 << 16)
            .map(|_| {
                bits ^= bits << 13;
                bits ^= bits >> 7;
                bits ^= bits << 17;
                bits as u8
            })
            .collect();
        for path in Path::available() {
            for piece_bytes in (1..=260).chain([511, 512, 513, 1024, 4096]) {
                let pieces = 1 + piece_bytes % 35;
                let short = if piece_bytes % 3 == 0 { piece_bytes / 2 } else { 0 };
                let data = &data[piece_bytes % 67..];
                let data = &data[..(pieces * piece_bytes + short).min(data.len())];
                let mut digests = Vec::new();
                hash_pieces_on(path, data, piece_bytes, &mut digests);
                let expected: Vec<_> = data.chunks(piece_bytes).map(sha256).collect();
                assert!(digests == expected, "{path}: {pieces} pieces of {piece_bytes} bytes");
            }
        }
    }
}
