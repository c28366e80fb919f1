//! SHA-256: of a stream, of a slice, of every piece of a slice.
//!
//! The work is sha2's, which uses the processor's SHA instructions where there are any. Callers that hash many pieces call
//! [`hash_pieces`], so that a kernel hashing several at once can take its place.

use rayon::prelude::*;
use sha2::Digest;

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

/// Appends to `out` the digest of every piece of `data`, in order: `piece_bytes` each, the last one maybe shorter. Nothing for
/// no data.
///
/// Parallel over pieces in the current rayon pool.
///
/// # Panics
///
/// If `piece_bytes` is 0.
pub fn hash_pieces(data: &[u8], piece_bytes: usize, out: &mut Vec<Digest32>) {
    assert!(piece_bytes > 0, "a piece has bytes");
    out.par_extend(data.par_chunks(piece_bytes).map(sha256));
}

#[cfg(test)]
mod tests {
    use super::{Sha256, hash_pieces, sha256};

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
}
