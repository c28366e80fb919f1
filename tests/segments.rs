//! Segments, hashes and quarantine through their public functions: what goes in comes out, any other
//! bytes are an error or do not pass [`VerifiedReader`], and nothing panics.

#![allow(clippy::unwrap_used)] // Helpers of tests, too, stop at what cannot be.

#[path = "common/memory.rs"]
mod memory;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use gradledger::{
    merkle::{
        manifest::manifest_id,
        pieces::{Pieces, artifact_root},
    },
    store::{
        files::{Disk, Files},
        hashes::{self, HashesError, HashesReader, HashesWriter},
        quarantine::{self, QuarantineError},
        segment::{
            LogicalBytes, SegmentError, VerifiedReader,
            delta::{self, DeltaSegments, DeltaWriter},
            dispositions, place, plan,
            tensor::{self, TensorSegment, TensorWriter},
        },
    },
    types::{
        digest::Digest,
        json,
        manifest::{ArtifactId, ArtifactType, Descriptor, Manifest, group},
        plan::{Plan, PlanRow},
        record::{Disposition, DispositionsId, Verdict},
        refusal::{Code, Refusal},
        submission::Miner,
        tensor::{Dtype, TensorSpec},
    },
};
use memory::Memory;
use parquet::{
    column::page::Page,
    file::reader::{FileReader, SerializedFileReader},
};

const PAGE: usize = 65_536;
const ROW_GROUP: usize = 64 << 20;

/// Numbers that look random and are the same each time (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}

fn spec(dtype: Dtype, bytes: usize) -> TensorSpec {
    TensorSpec::new("t", dtype, &[bytes as u64 / dtype.bytes()]).unwrap()
}

fn write_tensor(files: &dyn Files, path: &Path, spec: &TensorSpec, bytes: &[u8], cut: usize) {
    let mut writer = TensorWriter::create(files, path, spec).unwrap();
    bytes.chunks(cut).for_each(|chunk| writer.write(chunk).unwrap());
    writer.finish().unwrap();
}

fn read_all(source: &dyn LogicalBytes) -> Vec<u8> {
    let mut bytes = vec![0; source.len() as usize];
    source.read_at(0, &mut bytes).unwrap();
    bytes
}

/// The pages' values, as Parquet's own reader finds them.
fn page_bodies(file: Vec<u8>) -> Vec<Bytes> {
    let reader = SerializedFileReader::new(Bytes::from(file)).unwrap();
    let groups = (0..reader.num_row_groups()).map(|at| reader.get_row_group(at).unwrap());
    groups
        .flat_map(|group| {
            group
                .get_column_page_reader(0)
                .unwrap()
                .map(|page| match page.unwrap() {
                    Page::DataPage { buf, .. } => buf,
                    other => panic!("{other:?}"),
                })
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn every_dtype_and_size_reads_back_and_a_page_is_a_piece() {
    let memory = Memory::default();
    let path = Path::new("t.parquet");
    for (dtype, name) in Dtype::ALL {
        let width = dtype.bytes() as usize;
        for bytes in [0, width, PAGE - width, PAGE, PAGE + width, 3 * PAGE + 5 * width] {
            let data = Numbers(7 + bytes as u64).bytes(bytes);
            write_tensor(&memory, path, &spec(dtype, bytes), &data, 10_007);
            let pages = page_bodies(memory.get(path));
            let same = pages.iter().map(|page| &page[..]).eq(data.chunks(PAGE));
            assert!(same, "{name}, {bytes} bytes: page bodies");
            let segment = TensorSegment::open_at(&memory, path, bytes as u64, dtype).unwrap();
            assert!(read_all(&segment) == data, "{name}, {bytes} bytes");
        }
    }
}

#[test]
fn a_scalar_and_an_empty_tensor_are_tensors() {
    let memory = Memory::default();
    let path = Path::new("t.parquet");
    for (shape, data) in [(&[][..], &[1, 2, 3, 4][..]), (&[0, 5], &[]), (&[3, 0], &[])] {
        let spec = TensorSpec::new("t", Dtype::F32, shape).unwrap();
        write_tensor(&memory, path, &spec, data, 1);
        let segment = TensorSegment::open_at(&memory, path, spec.bytes(), Dtype::F32).unwrap();
        assert_eq!(read_all(&segment), data);
    }
}

#[test]
fn a_tensor_above_a_row_group_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    let data = Numbers(1).bytes(ROW_GROUP + PAGE + 4);
    write_tensor(&Disk, &path, &spec(Dtype::F32, data.len()), &data, 3 << 20);
    let segment = TensorSegment::open_at(&Disk, &path, data.len() as u64, Dtype::F32).unwrap();
    assert!(read_all(&segment) == data);
    let across = &mut [0; 100];
    segment.read_at(ROW_GROUP as u64 - 50, across).unwrap();
    assert_eq!(across, &data[ROW_GROUP - 50..][..100]);
    let groups = SerializedFileReader::new(std::fs::File::open(&path).unwrap()).unwrap();
    let rows: Vec<_> = groups.metadata().row_groups().iter().map(|g| g.num_rows()).collect();
    assert_eq!(rows, [ROW_GROUP as i64 / 4, PAGE as i64 / 4 + 1]);
}

#[test]
fn other_numbers_of_bytes_than_the_shape_has_are_refused() {
    let memory = Memory::default();
    let path = Path::new("t.parquet");
    let mut writer = TensorWriter::create(&memory, path, &spec(Dtype::F32, 8)).unwrap();
    writer.write(&[0; 7]).unwrap();
    assert!(matches!(writer.finish(), Err(SegmentError::Length { expected: 8, found: 7, .. })));
    let mut writer = TensorWriter::create(&memory, path, &spec(Dtype::F32, 8)).unwrap();
    assert!(matches!(writer.write(&[0; 9]), Err(SegmentError::Length { found: 9, .. })));
    write_tensor(&memory, path, &spec(Dtype::F32, 8), &[0; 8], 8);
    let open = |bytes, dtype| TensorSegment::open_at(&memory, path, bytes, dtype).err().unwrap();
    assert!(matches!(open(12, Dtype::F32), SegmentError::Length { expected: 12, found: 8, .. }));
    assert!(matches!(open(8, Dtype::I32), SegmentError::OtherKey { .. }));
}

#[test]
fn any_range_reads_as_the_model() {
    let memory = Memory::default();
    let path = Path::new("t.parquet");
    let mut numbers = Numbers(3);
    let data = numbers.bytes(9 * PAGE + 1234);
    write_tensor(&memory, path, &spec(Dtype::U8, data.len()), &data, 99_991);
    let segment = TensorSegment::open_at(&memory, path, data.len() as u64, Dtype::U8).unwrap();
    for _ in 0..2000 {
        let start = numbers.below(data.len() + 1);
        let end = start + numbers.below(data.len() - start + 1);
        let mut read = vec![0; end - start];
        segment.read_at(start as u64, &mut read).unwrap();
        assert!(read == data[start..end], "{start}..{end}");
    }
    for (offset, len) in [(data.len() as u64, 1), (u64::MAX, 1), (0, data.len() + 1)] {
        let read = segment.read_at(offset, &mut vec![0; len]);
        assert!(matches!(read, Err(SegmentError::Range { .. })));
    }
}

#[test]
fn a_full_disk_is_an_io_error_at_any_byte() {
    let data = Numbers(5).bytes(2 * PAGE + 4);
    for left in (0..data.len() + 2000).step_by(997) {
        let memory = Memory::failing_after(left);
        let write = || {
            let spec = spec(Dtype::F32, data.len());
            let mut writer = TensorWriter::create(&memory, Path::new("t"), &spec)?;
            writer.write(&data)?;
            writer.finish()
        };
        match write() {
            Err(SegmentError::Io { source, .. }) => {
                assert_eq!(source.kind(), io::ErrorKind::StorageFull);
            }
            Err(other) => panic!("{left} bytes: {other}"),
            Ok(()) => assert!(left > data.len(), "{left} bytes"),
        }
    }
}

#[test]
fn a_committed_tensor_lies_under_its_root() {
    let dir = tempfile::tempdir().unwrap();
    let data = Numbers(9).bytes(PAGE + 8);
    let artifact = Pieces::of(&data).artifact;
    for _ in 0..2 {
        let tmp = dir.path().join("tmp.parquet");
        write_tensor(&Disk, &tmp, &spec(Dtype::F64, data.len()), &data, PAGE);
        let to = tensor::commit(&Disk, dir.path(), &tmp, &artifact, Dtype::F64).unwrap();
        assert_eq!(to, place::tensor(dir.path(), &artifact, Dtype::F64));
        assert!(!tmp.exists());
    }
    let segment = TensorSegment::open(&Disk, dir.path(), &artifact, Dtype::F64).unwrap();
    assert!(read_all(&segment) == data);
}

// Deltas.

struct Tensor {
    name: &'static str,
    k: u64,
    index: Vec<u8>,
    code: Vec<u8>,
    book: Vec<u8>,
}

fn tensors(bins: usize) -> Vec<Tensor> {
    let mut numbers = Numbers(bins as u64);
    let bits = bins.ilog2() as usize;
    [("b", 64, 30_000), ("a", 64, 1), ("z \"ü", 2, 1000), ("c", 4096, 3), ("d", 6, 7)]
        .map(|(name, k, blocks)| Tensor {
            name,
            k: k as u64,
            index: numbers.bytes(blocks * k / 2 * 3),
            code: numbers.bytes(blocks * (k * bits).div_ceil(8)),
            book: numbers.bytes(4 * (bins + 1)),
        })
        .into()
}

fn write_delta(files: &dyn Files, dir: &Path, bins: usize, tensors: &[Tensor]) {
    let mut writer = DeltaWriter::create(files, dir, bins).unwrap();
    for Tensor { name, k, index, code, book } in tensors {
        writer.book(name, book).unwrap();
        let blocks = index.len() as u64 / (k / 2 * 3);
        let mut tensor = writer.tensor(name, *k, blocks).unwrap();
        index.chunks(100_003).for_each(|chunk| tensor.write_index(chunk).unwrap());
        code.chunks(77).for_each(|chunk| tensor.write_code(chunk).unwrap());
        tensor.finish().unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn a_delta_of_several_layouts_reads_back() {
    for bins in [4, 16, 256] {
        let memory = Memory::default();
        let tensors = tensors(bins);
        write_delta(&memory, Path::new("tmp"), bins, &tensors);
        let root = Digest([bins as u8; 32]);
        let dir = delta::commit(&memory, Path::new("l"), Path::new("tmp"), root).unwrap();
        assert_eq!(memory.list(&dir).unwrap().len(), 5, "four layouts and the books");
        let stored = DeltaSegments::open(&memory, &dir).unwrap();
        assert_eq!(stored.tensors().collect::<Vec<_>>(), ["a", "b", "c", "d", "z \"ü"]);
        for Tensor { name, k, index, code, book } in &tensors {
            assert_eq!(stored.layout(name).unwrap().k, *k);
            assert!(read_all(&*stored.index(name).unwrap()) == *index, "{name}");
            assert!(read_all(&*stored.code(name).unwrap()) == *code, "{name}");
            assert!(read_all(&*stored.book(name).unwrap()) == *book, "{name}");
        }
        assert!(matches!(stored.index("e"), Err(SegmentError::Missing { .. })));
    }
}

#[test]
fn a_delta_that_is_there_already_stays_and_ours_goes() {
    let dir = tempfile::tempdir().unwrap();
    let root = Digest([1; 32]);
    for _ in 0..2 {
        let tmp = dir.path().join("tmp");
        write_delta(&Disk, &tmp, 4, &tensors(4));
        let to = delta::commit(&Disk, dir.path(), &tmp, root).unwrap();
        assert!(DeltaSegments::open(&Disk, &to).is_ok());
        assert!(!tmp.exists());
    }
}

#[test]
fn a_delta_without_tensors_reads_back() {
    let memory = Memory::default();
    write_delta(&memory, Path::new("d"), 16, &[]);
    assert_eq!(DeltaSegments::open(&memory, Path::new("d")).unwrap().tensors().count(), 0);
}

#[test]
fn what_is_no_delta_is_refused() {
    let memory = Memory::default();
    let create = |bins| DeltaWriter::create(&memory, Path::new("d"), bins);
    assert!(matches!(create(8), Err(SegmentError::Bins { found: 8 })));
    let mut writer = create(4).unwrap();
    for (k, blocks) in [(0, 1), (3, 1), (4098, 1), (2, 0), (4096, 1 << 50), (2, u64::MAX)] {
        let refused = writer.tensor("t", k, blocks).err().unwrap();
        assert!(matches!(refused, SegmentError::Layout { .. }), "{k}, {blocks}");
    }
    assert!(matches!(writer.book("t", &[0; 19]), Err(SegmentError::Length { .. })));
    let mut tensor = writer.tensor("t", 2, 1).unwrap();
    tensor.write_index(&[0; 2]).unwrap();
    assert!(matches!(tensor.write_code(&[0]), Err(SegmentError::Length { found: 2, .. })));
    assert!(matches!(writer.tensor("t", 2, 1), Err(SegmentError::Twice { .. })));
    assert!(matches!(writer.finish(), Err(SegmentError::Missing { tensor, .. }) if tensor == "t"));
}

// Plans and dispositions.

fn plan_of(rows: usize, bins: usize) -> Plan {
    let norms = [0.5, f64::INFINITY, f64::from_bits(0xfff8_dead_0000_0001), 5e-324, 0.0];
    let factors = [1.0, f32::from_bits(0x7f80_0001), 0.0, 1e-45, f32::from_bits(0xffc0_0000)];
    let row = |at: usize| PlanRow {
        norm: norms[at % norms.len()],
        factor: factors[at / 2 % factors.len()],
        counts: (0..bins as u64).map(|bin| bin * at as u64 + (1 << 40)).collect(),
    };
    Plan { bins, miners: 3, rows: (0..rows).map(row).collect() }
}

const MINERS: [Miner; 3] = [Miner::Uid(7), Miner::Uid(41), Miner::Hotkey(Digest([0xaa; 32]))];

fn plan_artifact(plan: &Plan) -> ArtifactId {
    Pieces::of(&plan.to_bytes()).artifact
}

#[test]
fn a_plan_reads_back_with_every_bit() {
    let (memory, ledger, tmp) = (Memory::default(), Path::new("l"), Path::new("tmp"));
    for (tensors, bins) in [(0, 4), (1, 4), (700, 4), (40, 256)] {
        let names: Vec<String> = (0..tensors).map(|at| format!("layers.{at}.wq")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let written = plan_of(tensors * 3, bins);
        let artifact = plan_artifact(&written);
        plan::write(&memory, tmp, &written, &names, &MINERS).unwrap();
        plan::commit(&memory, ledger, tmp, &artifact).unwrap();
        let stored = plan::open(&memory, ledger, &artifact, bins).unwrap();
        assert!(read_all(&stored) == written.to_bytes());
        let read = plan::read(&memory, ledger, &artifact, tensors, 3, bins).unwrap();
        assert_eq!(plan_artifact(&read), artifact);
        let other = plan::read(&memory, ledger, &artifact, tensors + 1, 3, bins);
        assert!(matches!(other, Err(SegmentError::Plan { .. })));
    }
    let refused = plan::write(&memory, tmp, &plan_of(3, 4), &["a", "b"], &MINERS);
    assert!(matches!(refused, Err(SegmentError::PlanRows { tensors: 2, miners: 3, found: 3 })));
}

/// A change here is a new version of `schema/plan.md`.
#[test]
fn the_bytes_of_a_plan_are_version_1() {
    let ArtifactId { root, bytes } = plan_artifact(&plan_of(6, 4));
    assert_eq!(
        (root.to_hex().as_str(), bytes),
        ("0259d88817dcd5c76cc1cbb49581ebae8d1f5b45655f9b25bb6e405cef99109a", 288)
    );
}

fn dispositions_of() -> Vec<Disposition> {
    let refusal = Refusal::new(Code::WrongTopK, Some("layers.0.wq"), "64", "32");
    let archive = Refusal::new(Code::Truncated, None, "a zip", "nothing");
    vec![
        Disposition { index: Some(4), miner: MINERS[0], verdict: Verdict::Accepted { order: 0 } },
        Disposition { index: Some(5), miner: MINERS[1], verdict: Verdict::Rejected(refusal) },
        Disposition { index: Some(6), miner: MINERS[2], verdict: Verdict::Rejected(archive) },
        Disposition { index: None, miner: Miner::Uid(9), verdict: Verdict::Absent },
    ]
}

#[test]
fn dispositions_read_back_as_they_are_hashed() {
    let (memory, ledger, tmp) = (Memory::default(), Path::new("l"), Path::new("tmp"));
    for rows in [dispositions_of(), Vec::new()] {
        let id = DispositionsId { root: Digest([3; 32]), count: rows.len() as u64 };
        dispositions::write(&memory, tmp, &rows).unwrap();
        dispositions::commit(&memory, ledger, tmp, &id).unwrap();
        let entries = dispositions::read_entries(&memory, ledger, &id).unwrap();
        assert!(entries.iter().map(|e| e.to_vec()).eq(rows.iter().map(json::to_vec)));
        let read: Vec<Disposition> =
            entries.iter().map(|entry| json::from_slice(entry).unwrap()).collect();
        assert_eq!(read, rows);
    }
}

// Bytes that nobody vouches for.

/// Reads what can be read of a damaged file; must not panic. Returns what came out whole.
fn try_tensor(memory: &Memory, bytes: u64, digests: &[Digest]) -> Option<Vec<u8>> {
    let segment = TensorSegment::open_at(memory, Path::new("t"), bytes, Dtype::F32).ok()?;
    let mut reader = VerifiedReader::new(Arc::new(segment), digests, bytes).unwrap();
    let mut out = Vec::new();
    reader.read(bytes as usize, &mut out).ok()?;
    Some(out)
}

#[test]
fn a_tensor_file_with_a_wrong_byte_gives_the_right_bytes_or_an_error() {
    let memory = Memory::default();
    let data = Numbers(11).bytes(3 * PAGE + 100);
    let digests = Pieces::of(&data).digests;
    write_tensor(&memory, Path::new("t"), &spec(Dtype::F32, data.len()), &data, PAGE);
    let file = memory.get(Path::new("t"));
    let bytes = data.len() as u64;
    let footer = file.len() - 1000..file.len();
    let pages = (0..footer.start).step_by(9973);
    let mut survived = 0;
    for at in pages.chain(footer) {
        for flip in [1, 16, 128, 255] {
            let mut damaged = file.clone();
            damaged[at] ^= flip;
            memory.put(Path::new("t"), damaged);
            if let Some(read) = try_tensor(&memory, bytes, &digests) {
                assert!(read == data, "byte {at} ^ {flip}");
                survived += 1;
            }
        }
    }
    assert!(survived > 0, "names and statistics do not matter");
}

#[test]
fn a_cut_or_random_file_is_an_error() {
    let memory = Memory::default();
    let data = Numbers(12).bytes(PAGE + 100);
    let digests = Pieces::of(&data).digests;
    write_tensor(&memory, Path::new("t"), &spec(Dtype::F32, data.len()), &data, PAGE);
    let file = memory.get(Path::new("t"));
    let bytes = data.len() as u64;
    for len in (0..PAGE).step_by(1009).chain(PAGE..file.len()) {
        memory.put(Path::new("t"), file[..len].to_vec());
        assert!(try_tensor(&memory, bytes, &digests).is_none(), "{len} bytes");
    }
    let mut numbers = Numbers(13);
    for round in 0..8000 {
        let mut damaged = file.clone();
        let start = damaged.len() - 700;
        for _ in 0..1 + numbers.below(6) {
            let at = start + numbers.below(700);
            damaged[at] = numbers.next() as u8;
        }
        memory.put(Path::new("t"), damaged);
        let read = try_tensor(&memory, bytes, &digests);
        assert!(read.is_none_or(|read| read == data), "round {round}");
    }
}

/// Damages each of `files` in turn and reads all of them again.
fn damage(memory: &Memory, files: &[PathBuf], seed: u64, rounds: usize, read: impl Fn()) {
    let mut numbers = Numbers(seed);
    for path in files {
        let whole = memory.get(path);
        for round in 0..rounds {
            let mut damaged = whole.clone();
            for _ in 0..1 + round % 5 {
                let at = damaged.len() - 1 - numbers.below(damaged.len().min(2500));
                damaged[at] = numbers.next() as u8;
            }
            if round % 10 == 0 {
                damaged.truncate(numbers.below(whole.len()));
            }
            memory.put(path, damaged);
            read();
        }
        memory.put(path, whole);
    }
}

#[test]
fn damaged_deltas_plans_and_dispositions_do_not_panic() {
    let (memory, ledger, tmp) = (Memory::default(), Path::new("l"), Path::new("tmp"));
    let small = tensors(4).into_iter().filter(|t| t.name != "b").collect::<Vec<_>>();
    write_delta(&memory, Path::new("d"), 4, &small);
    let names = memory.list(Path::new("d")).unwrap();
    let files: Vec<_> = names.iter().map(|name| Path::new("d").join(name)).collect();
    damage(&memory, &files, 21, 2000, || {
        let Ok(stored) = DeltaSegments::open(&memory, Path::new("d")) else { return };
        for name in stored.tensors().map(str::to_owned).collect::<Vec<_>>() {
            for part in [stored.index(&name), stored.code(&name), stored.book(&name)] {
                let _unless_damaged = part.map(|part| {
                    let mut bytes = vec![0; part.len() as usize];
                    part.read_at(0, &mut bytes)
                });
            }
        }
    });

    let written = plan_of(6, 4);
    let artifact = plan_artifact(&written);
    plan::write(&memory, tmp, &written, &["a", "b"], &MINERS).unwrap();
    let path = plan::commit(&memory, ledger, tmp, &artifact).unwrap();
    damage(&memory, &[path], 22, 4000, || {
        let _unless_damaged = plan::read(&memory, ledger, &artifact, 2, 3, 4);
    });

    let id = DispositionsId { root: Digest([3; 32]), count: 4 };
    dispositions::write(&memory, tmp, &dispositions_of()).unwrap();
    let path = dispositions::commit(&memory, ledger, tmp, &id).unwrap();
    damage(&memory, &[path], 23, 8000, || {
        let _unless_damaged = dispositions::read_entries(&memory, ledger, &id);
    });
}

#[test]
fn a_verified_reader_reads_as_the_model_from_anywhere() {
    let mut numbers = Numbers(31);
    for bytes in [0, 1, PAGE - 1, PAGE, PAGE + 1, 140 * PAGE + 17] {
        let data = numbers.bytes(bytes);
        let digests = Pieces::of(&data).digests;
        let mut reader =
            VerifiedReader::new(Arc::new(data.clone()), digests, bytes as u64).unwrap();
        let mut at = 0;
        for round in 0..200 {
            if round % 7 == 6 {
                at = numbers.below(bytes + 1);
                reader.seek_to(at as u64).unwrap();
                reader.hold(numbers.below(20), vec![7; numbers.below(3 * PAGE)]);
            }
            let len = numbers.below(bytes - at + 1) >> (round % 24);
            if round % 3 == 2 {
                let mut fetched = vec![0; len];
                reader.fetch(&mut fetched).unwrap().check(&fetched).unwrap();
                assert!(fetched == data[at..at + len], "fetched {at} + {len}");
            } else {
                let mut out = b"before".to_vec();
                reader.read(len, &mut out).unwrap();
                assert!(out[6..] == data[at..at + len] && &out[..6] == b"before", "{at} + {len}");
            }
            at += len;
            assert_eq!(reader.position(), at as u64);
        }
        assert!(matches!(reader.seek_to(bytes as u64 + 1), Err(SegmentError::Range { .. })));
    }
}

#[test]
fn a_verified_reader_names_the_wrong_piece_and_gives_nothing_of_it() {
    let mut data = Numbers(32).bytes(5 * PAGE + 9);
    let digests = Pieces::of(&data).digests;
    data[3 * PAGE] ^= 1;
    let bytes = data.len();
    let found = Digest::of(&data[3 * PAGE..4 * PAGE]);
    let new = |digests: &[Digest], bytes| {
        VerifiedReader::new(Arc::new(data.clone()), digests, bytes as u64)
    };
    for (start, len) in [(0, bytes), (3 * PAGE - 10, 11), (4 * PAGE - 1, 1), (PAGE, 4 * PAGE)] {
        let mut reader = new(&digests, bytes).unwrap();
        reader.seek_to(start as u64).unwrap();
        let mut out = vec![1, 2];
        match reader.read(len, &mut out) {
            Err(SegmentError::Piece { piece: 3, expected, found: piece }) => {
                assert_eq!((expected, piece), (digests[3], found));
            }
            other => panic!("{start} + {len}: {other:?}"),
        }
        assert_eq!((out, reader.position()), (vec![1, 2], start as u64));
        reader.seek_to(0).unwrap();
        reader.read(3 * PAGE, &mut Vec::new()).unwrap();
    }
    // Whole pieces that are fetched are left to be checked; parts of pieces are not.
    let mut reader = new(&digests, bytes).unwrap();
    let mut fetched = vec![0; bytes];
    let unchecked = reader.fetch(&mut fetched).unwrap();
    assert!(matches!(unchecked.check(&fetched), Err(SegmentError::Piece { piece: 3, .. })));
    for (start, len) in [(PAGE + 1, 2 * PAGE), (3 * PAGE + 5, 2 * PAGE)] {
        reader.seek_to(start as u64).unwrap();
        let fetched = reader.fetch(&mut vec![0; len]);
        assert!(matches!(fetched, Err(SegmentError::Piece { piece: 3, .. })), "{start} + {len}");
        assert_eq!(reader.position(), start as u64);
    }
    for (start, found) in [(0, true), (3 * PAGE + 5, true), (4 * PAGE, false), (bytes, false)] {
        reader.seek_to(start as u64).unwrap();
        match reader.verify_to_end(&|_| {}) {
            Err(SegmentError::Piece { piece: 3, .. }) => assert!(found, "from {start}"),
            Ok(()) => assert!(!found && reader.position() == bytes as u64, "from {start}"),
            other => panic!("from {start}: {other:?}"),
        }
    }
    assert!(matches!(new(&digests[1..], bytes), Err(SegmentError::Digests { .. })));
    assert!(matches!(new(&digests, bytes - 1), Err(SegmentError::Range { .. })));
}

// Hashes.

fn artifacts() -> (Manifest, Vec<(String, Vec<Digest>)>) {
    let mut numbers = Numbers(41);
    let sizes = [("w", 5 * PAGE + 4), ("a", 4), ("empty", 0), ("m", PAGE)];
    let artifacts = sizes.map(|(name, bytes)| {
        let pieces = Pieces::of(&numbers.bytes(bytes));
        let spec = TensorSpec::new(name, Dtype::F32, &[bytes as u64 / 4]).unwrap();
        let root = pieces.artifact.root;
        let descriptor = Descriptor::new(ArtifactType::Tensor, group::WEIGHTS, &spec, root);
        (descriptor, (name.to_owned(), pieces.digests))
    });
    let (descriptors, digests) = artifacts.into_iter().unzip();
    (Manifest::new(descriptors).unwrap(), digests)
}

fn write_hashes(memory: &Memory) -> (Manifest, Vec<(String, Vec<Digest>)>, PathBuf) {
    let (manifest, artifacts) = artifacts();
    let mut writer = HashesWriter::create(memory, Path::new("tmp")).unwrap();
    for (name, digests) in &artifacts {
        writer.artifact(group::WEIGHTS, name, digests).unwrap();
    }
    writer.finish(&manifest).unwrap();
    let root = manifest_id(&manifest).root;
    let path = hashes::commit(memory, Path::new("l"), Path::new("tmp"), root).unwrap();
    (manifest, artifacts, path)
}

#[test]
fn hashes_read_back_in_manifest_order() {
    let memory = Memory::default();
    let (manifest, artifacts, _) = write_hashes(&memory);
    let id = manifest_id(&manifest);
    let reader = HashesReader::open(&memory, Path::new("l"), &id).unwrap();
    assert_eq!(reader.manifest(), &manifest);
    for (at, descriptor) in manifest.descriptors().iter().enumerate() {
        let digests = reader.digests(at).unwrap();
        assert_eq!(artifact_root(&digests), descriptor.root);
        assert!(artifacts.contains(&(descriptor.name.clone(), digests)));
    }
    assert!(matches!(reader.digests(4), Err(HashesError::Artifact { index: 4, count: 4, .. })));
}

/// A change here is a new version of `schema/hashes.md`.
#[test]
fn the_bytes_of_a_hashes_file_are_version_1() {
    let memory = Memory::default();
    let (_, _, path) = write_hashes(&memory);
    assert_eq!(
        Digest::of(&memory.get(&path)).to_hex(),
        "a1ca7b3f438448192354251b90a658dd3ee3326cb86fe084705ab97556d4ab1c"
    );
}

#[test]
fn hashes_of_an_artifact_that_was_not_given_are_refused() {
    let memory = Memory::default();
    let (manifest, _) = artifacts();
    let writer = HashesWriter::create(&memory, Path::new("tmp")).unwrap();
    assert!(matches!(
        writer.finish(&manifest),
        Err(HashesError::Count { expected: 1, found: 0, .. })
    ));
}

#[test]
fn hashes_with_a_wrong_byte_give_the_right_digests_or_an_error() {
    let memory = Memory::default();
    let (manifest, _, path) = write_hashes(&memory);
    let (id, ledger) = (manifest_id(&manifest), Path::new("l"));
    let whole = HashesReader::open(&memory, ledger, &id).unwrap();
    let right: Vec<_> = (0..4).map(|at| whole.digests(at).unwrap()).collect();
    let file = memory.get(&path);
    for at in 0..file.len() {
        for damage in 0..=8 {
            let mut damaged = file.clone();
            if damage == 8 {
                damaged.truncate(at);
            } else {
                damaged[at] ^= 1 << damage;
            }
            memory.put(&path, damaged);
            let Ok(reader) = HashesReader::open(&memory, ledger, &id) else { continue };
            let read: Vec<_> = (0..4).map(|at| reader.digests(at)).collect();
            let wrong = read.iter().zip(&right).filter(|(read, right)| match read {
                Ok(read) => read != *right,
                Err(_) => false,
            });
            assert_eq!(wrong.count(), 0, "byte {at}, damage {damage}");
            let refused = read.iter().filter(|read| read.is_err()).count();
            assert!(refused <= 1, "byte {at}, damage {damage}: {refused} artifacts are gone");
        }
    }
}

// Quarantine.

#[test]
fn a_refused_upload_is_kept_as_received_until_released() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path();
    let upload = Numbers(51).bytes((1 << 20) + 77);
    let sha256 = Digest::of(&upload);
    assert_eq!(quarantine::list(&Disk, ledger).unwrap(), []);
    let path = quarantine::keep(&Disk, ledger, 12, &mut &upload[..], sha256, "u.pt").unwrap();
    assert!(std::fs::read(&path).unwrap() == upload);
    assert_eq!(quarantine::find(&Disk, ledger, 12, sha256).unwrap(), Some(path));
    assert_eq!(quarantine::find(&Disk, ledger, 13, sha256).unwrap(), None);
    let changed = quarantine::keep(&Disk, ledger, 12, &mut &upload[1..], sha256, "u.pt");
    assert!(matches!(changed, Err(QuarantineError::Changed { .. })));
    assert_eq!(quarantine::list(&Disk, ledger).unwrap(), [(12, sha256)]);
    quarantine::release(&Disk, ledger, 12).unwrap();
    assert_eq!(quarantine::list(&Disk, ledger).unwrap(), []);
}
