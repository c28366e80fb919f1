//! Trust from outside: whose heads are believed, and which checks nobody asks for.

use std::collections::BTreeSet;

use crate::{
    ledger::key_chain::KeyChain,
    merkle::{
        head::TreeHead,
        note::{SignedNote, VerifierKey},
        policy::{Policy, Quorum, open_head},
    },
};

use super::checks::{Check, Checklist, Finding};

/// What an auditor brings along.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Keys of logs and witnesses; without them signatures are not done.
    pub policy: Option<Policy>,
    /// Checks that need not be done.
    pub waived: BTreeSet<Check>,
}

impl Trust {
    /// Reads the head in `note` and checks its signatures; `chain` are the log's keys, where its
    /// rounds log is at hand: then the key in force at the head's size has to have signed.
    ///
    /// Nothing where the note is no head. A head that nobody vouches for comes back all the same, so
    /// that what lies under it can be looked at: the checklist says how far it is believed.
    pub fn head(
        &self,
        list: &mut Checklist,
        check: Check,
        note: &[u8],
        chain: Option<&KeyChain>,
    ) -> Option<TreeHead> {
        let claimed = match SignedNote::parse(note).map(|note| TreeHead::parse(note.text())) {
            Ok(Ok(head)) => head,
            Ok(Err(error)) => {
                list.found(check, Finding::new(error));
                return None;
            }
            Err(error) => {
                list.found(check, Finding::new(error));
                return None;
            }
        };
        let Some(policy) = &self.policy else {
            list.missing(check, "no key was given: --policy FILE or --log-key KEY");
            list.missing(Check::Witnesses, "no policy was given");
            return claimed.check().is_ok().then_some(claimed);
        };
        let keys = self.keys(&claimed, chain);
        list.record(check, open_head(note, &keys).map(drop));
        self.witnesses(list, policy, note);
        claimed.check().is_ok().then_some(claimed)
    }

    /// The keys that may have signed this head.
    ///
    /// One key signs both logs of a run under two names, so that of the rounds log will do for both.
    /// Whoever trusts a key trusts those that took over from it later: each signed the next.
    pub fn keys(&self, head: &TreeHead, chain: Option<&KeyChain>) -> Vec<VerifierKey> {
        let Some(policy) = &self.policy else { return Vec::new() };
        let mut known = policy.keys_of(&head.origin);
        if let (true, Some(run)) = (known.is_empty(), head.origin.strip_suffix("/submissions")) {
            let rounds = policy.keys_of(&format!("{run}/rounds"));
            let renamed = |key: &VerifierKey| VerifierKey::new(&head.origin, key.kind(), key.key());
            known.extend(rounds.iter().filter_map(|key| renamed(key).ok()));
        }
        let Some(chain) = chain else { return known };
        let terms: Vec<[u8; 32]> = (chain.terms().iter())
            .map(|term| *chain.of_rounds(term.index.saturating_add(1)).key())
            .collect();
        let term = |key: &[u8; 32]| terms.iter().position(|of| of == key);
        let Some(first) = known.iter().filter_map(|key| term(key.key())).min() else {
            return Vec::new();
        };
        let in_force = match head.origin.ends_with("/submissions") {
            true => chain.of_submissions(head.size),
            false => vec![chain.of_rounds(head.size).clone()],
        };
        in_force.into_iter().filter(|key| term(key.key()).is_some_and(|at| at >= first)).collect()
    }

    fn witnesses(&self, list: &mut Checklist, policy: &Policy, note: &[u8]) {
        match policy.witnessed(note) {
            Ok(Quorum::NotAsked) => list.not_required(Check::Witnesses),
            Ok(Quorum::Met(_)) => list.checked(Check::Witnesses, 1),
            Ok(Quorum::Missed(signed)) => {
                let text = format!("too few witnesses signed: {signed:?}");
                list.found(Check::Witnesses, Finding::new(text));
            }
            Err(error) => list.found(Check::Witnesses, Finding::new(error)),
        }
    }
}
