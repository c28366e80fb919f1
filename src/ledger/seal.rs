//! Sealing a round: dispose, plan, fold, store, then one entry in the rounds log.

use gradledger_kernels::{Divisor, Step, cpu, cuda::Gpu};
use serde::{Deserialize, Serialize};

use crate::{
    codec::layout::{Layout, TensorLayout},
    fold::{Engine, FoldError, FoldJob, FoldOutput, RoundFold, TensorOutcome, fold},
    intake::dispose::{Expected, accepted, dispose},
    plan::{plan, planned_bytes},
    seal::{Disposed, Folded, Planned},
    store::{
        StoreError,
        artifacts::{CheckpointWriter, StoredCheckpoint, StoredDelta},
        machine,
        place::Place,
        segment::{self, SegmentError},
    },
    types::{
        digest::Digest,
        manifest::ManifestId,
        plan::Plan,
        progress::Progress,
        record::{Disposition, RoundRecord, Skipped, Verdict, Window},
        rule::{Dialect, Mean, SparseMeanSgd},
        submission::{Miner, Submission},
    },
};

use super::{
    Ledger, LedgerError, Sealed,
    check::{accepted_deltas, check_round, derive},
    tables, thread_pool,
    writer::LedgerWriter,
};

/// How to run a fold.
#[derive(Clone, Copy, Debug)]
pub struct FoldOptions {
    /// Threads of the arithmetic; 0 means one a core.
    pub threads: usize,
    /// Which kernel, where the processor folds.
    pub path: cpu::Path,
    /// The card that folds whole tensors; the processor where there is none.
    pub gpu: Option<&'static Gpu>,
}

impl FoldOptions {
    /// What does the arithmetic of whole tensors.
    ///
    /// # Errors
    ///
    /// [`FoldError::Cuda`] if the card has failed.
    pub fn engine(&self) -> Result<Engine, FoldError> {
        match self.gpu {
            None => Ok(Engine::Cpu(self.path)),
            Some(gpu) => Ok(Engine::on_card(gpu, machine::memory_bytes())?),
        }
    }
}

impl Default for FoldOptions {
    fn default() -> Self {
        Self { threads: 0, path: cpu::Path::best(), gpu: None }
    }
}

/// What a seal came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SealReport {
    /// The round.
    pub round: u64,
    /// Leaf hash of its record.
    pub record: Digest,
    /// The state after it.
    pub next: ManifestId,
    /// Whose deltas were folded, in ledger order.
    pub accepted: Vec<AcceptedLine>,
    /// Whose were not, and who sent none.
    pub rejected: Vec<RejectedLine>,
    /// Tensors left unchanged since their delta is not finite.
    pub skipped: Vec<String>,
    /// Whether the round was sealed before, and this tells of it again.
    pub already: bool,
}

/// An accepted miner.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AcceptedLine {
    /// Templar's slot, if that is how the miner is known.
    pub uid: Option<u16>,
    /// The hotkey, if that is how the miner is known.
    pub miner: Option<Digest>,
    /// Place in the fold.
    pub order: u64,
}

/// A rejected submission or an absent miner.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RejectedLine {
    /// Templar's slot, if that is how the miner is known.
    pub uid: Option<u16>,
    /// The hotkey, if that is how the miner is known.
    pub miner: Option<Digest>,
    /// The file it came in; null for an absent miner.
    pub file: Option<String>,
    /// The rejection code.
    pub reason: String,
    /// Tensor, expected and found, for people.
    pub details: Option<String>,
}

/// Seals round `round`: what was submitted for it becomes the next state.
///
/// Everything before the entry in the rounds log is invisible and redone after a crash. The newest
/// round, sealed already, gives its report again: the one who asked may not have got it.
///
/// # Errors
///
/// [`LedgerError::Disagrees`] if the newest record does not follow from the logs,
/// [`LedgerError::RoundNotOpen`] if nothing was imported for it, [`LedgerError::NonFinite`] where
/// the native rule would store such a value, others as they come; nothing is sealed then.
pub fn seal(
    writer: &mut LedgerWriter,
    round: u64,
    options: FoldOptions,
    progress: &dyn Progress,
) -> Result<SealReport, LedgerError> {
    // A round is not built on a record that leaves a gap or disposes otherwise than the log says.
    if let Some(newest) = writer.ledger().sealed().len().checked_sub(1) {
        check_round(writer.ledger(), newest)?;
    }
    if writer.ledger().sealed().last().is_some_and(|s| s.record.round == round) {
        update_tables(writer, progress);
        return newest_report(writer.ledger(), true);
    }
    let (disposed, submissions) = dispose_round(writer.ledger(), round)?;
    let folded = fold_round(writer.ledger(), disposed, &submissions, options, progress)?;
    let Planned { disposed, plan } = &folded.planned;
    let record = folded.record();
    let layout = writer.ledger().layout()?;
    store_scalars(writer.ledger().place(), &record, &layout, plan, &disposed.dispositions)
        .map_err(StoreError::from)?;
    writer.append_round(&record)?;
    update_tables(writer, progress);
    newest_report(writer.ledger(), false)
}

/// The round is sealed, whatever becomes of the tables: they are made from it and can be made again.
fn update_tables(writer: &LedgerWriter, progress: &dyn Progress) {
    if let Err(error) = tables::update(writer) {
        progress.note(&format!("the tables were not brought up to date: {error}"));
    }
}

/// Stores the plan and the dispositions: what is hashed, as tables to query.
fn store_scalars(
    place: &Place,
    record: &RoundRecord,
    layout: &Layout,
    plan: &Plan,
    dispositions: &[Disposition],
) -> Result<(), SegmentError> {
    let (files, root) = (&*place.files, &place.root);
    let tensors: Vec<&str> = layout.tensors.iter().map(|t| t.name.as_str()).collect();
    let miners: Vec<Miner> = accepted(dispositions).into_iter().map(|(_, _, m)| m).collect();
    let tmp = place.tmp().join("scalars.parquet");
    segment::plan::write(files, &tmp, plan, &tensors, &miners)?;
    segment::plan::commit(files, root, &tmp, &record.plan)?;
    segment::dispositions::write(files, &tmp, dispositions)?;
    segment::dispositions::commit(files, root, &tmp, &record.dispositions)?;
    Ok(())
}

/// What would come of the submissions so far if `round` were sealed now, and the submissions.
///
/// # Errors
///
/// [`LedgerError::RoundOrder`], [`LedgerError::RoundNotOpen`], or what the log gives.
pub fn dispose_round(
    ledger: &Ledger,
    round: u64,
) -> Result<(Disposed, Vec<(u64, Submission)>), LedgerError> {
    if let Some(last) = ledger.sealed().last().map(|s| s.record.round).filter(|&l| l >= round) {
        return Err(LedgerError::RoundOrder { round, last });
    }
    let (listed, reserve) = ledger.expected_miners(round)?;
    let window = Window {
        start: ledger.window_start(),
        end: ledger.submissions_log().size(),
        root_at_end: ledger.submissions_log().head().root,
    };
    let submissions = ledger.submissions(window.start..window.end)?;
    let base = ledger.newest();
    let expected = Expected {
        round,
        base,
        listed: &listed,
        reserve: &reserve,
        dialect: ledger.rule().dialect,
    };
    let dispositions = dispose(expected, &submissions);
    let disposed = Disposed {
        round,
        previous: ledger.newest_leaf(),
        base,
        rule: ledger.genesis().rule.clone(),
        window,
        listed,
        reserve,
        dispositions,
    };
    Ok((disposed, submissions))
}

fn fold_round(
    ledger: &Ledger,
    disposed: Disposed,
    submissions: &[(u64, Submission)],
    options: FoldOptions,
    progress: &dyn Progress,
) -> Result<Folded, LedgerError> {
    let rule = ledger.rule();
    let base = ledger.checkpoint(disposed.base)?;
    let layout = Layout::of(base.manifest(), rule)?;
    let deltas = accepted_deltas(&disposed.dispositions, submissions)
        .into_iter()
        .map(|(_, id)| StoredDelta::open(ledger.place(), id))
        .collect::<Result<Vec<_>, _>>()?;
    let pool = thread_pool(options.threads)?;
    progress.begin("plan", planned_bytes(&layout, &deltas));
    let plan = pool.install(|| plan(&layout, rule, &deltas, progress))?;
    progress.end();
    let planned = Planned { disposed, plan };
    if deltas.is_empty() {
        let next = planned.disposed.base;
        return Ok(Folded { planned, next, skipped: Vec::new() });
    }
    let mut output = Store::new(&base, CheckpointWriter::create(ledger.place())?, rule.dialect);
    let job = FoldJob {
        base: &base,
        tensors: layout.tensors.iter().enumerate().collect(),
        rounds: vec![RoundFold {
            deltas: &deltas,
            plan: &planned.plan,
            step: step(rule, deltas.len()),
            skipped: None,
        }],
        pool: &pool,
        engine: options.engine()?,
    };
    progress.begin("fold", layout.tensors.iter().map(|t| t.grid.rows * t.grid.columns * 4).sum());
    fold(&job, &mut output, progress)?;
    progress.end();
    if let Some((tensor, element)) = output.refused {
        return Err(LedgerError::NonFinite { round: planned.disposed.round, tensor, element });
    }
    let (next, skipped) = output.finish()?;
    Ok(Folded { planned, next, skipped })
}

/// The step of a round with `accepted` miners.
pub fn step(rule: &SparseMeanSgd, accepted: usize) -> Step {
    let divisor = match rule.mean {
        Mean::Contributors => Divisor::Contributors,
        Mean::All => Divisor::All(u32::try_from(accepted).expect("at most 255 are accepted")),
    };
    Step { lr: rule.lr_f32.0, divisor }
}

/// Writes the next state, tensor by tensor, in manifest order.
struct Store<'a> {
    base: &'a StoredCheckpoint,
    writer: CheckpointWriter,
    dialect: Dialect,
    /// The first position of the manifest that is not written yet.
    next: usize,
    skipped: Vec<Skipped>,
    /// Native: the first value that may not be stored.
    refused: Option<(String, u64)>,
}

impl<'a> Store<'a> {
    fn new(base: &'a StoredCheckpoint, writer: CheckpointWriter, dialect: Dialect) -> Self {
        Self { base, writer, dialect, next: 0, skipped: Vec::new(), refused: None }
    }

    /// Takes over the base's tensors up to `position`: the rule does not fold them.
    fn keep_until(&mut self, position: usize) -> Result<(), StoreError> {
        for position in self.next..position {
            self.writer.unchanged(self.base, position)?;
        }
        self.next = position;
        Ok(())
    }

    fn finish(mut self) -> Result<(ManifestId, Vec<Skipped>), StoreError> {
        self.keep_until(self.base.manifest().descriptors().len())?;
        Ok((self.writer.finish()?, self.skipped))
    }
}

impl FoldOutput for Store<'_> {
    fn state(&mut self, tensor: &TensorLayout, bytes: &[u8]) -> Result<(), StoreError> {
        self.keep_until(tensor.position)?;
        self.writer.write(&self.base.manifest().descriptors()[tensor.position], bytes)
    }

    fn done(
        &mut self,
        tensor: &TensorLayout,
        outcomes: Vec<TensorOutcome>,
    ) -> Result<(), StoreError> {
        let TensorOutcome { pieces, findings } =
            outcomes.into_iter().next().expect("one round is folded");
        let found = match self.dialect {
            Dialect::Templar => findings.delta_non_finite,
            Dialect::Native => findings.delta_non_finite.or(findings.next_non_finite),
        };
        match found {
            None => {
                self.writer.commit(pieces)?;
                self.next += 1;
            }
            // The next call takes the base's tensor over.
            Some(element) => {
                self.writer.abandon();
                match self.dialect {
                    Dialect::Templar => {
                        self.skipped.push(Skipped { tensor: tensor.position as u64, element });
                    }
                    Dialect::Native => {
                        self.refused.get_or_insert((tensor.name.clone(), element));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The report of the newest round, from its record and the submissions log.
fn newest_report(ledger: &Ledger, already: bool) -> Result<SealReport, LedgerError> {
    let position = ledger.sealed().len() - 1;
    let Sealed { record, leaf, .. } = &ledger.sealed()[position];
    let window = record.submissions;
    let (submissions, layout) = (ledger.submissions(window.start..window.end)?, ledger.layout()?);
    let dispositions = derive(record, &submissions).disposed.dispositions;
    let file = |index: Option<u64>| {
        let (_, submission) = submissions.iter().find(|(at, _)| Some(*at) == index)?;
        submission.file().map(str::to_owned)
    };
    let (mut accepted, mut rejected) = (Vec::new(), Vec::new());
    for Disposition { index, miner, verdict } in &dispositions {
        let (uid, key) = (miner.uid(), miner.hotkey());
        let (reason, details) = match verdict {
            Verdict::Accepted { order } => {
                accepted.push(AcceptedLine { uid, miner: key, order: *order });
                continue;
            }
            Verdict::Rejected(refusal) => (refusal.code.to_string(), Some(refusal.to_string())),
            Verdict::Absent => ("absent".to_owned(), None),
        };
        rejected.push(RejectedLine { uid, miner: key, file: file(*index), reason, details });
    }
    accepted.sort_by_key(|line| line.order);
    let name = |skipped: &Skipped| {
        let tensor = layout.tensors.iter().find(|t| t.position as u64 == skipped.tensor);
        tensor.map_or_else(String::new, |t| t.name.clone())
    };
    Ok(SealReport {
        round: record.round,
        record: *leaf,
        next: record.next,
        accepted,
        rejected,
        skipped: record.skipped.iter().map(name).collect(),
        already,
    })
}
