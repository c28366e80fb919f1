//! What hostile files get from the readers: a refusal that says why, in bounded time and memory.
//! What nobody thought of here is in `hostile.rs`.

#![allow(clippy::unwrap_used)] // Clippy's own exception for tests leaves out their helpers.

#[path = "common/archives.rs"]
mod archives;

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use archives::{Entry, entry, local_header, torch_zip, zip};
use gradledger::{
    import::{
        checkpoint::{Checkpoint, ImportError},
        dcp::{DcpCheckpoint, DcpError},
        pickle::{Limits, Pickle, PickleError},
        safetensors::{Safetensors, SafetensorsError},
        source::Source,
        templar::{AggregatorFile, ForeignDelta, GradientFile, TemplarError},
        templar_writer::{GradientMetadata, GradientTensor, GradientWriter, WriteError},
        torch::{GLOBALS, TensorRef, TorchArchive, TorchError},
        zip::{Archive, Verified, ZipError},
    },
    types::refusal::{Code, Refusal},
};

// Building blocks: zips and pickles with every field in reach.

fn source(bytes: &[u8]) -> Arc<dyn Source> {
    Arc::new(bytes.to_vec())
}

fn text(text: &str) -> Vec<u8> {
    [b"X", (text.len() as u32).to_le_bytes().as_slice(), text.as_bytes()].concat()
}

fn int(int: i64) -> Vec<u8> {
    [&[0x8a, 8][..], &int.to_le_bytes()].concat()
}

fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(", items.concat().as_slice(), b"t"].concat()
}

fn ints(items: &[i64]) -> Vec<u8> {
    tuple(&items.iter().map(|item| int(*item)).collect::<Vec<_>>())
}

fn list(items: &[Vec<u8>]) -> Vec<u8> {
    [b"](", items.concat().as_slice(), b"e"].concat()
}

fn dict(pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let flat: Vec<u8> = pairs.iter().flat_map(|(key, value)| [&key[..], value].concat()).collect();
    [b"}(", flat.as_slice(), b"u"].concat()
}

fn fields(pairs: &[(&str, Vec<u8>)]) -> Vec<u8> {
    dict(&pairs.iter().map(|(key, value)| (text(key), value.clone())).collect::<Vec<_>>())
}

fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

fn whole(value: Vec<u8>) -> Vec<u8> {
    [b"\x80\x02", value.as_slice(), b"."].concat()
}

struct Tensor {
    storage: &'static str,
    key: &'static str,
    numel: i64,
    offset: i64,
    shape: Vec<i64>,
    strides: Vec<i64>,
    metadata: Option<Vec<u8>>,
}

fn floats(shape: &[i64], strides: &[i64], numel: i64) -> Tensor {
    let (shape, strides) = (shape.to_vec(), strides.to_vec());
    let (storage, key) = ("FloatStorage", "0");
    Tensor { storage, key, numel, offset: 0, shape, strides, metadata: None }
}

impl Tensor {
    fn pickled(&self) -> Vec<u8> {
        let id = tuple(&[
            text("storage"),
            global("torch", self.storage),
            text(self.key),
            text("cuda:7"),
            int(self.numel),
        ]);
        let hooks = [global("collections", "OrderedDict"), b")R".to_vec()].concat();
        let mut args = vec![
            [id, b"Q".to_vec()].concat(),
            int(self.offset),
            ints(&self.shape),
            ints(&self.strides),
            b"\x89".to_vec(),
            hooks,
        ];
        args.extend(self.metadata.clone());
        [global("torch._utils", "_rebuild_tensor_v2"), tuple(&args), b"R".to_vec()].concat()
    }

    /// The tensor as read from an archive that holds only it, over a storage of `data`.
    fn read(&self, data: &[u8]) -> Result<TensorRef, TorchError> {
        let archive =
            TorchArchive::open(source(&torch_zip(&whole(self.pickled()), &[("0", data)])));
        let archive = archive.unwrap();
        archive.tensor(archive.pickle().root()).unwrap()
    }
}

/// A gradient file of two small tensors, from our own writer.
fn gradient() -> Vec<u8> {
    let mut writer = GradientWriter::new(Vec::new(), "temp_gradient-5-7-v2.1.28").unwrap();
    let lookup = [-1.5, -0.5, 0.5, 1.5];
    for (name, blocks) in [("layers.0.wq.weight", 6), ("norm.weight", 2)] {
        let vals: Vec<u8> = (0..blocks * 4).map(|i| i % 4).collect();
        let idxs: Vec<u8> = (0..blocks * 6).collect();
        let vals_shape: &[u64] = if blocks == 6 { &[3, 2, 4] } else { &[2, 4] };
        let tensor = GradientTensor {
            name,
            idxs: &idxs,
            vals: &vals,
            vals_shape,
            shift: 0.25,
            scale: 0.005,
            lookup: &lookup,
        };
        writer.tensor(&tensor).unwrap();
    }
    let metadata = GradientMetadata {
        window: 5,
        global_step: 3,
        sample_digest: "771da0e574d3668e558bef5193f6ed18",
        sample_count: 16,
    };
    writer.finish(&metadata).unwrap()
}

fn open_gradient(bytes: &[u8]) -> Result<GradientFile, TemplarError> {
    GradientFile::open(source(bytes))
}

/// Reads all there is: every tensor, then every other CRC.
fn read_all(file: &GradientFile) -> Result<Vec<u8>, TorchError> {
    let archive = file.archive();
    let mut verified = archive.verified();
    let mut bytes = Vec::new();
    for tensor in tensors(file.delta()) {
        let mut stream = archive.open_stream(tensor);
        while let Some(chunk) = stream.next_chunk()? {
            bytes.extend_from_slice(chunk);
        }
        stream.mark(&mut verified);
    }
    archive.verify_crcs(&mut verified)?;
    Ok(bytes)
}

fn tensors(delta: &ForeignDelta) -> Vec<&TensorRef> {
    let parts = delta.parts.values().flat_map(|parts| {
        let quant = parts.quant_params.as_ref();
        let quant = quant.map(|quant| [quant.shift.as_ref(), quant.lookup.as_ref()]);
        [parts.idxs.as_ref(), parts.vals.as_ref()].into_iter().chain(quant.into_iter().flatten())
    });
    parts.flatten().collect()
}

fn refused(bytes: &[u8]) -> Refusal {
    match open_gradient(bytes) {
        Err(error) => error.refusal().expect("a refusal, not a fault of the system"),
        Ok(file) => match &file.delta().fault {
            Some(fault) => fault.refusal().expect("a refusal, not a fault of the system"),
            None => panic!("taken"),
        },
    }
}

/// The delta of a gradient file with this state dict, over one storage of 64 bytes.
fn gradient_of(state: Vec<u8>) -> Vec<u8> {
    let root = fields(&[("state_dict", state), ("global_step", int(0))]);
    torch_zip(&whole(root), &[("0", &[0; 64])])
}

// Zip.

fn zip_error(bytes: &[u8]) -> ZipError {
    match Archive::open(source(bytes)) {
        Err(error) => error,
        Ok(_) => panic!("taken"),
    }
}

#[test]
fn our_own_gradient_file_is_taken() {
    let file = open_gradient(&gradient()).unwrap();
    assert_eq!((file.delta().window, file.delta().global_step), (Some(5), Some(3)));
    assert!(file.delta().fault.is_none());
    let parts = &file.delta().parts["layers.0.wq.weight"];
    assert_eq!(parts.vals.as_ref().unwrap().shape(), [3, 2, 4]);
    let quant = parts.quant_params.as_ref().unwrap();
    assert_eq!((quant.scale, quant.offset), (Some(0.005), Some(2)));
    assert_eq!(quant.shift.as_ref().unwrap().shape(), [0_u64; 0]);
    // idxs, vals, shift, lookup of both.
    assert_eq!(read_all(&file).unwrap().len(), 36 + 24 + 4 + 16 + 12 + 8 + 4 + 16);
    for entry in file.archive().zip().entries() {
        assert_eq!(entry.start() % 64, 0, "{}", entry.name());
    }
}

#[test]
fn entries_that_overlap_are_refused() {
    // Zip bombs without compression let many entries share the same bytes.
    let inner = entry("a/2", &[7; 100]);
    let mut nested = local_header(&inner);
    nested.extend(&inner.data);
    let outer = entry("a/1", &nested);
    let at = local_header(&outer).len() as u32;
    let bomb = zip(&[outer, Entry { header: Some(at), ..inner }]);
    assert!(matches!(zip_error(&bomb), ZipError::Overlap { .. }));
    assert_eq!(refused(&bomb).code, Code::Truncated);
    // Two names for one header.
    let same = zip(&[entry("a/1", b"x"), Entry { header: Some(0), ..entry("a/2", b"x") }]);
    assert!(matches!(zip_error(&same), ZipError::Local { what: "name", .. }));
}

#[test]
fn an_entry_that_reaches_into_the_directory_is_refused() {
    let long = Entry { stated_len: Some(20), ..entry("a/1", b"0123456789") };
    assert!(matches!(zip_error(&zip(&[long])), ZipError::Truncated { .. }));
    let far = Entry { header: Some(u32::MAX - 1), ..entry("a/1", b"x") };
    assert!(matches!(zip_error(&zip(&[far])), ZipError::Truncated { .. }));
}

#[test]
fn compressed_and_encrypted_entries_are_refused_by_name() {
    let deflated = zip(&[Entry { method: 8, ..entry("a/data.pkl", b"x") }]);
    match zip_error(&deflated) {
        ZipError::Compressed { name, method: 8 } => assert_eq!(name, "a/data.pkl"),
        other => panic!("{other}"),
    }
    let encrypted = zip(&[Entry { flags: 1, ..entry("a/data.pkl", b"x") }]);
    assert!(matches!(zip_error(&encrypted), ZipError::Flags { flags: 1, .. }));
}

#[test]
fn headers_that_contradict_the_directory_are_refused() {
    let named = Entry { local_name: Some("a/z".to_owned()), ..entry("a/1", b"x") };
    assert!(matches!(zip_error(&zip(&[named])), ZipError::Local { what: "name", .. }));
    let summed = Entry { local_crc: Some(1), ..entry("a/1", b"x") };
    assert!(matches!(zip_error(&zip(&[summed])), ZipError::Local { what: "CRC-32", .. }));
    let twice = zip(&[entry("a/1", b"x"), entry("a/1", b"y")]);
    assert!(matches!(zip_error(&twice), ZipError::Twice { .. }));
}

#[test]
fn bytes_before_or_after_an_archive_are_refused() {
    let plain = zip(&[entry("a/1", b"x")]);
    Archive::open(source(&plain)).unwrap();
    let after = [plain.clone(), b"PK".to_vec()].concat();
    assert!(matches!(zip_error(&after), ZipError::Field { what: "comment length", .. }));
    let before = [b"MZ".to_vec(), plain].concat();
    assert!(matches!(zip_error(&before), ZipError::Field { what: "end of the directory", .. }));
}

#[test]
fn a_comment_is_skipped_and_a_second_end_in_it_refused() {
    let mut plain = zip(&[entry("a/1", b"x")]);
    let len = plain.len();
    plain.extend(vec![b'.'; 65535]);
    plain[len - 2..len].copy_from_slice(&[0xff, 0xff]);
    Archive::open(source(&plain)).unwrap();
    // The comment holds another end record: two readers could see two archives.
    plain[len + 100..len + 104].copy_from_slice(b"PK\x05\x06");
    assert!(matches!(zip_error(&plain), ZipError::Field { .. }));
}

#[test]
fn stated_counts_and_sizes_are_not_believed() {
    let plain = zip(&[entry("a/1", b"x")]);
    let end = plain.len() - 22;
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = plain.clone();
        changed[end + at..end + at + bytes.len()].copy_from_slice(bytes);
        zip_error(&changed)
    };
    assert!(matches!(with(8, &[0xfe, 0xff, 0xfe, 0xff]), ZipError::Field { what: "entries", .. }));
    assert!(matches!(with(8, &[0, 0, 0, 0]), ZipError::Field { .. }));
    let bytes = u32::MAX.to_le_bytes();
    assert!(matches!(with(12, &bytes), ZipError::DirectoryBytes { .. }));
    assert!(matches!(with(16, &bytes), ZipError::Field { .. }));
    // A zip64 end with a count of 2^40, and one with a size of 2^64 - 1.
    let torch = gradient();
    let end64 = torch.len() - 22 - 20 - 56;
    for (at, word) in [(32, 1_u64 << 40), (40, u64::MAX), (48, u64::MAX), (4, u64::MAX)] {
        let mut changed = torch.clone();
        changed[end64 + at..end64 + at + 8].copy_from_slice(&word.to_le_bytes());
        if at == 32 {
            changed[end64 + 24..end64 + 32].copy_from_slice(&word.to_le_bytes());
        }
        assert_eq!(refused(&changed).code, Code::Truncated);
    }
}

#[test]
fn a_file_cut_anywhere_is_truncated() {
    let whole = gradient();
    for part in 0..37 {
        let cut = whole.len() * part / 37;
        let refusal = refused(&whole[..cut]);
        assert_eq!(refusal.code, Code::Truncated, "cut at {cut}: {refusal}");
        assert!(!refusal.expected.is_empty() && !refusal.found.is_empty());
    }
    for cut in whole.len() - 200..whole.len() {
        assert_eq!(refused(&whole[..cut]).code, Code::Truncated, "cut at {cut}");
    }
}

#[test]
fn every_flipped_byte_of_an_entry_is_a_crc_mismatch() {
    let whole = gradient();
    let file = open_gradient(&whole).unwrap();
    for entry in file.archive().zip().entries() {
        for at in entry.start()..entry.start() + entry.bytes() {
            let mut flipped = whole.clone();
            flipped[at as usize] ^= 1;
            let refusal = match open_gradient(&flipped) {
                Err(error) => error.refusal(),
                Ok(file) => {
                    let error = read_all(&file).expect_err("a wrong byte");
                    gradledger::import::templar::refusal_of(None, &error)
                }
            };
            let refusal = refusal.unwrap();
            assert_eq!(refusal.code, Code::CrcMismatch, "{} at {at}", entry.name());
            assert!(refusal.found.contains(entry.name()), "{refusal}");
        }
    }
}

#[test]
fn a_stream_never_hands_out_the_last_bytes_of_a_wrong_entry() {
    let tensor = floats(&[16], &[1], 16);
    let mut bytes = torch_zip(&whole(tensor.pickled()), &[("0", &[0; 64])]);
    let archive = TorchArchive::open(source(&bytes)).unwrap();
    let found = archive.tensor(archive.pickle().root()).unwrap().unwrap();
    let at = archive.zip().entries()[found.entry()].start() as usize;
    bytes[at + 5] ^= 0x80;
    let archive = TorchArchive::open(source(&bytes)).unwrap();
    let mut stream = archive.open_stream(&found);
    assert!(matches!(stream.next_chunk(), Err(TorchError::Zip(ZipError::Crc { .. }))));
    let mut verified = archive.verified();
    stream.mark(&mut verified);
    assert!(!verified.contains(found.entry()));
    assert!(archive.verify_crcs(&mut verified).is_err());
}

#[test]
fn a_tensor_that_is_part_of_its_entry_leaves_the_crc_to_be_checked() {
    let tensor = Tensor { offset: 3, ..floats(&[2], &[1], 16) };
    let data: Vec<u8> = (0..64).collect();
    let archive =
        TorchArchive::open(source(&torch_zip(&whole(tensor.pickled()), &[("0", &data)]))).unwrap();
    let found = archive.tensor(archive.pickle().root()).unwrap().unwrap();
    let mut verified = archive.verified();
    let bytes = archive.read_small(&found, 8, &mut verified).unwrap();
    assert_eq!(bytes, data[12..20]);
    assert!(!verified.contains(found.entry()));
    archive.verify_crcs(&mut verified).unwrap();
    assert!(verified.contains(found.entry()));
    assert!(archive.read_small(&found, 7, &mut verified).is_err());
    assert!(archive.read_at(&found, 1, &mut [0; 8]).is_err());
    assert!(archive.read_at(&found, u64::MAX, &mut [0; 8]).is_err());
}

// Pickle.

fn pickle_error(body: &[u8]) -> PickleError {
    let bytes = [b"\x80\x02", body, b"."].concat();
    match Pickle::read(bytes, GLOBALS, Limits::ARCHIVE) {
        Err(error) => error,
        Ok(_) => panic!("taken"),
    }
}

#[test]
fn a_pickle_that_calls_os_system_is_refused_by_name() {
    let call = [global("os", "system"), tuple(&[text("touch /tmp/owned")]), b"R".to_vec()].concat();
    let refusal = refused(&torch_zip(&whole(call), &[]));
    assert_eq!(refusal.code, Code::UnsafePickle);
    assert!(refusal.found.contains("os") && refusal.found.contains("system"), "{refusal}");
    // The same by its protocol 4 spelling, and by ways that never stand in such files.
    let found = pickle_error(b"\x8c\x05posix\x8c\x06system\x93");
    assert!(
        matches!(found, PickleError::Global { module, name } if module == "posix" && name == "system")
    );
    for body in [&b"(S'x'\nios\nsystem\n"[..], b"(cos\nsystem\no", b"\x82\x01", b"Pid\n"] {
        assert!(matches!(
            pickle_error(body),
            PickleError::Opcode { .. } | PickleError::Global { .. }
        ));
    }
    for (module, name) in [("builtins", "eval"), ("torch", "load"), ("torch._utils", "_rebuild")] {
        assert!(matches!(pickle_error(&global(module, name)), PickleError::Global { .. }));
    }
}

#[test]
fn a_memo_bomb_takes_no_memory() {
    // Each list holds the one before twice: 2^200 leaves for a reader that expands them.
    let mut bomb = b"]q\x00".to_vec();
    for level in 0..200_u8 {
        bomb.extend([b'0', b']', b'q', level + 1, b'(', b'h', level, b'h', level, b'e']);
    }
    let started = Instant::now();
    let pickle = Pickle::read(whole(bomb), GLOBALS, Limits::ARCHIVE).unwrap();
    assert_eq!(pickle.items(pickle.root()).unwrap().len(), 2);
    drop(pickle);
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[test]
fn deep_nesting_neither_recurses_nor_overflows() {
    let deep = [b"(".repeat(1 << 20), b"t".repeat(1 << 20)].concat();
    drop(Pickle::read(whole(deep), GLOBALS, Limits::ARCHIVE).unwrap());
    let deep = [b"]".repeat(1 << 20), b"a".repeat((1 << 20) - 1)].concat();
    drop(Pickle::read(whole(deep), GLOBALS, Limits::ARCHIVE).unwrap());
}

#[test]
fn a_pickle_of_too_many_steps_is_refused() {
    let few = Limits { bytes: 1 << 20, steps: 100 };
    for op in [&b"N"[..], b"]", b"}", b")", b"(", b"Nq\x00"] {
        let bytes = [b"\x80\x02", op.repeat(101).as_slice(), b"."].concat();
        let error = Pickle::read(bytes, GLOBALS, few).err();
        assert!(matches!(error, Some(PickleError::Steps { max: 100, .. })), "{op:?}: {error:?}");
    }
    let long = Pickle::read(vec![0; (1 << 20) + 1], GLOBALS, few).err();
    assert!(matches!(long, Some(PickleError::Bytes { .. })));
}

#[test]
fn huge_counts_in_a_pickle_ask_for_nothing() {
    assert!(matches!(pickle_error(b"Nr\xff\xff\xff\xff"), PickleError::Memo { .. }));
    assert!(matches!(pickle_error(b"j\xff\xff\xff\xff"), PickleError::Memo { .. }));
    let eight = [0xff; 8];
    for op in [0x8d, 0x8e] {
        assert!(matches!(pickle_error(&[&[op][..], &eight].concat()), PickleError::Ended { .. }));
    }
    assert!(matches!(pickle_error(b"X\xff\xff\xff\xffx"), PickleError::Ended { .. }));
    assert!(matches!(pickle_error(&[b'c'; 600]), PickleError::Length { .. }));
    assert!(matches!(pickle_error(b"X\x02\0\0\0\xc3\x28"), PickleError::Text { .. }));
}

// Torch.

#[test]
fn shapes_of_2_to_the_63_are_refused() {
    for shape in
        [&[i64::MAX][..], &[1 << 62, 4], &[1 << 32, 1 << 32], &[0, i64::MAX, 2], &[1 << 51]]
    {
        let strides = vec![1; shape.len()];
        let error = floats(shape, &strides, 16).read(&[0; 64]).unwrap_err();
        assert!(matches!(error, TorchError::Size { .. }), "{shape:?}: {error}");
    }
    let error = floats(&[1; 9], &[1; 9], 16).read(&[0; 64]).unwrap_err();
    assert!(matches!(error, TorchError::Rank { rank: 9 }));
}

#[test]
fn negative_sizes_strides_and_offsets_are_refused() {
    let base = || floats(&[16], &[1], 16);
    for tensor in [
        Tensor { shape: vec![-1], ..base() },
        Tensor { strides: vec![-1], ..base() },
        Tensor { offset: -1, ..base() },
        Tensor { numel: -16, ..base() },
        Tensor { shape: vec![i64::MIN], ..base() },
    ] {
        assert!(matches!(tensor.read(&[0; 64]), Err(TorchError::Tensor { .. })));
    }
}

#[test]
fn a_view_outside_its_storage_is_refused() {
    let base = || floats(&[16], &[1], 16);
    assert_eq!(base().read(&[0; 64]).unwrap().bytes(), 64);
    for tensor in [
        Tensor { offset: 1, ..base() },
        Tensor { shape: vec![17], ..base() },
        Tensor { offset: i64::MAX, ..base() },
        Tensor { offset: i64::MAX, shape: vec![0], ..base() },
    ] {
        assert!(matches!(tensor.read(&[0; 64]), Err(TorchError::OutsideStorage { .. })));
    }
    // A storage that is shorter or longer than stated, of an unknown type, or not there.
    for numel in [15, 17, i64::MAX] {
        let error = floats(&[1], &[1], numel).read(&[0; 64]).unwrap_err();
        assert!(matches!(error, TorchError::StorageBytes { found: 64, .. }));
    }
    let elsewhere = Tensor { key: "../../0", ..base() };
    assert!(matches!(elsewhere.read(&[0; 64]), Err(TorchError::NoEntry { .. })));
}

#[test]
fn tensors_that_are_not_row_major_or_marked_are_refused() {
    let base = |strides: &[i64]| floats(&[2, 8], strides, 16);
    assert!(base(&[8, 1]).read(&[0; 64]).is_ok());
    for strides in [&[1, 2][..], &[0, 1], &[8, 0], &[8], &[8, 1, 1], &[1 << 62, 1]] {
        assert!(matches!(base(strides).read(&[0; 64]), Err(TorchError::Strided { .. })));
    }
    // `neg` and `conj` change what the bytes mean.
    let metadata = |value: Vec<u8>| Tensor { metadata: Some(value), ..base(&[8, 1]) };
    let neg = dict(&[(text("neg"), b"\x88".to_vec())]);
    assert!(matches!(metadata(neg).read(&[0; 64]), Err(TorchError::Marked)));
    assert!(metadata(dict(&[])).read(&[0; 64]).is_ok());
    assert!(metadata(b"N".to_vec()).read(&[0; 64]).is_ok());
}

#[test]
fn archives_that_are_not_of_torch_save_are_refused() {
    let good = [entry("a/data.pkl", b"\x80\x02N."), entry("a/version", b"3\n")];
    TorchArchive::open(source(&zip(&good))).unwrap();
    let error = |entries: &[Entry]| match TorchArchive::open(source(&zip(entries))) {
        Err(error) => error,
        Ok(_) => panic!("taken"),
    };
    let with = |extra: Entry| [&good[..], &[extra]].concat();
    assert!(matches!(error(&good[1..]), TorchError::NoEntry { .. }));
    assert!(matches!(error(&good[..1]), TorchError::NoEntry { .. }));
    assert!(matches!(error(&[]), TorchError::Root { .. }));
    assert!(matches!(error(&with(entry("b/x", b""))), TorchError::Root { .. }));
    assert!(matches!(error(&with(entry("x", b""))), TorchError::Root { .. }));
    assert!(matches!(error(&with(entry("a/byteorder", b"big"))), TorchError::ByteOrder { .. }));
    let long = entry("a/byteorder", &[b' '; 1000]);
    assert!(matches!(error(&with(long)), TorchError::Note { bytes: 1000, .. }));
    let other = [good[0].clone(), entry("a/version", b"11")];
    assert!(matches!(error(&other), TorchError::Version { .. }));
}

// Templar.

#[test]
fn files_of_another_layout_are_unsafe_pickles() {
    for root in [
        b"N".to_vec(),
        int(5),
        dict(&[]),
        fields(&[("state_dict", list(&[]))]),
        fields(&[("state_dict", dict(&[(int(1), int(2))]))]),
        fields(&[("state_dict", fields(&[("x", int(1)), ("x", int(2))]))]),
    ] {
        let refusal = refused(&torch_zip(&whole(root), &[]));
        assert_eq!(refusal.code, Code::UnsafePickle);
    }
}

#[test]
fn parts_that_are_absent_or_of_another_kind_are_named_as_missing() {
    let tensor = floats(&[16], &[1], 16).pickled();
    let state = fields(&[
        ("aidxs", tensor.clone()),
        ("avals", b"N".to_vec()),
        ("aquant_params", tuple(&[tensor.clone(), int(3), text("x"), list(&[]), int(1)])),
        ("bquant_params", tuple(&[tensor])),
        ("something", int(1)),
        ("metadata", list(&[])),
    ]);
    let file = open_gradient(&gradient_of(state)).unwrap();
    let delta = file.delta();
    assert_eq!(delta.window, None);
    assert_eq!(delta.other_keys.iter().map(|key| &**key).collect::<Vec<_>>(), ["something"]);
    let a = &delta.parts["a"];
    assert!(a.idxs.is_some() && a.vals.is_none());
    let quant = a.quant_params.as_ref().unwrap();
    assert!(quant.shift.is_some() && quant.lookup.is_none() && quant.dtype.is_none());
    assert_eq!((quant.scale, quant.offset), (None, None));
    assert!(delta.parts["b"].quant_params.is_none());
}

#[test]
fn a_tensor_that_cannot_be_read_is_a_fault_of_its_delta() {
    let state = fields(&[
        ("aidxs", floats(&[16], &[1], 16).pickled()),
        ("avals", floats(&[4, 4], &[1, 4], 16).pickled()),
    ]);
    let refusal = refused(&gradient_of(state));
    assert_eq!((refusal.code, refusal.tensor.as_deref()), (Code::WrongShape, Some("a")));
    // Of several the first by code, wherever it stands in the file.
    let state = fields(&[
        ("avals", floats(&[4, 4], &[1, 4], 16).pickled()),
        ("bvals", floats(&[17], &[1], 16).pickled()),
    ]);
    let refusal = refused(&gradient_of(state));
    assert_eq!((refusal.code, refusal.tensor.as_deref()), (Code::UnsafePickle, Some("b")));
}

fn aggregator(uids: Vec<u8>, state: Vec<u8>) -> Result<AggregatorFile, TemplarError> {
    let inner = fields(&[("state_dict", state), ("uids", uids)]);
    AggregatorFile::open(source(&gradient_of(inner)))
}

#[test]
fn an_aggregator_spoils_only_the_delta_that_is_spoilt() {
    let good = floats(&[16], &[1], 16).pickled();
    let odd = floats(&[4, 4], &[1, 4], 16).pickled();
    let state = fields(&[
        ("avals", list(&[good.clone(), odd])),
        ("bvals", list(std::slice::from_ref(&good))),
        ("cvals", good),
    ]);
    let file = aggregator(list(&[int(9), int(4)]), state).unwrap();
    assert_eq!(file.deltas().iter().map(|(uid, _)| *uid).collect::<Vec<_>>(), [9, 4]);
    assert!(file.deltas()[0].1.fault.is_none() && file.deltas()[0].1.parts["a"].vals.is_some());
    let refusal = file.deltas()[1].1.fault.as_ref().unwrap().refusal().unwrap();
    assert_eq!((refusal.code, refusal.tensor.as_deref()), (Code::WrongShape, Some("a")));
    // A list of another length than uids belongs to nobody.
    assert_eq!(file.unaligned(), ["bvals", "cvals"]);
    assert!(!file.deltas()[0].1.parts.contains_key("b"));
}

#[test]
fn an_aggregators_uids_are_distinct_and_16_bit() {
    let error = |uids| aggregator(uids, dict(&[])).err().expect("refused");
    assert!(matches!(error(list(&[int(4), int(4)])), TemplarError::UidTwice { uid: 4, .. }));
    assert!(matches!(error(list(&[int(65536)])), TemplarError::Uid { .. }));
    assert!(matches!(error(list(&[int(-1)])), TemplarError::Uid { .. }));
    assert!(matches!(error(list(&[text("4")])), TemplarError::Uid { .. }));
    assert!(matches!(error(int(4)), TemplarError::Layout { .. }));
    let many: Vec<Vec<u8>> = (0..1025).map(int).collect();
    assert!(matches!(error(list(&many)), TemplarError::Uids { found: 1025 }));
}

#[test]
fn lists_shared_by_many_keys_do_not_multiply() {
    // 4,000 keys share one list of 1,000 entries: 4 million parts from 100 KB.
    let uids: Vec<Vec<u8>> = (0..1000).map(int).collect();
    let shared = [list(&vec![b"N".to_vec(); 1000]), b"q\x00".to_vec()].concat();
    let mut pairs = vec![(text("0vals"), shared)];
    pairs.extend((1..4000).map(|i| (text(&format!("{i}vals")), b"h\x00".to_vec())));
    let error = aggregator(list(&uids), dict(&pairs)).err().expect("refused");
    assert!(matches!(error, TemplarError::Parts { found: 4_000_000 }));
}

#[test]
fn the_writer_refuses_what_would_not_read_back() {
    assert!(matches!(GradientWriter::new(Vec::new(), "a/b"), Err(WriteError::Root { .. })));
    let mut writer = GradientWriter::new(Vec::new(), "a").unwrap();
    let tensor = GradientTensor {
        name: "t",
        idxs: &[0; 3],
        vals: &[0; 2],
        vals_shape: &[1, 2],
        shift: 0.0,
        scale: 1.0,
        lookup: &[0.0; 4],
    };
    let odd = GradientTensor { vals_shape: &[u64::MAX, 2], ..tensor };
    assert!(matches!(writer.tensor(&odd), Err(WriteError::Shape { .. })));
    writer.tensor(&tensor).unwrap();
    assert!(matches!(writer.tensor(&tensor), Err(WriteError::Twice { .. })));
    // Empty tensors are written, whatever the other dimensions.
    let empty =
        GradientTensor { name: "e", idxs: &[], vals: &[], vals_shape: &[0, 1 << 63, 4], ..tensor };
    writer.tensor(&empty).unwrap();
}

// DCP.

const METADATA: &str = "torch.distributed.checkpoint.metadata";

fn object(module: &str, name: &str, state: Vec<u8>) -> Vec<u8> {
    [global(module, name), b")\x81".to_vec(), state, b"b".to_vec()].concat()
}

fn size(sizes: &[i64]) -> Vec<u8> {
    [global("torch", "Size"), tuple(&[ints(sizes)]), b"R".to_vec()].concat()
}

#[derive(Clone)]
struct Part {
    offsets: Vec<i64>,
    sizes: Vec<i64>,
    file: String,
    start: i64,
    bytes: i64,
}

/// A `.metadata` of f32 tensors.
fn metadata(tensors: &[(&str, &[i64], &[Part])]) -> Vec<u8> {
    let (mut described, mut stored) = (Vec::new(), Vec::new());
    for (name, shape, parts) in tensors {
        let chunk = |part: &Part| {
            let state = fields(&[("offsets", size(&part.offsets)), ("sizes", size(&part.sizes))]);
            object(METADATA, "ChunkStorageMetadata", state)
        };
        let properties = tuple(&[global("torch", "float32"), b"N".to_vec()]);
        let state = fields(&[
            ("properties", object(METADATA, "TensorProperties", properties)),
            ("size", size(shape)),
            ("chunks", list(&parts.iter().map(chunk).collect::<Vec<_>>())),
        ]);
        described.push((text(name), object(METADATA, "TensorStorageMetadata", state)));
        for part in *parts {
            let key = fields(&[("fqn", text(name)), ("offset", size(&part.offsets))]);
            let state = fields(&[
                ("relative_path", text(&part.file)),
                ("offset", int(part.start)),
                ("length", int(part.bytes)),
            ]);
            stored.push((
                object(METADATA, "MetadataIndex", key),
                object("torch.distributed.checkpoint.filesystem", "_StorageInfo", state),
            ));
        }
    }
    let state =
        fields(&[("state_dict_metadata", dict(&described)), ("storage_data", dict(&stored))]);
    whole(object(METADATA, "Metadata", state))
}

fn part(offsets: &[i64], sizes: &[i64]) -> Part {
    let (offsets, sizes) = (offsets.to_vec(), sizes.to_vec());
    Part { offsets, sizes, file: "x.distcp".to_owned(), start: 0, bytes: 10 }
}

/// What opening a checkpoint of this `.metadata` beside a `x.distcp` of 10 bytes gives.
fn open_dcp(metadata: &[u8]) -> Result<DcpCheckpoint, DcpError> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("x.distcp"), [0; 10]).unwrap();
    fs::write(folder.path().join(".metadata"), metadata).unwrap();
    DcpCheckpoint::open(folder.path(), None)
}

fn dcp_error(shape: &[i64], parts: &[Part]) -> DcpError {
    match open_dcp(&metadata(&[("t", shape, parts)])) {
        Err(error) => error,
        Ok(_) => panic!("taken"),
    }
}

#[test]
fn chunks_with_a_gap_or_an_overlap_are_refused() {
    assert!(open_dcp(&metadata(&[("t", &[4], &[part(&[0], &[4])])])).is_ok());
    let two = |a: i64, b: i64, c: i64, d: i64| [part(&[a], &[b]), part(&[c], &[d])];
    assert!(matches!(dcp_error(&[4], &two(0, 1, 2, 2)), DcpError::Cut { from: 1, to: 2, .. }));
    assert!(matches!(dcp_error(&[4], &two(0, 3, 2, 2)), DcpError::Cut { from: 2, to: 3, .. }));
    assert!(matches!(dcp_error(&[4], &two(0, 4, 0, 4)), DcpError::Twice { .. }));
    assert!(matches!(dcp_error(&[4], &two(0, 2, 2, 3)), DcpError::ChunkOutside { .. }));
    assert!(matches!(dcp_error(&[4], &[]), DcpError::Cut { .. }));
    assert!(matches!(dcp_error(&[4, 2], &[part(&[0], &[4])]), DcpError::ChunkRank { .. }));
    let holed = [part(&[0, 0], &[2, 2]), part(&[0, 2], &[2, 2]), part(&[2, 0], &[2, 2])];
    assert!(matches!(dcp_error(&[4, 4], &holed), DcpError::Tiles { cells: 4, chunks: 3, .. }));
    assert!(matches!(dcp_error(&[1 << 62], &[part(&[0], &[1 << 62])]), DcpError::Tensor(_)));
    assert!(matches!(dcp_error(&[4], &[part(&[0], &[-4])]), DcpError::Layout { .. }));
    assert!(matches!(
        dcp_error(&[i64::MAX], &two(0, i64::MAX, i64::MAX, i64::MAX)),
        DcpError::Tensor(_) | DcpError::ChunkOutside { .. }
    ));
}

#[test]
fn file_names_that_leave_the_folder_are_refused() {
    for name in
        ["../x.distcp", "/etc/passwd", "a/../../x", "..", ".", "", ".metadata", "a\\x", "x\0"]
    {
        let tricky = Part { file: name.to_owned(), ..part(&[0], &[4]) };
        assert!(matches!(dcp_error(&[4], &[tricky]), DcpError::FileName { .. }), "{name:?}");
    }
    let absent = Part { file: "y.distcp".to_owned(), ..part(&[0], &[4]) };
    assert!(matches!(dcp_error(&[4], &[absent]), DcpError::Io { .. }));
}

#[test]
fn a_chunk_outside_its_file_is_refused() {
    for (start, bytes) in [(1, 10), (0, 11), (i64::MAX, 1), (i64::MAX, i64::MAX)] {
        let far = Part { start, bytes, ..part(&[0], &[4]) };
        assert!(matches!(dcp_error(&[4], &[far]), DcpError::OutsideFile { len: 10, .. }));
    }
    let negative = Part { start: -1, ..part(&[0], &[4]) };
    assert!(matches!(dcp_error(&[4], &[negative]), DcpError::Layout { .. }));
}

#[test]
fn a_chunk_that_is_no_archive_is_refused_when_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("x.distcp"), [0; 10]).unwrap();
    let described = metadata(&[("t", &[4], &[part(&[0], &[4])])]);
    fs::write(folder.path().join(".metadata"), described).unwrap();
    let dcp = DcpCheckpoint::open(folder.path(), None).unwrap();
    assert!(matches!(dcp.read(0, 0, &mut [0; 4]), Err(DcpError::Chunk { .. })));
    assert!(matches!(dcp.read(0, 12, &mut [0; 5]), Err(DcpError::Range { .. })));
    assert!(matches!(dcp.read(0, u64::MAX, &mut [0; 5]), Err(DcpError::Range { .. })));
}

#[test]
fn a_chunk_list_shared_by_many_tensors_does_not_multiply() {
    // 1,000 tensors without elements share one list of 1,000 empty chunks: a million from 100 KB.
    let state = fields(&[("offsets", size(&[0])), ("sizes", size(&[0]))]);
    let chunk = object(METADATA, "ChunkStorageMetadata", state);
    let tensor = |chunks: Vec<u8>| {
        let properties = tuple(&[global("torch", "float32"), b"N".to_vec()]);
        let state = fields(&[
            ("properties", object(METADATA, "TensorProperties", properties)),
            ("size", size(&[0])),
            ("chunks", chunks),
        ]);
        object(METADATA, "TensorStorageMetadata", state)
    };
    let first = tensor([list(&vec![chunk; 1000]), b"q\x00".to_vec()].concat());
    let mut described = vec![(text("0"), first)];
    described.extend((1..1000).map(|i| (text(&i.to_string()), tensor(b"h\x00".to_vec()))));
    let place = |i: i64| {
        let key = fields(&[("fqn", text("0")), ("offset", size(&[i]))]);
        (object(METADATA, "MetadataIndex", key), b"N".to_vec())
    };
    let stored: Vec<(Vec<u8>, Vec<u8>)> = (0..1500).map(place).collect();
    let state =
        fields(&[("state_dict_metadata", dict(&described)), ("storage_data", dict(&stored))]);
    let error = open_dcp(&whole(object(METADATA, "Metadata", state))).err();
    assert!(matches!(error, Some(DcpError::Chunks { stored: 1500, .. })));
}

#[test]
fn metadata_that_names_another_global_is_refused_by_name() {
    let evil = whole([global("os", "system"), tuple(&[text("id")]), b"R".to_vec()].concat());
    match open_dcp(&evil) {
        Err(DcpError::Pickle(PickleError::Global { module, name })) => {
            assert_eq!((module.as_str(), name.as_str()), ("os", "system"));
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("taken"),
    }
}

/// f32 values 0, 1, 2, .. of a tensor.
fn counting(elements: usize) -> Vec<u8> {
    (0..elements).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

/// A checkpoint of one 6 x 10 tensor in a 2 x 3 grid of chunks, its archives one after the other.
fn grid_checkpoint(folder: &Path) -> Vec<u8> {
    let data = counting(60);
    let (mut file, mut parts) = (Vec::new(), Vec::new());
    for (row, rows) in [(0, 4), (4, 2)] {
        for (column, columns) in [(0, 3), (3, 3), (6, 4)] {
            let mut own = Vec::new();
            for r in row..row + rows {
                let at = (r * 10 + column) * 4;
                own.extend(&data[at..at + columns * 4]);
            }
            let (shape, count) = ([rows as i64, columns as i64], (rows * columns) as i64);
            let tensor = floats(&shape, &[columns as i64, 1], count);
            let archive = torch_zip(&whole(tensor.pickled()), &[("0", &own)]);
            let (start, bytes) = (file.len() as i64, archive.len() as i64);
            let offsets = [row as i64, column as i64];
            parts.push(Part { start, bytes, ..part(&offsets, &shape) });
            file.extend(archive);
        }
    }
    let scalar = torch_zip(&whole(floats(&[], &[], 1).pickled()), &[("0", &[1, 2, 3, 4])]);
    let place = (file.len() as i64, scalar.len() as i64);
    file.extend(scalar);
    let scalar = Part { start: place.0, bytes: place.1, ..part(&[], &[]) };
    fs::write(folder.join("x.distcp"), file).unwrap();
    let described = metadata(&[
        ("app.t", &[6, 10], &parts),
        ("app.s", &[], std::slice::from_ref(&scalar)),
        ("app.e", &[0, 7], &[]),
        ("optimizer.state.t", &[6, 10], &[]),
    ]);
    fs::write(folder.join(".metadata"), described).unwrap();
    data
}

#[test]
fn a_tensor_cut_in_both_dimensions_reads_in_row_order() {
    let folder = tempfile::tempdir().unwrap();
    let data = grid_checkpoint(folder.path());
    let checkpoint = Checkpoint::open(folder.path(), None).unwrap();
    let names: Vec<&str> = checkpoint.tensors().iter().map(|spec| spec.name()).collect();
    assert_eq!(names, ["e", "s", "t"]);
    assert_eq!(checkpoint.left_out(), ["optimizer.state.t"]);
    for start in 0..data.len() {
        for len in [1, 11, 64] {
            let end = (start + len).min(data.len());
            let mut buffer = vec![0; end - start];
            checkpoint.read(2, start as u64, &mut buffer).unwrap();
            assert_eq!(buffer, data[start..end], "{start}..{end}");
        }
    }
    let mut scalar = [0; 4];
    checkpoint.read(1, 0, &mut scalar).unwrap();
    assert_eq!(scalar, [1, 2, 3, 4]);
    checkpoint.read(0, 0, &mut []).unwrap();
    (0..3).for_each(|index| checkpoint.verify(index).unwrap());
    // A prefix is taken with or without its dot; one that nothing has is an error that helps.
    assert_eq!(Checkpoint::open(folder.path(), Some("app")).unwrap().tensors().len(), 3);
    let error = dcp_cause(Checkpoint::open(folder.path(), Some("model.")).map(drop));
    let DcpError::Nothing { prefix, example } = error else { panic!("{error}") };
    assert_eq!((prefix.as_str(), example.as_str()), ("model.", "app.e"));
    // The optimizer's tensor is not stored, which matters only to whoever takes it.
    assert!(Checkpoint::open(folder.path(), Some("")).is_err());
}

#[test]
fn a_flipped_byte_in_a_chunk_is_found_by_verify() {
    let folder = tempfile::tempdir().unwrap();
    grid_checkpoint(folder.path());
    let path = folder.path().join("x.distcp");
    let mut file = fs::read(&path).unwrap();
    let at = file.windows(4).position(|w| w == 7.0_f32.to_le_bytes()).unwrap();
    file[at] ^= 1;
    fs::write(&path, file).unwrap();
    let checkpoint = Checkpoint::open(folder.path(), None).unwrap();
    let error = dcp_cause(checkpoint.verify(2));
    let DcpError::Chunk { source, .. } = error else { panic!("{error}") };
    assert!(matches!(source, TorchError::Zip(ZipError::Crc { .. })), "{source}");
}

fn dcp_cause(result: Result<(), ImportError>) -> DcpError {
    match result {
        Err(ImportError::Dcp { source, .. }) => *source,
        Err(other) => panic!("{other}"),
        Ok(()) => panic!("taken"),
    }
}

// Safetensors.

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

fn safetensors_error(header: &str, data: usize) -> SafetensorsError {
    match Safetensors::of_source(source(&safetensors(header, data))) {
        Err(error) => error,
        Ok(_) => panic!("taken: {header}"),
    }
}

fn header(tensors: &[(&str, &str, &str, u64, u64)]) -> String {
    let one = |(name, dtype, shape, start, end): &(&str, &str, &str, u64, u64)| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    format!("{{{}}}", tensors.iter().map(one).collect::<Vec<_>>().join(","))
}

#[test]
fn safetensors_offsets_touch_without_gap_or_overlap() {
    let two = |a: (u64, u64), b: (u64, u64)| {
        header(&[("a", "F32", "[2]", a.0, a.1), ("b", "F32", "[2]", b.0, b.1)])
    };
    assert!(Safetensors::of_source(source(&safetensors(&two((8, 16), (0, 8)), 16))).is_ok());
    use SafetensorsError as E;
    assert!(matches!(safetensors_error(&two((0, 8), (4, 12)), 16), E::Gap { start: 4, .. }));
    assert!(matches!(safetensors_error(&two((0, 8), (0, 8)), 16), E::Gap { start: 0, .. }));
    assert!(matches!(safetensors_error(&two((0, 8), (9, 17)), 17), E::Gap { start: 9, .. }));
    assert!(matches!(safetensors_error(&two((4, 12), (12, 20)), 20), E::Gap { start: 4, .. }));
    assert!(matches!(safetensors_error(&two((0, 8), (8, 16)), 15), E::Truncated { .. }));
    let rest = safetensors_error(&two((0, 8), (8, 16)), 17);
    assert!(matches!(rest, E::Rest { expected: 16, found: 17 }));
    assert!(matches!(safetensors_error(&two((0, 7), (8, 16)), 16), E::Length { .. }));
    assert!(matches!(safetensors_error(&two((8, 0), (8, 16)), 16), E::Length { .. }));
    let far = header(&[("a", "U8", "[0]", u64::MAX, u64::MAX)]);
    assert!(matches!(safetensors_error(&far, 0), E::Gap { .. }));
    let large = header(&[("a", "F32", "[9223372036854775808]", 0, 8)]);
    assert!(matches!(safetensors_error(&large, 8), E::Tensor(_)));
}

#[test]
fn safetensors_names_stand_once_and_dtypes_are_known() {
    let a = ("a", "U8", "[1]", 0, 1);
    assert!(matches!(
        safetensors_error(&header(&[a, ("a", "U8", "[1]", 1, 2)]), 2),
        SafetensorsError::Twice { .. }
    ));
    for dtype in ["F4", "F6_E2M3", "F8_E8M0", "C64", "f32", ""] {
        match safetensors_error(&header(&[("a", dtype, "[1]", 0, 1)]), 1) {
            SafetensorsError::Dtype { found, .. } => assert_eq!(found, dtype),
            other => panic!("{other}"),
        }
    }
    let metadata = r#"{"__metadata__":{"format":"pt"}}   "#;
    assert!(Safetensors::of_source(source(&safetensors(metadata, 0))).is_ok());
}

#[test]
fn safetensors_headers_that_are_huge_or_no_json_are_refused() {
    use SafetensorsError as E;
    let with_length = |length: u64| {
        let bytes = [&length.to_le_bytes()[..], b"{}"].concat();
        Safetensors::of_source(source(&bytes)).err().expect("refused")
    };
    assert!(matches!(with_length(u64::MAX), E::HeaderBytes { .. }));
    assert!(matches!(with_length(100_000_001), E::HeaderBytes { .. }));
    assert!(matches!(with_length(100_000_000), E::Truncated { .. }));
    assert!(matches!(with_length(0), E::Json { .. }));
    assert!(matches!(Safetensors::of_source(source(b"1234567")), Err(E::Truncated { .. })));
    assert!(matches!(safetensors_error(" {}", 0), E::Brace { found: b' ' }));
    let deep = format!(r#"{{"__metadata__":{}"#, "[".repeat(100_000));
    for text in ["[]", "{", "{}x", r#"{"a":1}"#, r#"{"a":{}}"#, deep.as_str()] {
        assert!(matches!(safetensors_error(text, 0), E::Json { .. } | E::Brace { .. }));
    }
    for entry in [
        r#"{"dtype":"U8","shape":[-1],"data_offsets":[0,0]}"#,
        r#"{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}"#,
        r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1}"#,
        r#"{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}"#,
    ] {
        assert!(matches!(safetensors_error(&format!(r#"{{"a":{entry}}}"#), 0), E::Json { .. }));
    }
}

#[test]
fn shards_hold_exactly_what_the_index_says() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    let shard = |name: &str| safetensors(&header(&[(name, "U8", "[3]", 0, 3)]), 3);
    write("1.safetensors", &shard("m.a"));
    write("2.safetensors", &shard("m.b"));
    let open = |map: &str| {
        write("x.safetensors.index.json", format!(r#"{{"weight_map":{map}}}"#).as_bytes());
        Checkpoint::open(folder.path(), Some("m"))
    };
    let checkpoint = open(r#"{"m.b":"2.safetensors","m.a":"1.safetensors"}"#).unwrap();
    let names: Vec<&str> = checkpoint.tensors().iter().map(|spec| spec.name()).collect();
    assert_eq!(names, ["a", "b"]);
    let error = |map: &str| match open(map) {
        Err(ImportError::Safetensors { source, .. }) => source,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("taken"),
    };
    use SafetensorsError as E;
    let swapped = error(r#"{"m.a":"2.safetensors","m.b":"1.safetensors"}"#);
    assert!(matches!(swapped, E::NotInIndex { .. }));
    let more = error(r#"{"m.a":"1.safetensors","m.c":"1.safetensors"}"#);
    assert!(matches!(more, E::NotInShard { .. }));
    let twice = error(r#"{"m.a":"1.safetensors","m.a":"2.safetensors"}"#);
    assert!(matches!(twice, E::Twice { .. }));
    for name in ["../1.safetensors", "/1.safetensors", "", "..", "a/b"] {
        let tricky = error(&format!(r#"{{"m.a":"{name}"}}"#));
        assert!(matches!(tricky, E::FileName { .. }), "{name:?}");
    }
    assert!(matches!(error("[]"), E::Json { .. }));
    // Two indices: which one is the checkpoint?
    write("y.safetensors.index.json", b"{}");
    assert!(matches!(Checkpoint::open(folder.path(), None), Err(ImportError::Ambiguous { .. })));
}

#[test]
fn a_folder_without_a_checkpoint_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Checkpoint::open(folder.path(), None);
    assert!(matches!(open(), Err(ImportError::NoCheckpoint { .. })));
    let one = safetensors(&header(&[("a", "U8", "[3]", 0, 3)]), 3);
    fs::write(folder.path().join("model.safetensors"), one).unwrap();
    assert_eq!(open().unwrap().tensors().len(), 1);
    assert!(matches!(
        Checkpoint::open(&folder.path().join("none"), None),
        Err(ImportError::Io { .. })
    ));
}

#[test]
fn verified_entries_of_two_readers_add_up() {
    let archive = Archive::open(source(&gradient())).unwrap();
    let (mut a, mut b) = (Verified::none(13), Verified::none(13));
    assert_eq!(archive.entries().len(), 13);
    a.insert(0);
    b.insert(12);
    a.merge(&b);
    assert!(a.contains(0) && a.contains(12) && !a.contains(5));
    archive.verify_rest(&mut a).unwrap();
    assert!(a.contains(5));
}
