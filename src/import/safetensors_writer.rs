//! The head of a safetensors file, as the safetensors library writes it.
//!
//! `export` and `delta` write it, then the tensors' bytes in the same order, without gaps.

use std::collections::BTreeMap;

use serde::Serialize;

use super::safetensors::METADATA_KEY;
use crate::types::tensor::Dtype;

/// A tensor that will follow the header.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Its name, not `__metadata__`.
    pub name: &'a str,
    /// Of its elements.
    pub dtype: Dtype,
    /// Its dimensions; with the dtype they give its length.
    pub shape: &'a [u64],
}

#[derive(Serialize)]
struct Entry<'a> {
    dtype: Dtype,
    shape: &'a [u64],
    data_offsets: [u64; 2],
}

/// Length, JSON header and padding to 8 bytes; the tensors' bytes follow in the order of `parts`.
///
/// Wide elements first keeps every tensor aligned, which is up to the caller.
///
/// # Source
///
/// <https://github.com/huggingface/safetensors#format>
pub fn header<'a>(
    metadata: &BTreeMap<&str, String>,
    parts: impl IntoIterator<Item = Part<'a>>,
) -> Vec<u8> {
    let plain = "plain data becomes JSON";
    let mut entries = BTreeMap::new();
    entries.insert(METADATA_KEY, serde_json::to_value(metadata).expect(plain));
    let mut at = 0;
    for Part { name, dtype, shape } in parts {
        let end = at + shape.iter().product::<u64>() * dtype.bytes();
        let entry = Entry { dtype, shape, data_offsets: [at, end] };
        entries.insert(name, serde_json::to_value(entry).expect(plain));
        at = end;
    }
    let mut json = serde_json::to_vec(&entries).expect(plain);
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json);
    bytes
}
