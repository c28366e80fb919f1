//! Anchoring: the newest head of the rounds log goes to a chain, its receipt beside the log, and an
//! entry about both into it.
//!
//! The transaction is signed and written down before it is sent ([`Intent`]). Killed at any point, the
//! next run looks at the chain: the head stands there, and the receipt is fetched; or the very same
//! transaction is sent again, which the chain can take once; or its time is over, and it can never be
//! taken. So no head is committed to twice.

use gradledger_anchor::{
    commitment::Field,
    hash::{Hash32, Hex},
    receipt::Receipt,
};
use serde::Serialize;

use super::{
    Ledger, LedgerError,
    anchored::{self, AnchorTrust, AnchorView, head_at, receipt_head},
    writer::LedgerWriter,
};
use crate::{
    anchor::{Chain, ChainError, SignedCall, View, fields},
    store::anchors::{self, Intent},
    types::{digest::Digest, progress::Progress, record::AnchorRecord},
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
    writer: &mut LedgerWriter,
    chain: &mut dyn Chain,
    options: AnchorOptions,
    progress: &dyn Progress,
) -> Result<AnchorReport, LedgerError> {
    check_place(writer, chain)?;
    if let Some(intent) = anchors::intent(writer.ledger().place())? {
        if let Some(anchor) = resume(writer, chain, &intent, progress)? {
            return Ok(AnchorReport { anchor, already: false, resumed: true });
        }
        anchors::end(writer.ledger().place())?;
    }
    if let Some(anchor) = newest_anchor(writer)? {
        return Ok(AnchorReport { anchor, already: true, resumed: false });
    }
    let view = chain.look().map_err(AnchorStepError::from)?;
    let head = writer.ledger().rounds_log().head().clone();
    let value = anchored::hash(head.digest());
    if view.digest() == Some(value) {
        // It stands there though nothing here tells of it: intent and receipt were lost.
        let anchor = finish(writer, chain, head.size, None, progress)?;
        return Ok(AnchorReport { anchor, already: false, resumed: true });
    }
    let kept = kept_fields(writer, &view, options)?;
    let signed = sign(chain, &kept, &value)?;
    let extrinsic = Hex(signed.extrinsic);
    let intent = Intent { head: receipt_head(&head), extrinsic, dies: signed.dies };
    anchors::begin(writer.ledger().place(), &intent)?;
    let anchor = send(writer, chain, &intent, progress)?;
    Ok(AnchorReport { anchor, already: false, resumed: false })
}

/// The transaction that [`anchor`] would send for the newest head.
///
/// # Errors
///
/// As [`anchor`].
pub fn dry_run(
    writer: &LedgerWriter,
    chain: &mut dyn Chain,
    options: AnchorOptions,
) -> Result<DryRun, LedgerError> {
    check_place(writer, chain)?;
    let view = chain.look().map_err(AnchorStepError::from)?;
    let head = writer.ledger().rounds_log().head();
    let kept = kept_fields(writer, &view, options)?;
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
fn check_place(writer: &LedgerWriter, chain: &dyn Chain) -> Result<(), AnchorStepError> {
    let (Some(named), Some(given)) = (writer.ledger().genesis().anchor_place(), chain.place())
    else {
        return Ok(());
    };
    let what = if named.chain_genesis != given.chain_genesis {
        "chain"
    } else if named.netuid != given.netuid {
        "subnet"
    } else if named.hotkey != given.hotkey {
        "hotkey"
    } else {
        return Ok(());
    };
    Err(AnchorStepError::Place { what })
}

/// The anchor of the newest head that is not about anchors alone, if there is one.
fn newest_anchor(writer: &LedgerWriter) -> Result<Option<AnchorView>, LedgerError> {
    let ledger = writer.ledger();
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
    writer: &LedgerWriter,
    view: &View,
    options: AnchorOptions,
) -> Result<Vec<Field>, LedgerError> {
    let Some(commitment) = &view.commitment else { return Ok(Vec::new()) };
    let own = anchored::own_heads(writer.ledger())?;
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

/// Goes on with a transaction of an earlier run; none if it can never be taken any more.
fn resume(
    writer: &mut LedgerWriter,
    chain: &mut dyn Chain,
    intent: &Intent,
    progress: &dyn Progress,
) -> Result<Option<AnchorView>, LedgerError> {
    let (anchored, size) = (intent.head.size, writer.ledger().rounds_log().size());
    if anchored > size {
        return Err(AnchorStepError::Older { anchored, size }.into());
    }
    let view = chain.look().map_err(AnchorStepError::from)?;
    let extrinsic = Some(intent.extrinsic.0.as_slice());
    if view.digest() == Some(intent.head.digest()) {
        return finish(writer, chain, anchored, extrinsic, progress).map(Some);
    }
    if view.newest > intent.dies {
        return Ok(None);
    }
    match send(writer, chain, intent, progress) {
        Err(LedgerError::AnchorStep(AnchorStepError::Chain(ChainError::Expired { .. }))) => {
            Ok(None)
        }
        sent => sent.map(Some),
    }
}

fn send(
    writer: &mut LedgerWriter,
    chain: &mut dyn Chain,
    intent: &Intent,
    progress: &dyn Progress,
) -> Result<AnchorView, LedgerError> {
    let extrinsic = &intent.extrinsic.0;
    match chain.send(extrinsic, intent.dies, progress) {
        Ok(()) => finish(writer, chain, intent.head.size, Some(extrinsic), progress),
        // A refusal is final: the nonce is spent or the bytes are not valid. Other errors say nothing
        // about the transaction, which may still be under way.
        Err(
            error @ (ChainError::RateLimit { .. }
            | ChainError::SpaceLimit { .. }
            | ChainError::NotRegistered { .. }
            | ChainError::Refused { .. }),
        ) => {
            anchors::end(writer.ledger().place())?;
            Err(AnchorStepError::from(error).into())
        }
        Err(error) => Err(AnchorStepError::from(error).into()),
    }
}

/// Fetches the proof, verifies it as an auditor would, keeps it, and tells of it in the log.
fn finish(
    writer: &mut LedgerWriter,
    chain: &mut dyn Chain,
    size: u64,
    extrinsic: Option<&[u8]>,
    progress: &dyn Progress,
) -> Result<AnchorView, LedgerError> {
    let head = receipt_head(&head_at(writer.ledger(), size)?);
    let proof = chain.prove(&head.digest(), extrinsic, progress).map_err(AnchorStepError::from)?;
    let version = gradledger_anchor::receipt::VERSION;
    let receipt = Receipt { version, head, proof };
    let trust = AnchorTrust { place: chain.place(), authorities: None };
    let view = anchored::judge(Some(writer.ledger()), &receipt, trust)?;
    anchors::save(writer.ledger().place(), &receipt)?;
    if !writer.ledger().anchors().iter().any(|anchor| anchor.record.size == size) {
        let record = AnchorRecord { block: view.shown_at, size, value: view.value };
        writer.append_anchor(record)?;
    }
    if anchors::intent(writer.ledger().place())?.is_some() {
        anchors::end(writer.ledger().place())?;
    }
    Ok(view)
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
