//! Receipts and a live chain: justifications that came later, and whether a node still shows what the
//! receipts say.
//!
//! A receipt is made as soon as a node calls its block final. Authorities sign for a block in some
//! hundred only, so what shows finality to whoever trusts no node is fetched later.

use gradledger_anchor::{
    grandpa::AuthoritySet,
    hash::Hash32,
    header::BlockId,
    receipt::{Finality as Claimed, HEADERS_MAX, Proof, Receipt},
};
use serde::Serialize;

use super::{
    Ledger, LedgerError,
    anchor::AnchorStepError,
    anchored::{
        self, AnchorError, AnchorTrust, AnchorView, AnchorsView, Finality, block_id, judge,
    },
    turns::Turns,
};
use crate::{
    anchor::{View, Witness},
    store::anchors,
    types::{
        progress::Progress,
        record::{AnchorPlace, ChainBlock},
    },
};

/// Which receipts bring a justification now.
#[derive(Clone, Debug, Serialize)]
pub struct JustifyReport {
    /// A receipt each, by size.
    pub receipts: Vec<JustifyLine>,
}

/// One receipt.
#[derive(Clone, Debug, Serialize)]
pub struct JustifyLine {
    /// Entries of the head.
    pub size: u64,
    /// The block whose state shows it.
    pub shown_at: ChainBlock,
    /// How that block is known now.
    pub finality: Finality,
    /// Whether the receipt was replaced.
    pub changed: bool,
}

/// Fetches for each receipt without one the justification that came after its block, with the headers
/// that lead to it, and replaces the receipt by the one that proves more.
///
/// With `authorities` a justification that they did not sign is refused; without, it is kept for
/// whoever knows them.
///
/// # Errors
///
/// [`AnchorStepError::Place`] if the node is of another chain, [`AnchorError`] if what it gave does not
/// hold: the receipt stays as it was.
pub fn justify(
    turns: &mut impl Turns,
    chain: &mut dyn Witness,
    authorities: Option<&AuthoritySet>,
    progress: &dyn Progress,
) -> Result<JustifyReport, LedgerError> {
    let ledger = &turns.look()?;
    let mut receipts = Vec::new();
    for size in anchors::sizes(ledger.place())? {
        let Some(mut receipt) = anchors::load(ledger.place(), size)? else { continue };
        let changed = add_justification(ledger, chain, &mut receipt, progress)?;
        let view = judge(Some(ledger), &receipt, AnchorTrust { place: None, authorities })?;
        if changed {
            turns.with(move |writer| Ok(anchors::save(writer.ledger().place(), &receipt)?))?;
        }
        let AnchorView { shown_at, finality, .. } = view;
        receipts.push(JustifyLine { size, shown_at, finality, changed });
    }
    Ok(JustifyReport { receipts })
}

/// As [`justify`] for the receipts that wait, oldest first, up to one that waits still, since those after
/// it wait as well; gives how many do no more.
///
/// Receipts that no justification can reach any more, as headers come between, are left alone.
///
/// # Errors
///
/// As [`justify`].
pub fn justify_waiting(
    turns: &mut impl Turns,
    chain: &mut dyn Witness,
    progress: &dyn Progress,
) -> Result<u64, LedgerError> {
    let ledger = turns.look()?;
    let mut found = 0;
    for size in anchors::sizes(ledger.place())? {
        let Some(mut receipt) = anchors::load(ledger.place(), size)? else { continue };
        let Some(place) = waits(&receipt) else { continue };
        let shown_at = judge(Some(&ledger), &receipt, AnchorTrust::default())?.shown_at.number;
        let newest = chain.look(&place).map_err(AnchorStepError::from)?.newest;
        if u64::from(newest) > shown_at + HEADERS_MAX as u64 {
            continue;
        }
        if !add_justification(&ledger, chain, &mut receipt, progress)? {
            break;
        }
        judge(Some(&ledger), &receipt, AnchorTrust::default())?;
        turns.with(move |writer| Ok(anchors::save(writer.ledger().place(), &receipt)?))?;
        found += 1;
    }
    Ok(found)
}

/// Whose slot it is, if the receipt could bring a justification and does not.
fn waits(receipt: &Receipt) -> Option<AnchorPlace> {
    let Proof::Subtensor(proof) = &receipt.proof else { return None };
    let justified = matches!(proof.finality, Claimed::Justified(_));
    (!justified).then(|| AnchorPlace {
        netuid: proof.netuid,
        chain_genesis: anchored::digest(&proof.genesis),
        hotkey: anchored::digest(&proof.hotkey),
    })
}

/// Whether `receipt` now brings a justification that it did not bring before.
fn add_justification(
    ledger: &Ledger,
    chain: &mut dyn Witness,
    receipt: &mut Receipt,
    progress: &dyn Progress,
) -> Result<bool, LedgerError> {
    let shown_at = judge(Some(ledger), receipt, AnchorTrust::default())?.shown_at;
    let Proof::Subtensor(proof) = &mut receipt.proof else { return Ok(false) };
    if matches!(proof.finality, Claimed::Justified(_)) {
        return Ok(false);
    }
    check_chain(chain, &proof.genesis)?;
    progress.note(&format!("looking for a justification from block {} on", shown_at.number));
    let found = chain.justify(block_id(shown_at), progress).map_err(AnchorStepError::from)?;
    let Some(justified) = found else { return Ok(false) };
    proof.finality = Claimed::Justified(justified);
    Ok(true)
}

fn check_chain(chain: &mut dyn Witness, genesis: &Hash32) -> Result<(), LedgerError> {
    if chain.genesis().map_err(AnchorStepError::from)? == *genesis {
        return Ok(());
    }
    Err(AnchorStepError::Place { what: "chain" }.into())
}

/// What a node shows beside the receipts.
#[derive(Clone, Debug, Serialize)]
pub struct LiveView {
    /// Its newest final block.
    pub newest: u32,
    /// Receipts whose block is final there, under the same hash.
    pub blocks: usize,
    /// What stands in the hotkey's slot.
    pub slot: LiveSlot,
}

/// What stands in the slot now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum LiveSlot {
    /// Nothing.
    Empty,
    /// A head of the log, or of the receipts where no log was given.
    Own {
        /// The block that set it.
        block: u32,
        /// Entries of the head.
        size: u64,
    },
    /// Something else.
    Other {
        /// The block that set it.
        block: u32,
    },
}

/// Compares receipts with what a node shows now.
///
/// # Errors
///
/// [`AnchorError::Node`] if the node's block of a receipt's number is another one;
/// [`AnchorStepError::Place`] if it is of another chain.
pub fn compare(
    ledger: Option<&Ledger>,
    anchors: &AnchorsView,
    place: &AnchorPlace,
    chain: &mut dyn Witness,
) -> Result<LiveView, LedgerError> {
    check_chain(chain, &anchored::hash(place.chain_genesis))?;
    let mut blocks = 0;
    for receipt in &anchors.receipts {
        let said = block_id(receipt.shown_at);
        match chain.final_block(said.number).map_err(AnchorStepError::from)? {
            Some(found) if found != said.hash => {
                let found = BlockId { number: said.number, hash: found };
                return Err(AnchorError::Node { size: receipt.size, said, found }.into());
            }
            Some(_) => blocks += 1,
            None => {}
        }
    }
    let view = chain.look(place).map_err(AnchorStepError::from)?;
    let slot = slot(ledger, anchors, &view)?;
    Ok(LiveView { newest: view.newest, blocks, slot })
}

fn slot(
    ledger: Option<&Ledger>,
    anchors: &AnchorsView,
    view: &View,
) -> Result<LiveSlot, LedgerError> {
    let Some(commitment) = &view.commitment else { return Ok(LiveSlot::Empty) };
    let block = commitment.block;
    let Ok(found) = commitment.digest() else { return Ok(LiveSlot::Other { block }) };
    let of_log = match ledger {
        Some(ledger) => anchored::own_heads(ledger)?.get(&found).copied(),
        None => None,
    };
    let of_receipt = anchors.receipts.iter().find(|r| anchored::hash(r.value) == found);
    let size = of_log.or(of_receipt.map(|r| r.size));
    Ok(size.map_or(LiveSlot::Other { block }, |size| LiveSlot::Own { block, size }))
}
