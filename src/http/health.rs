//! Whether the server runs, and whether it should be sent requests.

use hyper::StatusCode;
use serde_json::json;

use super::{
    endpoint::{Endpoint, json_answer},
    problem::Problem,
};

/// `/healthz` and `/readyz`.
pub fn endpoints() -> Vec<Endpoint> {
    let schema = || {
        json!({
            "type": "object", "required": ["status"], "properties": {"status": {"const": "ok"}}
        })
    };
    let ok = json!({"status": "ok"});
    let healthy = ok.clone();
    vec![
        Endpoint::get("/healthz", "Whether the server runs.", move |_| {
            let ok = healthy.clone();
            async move { json_answer(&ok) }
        })
        .json("It does.", schema()),
        Endpoint::get("/readyz", "Whether the server should be sent requests.", move |call| {
            let ok = ok.clone();
            async move {
                call.node.fresh().await;
                if call.node.is_ready() {
                    return json_answer(&ok);
                }
                let detail = "it is about to end, or the ledger does not read";
                Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", detail))
            }
        })
        .json("It should.", schema())
        .problem(StatusCode::SERVICE_UNAVAILABLE, "It should not."),
    ]
}
