//! The rows of a sealed round, from its record, its dispositions, its plan and its deltas.

use std::collections::BTreeMap;

use super::{
    overlap::overlaps,
    schema::{CHECKPOINTS, CONTRIBUTION_TENSORS, CONTRIBUTIONS, OVERLAP, ROUNDS},
};
use crate::{
    codec::layout::Layout,
    intake::dispose::accepted,
    ledger::{Ledger, LedgerError, Sealed},
    store::{
        StoreError,
        segment::{
            self,
            query::{Cell, Row, TableSchema},
        },
    },
    types::{
        json,
        manifest::ManifestId,
        plan::Plan,
        record::{Disposition, Verdict},
        submission::{Content, Miner, Submission},
    },
};

fn text(text: impl ToString) -> Cell {
    Cell::Text(text.to_string())
}

/// A uid's digits or a hotkey's 64 hex digits.
fn miner_text(miner: &Miner) -> String {
    match miner {
        Miner::Uid(uid) => uid.to_string(),
        Miner::Hotkey(key) => key.to_hex(),
    }
}

/// What came of a round's submissions, as it is stored.
fn dispositions(ledger: &Ledger, sealed: &Sealed) -> Result<Vec<Disposition>, LedgerError> {
    let place = ledger.place();
    let id = &sealed.record.dispositions;
    let path = || segment::place::dispositions(&place.root, id);
    let entries = segment::dispositions::read_entries(&*place.files, &place.root, id)
        .map_err(StoreError::from)?;
    let read = entries.iter().map(|entry| {
        json::from_slice(entry).map_err(|source| StoreError::Json { path: path(), source }.into())
    });
    read.collect()
}

/// What an accepted miner gave to a round.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Who.
    pub miner: Miner,
    /// L2 norm of all values that it sent.
    pub norm: f64,
    /// The same after clipping, without skipped tensors.
    pub norm_folded: f64,
    /// `norm_folded^2` of the sum over the round's miners; none if that is 0.
    pub share: Option<f64>,
}

/// A round with what its rows are made of.
pub(super) struct RoundRows<'a> {
    ledger: &'a Ledger,
    position: usize,
    sealed: &'a Sealed,
    dispositions: Vec<Disposition>,
    submissions: Vec<(u64, Submission)>,
    layout: Layout,
    /// None if it was dropped.
    plan: Option<Plan>,
}

impl<'a> RoundRows<'a> {
    pub(super) fn of(ledger: &'a Ledger, position: usize) -> Result<Self, LedgerError> {
        let sealed = &ledger.sealed()[position];
        let record = &sealed.record;
        let dispositions = dispositions(ledger, sealed)?;
        let submissions = ledger.submissions(record.submissions.start..record.submissions.end)?;
        let layout = ledger.layout()?;
        let (place, rule) = (ledger.place(), ledger.rule());
        let (tensors, miners) = (layout.tensors.len(), accepted(&dispositions).len());
        let bins = 1 << rule.code_bits();
        let plan =
            segment::plan::read(&*place.files, &place.root, &record.plan, tensors, miners, bins);
        Ok(Self { ledger, position, sealed, dispositions, submissions, layout, plan: plan.ok() })
    }

    /// The rows of one of the tables that get some with every round.
    pub(super) fn of_table(&self, table: &TableSchema) -> Vec<Row> {
        match table.name {
            name if name == ROUNDS.name => vec![self.round()],
            name if name == CONTRIBUTIONS.name => self.contributions(),
            name if name == CONTRIBUTION_TENSORS.name => self.tensors(),
            name if name == CHECKPOINTS.name => self.checkpoints(),
            name if name == OVERLAP.name => self.overlap(),
            name => unreachable!("{name} has no rows of a round"),
        }
    }

    fn submission(&self, index: Option<u64>) -> Option<&Submission> {
        self.submissions.iter().find(|(at, _)| Some(*at) == index).map(|(_, s)| s)
    }

    fn delta(&self, index: Option<u64>) -> Option<ManifestId> {
        match self.submission(index)?.content() {
            Content::Delta(delta) => Some(delta),
            Content::Refused(_) | Content::Unread => match self.submission(index)? {
                // Its bytes are kept although they do not count.
                Submission::Signed(signed) => Some(signed.delta),
                Submission::Fetched(_) => None,
            },
        }
    }

    fn round(&self) -> Row {
        let record = &self.sealed.record;
        let mut counts = Counts::default();
        self.dispositions.iter().for_each(|d| counts.add(d, self.delta(d.index)));
        vec![
            Cell::Int(record.round),
            Cell::Int(self.sealed.index),
            text(self.sealed.leaf),
            text(record.base.root),
            text(record.next.root),
            Cell::Int(record.next.bytes),
            Cell::Int(record.submissions.start),
            Cell::Int(record.submissions.end),
            Cell::Int(record.listed.len() as u64),
            Cell::Int(record.reserve.len() as u64),
            Cell::Int(counts.accepted),
            Cell::Int(counts.rejected),
            Cell::Int(counts.absent),
            Cell::Int(counts.bytes),
            Cell::Int(record.skipped.len() as u64),
        ]
    }

    fn contributions(&self) -> Vec<Row> {
        let shares = self.shares();
        let row = |disposition: &Disposition| {
            let Disposition { index, miner, verdict } = disposition;
            let (name, order, refusal) = match verdict {
                Verdict::Accepted { order } => ("accepted", Some(*order), None),
                Verdict::Rejected(refusal) => ("rejected", None, Some(refusal)),
                Verdict::Absent => ("absent", None, None),
            };
            let share = order.and_then(|order| shares.get(order as usize));
            let delta = self.delta(*index);
            let file = self.submission(*index).and_then(Submission::file);
            vec![
                Cell::Int(self.sealed.record.round),
                text(miner_text(miner)),
                Cell::maybe(*index, Cell::Int),
                text(name),
                Cell::maybe(order, Cell::Int),
                Cell::maybe(refusal.map(|r| r.code), text),
                Cell::maybe(refusal.and_then(|r| r.tensor.as_ref()), text),
                Cell::maybe(refusal.map(|r| &r.expected), text),
                Cell::maybe(refusal.map(|r| &r.found), text),
                Cell::maybe(file, text),
                Cell::maybe(delta.map(|delta| delta.root), text),
                Cell::maybe(delta.map(|delta| delta.bytes), Cell::Int),
                Cell::maybe(share.map(|share| share.norm), Cell::Float64),
                Cell::maybe(share.map(|share| share.norm_folded), Cell::Float64),
                Cell::maybe(share.and_then(|share| share.share), Cell::Float64),
            ]
        };
        self.dispositions.iter().map(row).collect()
    }

    /// What each accepted miner gave, in ledger order; none if the plan was dropped.
    pub(super) fn shares(&self) -> Vec<Share> {
        let Some(plan) = &self.plan else { return Vec::new() };
        let squares = self.squares(plan);
        let total: f64 = squares.iter().map(|(_, folded)| folded).sum();
        let share = |((_, _, miner), (sent, folded)): (_, (f64, f64))| Share {
            miner,
            norm: sent.sqrt(),
            norm_folded: folded.sqrt(),
            share: (total > 0.0).then(|| folded / total),
        };
        accepted(&self.dispositions).into_iter().zip(squares).map(share).collect()
    }

    /// Per accepted miner the squares of its values, and of what was folded of them.
    fn squares(&self, plan: &Plan) -> Vec<(f64, f64)> {
        let mut squares = vec![(0.0, 0.0); plan.miners];
        for (at, tensor) in self.layout.tensors.iter().enumerate() {
            let skipped = self.skipped(tensor.position);
            for (row, (sent, folded)) in plan.tensor(at).iter().zip(&mut squares) {
                *sent += row.norm * row.norm;
                if !skipped {
                    let norm = row.norm * f64::from(row.factor);
                    // A factor of 0 stands for a norm that is infinite: nothing was folded.
                    *folded += if row.factor == 0.0 { 0.0 } else { norm * norm };
                }
            }
        }
        squares
    }

    fn skipped(&self, position: usize) -> bool {
        self.sealed.record.skipped.iter().any(|skipped| skipped.tensor == position as u64)
    }

    fn tensors(&self) -> Vec<Row> {
        let Some(plan) = &self.plan else { return Vec::new() };
        let miners: Vec<String> =
            accepted(&self.dispositions).iter().map(|(_, _, m)| miner_text(m)).collect();
        let mut rows = Vec::with_capacity(plan.rows.len());
        for (at, tensor) in self.layout.tensors.iter().enumerate() {
            for (order, (row, miner)) in plan.tensor(at).iter().zip(&miners).enumerate() {
                rows.push(vec![
                    Cell::Int(self.sealed.record.round),
                    text(&tensor.name),
                    text(miner),
                    Cell::Int(order as u64),
                    Cell::Float64(row.norm),
                    Cell::Float32(row.factor),
                    Cell::Bool(self.skipped(tensor.position)),
                    Cell::Ints(row.counts.clone()),
                ]);
            }
        }
        rows
    }

    fn checkpoints(&self) -> Vec<Row> {
        let row = |round: Option<u64>, id: ManifestId, base: Option<ManifestId>| {
            vec![
                Cell::maybe(round, Cell::Int),
                text(id.root),
                Cell::Int(id.count),
                Cell::Int(id.bytes),
                Cell::maybe(base.map(|base| base.root), text),
            ]
        };
        let record = &self.sealed.record;
        let genesis = (self.position == 0).then(|| row(None, self.ledger.genesis().model, None));
        let sealed = row(Some(record.round), record.next, Some(record.base));
        genesis.into_iter().chain([sealed]).collect()
    }

    /// The accepted miners with their deltas, in ledger order.
    pub(super) fn deltas(&self) -> Vec<(Miner, ManifestId)> {
        let delta = |(_, index, miner)| Some((miner, self.delta(Some(index))?));
        accepted(&self.dispositions).into_iter().filter_map(delta).collect()
    }

    fn overlap(&self) -> Vec<Row> {
        let deltas = self.deltas();
        let place = self.ledger.place();
        let ids: Vec<ManifestId> = deltas.iter().map(|(_, delta)| *delta).collect();
        // Deltas that were dropped leave no rows.
        let Ok(found) = overlaps(place, &self.layout, &ids) else { return Vec::new() };
        let row = |pair: &super::overlap::Pair| {
            let ((miner_a, a), (miner_b, b)) = (&deltas[pair.a], &deltas[pair.b]);
            vec![
                Cell::Int(self.sealed.record.round),
                text(miner_text(miner_a)),
                text(miner_text(miner_b)),
                Cell::Bool(a == b),
                Cell::Int(found.positions),
                Cell::Int(pair.common),
                Cell::Float64(found.share(pair)),
                Cell::maybe(pair.cosine, Cell::Float64),
                Cell::Int(found.blocks_sampled),
                Cell::Int(found.blocks),
            ]
        };
        found.pairs.iter().map(row).collect()
    }
}

/// How often a miner, or everybody, was what.
#[derive(Default)]
struct Counts {
    accepted: u64,
    rejected: u64,
    absent: u64,
    bytes: u64,
}

impl Counts {
    fn add(&mut self, disposition: &Disposition, delta: Option<ManifestId>) {
        match disposition.verdict {
            Verdict::Accepted { .. } => {
                self.accepted += 1;
                self.bytes += delta.map_or(0, |delta| delta.bytes);
            }
            Verdict::Rejected(_) => self.rejected += 1,
            Verdict::Absent => self.absent += 1,
        }
    }
}

/// The rows of `miners` for the rounds at `positions`, ascending.
pub(super) fn miners(ledger: &Ledger, positions: &[usize]) -> Result<Vec<Row>, LedgerError> {
    let mut miners: BTreeMap<Miner, (Counts, u64, u64)> = BTreeMap::new();
    for &position in positions {
        let sealed = &ledger.sealed()[position];
        let (round, window) = (sealed.record.round, sealed.record.submissions);
        let submissions = ledger.submissions(window.start..window.end)?;
        for disposition in dispositions(ledger, sealed)? {
            let at = |index: u64| submissions.iter().find(|(at, _)| *at == index);
            let delta = disposition.index.and_then(at).and_then(|(_, s)| match s.content() {
                Content::Delta(delta) => Some(delta),
                Content::Refused(_) | Content::Unread => None,
            });
            let (counts, _, last) =
                miners.entry(disposition.miner).or_insert((Counts::default(), round, round));
            counts.add(&disposition, delta);
            *last = round;
        }
    }
    let row = |(miner, (counts, first, last)): (Miner, (Counts, u64, u64))| {
        vec![
            text(miner_text(&miner)),
            Cell::Int(first),
            Cell::Int(last),
            Cell::Int(counts.accepted),
            Cell::Int(counts.rejected),
            Cell::Int(counts.absent),
            Cell::Int(counts.bytes),
        ]
    };
    Ok(miners.into_iter().map(row).collect())
}
