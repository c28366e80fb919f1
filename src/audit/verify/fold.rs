//! Claims about one piece of a fold: it is folded again from what a signed record says went in.

use std::collections::BTreeSet;

use gradledger_kernels::{cpu, levels::levels, norm::histogram_f64};

use super::{Check, Judge};
use crate::{
    audit::{
        bundle::{DeltaProofs, FoldClaim, TreeProof},
        fold_rows::{FoldedPiece, Span},
    },
    codec::{
        book::Book,
        layout::{DeltaGroup, Layout},
    },
    fold::piece::{RunRows, fold_piece},
    intake::dispose::accepted,
    ledger::{check::claims, seal::step},
    merkle::{
        manifest::manifest_id,
        pieces::{piece_length, verify_piece},
        tree::{leaf_hash, verify_inclusion},
    },
    plan::factors,
    types::{
        digest::Digest,
        json,
        manifest::{
            ArtifactId, ArtifactType, Descriptor, Manifest, ManifestId, PIECE_BYTES, piece_count,
        },
        plan::{Plan, PlanRow},
        record::{ACCEPTED_MAX, Disposition, RoundRecord},
        rule::{Dialect, Norm, Rule, SparseMeanSgd},
        submission::{Content, Submission},
        tensor::Dtype,
    },
};

/// Lines of the member `deltas.jsonl` for each delta: submission, book, code, index.
pub const LINES_OF_A_DELTA: usize = 4;

/// The member `pieces`, taken front to back.
struct Pieces<'a> {
    rest: &'a [u8],
    proofs: std::slice::Iter<'a, Vec<Digest>>,
}

impl Pieces<'_> {
    /// The bytes of `span`, each piece of it proven.
    fn take(&mut self, span: &Span) -> Result<Vec<u8>, String> {
        let mut found = Vec::new();
        for index in span.pieces() {
            let length = piece_length(span.artifact.bytes, index).unwrap_or(0);
            let length = usize::try_from(length).expect("at most 64 KiB");
            let cut = self.rest.split_at_checked(length).ok_or("the pieces end early")?;
            let proof = self.proofs.next().ok_or("there are too few proofs of pieces")?;
            verify_piece(&span.artifact, index, cut.0, proof).map_err(|error| error.to_string())?;
            found.extend_from_slice(cut.0);
            self.rest = cut.1;
        }
        Ok(span.cut(&found).to_vec())
    }

    fn end(&self) -> Result<(), &'static str> {
        let empty = self.rest.is_empty() && self.proofs.len() == 0;
        empty.then_some(()).ok_or("there are more pieces than the fold takes")
    }
}

/// What a fold of one piece takes, as it is proven.
struct Inputs {
    /// The base's piece.
    state: Vec<u8>,
    /// The tensor's rows of the plan.
    plan: Vec<u8>,
    /// In ledger order.
    deltas: Vec<Delta>,
}

/// A miner's part of a fold as it is proven.
struct Delta {
    book: Vec<u8>,
    code: Vec<u8>,
    index: Vec<u8>,
}

impl Judge<'_> {
    /// The piece of the next state is what base, plan and deltas of the record give.
    pub(super) fn fold(&mut self, claim: &FoldClaim) -> Option<()> {
        let (record, _) = self.claimed_record(claim.round)?;
        let Rule::SparseMeanSgd(rule) = &record.rule;
        self.step(Check::Records, rule.check())?;
        let base = self.base(&record)?;
        let layout = self.step(Check::Descriptor, Layout::of(&base, rule))?;
        let (position, piece) = (usize::try_from(claim.tensor).ok()?, claim.piece.index);
        let none = "the rule folds no such tensor, or it has no such piece";
        let folded = FoldedPiece::of(&layout, position, piece).ok_or(none);
        let folded = self.step(Check::Descriptor, folded)?;
        let described = &base.descriptors()[position];
        // What is folded is F32 since the run began, and the arithmetic counts on it.
        self.holds(Check::Descriptor, described.dtype == Dtype::F32, none)?;
        let (round, name) = (claim.round, &described.name);
        self.subject = format!("piece {piece} of tensor {name} after round {round}");
        self.next(claim, &record, described)?;
        let ids = self.accepted(claim, &record)?;
        let artifacts = self.artifacts(claim, &folded, &ids)?;
        let plan = folded.plan(record.plan, ids.len());
        let plan = self.agrees(Check::Plan, plan.ok_or("the plan has another length"))?;
        let proofs = claim.pieces.iter();
        let mut pieces = Pieces { rest: self.bundle.member("pieces"), proofs };
        let proven = prove(&mut pieces, &folded, described, &plan, &artifacts);
        let Inputs { mut state, plan, deltas } = self.step(Check::Bytes, proven)?;
        let plan = Plan::from_bytes(&plan, 1, deltas.len(), 1 << rule.code_bits());
        let plan = self.agrees(Check::Plan, plan)?;
        let rows = self.rows(rule, &folded, &deltas, &plan.rows)?;
        self.agrees(Check::Plan, coherent(rule, &folded, &deltas, &plan.rows))?;
        let expected = refold(&record, rule, &folded, &mut state, rows);
        let expected = self.agrees(Check::Fold, expected)?;
        let found = claim.digest;
        let text = format!("the fold gives piece {expected}, the record's state holds {found}");
        self.agrees(Check::Fold, (expected == found).then_some(()).ok_or(text))
    }

    /// The manifest of the base, all of it: it says which rows of the plan are whose.
    fn base(&mut self, record: &RoundRecord) -> Option<Manifest> {
        let lines = self.step(Check::Descriptor, self.bundle.lines("base.jsonl"))?;
        let manifest = self.step(Check::Descriptor, Manifest::from_entries(lines))?;
        let same = manifest_id(&manifest) == record.base;
        self.holds(Check::Descriptor, same, "these descriptors are not the base's")?;
        Some(manifest)
    }

    /// The tensor in the next state is the base's but for its root, and holds the claimed digest.
    fn next(
        &mut self,
        claim: &FoldClaim,
        record: &RoundRecord,
        described: &Descriptor,
    ) -> Option<()> {
        let bytes = self.bundle.member("next.json");
        let (leaf, state) = (leaf_hash(bytes), record.next);
        let included = verify_inclusion(claim.tensor, state.count, &leaf, &claim.next, &state.root);
        self.step(Check::Descriptor, included)?;
        let next: Descriptor = self.step(Check::Descriptor, json::from_slice(bytes))?;
        let same = Descriptor { root: next.root, ..described.clone() } == next;
        let text = "the next state has another tensor in its place";
        self.agrees(Check::Descriptor, same.then_some(()).ok_or(text))?;
        let TreeProof { index, hashes } = &claim.piece;
        let (leaf, pieces) = (leaf_hash(&claim.digest.0), piece_count(next.bytes));
        self.step(Check::Bytes, verify_inclusion(*index, pieces, &leaf, hashes, &next.root))
    }

    /// The accepted deltas in ledger order.
    fn accepted(&mut self, claim: &FoldClaim, record: &RoundRecord) -> Option<Vec<ManifestId>> {
        let dispositions = self.stored_dispositions(record)?;
        let accepted = accepted(&dispositions);
        let lines = self.step(Check::Windows, self.bundle.lines("deltas.jsonl"))?;
        let number = accepted.len();
        let few = number <= ACCEPTED_MAX;
        self.agrees(Check::Acceptances, few.then_some(()).ok_or("too many are accepted"))?;
        let all = claim.deltas.len() == number && lines.len() == LINES_OF_A_DELTA * number;
        self.holds(Check::Windows, all, "not as many deltas as are accepted")?;
        let window = record.submissions;
        let mut ids = Vec::new();
        for ((_, index, miner), (lines, proofs)) in
            accepted.into_iter().zip(lines.chunks(LINES_OF_A_DELTA).zip(&claim.deltas))
        {
            let (leaf, root) = (leaf_hash(lines[0]), window.root_at_end);
            let found = verify_inclusion(index, window.end, &leaf, &proofs.submission, &root);
            self.step(Check::Windows, found)?;
            let submission: Submission = self.step(Check::Windows, json::from_slice(lines[0]))?;
            let delta = match submission.content() {
                Content::Delta(id) if submission.miner() == miner => Ok(id),
                _ => Err(format!("entry {index}, which is accepted, is no delta of {miner}")),
            };
            ids.push(self.agrees(Check::Acceptances, delta)?);
        }
        Some(ids)
    }

    fn stored_dispositions(&mut self, record: &RoundRecord) -> Option<Vec<Disposition>> {
        let lines = self.disposition_lines(record)?;
        let read = lines.iter().map(|line| json::from_slice(line)).collect::<Result<Vec<_>, _>>();
        self.step(Check::Dispositions, read)
    }

    /// Each delta's book, code and index of the tensor, which are in its manifest.
    fn artifacts(
        &mut self,
        claim: &FoldClaim,
        folded: &FoldedPiece<'_>,
        ids: &[ManifestId],
    ) -> Option<Vec<[ArtifactId; 3]>> {
        let lines = self.step(Check::Bytes, self.bundle.lines("deltas.jsonl"))?;
        let deltas = lines.chunks(LINES_OF_A_DELTA).zip(&claim.deltas).zip(ids);
        let mut all = Vec::new();
        for ((lines, proofs), id) in deltas {
            let found = artifacts_of(folded, &lines[1..], proofs, id);
            all.push(self.step(Check::Bytes, found)?);
        }
        Some(all)
    }

    /// What each miner adds, once its book and its rows were found to keep the rules of intake.
    fn rows(
        &mut self,
        rule: &SparseMeanSgd,
        folded: &FoldedPiece<'_>,
        deltas: &[Delta],
        plan: &[PlanRow],
    ) -> Option<Rows> {
        let mut levels_of = Vec::new();
        for (delta, row) in deltas.iter().zip(plan) {
            let book = Book::from_bytes(&delta.book);
            self.agrees(Check::Acceptances, book.check(rule.dialect))?;
            levels_of.push(levels(&book.lookup, book.shift, row.factor));
        }
        let by_run = |bytes: &dyn Fn(&Delta) -> (&[u8], u64)| -> Vec<Vec<Vec<u8>>> {
            let cut = |delta| {
                let (rows, block_bytes) = bytes(delta);
                folded.by_run(rows, block_bytes).into_iter().map(<[u8]>::to_vec).collect()
            };
            deltas.iter().map(cut).collect()
        };
        let index = by_run(&|delta| (&delta.index, folded.tensor.index_bytes_per_block()));
        let code = by_run(&|delta| (&delta.code, folded.tensor.code_bytes_per_block()));
        let run = |at: usize| {
            let miners = index.iter().zip(&code);
            miners.map(|(i, c)| RunRows { index: i[at].clone(), code: c[at].clone() }).collect()
        };
        let rows: Vec<Vec<RunRows>> = (0..folded.runs.len()).map(run).collect();
        // A fold of no state finds what the rows break before it folds anything.
        self.agrees(Check::Acceptances, distinct(folded, &rows))?;
        Some(Rows { rows, levels: levels_of })
    }
}

/// Rows by run and miner, and each miner's levels.
struct Rows {
    rows: Vec<Vec<RunRows>>,
    levels: Vec<Vec<f32>>,
}

/// Positions are within their block and stand there once.
fn distinct(folded: &FoldedPiece<'_>, rows: &[Vec<RunRows>]) -> Result<(), String> {
    let block = folded.tensor.grid.block_elements();
    let bytes = usize::try_from(folded.tensor.index_bytes_per_block()).expect("at most 6 KiB");
    for (miner, rows) in rows.iter().flat_map(|rows| rows.iter().enumerate()) {
        for positions in rows.index.chunks(bytes) {
            let mut seen = BTreeSet::new();
            for position in gradledger_kernels::codes::indices(positions) {
                if u64::from(position) >= block || !seen.insert(position) {
                    return Err(format!(
                        "miner {miner} in ledger order: position {position} of a block is beyond \
                         its end, or stands there twice"
                    ));
                }
            }
        }
    }
    Ok(())
}

/// As much of the plan's rows as follows from them and the books: that factors follow from the norms,
/// norms of the native recipe from the counts, and that all codes are counted. Whether the counts are
/// those of the codes takes whole deltas to say, as does the norm by torch's recipe.
fn coherent(
    rule: &SparseMeanSgd,
    folded: &FoldedPiece<'_>,
    deltas: &[Delta],
    rows: &[PlanRow],
) -> Result<(), String> {
    let entries = folded.tensor.grid.blocks() * folded.tensor.k;
    for (miner, (delta, row)) in deltas.iter().zip(rows).enumerate() {
        let book = Book::from_bytes(&delta.book);
        let values = levels(&book.lookup, book.shift, 1.0);
        let counted = row.counts.iter().try_fold(0, |sum: u64, count| sum.checked_add(*count));
        if counted != Some(entries) {
            return Err(format!("miner {miner} in ledger order: not all codes are counted"));
        }
        let norm = histogram_f64(&row.counts, &values);
        let same = norm.to_bits() == row.norm.to_bits() || norm.is_nan() && row.norm.is_nan();
        if rule.norm == Norm::HistogramF64 && !same {
            let text = format!("the counts give norm {norm}, the plan has {}", row.norm);
            return Err(format!("miner {miner} in ledger order: {text}"));
        }
    }
    let norms: Vec<f64> = rows.iter().map(|row| row.norm).collect();
    for (miner, (factor, row)) in factors(rule.norm, &norms).iter().zip(rows).enumerate() {
        if factor.to_bits() != row.factor.to_bits() {
            let text = format!("the norms give factor {factor}, the plan has {}", row.factor);
            return Err(format!("miner {miner} in ledger order: {text}"));
        }
    }
    Ok(())
}

/// A delta's artifacts of the tensor, by their descriptors, which its manifest holds.
fn artifacts_of(
    folded: &FoldedPiece<'_>,
    lines: &[&[u8]],
    proofs: &DeltaProofs,
    id: &ManifestId,
) -> Result<[ArtifactId; 3], String> {
    let mut found = Vec::new();
    let proofs = [&proofs.book, &proofs.code, &proofs.index];
    for ((group, line), TreeProof { index, hashes }) in
        DeltaGroup::ALL.into_iter().zip(lines).zip(proofs)
    {
        verify_inclusion(*index, id.count, &leaf_hash(line), hashes, &id.root)
            .map_err(|error| error.to_string())?;
        let descriptor: Descriptor = json::from_slice(line).map_err(|error| error.to_string())?;
        let spec = folded.tensor.artifact(group).map_err(|error| error.to_string())?;
        let expected = Descriptor::new(ArtifactType::Delta, group.name(), &spec, descriptor.root);
        if descriptor != expected {
            return Err(format!("a descriptor is not that of {}'s {}", spec.name(), group.name()));
        }
        found.push(descriptor.artifact());
    }
    Ok(found.try_into().expect("one for each group"))
}

/// The base's piece, the tensor's rows of the plan, and what each miner sent.
fn prove(
    pieces: &mut Pieces<'_>,
    folded: &FoldedPiece<'_>,
    described: &Descriptor,
    plan: &Span,
    artifacts: &[[ArtifactId; 3]],
) -> Result<Inputs, String> {
    let state = pieces.take(&folded.base(described))?;
    let plan = pieces.take(plan)?;
    let mut deltas = Vec::new();
    for artifacts in artifacts {
        let [book, code, index] = folded.delta(*artifacts);
        deltas.push(Delta {
            book: pieces.take(&book)?,
            code: pieces.take(&code)?,
            index: pieces.take(&index)?,
        });
    }
    pieces.end()?;
    Ok(Inputs { state, plan, deltas })
}

/// The digest of the piece after the fold; what the record says of a tensor that it leaves unchanged
/// is judged where its witness lies in this piece.
fn refold(
    record: &RoundRecord,
    rule: &SparseMeanSgd,
    folded: &FoldedPiece<'_>,
    state: &mut [u8],
    Rows { rows, levels }: Rows,
) -> Result<Digest, String> {
    let unchanged = Digest::of(state);
    let claimed = claims(&record.skipped).get(&(folded.tensor.position as u64)).copied();
    let piece = folded.number();
    let (step, path) = (step(rule, levels.len()), cpu::Path::best());
    let rows = (&folded.runs[..], &rows[..]);
    let found = fold_piece(folded.tensor, piece, state, rows, &levels, (step, path));
    let found = found.map_err(|error| error.to_string())?;
    match (claimed, found.delta_non_finite) {
        (Some(witness), element) if witness / (PIECE_BYTES / 4) == piece => {
            let text =
                || format!("left unchanged for element {witness}; the fold finds {element:?}");
            (element == Some(witness)).then_some(unchanged).ok_or_else(text)
        }
        (Some(_), _) => Ok(unchanged),
        (None, Some(element)) => Err(format!(
            "the delta of element {element} is not finite, and the record does not say so"
        )),
        (None, None) => match found.next_non_finite {
            Some(element) if rule.dialect == Dialect::Native => {
                Err(format!("element {element} becomes NaN or infinite"))
            }
            _ => Ok(Digest::of(state)),
        },
    }
}
