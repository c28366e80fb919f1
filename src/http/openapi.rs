//! `/openapi.json`: OpenAPI 3.1, made from the table that makes the routes.

use hyper::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::{
    blob::{Blob, Cache},
    endpoint::{Endpoint, problem_schema},
    problem::PROBLEM_JSON,
};

/// The document of `table`, and of itself.
pub fn endpoint(table: &[Endpoint]) -> Endpoint {
    let empty = || Vec::new();
    let itself = with_document(empty());
    let document = document(table.iter().chain([&itself]));
    with_document(serde_json::to_vec(&document).expect("it is JSON already"))
}

fn with_document(bytes: Vec<u8>) -> Endpoint {
    Endpoint::get("/openapi.json", "This document.", move |call| {
        let blob = Blob::memory(bytes.clone(), "application/json", Cache::Revalidate);
        async move { Ok(blob.answer(&call.headers, call.node.blocks())) }
    })
    .blob("The document.", "application/json")
}

/// What any endpoint may answer with.
const PROBLEMS: [(StatusCode, &str); 4] = [
    (StatusCode::BAD_REQUEST, "The path or the query is malformed."),
    (StatusCode::NOT_FOUND, "There is no such thing, or it is not public."),
    (
        StatusCode::TOO_MANY_REQUESTS,
        "Too much is asked at once; `Retry-After` says when to come again.",
    ),
    (
        StatusCode::INTERNAL_SERVER_ERROR,
        "Something of the server's does not work; its log says what.",
    ),
];

/// What a request for bytes may say.
const CONDITIONS: [(&str, &str); 4] = [
    ("Range", "One range of bytes; several are answered with the whole."),
    ("If-Range", "The range is meant for this ETag; else the whole is sent."),
    ("If-None-Match", "ETags that the client has."),
    ("If-Match", "ETags that the client means."),
];

fn document<'a>(table: impl Iterator<Item = &'a Endpoint>) -> Value {
    let mut paths = Map::<String, Value>::new();
    for endpoint in table {
        let path = endpoint.template.replace("*}", "}");
        let methods = paths.entry(path).or_insert_with(|| json!({}));
        methods[endpoint.method.as_str().to_lowercase()] = operation(endpoint);
    }
    let problem = json!({
        "type": "object",
        "required": ["type", "title", "status", "code", "detail", "request_id"],
        "properties": {
            "type": {"type": "string"}, "title": {"type": "string"},
            "status": {"type": "integer"}, "code": {"type": "string"},
            "detail": {"type": "string"}, "request_id": {"type": "string"}
        }
    });
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "gradledger",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A ledger of model checkpoints and per-miner deltas. HEAD is answered like \
                            GET wherever GET is."
        },
        "paths": paths,
        "components": {"schemas": {"Problem": problem}}
    })
}

fn operation(endpoint: &Endpoint) -> Value {
    let of = &endpoint.operation;
    let mut parameters: Vec<Value> = of.parameters.iter().map(parameter).collect();
    if of.ranges {
        parameters.extend(CONDITIONS.map(|(name, what)| {
            let schema = json!({"type": "string"});
            json!({"name": name, "in": "header", "description": what, "schema": schema})
        }));
    }
    let mut operation = json!({
        "operationId": id(endpoint),
        "summary": of.summary,
        "parameters": parameters,
        "responses": responses(endpoint),
    });
    if let Some((content_type, schema)) = &of.body {
        let content = json!({*content_type: {"schema": schema}});
        operation["requestBody"] = json!({"required": true, "content": content});
    }
    operation
}

/// A name for the operation: its method and the words of its path.
fn id(endpoint: &Endpoint) -> String {
    let words =
        endpoint.template.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty());
    let method = endpoint.method.as_str().to_lowercase();
    std::iter::once(method.as_str()).chain(words).collect::<Vec<_>>().join("_")
}

fn parameter((name, in_path, schema): &(&'static str, bool, Value)) -> Value {
    let place = if *in_path { "path" } else { "query" };
    json!({"name": name, "in": place, "required": in_path, "schema": schema})
}

fn responses(endpoint: &Endpoint) -> Value {
    let of = &endpoint.operation;
    let mut all = Map::<String, Value>::new();
    let mut add = |status: StatusCode, what: &str, content_type: Option<&str>, schema: &Value| {
        let answer =
            all.entry(status.as_u16().to_string()).or_insert_with(|| json!({"description": what}));
        if let Some(content_type) = content_type {
            answer["content"][content_type] = json!({"schema": schema});
        }
    };
    for (status, what, content_type, schema) in &of.answers {
        add(*status, what, *content_type, schema);
        if of.ranges && *status == StatusCode::OK {
            add(StatusCode::PARTIAL_CONTENT, "The range.", *content_type, schema);
        }
    }
    if of.ranges {
        add(StatusCode::NOT_MODIFIED, "The client has it.", None, &Value::Null);
        for (status, what) in [
            (StatusCode::PRECONDITION_FAILED, "It has another ETag than `If-Match` names."),
            (StatusCode::RANGE_NOT_SATISFIABLE, "The range starts at or after the end."),
        ] {
            add(status, what, Some(PROBLEM_JSON), &problem_schema());
        }
    }
    for (status, what) in PROBLEMS {
        add(status, what, Some(PROBLEM_JSON), &problem_schema());
    }
    debug_assert!(endpoint.method != Method::HEAD, "GET stands for HEAD");
    Value::from(all)
}
