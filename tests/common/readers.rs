//! Every reader of bytes from outside, as a function of bytes: what the fuzz targets and
//! `tests/hostile.rs` run.
//!
//! Each reads all that it is given, as the program would, and says what it refused. What has several
//! files takes them from one run of bytes, see [`parts`].

use std::{fs, io, path::Path, sync::Arc};

use gradledger::{
    audit::{trust::Trust, verify::verify},
    codec::{
        sr25519::SIGNATURE_BYTES,
        ss58,
        statement::{STATEMENT_BYTES, Statement},
    },
    http::path,
    import::{
        checkpoint::Checkpoint,
        dcp,
        pickle::{Limits, Pickle},
        safetensors::{self, Safetensors},
        source::Source,
        templar::{AggregatorFile, ForeignDelta, GradientFile, PeersFile},
        torch::{TensorRef, TorchArchive},
        wallet::Hotkey,
        zip::Archive,
    },
    ledger::submit::Receipt,
    merkle::{
        head::TreeHead,
        note::{SignedNote, VerifierKey},
        policy::{Policy, open_head},
        proof::LogProof,
        tile::{BundleId, TileId, decode_bundle, decode_tile, encode_bundle, encode_tile},
    },
    store::{
        anchors,
        config::Config,
        hashes::HashesReader,
        keys::{self, heads::HeadGuard},
        log::LogReader,
        open_round::OpenRound,
        place::Place,
        retention::Retention,
        segment::{
            LogicalBytes,
            delta::DeltaSegments,
            dispositions, place, plan,
            query::{self, ColumnSchema, Kind, TableSchema},
            tensor::TensorSegment,
        },
    },
    types::{
        digest::Digest,
        json,
        manifest::{ArtifactId, Manifest, ManifestId},
        record::{Disposition, DispositionsId, RoundsEntry},
        submission::{Miner, Submission},
        tensor::Dtype,
        upload::{UploadRequest, UploadState},
    },
};
use gradledger_anchor::{
    commitment::{Commitment, storage_key},
    extrinsic,
    grandpa::{self, Authority, AuthoritySet},
    hash::Hash32,
    header::Header,
    receipt::Expected,
    trie::Proof,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{archives::torch_zip, memory::Memory};

/// What a reader makes of bytes: nothing, or why they are refused.
pub type Outcome = Result<(), String>;

/// A reader's name and itself.
pub type Reader = (&'static str, fn(&[u8]) -> Outcome);

/// All of them; each has a fuzz target of its name.
pub const READERS: [Reader; 33] = [
    ("aggregator", aggregator),
    ("anchor", anchor),
    ("bundle", bundle),
    ("config", config),
    ("dcp", dcp),
    ("delta", delta),
    ("dispositions", dispositions),
    ("gradient", gradient),
    ("hashes", hashes),
    ("head", head),
    ("heads_record", heads_record),
    ("json", canonical_json),
    ("keyfile", keyfile),
    ("log", log),
    ("log_key", log_key),
    ("log_proof", log_proof),
    ("note", note),
    ("open_round", open_round),
    ("peers", peers),
    ("pickle", pickle),
    ("plan", plan),
    ("policy", policy),
    ("receipt", receipt),
    ("record", record),
    ("request", request),
    ("retention", retention),
    ("safetensors", safetensors),
    ("shards", shards),
    ("statement", statement),
    ("table", table),
    ("tensor", tensor),
    ("tile", tile),
    ("upload", upload),
];

/// A key that nobody has.
const NOBODY: Hash32 = Hash32([0; 32]);

/// Most bytes of a tensor that are read at once.
const CHUNK_BYTES: u64 = 1 << 20;

/// Lengths of the storages beside a pickle that is read alone: those of [`super::seeds`]' gradient file.
pub const STORAGE_BYTES: [usize; 8] = [36, 24, 4, 16, 12, 8, 4, 16];

fn text(error: impl ToString) -> String {
    error.to_string()
}

fn source(bytes: &[u8]) -> Arc<dyn Source> {
    Arc::new(bytes.to_vec())
}

/// Cuts bytes into `N` files: before each but the last stands its length in four bytes, which is
/// taken as far as there are so many.
pub fn parts<const N: usize>(mut bytes: &[u8]) -> [&[u8]; N] {
    let mut found = [&bytes[..0]; N];
    for part in &mut found[..N - 1] {
        let (length, rest) = bytes.split_first_chunk().unwrap_or((&[0; 4], &[]));
        let length = (u32::from_le_bytes(*length) as usize).min(rest.len());
        (*part, bytes) = rest.split_at(length);
    }
    found[N - 1] = bytes;
    found
}

/// The bytes that [`parts`] cuts into these.
pub fn joined(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        if at + 1 < parts.len() {
            bytes.extend((part.len() as u32).to_le_bytes());
        }
        bytes.extend_from_slice(part);
    }
    bytes
}

// Foreign files.

/// The pickle of a distributed checkpoint; then that of a gradient file or of an aggregator's, in an
/// archive whose checksums are right: those would hide it from the readers below.
fn pickle(bytes: &[u8]) -> Outcome {
    let of_metadata = Pickle::read(bytes.to_vec(), dcp::GLOBALS, Limits::METADATA);
    let storages = STORAGE_BYTES.map(|len| vec![0; len]);
    let keys: Vec<String> = (0..storages.len()).map(|key| key.to_string()).collect();
    let storages = keys.iter().map(String::as_str).zip(storages.iter().map(Vec::as_slice));
    let archive = torch_zip(bytes, &storages.collect::<Vec<_>>());
    let _ = aggregator(&archive);
    gradient(&archive).or_else(|error| of_metadata.map(drop).map_err(|_| error))
}

fn read_tensor(archive: &TorchArchive, tensor: &TensorRef) -> Outcome {
    let mut stream = archive.open_stream(tensor);
    let mut bytes = 0;
    while let Some(chunk) = stream.next_chunk().map_err(text)? {
        bytes += chunk.len() as u64;
    }
    assert_eq!(bytes, tensor.bytes(), "a stream gives all of a tensor");
    Ok(())
}

fn read_delta(archive: &TorchArchive, delta: &ForeignDelta) -> Outcome {
    if let Some(fault) = &delta.fault {
        return Err(fault.refusal().map_or_else(|| "unread".to_owned(), text));
    }
    for parts in delta.parts.values() {
        let quantised = parts.quant_params.as_ref();
        let quantised = quantised.map(|q| [q.shift.as_ref(), q.lookup.as_ref()]);
        let of_part = [parts.idxs.as_ref(), parts.vals.as_ref()].into_iter();
        for tensor in of_part.chain(quantised.into_iter().flatten()).flatten() {
            read_tensor(archive, tensor)?;
        }
    }
    Ok(())
}

/// Also as a plain zip, which has other rules than an archive of `torch.save`.
fn gradient(bytes: &[u8]) -> Outcome {
    if let Ok(archive) = Archive::open(source(bytes)) {
        let total: u64 = archive.entries().iter().map(|entry| entry.bytes()).sum();
        assert!(total <= bytes.len() as u64, "entries share no byte");
    }
    let file = GradientFile::open(source(bytes)).map_err(text)?;
    read_delta(file.archive(), file.delta())?;
    file.archive().verify_crcs(&mut file.archive().verified()).map_err(text)
}

fn aggregator(bytes: &[u8]) -> Outcome {
    let file = AggregatorFile::open(source(bytes)).map_err(text)?;
    file.deltas().iter().try_for_each(|(_, delta)| read_delta(file.archive(), delta))
}

fn peers(bytes: &[u8]) -> Outcome {
    PeersFile::read(bytes).map(drop).map_err(text)
}

fn read_checkpoint(checkpoint: &Checkpoint) -> Outcome {
    for (index, spec) in checkpoint.tensors().iter().enumerate() {
        let mut buffer = vec![0; spec.bytes().min(CHUNK_BYTES) as usize];
        checkpoint.read(index, 0, &mut buffer).map_err(text)?;
        let last = spec.bytes() - buffer.len() as u64;
        checkpoint.read(index, last, &mut buffer).map_err(text)?;
        checkpoint.verify(index).map_err(text)?;
    }
    Ok(())
}

/// A folder of these files, read as a checkpoint.
fn folder(files: &[(&str, &[u8])]) -> Outcome {
    let folder = tempfile::tempdir().map_err(text)?;
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).map_err(text)?;
    }
    read_checkpoint(&Checkpoint::open(folder.path(), None).map_err(text)?)
}

/// `.metadata` and two files of chunks.
fn dcp(bytes: &[u8]) -> Outcome {
    let [metadata, first, second] = parts(bytes);
    folder(&[(".metadata", metadata), ("__0_0.distcp", first), ("__1_0.distcp", second)])
}

/// An index and two shards.
fn shards(bytes: &[u8]) -> Outcome {
    let [index, a, b] = parts(bytes);
    let index = ("model.safetensors.index.json", index);
    folder(&[index, ("a.safetensors", a), ("b.safetensors", b)])
}

fn safetensors(bytes: &[u8]) -> Outcome {
    let metadata = safetensors::metadata(&bytes.to_vec());
    let file = Safetensors::of_source(source(bytes)).map_err(text)?;
    let total: u64 = (0..file.len()).map(|tensor| file.spec(tensor).bytes()).sum();
    assert!(total < bytes.len() as u64, "tensors share no byte");
    for tensor in 0..file.len() {
        let mut buffer = vec![0; file.spec(tensor).bytes() as usize];
        file.read(tensor, 0, &mut buffer).map_err(text)?;
    }
    metadata.map(drop).map_err(text)
}

/// No password is given: the slow derivation from one is not what is tried here.
fn keyfile(bytes: &[u8]) -> Outcome {
    let _ = std::str::from_utf8(bytes).map(ss58::decode);
    let key = Hotkey::from_bytes(bytes, &mut || Err(io::ErrorKind::NotFound.into()));
    key.map(drop).map_err(text)
}

// What a ledger stores.

/// A ledger in which this file alone stands.
fn stored(path: impl FnOnce(&Place) -> std::path::PathBuf, bytes: &[u8]) -> (Memory, Place) {
    let memory = Memory::default();
    let place = Place::new(Arc::new(memory.clone()), Path::new("ledger"));
    memory.put(&path(&place), bytes.to_vec());
    (memory, place)
}

fn read_column(column: &dyn LogicalBytes, file_bytes: usize) -> Outcome {
    assert!(column.len() <= file_bytes as u64, "pages share no byte");
    let mut bytes = vec![0; column.len() as usize];
    column.read_at(0, &mut bytes).map_err(text)
}

/// The segment of the vectors: six values of f32.
fn tensor(bytes: &[u8]) -> Outcome {
    let (memory, place) = stored(|place| place.root.join("t"), bytes);
    let segment = TensorSegment::open_at(&memory, &place.root.join("t"), 24, Dtype::F32);
    read_column(&segment.map_err(text)?, bytes.len())
}

/// Books, and two files of rows.
fn delta(bytes: &[u8]) -> Outcome {
    let (memory, dir) = (Memory::default(), Path::new("delta"));
    let [books, two, four] = parts(bytes);
    for (name, part) in [("books", books), ("k2-2bit", two), ("k4-2bit", four)] {
        memory.put(&dir.join(format!("{name}.parquet")), part.to_vec());
    }
    let segments = DeltaSegments::open(&memory, dir).map_err(text)?;
    for name in segments.tensors() {
        segments.layout(name).map_err(text)?;
        for column in [segments.index(name), segments.code(name), segments.book(name)] {
            read_column(&*column.map_err(text)?, bytes.len())?;
        }
    }
    Ok(())
}

/// The segment of the vectors: one tensor, two miners, four bins.
fn plan(bytes: &[u8]) -> Outcome {
    let artifact = ArtifactId { root: Digest::default(), bytes: 96 };
    let (memory, place) = stored(|place| place::plan(&place.root, &artifact), bytes);
    let read = plan::read(&memory, &place.root, &artifact, 1, 2, 4).map_err(text)?;
    let miners = [Miner::Uid(7), Miner::Hotkey(Digest([0x44; 32]))];
    plan::check_columns(&memory, &place.root, &artifact, &read, &["wq"], &miners).map_err(text)
}

/// The segment of the vectors: three entries.
fn dispositions(bytes: &[u8]) -> Outcome {
    let id = DispositionsId { root: Digest::default(), count: 3 };
    let (memory, place) = stored(|place| place::dispositions(&place.root, &id), bytes);
    let entries = dispositions::read_entries(&memory, &place.root, &id).map_err(text)?;
    let read = |entry: &bytes::Bytes| json::from_slice::<Disposition>(entry).map_err(text);
    let rows = entries.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    dispositions::check_columns(&memory, &place.root, &id, &rows).map_err(text)
}

/// The table that [`table`] reads.
pub const TABLE: TableSchema = TableSchema {
    name: "rounds",
    columns: &[
        ColumnSchema { name: "round", kind: Kind::Int, nullable: false },
        ColumnSchema { name: "miner", kind: Kind::Text, nullable: true },
        ColumnSchema { name: "share", kind: Kind::Float64, nullable: true },
        ColumnSchema { name: "counts", kind: Kind::Ints, nullable: false },
    ],
};

/// A table to query is read only to be merged with others.
fn table(bytes: &[u8]) -> Outcome {
    let (memory, place) = stored(|place| place.tables(), bytes);
    query::merge(&memory, &place.tmp(), &TABLE, &[place.tables()]).map_err(text)
}

/// The descriptors' id stands before the file, as the log names it.
fn hashes(bytes: &[u8]) -> Outcome {
    let [id, file] = parts(bytes);
    let id: ManifestId = json::from_slice(id).map_err(text)?;
    let (memory, place) = stored(|place| place::hashes(&place.root, id.root), file);
    let reader = HashesReader::open(&memory, &place.root, &id).map_err(text)?;
    (0..reader.manifest().descriptors().len())
        .try_for_each(|index| reader.digests(index).map(drop).map_err(text))
}

/// A log of up to 256 entries: its note, its committed state, tile and bundle.
fn log(bytes: &[u8]) -> Outcome {
    let [note, state, tile, bundle] = parts(bytes);
    let (memory, place) = stored(|place| place.root.join("checkpoint"), note);
    memory.put(&place.root.join("tree-state"), state.to_vec());
    let width = match tile.len() / Digest::BYTES {
        256.. => String::new(),
        partial => format!(".p/{partial}"),
    };
    if !tile.is_empty() {
        memory.put(&place.root.join(format!("tile/0/000{width}")), tile.to_vec());
        memory.put(&place.root.join(format!("tile/entries/000{width}")), bundle.to_vec());
    }
    let log = LogReader::open(Arc::new(memory), &place.root).map_err(text)?;
    let last = log.size().saturating_sub(1);
    let _ = (log.leaf_hash(last), log.root_at(last), log.inclusion_proof(0, log.size()));
    for entry in log.entries(0..log.size().min(1024)).map_err(text)? {
        entry.map_err(text)?;
    }
    log.verify(&mut |_, _| {}).map_err(text)
}

fn config(bytes: &[u8]) -> Outcome {
    Config::load(&stored(Place::config, bytes).1).map(drop).map_err(text)
}

fn open_round(bytes: &[u8]) -> Outcome {
    OpenRound::load(&stored(Place::open_round, bytes).1).map(drop).map_err(text)
}

fn retention(bytes: &[u8]) -> Outcome {
    Retention::load(&stored(Place::retention, bytes).1).map(drop).map_err(text)
}

fn log_key(bytes: &[u8]) -> Outcome {
    let (memory, place) = stored(|place| place.log_key(0), bytes);
    keys::load(&memory, &place.log_key(0)).map(drop).map_err(text)
}

fn heads_record(bytes: &[u8]) -> Outcome {
    let heads = |place: &Place| place.log_key(0).with_extension("key.heads");
    let (memory, place) = stored(heads, bytes);
    HeadGuard::open(Arc::new(memory), &place.log_key(0)).map(drop).map_err(text)
}

// Logs, and what proves something about them.

/// What is signed or hashed has one spelling: what was read is written as it was.
fn spelled<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Outcome {
    let value: T = json::from_slice(bytes).map_err(text)?;
    assert_eq!(json::to_vec(&value), bytes, "a record has one spelling");
    Ok(())
}

fn record(bytes: &[u8]) -> Outcome {
    let lines = || bytes.split(|byte| *byte == b'\n');
    let _ = Manifest::from_entries(lines());
    let of_log = spelled::<RoundsEntry>(bytes).or_else(|_| spelled::<Submission>(bytes));
    of_log.or_else(|_| spelled::<Disposition>(bytes))
}

fn canonical_json(bytes: &[u8]) -> Outcome {
    let canonical = json::canonicalise(bytes).map_err(text)?;
    let again = json::canonicalise(&canonical).map_err(text)?;
    assert_eq!(again, canonical, "a canonical form is its own");
    Ok(())
}

/// A statement and a signature.
fn statement(bytes: &[u8]) -> Outcome {
    let (statement, signature) = bytes.split_at(bytes.len().min(STATEMENT_BYTES));
    let read = Statement::from_bytes(statement).map_err(text)?;
    assert_eq!(read.to_bytes(), statement, "a statement has one spelling");
    let signature: &[u8; SIGNATURE_BYTES] = signature.try_into().map_err(text)?;
    read.verify(signature).map_err(text)
}

/// A line with a verifier key, then what it should have signed.
fn key_and_rest(bytes: &[u8]) -> Result<(VerifierKey, &[u8]), String> {
    let [key, rest] = parts(bytes);
    let key = std::str::from_utf8(key).map_err(text)?;
    Ok((key.parse().map_err(|error| format!("{error}"))?, rest))
}

fn note(bytes: &[u8]) -> Outcome {
    let (key, note) = key_and_rest(bytes)?;
    SignedNote::parse(note).map_err(text)?.verify(&[key]).map(drop).map_err(text)
}

fn head(bytes: &[u8]) -> Outcome {
    let _ = std::str::from_utf8(bytes).map(TreeHead::parse);
    let (key, note) = key_and_rest(bytes)?;
    open_head(note, &[key]).map(drop).map_err(text)
}

fn log_proof(bytes: &[u8]) -> Outcome {
    let (key, proof) = key_and_rest(bytes)?;
    let proof = LogProof::parse(proof).map_err(text)?;
    proof.verify(b"golden entry 0", &[key]).map(drop).map_err(text)
}

fn receipt(bytes: &[u8]) -> Outcome {
    let (key, receipt) = key_and_rest(bytes)?;
    let receipt: Receipt = serde_json::from_slice(receipt).map_err(text)?;
    receipt.verify(&key).map(drop).map_err(text)
}

/// The path of a tile or an entry bundle, then its bytes.
fn tile(bytes: &[u8]) -> Outcome {
    let [path, body] = parts(bytes);
    let path = std::str::from_utf8(path).map_err(text)?;
    if let Ok(id) = path.parse::<BundleId>() {
        let entries = decode_bundle(id, body).map_err(text)?;
        assert_eq!(encode_bundle(entries).as_deref(), Ok(body), "a bundle has one spelling");
        return Ok(());
    }
    let id: TileId = path.parse().map_err(|error| format!("{error}"))?;
    let hashes = decode_tile(id, body).map_err(text)?;
    assert_eq!(encode_tile(&hashes), body, "a tile has one spelling");
    Ok(())
}

/// A policy and a note.
fn policy(bytes: &[u8]) -> Outcome {
    let [policy, note] = parts(bytes);
    let policy = Policy::parse(policy).map_err(text)?;
    policy.witnessed(note).map(drop).map_err(text)
}

/// A verifier key and a bundle of `prove`.
fn bundle(bytes: &[u8]) -> Outcome {
    let (key, bundle) = key_and_rest(bytes)?;
    let trust = Trust { policy: Some(Policy::of_logs(vec![key])), ..Trust::default() };
    let verified = verify(bundle, &trust);
    let found = verified.lines.into_iter().find(|line| !line.findings.is_empty());
    found.map_or(Ok(()), |line| Err(format!("{:?}", line.findings)))
}

// What comes over HTTP.

/// A request's path and its query.
fn request(bytes: &[u8]) -> Outcome {
    let line = std::str::from_utf8(bytes).map_err(text)?;
    let (path, query) = line.split_once('?').map_or((line, None), |(p, q)| (p, Some(q)));
    let parts = path::split(path).map_err(|problem| format!("{problem:?}"))?;
    assert!(parts.iter().map(String::len).sum::<usize>() <= path.len(), "decoding makes no longer");
    let query = path::Query::parse(query).map_err(|problem| format!("{problem:?}"))?;
    query.number("limit", 1000).map(drop).map_err(|problem| format!("{problem:?}"))
}

/// What a miner asks of a server, or how a server says that an upload stands.
fn upload(bytes: &[u8]) -> Outcome {
    let asked = serde_json::from_slice::<UploadRequest>(bytes).map(drop);
    asked.or_else(|_| serde_json::from_slice::<UploadState>(bytes).map(drop)).map_err(text)
}

// Anchors.

fn anchor(bytes: &[u8]) -> Outcome {
    let [receipt, justification] = parts(bytes);
    let set = AuthoritySet {
        set_id: 3,
        authorities: (1..4).map(|n| Authority { key: Hash32([n; 32]), weight: 1 }).collect(),
    };
    let _ = (grandpa::verify(justification, &set), Header::decode(justification));
    let _ = Commitment::decode(justification);
    let _ = extrinsic::check(justification, &NOBODY, 3, &[]);
    let nodes = [justification];
    let root = gradledger_anchor::hash::blake2b_256(justification);
    if let Ok(mut proof) = Proof::new(root, &nodes) {
        let _ = proof.get(&storage_key(3, &NOBODY));
    }
    let (_, place) = stored(|place| place.anchor(2), receipt);
    let receipt = anchors::load(&place, 2).map_err(text)?.ok_or("absent")?;
    let expected = match &receipt.proof {
        gradledger_anchor::receipt::Proof::Subtensor(proof) => {
            Expected { genesis: proof.genesis, netuid: proof.netuid, hotkey: proof.hotkey }
        }
        _ => Expected { genesis: NOBODY, netuid: 3, hotkey: NOBODY },
    };
    let _ = receipt.verify(&expected, Some(&set));
    receipt.verify(&expected, None).map(drop).map_err(text)
}
