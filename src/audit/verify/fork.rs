//! Claims that compare: two heads of one log, two entries at one index of it.

use super::{Check, Judge};
use crate::{
    audit::bundle::HeadsClaim,
    merkle::{
        fork::{Relation, relation},
        proof::LogProof,
    },
};

impl Judge<'_> {
    /// Two heads of one log. That they contradict each other is a lie of whoever signed both; that the
    /// proof does not show their consistency is none, since another proof may exist.
    pub(super) fn two_heads(&mut self, claim: &HeadsClaim) -> Option<()> {
        let [a, b] = ["a.note", "b.note"].map(|name| self.bundle.member(name));
        let check = self.one_log([a, b])?;
        let (old, new) = (
            self.trust.head(&mut self.list, check, a, None)?,
            self.trust.head(&mut self.list, check, b, None)?,
        );
        self.heads.push((check, String::new(), Some(old.clone())));
        self.subject = format!("{}: heads of size {} and {}", old.origin, old.size, new.size);
        if !self.list.holds(check) {
            self.list.missing(Check::Consistency, "nobody is known to have signed both heads");
            return None;
        }
        let keys = self.trust.keys(&old, None);
        match relation(a, b, &keys, &claim.proof) {
            Relation::Same | Relation::Consistent => self.list.checked(Check::Consistency, 1),
            Relation::Fork => {
                let (size, one, two) = (old.size, old.root, new.root);
                let text = format!("fork: both {one} and {two} were signed for size {size}");
                self.agrees(Check::Consistency, Err::<(), _>(text));
            }
            Relation::NotProven | Relation::Unrelated | Relation::Invalid => {
                self.list.missing(Check::Consistency, "not proven; that is no proof of a fork");
            }
        }
        Some(())
    }

    /// Two entries at one index of one log. Logs only grow, so two different ones are a fork,
    /// whatever the sizes of the heads that they are proven under.
    pub(super) fn two_entries(&mut self) -> Option<()> {
        let [a, b] = ["a.tlog-proof", "b.tlog-proof"].map(|name| self.bundle.member(name));
        let (a, b) = (
            self.step(Check::Inclusion, LogProof::parse(a))?,
            self.step(Check::Inclusion, LogProof::parse(b))?,
        );
        self.holds(Check::Inclusion, a.index == b.index, "entries at two indices")?;
        let check = self.one_log([a.note.as_bytes(), b.note.as_bytes()])?;
        for (name, proof) in [("a.json", &a), ("b.json", &b)] {
            let note = proof.note.as_bytes();
            let head = self.trust.head(&mut self.list, check, note, None);
            self.heads.push((check, proof.note.clone(), head.clone()));
            self.step(Check::Inclusion, proof.check(self.bundle.member(name), &head?))?;
        }
        self.subject += &format!("entry {}", a.index);
        if !self.list.holds(check) {
            self.list.missing(Check::Consistency, "nobody is known to have signed both heads");
            return None;
        }
        let same = self.bundle.member("a.json") == self.bundle.member("b.json");
        let text = format!("fork: two different entries were signed for at index {}", a.index);
        self.agrees(Check::Consistency, same.then_some(()).ok_or(text))
    }

    /// The signature check of the one log that both notes are heads of.
    fn one_log(&mut self, [a, b]: [&[u8]; 2]) -> Option<Check> {
        let line = |note: &[u8]| note.split(|byte| *byte == b'\n').next().map(<[u8]>::to_vec);
        let origin = line(a).filter(|origin| line(b).as_ref() == Some(origin));
        self.holds(Check::Format, origin.is_some(), "heads of two logs")?;
        let of_rounds = origin.is_some_and(|origin| origin.ends_with(b"/rounds"));
        let (check, other) = match of_rounds {
            true => (Check::RoundsSignature, Check::SubmissionsSignature),
            false => (Check::SubmissionsSignature, Check::RoundsSignature),
        };
        self.list.not_required(other);
        Some(check)
    }
}
