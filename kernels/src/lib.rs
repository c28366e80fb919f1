//! x
/// sha
pub mod sha256 {
    use sha2::{Digest, Sha256};
    /// SHA-256 of `bytes`.
    pub fn sha256(bytes: &[u8]) -> [u8; 32] {
        Sha256::digest(bytes).into()
    }
}
