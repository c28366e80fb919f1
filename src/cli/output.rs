//! What goes to stdout: one JSON document, or text for people.

use std::io::{self, Write as _};

use serde::Serialize;

use super::exit::CliError;

/// Version of every JSON document this command prints.
const SCHEMA_VERSION: u64 = 1;

#[derive(Serialize)]
struct Document<'a, T> {
    schema_version: u64,
    #[serde(flatten)]
    body: &'a T,
}

/// Prints `body` as one JSON document, or `text`.
pub fn print<T: Serialize>(
    json: bool,
    body: &T,
    text: impl FnOnce() -> String,
) -> Result<(), CliError> {
    let text = if json { document(body)? } else { text() };
    write(text.as_bytes())
}

/// `body` as one JSON document.
pub fn document<T: Serialize>(body: &T) -> Result<String, CliError> {
    let document = Document { schema_version: SCHEMA_VERSION, body };
    let mut json = serde_json::to_string_pretty(&document).map_err(CliError::Json)?;
    json.push('\n');
    Ok(json)
}

/// Writes `bytes` to stdout.
pub fn write(bytes: &[u8]) -> Result<(), CliError> {
    match io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()) {
        // Whoever reads has seen enough, as with `| head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(CliError::Stdout),
    }
}

/// `bytes` for people, in binary units.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}
