//! Exports as files that need not lie anywhere: any range of one is what writing it would have put there.

#![allow(clippy::unwrap_used)]

use std::{fs, path::Path, sync::Arc};

use gradledger::{
    export::{ExportDtype, FileReader, FileSet, VirtualFile, export},
    ledger::At,
    store::{artifacts::StoredCheckpoint, files::Disk, segment::place},
    types::{progress::Silent, rule::Dialect, tensor::Dtype},
};
use proptest::prelude::*;
use safetensors::SafeTensors;

mod common;

use common::{
    Random,
    model::{Model, Run, Tensor, all_files},
};

/// Several pieces, odd lengths, every width of an element, one tensor without any.
fn model() -> Model {
    let mut model = Model::small(Dialect::Native);
    let mut random = Random(3);
    let bf16 = (0..24u16).flat_map(|v| (0x3f80 + v).to_le_bytes()).collect();
    let bytes = (0..131_077).map(|_| random.next() as u8).collect();
    model.tensors.extend([
        Tensor::random("d.long", &[3, 20_011], &mut random),
        Tensor::random("e.wide", &[192, 640], &mut random),
        Tensor::new("f.step", Dtype::I64, &[3], (0..24).collect()),
        Tensor::f32("g.conv", &[2, 3, 4], &[0.1; 24]),
        Tensor::new("h.conv", Dtype::Bf16, &[2, 3, 4], bf16),
        Tensor::new("i.bytes", Dtype::U8, &[131_077], bytes),
        Tensor::new("j.none", Dtype::F32, &[0, 4], vec![]),
        Tensor::f32("k.last", &[2], &[1.5, -0.0]),
    ]);
    model
}

fn state(run: &Run) -> StoredCheckpoint {
    let ledger = run.open();
    ledger.checkpoint(ledger.state(At::Genesis).unwrap()).unwrap()
}

/// An export on the disk, and what it was made from.
struct Exported {
    state: StoredCheckpoint,
    files: Vec<(Arc<VirtualFile>, Vec<u8>)>,
}

fn exported(run: &Run, dtype: ExportDtype, shard_bytes_max: u64) -> Exported {
    let state = state(run);
    let out = tempfile::tempdir_in(run.dir.path()).unwrap();
    let given = Arc::new(VirtualFile::small("config.json", *b"{}"));
    let set = FileSet::of(state.manifest(), dtype, shard_bytes_max).unwrap();
    let set = set.with(vec![given]).unwrap();
    export(&state, &set, &Disk, out.path(), &Silent).unwrap();
    let read = |file: &Arc<VirtualFile>| {
        let bytes = fs::read(out.path().join(file.name())).unwrap();
        assert_eq!(bytes.len() as u64, file.bytes(), "{}", file.name());
        (file.clone(), bytes)
    };
    let files: Vec<_> = set.files().iter().map(read).collect();
    assert_eq!(all_files(out.path()).len(), files.len() + 1, "and SHA256SUMS");
    Exported { state, files }
}

fn read(reader: &mut FileReader, from: usize, to: usize) -> Vec<u8> {
    let mut bytes = vec![0; to - from];
    reader.read_exact_at(from as u64, &mut bytes).unwrap();
    bytes
}

#[test]
fn any_range_of_a_file_is_what_an_export_writes() {
    let (run, _) = Run::frozen(&model(), true).unwrap();
    let mut all = Vec::new();
    for dtype in [ExportDtype::F32, ExportDtype::Bf16] {
        for shard_bytes_max in [1, 3000, 300_000, u64::MAX] {
            let Exported { state, files } = exported(&run, dtype, shard_bytes_max);
            all.extend(files.into_iter().map(|(file, bytes)| (state.clone(), file, bytes)));
        }
    }
    let ranges = prop::collection::vec((any::<f64>(), any::<f64>()), 1..8);
    proptest!(|(file in 0..all.len(), ranges in ranges)| {
        let (state, file, bytes) = &all[file];
        // One reader for all: what it holds of the last range must not show in the next.
        let mut reader = FileReader::new(state.clone(), file.clone());
        for (a, b) in ranges {
            let at = |part: f64| (part.abs().fract() * (bytes.len() + 1) as f64) as usize;
            let (from, to) = (at(a).min(at(b)), at(a).max(at(b)));
            prop_assert_eq!(&read(&mut reader, from, to)[..], &bytes[from..to]);
        }
    });
    // Every range of some lengths, over every seam between header and tensors.
    for (state, file, bytes) in all.iter().filter(|(_, _, bytes)| bytes.len() < 4000) {
        let mut reader = FileReader::new(state.clone(), file.clone());
        for len in [0, 1, 2, 3, 7] {
            for from in 0..=bytes.len().saturating_sub(len) {
                let to = bytes.len().min(from + len);
                assert_eq!(read(&mut reader, from, to), bytes[from..to], "{} {from}", file.name());
            }
        }
    }
}

#[test]
fn a_range_beyond_the_end_is_refused() {
    let run = Run::new(&Model::small(Dialect::Native));
    let Exported { state, files } = exported(&run, ExportDtype::Bf16, u64::MAX);
    for (file, bytes) in files {
        let mut reader = FileReader::new(state.clone(), file);
        for (offset, len) in [(bytes.len() as u64, 1), (0, bytes.len() + 1), (u64::MAX, 2)] {
            assert!(reader.read_exact_at(offset, &mut vec![0; len]).is_err());
        }
        reader.read_exact_at(bytes.len() as u64, &mut []).unwrap();
    }
}

/// The format's own library takes every file, and finds the tensors.
#[test]
fn safetensors_reads_every_file() {
    let model = model();
    let (run, _) = Run::frozen(&model, true).unwrap();
    for (dtype, floats) in [(ExportDtype::F32, "F32"), (ExportDtype::Bf16, "BF16")] {
        for shard_bytes_max in [1, 300_000, u64::MAX] {
            let Exported { state, files } = exported(&run, dtype, shard_bytes_max);
            let mut found = 0;
            for (file, _) in files.iter().filter(|(file, _)| file.name().ends_with(".safetensors"))
            {
                let mut bytes = vec![0; file.bytes() as usize];
                let mut reader = FileReader::new(state.clone(), file.clone());
                reader.read_exact_at(0, &mut bytes).unwrap();
                let read = SafeTensors::deserialize(&bytes).unwrap();
                for (name, view) in read.tensors() {
                    let tensor = model.tensor(&name);
                    let shape: Vec<u64> = view.shape().iter().map(|&n| n as u64).collect();
                    assert_eq!(shape, tensor.shape, "{name}");
                    let kept = !matches!(tensor.dtype, Dtype::F32);
                    let dtype = if kept { tensor.dtype.name() } else { floats };
                    assert_eq!(format!("{:?}", view.dtype()), dtype, "{name}");
                    if kept || floats == "F32" {
                        assert_eq!(view.data(), tensor.bytes, "{name}");
                    }
                    found += 1;
                }
            }
            assert_eq!(found, model.tensors.len());
        }
    }
}

#[test]
fn a_wrong_byte_in_a_segment_is_an_error_and_no_byte_of_the_file() {
    let model = model();
    let (run, _) = Run::frozen(&model, true).unwrap();
    let Exported { state, files } = exported(&run, ExportDtype::Bf16, u64::MAX);
    let position = state.manifest().position("weights", "e.wide").unwrap();
    let wide = &state.manifest().descriptors()[position];
    damage(&place::tensor(&run.path(), &wide.artifact(), wide.dtype));
    let (file, bytes) = files.iter().find(|(f, _)| f.name() == "model.safetensors").unwrap();
    let (mut good, mut wrong) = (0, 0);
    for from in (0..bytes.len()).step_by(4096) {
        let mut found = vec![0; 4096.min(bytes.len() - from)];
        let mut reader = FileReader::new(state.clone(), file.clone());
        match reader.read_exact_at(from as u64, &mut found) {
            Ok(()) => {
                assert_eq!(found, bytes[from..from + found.len()]);
                good += 1;
            }
            Err(error) => {
                assert!(error.to_string().starts_with("tensor e.wide: piece"), "{error}");
                wrong += 1;
            }
        }
    }
    // One piece of 64 KiB is 32 KiB of bf16.
    assert!((8..=9).contains(&wrong) && good > wrong, "{good} {wrong}");
}

/// Changes a byte in the middle of a file.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}
