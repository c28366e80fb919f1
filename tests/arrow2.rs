//! A second, independent implementation of Parquet reads every kind of segment and every table, and
//! finds the same values.

#![allow(clippy::unwrap_used)] // Helpers of tests, too.

mod common;

use std::{collections::BTreeMap, fs::File, path::Path};

use arrow2::{
    array::{Array, BinaryArray, FixedSizeBinaryArray, ListArray, PrimitiveArray, Utf8Array},
    chunk::Chunk,
    io::parquet::read::{self, FileReader},
    types::NativeType,
};
use common::{
    Random,
    gradient::Gradient,
    model::{Delta, Model, Run, all_files, floats},
};
use gradledger::{
    ledger::At,
    store::{files::Disk, segment::tensor::TensorWriter},
    types::{
        record::{Disposition, Verdict},
        rule::Dialect,
        tensor::{Dtype, TensorSpec},
    },
};

/// A file's columns by name, row groups one after the other.
type Columns = BTreeMap<String, Vec<Box<dyn Array>>>;

fn columns(path: &Path) -> Columns {
    let mut file = File::open(path).unwrap();
    let metadata = read::read_metadata(&mut file).unwrap();
    let schema = read::infer_schema(&metadata).unwrap();
    let names: Vec<String> = schema.fields.iter().map(|field| field.name.clone()).collect();
    let mut columns: Columns = names.iter().map(|name| (name.clone(), Vec::new())).collect();
    for chunk in FileReader::new(file, metadata.row_groups, schema, None, None, None) {
        let chunk: Chunk<Box<dyn Array>> = chunk.unwrap();
        for (name, array) in names.iter().zip(chunk.into_arrays()) {
            columns.get_mut(name).unwrap().push(array);
        }
    }
    columns
}

/// A column's parts.
fn arrays<'a>(columns: &'a Columns, name: &str) -> impl Iterator<Item = &'a dyn Array> {
    columns[name].iter().map(|array| &**array)
}

fn numbers<T: NativeType>(columns: &Columns, name: &str) -> Vec<Option<T>> {
    let array = |array: &dyn Array| {
        let array = array.as_any().downcast_ref::<PrimitiveArray<T>>();
        let array = array.unwrap_or_else(|| panic!("{name} holds others"));
        array.iter().map(|value| value.copied()).collect::<Vec<_>>()
    };
    arrays(columns, name).flat_map(array).collect()
}

fn fixed(columns: &Columns, name: &str) -> Vec<u8> {
    let array = |array: &dyn Array| {
        array.as_any().downcast_ref::<FixedSizeBinaryArray>().unwrap().values().to_vec()
    };
    arrays(columns, name).flat_map(array).collect()
}

fn texts(columns: &Columns, name: &str) -> Vec<Option<String>> {
    let array = |array: &dyn Array| {
        let any = array.as_any();
        match any.downcast_ref::<Utf8Array<i32>>() {
            Some(array) => array.iter().map(|text| text.map(str::to_owned)).collect::<Vec<_>>(),
            None => {
                let array = any.downcast_ref::<BinaryArray<i32>>().unwrap();
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                array.iter().map(|bytes| bytes.map(text)).collect()
            }
        }
    };
    arrays(columns, name).flat_map(array).collect()
}

fn lists(columns: &Columns, name: &str) -> Vec<Vec<i64>> {
    let list = |list: Option<Box<dyn Array>>| {
        let list = list.unwrap();
        let list = list.as_any().downcast_ref::<PrimitiveArray<i64>>().unwrap();
        list.iter().map(|value| *value.unwrap()).collect()
    };
    let array = |array: &dyn Array| {
        let array = array.as_any().downcast_ref::<ListArray<i32>>().unwrap();
        array.iter().map(list).collect::<Vec<_>>()
    };
    arrays(columns, name).flat_map(array).collect()
}

/// A sealed round of two miners, a refused one and an absent one.
struct Sealed {
    run: Run,
    model: Model,
    sent: BTreeMap<u16, Delta>,
}

fn sealed() -> Sealed {
    let model = Model::small(Dialect::Templar);
    let run = Run::new(&model);
    let mut random = Random(9);
    let sent: BTreeMap<u16, Delta> = [3, 7].map(|uid| (uid, model.delta(&mut random))).into();
    for (&uid, delta) in &sent {
        run.put(1, uid, &Gradient::of(&model, 1, delta).write());
    }
    let mut late = Gradient::of(&model, 1, &sent[&3]);
    late.window = Some(2);
    run.put(1, 8, &late.write());
    run.import(1, &[3, 7, 8, 9], &[]);
    run.seal(1);
    Sealed { run, model, sent }
}

impl Sealed {
    fn files(&self, kind: &str) -> Vec<std::path::PathBuf> {
        let files = all_files(&self.run.path().join(kind));
        assert!(!files.is_empty(), "{kind}");
        files
    }
}

#[test]
fn tensors_are_read_with_every_bit() {
    let Sealed { run, model, .. } = &sealed();
    let segments = sealed_values(run);
    for tensor in &model.tensors {
        for at in [At::Genesis, At::Round(1)] {
            let values = floats(&run.stored(at, &tensor.name));
            let bits: Vec<u32> = values.iter().map(|v| v.to_bits()).collect();
            assert!(segments.contains(&bits), "{} {at:?}", tensor.name);
        }
    }
}

/// What arrow2 finds in each tensor of f32.
fn sealed_values(run: &Run) -> Vec<Vec<u32>> {
    let values = |path: std::path::PathBuf| {
        let found = numbers::<f32>(&columns(&path), "value");
        found.iter().map(|value| value.unwrap().to_bits()).collect()
    };
    all_files(&run.path().join("segments/tensors")).into_iter().map(values).collect()
}

#[test]
fn tensors_of_every_type_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(4);
    for (dtype, name) in Dtype::ALL {
        if dtype == Dtype::F16 {
            continue; // Its annotation is younger than arrow2, which refuses what it does not know.
        }
        let spec = TensorSpec::new("t", dtype, &[40_000]).unwrap();
        let bytes: Vec<u8> = (0..spec.bytes()).map(|_| random.next() as u8).collect();
        let path = dir.path().join(name);
        let mut writer = TensorWriter::create(&Disk, &path, &spec).unwrap();
        writer.write(&bytes).unwrap();
        writer.finish().unwrap();
        let columns = columns(&path);
        macro_rules! bytes_of {
            ($number:ty) => {{
                let found = numbers::<$number>(&columns, "value");
                found.into_iter().flat_map(|v| v.unwrap().to_le_bytes()).collect::<Vec<u8>>()
            }};
        }
        let found = match dtype {
            Dtype::F32 => bytes_of!(f32),
            Dtype::F64 => bytes_of!(f64),
            Dtype::I32 => bytes_of!(i32),
            Dtype::I64 => bytes_of!(i64),
            Dtype::U32 => bytes_of!(u32),
            Dtype::U64 => bytes_of!(u64),
            // Of the others arrow2 knows the width alone.
            _ => fixed(&columns, "value"),
        };
        assert!(found == bytes, "{name}");
    }
}

#[test]
fn deltas_and_books_are_read() {
    let sealed = sealed();
    let Sealed { model, sent, .. } = &sealed;
    let mut found = Vec::new();
    for path in sealed.files("segments/deltas") {
        let columns = columns(&path);
        if path.ends_with("books.parquet") {
            let books = fixed(&columns, "book");
            let width = books.len() / texts(&columns, "name").len();
            let names: Vec<String> = texts(&columns, "name").into_iter().flatten().collect();
            let books = books.chunks(width).map(floats);
            let of = |delta: &Delta| -> Vec<Vec<f32>> {
                let book = |name: &String| [&delta[name].lookup[..], &[delta[name].shift]].concat();
                names.iter().map(book).collect()
            };
            let books: Vec<Vec<f32>> = books.collect();
            assert!(sent.values().any(|delta| of(delta) == books), "{books:?}");
            continue;
        }
        let (index, code) = (fixed(&columns, "index"), fixed(&columns, "code"));
        let mut positions = Vec::new();
        gradledger_kernels::codes::unpack_index(&index, &mut positions);
        found.push((positions, code));
    }
    // One row layout a tensor group: k 4 for all here, tensors in manifest order.
    for delta in sent.values() {
        let tensors = model.folded();
        let all: Vec<u16> = tensors.iter().flat_map(|t| delta[&t.name].index.concat()).collect();
        let code =
            |codes: &Vec<u8>| codes.iter().enumerate().fold(0, |b, (at, c)| b | c << (2 * at));
        let codes: Vec<u8> =
            tensors.iter().flat_map(|t| delta[&t.name].codes.iter().map(code)).collect();
        assert!(found.contains(&(all, codes)));
    }
}

#[test]
fn plans_are_read() {
    let sealed = sealed();
    for path in sealed.files("segments/plans") {
        let columns = columns(&path);
        let rows = fixed(&columns, "row");
        let counts = lists(&columns, "counts");
        let width = 16 + 8 * 4;
        assert_eq!(rows.len(), counts.len() * width);
        let (norms, factors) =
            (numbers::<f64>(&columns, "norm"), numbers::<f32>(&columns, "factor"));
        for (at, row) in rows.chunks(width).enumerate() {
            assert_eq!(norms[at].unwrap().to_le_bytes(), row[..8]);
            assert_eq!(factors[at].unwrap().to_le_bytes(), row[8..12]);
            let hashed: Vec<i64> =
                row[16..].as_chunks::<8>().0.iter().map(|c| i64::from_le_bytes(*c)).collect();
            assert_eq!(counts[at], hashed);
        }
        let miners: Vec<String> = texts(&columns, "miner").into_iter().flatten().collect();
        assert_eq!(miners[..2], ["3", "7"]);
        let tensors: Vec<String> = texts(&columns, "tensor").into_iter().flatten().collect();
        assert_eq!(tensors[0], sealed.model.folded()[0].name);
    }
}

#[test]
fn dispositions_are_read() {
    let sealed = sealed();
    for path in sealed.files("segments/dispositions") {
        let columns = columns(&path);
        let (index, order) = (numbers::<i64>(&columns, "index"), numbers::<i64>(&columns, "order"));
        let (verdict, code) = (texts(&columns, "verdict"), texts(&columns, "code"));
        let entries = texts(&columns, "entry");
        assert_eq!(entries.len(), 4);
        for (at, entry) in entries.iter().flatten().enumerate() {
            let hashed: Disposition = serde_json::from_str(entry).unwrap();
            assert_eq!(index[at], hashed.index.map(|index| index as i64));
            let (text, place, reason) = match &hashed.verdict {
                Verdict::Accepted { order } => ("accepted", Some(*order as i64), None),
                Verdict::Rejected(refusal) => ("rejected", None, Some(refusal.code.to_string())),
                Verdict::Absent => ("absent", None, None),
            };
            assert_eq!((verdict[at].as_deref(), order[at]), (Some(text), place));
            assert_eq!(code[at], reason);
        }
    }
}

#[test]
fn tables_are_read() {
    let sealed = sealed();
    let table = |name: &str| {
        let files = sealed.files(&format!("tables/{name}"));
        assert_eq!(files.len(), 1);
        columns(&files[0])
    };
    let contributions = table("contributions");
    assert_eq!(numbers::<i64>(&contributions, "round"), [Some(1); 4]);
    let texts_of = |columns: &Columns, name: &str| -> Vec<String> {
        texts(columns, name).into_iter().map(Option::unwrap_or_default).collect()
    };
    assert_eq!(texts_of(&contributions, "miner"), ["3", "7", "8", "9"]);
    assert_eq!(
        texts_of(&contributions, "disposition"),
        ["accepted", "accepted", "rejected", "absent"]
    );
    assert_eq!(texts_of(&contributions, "reason"), ["", "", "wrong-round", ""]);
    let shares: f64 = numbers::<f64>(&contributions, "share").into_iter().flatten().sum();
    assert!((shares - 1.0).abs() < 1e-12);
    let tensors = table("contribution_tensors");
    let sums: Vec<i64> = lists(&tensors, "code_counts").iter().map(|c| c.iter().sum()).collect();
    let names = texts_of(&tensors, "tensor");
    for (name, sum) in names.iter().zip(&sums) {
        let sent: usize = sealed.sent[&3][name].codes.iter().map(Vec::len).sum();
        assert_eq!(*sum, sent as i64, "{name}");
    }
    assert_eq!(numbers::<i64>(&table("rounds"), "accepted"), [Some(2)]);
    assert_eq!(numbers::<i64>(&table("checkpoints"), "round"), [None, Some(1)]);
    assert_eq!(numbers::<i64>(&table("overlap"), "positions").len(), 1);
    assert_eq!(numbers::<i64>(&table("miners"), "absent"), [0, 0, 0, 1].map(Some));
}
