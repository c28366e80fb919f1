//! Two signed heads of one log: whether the larger one continues the smaller.

use super::{head::TreeHead, note::SignedNote, note::VerifierKey, policy::open_head};
use crate::{merkle::tree::verify_consistency, types::digest::Digest};

/// How two heads stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Size and root are the same.
    Same,
    /// One size and two roots, both signed: the log was forked, and these two lines prove it.
    Fork,
    /// The proof shows that the larger tree starts with the smaller one.
    Consistent,
    /// The proof shows nothing. That is no evidence of a fork: another proof may exist.
    NotProven,
    /// Heads of two logs.
    Unrelated,
    /// One of them is no head, or none of the log's keys signed it.
    Invalid,
}

impl Relation {
    /// The name in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Fork => "fork",
            Self::Consistent => "consistent",
            Self::NotProven => "not proven",
            Self::Unrelated => "unrelated",
            Self::Invalid => "invalid",
        }
    }
}

/// Compares two signed heads; `proof` is the consistency proof between their sizes, in either order
/// of the heads.
pub fn relation(a: &[u8], b: &[u8], keys: &[VerifierKey], proof: &[Digest]) -> Relation {
    let (Some(claimed_a), Some(claimed_b)) = (claimed(a), claimed(b)) else {
        return Relation::Invalid;
    };
    if claimed_a.origin != claimed_b.origin {
        return Relation::Unrelated;
    }
    let (Ok(a), Ok(b)) = (open_head(a, keys), open_head(b, keys)) else { return Relation::Invalid };
    let (old, new) = if a.size <= b.size { (a, b) } else { (b, a) };
    match (old.size == new.size, old.root == new.root) {
        (true, true) => Relation::Same,
        (true, false) => Relation::Fork,
        // Every log starts with the empty tree.
        (false, _) if old.size == 0 => Relation::Consistent,
        (false, _) => match verify_consistency(old.size, new.size, &old.root, &new.root, proof) {
            Ok(()) => Relation::Consistent,
            Err(_) => Relation::NotProven,
        },
    }
}

fn claimed(note: &[u8]) -> Option<TreeHead> {
    TreeHead::parse(SignedNote::parse(note).ok()?.text()).ok()
}
