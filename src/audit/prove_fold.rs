//! Proving what a fold of one piece stands on: the base's piece, the rows of the plan, and of each
//! delta the rows of the blocks around the piece, each down from the record's signed head.
//!
//! Cost: of each artifact the one or two pieces with those rows, and the base's descriptors. Nothing
//! is believed to follow: a record that lies is proven like any other, and whoever verifies sees it.

use std::io::Write;

use super::{
    bundle::{Claim, DeltaProofs, FoldClaim, TreeProof, write},
    fold_rows::{FoldedPiece, Span},
    prove::{Members, ProveBundleError, RECORD, dispositions, jsonl, log_members, stored_plan},
};
use crate::{
    codec::layout::{DeltaGroup, Layout},
    intake::dispose::accepted,
    ledger::{Ledger, LedgerError},
    merkle::{
        manifest::manifest_leaves,
        pieces::{Pieces, piece_length, piece_proof},
        tree::{MemoryNodes, inclusion_proof},
    },
    store::{
        StoreError,
        artifacts::{ArtifactReader, StoredDelta},
    },
    types::{
        digest::Digest,
        json,
        manifest::{ManifestId, PIECE_BYTES},
        record::{Disposition, RoundRecord},
        rule::Rule,
        submission::{Content, Submission},
    },
};

/// The member `pieces`, and a proof for each of them.
#[derive(Default)]
struct Proven {
    bytes: Vec<u8>,
    proofs: Vec<Vec<Digest>>,
}

impl Proven {
    fn piece(
        &mut self,
        digests: &[Digest],
        index: u64,
        bytes: &[u8],
    ) -> Result<(), ProveBundleError> {
        self.bytes.extend_from_slice(bytes);
        self.proofs.push(piece_proof(digests, index)?);
        Ok(())
    }

    /// The pieces that hold `span`.
    fn take(
        &mut self,
        span: &Span,
        digests: &[Digest],
        reader: &mut ArtifactReader,
    ) -> Result<(), ProveBundleError> {
        for index in span.pieces() {
            let length = piece_length(span.artifact.bytes, index).unwrap_or(0);
            let mut bytes = vec![0; usize::try_from(length).expect("at most 64 KiB")];
            reader.seek_to(index * PIECE_BYTES)?;
            reader.read_exact(&mut bytes)?;
            self.piece(digests, index, &bytes)?;
        }
        Ok(())
    }
}

/// An accepted delta: its entry in the submissions log, and what it holds.
struct Accepted {
    index: u64,
    entry: Vec<u8>,
    id: ManifestId,
}

/// Writes the bundle about piece `piece` of the tensor at `position` after `round` to `to`.
///
/// # Errors
///
/// [`ProveBundleError`] if the ledger lacks what the bundle needs.
pub fn prove_fold<W: Write>(
    ledger: &Ledger,
    round: u64,
    position: usize,
    piece: u64,
    to: W,
) -> Result<W, ProveBundleError> {
    let sealed = &ledger.sealed()[ledger.position(round)?];
    let record = &sealed.record;
    let Rule::SparseMeanSgd(rule) = &record.rule;
    rule.check().map_err(LedgerError::from)?;
    let (base, next) = (ledger.checkpoint(record.base)?, ledger.checkpoint(record.next)?);
    let layout = Layout::of(base.manifest(), rule).map_err(LedgerError::from)?;
    let described = next.manifest().descriptors().get(position);
    let folded = FoldedPiece::of(&layout, position, piece);
    let (Some(described), Some(folded)) = (described, folded) else {
        return Err(ProveBundleError::NotFolded { position, piece });
    };
    let mut members = log_members(ledger.rounds_log(), sealed.index, RECORD)?;
    members.push(("base.jsonl", jsonl(base.manifest().entries())));
    members.push(("next.json", json::to_vec(described)));
    let lines = dispositions(ledger, ledger.position(round)?)?;
    let deltas = accepted_deltas(ledger, &lines)?;
    members.push(("dispositions.jsonl", jsonl(lines)));
    let mut proven = Proven::default();
    let of_base = folded.base(&base.manifest().descriptors()[position]);
    proven.take(&of_base, &base.digests(position)?, &mut base.tensor(position)?)?;
    if let Some(span) = folded.plan(record.plan, deltas.len()) {
        plan_rows(ledger, sealed, &span, &mut proven)?;
    }
    let deltas = deltas_of(ledger, record, &folded, &deltas, &mut proven, &mut members)?;
    members.push(("pieces", proven.bytes));
    let (leaves, digests) = (manifest_leaves(next.manifest()), next.digests(position)?);
    let at = usize::try_from(piece).expect("its digest is in memory");
    let claim = Claim::Fold(FoldClaim {
        round,
        tensor: position as u64,
        next: inclusion_proof(position as u64, leaves.len() as u64, &MemoryNodes::of(&leaves))?,
        digest: *digests.get(at).ok_or(ProveBundleError::NotFolded { position, piece })?,
        piece: TreeProof { index: piece, hashes: piece_proof(&digests, piece)? },
        deltas,
        pieces: proven.proofs,
    });
    Ok(write(to, &claim, &members)?.finish()?)
}

/// The deltas that these dispositions accept, in ledger order.
fn accepted_deltas(ledger: &Ledger, lines: &[Vec<u8>]) -> Result<Vec<Accepted>, ProveBundleError> {
    let read = |line: &Vec<u8>| json::from_slice::<Disposition>(line);
    let dispositions = lines.iter().map(read).collect::<Result<Vec<_>, _>>();
    let dispositions = dispositions.map_err(ProveBundleError::Disposition)?;
    let find = |(_, index, _)| {
        let entry = ledger.submissions_log().entry(index).map_err(StoreError::from)?;
        let submission: Submission = json::from_slice(&entry)
            .map_err(|source| LedgerError::Entry { log: "submissions", index, source })?;
        match submission.content() {
            Content::Delta(id) => Ok(Accepted { index, entry, id }),
            _ => Err(ProveBundleError::NoDelta { index }),
        }
    };
    accepted(&dispositions).into_iter().map(find).collect()
}

/// The plan's rows of the tensor.
fn plan_rows(
    ledger: &Ledger,
    sealed: &crate::ledger::Sealed,
    span: &Span,
    proven: &mut Proven,
) -> Result<(), ProveBundleError> {
    let bytes = stored_plan(ledger, sealed).unwrap_or_default();
    let Pieces { artifact, digests } = Pieces::of(&bytes);
    if artifact != sealed.record.plan {
        return Err(ProveBundleError::NoPlan { round: sealed.record.round });
    }
    let piece = PIECE_BYTES as usize;
    for index in span.pieces() {
        let start = index as usize * piece; // Within the plan, which is in memory.
        proven.piece(&digests, index, &bytes[start..bytes.len().min(start + piece)])?;
    }
    Ok(())
}

/// Proves each delta's rows; the proofs of its artifacts.
fn deltas_of(
    ledger: &Ledger,
    record: &RoundRecord,
    folded: &FoldedPiece<'_>,
    deltas: &[Accepted],
    proven: &mut Proven,
    members: &mut Members,
) -> Result<Vec<DeltaProofs>, ProveBundleError> {
    let end = record.submissions.end;
    let (mut all, mut lines) = (Vec::new(), Vec::new());
    for Accepted { index, entry, id } in deltas {
        let stored = StoredDelta::open(ledger.place(), *id)?;
        let leaves = manifest_leaves(stored.manifest());
        let nodes = MemoryNodes::of(&leaves);
        let (mut proofs, mut artifacts, mut positions) = (Vec::new(), Vec::new(), Vec::new());
        lines.push(entry.clone());
        for group in DeltaGroup::ALL {
            let position = stored.manifest().position(group.name(), &folded.tensor.name);
            let position = position.ok_or(ProveBundleError::NoDelta { index: *index })?;
            let descriptor = &stored.manifest().descriptors()[position];
            lines.push(json::to_vec(descriptor));
            artifacts.push(descriptor.artifact());
            let (index, size) = (position as u64, leaves.len() as u64);
            proofs.push(TreeProof { index, hashes: inclusion_proof(index, size, &nodes)? });
            positions.push(position);
        }
        let spans = folded.delta(artifacts.try_into().expect("one for each group"));
        for ((group, span), position) in DeltaGroup::ALL.into_iter().zip(spans).zip(positions) {
            let mut reader = stored.open_artifact(group, &folded.tensor.name)?;
            proven.take(&span, &stored.digests(position)?, &mut reader)?;
        }
        let [book, code, index_proof] = proofs.try_into().expect("one for each group");
        let log = ledger.submissions_log();
        let submission = log.inclusion_proof(*index, end).map_err(StoreError::from)?;
        all.push(DeltaProofs { submission, book, code, index: index_proof });
    }
    members.push(("deltas.jsonl", jsonl(lines)));
    Ok(all)
}
