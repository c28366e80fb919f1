//! Manifests of states and deltas, and the logical bytes of what they describe.

use std::{collections::VecDeque, sync::Arc};

use hyper::StatusCode;
use serde_json::json;

use super::{
    Node,
    blob::{Blob, Cache, Logical},
    endpoint::{Answer, Call, Endpoint},
    node::Snapshot,
    page::{Page, Wish, page_answer},
    problem::Problem,
    schemas::{digest, number, object, text},
};
use crate::{
    codec::layout::DeltaGroup,
    store::{
        StoreError,
        artifacts::StoredDelta,
        hashes::HashesReader,
        segment::{self, LogicalBytes, tensor::TensorSegment},
    },
    types::{
        digest::Digest,
        manifest::{ArtifactId, Descriptor},
        tensor::Dtype,
    },
};

/// What is open at once of each kind: some 2 MB each at full scale.
const OPEN_MAX: usize = 16;

/// `/v1/manifests` and `/v1/artifacts`.
pub fn endpoints() -> Vec<Endpoint> {
    let descriptor = object(&[
        ("type", text()),
        ("group", text()),
        ("name", text()),
        ("dtype", text()),
        ("shape", json!({"type": "array", "items": number()})),
        ("bytes", number()),
        ("root", digest()),
    ]);
    vec![
        Endpoint::get(
            "/v1/manifests/{root}",
            "The descriptors of a state, or of a delta of a sealed round, in manifest order.",
            manifest,
        )
        .path("root", digest())
        .pages("Descriptors; the cursor is a descriptor's position.", descriptor),
        Endpoint::get(
            "/v1/artifacts/{root}",
            "Logical bytes by their root: of a tensor or a plan; with `manifest`, of an artifact of \
             that state or delta.",
            artifact,
        )
        .path("root", digest())
        .query("bytes", number())
        .query("manifest", digest())
        .blob("The bytes.", "application/octet-stream")
        .problem(StatusCode::CONFLICT, "There are bytes of this root, but not as many."),
    ]
}

/// Things that took a while to open, the one used last in front.
pub struct Opened<T>(VecDeque<(Digest, Arc<T>)>);

impl<T> Default for Opened<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Opened<T> {
    fn get(&mut self, root: Digest) -> Option<Arc<T>> {
        let at = self.0.iter().position(|(r, _)| *r == root)?;
        let found = self.0.remove(at)?;
        self.0.push_front(found);
        self.0.front().map(|(_, thing)| thing.clone())
    }

    fn put(&mut self, root: Digest, thing: &Arc<T>) {
        self.0.push_front((root, thing.clone()));
        self.0.truncate(OPEN_MAX);
    }
}

fn no_manifest() -> Problem {
    Problem::not_found("no state and no delta of a sealed round has this manifest")
}

/// The hashes of a public manifest. It may block.
fn hashes(node: &Node, snapshot: &Snapshot, root: Digest) -> Result<Arc<HashesReader>, Problem> {
    if let Some(found) = node.hashes().get(root) {
        return Ok(found);
    }
    let id = snapshot.published.manifest(root).ok_or_else(no_manifest)?;
    let place = snapshot.ledger.place();
    let hashes = HashesReader::open(&*place.files, &place.root, &id).map_err(StoreError::from)?;
    let hashes = Arc::new(hashes);
    node.hashes().put(root, &hashes);
    Ok(hashes)
}

/// A public delta. It may block.
fn delta(node: &Node, snapshot: &Snapshot, root: Digest) -> Result<Arc<StoredDelta>, Problem> {
    if let Some(found) = node.deltas().get(root) {
        return Ok(found);
    }
    let id = snapshot.published.delta(root).ok_or_else(no_manifest)?;
    let delta = Arc::new(StoredDelta::open(snapshot.ledger.place(), id)?);
    node.deltas().put(root, &delta);
    Ok(delta)
}

async fn manifest(call: Call) -> Answer {
    let (wish, root, snapshot) = (Wish::of(&call)?, call.digest("root")?, call.node.fresh().await);
    let node = call.node.clone();
    let page = move || {
        let hashes = hashes(&node, &snapshot, root)?;
        let descriptors = (0..).zip(hashes.manifest().descriptors().iter().cloned());
        let start = usize::try_from(wish.start()).unwrap_or(usize::MAX);
        let page: Page<Descriptor> = wish.page(descriptors.skip(start));
        Ok(page)
    };
    page_answer(&call, &call.node.blocking(page).await?, wish.limit)
}

async fn artifact(call: Call) -> Answer {
    let root = call.digest("root")?;
    let bytes = call.query().number("bytes", super::page::CURSOR_MAX)?;
    let manifest = call.query().parsed::<Digest>("manifest", "64 lower-case hex digits")?;
    let (snapshot, node) = (call.node.fresh().await, call.node.clone());
    let blob = move || {
        let source = match manifest {
            Some(manifest) => of_manifest(&node, &snapshot, manifest, root)?,
            None => stored(&node, &snapshot, root)?,
        };
        match bytes {
            Some(asked) if asked != source.len() => {
                let detail = format!("there are {} bytes of this root, not {asked}", source.len());
                Err(Problem::new(StatusCode::CONFLICT, "other-length", detail))
            }
            _ => {
                let (source, octets) = (Arc::new(Logical(source)), "application/octet-stream");
                Ok(Blob::source(source, root.to_hex(), octets, Cache::Immutable))
            }
        }
    };
    let blob = call.node.blocking(blob).await?;
    Ok(blob.answer(&call.headers, call.node.blocks()))
}

fn no_artifact() -> Problem {
    Problem::not_found(
        "nothing public has this root; an artifact of a delta is found with its delta's ?manifest=",
    )
}

/// An artifact of a state or a delta.
fn of_manifest(
    node: &Node,
    snapshot: &Snapshot,
    manifest: Digest,
    root: Digest,
) -> Result<Arc<dyn LogicalBytes>, Problem> {
    let hashes = hashes(node, snapshot, manifest)?;
    let found = hashes.manifest().descriptors().iter().find(|d| d.root == root);
    let descriptor = found.ok_or_else(no_artifact)?;
    if let Some(group) = DeltaGroup::named(&descriptor.group) {
        let delta = delta(node, snapshot, manifest)?;
        let source = delta.source(group, &descriptor.name).map_err(StoreError::from)?;
        return Ok(source);
    }
    tensor(snapshot, &descriptor.artifact(), descriptor.dtype)
}

fn tensor(
    snapshot: &Snapshot,
    artifact: &ArtifactId,
    dtype: Dtype,
) -> Result<Arc<dyn LogicalBytes>, Problem> {
    let place = snapshot.ledger.place();
    let segment = TensorSegment::open(&*place.files, &place.root, artifact, dtype);
    Ok(Arc::new(segment.map_err(StoreError::from)?))
}

/// A tensor of a state that is kept, or a plan: what has a file by its root.
fn stored(
    node: &Node,
    snapshot: &Snapshot,
    root: Digest,
) -> Result<Arc<dyn LogicalBytes>, Problem> {
    let ledger = &snapshot.ledger;
    let place = ledger.place();
    if let Some((artifact, dtype)) = tensor_file(snapshot, root)?
        && node.tensors().has(ledger, root)?
    {
        return tensor(snapshot, &artifact, dtype);
    }
    let plan = ledger.sealed().iter().map(|s| s.record.plan).find(|plan| plan.root == root);
    let plan = plan.ok_or_else(no_artifact)?;
    let bins = 1 << ledger.rule().code_bits();
    let rows = segment::plan::open(&*place.files, &place.root, &plan, bins);
    Ok(Arc::new(rows.map_err(StoreError::from)?))
}

/// Length and dtype of the tensor with this root, by the name of its file.
fn tensor_file(snapshot: &Snapshot, root: Digest) -> Result<Option<(ArtifactId, Dtype)>, Problem> {
    let place = snapshot.ledger.place();
    // Any name of the shelf tells the shelf.
    let any = segment::place::tensor(&place.root, &ArtifactId { root, bytes: 0 }, Dtype::F32);
    let shelf = any.parent().expect("a tensor lies on a shelf");
    let names = match place.files.list(shelf) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        names => names?,
    };
    let named = |name: &std::path::PathBuf| {
        let rest = name.to_str()?.strip_prefix(&format!("{root}-"))?.strip_suffix(".parquet")?;
        let (bytes, dtype) = rest.split_once('.')?;
        let bytes = bytes.parse().ok()?;
        Some((ArtifactId { root, bytes }, Dtype::named(&dtype.to_uppercase())?))
    };
    Ok(names.iter().find_map(named))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_stays_open() {
        let mut opened = Opened::default();
        for n in 0..=OPEN_MAX as u8 {
            opened.put(Digest([n; 32]), &Arc::new(n));
            assert_eq!(opened.get(Digest([1.min(n); 32])), Some(Arc::new(1.min(n))));
        }
        assert_eq!(opened.get(Digest([0; 32])), None);
        assert_eq!(opened.0.len(), OPEN_MAX);
    }
}
