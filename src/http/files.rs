//! `/v1/files`: a ledger's own files as they lie in its directory, for clients that read it like one.

use std::path::{Path, PathBuf};

use hyper::StatusCode;
use serde::Serialize;
use serde_json::json;

use super::{
    blob::{Blob, Cache},
    endpoint::{Answer, Call, Endpoint, json_answer},
    node::{Node, Snapshot},
    problem::Problem,
    visible::{Visible, visible},
};

/// Most names on a page.
const NAMES_MAX: usize = 1000;

/// The only endpoint, of files and directories.
pub fn endpoints() -> Vec<Endpoint> {
    let names = json!({
        "type": "object",
        "required": ["names", "next"],
        "properties": {
            "names": {"type": "array", "items": {"type": "string"}, "maxItems": NAMES_MAX},
            "next": {"type": ["string", "null"]}
        }
    });
    vec![
        Endpoint::get(
            "/v1/files/{path*}",
            "A file of the ledger; with a slash at the end, a directory.",
            file,
        )
        .path("path", json!({"type": "string"}))
        .query("after", json!({"type": "string"}))
        .blob("The file.", "*/*")
        .answer(
            StatusCode::OK,
            "The directory's names, sorted.",
            Some("application/json"),
            names,
        ),
    ]
}

#[derive(Serialize)]
struct Page {
    names: Vec<String>,
    /// What to ask for as `after`, if there are more.
    next: Option<String>,
}

fn none() -> Problem {
    Problem::not_found("the ledger has no such file, or it is not public")
}

async fn file(call: Call) -> Answer {
    let snapshot = call.node.fresh().await;
    let parts = call.rest("path").to_vec();
    let node = call.node.clone();
    if parts.last().is_some_and(String::is_empty) {
        let after = call.query().get("after")?.map(str::to_owned);
        let page = call.node.blocking(move || list(&node, &snapshot, &parts, after)).await?;
        return json_answer(&page);
    }
    let blob = call.node.blocking(move || open(&node, &snapshot, &parts)).await?;
    Ok(blob.answer(&call.headers, call.node.blocks()))
}

/// The content type of a file of this name.
fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.') {
        Some((_, "parquet")) => "application/vnd.apache.parquet",
        Some((_, "json")) => "application/json",
        _ if name == "tree-state" => "application/json",
        _ if name == "checkpoint" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

fn path_of(snapshot: &Snapshot, parts: &[String]) -> PathBuf {
    let root = &snapshot.ledger.place().root;
    parts.iter().filter(|part| !part.is_empty()).fold(root.clone(), |path, part| path.join(part))
}

fn open(node: &Node, snapshot: &Snapshot, parts: &[String]) -> Result<Blob, Problem> {
    match visible(parts, &snapshot.published) {
        Visible::No => return Err(none()),
        Visible::Log => {
            return log_file(node, &path_of(snapshot, &parts[..2]), &parts[2..].join("/"));
        }
        Visible::Tensor(root) if !node.tensors().has(&snapshot.ledger, root)? => return Err(none()),
        Visible::Yes | Visible::Tensor(_) => {}
    }
    let name = parts.last().map_or("", String::as_str);
    let file = snapshot.ledger.place().files.open(&path_of(snapshot, parts))?;
    Ok(Blob::file(file, content_type(name), Cache::Revalidate)?)
}

/// A log's file, by its path below the log's directory: no tile beyond what is committed.
///
/// # Errors
///
/// [`Problem`] (404) if the log has no such file.
pub fn log_file(node: &Node, log: &Path, path: &str) -> Result<Blob, Problem> {
    let files = node.log_files(log);
    match path {
        "checkpoint" => Ok(Blob::memory(files.head()?, content_type(path), Cache::NoStore)),
        "tree-state" => {
            let file = node.place().files.open(&log.join(path))?;
            Ok(Blob::file(file, content_type(path), Cache::NoStore)?)
        }
        _ => {
            let part = files.part(path)?.ok_or_else(none)?;
            let cache = if part.full { Cache::Immutable } else { Cache::Revalidate };
            Ok(Blob::memory(part.bytes, content_type(path), cache))
        }
    }
}

fn list(
    node: &Node,
    snapshot: &Snapshot,
    parts: &[String],
    after: Option<String>,
) -> Result<Page, Problem> {
    if visible(parts, &snapshot.published) == Visible::No {
        return Err(none());
    }
    let dir = path_of(snapshot, parts);
    let files = &snapshot.ledger.place().files;
    let mut names = Vec::new();
    for name in files.list(&dir)? {
        // A name that is not UTF-8 cannot be asked for.
        let Some(name) = name.to_str().map(str::to_owned) else { continue };
        if after.as_ref().is_some_and(|after| name <= *after)
            || !is_public(node, snapshot, parts, &name)?
        {
            continue;
        }
        if names.len() == NAMES_MAX {
            return Ok(Page { next: names.last().cloned(), names });
        }
        names.push(name);
    }
    Ok(Page { names, next: None })
}

fn is_public(
    node: &Node,
    snapshot: &Snapshot,
    dir: &[String],
    name: &str,
) -> Result<bool, Problem> {
    let mut parts = dir.to_vec();
    parts.pop();
    parts.push(name.to_owned());
    Ok(match visible(&parts, &snapshot.published) {
        Visible::No => false,
        Visible::Tensor(root) => node.tensors().has(&snapshot.ledger, root)?,
        Visible::Yes | Visible::Log => true,
    })
}
