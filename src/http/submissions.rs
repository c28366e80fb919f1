//! The submissions log as documents: statements, receipts, and who submitted what.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use serde_json::json;

use super::{
    Node,
    endpoint::{Answer, Call, Endpoint, json_answer},
    node::Snapshot,
    page::{Page, Wish, page_answer},
    path::number as digits,
    problem::Problem,
    schemas::{digest, digests, miner as miner_schema, number, object, text},
};
use crate::{
    codec::ss58,
    ledger::{
        Ledger, LedgerError,
        submit::{receipt, statement_of},
    },
    types::{
        digest::Digest,
        submission::{Miner, Submission},
    },
};

/// `/v1/submissions`, `/v1/receipts` and `/v1/miners`.
pub fn endpoints() -> Vec<Endpoint> {
    let submission = object(&[
        ("index", number()),
        ("miner", miner_schema()),
        (
            "submission",
            object(&[("kind", json!({"enum": ["fetched", "signed"]})), ("round", number())]),
        ),
    ]);
    let receipt = object(&[
        ("version", json!({"const": 1})),
        ("run_id", digest()),
        ("statement", digest()),
        ("index", number()),
        ("entry", text()),
        ("proof", digests()),
        ("head", text()),
    ]);
    let row = object(&[("miner", miner_schema()), ("submissions", number()), ("last", number())]);
    vec![
        Endpoint::get("/v1/submissions", "The submissions log, entry by entry.", submissions)
            .pages("Submissions; the cursor is an index in the log.", submission.clone()),
        Endpoint::get("/v1/submissions/{index}", "A submission.", one)
            .path("index", number())
            .json("The submission.", submission.clone()),
        Endpoint::get(
            "/v1/receipts/{statement}",
            "The receipt of a signed statement, under the newest head.",
            by_statement,
        )
        .path("statement", digest())
        .json("The receipt.", receipt),
        Endpoint::get("/v1/miners", "Who submitted, and how much.", miners).json(
            "Miners, in order.",
            object(&[("miners", json!({"type": "array", "items": row}))]),
        ),
        Endpoint::get("/v1/miners/{miner}/submissions", "What a miner submitted.", of_miner)
            .path(
                "miner",
                json!({"type": "string", "description": "hotkey (64 hex digits, SS58) or uid"}),
            )
            .pages("Submissions; the cursor is an index in the log.", submission),
    ]
}

/// Where statements and miners stand in the log, read once and then followed.
///
/// At full scale: 124 thousand submissions, 12 MB.
#[derive(Debug, Default)]
pub struct Entries {
    statements: HashMap<Digest, u64>,
    miners: BTreeMap<Miner, Vec<u64>>,
    read: u64,
}

/// Entries of the log that are read at once.
const RUN_ENTRIES: u64 = 256;

impl Entries {
    /// Takes up what was appended. It blocks.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if an entry does not read.
    pub fn follow(&mut self, ledger: &Ledger) -> Result<(), LedgerError> {
        let end = ledger.submissions_log().size();
        while self.read < end {
            let run = self.read..end.min(self.read + RUN_ENTRIES);
            for (index, submission) in ledger.submissions(run.clone())? {
                if let Submission::Signed(signed) = &submission {
                    let id = statement_of(ledger.run_id(), signed).id();
                    self.statements.entry(id).or_insert(index);
                }
                self.miners.entry(submission.miner()).or_default().push(index);
            }
            self.read = run.end;
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Entry {
    index: u64,
    miner: Miner,
    submission: Submission,
}

fn entry((index, submission): (u64, Submission)) -> Entry {
    Entry { index, miner: submission.miner(), submission }
}

fn read_one(snapshot: &Snapshot, index: u64) -> Result<Entry, Problem> {
    let read = snapshot.ledger.submissions(index..index + 1)?;
    Ok(entry(read.into_iter().next().expect("the range holds one entry")))
}

async fn submissions(call: Call) -> Answer {
    let (wish, snapshot) = (Wish::of(&call)?, call.node.fresh().await);
    let page = move || {
        let size = snapshot.ledger.submissions_log().size();
        let start = wish.start().min(size);
        // One more than the page has, so that it can say whether there are more.
        let end = size.min(start + wish.limit as u64 + 1);
        let read = snapshot.ledger.submissions(start..end)?;
        let page: Page<Entry> = wish.page(read.into_iter().map(|read| (read.0, entry(read))));
        Ok(page)
    };
    page_answer(&call, &call.node.blocking(page).await?, wish.limit)
}

async fn one(call: Call) -> Answer {
    let (index, snapshot) = (call.number("index")?, call.node.fresh().await);
    let size = snapshot.ledger.submissions_log().size();
    if index >= size {
        return Err(Problem::not_found(format!("the log has {size} submissions")));
    }
    json_answer(&call.node.blocking(move || read_one(&snapshot, index)).await?)
}

/// What `look` finds in the entries of the snapshot's log. It blocks.
fn found<T>(
    node: &Node,
    snapshot: &Snapshot,
    look: impl FnOnce(&Entries) -> T,
) -> Result<T, Problem> {
    let mut entries = node.entries();
    entries.follow(&snapshot.ledger)?;
    Ok(look(&entries))
}

async fn by_statement(call: Call) -> Answer {
    let (statement, snapshot) = (call.digest("statement")?, call.node.fresh().await);
    let node = call.node.clone();
    let work = move || {
        let none = || Problem::not_found("the log has no such statement");
        let index = found(&node, &snapshot, |entries| entries.statements.get(&statement).copied())?;
        // The entries may have been followed to a newer head than this one.
        let size = snapshot.ledger.submissions_log().size();
        let index = index.filter(|&index| index < size).ok_or_else(none)?;
        receipt(&snapshot.ledger, index)?.ok_or_else(none)
    };
    json_answer(&call.node.blocking(work).await?)
}

#[derive(Serialize)]
struct MinerRow {
    miner: Miner,
    submissions: usize,
    /// Index of the newest in the log.
    last: u64,
}

async fn miners(call: Call) -> Answer {
    let (snapshot, node) = (call.node.fresh().await, call.node.clone());
    let rows = move || {
        found(&node, &snapshot, |entries| {
            let row = |(&miner, indices): (&Miner, &Vec<u64>)| {
                Some(MinerRow { miner, submissions: indices.len(), last: *indices.last()? })
            };
            entries.miners.iter().filter_map(row).collect::<Vec<_>>()
        })
    };
    json_answer(&json!({"miners": call.node.blocking(rows).await?}))
}

/// A hotkey in either spelling, or a uid.
fn miner(text: &str) -> Option<Miner> {
    let uid = || digits(text).and_then(|uid| uid.try_into().ok()).map(Miner::Uid);
    let hotkey = text.parse().ok().or_else(|| ss58::decode(text).ok());
    hotkey.map(Miner::Hotkey).or_else(uid)
}

async fn of_miner(call: Call) -> Answer {
    let bad = || Problem::bad_path("neither an SS58 address, nor 64 hex digits, nor a uid");
    let (wish, miner) = (Wish::of(&call)?, miner(call.param("miner")).ok_or_else(bad)?);
    let (snapshot, node) = (call.node.fresh().await, call.node.clone());
    let page = move || {
        let size = snapshot.ledger.submissions_log().size();
        let indices = found(&node, &snapshot, |entries| {
            let indices = entries.miners.get(&miner)?;
            let start = indices.partition_point(|&index| index < wish.start());
            let on_page = indices[start..].iter().filter(|&&index| index < size);
            Some(on_page.take(wish.limit + 1).copied().collect::<Vec<_>>())
        })?;
        let none = || Problem::not_found("this miner submitted nothing");
        let read = |index| read_one(&snapshot, index).map(|entry| (index, entry));
        let read = indices.ok_or_else(none)?.into_iter().map(read);
        let page: Page<Entry> = wish.page(read.collect::<Result<Vec<_>, _>>()?.into_iter());
        Ok(page)
    };
    page_answer(&call, &call.node.blocking(page).await?, wish.limit)
}
