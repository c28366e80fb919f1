//! Signed submissions: a statement goes into the log, its receipt comes back.
//!
//! Any number of clients hand statements to one [`Submitter`]; its thread appends what has gathered
//! in one commit, so that each is answered only after the sync that made it durable, and many share
//! one. The delta itself is stored before its statement, by whoever received it.

use std::{
    collections::BTreeMap,
    sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    thread::JoinHandle,
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    codec::statement::Statement,
    merkle::{
        head::TreeHead,
        note::VerifierKey,
        tree::{leaf_hash, verify_inclusion},
    },
    store::open_round::OpenRound,
    types::{
        digest::Digest,
        json,
        manifest::ManifestId,
        progress::Silent,
        record::MinersPolicy,
        refusal::{Code, Refusal},
        submission::{SignatureHex, Signed, Submission},
    },
};

use super::{Ledger, LedgerError, writer::LedgerWriter};

/// Most statements of one commit.
const BATCH_MAX: usize = 256;

/// Version of the receipts that are written and read.
const RECEIPT_VERSION: u64 = 1;

/// The round of a run that has none yet.
const FIRST_ROUND: u64 = 1;

/// A statement with its signature, and what intake found of its delta.
#[derive(Clone, Debug)]
pub struct SignedStatement {
    /// What was signed.
    pub statement: Statement,
    /// By the statement's hotkey.
    pub signature: [u8; 64],
    /// The stored delta; its root and length are the statement's.
    pub delta: ManifestId,
    /// Why it does not count, if it does not.
    pub refused: Option<Refusal>,
}

/// What a miner keeps: that its statement is in the log, under a head that the operator signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// Version of this document: 1.
    pub version: u64,
    /// The run's id.
    pub run_id: Digest,
    /// SHA-256 of the signed 162 bytes: what the submission is known by.
    pub statement: Digest,
    /// Index in the submissions log.
    pub index: u64,
    /// The log's entry, as canonical JSON.
    pub entry: String,
    /// RFC 6962 inclusion proof of the entry in the head's tree.
    pub proof: Vec<Digest>,
    /// The signed head (C2SP signed note).
    pub head: String,
}

/// A receipt that does not prove what it says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum ReceiptError {
    #[error("the head is not signed by the log's key: {0}")]
    Head(#[from] crate::merkle::head::HeadError),
    #[error("the entry is not in the head's tree: {0}")]
    Inclusion(#[from] crate::merkle::tree::ProofError),
    #[error("the entry: {0}")]
    Entry(#[from] json::JsonError),
    #[error("the receipt's version is {found}; {RECEIPT_VERSION} is read")]
    Version { found: u64 },
    #[error("the entry is not a signed submission")]
    Kind,
    #[error("the entry's statement is {found}, not {expected}")]
    Statement { expected: Digest, found: Digest },
    #[error("the statement: {0}")]
    Signature(#[from] crate::codec::statement::StatementError),
}

impl Receipt {
    /// Checks the receipt with a key from outside: signature of the head, inclusion of the entry, and
    /// the miner's own signature in it.
    ///
    /// The key is the one that signed when the receipt was given: a rotation of the log key changes
    /// nothing about receipts of before.
    ///
    /// # Errors
    ///
    /// [`ReceiptError`] names the first thing that does not hold.
    pub fn verify(&self, submissions_key: &VerifierKey) -> Result<Signed, ReceiptError> {
        if self.version != RECEIPT_VERSION {
            return Err(ReceiptError::Version { found: self.version });
        }
        let head = TreeHead::open(self.head.as_bytes(), submissions_key)?;
        let leaf = leaf_hash(self.entry.as_bytes());
        verify_inclusion(self.index, head.size, &leaf, &self.proof, &head.root)?;
        let Submission::Signed(signed) = json::from_slice(self.entry.as_bytes())? else {
            return Err(ReceiptError::Kind);
        };
        let statement = statement_of(self.run_id, &signed);
        statement.verify(&signed.signature.0)?;
        if statement.id() != self.statement {
            return Err(ReceiptError::Statement {
                expected: self.statement,
                found: statement.id(),
            });
        }
        Ok(signed)
    }
}

/// The receipt of the signed statement at `index` under the ledger's newest published head; none if a
/// file that was fetched is there.
///
/// # Errors
///
/// [`LedgerError`] if the log does not reach to it, or does not read.
pub fn receipt(ledger: &Ledger, index: u64) -> Result<Option<Receipt>, LedgerError> {
    let (log, run_id) = (ledger.submissions_log(), ledger.run_id());
    let bytes = log.entry(index)?;
    let read = |source| LedgerError::Entry { log: "submissions", index, source };
    let Submission::Signed(signed) = json::from_slice(&bytes).map_err(read)? else {
        return Ok(None);
    };
    Ok(Some(Receipt {
        version: RECEIPT_VERSION,
        run_id,
        statement: statement_of(run_id, &signed).id(),
        index,
        entry: String::from_utf8_lossy(&bytes).into_owned(),
        proof: log.inclusion_proof(index, log.size())?,
        head: String::from_utf8_lossy(log.note()).into_owned(),
    }))
}

/// The bytes that a logged submission's miner signed.
pub fn statement_of(run: Digest, signed: &Signed) -> Statement {
    Statement {
        run,
        round: signed.round,
        base: signed.base,
        delta: signed.delta.root,
        delta_bytes: signed.delta.bytes,
        hotkey: signed.hotkey,
    }
}

/// Whether a logged submission is this statement, by whichever signature.
pub(super) fn is_statement(ledger: &Ledger, logged: &Submission, statement: &Statement) -> bool {
    match logged {
        Submission::Signed(signed) => statement_of(ledger.run_id(), signed) == *statement,
        Submission::Fetched(_) => false,
    }
}

/// The round that takes submissions now: the one that was opened, or the one after the last.
///
/// # Errors
///
/// [`LedgerError`] if the open round's file does not read.
pub fn open_round(ledger: &Ledger) -> Result<u64, LedgerError> {
    let last = ledger.sealed().last().map(|s| s.record.round);
    let opened = OpenRound::load(ledger.place())?.map(|open| open.round);
    let after = last.map_or(FIRST_ROUND, |last| last + 1);
    Ok(opened.filter(|&round| round >= after).unwrap_or(after))
}

/// Whether the ledger takes this statement into its log.
///
/// Wrong signatures, miners who are not listed, and rounds that are closed or not open yet are
/// answers to the submitter. Another base, a second delta or a copied one enter the log, and the
/// round's dispositions say why they do not count.
///
/// # Errors
///
/// The outer error is the ledger's; the inner one the answer.
pub fn check_statement(
    ledger: &Ledger,
    submission: &SignedStatement,
) -> Result<Result<(), Refusal>, LedgerError> {
    let Statement { run, round, delta, delta_bytes, hotkey, .. } = submission.statement;
    let bad = |want: String, found: String| Refusal::new(Code::BadSignature, None, want, found);
    if run != ledger.run_id() {
        return Ok(Err(bad(format!("a statement of run {}", ledger.run_id()), run.to_hex())));
    }
    if let Err(error) = submission.statement.verify(&submission.signature) {
        return Ok(Err(bad("the hotkey's signature of the statement".into(), error.to_string())));
    }
    if (delta, delta_bytes) != (submission.delta.root, submission.delta.bytes) {
        let want = format!("a statement of delta {}", submission.delta.root);
        return Ok(Err(bad(want, delta.to_hex())));
    }
    if let Err(refusal) = check_listed(ledger, hotkey) {
        return Ok(Err(refusal));
    }
    check_open(ledger, round)
}

/// Whether the genesis lists this hotkey.
///
/// # Errors
///
/// The answer to whoever it is.
pub fn check_listed(ledger: &Ledger, hotkey: Digest) -> Result<(), Refusal> {
    match &ledger.genesis().miners {
        MinersPolicy::Hotkeys(keys) if keys.contains(&hotkey) => Ok(()),
        _ => {
            let want = "a hotkey that the genesis lists";
            Err(Refusal::new(Code::NotListed, None, want, hotkey.to_hex()))
        }
    }
}

/// Where a statement that nobody has signed yet would stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is in the log already, maybe of a sealed round.
    Logged,
    /// It would be taken, and count as the log stands.
    Open,
    /// It would not be taken, or not count.
    Refused(Refusal),
}

/// Asks for a statement's place before its delta is sent: what it would be refused for in the end.
///
/// # Errors
///
/// [`LedgerError`] if the log does not read.
pub fn standing(writer: &mut LedgerWriter, statement: &Statement) -> Result<Standing, LedgerError> {
    let ledger = writer.ledger();
    if let Err(refusal) = check_listed(ledger, statement.hotkey) {
        return Ok(Standing::Refused(refusal));
    }
    match check_open(ledger, statement.round)? {
        Err(refusal) if refusal.code == Code::Late => {
            let sealed = sealed_before(writer, statement)?.is_some();
            return Ok(if sealed { Standing::Logged } else { Standing::Refused(refusal) });
        }
        Err(refusal) => return Ok(Standing::Refused(refusal)),
        Ok(()) => {}
    }
    let base = ledger.newest().root;
    let window = ledger.window_start()..ledger.submissions_log().size();
    for (_, submission) in ledger.submissions(window)? {
        let Submission::Signed(signed) = submission else { continue };
        if statement_of(ledger.run_id(), &signed) == *statement {
            return Ok(Standing::Logged);
        }
        let same = (signed.hotkey, signed.round) == (statement.hotkey, statement.round);
        if same && signed.base == base && signed.refused.is_none() {
            let want = format!("delta {}, which this hotkey submitted", signed.delta.root);
            let found = statement.delta.to_hex();
            let refusal = Refusal::new(Code::DuplicateSubmission, None, want, found);
            return Ok(Standing::Refused(refusal));
        }
    }
    if statement.base != base {
        let want = format!("the newest state, {base}");
        let refusal = Refusal::new(Code::WrongBase, None, want, statement.base.to_hex());
        return Ok(Standing::Refused(refusal));
    }
    Ok(Standing::Open)
}

/// Whether `round` is the one that takes submissions now.
///
/// # Errors
///
/// As [`check_statement`].
pub fn check_open(ledger: &Ledger, round: u64) -> Result<Result<(), Refusal>, LedgerError> {
    let open = open_round(ledger)?;
    let code = match round.cmp(&open) {
        std::cmp::Ordering::Less => Code::Late,
        std::cmp::Ordering::Equal => return Ok(Ok(())),
        std::cmp::Ordering::Greater => Code::WrongRound,
    };
    Ok(Err(Refusal::new(code, None, format!("round {open}, which is open"), round.to_string())))
}

/// What a submitter is answered.
pub type Answer = Result<Result<Receipt, Refusal>, LedgerError>;

struct Request {
    submission: SignedStatement,
    answer: SyncSender<Answer>,
}

/// What else is done with the ledger that a [`Submitter`] holds.
type Task = Box<dyn FnOnce(&mut LedgerWriter) + Send>;

enum Job {
    Submit(Box<Request>),
    Task(Task),
    End,
}

/// Appends statements for any number of clients, many in one commit.
pub struct Submitter {
    requests: Sender<Job>,
    thread: JoinHandle<LedgerWriter>,
}

/// A client's end of a [`Submitter`]; cheap to clone.
#[derive(Clone)]
pub struct SubmitHandle {
    requests: Sender<Job>,
}

impl Submitter {
    /// Takes a ledger over until [`Submitter::finish`].
    ///
    /// Whoever expects many submissions opens the index first ([`LedgerWriter::index`]): else the
    /// first statement of a sealed round waits for it, and those that are handed in meanwhile.
    pub fn start(writer: LedgerWriter) -> Self {
        let (requests, received) = channel();
        let thread = std::thread::spawn(move || serve(writer, &received));
        Self { requests, thread }
    }

    /// An end for one more client.
    pub fn handle(&self) -> SubmitHandle {
        SubmitHandle { requests: self.requests.clone() }
    }

    /// Answers what was handed in and gives the ledger back. What is handed in later is not taken.
    ///
    /// # Panics
    ///
    /// If the submitter's thread did.
    pub fn finish(self) -> LedgerWriter {
        // If it has ended by itself, joining says why.
        let _ = self.requests.send(Job::End);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl SubmitHandle {
    /// Hands a statement in and waits until it is durable in the log, or refused.
    ///
    /// The same statement again gives the same index, also when its round is sealed by then.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if the log could not be written; the inner error is the refusal.
    pub fn submit(&self, submission: SignedStatement) -> Answer {
        let (answer, answered) = sync_channel(1);
        let lost = || LedgerError::SubmitterGone;
        let request = Job::Submit(Box::new(Request { submission, answer }));
        self.requests.send(request).map_err(|_| lost())?;
        answered.recv().map_err(|_| lost())?
    }

    /// Does something else with the ledger, after what was handed in before, and waits for it: a
    /// question that only the writer can answer, or a seal.
    ///
    /// If it failed in the logs, the ledger is read again before the next one.
    ///
    /// # Errors
    ///
    /// [`LedgerError::SubmitterGone`], or what `task` gives.
    pub fn with<T: Send + 'static>(
        &self,
        task: impl FnOnce(&mut LedgerWriter) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let (answer, answered) = sync_channel(1);
        let lost = || LedgerError::SubmitterGone;
        let task = move |writer: &mut LedgerWriter| {
            let done = task(writer);
            if let Err(LedgerError::Store(_)) = &done {
                recover(writer);
            }
            let _ = answer.send(done);
        };
        self.requests.send(Job::Task(Box::new(task))).map_err(|_| lost())?;
        answered.recv().map_err(|_| lost())?
    }
}

fn serve(mut writer: LedgerWriter, jobs: &Receiver<Job>) -> LedgerWriter {
    let mut known = Known::default();
    while let Ok(first) = jobs.recv() {
        let mut next = Some(first);
        let mut batch = Vec::new();
        while let Some(Job::Submit(request)) = next {
            batch.push(*request);
            next = (batch.len() < BATCH_MAX).then(|| jobs.try_recv().ok()).flatten();
        }
        answer_batch(&mut writer, &mut known, batch);
        match next {
            Some(Job::Task(task)) => {
                let size = writer.ledger().submissions_log().size();
                task(&mut writer);
                if writer.ledger().submissions_log().size() != size {
                    known = Known::default();
                }
            }
            Some(Job::End) => break,
            Some(Job::Submit(_)) | None => {}
        }
    }
    writer
}

/// A log that failed takes nothing more; what the disk holds is read anew, and more may fit by then.
fn recover(writer: &mut LedgerWriter) {
    if let Err(error) = writer.reopen() {
        tracing::error!(%error, "the ledger could not be read again");
    }
}

fn answer_batch(writer: &mut LedgerWriter, known: &mut Known, batch: Vec<Request>) {
    if batch.is_empty() {
        return;
    }
    let (submissions, answers): (Vec<_>, Vec<_>) =
        batch.into_iter().map(|r| (r.submission, r.answer)).unzip();
    match submit_batch(writer, known, &submissions) {
        Ok(receipts) => {
            for (answer, receipt) in answers.into_iter().zip(receipts) {
                // A client that went away is told nothing; its statement stands.
                let _ = answer.send(Ok(receipt));
            }
        }
        Err(error) => {
            // Some of it may be in the log all the same.
            *known = Known::default();
            recover(writer);
            let (text, full) = (error.to_string(), error.is_full());
            for answer in answers {
                let _ = answer.send(Err(LedgerError::Submit { reason: text.clone(), full }));
            }
        }
    }
}

/// Statements of the open window by their id, with their index: read once, then kept up to date.
#[derive(Default)]
pub struct Known {
    window_start: Option<u64>,
    indices: BTreeMap<Digest, u64>,
}

impl Known {
    /// Reads what is not known yet: all of it the first time, and after a seal.
    fn refresh(&mut self, ledger: &Ledger) -> Result<(), LedgerError> {
        if self.window_start == Some(ledger.window_start()) {
            return Ok(());
        }
        self.indices.clear();
        let window = ledger.window_start()..ledger.submissions_log().size();
        for (index, submission) in ledger.submissions(window)? {
            if let Submission::Signed(signed) = submission {
                let id = statement_of(ledger.run_id(), &signed).id();
                self.indices.entry(id).or_insert(index);
            }
        }
        self.window_start = Some(ledger.window_start());
        Ok(())
    }
}

/// Appends a batch of statements in one commit; one answer each, in order.
///
/// # Errors
///
/// [`LedgerError`] if the log could not be written: then nobody is acknowledged.
pub fn submit_batch(
    writer: &mut LedgerWriter,
    known: &mut Known,
    submissions: &[SignedStatement],
) -> Result<Vec<Result<Receipt, Refusal>>, LedgerError> {
    let ledger = writer.ledger();
    known.refresh(ledger)?;
    let run = ledger.run_id();
    let size = ledger.submissions_log().size();
    let (mut fresh, mut entries, mut places) = (BTreeMap::new(), Vec::new(), Vec::new());
    // Most of a batch's work is its signatures, so all cores share them.
    let checks: Vec<_> =
        submissions.par_iter().map(|submission| check_statement(ledger, submission)).collect();
    for (submission, check) in submissions.iter().zip(checks) {
        let id = submission.statement.id();
        places.push(match check? {
            // Its first answer may have been lost, and its round sealed meanwhile.
            Err(refusal) if refusal.code == Code::Late => {
                sealed_before(writer, &submission.statement)?.map(|at| (id, at)).ok_or(refusal)
            }
            Err(refusal) => Err(refusal),
            Ok(()) => Ok((
                id,
                known.indices.get(&id).copied().unwrap_or_else(|| {
                    *fresh.entry(id).or_insert_with(|| {
                        entries.push(entry(submission));
                        size + entries.len() as u64 - 1
                    })
                }),
            )),
        });
    }
    if !entries.is_empty() {
        writer.append_submissions(&entries)?;
        known.indices.extend(fresh);
    }
    let log = writer.ledger().submissions_log();
    let indices: Vec<u64> = places.iter().flatten().map(|(_, index)| *index).collect();
    let mut proofs = log.inclusion_proofs(&indices, log.size())?.into_iter();
    let mut receipt = |(statement, index): (Digest, u64)| -> Result<Receipt, LedgerError> {
        let appended =
            index.checked_sub(size).and_then(|at| entries.get(usize::try_from(at).ok()?));
        let bytes = match appended {
            Some(entry) => json::to_vec(entry),
            None => log.entry(index)?,
        };
        Ok(Receipt {
            version: RECEIPT_VERSION,
            run_id: run,
            statement,
            index,
            entry: String::from_utf8_lossy(&bytes).into_owned(),
            proof: proofs.next().expect("a proof a place"),
            head: String::from_utf8_lossy(log.note()).into_owned(),
        })
    };
    places
        .into_iter()
        .map(|place| place.map_or_else(|refusal| Ok(Err(refusal)), |at| receipt(at).map(Ok)))
        .collect()
}

/// Where a statement of a sealed round stands in the log, if it does.
fn sealed_before(
    writer: &mut LedgerWriter,
    statement: &Statement,
) -> Result<Option<u64>, LedgerError> {
    let found =
        writer.index(&Silent).and_then(|(ledger, index)| index.statement(ledger, statement));
    match found {
        // The index only saves reading the round's window of the log.
        Err(LedgerError::Index(_)) => in_window(writer.ledger(), statement),
        found => found,
    }
}

fn in_window(ledger: &Ledger, statement: &Statement) -> Result<Option<u64>, LedgerError> {
    let Ok(position) = ledger.position(statement.round) else { return Ok(None) };
    let window = ledger.sealed()[position].record.submissions;
    let is_it = |submission: &Submission| is_statement(ledger, submission, statement);
    let submissions = ledger.submissions(window.start..window.end)?;
    Ok(submissions.into_iter().find(|(_, submission)| is_it(submission)).map(|(index, _)| index))
}

fn entry(submission: &SignedStatement) -> Submission {
    Submission::Signed(Signed {
        round: submission.statement.round,
        base: submission.statement.base,
        delta: submission.delta,
        hotkey: submission.statement.hotkey,
        signature: SignatureHex(submission.signature),
        refused: submission.refused.clone(),
    })
}
