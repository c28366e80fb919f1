//! The ledger and its rounds, as documents.

use hyper::header::HeaderName;
use serde::Serialize;
use serde_json::json;

use super::{
    blob::{Blob, Cache, Logical},
    endpoint::{Answer, Call, Endpoint, json_answer},
    node::Snapshot,
    page::{Page, Wish, page_answer},
    problem::Problem,
    schemas::{digest, manifest_id, miner, number, object, or_null, text},
};
use crate::{
    ledger::{
        Sealed,
        show::{show, show_round},
        tables,
    },
    store::{StoreError, segment},
    types::{digest::Digest, manifest::ManifestId, record::Window},
};

/// `/v1/ledger` and what lies below `/v1/rounds`.
pub fn endpoints() -> Vec<Endpoint> {
    let block = object(&[("number", number()), ("hash", digest())]);
    let anchor = object(&[("block", block), ("size", number()), ("value", digest())]);
    let view = object(&[
        ("run", text()),
        ("run_id", digest()),
        ("origin", text()),
        ("log_keys", object(&[("rounds", text()), ("submissions", text())])),
        ("rounds", number()),
        ("genesis", manifest_id()),
        ("head", object(&[("round", or_null(number())), ("root", digest())])),
        ("rounds_log", object(&[("size", number()), ("root", digest())])),
        ("submissions_log", object(&[("size", number()), ("root", digest())])),
        ("anchor", or_null(anchor)),
        ("unanchored_rounds", number()),
    ]);
    let summary = object(&[
        ("round", number()),
        ("index", number()),
        ("leaf", digest()),
        ("base", manifest_id()),
        ("next", manifest_id()),
        ("submissions", object(&[("start", number()), ("end", number())])),
    ]);
    let round = object(&[
        ("index", number()),
        ("leaf", digest()),
        ("kept", json!({"type": "boolean"})),
        (
            "record",
            object(&[("round", number()), ("base", manifest_id()), ("next", manifest_id())]),
        ),
        ("dispositions", json!({"type": "array", "items": object(&[("miner", miner())])})),
    ]);
    let row = object(&[("round", number()), ("miner", text()), ("disposition", text())]);
    let rows = object(&[("contributions", json!({"type": "array", "items": row}))]);
    vec![
        Endpoint::get("/v1/ledger", "The ledger at a glance.", ledger).json("The ledger.", view),
        Endpoint::get("/v1/rounds", "The sealed rounds, oldest first.", rounds)
            .pages("Rounds; the cursor is a round's number.", summary),
        Endpoint::get(
            "/v1/rounds/{round}",
            "A sealed round, and what came of each submission.",
            one,
        )
        .path("round", number())
        .json("The round.", round),
        Endpoint::get(
            "/v1/rounds/{round}/contributions",
            "Who contributed what to a sealed round: the table `contributions`.",
            contributions,
        )
        .path("round", number())
        .json("A row a submission or absent miner.", rows),
        Endpoint::get("/v1/rounds/{round}/plan", "The scalars of a sealed round.", plan)
            .path("round", number())
            .blob("The plan's rows as they are hashed.", "application/octet-stream"),
    ]
}

async fn ledger(call: Call) -> Answer {
    let snapshot = call.node.fresh().await;
    json_answer(&call.node.blocking(move || Ok(show(&snapshot.ledger)?)).await?)
}

/// A round in a list.
#[derive(Serialize)]
struct Summary {
    round: u64,
    index: u64,
    leaf: Digest,
    base: ManifestId,
    next: ManifestId,
    submissions: Window,
}

impl From<&Sealed> for Summary {
    fn from(Sealed { index, leaf, record }: &Sealed) -> Self {
        let (round, base, next) = (record.round, record.base, record.next);
        Self { round, index: *index, leaf: *leaf, base, next, submissions: record.submissions }
    }
}

async fn rounds(call: Call) -> Answer {
    let (wish, snapshot) = (Wish::of(&call)?, call.node.fresh().await);
    let sealed = snapshot.ledger.sealed();
    // Rounds ascend, so the first of the page is found by halves.
    let start = sealed.partition_point(|s| wish.after.is_some_and(|after| s.record.round <= after));
    let items = sealed[start..].iter().map(|s| (s.record.round, Summary::from(s)));
    let page: Page<Summary> = wish.page(items);
    page_answer(&call, &page, wish.limit)
}

/// Where the round of the path stands among the sealed ones.
fn position(call: &Call, snapshot: &Snapshot) -> Result<usize, Problem> {
    let none = |round| Problem::not_found(format!("there is no sealed round {round}"));
    let round = call.number("round")?;
    snapshot.published.position(round).ok_or_else(|| none(round))
}

async fn one(call: Call) -> Answer {
    let snapshot = call.node.fresh().await;
    let position = position(&call, &snapshot)?;
    let view = move || {
        let round = snapshot.ledger.sealed()[position].record.round;
        Ok(show_round(&snapshot.ledger, round)?)
    };
    json_answer(&call.node.blocking(view).await?)
}

async fn contributions(call: Call) -> Answer {
    let snapshot = call.node.fresh().await;
    let position = position(&call, &snapshot)?;
    let rows = move || Ok(tables::contributions(&snapshot.ledger, position)?);
    json_answer(&json!({"contributions": call.node.blocking(rows).await?}))
}

async fn plan(call: Call) -> Answer {
    let snapshot = call.node.fresh().await;
    let position = position(&call, &snapshot)?;
    let blob = move || {
        let artifact = snapshot.ledger.sealed()[position].record.plan;
        let (place, bins) = (snapshot.ledger.place(), 1 << snapshot.ledger.rule().code_bits());
        let rows = segment::plan::open(&*place.files, &place.root, &artifact, bins);
        let rows = Logical(std::sync::Arc::new(rows.map_err(StoreError::from)?));
        let octets = "application/octet-stream";
        let etag = artifact.root.to_hex();
        let root = HeaderName::from_static("x-root");
        Ok(Blob::source(std::sync::Arc::new(rows), etag.clone(), octets, Cache::Immutable)
            .with(root, &etag))
    };
    let blob = call.node.blocking(blob).await?;
    Ok(blob.answer(&call.headers, call.node.blocks()))
}
