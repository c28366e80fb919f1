//! The list of checks: what passed, what failed and where, what was not done and why.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

/// Most findings of one check that are listed; all are counted.
pub const FINDINGS_MAX: usize = 100;

/// What is checked, in the order of reports. The names are stored in reports: never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Check {
    /// A bundle is spelled as its page says.
    Format,
    /// A key from outside signed the head of the rounds log.
    RoundsSignature,
    /// Likewise of the submissions log.
    SubmissionsSignature,
    /// As many witnesses as the policy asks for cosigned the heads.
    Witnesses,
    /// The heads continue earlier ones that the auditor kept.
    Consistency,
    /// The rounds log's entries give every hash, tile and the head.
    RoundsLog,
    /// Likewise of the submissions log.
    SubmissionsLog,
    /// A bundle's entries are in the logs at their places.
    Inclusion,
    /// Each record follows the one before: order, chain, base, rule, lists.
    Records,
    /// Windows touch, and end at the root that the submissions log had.
    Windows,
    /// Miners' signatures hold.
    Statements,
    /// Dispositions give the root that the record names.
    Dispositions,
    /// Derived again from the log they are the same.
    Derivation,
    /// What the auditor holds receipts for is in the log, and its round disposes of it.
    Receipts,
    /// Accepted deltas keep the rules of intake.
    Acceptances,
    /// Refused uploads break the rule that their refusal names.
    Refusals,
    /// Descriptors and piece digests give the root of their state.
    Descriptor,
    /// A bundle's bytes have the root of their descriptor.
    Bytes,
    /// The plan derived from the deltas is the record's.
    Plan,
    /// The fold done again gives the next state.
    Fold,
    /// Receipts prove that heads were anchored.
    AnchorReceipts,
    /// The log is the one whose heads were anchored.
    AnchoredHeads,
}

impl Check {
    /// All of them, in order.
    pub const ALL: [Self; 22] = [
        Self::Format,
        Self::RoundsSignature,
        Self::SubmissionsSignature,
        Self::Witnesses,
        Self::Consistency,
        Self::RoundsLog,
        Self::SubmissionsLog,
        Self::Inclusion,
        Self::Records,
        Self::Windows,
        Self::Statements,
        Self::Dispositions,
        Self::Derivation,
        Self::Receipts,
        Self::Acceptances,
        Self::Refusals,
        Self::Descriptor,
        Self::Bytes,
        Self::Plan,
        Self::Fold,
        Self::AnchorReceipts,
        Self::AnchoredHeads,
    ];

    /// The name in reports and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::RoundsSignature => "rounds-signature",
            Self::SubmissionsSignature => "submissions-signature",
            Self::Witnesses => "witnesses",
            Self::Consistency => "consistency",
            Self::RoundsLog => "rounds-log",
            Self::SubmissionsLog => "submissions-log",
            Self::Inclusion => "inclusion",
            Self::Records => "records",
            Self::Windows => "windows",
            Self::Statements => "statements",
            Self::Dispositions => "dispositions",
            Self::Derivation => "derivation",
            Self::Receipts => "receipts",
            Self::Acceptances => "acceptances",
            Self::Refusals => "refusals",
            Self::Descriptor => "descriptor",
            Self::Bytes => "bytes",
            Self::Plan => "plan",
            Self::Fold => "fold",
            Self::AnchorReceipts => "anchor-receipts",
            Self::AnchoredHeads => "anchored-heads",
        }
    }

    /// Whether a failure means a signature rather than a hash.
    fn is_signature(self) -> bool {
        matches!(
            self,
            Self::RoundsSignature | Self::SubmissionsSignature | Self::Witnesses | Self::Statements
        )
    }
}

impl std::str::FromStr for Check {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::as_str).join(", ");
        let found = Self::ALL.into_iter().find(|check| check.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is no check; these are: {}", names()))
    }
}

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// All of it was looked at and holds.
    Passed,
    /// Something does not hold.
    Failed,
    /// Some of it could not be looked at.
    NotDone,
    /// Nobody asks for it.
    NotRequired,
}

/// What does not hold, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The round.
    pub round: Option<u64>,
    /// Index in the submissions log.
    pub index: Option<u64>,
    /// The tensor.
    pub tensor: Option<String>,
    /// The piece of the tensor.
    pub piece: Option<u64>,
    /// For people: both values.
    pub text: String,
}

impl Finding {
    /// A finding of no place.
    pub fn new(text: impl ToString) -> Self {
        Self { round: None, index: None, tensor: None, piece: None, text: text.to_string() }
    }

    /// A finding of a round.
    pub fn in_round(round: u64, text: impl ToString) -> Self {
        Self { round: Some(round), ..Self::new(text) }
    }
}

/// One check and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Which.
    pub check: Check,
    /// What came of it.
    pub status: Status,
    /// How many things were looked at: heads, entries, rounds, deltas, files or pieces.
    pub checked: u64,
    /// Why some of it was not done.
    pub not_done: Vec<String>,
    /// Number of findings.
    pub found: u64,
    /// The first of them.
    pub findings: Vec<Finding>,
}

/// What all checks together come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// All that is required was done and holds.
    Passed,
    /// Nothing failed; something required was not done.
    Incomplete,
    /// A hash, a rule or a replay does not agree.
    Mismatch,
    /// A signature does not hold.
    BadSignature,
    /// An anchor contradicts the log.
    Contradiction,
}

/// The checks of one audit or bundle, under way.
#[derive(Clone, Debug)]
pub struct Checklist {
    lines: BTreeMap<Check, Under>,
    waived: BTreeSet<Check>,
}

#[derive(Clone, Debug, Default)]
struct Under {
    begun: bool,
    asked: bool,
    checked: u64,
    missing: BTreeSet<String>,
    found: u64,
    findings: Vec<Finding>,
}

impl Checklist {
    /// These checks, none done yet; those in `waived` are not required.
    pub fn new(checks: &[Check], waived: &BTreeSet<Check>) -> Self {
        let under = Under { asked: true, ..Under::default() };
        let lines = checks.iter().map(|check| (*check, under.clone())).collect();
        Self { lines, waived: waived.clone() }
    }

    fn under(&mut self, check: Check) -> &mut Under {
        self.lines.entry(check).or_insert_with(|| Under { asked: true, ..Under::default() })
    }

    /// `count` more things were looked at.
    pub fn checked(&mut self, check: Check, count: u64) {
        let under = self.under(check);
        under.begun = true;
        under.checked += count;
    }

    /// `count` more things were looked at for each of these.
    pub fn all_checked(&mut self, checks: &[Check], count: u64) {
        checks.iter().for_each(|check| self.checked(*check, count));
    }

    /// Something does not hold.
    pub fn found(&mut self, check: Check, finding: Finding) {
        let under = self.under(check);
        under.begun = true;
        under.found += 1;
        if under.findings.len() < FINDINGS_MAX {
            under.findings.push(finding);
        }
    }

    /// Something could not be looked at.
    pub fn missing(&mut self, check: Check, why: impl ToString) {
        let under = self.under(check);
        under.begun = true;
        if under.missing.len() < FINDINGS_MAX {
            under.missing.insert(why.to_string());
        }
    }

    /// One thing was looked at and does or does not hold.
    pub fn record<E: ToString>(&mut self, check: Check, outcome: Result<(), E>) -> bool {
        self.checked(check, 1);
        let holds = outcome.is_ok();
        if let Err(error) = outcome {
            self.found(check, Finding::new(error));
        }
        holds
    }

    /// Takes over what came of the checks of one of several sides.
    pub fn absorb(&mut self, side: &str, lines: &[Line]) {
        let named = |text: &str| format!("{side}: {text}");
        for line in lines {
            if line.status == Status::NotRequired && line.not_done.is_empty() {
                self.not_required(line.check);
                continue;
            }
            let under = self.under(line.check);
            under.begun = true;
            under.checked += line.checked;
            under.missing.extend(line.not_done.iter().map(|why| named(why)));
            under.found += line.found;
            let named = |f: &Finding| Finding { text: named(&f.text), ..f.clone() };
            under.findings.extend(line.findings.iter().map(named));
        }
    }

    /// Nobody asks for it.
    pub fn not_required(&mut self, check: Check) {
        self.under(check).asked = false;
    }

    /// Whether `check` was done and nothing was found that speaks against it.
    pub fn holds(&self, check: Check) -> bool {
        let holds = |under: &Under| under.begun && under.found == 0 && under.missing.is_empty();
        self.lines.get(&check).is_some_and(holds)
    }

    /// Whether something was found that speaks against `check`.
    pub fn failed(&self, check: Check) -> bool {
        self.findings(check) > 0
    }

    /// How many things were found that speak against `check`.
    pub fn findings(&self, check: Check) -> u64 {
        self.lines.get(&check).map_or(0, |under| under.found)
    }

    /// The first things that were found to speak against `check`.
    pub fn found_of(&self, check: Check) -> &[Finding] {
        self.lines.get(&check).map_or(&[], |under| &under.findings)
    }

    /// What came of each, in the order of [`Check`].
    pub fn lines(self) -> Vec<Line> {
        let waived = self.waived;
        let line = |(check, under): (Check, Under)| {
            let undone = !under.begun || !under.missing.is_empty();
            let status = match () {
                () if under.found > 0 => Status::Failed,
                () if !under.asked || undone && waived.contains(&check) => Status::NotRequired,
                () if undone => Status::NotDone,
                () => Status::Passed,
            };
            let reached = under.begun || !under.asked;
            let why = (!reached).then(|| "an earlier check failed".to_owned());
            let not_done = why.into_iter().chain(under.missing).collect();
            let Under { checked, found, findings, .. } = under;
            Line { check, status, checked, not_done, found, findings }
        };
        self.lines.into_iter().map(line).collect()
    }
}

/// What `lines` come to together.
pub fn verdict(lines: &[Line]) -> Verdict {
    let failed = |line: &&Line| line.status == Status::Failed;
    if lines.iter().filter(failed).any(|line| line.check.is_signature()) {
        return Verdict::BadSignature;
    }
    if lines.iter().filter(failed).any(|line| line.check == Check::AnchoredHeads) {
        return Verdict::Contradiction;
    }
    if lines.iter().any(|line| failed(&line)) {
        return Verdict::Mismatch;
    }
    if lines.iter().any(|line| line.status == Status::NotDone) {
        return Verdict::Incomplete;
    }
    Verdict::Passed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(fill: impl FnOnce(&mut Checklist), waived: &[Check]) -> (Vec<Status>, Verdict) {
        let checks = [Check::RoundsSignature, Check::Plan, Check::Fold];
        let mut list = Checklist::new(&checks, &waived.iter().copied().collect());
        fill(&mut list);
        let lines = list.lines();
        (lines.iter().map(|line| line.status).collect(), verdict(&lines))
    }

    #[test]
    fn what_nobody_did_is_not_done_and_never_ok() {
        use Status::{Failed, NotDone, NotRequired, Passed};
        let all = |list: &mut Checklist| {
            Check::ALL[..]
                .iter()
                .filter(|c| list.lines.contains_key(c))
                .copied()
                .collect::<Vec<_>>()
        };
        assert_eq!(lines(|_| {}, &[]), (vec![NotDone; 3], Verdict::Incomplete));
        let pass = |list: &mut Checklist| all(list).into_iter().for_each(|c| list.checked(c, 1));
        assert_eq!(lines(pass, &[]), (vec![Passed; 3], Verdict::Passed));
        let partly = |list: &mut Checklist| {
            pass(list);
            list.missing(Check::Plan, "no delta");
        };
        assert_eq!(lines(partly, &[]), (vec![Passed, NotDone, Passed], Verdict::Incomplete));
        let waived = (vec![Passed, NotRequired, Passed], Verdict::Passed);
        assert_eq!(lines(partly, &[Check::Plan]), waived);
        let fail = |list: &mut Checklist| {
            partly(list);
            list.found(Check::Plan, Finding::new("other"));
        };
        assert_eq!(lines(fail, &[Check::Plan]), (vec![Passed, Failed, Passed], Verdict::Mismatch));
        let forged = |list: &mut Checklist| {
            fail(list);
            list.found(Check::RoundsSignature, Finding::new("wrong"));
        };
        assert_eq!(lines(forged, &[]).1, Verdict::BadSignature);
    }

    #[test]
    fn a_name_reads_back() {
        for check in Check::ALL {
            assert_eq!(check.as_str().parse(), Ok(check));
            assert_eq!(serde_json::to_value(check).unwrap(), check.as_str());
        }
        assert!("folds".parse::<Check>().is_err());
    }
}
