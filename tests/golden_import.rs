//! Does every foreign file of the golden sets read as what it was made from?
//!
//! The folder is `GRADLEDGER_GOLDEN`, or the copies beside this file. Every case found there is taken.

#![allow(clippy::unwrap_used)] // Clippy's own exception for tests leaves out their helpers.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use gradledger::import::{
    checkpoint::Checkpoint,
    dcp::DcpCheckpoint,
    source::FileSource,
    templar::{AggregatorFile, ForeignDelta, GradientFile},
    torch::{TensorRef, TorchArchive},
    zip::Verified,
};
use serde_json::Value;

fn golden(part: &str) -> PathBuf {
    let folder = std::env::var_os("GRADLEDGER_GOLDEN").map(PathBuf::from);
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    folder.unwrap_or_else(own).join(part)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Every file below `folder` that `wanted` says yes to.
fn find(folder: &Path, wanted: &dyn Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in files(folder) {
        if path.is_dir() {
            found.extend(find(&path, wanted));
        } else if wanted(&path.file_name().unwrap().to_string_lossy()) {
            found.push(path);
        }
    }
    found
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// What the safetensors crate says is in a file: per name dtype, shape and bytes.
fn oracle(path: &Path) -> BTreeMap<String, (String, Vec<u64>, Vec<u8>)> {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        let shape = view.shape().iter().map(|&n| n as u64).collect();
        (name.to_owned(), (view.dtype().to_string(), shape, view.data().to_vec()))
    };
    file.iter().map(tensor).collect()
}

/// The cases of the Templar set: folder and `case.json`.
fn cases() -> Vec<(PathBuf, Value)> {
    let is_case = |folder: &PathBuf| folder.join("case.json").exists();
    let folders = files(&golden("templar")).into_iter().filter(is_case);
    folders.map(|folder| (folder.clone(), json(&folder.join("case.json")))).collect()
}

/// The rounds of a case: window, folder, and what `case.json` says.
fn rounds(folder: &Path, case: &Value) -> Vec<(i64, PathBuf, Value)> {
    let round = |round: &Value| {
        let window = round["window"].as_i64().unwrap();
        (window, folder.join(format!("w{window}")), round.clone())
    };
    case["rounds"].as_array().unwrap().iter().map(round).collect()
}

/// The files of a round called `KIND-WINDOW-..`.
fn files_called(folder: &Path, start: &str) -> Vec<PathBuf> {
    let called = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with(start) && name.ends_with(".pt")
    };
    files(folder).into_iter().filter(called).collect()
}

fn bytes(archive: &TorchArchive, tensor: &TensorRef, verified: &mut Verified) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut stream = archive.open_stream(tensor);
    while let Some(chunk) = stream.next_chunk().unwrap() {
        bytes.extend_from_slice(chunk);
    }
    stream.mark(verified);
    assert_eq!(bytes.len() as u64, tensor.bytes());
    // The same by range, in pieces that do not align with anything.
    let mut again = vec![0; bytes.len()];
    for (i, piece) in again.chunks_mut(7).enumerate() {
        archive.read_at(tensor, i as u64 * 7, piece).unwrap();
    }
    assert!(again == bytes);
    bytes
}

/// One tensor's part of a delta, read out.
#[derive(PartialEq, Debug)]
struct Content {
    idxs: Vec<u8>,
    vals: Vec<u8>,
    vals_shape: Vec<u64>,
    shift: Vec<u8>,
    scale: Option<u64>,
    offset: Option<i64>,
    lookup: Vec<u8>,
}

type Contents = BTreeMap<String, Content>;

fn contents(archive: &TorchArchive, delta: &ForeignDelta, verified: &mut Verified) -> Contents {
    assert!(delta.fault.is_none());
    let read = |(name, parts): (&Arc<str>, &_)| {
        let parts: &gradledger::import::templar::Parts = parts;
        let quant = parts.quant_params.as_ref().unwrap();
        let mut read =
            |tensor: &Option<TensorRef>| bytes(archive, tensor.as_ref().unwrap(), &mut *verified);
        let content = Content {
            idxs: read(&parts.idxs),
            vals: read(&parts.vals),
            vals_shape: parts.vals.as_ref().unwrap().shape().to_vec(),
            shift: read(&quant.shift),
            scale: quant.scale.map(f64::to_bits),
            offset: quant.offset,
            lookup: read(&quant.lookup),
        };
        assert_eq!(parts.idxs.as_ref().unwrap().dtype().name(), "U8");
        assert_eq!(quant.lookup.as_ref().unwrap().dtype().name(), "F32");
        assert_eq!(quant.dtype.unwrap().name(), "F32");
        (name.to_string(), content)
    };
    delta.parts.iter().map(read).collect()
}

fn open_gradient(path: &Path) -> (GradientFile, Contents) {
    let file = GradientFile::open(Arc::new(FileSource::open(path).unwrap())).unwrap();
    let mut verified = file.archive().verified();
    let contents = contents(file.archive(), file.delta(), &mut verified);
    file.archive().verify_crcs(&mut verified).unwrap();
    assert_eq!(verified, {
        let mut all = Verified::none(file.archive().zip().entries().len());
        (0..file.archive().zip().entries().len()).for_each(|entry| all.insert(entry));
        all
    });
    (file, contents)
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn unpack(packed: &[u8]) -> Vec<u8> {
    let pair = |b: &[u8]| {
        let low = u16::from(b[0]) | u16::from(b[1] & 15) << 8;
        let high = u16::from(b[1] >> 4) | u16::from(b[2]) << 4;
        [low.to_le_bytes(), high.to_le_bytes()].concat()
    };
    packed.chunks_exact(3).flat_map(pair).collect()
}

fn uid_of(path: &Path) -> u16 {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    name.split('-').nth(2).unwrap().parse().unwrap()
}

#[test]
fn golden_gradient_files_hold_the_unpacked_values_bit_for_bit() {
    let (mut files, mut tensors) = (0, 0);
    for (folder, case) in cases() {
        for (window, folder, _) in rounds(&folder, &case) {
            let unpacked = oracle(&folder.join("unpacked.safetensors"));
            for path in files_called(&folder, &format!("gradient-{window}-")) {
                let (file, contents) = open_gradient(&path);
                files += 1;
                assert_eq!(file.delta().window, Some(window));
                assert!(file.delta().global_step.is_some());
                assert!(file.delta().other_keys.is_empty());
                let names = case["params"].as_array().unwrap().iter();
                let names: Vec<&str> = names.map(|p| p["name"].as_str().unwrap()).collect();
                let mut sorted = names.clone();
                sorted.sort_unstable();
                assert!(contents.keys().map(String::as_str).eq(sorted), "{}", path.display());
                let uid = uid_of(&path);
                for (name, content) in &contents {
                    // Reserves that were not needed are not among the unpacked.
                    let Some(idx) = unpacked.get(&format!("{uid}/{name}/idx")) else { continue };
                    assert_eq!(content.vals_shape, idx.1);
                    assert!(unpack(&content.idxs) == idx.2, "{name}");
                    assert!(content.vals == unpacked[&format!("{uid}/{name}/codes")].2, "{name}");
                    let (lookup, shift) = (f32s(&content.lookup), f32s(&content.shift)[0]);
                    let value = |&code: &u8| (lookup[usize::from(code)] + shift).to_le_bytes();
                    let values: Vec<u8> = content.vals.iter().flat_map(value).collect();
                    // NaNs are compared as NaNs by their bits here: none of these files holds one.
                    assert!(values == unpacked[&format!("{uid}/{name}/vals")].2, "{name}");
                    tensors += 1;
                }
            }
        }
    }
    assert!(files > 0 && tensors > 0, "no gradient file in {}", golden("templar").display());
    println!("{files} files, {tensors} tensors compared");
}

#[test]
fn golden_aggregators_hold_the_gradients_in_gather_order() {
    let mut compared = 0;
    for (folder, case) in cases() {
        for (window, folder, round) in rounds(&folder, &case) {
            for path in files_called(&folder, &format!("aggregator-{window}-")) {
                let file =
                    AggregatorFile::open(Arc::new(FileSource::open(&path).unwrap())).unwrap();
                let uids =
                    |key: &str| -> Vec<u16> { serde_json::from_value(round[key].clone()).unwrap() };
                let order: Vec<u16> = file.deltas().iter().map(|(uid, _)| *uid).collect();
                assert_eq!(order, uids("gather_uids_in_order"));
                assert_eq!(file.skipped(), uids("skipped_uids"));
                assert_eq!(file.success_rate(), round["success_rate"].as_f64());
                assert!(file.unaligned().is_empty());
                let mut verified = file.archive().verified();
                for (uid, delta) in file.deltas() {
                    let own = format!("gradient-{window}-{uid}-");
                    let (_, expected) = open_gradient(&files_called(&folder, &own)[0]);
                    let found = contents(file.archive(), delta, &mut verified);
                    assert!(found == expected, "uid {uid} of {}", path.display());
                    compared += 1;
                }
                file.archive().verify_crcs(&mut verified).unwrap();
            }
        }
    }
    assert!(compared > 0, "no aggregator in {}", golden("templar").display());
}

/// Checkpoints with the safetensors file that each has to equal.
fn dcp_checkpoints() -> Vec<(PathBuf, PathBuf)> {
    let mut pairs = Vec::new();
    for (case, _) in cases() {
        for path in find(&case.join("checkpoint"), &|name| name == ".metadata") {
            let folder = path.parent().unwrap().to_owned();
            let window = folder.file_name().unwrap().to_string_lossy().into_owned();
            pairs.push((folder, case.join(format!("w{window}/params-after.safetensors"))));
        }
    }
    for set in files(&golden("siblings/dcp")) {
        for path in find(&set, &|name| name == ".metadata") {
            pairs.push((path.parent().unwrap().to_owned(), set.join("model.safetensors")));
        }
    }
    pairs
}

/// Reads a whole tensor in pieces of `step` bytes.
fn read_in_steps(checkpoint: &Checkpoint, index: usize, step: usize) -> Vec<u8> {
    let mut bytes = vec![0; checkpoint.tensors()[index].bytes() as usize];
    for (i, piece) in bytes.chunks_mut(step).enumerate() {
        checkpoint.read(index, (i * step) as u64, piece).unwrap();
    }
    bytes
}

fn assert_equals_oracle(path: &Path, expected: &Path) {
    let checkpoint = Checkpoint::open(path, None).unwrap();
    let oracle = oracle(expected);
    let names = checkpoint.tensors().iter().map(|spec| spec.name());
    assert!(names.eq(oracle.keys()), "{}", path.display());
    for (index, spec) in checkpoint.tensors().iter().enumerate() {
        let (dtype, shape, bytes) = &oracle[spec.name()];
        assert_eq!((spec.dtype().name(), spec.shape()), (dtype.as_str(), shape.as_slice()));
        for step in [1 << 20, 100, 13] {
            assert!(read_in_steps(&checkpoint, index, step) == *bytes, "{}", spec.name());
        }
        checkpoint.verify(index).unwrap();
        let mut past = [0];
        assert!(checkpoint.read(index, spec.bytes(), &mut past).is_err());
    }
}

#[test]
fn golden_dcp_checkpoints_equal_their_safetensors() {
    let pairs = dcp_checkpoints();
    assert!(!pairs.is_empty(), "no checkpoint in {}", golden("").display());
    for (folder, expected) in pairs {
        assert_equals_oracle(&folder, &expected);
    }
}

#[test]
fn golden_safetensors_read_as_the_safetensors_crate_reads_them() {
    let mut found = find(&golden("templar"), &|name| name.ends_with(".safetensors"));
    found.extend(find(&golden("siblings/dcp"), &|name| name.ends_with(".safetensors")));
    assert!(!found.is_empty());
    for path in found {
        assert_equals_oracle(&path, &path);
    }
}

#[test]
fn golden_dcp_layouts_are_what_torch_wrote() {
    for set in files(&golden("siblings/dcp")) {
        let Ok(text) = fs::read(set.join("expected_layout.json")) else { continue };
        let expected: Value = serde_json::from_slice(&text).unwrap();
        for path in find(&set, &|name| name == ".metadata") {
            let dcp = DcpCheckpoint::open(path.parent().unwrap(), Some("")).unwrap();
            let mut chunks = 0;
            for tensor in dcp.tensors() {
                let name = tensor.spec().name();
                let entry = &expected["state_dict_metadata"][name];
                assert_eq!(entry["shape"], serde_json::json!(tensor.spec().shape()));
                let cut = |chunk: &gradledger::import::dcp::Chunk| serde_json::json!({"offsets": chunk.offsets(), "sizes": chunk.sizes()});
                let found: Vec<Value> = tensor.chunks().iter().map(cut).collect();
                assert_eq!(entry["chunks"], Value::Array(found));
                for chunk in tensor.chunks() {
                    let is = |stored: &&Value| {
                        stored["fqn"] == name
                            && stored["offset_in_tensor"] == serde_json::json!(chunk.offsets())
                    };
                    let stored = expected["storage_data"].as_array().unwrap().iter().find(is);
                    let stored = stored.unwrap();
                    assert_eq!(stored["file"], *chunk.stored().file);
                    assert_eq!(stored["byte_offset"], chunk.stored().start);
                    assert_eq!(stored["byte_length"], chunk.stored().bytes);
                    chunks += 1;
                }
            }
            // The rest is what is no tensor, and it is listed.
            let all = expected["storage_data"].as_array().unwrap();
            assert_eq!(chunks + dcp.left_out().len(), all.len());
            for (name, entry) in expected["state_dict_metadata"].as_object().unwrap() {
                assert_eq!(entry["kind"] == "bytes", dcp.left_out().contains(name), "{name}");
            }
        }
    }
}
