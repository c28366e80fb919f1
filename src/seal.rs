//! Layer 4, the seal: what a fold came to, as the record that binds it.
//!
//! [`Disposed`] -> [`Planned`] -> [`Folded`] -> a [`RoundRecord`]: each step takes the type that the
//! step before made, so nothing unchecked can be sealed. Appending the record to the rounds log is
//! the round's one commit point.

use crate::{
    merkle::{
        pieces::{PieceHasher, Pieces},
        tree::{TreeBuilder, leaf_hash},
    },
    types::{
        digest::Digest,
        json,
        manifest::ManifestId,
        plan::Plan,
        record::{Disposition, DispositionsId, RoundRecord, Skipped, Window},
        rule::Rule,
        submission::Miner,
    },
};

/// A round whose submissions are all disposed of.
#[derive(Clone, Debug)]
pub struct Disposed {
    /// Its number.
    pub round: u64,
    /// Leaf hash of the record before.
    pub previous: Digest,
    /// The state it starts from.
    pub base: ManifestId,
    /// By which rule.
    pub rule: Rule,
    /// The submissions it disposes of.
    pub window: Window,
    /// Who was expected.
    pub listed: Vec<Miner>,
    /// Who was to take the places of the missing.
    pub reserve: Vec<Miner>,
    /// What came of each.
    pub dispositions: Vec<Disposition>,
}

/// A disposed round with the scalars of its fold.
#[derive(Clone, Debug)]
pub struct Planned {
    /// What is folded.
    pub disposed: Disposed,
    /// How.
    pub plan: Plan,
}

/// A folded round, stored and ready to be bound.
#[derive(Clone, Debug)]
pub struct Folded {
    /// What was folded and how.
    pub planned: Planned,
    /// The state after it.
    pub next: ManifestId,
    /// Tensors that it left unchanged.
    pub skipped: Vec<Skipped>,
}

impl Folded {
    /// The record of the round.
    pub fn record(&self) -> RoundRecord {
        let Planned { disposed, plan } = &self.planned;
        RoundRecord {
            round: disposed.round,
            previous: disposed.previous,
            base: disposed.base,
            next: self.next,
            rule: disposed.rule.clone(),
            plan: plan_pieces(plan).artifact,
            submissions: disposed.window,
            dispositions: dispositions_id(&disposed.dispositions),
            listed: disposed.listed.clone(),
            reserve: disposed.reserve.clone(),
            skipped: self.skipped.clone(),
            block: None,
        }
    }
}

/// Root, length and piece digests of a plan's logical bytes.
pub fn plan_pieces(plan: &Plan) -> Pieces {
    let mut hasher = PieceHasher::new();
    hasher.update(&plan.to_bytes());
    hasher.finish()
}

/// Root and count of a round's dispositions: a tree over their canonical JSON.
pub fn dispositions_id(dispositions: &[Disposition]) -> DispositionsId {
    let mut tree = TreeBuilder::new();
    for disposition in dispositions {
        tree.push(leaf_hash(&json::to_vec(disposition)));
    }
    DispositionsId { root: tree.root(), count: tree.size() }
}
