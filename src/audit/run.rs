//! Auditing a whole ledger, or some rounds, one tensor, or a sample of its pieces.
//!
//! From the outside in: signatures and logs, then each record from the log alone, then what intake
//! said, then plan and fold. Nothing is written and no lock is taken, so a directory that may only be
//! read will do. What is not there (dropped states, a copy without segments) is said to be not done.
//!
//! Cost: a whole audit reads every delta twice and folds every round; a sample reads what its pieces
//! need.

mod contents;

use std::{ops::RangeInclusive, path::Path, sync::Arc};

use super::{
    anchors::check_anchors,
    checks::{Check, Checklist, Finding},
    heads::{KeptHeads, check_continues},
    receipts::check_receipts,
    report::{Evidence, Report, Scope, Subject, TrustView},
    trust::Trust,
};
use crate::{
    ledger::{
        Ledger, LedgerError,
        anchored::AnchorTrust,
        check::{
            Before, CheckedRound, check_dispositions, check_record, check_rotations,
            check_statement, check_window, derive,
        },
        seal::FoldOptions,
        submit::Receipt,
        thread_pool,
    },
    merkle::{head::TreeHead, note::SignedNote},
    store::{
        StoreError,
        files::{Disk, Files},
        log::LogError,
        segment,
    },
    types::{json, progress::Progress, submission::Submission},
};

/// What to audit.
#[derive(Clone, Debug, Default)]
pub struct AuditOptions<'a> {
    /// These rounds; their ends must be rounds of the ledger.
    pub rounds: Option<RangeInclusive<u64>>,
    /// This tensor alone.
    pub tensor: Option<String>,
    /// So many pieces drawn from this seed, not all.
    pub sample: Option<(u64, Vec<u8>)>,
    /// A sample, too, derives plans from whole deltas.
    pub plan: bool,
    /// Where the auditor keeps the newest head of each log: on the local disk, wherever the ledger is.
    pub heads: Option<&'a Path>,
    /// Receipts that the auditor holds.
    pub receipts: Vec<Receipt>,
    /// How anchors are judged.
    pub anchors: AnchorOptions<'a>,
    /// How to fold.
    pub fold: FoldOptions,
}

/// How an audit judges anchors. Contradictions always count.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnchorOptions<'a> {
    /// What is known of the chain from elsewhere.
    pub trust: AnchorTrust<'a>,
    /// Receipts are required, and have to prove what they say.
    pub required: bool,
    /// Takes blocks that no authority set signed for.
    pub included: bool,
    /// In which blocks every commitment of the hotkey should be accounted for; none means from the
    /// first receipt to the last.
    pub blocks: Option<(u32, u32)>,
}

/// What an audit checks.
const CHECKS: [Check; 19] = [
    Check::RoundsSignature,
    Check::SubmissionsSignature,
    Check::Witnesses,
    Check::Consistency,
    Check::RoundsLog,
    Check::SubmissionsLog,
    Check::Records,
    Check::Windows,
    Check::Statements,
    Check::Dispositions,
    Check::Derivation,
    Check::Receipts,
    Check::Acceptances,
    Check::Refusals,
    Check::Descriptor,
    Check::Plan,
    Check::Fold,
    Check::AnchorReceipts,
    Check::AnchoredHeads,
];

/// Those of them that look at each round.
const OF_ROUNDS: [Check; 5] =
    [Check::Records, Check::Windows, Check::Statements, Check::Dispositions, Check::Derivation];

/// Audits the ledger in `root`: a directory's, or a server's through [`crate::store::remote`].
///
/// # Errors
///
/// [`LedgerError`] if there is no ledger, an option names what it does not have, or the auditor's own
/// directory of heads cannot be read. What is wrong with the ledger is in the report.
pub fn audit(
    files: Arc<dyn Files>,
    root: &Path,
    options: &AuditOptions<'_>,
    trust: &Trust,
    progress: &dyn Progress,
) -> Result<Report, LedgerError> {
    let mut list = Checklist::new(&CHECKS, &trust.waived);
    let ledger = match Ledger::open_in(files, root) {
        Ok(ledger) => ledger,
        Err(error) if speaks_of_entries(&error) => {
            list.found(filed(&error), Finding::new(error));
            let scope = Scope { rounds: None, count: 0, tensor: None, sample: None };
            return Ok(Report::new(None, scope, trust_view(trust), list.lines()));
        }
        Err(error) => return Err(error),
    };
    let positions = positions(&ledger, options.rounds.as_ref())?;
    let pool = thread_pool(options.fold.threads)?;
    let (mut evidence, mut anchors) = (Vec::new(), None);
    let scope = pool.install(|| {
        let evidence = &mut evidence;
        let mut audit = Audit { ledger: &ledger, options, list: &mut list, evidence, progress };
        audit.heads(trust)?;
        audit.logs();
        if let Err(error) = check_rotations(&ledger) {
            audit.list.found(Check::Records, Finding::new(error));
        }
        if positions.is_empty() {
            audit.list.all_checked(&OF_ROUNDS, 0);
        }
        let rounds: Vec<_> =
            positions.clone().map(|position| (position, audit.round(position))).collect();
        let scope = audit.contents(&positions, &rounds)?;
        audit.receipts(trust);
        audit.pieces();
        anchors = check_anchors(audit.list, audit.ledger, &audit.options.anchors)?;
        Ok::<_, LedgerError>(scope)
    })?;
    if let Some(dir) = options.heads {
        keep_heads(&ledger, &list, dir)?;
    }
    let subject = Subject {
        run: ledger.genesis().run.clone(),
        run_id: ledger.run_id(),
        rounds: ledger.rounds_log().head().into(),
        submissions: ledger.submissions_log().head().into(),
    };
    let report = Report::new(Some(subject), scope, trust_view(trust), list.lines());
    Ok(Report { evidence, anchors, ..report })
}

/// Under which check it falls that a ledger does not open.
fn filed(error: &LedgerError) -> Check {
    match error {
        LedgerError::Store(StoreError::Log(LogError::Head { path, .. })) => {
            match path.parent().and_then(Path::file_name).is_some_and(|log| log == "rounds") {
                true => Check::RoundsSignature,
                false => Check::SubmissionsSignature,
            }
        }
        _ => Check::Records,
    }
}

/// Whether a ledger does not open because of what its log says, not of what is missing.
fn speaks_of_entries(error: &LedgerError) -> bool {
    match error {
        LedgerError::Entry { .. }
        | LedgerError::EntryKind { .. }
        | LedgerError::GenesisVersion { .. }
        | LedgerError::GenesisKeys(_)
        | LedgerError::Rotation { .. }
        | LedgerError::Note(_)
        | LedgerError::Rule(_) => true,
        LedgerError::Store(error) => error.is_mismatch(),
        _ => false,
    }
}

fn positions(
    ledger: &Ledger,
    wanted: Option<&RangeInclusive<u64>>,
) -> Result<std::ops::Range<usize>, LedgerError> {
    match wanted {
        None => Ok(0..ledger.sealed().len()),
        Some(wanted) => Ok(ledger.position(*wanted.start())?..ledger.position(*wanted.end())? + 1),
    }
}

fn trust_view(trust: &Trust) -> TrustView {
    let logs = trust.policy.iter().flat_map(|policy| policy.logs());
    TrustView {
        log_keys: logs.map(ToString::to_string).collect(),
        witnesses: trust.policy.as_ref().is_some_and(|policy| policy.asks_witnesses()),
        waived: trust.waived.iter().map(|check| check.as_str()).collect(),
    }
}

/// Keeps the heads that were found signed, consistent and borne out by their logs.
fn keep_heads(ledger: &Ledger, list: &Checklist, dir: &Path) -> Result<(), LedgerError> {
    let kept = KeptHeads::new(&Disk, dir);
    if list.failed(Check::Consistency) {
        return Ok(());
    }
    for (log, signature, whole) in [
        (ledger.rounds_log(), Check::RoundsSignature, Check::RoundsLog),
        (ledger.submissions_log(), Check::SubmissionsSignature, Check::SubmissionsLog),
    ] {
        if list.holds(signature) && list.holds(whole) {
            kept.keep(&log.head().origin, log.note())?;
        }
    }
    Ok(())
}

/// An audit under way.
struct Audit<'a> {
    ledger: &'a Ledger,
    options: &'a AuditOptions<'a>,
    list: &'a mut Checklist,
    evidence: &'a mut Vec<Evidence>,
    progress: &'a dyn Progress,
}

/// A round whose window reads.
struct Window {
    /// What follows from its submissions.
    checked: CheckedRound,
    submissions: Vec<(u64, Submission)>,
    /// Whether the record says the same.
    follows: bool,
}

type Followed = Option<Window>;

impl Audit<'_> {
    /// Signatures of both heads, and that they continue the kept ones.
    fn heads(&mut self, trust: &Trust) -> Result<(), LedgerError> {
        let ledger = self.ledger;
        let (rounds, submissions) = (ledger.rounds_log(), ledger.submissions_log());
        let chain = Some(ledger.keys());
        trust.head(self.list, Check::RoundsSignature, rounds.note(), chain);
        trust.head(self.list, Check::SubmissionsSignature, submissions.note(), chain);
        let origin = &ledger.genesis().origin;
        for (log, name) in [(rounds, "rounds"), (submissions, "submissions")] {
            let expected = format!("{origin}/{name}");
            if log.head().origin != expected {
                let text = format!("the {name} log calls itself {:?}", log.head().origin);
                self.list.found(Check::Records, Finding::new(text));
            }
        }
        let Some(dir) = self.options.heads else {
            self.list.not_required(Check::Consistency);
            return Ok(());
        };
        let kept = KeptHeads::new(&Disk, dir);
        let mut any = false;
        for log in [rounds, submissions] {
            let Some(note) = kept.load(&log.head().origin)? else { continue };
            any = true;
            // Either head may be of a key that another took over from.
            let old = SignedNote::parse(&note).ok();
            let old = old.and_then(|note| TreeHead::parse(note.text()).ok());
            let mut keys = trust.keys(log.head(), chain);
            keys.extend(old.map_or_else(Vec::new, |old| trust.keys(&old, chain)));
            if check_continues(self.list, log, &note, &keys) {
                let (origin, published) = (log.head().origin.clone(), log.note().to_vec());
                self.evidence.push(Evidence::Fork { origin, kept: note, published });
            }
        }
        if !any {
            self.list.not_required(Check::Consistency);
        }
        Ok(())
    }

    /// The logs' entries give every tile and the heads.
    fn logs(&mut self) {
        let (rounds, submissions) = (self.ledger.rounds_log(), self.ledger.submissions_log());
        for (check, log) in [(Check::RoundsLog, rounds), (Check::SubmissionsLog, submissions)] {
            match log.verify(&mut |_, _| {}) {
                Ok(()) => self.list.checked(check, log.size()),
                Err(error) => self.stored(check, None, &error.into()),
            }
        }
    }

    fn stored(&mut self, check: Check, round: Option<u64>, error: &StoreError) {
        if error.is_mismatch() {
            self.list.found(check, Finding { round, ..Finding::new(error) });
        } else {
            self.list.missing(check, error);
        }
    }

    /// What follows about a round from the logs alone. What does not may be shown to others: the
    /// records, or the round with all its entries.
    fn round(&mut self, position: usize) -> Followed {
        const OF_RECORDS: [Check; 2] = [Check::Records, Check::Windows];
        const OF_ENTRIES: [Check; 2] = [Check::Statements, Check::Derivation];
        let found = |list: &Checklist| {
            [OF_RECORDS, OF_ENTRIES].map(|checks| checks.map(|check| list.findings(check)))
        };
        let before = found(self.list);
        let followed = self.follow(position);
        let [records, entries] = found(self.list);
        let round = self.ledger.sealed()[position].record.round;
        if records != before[0] {
            self.evidence.push(Evidence::Records(round));
        }
        if entries != before[1] {
            self.evidence.push(Evidence::Round(round));
        }
        followed
    }

    /// What was promised to those whose receipts the auditor holds.
    fn receipts(&mut self, trust: &Trust) {
        let receipts = &self.options.receipts;
        if receipts.is_empty() {
            return self.list.not_required(Check::Receipts);
        }
        self.evidence.extend(check_receipts(self.list, self.ledger, receipts, trust));
    }

    /// Each piece that was found not to follow, and each false refusal, may be shown to others.
    fn pieces(&mut self) {
        let refusals = self.list.found_of(Check::Refusals).iter().filter_map(|found| found.index);
        self.evidence.extend(refusals.map(Evidence::Refusal));
        for finding in self.list.found_of(Check::Fold) {
            let Finding { round: Some(round), tensor: Some(tensor), piece: Some(piece), .. } =
                finding
            else {
                continue;
            };
            let (round, tensor, piece) = (*round, tensor.clone(), *piece);
            self.evidence.push(Evidence::Fold { round, tensor, piece });
        }
    }

    fn follow(&mut self, position: usize) -> Followed {
        let ledger = self.ledger;
        let record = &ledger.sealed()[position].record;
        let round = record.round;
        let before = Before::of(ledger, position);
        self.say(Check::Records, round, check_record(record, &before));
        let submissions = match check_window(ledger, record, &before) {
            Ok(submissions) => submissions,
            Err(LedgerError::Store(error)) => {
                self.stored(Check::Windows, Some(round), &error);
                return None;
            }
            Err(error) => {
                self.list.found(Check::Windows, Finding::in_round(round, error));
                return None;
            }
        };
        self.list.checked(Check::Windows, 1);
        for (index, submission) in &submissions {
            let verified = check_statement(ledger.run_id(), round, *index, submission);
            self.list.checked(Check::Statements, 1);
            if let Err(error) = verified {
                let finding = Finding { index: Some(*index), ..Finding::in_round(round, error) };
                self.list.found(Check::Statements, finding);
            }
        }
        self.list.checked(Check::Statements, 0);
        let checked = derive(record, &submissions);
        self.stored_dispositions(position, &checked);
        let follows = self.say(Check::Derivation, round, check_dispositions(record, &checked));
        Some(Window { checked, submissions, follows })
    }

    fn say<E: ToString>(&mut self, check: Check, round: u64, outcome: Result<(), E>) -> bool {
        self.list.checked(check, 1);
        let holds = outcome.is_ok();
        if let Err(error) = outcome {
            self.list.found(check, Finding::in_round(round, error));
        }
        holds
    }

    /// The stored table of dispositions, where it is there, is the derived one.
    fn stored_dispositions(&mut self, position: usize, checked: &CheckedRound) {
        let record = &self.ledger.sealed()[position].record;
        let (files, root) = (&*self.ledger.place().files, &self.ledger.place().root);
        let stored = segment::dispositions::read_entries(files, root, &record.dispositions);
        let check = Check::Dispositions;
        match stored.map_err(StoreError::from) {
            Ok(stored) => {
                let derived: Vec<Vec<u8>> =
                    checked.disposed.dispositions.iter().map(json::to_vec).collect();
                let differs = (0..stored.len().max(derived.len())).find(|&at| {
                    stored.get(at).map(|entry| &entry[..]) != derived.get(at).map(|e| &e[..])
                });
                let outcome = differs.map_or(Ok(()), |at| {
                    Err(format!("entry {at} of the stored dispositions is not the derived one"))
                });
                self.say(check, record.round, outcome);
            }
            Err(error) => self.stored(check, Some(record.round), &error),
        }
    }
}
