//! `/log/rounds` and `/log/submissions`: both logs at the paths of C2SP tlog-tiles.

use serde_json::json;

use super::{
    endpoint::{Answer, Call, Endpoint},
    files::log_file,
    problem::Problem,
};

/// Tree heads, tiles and entry bundles.
pub fn endpoints() -> Vec<Endpoint> {
    vec![
        Endpoint::get("/log/{log}/checkpoint", "A log's newest signed tree head.", head)
            .path("log", log_schema())
            .blob("The head, a signed note.", "text/plain; charset=utf-8"),
        Endpoint::get("/log/{log}/tile/{path*}", "A tile or an entry bundle of a log.", tile)
            .path("log", log_schema())
            .path("path", json!({"type": "string", "examples": ["0/000.p/1", "entries/000.p/1"]}))
            .blob("The tile or bundle.", "application/octet-stream"),
    ]
}

/// The JSON schema of a log's name.
pub fn log_schema() -> serde_json::Value {
    json!({"enum": ["rounds", "submissions"]})
}

/// Whether `{log}` names the rounds log; else it names the submissions log.
///
/// # Errors
///
/// [`Problem`] (404) if it names neither.
pub fn is_rounds(call: &Call) -> Result<bool, Problem> {
    match call.param("log") {
        "rounds" => Ok(true),
        "submissions" => Ok(false),
        _ => Err(Problem::not_found("the logs are rounds and submissions")),
    }
}

async fn head(call: Call) -> Answer {
    answer(call, "checkpoint".to_owned()).await
}

async fn tile(call: Call) -> Answer {
    let path = format!("tile/{}", call.rest("path").join("/"));
    answer(call, path).await
}

async fn answer(call: Call, path: String) -> Answer {
    let (node, place) = (call.node.clone(), call.node.place());
    let log = if is_rounds(&call)? { place.rounds_log() } else { place.submissions_log() };
    let blob = call.node.blocking(move || log_file(&node, &log, &path)).await?;
    Ok(blob.answer(&call.headers, call.node.blocks()))
}
