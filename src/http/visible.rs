//! What of a ledger's directory may be read: what is published, and nothing of a round that is open.
//!
//! A delta of an open round would be copied, so a delta, its hashes, and a refused file are there once
//! a record disposes of their round; and a tensor once it belongs to a state that a record names, since
//! a seal that failed leaves tensors that tell of its deltas. Keys, locks, the index, uploads and
//! whatever is under way are never there.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::path::is_name;
use crate::{
    ledger::{Ledger, LedgerError, retention::Kept},
    store::StoreError,
    types::{digest::Digest, manifest::ManifestId, submission::Submission},
};

/// The names that records have made public, as of a ledger's heads.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// Deltas of sealed rounds.
    deltas: HashMap<Digest, ManifestId>,
    /// States: the genesis, and those after each round.
    states: HashMap<Digest, ManifestId>,
    /// Plans and dispositions.
    others: HashSet<Digest>,
    /// Sealed rounds, and where each stands.
    rounds: BTreeMap<u64, usize>,
    /// Submissions that were looked at.
    submissions: u64,
}

impl Published {
    /// What the ledger's records publish.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if a submission does not read.
    pub fn of(ledger: &Ledger) -> Result<Self, LedgerError> {
        let mut published = Self::default();
        let model = ledger.genesis().model;
        published.states.insert(model.root, model);
        published.follow(ledger)?;
        Ok(published)
    }

    /// Takes up the records that were appended since.
    ///
    /// # Errors
    ///
    /// As [`Published::of`].
    pub fn follow(&mut self, ledger: &Ledger) -> Result<(), LedgerError> {
        for (position, sealed) in ledger.sealed().iter().enumerate().skip(self.rounds.len()) {
            let record = &sealed.record;
            for (_, submission) in ledger.submissions(self.submissions..record.submissions.end)? {
                self.deltas.extend(delta_of(&submission).map(|delta| (delta.root, delta)));
            }
            self.submissions = record.submissions.end;
            self.states.insert(record.next.root, record.next);
            self.others.extend([record.plan.root, record.dispositions.root]);
            self.rounds.insert(record.round, position);
        }
        Ok(())
    }

    /// Number of sealed rounds that were taken up.
    pub fn rounds(&self) -> usize {
        self.rounds.len()
    }

    /// Where a sealed round stands among them.
    pub fn position(&self, round: u64) -> Option<usize> {
        self.rounds.get(&round).copied()
    }

    /// The state or delta whose manifest has this root.
    pub fn manifest(&self, root: Digest) -> Option<ManifestId> {
        self.states.get(&root).or_else(|| self.deltas.get(&root)).copied()
    }

    /// The delta whose manifest has this root.
    pub fn delta(&self, root: Digest) -> Option<ManifestId> {
        self.deltas.get(&root).copied()
    }
}

/// The delta that a submission brings, whether it counts or not.
fn delta_of(submission: &Submission) -> Option<ManifestId> {
    use crate::types::submission::Outcome;
    match submission {
        Submission::Signed(signed) => Some(signed.delta),
        Submission::Fetched(fetched) => match fetched.outcome {
            Outcome::Delta(delta) => Some(delta),
            Outcome::Refused(_) | Outcome::Unread => None,
        },
    }
}

/// What a path below the ledger's directory leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visible {
    /// Nothing that may be read.
    No,
    /// A file, or a directory of such, that is public.
    Yes,
    /// The file of a log: its name, from where its own path starts.
    Log,
    /// A tensor, public if a state that is kept has it.
    Tensor(Digest),
}

/// What `parts` lead to, which are names or, the last one, empty for a directory.
pub fn visible(parts: &[String], published: &Published) -> Visible {
    let Some((last, before)) = parts.split_last() else { return Visible::No };
    let named = before.iter().all(|part| is_name(part)) && (last.is_empty() || is_name(last));
    let parts: Vec<&str> =
        parts.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
    // What is being written has such a name until it is renamed.
    if !named || parts.last().is_some_and(|name| name.ends_with(".new")) {
        return Visible::No;
    }
    let yes = |yes: bool| if yes { Visible::Yes } else { Visible::No };
    let starts_with_root = |name: &str| name.get(..2 * Digest::BYTES).and_then(|r| r.parse().ok());
    match parts[..] {
        [] | ["log" | "segments" | "hashes" | "anchors" | "quarantine"] | ["tables", ..] => {
            Visible::Yes
        }
        ["log", "rounds" | "submissions", ..] => Visible::Log,
        ["retention.json" | "open-round.json"] => Visible::Yes,
        // Given at init and named by the genesis; the digests beside them are for nobody else.
        ["hub"] | ["hub", "files", ..] => Visible::Yes,
        ["anchors", name] => yes(name != "intent.json"),
        ["quarantine", round, ..] => {
            yes(round.parse().is_ok_and(|round| published.position(round).is_some()))
        }
        ["hashes", _] => Visible::Yes,
        ["hashes", _, name] => {
            yes(name.parse().is_ok_and(|root| published.manifest(root).is_some()))
        }
        ["segments", "tensors" | "deltas" | "plans" | "dispositions"]
        | ["segments", "tensors" | "deltas" | "plans" | "dispositions", _] => Visible::Yes,
        ["segments", "deltas", _, name, ..] => {
            yes(name.parse().is_ok_and(|root| published.delta(root).is_some()))
        }
        ["segments", "plans" | "dispositions", _, name] => {
            yes(starts_with_root(name).is_some_and(|root| published.others.contains(&root)))
        }
        ["segments", "tensors", _, name] => {
            starts_with_root(name).map_or(Visible::No, Visible::Tensor)
        }
        _ => Visible::No,
    }
}

/// The tensors of the states that are kept, found out as they are asked for: newest states first.
#[derive(Debug, Default)]
pub struct Tensors {
    roots: HashSet<Digest>,
    states: HashSet<Digest>,
}

impl Tensors {
    /// Whether a state that is kept has a tensor with this root. It may block.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if the list of dropped states does not read.
    pub fn has(&mut self, ledger: &Ledger, root: Digest) -> Result<bool, LedgerError> {
        if self.roots.contains(&root) {
            return Ok(true);
        }
        let kept = Kept::load(ledger)?;
        let states = ledger.sealed().iter().rev().map(|sealed| sealed.record.next);
        for state in states.chain([ledger.genesis().model]) {
            if !kept.has(state) || self.states.contains(&state.root) {
                continue;
            }
            match ledger.checkpoint(state) {
                Ok(checkpoint) => {
                    self.roots.extend(checkpoint.manifest().descriptors().iter().map(|d| d.root));
                    self.states.insert(state.root);
                }
                // Its hashes are lost or damaged: its tensors cannot be told from others.
                Err(error) => note_lost(state, &error),
            }
            if self.roots.contains(&root) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn note_lost(state: ManifestId, error: &StoreError) {
    tracing::warn!(state = %state.root, %error, "a state's manifest does not read");
}
