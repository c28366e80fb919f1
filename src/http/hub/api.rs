//! `/api/models/...`: what a repository has, in the words of the Hub's API.
//!
//! A ledger knows no clock, so every date is the epoch. All files are at the top, so there are no
//! folders.

use std::{collections::BTreeSet, sync::Arc};

use http_body_util::{BodyExt as _, Limited};
use hyper::{
    HeaderMap, Method, StatusCode,
    header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue, LINK},
};
use serde_json::{Value, json};

use super::{REPO_COMMIT, Repository, missing, no_entry, resolve::resolve, tag};
use crate::{
    http::{
        endpoint::{Answer, Call, Endpoint, Response, json_answer},
        path::Query,
        problem::Problem,
    },
    ledger::hub::Revision,
    types::record::FileId,
};

/// Files or commits on a page, as on the Hub.
const PAGE_MAX: u64 = 1000;

/// Largest list of paths that is taken.
const BODY_BYTES_MAX: usize = 1 << 20;

/// The only date there is.
const DATE: &str = "1970-01-01T00:00:00.000Z";

/// What a Git LFS pointer takes, about. Clients ask for the number and do nothing with it.
const POINTER_BYTES: u64 = 134;

const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// All endpoints of the repositories.
pub fn endpoints() -> Vec<Endpoint> {
    let info = |template| {
        let what = "What a repository is at a revision, and its files.";
        repository(Endpoint::get(template, what, info)).json("It.", json!({"type": "object"}))
    };
    let tree = |template| {
        repository(Endpoint::get(template, "The files of a revision, a page at a time.", tree))
            .query("recursive", json!({"type": "string"}))
            .query("expand", json!({"type": "string"}))
            .query("limit", json!({"type": "integer", "minimum": 1, "maximum": PAGE_MAX}))
            .query("cursor", json!({"type": "string"}))
            .json("Up to a page; `Link` leads to the next.", entries())
    };
    let list = json!({"type": "array", "items": {"type": "object"}});
    let owner = "A repository without an owner: there is none.";
    vec![
        Endpoint::get("/api/models/{name}", owner, unowned)
            .path("name", json!({"type": "string"}))
            .problem(StatusCode::NOT_FOUND, "There is none."),
        info("/api/models/{owner}/{name}"),
        with_rev(info("/api/models/{owner}/{name}/revision/{rev}")),
        with_rev(tree("/api/models/{owner}/{name}/tree/{rev}")),
        with_rev(tree("/api/models/{owner}/{name}/tree/{rev}/{path*}"))
            .path("path", json!({"type": "string"})),
        repository(Endpoint::get(
            "/api/models/{owner}/{name}/refs",
            "Its revisions by name.",
            refs,
        ))
        .json("Branch and tags.", json!({"type": "object"})),
        with_rev(repository(Endpoint::get(
            "/api/models/{owner}/{name}/commits/{rev}",
            "A revision and those before it, newest first.",
            commits,
        )))
        .query("p", json!({"type": "integer", "minimum": 0}))
        .query("limit", json!({"type": "integer", "minimum": 1, "maximum": PAGE_MAX}))
        .json("Up to a page; `Link` leads to the next.", list),
        with_rev(repository(Endpoint::new(
            Method::POST,
            "/api/models/{owner}/{name}/paths-info/{rev}",
            "Those of the paths that are files of a revision.",
            paths_info,
        )))
        .takes(
            "application/json",
            json!({"type": "object", "required": ["paths"], "properties": {
                "paths": {"type": "array", "items": {"type": "string"}}
            }}),
        )
        .json("The files.", entries())
        .problem(StatusCode::BAD_REQUEST, "The body is no list of paths.")
        .problem(StatusCode::PAYLOAD_TOO_LARGE, "The list is too long."),
        with_rev(repository(Endpoint::get(
            "/{owner}/{name}/resolve/{rev}/{file*}",
            "A file of a revision, computed from the stored state.",
            resolve,
        )))
        .path("file", json!({"type": "string"}))
        .blob("The file.", "*/*"),
    ]
}

fn repository(endpoint: Endpoint) -> Endpoint {
    endpoint
        .path("owner", json!({"type": "string"}))
        .path("name", json!({"type": "string"}))
        .problem(StatusCode::NOT_FOUND, "There is none; `X-Error-Code` says what is missing.")
}

fn with_rev(endpoint: Endpoint) -> Endpoint {
    endpoint.path("rev", json!({"type": "string"}))
}

fn entries() -> Value {
    json!({"type": "array", "items": {
        "type": "object",
        "required": ["type", "path", "size", "oid", "lfs"],
        "properties": {"path": {"type": "string"}, "size": {"type": "integer"}}
    }})
}

fn repository_of(call: &Call) -> Result<Repository, Problem> {
    call.node.hub().repository(call.param("owner"), call.param("name"))
}

/// The repository and the revision that a call is about: the newest if its path names none.
fn revision_of(call: &Call, rev: &str) -> Result<(Repository, Arc<Revision>), Problem> {
    let repository = repository_of(call)?;
    let revision = repository.revision(rev)?;
    Ok((repository, revision))
}

fn about(revision: &Revision, mut response: Response) -> Response {
    let commit = HeaderValue::from_str(&revision.commit).expect("hex digits");
    response.headers_mut().insert(REPO_COMMIT, commit);
    response
}

async fn info(call: Call) -> Answer {
    let rev = if call.has("rev") { call.param("rev").to_owned() } else { "main".to_owned() };
    let (repository, revision) = revision_of(&call, &rev)?;
    let blobs = call.query().get("blobs")?.is_some_and(is_true);
    let sibling = |file: &FileId| {
        let mut sibling = json!({"rfilename": file.name});
        if blobs {
            sibling["size"] = json!(file.bytes);
            sibling["blobId"] = json!(oid(file));
            sibling["lfs"] = json!({
                "sha256": file.sha256, "size": file.bytes, "pointerSize": POINTER_BYTES
            });
        }
        sibling
    };
    let siblings: Vec<_> = revision.files.iter().map(sibling).collect();
    let used_storage: u64 = revision.files.iter().map(|file| file.bytes).sum();
    let author = repository.id.split('/').next().unwrap_or_default();
    let body = json!({
        "_id": &revision.commit[..24],
        "id": repository.id,
        "modelId": repository.id,
        "author": author,
        "sha": revision.commit,
        "lastModified": DATE,
        "createdAt": DATE,
        "private": false,
        "gated": false,
        "disabled": false,
        "downloads": 0,
        "likes": 0,
        "library_name": "transformers",
        "tags": ["transformers", "safetensors"],
        "usedStorage": used_storage,
        "siblings": siblings,
    });
    Ok(about(&revision, json_answer(&body)?))
}

fn is_true(text: &str) -> bool {
    matches!(text, "true" | "True" | "1")
}

/// Git's name of a file; nobody can fetch by it here, so it is a part of the digest.
fn oid(file: &FileId) -> String {
    file.sha256.to_hex()[..40].to_owned()
}

fn entry(file: &FileId) -> Value {
    let FileId { name, bytes, sha256 } = file;
    let lfs = json!({"oid": sha256, "size": bytes, "pointerSize": POINTER_BYTES});
    json!({"type": "file", "oid": oid(file), "size": bytes, "path": name, "lfs": lfs})
}

async fn tree(call: Call) -> Answer {
    let (_, revision) = revision_of(&call, call.param("rev"))?;
    if call.has("path") {
        let path = call.rest("path").join("/");
        if !path.is_empty() {
            return Err(no_entry(&revision, &path));
        }
    }
    let (limit, after) = (limit(call.query())?, call.query().get("cursor")?);
    let mut left = revision.files.iter().filter(|file| after.is_none_or(|a| *file.name > *a));
    let page: Vec<_> = left.by_ref().take(limit).collect();
    let more = left.next().and(page.last()).map(|last| last.name.clone());
    let entries: Vec<_> = page.into_iter().map(entry).collect();
    let response = about(&revision, json_answer(&entries)?);
    Ok(linked(&call, response, more.map(|name| ("cursor", name))))
}

fn limit(query: &Query) -> Result<usize, Problem> {
    let limit = query.number("limit", PAGE_MAX)?.unwrap_or(PAGE_MAX).max(1);
    Ok(limit as usize)
}

async fn refs(call: Call) -> Answer {
    let repository = repository_of(&call)?;
    let main = repository.named.last().map(|(_, revision)| {
        json!({"name": "main", "ref": "refs/heads/main", "targetCommit": revision.commit})
    });
    let tags = repository.named.iter().map(|(at, revision)| {
        let name = tag(*at);
        json!({"name": name, "ref": format!("refs/tags/{name}"), "targetCommit": revision.commit})
    });
    let tags: Vec<_> = tags.collect();
    json_answer(&json!({
        "branches": main.into_iter().collect::<Vec<_>>(), "converts": [], "tags": tags
    }))
}

async fn commits(call: Call) -> Answer {
    let (repository, revision) = revision_of(&call, call.param("rev"))?;
    let (limit, page) = (limit(call.query())?, call.query().number("p", u64::from(u32::MAX))?);
    let page = page.unwrap_or(0) as usize;
    // From the newest name of the revision on; a state that two rounds came to stands there once.
    let mut seen = BTreeSet::new();
    let mut left = repository
        .named
        .iter()
        .rev()
        .skip_while(|(_, r)| r.commit != revision.commit)
        .filter(|(_, r)| seen.insert(r.commit.as_str()))
        .skip(page.saturating_mul(limit));
    let commit = |(at, revision): &(_, Arc<Revision>)| {
        let title = format!("{}: state {}", tag(*at), revision.state.root);
        json!({
            "id": revision.commit, "title": title, "message": "",
            "authors": [{"user": repository.id.split('/').next()}], "date": DATE
        })
    };
    let commits: Vec<_> = left.by_ref().take(limit).map(commit).collect();
    let more = left.next().map(|_| ("p", (page + 1).to_string()));
    let response = about(&revision, json_answer(&commits)?);
    Ok(linked(&call, response, more))
}

async fn paths_info(call: Call) -> Answer {
    let (_, revision) = revision_of(&call, call.param("rev"))?;
    let asked = paths(&call).await?;
    let found = revision.files.iter().filter(|file| asked.contains(&file.name));
    Ok(about(&revision, json_answer(&found.map(entry).collect::<Vec<_>>())?))
}

/// The paths in a request's body, which is JSON or a form.
async fn paths(call: &Call) -> Result<BTreeSet<String>, Problem> {
    let bad = |what: &str| Problem::new(StatusCode::BAD_REQUEST, "bad-body", what);
    let body = call.context.body.take().ok_or_else(|| Problem::internal("the body was read"))?;
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await.map_err(|error| {
        if error.is::<http_body_util::LengthLimitError>() {
            let detail = format!("the list takes more than {BODY_BYTES_MAX} bytes");
            return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail);
        }
        bad("the body broke off")
    })?;
    let body = body.to_bytes();
    let is_json = call.headers.get(CONTENT_TYPE).is_some_and(|v| {
        v.to_str()
            .is_ok_and(|v| v.trim_start().to_ascii_lowercase().starts_with("application/json"))
    });
    if is_json {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Paths {
            One(String),
            Many(BTreeSet<String>),
        }
        #[derive(serde::Deserialize)]
        struct Asked {
            paths: Paths,
        }
        let asked: Asked =
            serde_json::from_slice(&body).map_err(|_| bad("the body is not {\"paths\": [..]}"))?;
        return Ok(match asked.paths {
            Paths::One(path) => BTreeSet::from([path]),
            Paths::Many(paths) => paths,
        });
    }
    let text = std::str::from_utf8(&body).map_err(|_| bad("the body is not UTF-8"))?;
    Ok(Query::parse(Some(text))?.all("paths").map(str::to_owned).collect())
}

/// The same with a `Link` to the next page, which has this in place of the same name in the query.
///
/// The Hub's clients take whole addresses only, so it is made of what the client called this server.
fn linked(call: &Call, mut response: Response, next: Option<(&str, String)>) -> Response {
    let Some((name, value)) = next else { return response };
    let mut query: Vec<_> = call.query().pairs().filter(|(n, _)| *n != name).collect();
    query.push((name, &value));
    let query: Vec<_> =
        query.iter().map(|(name, value)| format!("{}={}", escaped(name), escaped(value))).collect();
    let (origin, path) = (origin(&call.headers), &call.context.path);
    let link = format!("<{origin}{path}?{}>; rel=\"next\"", query.join("&"));
    response.headers_mut().extend(HeaderValue::from_str(&link).ok().map(|link| (LINK, link)));
    response
}

/// Scheme and authority by which the client came here; nothing if it does not say.
fn origin(headers: &HeaderMap) -> String {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]_".contains(c);
    let scheme = if text(FORWARDED_PROTO) == Some("https") { "https" } else { "http" };
    match text(HOST).filter(|host| !host.is_empty() && host.chars().all(plain)) {
        Some(host) => format!("{scheme}://{host}"),
        None => String::new(),
    }
}

/// Text as it can stand anywhere in an address.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(byte.into());
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Answers for ids that cannot be one of ours.
async fn unowned(_: Call) -> Answer {
    Err(missing("RepoNotFound", "a repository here has an owner: OWNER/NAME"))
}
