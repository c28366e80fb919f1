//! Which key signs a log's heads at which size: the genesis' keys, then those of each rotation.
//!
//! The chain stands in the rounds log itself. Whoever trusts any of its keys from outside trusts the
//! later ones, since each signed who comes after it. See `schema/keys.md`.

use std::collections::BTreeSet;

use crate::{
    merkle::{
        note::{KeyError, KeyKind, VerifierKey},
        rotation::Rotation,
        tree::empty_root,
    },
    types::{
        digest::Digest,
        record::{KeyRotation, LogEnd, LogKeys},
    },
};

/// One log key, and from where on it signs.
#[derive(Clone, Debug)]
pub struct KeyTerm {
    /// Index of the entry in the rounds log that brought it; 0 is the genesis.
    pub index: u64,
    /// The submissions log then.
    pub submissions: LogEnd,
    /// Its verifier keys.
    pub log_keys: LogKeys,
    of_rounds: VerifierKey,
    of_submissions: VerifierKey,
}

/// The log keys of a run, oldest first.
#[derive(Clone, Debug)]
pub struct KeyChain {
    origin: String,
    terms: Vec<KeyTerm>,
}

/// Keys or a rotation that no log can have.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum ChainError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("it names {found:?} as the {log} log, not {expected:?}")]
    Name { log: &'static str, expected: String, found: String },
    #[error("the two verifier keys are not one Ed25519 key under two names")]
    TwoKeys,
    #[error("the key {key} signed this run's heads before; a retired key does not come back")]
    Reused { key: String },
    #[error("the {whose} key did not sign the hand-over at this entry of this run")]
    Signature { whose: &'static str },
    #[error(
        "the submissions log had {before} entries at the rotation before, and has {found} here"
    )]
    Shrunk { before: u64, found: u64 },
}

impl KeyChain {
    /// The chain of a run without rotations.
    ///
    /// # Errors
    ///
    /// [`ChainError`] if the keys are not those of the run's logs.
    pub fn of_genesis(origin: &str, log_keys: &LogKeys) -> Result<Self, ChainError> {
        let mut chain = Self { origin: origin.to_owned(), terms: Vec::new() };
        let empty = LogEnd { size: 0, root: empty_root() };
        chain.terms.push(chain.term(0, empty, log_keys)?);
        Ok(chain)
    }

    /// Follows the rotation at entry `index` of the rounds log.
    ///
    /// # Errors
    ///
    /// [`ChainError`] if the newest key or the new one did not sign it for this place, or the key is
    /// not a new one.
    pub fn rotate(
        &mut self,
        run: Digest,
        index: u64,
        entry: &KeyRotation,
    ) -> Result<(), ChainError> {
        let next = self.term(index, entry.submissions, &entry.log_keys)?;
        let last = self.newest();
        let (before, found) = (last.submissions.size, next.submissions.size);
        if found < before {
            return Err(ChainError::Shrunk { before, found });
        }
        self.check_new(&next.of_rounds)?;
        let rotation = Rotation {
            run,
            index,
            submissions_size: entry.submissions.size,
            submissions_root: entry.submissions.root,
            old: *last.of_rounds.key(),
            new: *next.of_rounds.key(),
        };
        let signed =
            [("old", &last.of_rounds, &entry.by_old), ("new", &next.of_rounds, &entry.by_new)];
        for (whose, key, signature) in signed {
            if !rotation.verifies(key, &signature.0) {
                return Err(ChainError::Signature { whose });
            }
        }
        self.terms.push(next);
        Ok(())
    }

    /// Whether `key` can take over: it never signed for this run.
    ///
    /// # Errors
    ///
    /// [`ChainError::Reused`].
    pub fn check_new(&self, key: &VerifierKey) -> Result<(), ChainError> {
        // By the bytes that a note names a key by, which is stricter than the key itself.
        let known: BTreeSet<u32> = self.terms.iter().map(|term| term.of_rounds.id()).collect();
        if known.contains(&key.id()) {
            return Err(ChainError::Reused { key: key.to_string() });
        }
        Ok(())
    }

    fn term(
        &self,
        index: u64,
        submissions: LogEnd,
        log_keys: &LogKeys,
    ) -> Result<KeyTerm, ChainError> {
        let read = |log: &'static str, text: &str| -> Result<VerifierKey, ChainError> {
            let (key, expected) = (text.parse::<VerifierKey>()?, format!("{}/{log}", self.origin));
            if key.name() == expected {
                return Ok(key);
            }
            Err(ChainError::Name { log, expected, found: key.name().to_owned() })
        };
        let of_rounds = read("rounds", &log_keys.rounds)?;
        let of_submissions = read("submissions", &log_keys.submissions)?;
        let one = of_rounds.key() == of_submissions.key()
            && [of_rounds.kind(), of_submissions.kind()] == [KeyKind::Ed25519; 2];
        if !one {
            return Err(ChainError::TwoKeys);
        }
        let log_keys = log_keys.clone();
        Ok(KeyTerm { index, submissions, log_keys, of_rounds, of_submissions })
    }

    /// The keys, oldest first.
    pub fn terms(&self) -> &[KeyTerm] {
        &self.terms
    }

    /// The key that signs now.
    pub fn newest(&self) -> &KeyTerm {
        self.terms.last().expect("the genesis brings a key")
    }

    /// How often the key was changed.
    pub fn rotations(&self) -> usize {
        self.terms.len() - 1
    }

    /// The key that signs heads of the rounds log with `size` entries: a rotation's entry is in the
    /// first head of its key.
    pub fn of_rounds(&self, size: u64) -> &VerifierKey {
        let signs = |term: &&KeyTerm| term.index < size;
        &self.terms.iter().rev().find(signs).unwrap_or(&self.terms[0]).of_rounds
    }

    /// The keys that sign heads of the submissions log with `size` entries: the head at which one
    /// takes over from another is signed by both.
    pub fn of_submissions(&self, size: u64) -> Vec<VerifierKey> {
        let ends = self.terms.iter().skip(1).map(|term| term.submissions.size).chain([u64::MAX]);
        let terms = self.terms.iter().zip(ends);
        let signs = |(term, end): &(&KeyTerm, u64)| (term.submissions.size..=*end).contains(&size);
        terms.filter(signs).map(|(term, _)| term.of_submissions.clone()).collect()
    }

    /// The keys before the newest, of the rounds log or of the submissions log.
    pub fn retired(&self, rounds: bool) -> Vec<VerifierKey> {
        let key =
            |term: &KeyTerm| if rounds { &term.of_rounds } else { &term.of_submissions }.clone();
        self.terms[..self.rotations()].iter().map(key).collect()
    }
}
