//! Anchoring: the newest head of the rounds log goes to a chain, its receipt beside the log, and an
//! entry about both into it.
//!
//! The transaction is signed and written down before it is sent ([`Intent`]). Killed at any point, the
//! next run looks at the chain: the head stands there, and the receipt is fetched; or the very same
//! transaction is sent again, which the chain can take once; or its time is over, and it can never be
//! taken. So no head is committed to twice.
//!
//! A chain takes minutes, so it is waited for between two turns of the writer ([`Turns`]), never in one.

use std::time::Duration;

use gradledger_anchor::{
    commitment::Field,
    hash::{Hash32, Hex},
    receipt::Receipt,
};
use serde::Serialize;

use super::{
    Ledger, LedgerError,
    anchored::{self, AnchorTrust, AnchorView, head_at, receipt_head},
    turns::Turns,
    writer::LedgerWriter,
};
use crate::{
    anchor::{Chain, ChainError, SignedCall, View, fields},
    store::anchors::{self, Intent},
    types::{
        digest::Digest,
        progress::Progress,
        record::{AnchorPlace, AnchorRecord},
    },
};

/// How to anchor.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnchorOptions {
    /// Keeps what stands there and is not ours as the first fields, instead of refusing.
    pub keep_foreign: bool,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct AnchorReport {
    /// What the receipt proves.
    pub anchor: AnchorView,
    /// Whether the head was anchored before, and nothing was to be done.
    pub already: bool,
    /// Whether an earlier run's transaction was taken up.
    pub resumed: bool,
}

/// A transaction as it would be sent.
#[derive(Clone, Debug)]
pub struct DryRun {
    /// Entries of the head.
    pub size: u64,
    /// SHA-256 of its text.
    pub value: Digest,
    /// Call, extrinsic and its last block.
    pub signed: SignedCall,
}

/// Why a head is not anchored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum AnchorStepError {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("the genesis names another {what} to anchor in than the one that was given")]
    Place { what: &'static str },
    #[error(
        "the hotkey's commitment, set in block {block}, is not a head of this log ({found}); it is not \
         overwritten. Use a hotkey that is for anchoring alone{}",
        if *.can_keep { ", or --keep-foreign where the runtime takes several fields" } else { "" }
    )]
    Foreign { block: u32, found: String, can_keep: bool },
    #[error(
        "a head of {anchored} entries stands on the chain, and this log has {size}: was it restored \
         from an old backup? Nothing is signed"
    )]
    Older { anchored: u64, size: u64 },
    #[error("another process anchored at the same time; run it again")]
    Meanwhile,
}

/// Anchors the newest head that says something new.
///
/// Entries about anchors are nothing new: a log that only grew by them stays as it is.
///
/// # Errors
///
/// [`AnchorStepError`] if what stands there is not ours, or the chain does not take it; the log and
/// the intent then stand so that the next run goes on.
pub fn anchor(
    turns: &mut impl Turns,
    chain: &mut dyn Chain,
    options: AnchorOptions,
    progress: &dyn Progress,
) -> Result<AnchorReport, LedgerError> {
    let ledger = turns.look()?;
    check_place(&ledger, chain)?;
    if let Some(intent) = anchors::intent(ledger.place())? {
        if let Some(anchor) = resume(turns, &ledger, chain, &intent, progress)? {
            return Ok(AnchorReport { anchor, already: false, resumed: true });
        }
        give_up(turns, intent)?;
    }
    if let Some(anchor) = newest_anchor(&ledger)? {
        return Ok(AnchorReport { anchor, already: true, resumed: false });
    }
    let view = chain.look().map_err(AnchorStepError::from)?;
    let head = ledger.rounds_log().head().clone();
    let value = anchored::hash(head.digest());
    if view.digest() == Some(value) {
        // It stands there though nothing here tells of it: intent and receipt were lost.
        let anchor = finish(turns, &ledger, chain, head.size, None, progress)?;
        return Ok(AnchorReport { anchor, already: false, resumed: true });
    }
    let kept = kept_fields(&ledger, &view, options)?;
    let signed = sign(chain, &kept, &value)?;
    let extrinsic = Hex(signed.extrinsic);
    let intent = Intent { head: receipt_head(&head), extrinsic, dies: signed.dies };
    begin(turns, intent.clone())?;
    let anchor = send(turns, &ledger, chain, &intent, progress)?;
    Ok(AnchorReport { anchor, already: false, resumed: false })
}

/// Reaches the place to anchor in, as often as it is asked to.
pub type OpenChain =
    Box<dyn FnMut(&dyn Progress) -> Result<Box<dyn Chain + Send>, LedgerError> + Send>;

/// How often a node is tried.
const TRIES_MAX: u32 = 4;

/// As [`anchor`]; a node that fails on the way is reached anew after `wait`, then after twice that, and
/// what was sent is taken up.
///
/// # Errors
///
/// As [`anchor`]; [`ChainError::Node`] if it failed four times.
pub fn anchor_with_patience(
    turns: &mut impl Turns,
    mut chain: Box<dyn Chain + Send>,
    open: &mut OpenChain,
    options: AnchorOptions,
    mut wait: Duration,
    progress: &dyn Progress,
) -> Result<AnchorReport, LedgerError> {
    for _ in 1..TRIES_MAX {
        match anchor(turns, &mut *chain, options, progress) {
            Err(
                error @ LedgerError::AnchorStep(AnchorStepError::Chain(ChainError::Node { .. })),
            ) => {
                progress.note(&format!("{error}; again in {} s", wait.as_secs()));
            }
            done => return done,
        }
        std::thread::sleep(wait);
        wait *= 2;
        chain = open(progress)?;
    }
    anchor(turns, &mut *chain, options, progress)
}

/// The transaction that [`anchor`] would send for the newest head.
///
/// # Errors
///
/// As [`anchor`].
pub fn dry_run(
    ledger: &Ledger,
    chain: &mut dyn Chain,
    options: AnchorOptions,
) -> Result<DryRun, LedgerError> {
    check_place(ledger, chain)?;
    let view = chain.look().map_err(AnchorStepError::from)?;
    let head = ledger.rounds_log().head();
    let kept = kept_fields(ledger, &view, options)?;
    let signed = sign(chain, &kept, &anchored::hash(head.digest()))?;
    Ok(DryRun { size: head.size, value: head.digest(), signed })
}

fn sign(
    chain: &mut dyn Chain,
    kept: &[Field],
    value: &Hash32,
) -> Result<SignedCall, AnchorStepError> {
    Ok(chain.sign(&fields(kept, value)?)?)
}

/// Whether the chain is the one that the genesis names, if it names one.
fn check_place(ledger: &Ledger, chain: &dyn Chain) -> Result<(), AnchorStepError> {
    let (Some(named), Some(given)) = (ledger.genesis().anchor_place(), chain.place()) else {
        return Ok(());
    };
    if named.chain_genesis != given.chain_genesis {
        return Err(AnchorStepError::Place { what: "chain" });
    }
    check_hotkey(ledger, given.netuid, given.hotkey)
}

/// Whether subnet and hotkey are those that the genesis names, if it names some: known before a chain
/// is asked.
///
/// # Errors
///
/// [`AnchorStepError::Place`].
pub fn check_hotkey(ledger: &Ledger, netuid: u16, hotkey: Digest) -> Result<(), AnchorStepError> {
    let what = match ledger.genesis().anchor_place() {
        Some(AnchorPlace { netuid: named, .. }) if named != netuid => "subnet",
        Some(AnchorPlace { hotkey: named, .. }) if named != hotkey => "hotkey",
        _ => return Ok(()),
    };
    Err(AnchorStepError::Place { what })
}

/// The anchor of the newest head that is not about anchors alone, if there is one.
fn newest_anchor(ledger: &Ledger) -> Result<Option<AnchorView>, LedgerError> {
    let Some(last) = ledger.anchors().last() else { return Ok(None) };
    // Between the anchored head and the log's end there are entries about anchors only.
    let between = ledger.rounds_log().size() - last.record.size;
    let told = ledger.anchors().iter().filter(|anchor| anchor.index >= last.record.size).count();
    if told as u64 != between {
        return Ok(None);
    }
    let Some(receipt) = anchors::load(ledger.place(), last.record.size)? else { return Ok(None) };
    anchored::judge(Some(ledger), &receipt, AnchorTrust::default()).map(Some)
}

/// What of the slot is kept, if it may be overwritten at all.
fn kept_fields(
    ledger: &Ledger,
    view: &View,
    options: AnchorOptions,
) -> Result<Vec<Field>, LedgerError> {
    let Some(commitment) = &view.commitment else { return Ok(Vec::new()) };
    let own = anchored::own_heads(ledger)?;
    let is_ours = |field: &Field| field.digest().is_some_and(|digest| own.contains_key(&digest));
    let foreign: Vec<_> =
        commitment.fields.iter().filter(|field| !is_ours(field)).cloned().collect();
    if foreign.is_empty() {
        return Ok(Vec::new());
    }
    let ours_stands = foreign.len() < commitment.fields.len();
    // A digest that is not ours may be a head of this run that a restored log has lost.
    let digest = foreign.iter().any(|field| field.digest().is_some());
    if digest || !(options.keep_foreign || ours_stands) {
        let found = foreign.iter().map(|field| Hex(field.as_bytes().to_vec()).to_string());
        let found = found.collect::<Vec<_>>().join(", ");
        let (block, can_keep) = (commitment.block, !digest);
        return Err(AnchorStepError::Foreign { block, found, can_keep }.into());
    }
    Ok(foreign)
}

/// Writes down what is about to be sent, unless another process came between.
fn begin(turns: &mut impl Turns, intent: Intent) -> Result<(), LedgerError> {
    turns.with(move |writer| {
        let place = writer.ledger().place();
        let begun = anchors::intent(place)?.is_some();
        if begun || anchors::sizes(place)?.contains(&intent.head.size) {
            return Err(AnchorStepError::Meanwhile.into());
        }
        Ok(anchors::begin(place, &intent)?)
    })
}

/// Strikes out a transaction that can never be taken any more.
fn give_up(turns: &mut impl Turns, intent: Intent) -> Result<(), LedgerError> {
    turns.with(move |writer| {
        let place = writer.ledger().place();
        if anchors::intent(place)?.as_ref() == Some(&intent) {
            anchors::end(place)?;
        }
        Ok(())
    })
}

/// Goes on with a transaction of an earlier run; none if it can never be taken any more.
fn resume(
    turns: &mut impl Turns,
    ledger: &Ledger,
    chain: &mut dyn Chain,
    intent: &Intent,
    progress: &dyn Progress,
) -> Result<Option<AnchorView>, LedgerError> {
    let (anchored, size) = (intent.head.size, ledger.rounds_log().size());
    if anchored > size {
        return Err(AnchorStepError::Older { anchored, size }.into());
    }
    let view = chain.look().map_err(AnchorStepError::from)?;
    let extrinsic = Some(intent.extrinsic.0.as_slice());
    if view.digest() == Some(intent.head.digest()) {
        return finish(turns, ledger, chain, anchored, extrinsic, progress).map(Some);
    }
    if view.newest > intent.dies {
        return Ok(None);
    }
    match send(turns, ledger, chain, intent, progress) {
        Err(LedgerError::AnchorStep(AnchorStepError::Chain(ChainError::Expired { .. }))) => {
            Ok(None)
        }
        sent => sent.map(Some),
    }
}

fn send(
    turns: &mut impl Turns,
    ledger: &Ledger,
    chain: &mut dyn Chain,
    intent: &Intent,
    progress: &dyn Progress,
) -> Result<AnchorView, LedgerError> {
    let extrinsic = &intent.extrinsic.0;
    match chain.send(extrinsic, intent.dies, progress) {
        Ok(()) => finish(turns, ledger, chain, intent.head.size, Some(extrinsic), progress),
        // A refusal is final: the nonce is spent or the bytes are not valid. Other errors say nothing
        // about the transaction, which may still be under way.
        Err(
            error @ (ChainError::RateLimit { .. }
            | ChainError::SpaceLimit { .. }
            | ChainError::NotRegistered { .. }
            | ChainError::Refused { .. }),
        ) => {
            give_up(turns, intent.clone())?;
            Err(AnchorStepError::from(error).into())
        }
        Err(error) => Err(AnchorStepError::from(error).into()),
    }
}

/// Fetches the proof, verifies it as an auditor would, keeps it, and tells of it in the log.
fn finish(
    turns: &mut impl Turns,
    ledger: &Ledger,
    chain: &mut dyn Chain,
    size: u64,
    extrinsic: Option<&[u8]>,
    progress: &dyn Progress,
) -> Result<AnchorView, LedgerError> {
    let head = receipt_head(&head_at(ledger, size)?);
    let proof = chain.prove(&head.digest(), extrinsic, progress).map_err(AnchorStepError::from)?;
    let version = gradledger_anchor::receipt::VERSION;
    let receipt = Receipt { version, head, proof };
    let trust = AnchorTrust { place: chain.place(), authorities: None };
    let view = anchored::judge(Some(ledger), &receipt, trust)?;
    let record = AnchorRecord { block: view.shown_at, size, value: view.value };
    turns.with(move |writer| keep(writer, &receipt, record))?;
    Ok(view)
}

/// The receipt first, then the entry: a log that tells of an anchor has its receipt.
fn keep(
    writer: &mut LedgerWriter,
    receipt: &Receipt,
    record: AnchorRecord,
) -> Result<(), LedgerError> {
    let size = record.size;
    let told = writer.ledger().anchors().iter().any(|anchor| anchor.record.size == size);
    let place = writer.ledger().place().clone();
    // What lies there may have been justified since.
    if !told || !anchors::sizes(&place)?.contains(&size) {
        anchors::save(&place, receipt)?;
    }
    if !told {
        writer.append_anchor(record)?;
    }
    if anchors::intent(&place)?.is_some_and(|intent| intent.head.size == size) {
        anchors::end(&place)?;
    }
    Ok(())
}

/// Refuses a log that is shorter than a head that was anchored: what it signed next would be a fork.
///
/// # Errors
///
/// [`AnchorStepError::Older`].
pub(super) fn refuse_older(ledger: &Ledger) -> Result<(), LedgerError> {
    let place = ledger.place();
    let under_way = anchors::intent(place)?.map(|intent| intent.head.size);
    let anchored = anchors::sizes(place)?.into_iter().chain(under_way).max().unwrap_or(0);
    let size = ledger.rounds_log().size();
    if anchored > size {
        return Err(AnchorStepError::Older { anchored, size }.into());
    }
    Ok(())
}
