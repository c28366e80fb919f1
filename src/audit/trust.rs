//! Trust from outside: whose heads are believed, and which checks nobody asks for.

use std::collections::BTreeSet;

use crate::merkle::{
    head::TreeHead,
    note::{SignedNote, VerifierKey},
    policy::{Policy, Quorum, open_head},
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
    /// Reads the head in `note` and checks its signatures; `vouched` is the log's key as an entry
    /// says that was itself proven, for a log that the policy does not name.
    ///
    /// Nothing where the note is no head. A head that nobody vouches for comes back all the same, so
    /// that what lies under it can be looked at: the checklist says how far it is believed.
    pub fn head(
        &self,
        list: &mut Checklist,
        check: Check,
        note: &[u8],
        vouched: Option<&VerifierKey>,
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
        let mut keys = policy.keys_of(&claimed.origin);
        if keys.is_empty() {
            keys.extend(vouched.filter(|key| key.name() == claimed.origin).cloned());
        }
        list.record(check, open_head(note, &keys).map(drop));
        self.witnesses(list, policy, note);
        claimed.check().is_ok().then_some(claimed)
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
