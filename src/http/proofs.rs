//! Proofs about both logs, and the anchors of one.

use serde::Serialize;
use serde_json::json;

use super::{
    blob::{Blob, Cache},
    endpoint::{Answer, Call, Endpoint, json_answer},
    log::{is_rounds, log_schema},
    node::Snapshot,
    page::CURSOR_MAX,
    problem::Problem,
    schemas::{digest, digests, number, object, text},
};
use crate::{
    store::{anchors, log::LogReader},
    types::digest::Digest,
};

/// `/v1/proofs`, `/v1/consistency` and `/v1/anchors`.
pub fn endpoints() -> Vec<Endpoint> {
    let inclusion = object(&[
        ("log", log_schema()),
        ("index", number()),
        ("size", number()),
        ("leaf", digest()),
        ("root", digest()),
        ("proof", digests()),
        ("head", text()),
    ]);
    let consistency = object(&[
        ("log", log_schema()),
        ("from", number()),
        ("to", number()),
        ("from_root", digest()),
        ("to_root", digest()),
        ("proof", digests()),
    ]);
    let anchor = object(&[("size", number()), ("receipt", json!({"type": "boolean"}))]);
    vec![
        Endpoint::get(
            "/v1/proofs/{log}/{index}",
            "The proof that an entry is in the tree of `size` entries, or of all.",
            inclusion_proof,
        )
        .path("log", log_schema())
        .path("index", number())
        .query("size", number())
        .json("The proof, and the newest signed head.", inclusion),
        Endpoint::get(
            "/v1/consistency/{log}",
            "The proof that the tree of `to` entries, or of all, starts with that of `from`, or of one.",
            consistency_proof,
        )
        .path("log", log_schema())
        .query("from", number())
        .query("to", number())
        .json("The proof.", consistency),
        Endpoint::get("/v1/anchors", "The heads of the rounds log that stand outside.", anchored)
            .json("Anchors, oldest first.", object(&[("anchors", json!({"type": "array", "items": anchor}))])),
        Endpoint::get("/v1/anchors/{size}", "The receipt of an anchored head.", anchor_receipt)
            .path("size", number())
            .blob("The receipt.", "application/json"),
    ]
}

fn log(snapshot: &Snapshot, rounds: bool) -> &LogReader {
    if rounds { snapshot.ledger.rounds_log() } else { snapshot.ledger.submissions_log() }
}

#[derive(Serialize)]
struct Inclusion {
    log: &'static str,
    index: u64,
    size: u64,
    leaf: Digest,
    root: Digest,
    proof: Vec<Digest>,
    head: String,
}

fn name(rounds: bool) -> &'static str {
    if rounds { "rounds" } else { "submissions" }
}

async fn inclusion_proof(call: Call) -> Answer {
    let (rounds, index) = (is_rounds(&call)?, call.number("index")?);
    let asked = call.query().number("size", CURSOR_MAX)?;
    let snapshot = call.node.fresh().await;
    let proof = move || {
        let log = log(&snapshot, rounds);
        let size = asked.unwrap_or(log.size());
        if size > log.size() || index >= size {
            let detail = format!("the log has {} entries, asked was {index} of {size}", log.size());
            return Err(Problem::not_found(detail));
        }
        Ok(Inclusion {
            log: name(rounds),
            index,
            size,
            leaf: log.leaf_hash(index)?,
            root: log.root_at(size)?,
            proof: log.inclusion_proof(index, size)?,
            head: String::from_utf8_lossy(log.note()).into_owned(),
        })
    };
    json_answer(&call.node.blocking(proof).await?)
}

#[derive(Serialize)]
struct Consistency {
    log: &'static str,
    from: u64,
    to: u64,
    from_root: Digest,
    to_root: Digest,
    proof: Vec<Digest>,
}

async fn consistency_proof(call: Call) -> Answer {
    let rounds = is_rounds(&call)?;
    let from = call.query().number("from", CURSOR_MAX)?.unwrap_or(1);
    let to = call.query().number("to", CURSOR_MAX)?;
    let snapshot = call.node.fresh().await;
    let proof = move || {
        let log = log(&snapshot, rounds);
        let to = to.unwrap_or(log.size());
        if from == 0 || from > to || to > log.size() {
            let detail =
                format!("the log has {} entries; there is no proof {from} to {to}", log.size());
            return Err(Problem::not_found(detail));
        }
        Ok(Consistency {
            log: name(rounds),
            from,
            to,
            from_root: log.root_at(from)?,
            to_root: log.root_at(to)?,
            proof: log.consistency_proof(from, to)?,
        })
    };
    json_answer(&call.node.blocking(proof).await?)
}

#[derive(Serialize)]
struct Anchor {
    /// Entries of the head.
    size: u64,
    /// SHA-256 of its text, as the log tells of it.
    value: Option<Digest>,
    /// Index of the log's entry that tells of it.
    index: Option<u64>,
    /// Whether its receipt is here.
    receipt: bool,
}

async fn anchored(call: Call) -> Answer {
    let snapshot = call.node.fresh().await;
    let rows = move || {
        let receipts = anchors::sizes(snapshot.ledger.place())?;
        let told = snapshot.ledger.anchors();
        let mut sizes: Vec<u64> =
            told.iter().map(|a| a.record.size).chain(receipts.clone()).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let row = |size| {
            let entry = told.iter().find(|a| a.record.size == size);
            let (value, index) = (entry.map(|a| a.record.value), entry.map(|a| a.index));
            Anchor { size, value, index, receipt: receipts.binary_search(&size).is_ok() }
        };
        Ok(sizes.into_iter().map(row).collect::<Vec<_>>())
    };
    json_answer(&json!({"anchors": call.node.blocking(rows).await?}))
}

async fn anchor_receipt(call: Call) -> Answer {
    let (size, place) = (call.number("size")?, call.node.place());
    let blob = move || {
        let file = place.files.open(&place.anchor(size))?;
        Ok(Blob::file(file, "application/json", Cache::Revalidate)?)
    };
    let blob = call.node.blocking(blob).await?;
    Ok(blob.answer(&call.headers, call.node.blocks()))
}
