//! `/{owner}/{name}/resolve/{revision}/{file}`: the files themselves, in any range.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use hyper::header::{CONTENT_DISPOSITION, HeaderName};

use super::{REPO_COMMIT, no_entry};
use crate::{
    export::FileReader,
    http::{
        blob::{Blob, Cache, Source},
        endpoint::{Answer, Call},
    },
    store::StoreError,
};

const LINKED_SIZE: HeaderName = HeaderName::from_static("x-linked-size");
const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");

/// A file that is computed as it is read. One answer reads it front to back, so the reader is its own.
struct Virtual {
    reader: Mutex<FileReader>,
    bytes: u64,
}

impl Source for Virtual {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        // A reader that a panic left takes nothing for granted: it finds its place anew.
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        reader.read_exact_at(offset, buffer).map_err(|error: StoreError| io::Error::other(error))
    }
}

/// Answers with a file of a revision.
pub(super) async fn resolve(call: Call) -> Answer {
    let snapshot = call.node.fresh().await;
    let (rev, path) = (call.param("rev"), call.rest("file").join("/"));
    let repository = call.node.hub().repository(call.param("owner"), call.param("name"))?;
    let revision = repository.revision(rev)?;
    let Some(file) = revision.file(&path).cloned() else {
        return Err(no_entry(&revision, &path));
    };
    // A commit names these very bytes; a round could come to another state in another ledger.
    let cache = if rev == revision.commit { Cache::Immutable } else { Cache::Revalidate };
    let (node, of) = (call.node.clone(), revision.clone());
    let open = call.node.blocking(move || Ok(node.hub().open(&snapshot.ledger, &of)?)).await?;
    let Some(reader) = open.reader(&path) else { return Err(no_entry(&revision, &path)) };
    let etag = file.sha256.to_hex();
    let source = Arc::new(Virtual { bytes: file.bytes, reader: Mutex::new(reader) });
    let blob = Blob::source(source, etag.clone(), content_type(&path), cache)
        .with(REPO_COMMIT, &revision.commit)
        .with(LINKED_SIZE, &file.bytes.to_string())
        .with(LINKED_ETAG, &format!("\"{etag}\""))
        .with(CONTENT_DISPOSITION, &format!("inline; filename=\"{path}\""));
    Ok(blob.answer(&call.headers, call.node.blocks()))
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.') {
        Some((_, "json")) => "application/json",
        Some((_, "md" | "txt" | "jinja")) => "text/plain; charset=utf-8",
        _ if name == crate::export::SUMS => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}
