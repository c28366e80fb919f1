//! The endpoints of uploads, with what each may answer.

use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::route;
use crate::http::endpoint::Endpoint;

/// The endpoints.
pub fn endpoints() -> Vec<Endpoint> {
    let digest = || json!({"type": "string", "pattern": "^[0-9a-f]{64}$"});
    let at = |method, template, summary: &'static str| match method {
        "POST" => {
            Endpoint::new(Method::POST, template, summary, |call| async { route(call).await })
        }
        "PUT" => Endpoint::new(Method::PUT, template, summary, |call| async { route(call).await }),
        "DELETE" => {
            Endpoint::new(Method::DELETE, template, summary, |call| async { route(call).await })
        }
        _ => Endpoint::get(template, summary, |call| async { route(call).await }),
    };
    let signed = |endpoint: Endpoint| {
        refusals(endpoint.takes("application/json", request_schema()))
            .problem(StatusCode::CONFLICT, "the log as it stands does not take it, or not yet")
            .problem(StatusCode::UNPROCESSABLE_ENTITY, "the delta is not what the model asks for")
    };
    let bytes = |endpoint: Endpoint| {
        refusals(endpoint.path("id", digest()))
            .takes("application/octet-stream", json!({"type": "string", "format": "binary"}))
            .answer(StatusCode::NO_CONTENT, "it is durable", None, Value::Null)
            .problem(StatusCode::CONFLICT, "not now, or not there")
            .problem(StatusCode::LENGTH_REQUIRED, "no Content-Length")
            .problem(StatusCode::UNPROCESSABLE_ENTITY, "the bytes are not what they should be")
    };
    vec![
        signed(at("POST", "/v1/uploads", "Announces a delta; signed by the hotkey."))
            .json("what is to be sent, and the token", state_schema())
            .answer(
                StatusCode::CREATED,
                "as 200, of an upload that is new",
                Some("application/json"),
                state_schema(),
            ),
        refusals(at("GET", "/v1/uploads/{id}", "How far an upload has come.").path("id", digest()))
            .json("what is still to be sent", state_schema()),
        refusals(at("DELETE", "/v1/uploads/{id}", "Gives an upload up.").path("id", digest()))
            .answer(StatusCode::NO_CONTENT, "it is gone", None, Value::Null)
            .problem(StatusCode::CONFLICT, "it is being committed"),
        bytes(at("PUT", "/v1/uploads/{id}/hashes", "Sends the delta's hashes file.")),
        bytes(at("PUT", "/v1/uploads/{id}/parts", "Sends a part of the delta."))
            .query("offset", json!({"type": "integer", "minimum": 0})),
        signed(
            at("POST", "/v1/uploads/{id}/commit", "Submits what was sent; signed by the hotkey.")
                .path("id", digest()),
        )
        .json("the receipt", json!({"type": "object"}))
        .answer(
            StatusCode::ACCEPTED,
            "it is being committed: commit again",
            None,
            Value::Null,
        ),
    ]
}

fn refusals(endpoint: Endpoint) -> Endpoint {
    endpoint
        .problem(StatusCode::BAD_REQUEST, "it cannot be read")
        .problem(StatusCode::UNAUTHORIZED, "not signed, or not as it should be; no token")
        .problem(StatusCode::FORBIDDEN, "whoever it is may not upload here")
        .problem(StatusCode::NOT_FOUND, "no such upload")
        .problem(StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than it may be")
        .problem(StatusCode::TOO_MANY_REQUESTS, "later: too many, too much, or the disk is full")
}

fn request_schema() -> Value {
    json!({"type": "object", "required": ["method", "path", "run", "round", "base", "delta"]})
}

fn state_schema() -> Value {
    json!({"type": "object", "required": ["schema_version", "id", "committed", "missing"]})
}
