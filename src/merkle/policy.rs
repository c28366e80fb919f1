//! Whom an auditor trusts: the keys of logs, witnesses, and how many of these must have signed.
//!
//! The text is that of C2SP tlog-policy; it comes from the auditor, never from a ledger. See
//! `schema/policy.md`.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    head::{HeadError, TreeHead},
    note::{KeyError, KeyKind, NoteError, SignedNote, VerifierKey},
};

/// Longest policy in bytes.
pub const POLICY_BYTES_MAX: usize = 1 << 20;

/// A text that is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum PolicyError {
    #[error("a policy is at most {POLICY_BYTES_MAX} bytes of UTF-8, not {bytes}")]
    Text { bytes: usize },
    #[error("line {line} is none of log, witness, group and quorum with what belongs to it")]
    Line { line: usize },
    #[error("line {line}: {source}")]
    Key { line: usize, source: KeyError },
    #[error("line {line}: a key of type {found:?} cannot be one of a {role}")]
    Kind { line: usize, role: &'static str, found: KeyKind },
    #[error("line {line}: the key stands in the policy already")]
    KeyTwice { line: usize },
    #[error("line {line}: the name {name:?} is taken")]
    NameTwice { line: usize, name: String },
    #[error("line {line}: {name:?} is no witness or group of an earlier line")]
    Unknown { line: usize, name: String },
    #[error("line {line}: {name:?} is in a group already")]
    TwoGroups { line: usize, name: String },
    #[error("line {line}: a group of {members} needs 1 to {members} of them, not {found:?}")]
    Threshold { line: usize, members: usize, found: String },
    #[error("line {line}: the policy has a quorum already")]
    TwoQuorums { line: usize },
    #[error("the policy names no quorum; `quorum none` asks for no witness")]
    NoQuorum,
    #[error("the policy names no log")]
    NoLog,
}

/// What satisfies a name of the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Component {
    Witness(VerifierKey),
    /// So many of these earlier components.
    Group(usize, Vec<usize>),
}

/// Keys of logs and the witnesses that must have cosigned their heads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    logs: Vec<VerifierKey>,
    components: Vec<Component>,
    quorum: Option<usize>,
}

/// Whether enough witnesses signed a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quorum {
    /// The policy asks for none.
    NotAsked,
    /// Enough did: these.
    Met(Vec<String>),
    /// Not enough did: these alone.
    Missed(Vec<String>),
}

impl Policy {
    /// The policy that trusts these logs and asks for no witness.
    pub fn of_logs(logs: Vec<VerifierKey>) -> Self {
        Self { logs, components: Vec::new(), quorum: None }
    }

    /// Reads a policy.
    ///
    /// # Errors
    ///
    /// [`PolicyError`] names the first line that is not one of C2SP tlog-policy.
    pub fn parse(bytes: &[u8]) -> Result<Self, PolicyError> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= POLICY_BYTES_MAX);
        let text = text.ok_or(PolicyError::Text { bytes: bytes.len() })?;
        let mut reading = Reading::default();
        for (line, text) in (1..).zip(text.lines()) {
            let words: Vec<&str> =
                text.split([' ', '\t']).filter(|word| !word.is_empty()).collect();
            match words[..] {
                [] => {}
                [first, ..] if first.starts_with('#') => {}
                ["log", key] | ["log", key, _] => reading.log(line, key)?,
                ["witness", name, key] | ["witness", name, key, _] => {
                    reading.witness(line, name, key)?;
                }
                ["group", name, threshold, ref members @ ..] if !members.is_empty() => {
                    reading.group(line, name, threshold, members)?;
                }
                ["quorum", name] => reading.quorum(line, name)?,
                _ => return Err(PolicyError::Line { line }),
            }
        }
        let quorum = reading.quorum.ok_or(PolicyError::NoQuorum)?;
        if reading.logs.is_empty() {
            return Err(PolicyError::NoLog);
        }
        Ok(Self { logs: reading.logs, components: reading.components, quorum })
    }

    /// The keys of logs.
    pub fn logs(&self) -> &[VerifierKey] {
        &self.logs
    }

    /// The keys of the log called `origin`.
    pub fn keys_of(&self, origin: &str) -> Vec<VerifierKey> {
        self.logs.iter().filter(|key| key.name() == origin).cloned().collect()
    }

    /// Whether witnesses have to sign.
    pub fn asks_witnesses(&self) -> bool {
        self.quorum.is_some()
    }

    /// Whether enough witnesses signed the note of a head.
    ///
    /// # Errors
    ///
    /// [`NoteError`] if the note cannot be read, or a line of a known witness does not verify.
    pub fn witnessed(&self, note: &[u8]) -> Result<Quorum, NoteError> {
        let Some(quorum) = self.quorum else { return Ok(Quorum::NotAsked) };
        let note = SignedNote::parse(note)?;
        let keys: Vec<_> = self.components.iter().filter_map(Component::witness).collect();
        let signed = match note.verify(&keys) {
            Err(NoteError::Unknown { .. }) => Vec::new(),
            signed => signed?,
        };
        // Members stand before their group, so one pass decides all.
        let mut met: Vec<bool> = Vec::with_capacity(self.components.len());
        for component in &self.components {
            met.push(match component {
                Component::Witness(key) => note.verify(std::slice::from_ref(key)).is_ok(),
                Component::Group(threshold, members) => {
                    members.iter().filter(|member| met[**member]).count() >= *threshold
                }
            });
        }
        Ok(if met[quorum] { Quorum::Met(signed) } else { Quorum::Missed(signed) })
    }
}

impl Component {
    fn witness(&self) -> Option<VerifierKey> {
        match self {
            Self::Witness(key) => Some(key.clone()),
            Self::Group(..) => None,
        }
    }
}

/// The head in a note, if one of the log's keys signed it.
///
/// # Errors
///
/// [`HeadError`] as [`TreeHead::open`]; without a key, that none is known.
pub fn open_head(note: &[u8], keys: &[VerifierKey]) -> Result<TreeHead, HeadError> {
    let unknown = || {
        let signatures = SignedNote::parse(note)?.signatures().len();
        Err(NoteError::Unknown { signatures, keys: 0 }.into())
    };
    let mut opened = None;
    for key in keys {
        match TreeHead::open(note, key) {
            Ok(head) => return Ok(head),
            Err(error) => opened = opened.or(Some(Err(error))),
        }
    }
    opened.unwrap_or_else(unknown)
}

/// A policy being read.
#[derive(Default)]
struct Reading {
    logs: Vec<VerifierKey>,
    components: Vec<Component>,
    names: BTreeMap<String, usize>,
    grouped: BTreeSet<usize>,
    quorum: Option<Option<usize>>,
}

impl Reading {
    fn log(&mut self, line: usize, key: &str) -> Result<(), PolicyError> {
        let key = read_key(line, "log", KeyKind::Ed25519, key)?;
        if self.logs.contains(&key) {
            return Err(PolicyError::KeyTwice { line });
        }
        self.logs.push(key);
        Ok(())
    }

    fn witness(&mut self, line: usize, name: &str, key: &str) -> Result<(), PolicyError> {
        let key = read_key(line, "witness", KeyKind::Cosignature, key)?;
        let same = |c: &Component| matches!(c, Component::Witness(w) if w.key() == key.key());
        if self.components.iter().any(same) {
            return Err(PolicyError::KeyTwice { line });
        }
        self.name(line, name, Component::Witness(key))
    }

    fn group(
        &mut self,
        line: usize,
        name: &str,
        threshold: &str,
        members: &[&str],
    ) -> Result<(), PolicyError> {
        let mut group = Vec::with_capacity(members.len());
        for name in members {
            let member = self.find(line, name)?;
            if !self.grouped.insert(member) {
                return Err(PolicyError::TwoGroups { line, name: (*name).to_owned() });
            }
            group.push(member);
        }
        let found = match threshold {
            "any" => Some(1),
            "all" => Some(group.len()),
            number => number.parse().ok().filter(|n: &usize| n.to_string() == number),
        };
        let found = found.filter(|n| (1..=group.len()).contains(n)).ok_or_else(|| {
            let (members, found) = (group.len(), threshold.to_owned());
            PolicyError::Threshold { line, members, found }
        })?;
        self.name(line, name, Component::Group(found, group))
    }

    fn quorum(&mut self, line: usize, name: &str) -> Result<(), PolicyError> {
        if self.quorum.is_some() {
            return Err(PolicyError::TwoQuorums { line });
        }
        let quorum = if name == "none" { None } else { Some(self.find(line, name)?) };
        self.quorum = Some(quorum);
        Ok(())
    }

    fn find(&self, line: usize, name: &str) -> Result<usize, PolicyError> {
        let unknown = || PolicyError::Unknown { line, name: name.to_owned() };
        self.names.get(name).copied().ok_or_else(unknown)
    }

    fn name(&mut self, line: usize, name: &str, component: Component) -> Result<(), PolicyError> {
        let taken = || PolicyError::NameTwice { line, name: name.to_owned() };
        if name == "none" || self.names.contains_key(name) {
            return Err(taken());
        }
        self.names.insert(name.to_owned(), self.components.len());
        self.components.push(component);
        Ok(())
    }
}

fn read_key(
    line: usize,
    role: &'static str,
    kind: KeyKind,
    key: &str,
) -> Result<VerifierKey, PolicyError> {
    let key: VerifierKey = key.parse().map_err(|source| PolicyError::Key { line, source })?;
    if key.kind() != kind {
        return Err(PolicyError::Kind { line, role, found: key.kind() });
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::note::LogKey;
    use proptest::prelude::*;

    #[test]
    fn a_chain_of_groups_is_no_deep_recursion() {
        let key = LogKey::from_seed("log.example", &[1; 32]).unwrap();
        let witness = VerifierKey::new("w", KeyKind::Cosignature, key.verifier().key()).unwrap();
        let mut text = format!("log {}\nwitness g0 {witness}\n", key.vkey());
        let groups = 20_000;
        for at in 0..groups {
            text += &format!("group g{} any g{at}\n", at + 1);
        }
        text += &format!("quorum g{groups}\n");
        let policy = Policy::parse(text.as_bytes()).unwrap();
        let note = key.sign("log.example\n1\nAAAA\n").unwrap();
        assert_eq!(policy.witnessed(note.as_bytes()), Ok(Quorum::Missed(vec![])));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "((log|witness|group|quorum|#|none|a|b|any|1|\t| ){0,6}\n){0,6}") {
            let _ = Policy::parse(text.as_bytes());
        }
    }
}
