//! JSON schemas that several endpoints' documentation shares.

use serde_json::{Map, Value, json};

/// A SHA-256 digest.
pub fn digest() -> Value {
    json!({"type": "string", "pattern": "^[0-9a-f]{64}$"})
}

/// A number that is exact in JSON.
pub fn number() -> Value {
    json!({"type": "integer", "minimum": 0, "maximum": super::page::CURSOR_MAX})
}

/// Text.
pub fn text() -> Value {
    json!({"type": "string"})
}

/// Proofs, and other lists of digests.
pub fn digests() -> Value {
    json!({"type": "array", "items": digest()})
}

/// The identity of a manifest.
pub fn manifest_id() -> Value {
    object(&[("bytes", number()), ("count", number()), ("root", digest())])
}

/// A uid or a hotkey.
pub fn miner() -> Value {
    json!({"oneOf": [{"type": "integer", "minimum": 0, "maximum": 65535}, digest()]})
}

/// `schema`, or null.
pub fn or_null(schema: Value) -> Value {
    json!({"oneOf": [schema, {"type": "null"}]})
}

/// An object that has all of these.
pub fn object(properties: &[(&str, Value)]) -> Value {
    let required: Vec<&str> = properties.iter().map(|(name, _)| *name).collect();
    let properties: Map<String, Value> =
        properties.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    json!({"type": "object", "required": required, "properties": properties})
}
