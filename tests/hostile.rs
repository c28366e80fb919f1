//! Changed inputs for every reader of outside bytes: no panic, no memory and no time beyond a bound.
//!
//! `GRADLEDGER_HOSTILE_ROUNDS` says how many of each, `GRADLEDGER_HOSTILE_SEED` from which seed on; a
//! failure prints its own. `GRADLEDGER_FUZZ_CORPUS=DIR` writes the good inputs there, a directory a
//! reader, for the fuzz target in `fuzz/`, which feeds the same readers.

#![allow(clippy::unwrap_used)] // Clippy's own exception for tests leaves out their helpers.

#[path = "common/archives.rs"]
mod archives;
mod common;
#[allow(dead_code)]
#[path = "common/memory.rs"]
mod memory;
#[path = "common/readers.rs"]
mod readers;
#[path = "common/seeds.rs"]
mod seeds;

use std::{
    cell::RefCell,
    fs,
    io::Write as _,
    panic::{self, AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Mutex, MutexGuard, Once, PoisonError},
    time::{Duration, Instant},
};

use common::Random;
use parquet::file::{
    metadata::{ParquetMetaDataReader, ParquetMetaDataWriter, RowGroupMetaData},
    writer::TrackedWrite,
};
use peak_alloc::PeakAlloc;
use readers::{READERS, Reader};

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// What reading may take beside its input: a run of 1 MiB, the decoder's buffers, small things. As
/// `schema/bounds.md` says.
const MEMORY_BYTES_MAX: usize = 2 << 20;

/// And for each byte of input: an empty dict of a pickle is spelled in one byte.
const MEMORY_PER_BYTE_MAX: usize = 128;

/// One input of some ten kilobytes, in a debug build on a busy machine.
const TIME_MAX: Duration = Duration::from_secs(2);

thread_local! {
    /// What a reader's panic said; none while no reader runs.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The allocator counts for the whole process: one test at a time.
///
/// The Parquet decoder's panics are turned into errors within the readers. Their backtraces would be what
/// takes most memory here, so none is made while one runs.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let otherwise = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let said = |said: &RefCell<_>| match &mut *said.borrow_mut() {
                Some(said) => *said = info.to_string(),
                None => otherwise(info),
            };
            SAID.with(said);
        }));
    });
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(name: &str, otherwise: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// What one reading took.
#[derive(Clone, Copy, Default)]
struct Cost {
    bytes: usize,
    time: Duration,
}

/// Reads `input`; panics if the reader does, or goes beyond its bounds.
fn read(&(name, read): &Reader, input: &[u8], whence: &str) -> (readers::Outcome, Cost) {
    ALLOCATED.reset_peak_usage();
    let before = ALLOCATED.current_usage();
    let started = Instant::now();
    SAID.set(Some(String::new()));
    let outcome = catch_unwind(AssertUnwindSafe(|| read(input)));
    let said = SAID.take().unwrap_or_default();
    let time = started.elapsed();
    let bytes = ALLOCATED.peak_usage().saturating_sub(before);
    let outcome = outcome.unwrap_or_else(|_| panic!("{name} panics: {whence}: {said}"));
    let most = MEMORY_BYTES_MAX + MEMORY_PER_BYTE_MAX * input.len();
    assert!(bytes <= most, "{name} took {bytes} bytes for {}: {whence}", input.len());
    assert!(time <= TIME_MAX, "{name} took {time:?}: {whence}");
    (outcome, Cost { bytes, time })
}

/// Numbers that a length or a count is set to.
const EDGES: [u64; 10] =
    [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 53, i64::MAX as u64, u64::MAX];

/// A changed copy: flipped bytes, a cut, a splice of two inputs, or a number that is another.
fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let pick = |random: &mut Random| &seeds[random.below(seeds.len() as u64) as usize];
    let mut bytes = pick(random).clone();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len() as u64 + 1) as usize;
        match random.below(8) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            2 if at < bytes.len() => bytes[at] = random.next() as u8,
            3 => bytes.truncate(at),
            4 => {
                let other = pick(random);
                let from = random.below(other.len() as u64 + 1) as usize;
                bytes.splice(at.., other[from..].iter().copied());
            }
            5 => {
                // A run once more, or cut out.
                let end = (at + random.below(64) as usize).min(bytes.len());
                let run = bytes[at..end].to_vec();
                let again = if random.below(2) == 0 { [run.clone(), run].concat() } else { vec![] };
                bytes.splice(at..end, again);
            }
            _ => set_number(random, &mut bytes, at),
        }
    }
    bytes
}

/// Makes a number of 1, 2, 4 or 8 bytes, or the decimal digits there, another one.
fn set_number(random: &mut Random, bytes: &mut Vec<u8>, at: usize) {
    let edge = EDGES[random.below(EDGES.len() as u64) as usize];
    let digits = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits > 0 {
        bytes.splice(at..at + digits, edge.to_string().into_bytes());
        return;
    }
    let width = (1 << random.below(4)).min(bytes.len() - at);
    let mut number = [0; 8];
    number[..width].copy_from_slice(&bytes[at..at + width]);
    let old = u64::from_le_bytes(number);
    let new = [edge, old.wrapping_add(1), old.wrapping_sub(1), old << 1];
    let new = new[random.below(4) as usize].to_le_bytes();
    bytes[at..at + width].copy_from_slice(&new[..width]);
}

#[test]
fn every_reader_takes_its_good_inputs() {
    let _alone = alone();
    let seeds = seeds::seeds();
    assert!(seeds.keys().eq(READERS.iter().map(|(name, _)| name)), "each reader has seeds");
    for reader in &READERS {
        for (at, seed) in seeds[reader.0].iter().enumerate() {
            let whence = format!("seed {at}");
            let (outcome, _) = read(reader, seed, &whence);
            assert_eq!(outcome, Ok(()), "{} refuses {whence}", reader.0);
        }
    }
    if let Some(corpus) = std::env::var_os("GRADLEDGER_FUZZ_CORPUS").map(PathBuf::from) {
        for (name, seeds) in seeds {
            fs::create_dir_all(corpus.join(name)).unwrap();
            for (at, seed) in seeds.iter().enumerate() {
                fs::write(corpus.join(name).join(format!("seed-{at}")), seed).unwrap();
            }
        }
    }
}

/// Feeds a reader changed inputs; gives how many it took, and the most that one of them cost.
fn feed(reader: &Reader, seeds: &[Vec<u8>], first_seed: u64, rounds: u64) -> (u64, Cost) {
    let (mut taken, mut most) = (0, Cost::default());
    for round in 0..rounds {
        let seed = first_seed.wrapping_add(round);
        let input = mutate(&mut Random(seed), seeds);
        let again = format!("GRADLEDGER_HOSTILE_ROUNDS=1 GRADLEDGER_HOSTILE_SEED={seed}");
        let (outcome, cost) = read(reader, &input, &again);
        taken += u64::from(outcome.is_ok());
        most = Cost { bytes: most.bytes.max(cost.bytes), time: most.time.max(cost.time) };
    }
    (taken, most)
}

#[test]
fn no_reader_panics_or_goes_beyond_its_bounds() {
    let _alone = alone();
    let rounds = number("GRADLEDGER_HOSTILE_ROUNDS", 1500);
    let seed = number("GRADLEDGER_HOSTILE_SEED", 0x6772_6164);
    println!("{rounds} inputs a reader from seed {seed} on");
    let seeds = seeds::seeds();
    for reader in &READERS {
        let (taken, most) = feed(reader, &seeds[reader.0], seed, rounds);
        let Cost { bytes, time } = most;
        println!("{:>13}: {taken} taken; at most {} KiB, {time:?}", reader.0, bytes >> 10);
        assert!(rounds < 100 || taken < rounds, "{} refuses nothing", reader.0);
    }
}

// What a machine would not hit by chance.

fn refused(name: &str, input: &[u8]) -> String {
    let reader = READERS.iter().find(|(reader, _)| *reader == name).unwrap();
    read(reader, input, "a named test").0.expect_err(name)
}

/// A Parquet file of nothing but this footer.
fn with_footer(footer: &[u8]) -> Vec<u8> {
    [b"PAR1", footer, &(footer.len() as u32).to_le_bytes(), b"PAR1"].concat()
}

#[test]
fn a_footer_that_claims_two_billion_entries_asks_for_no_memory() {
    let _alone = alone();
    // Thrift's compact form: field after field, a list's length as a varint.
    let (version, most) = (&[0x15, 2][..], &[0xff, 0xff, 0xff, 0xff, 7][..]);
    let (schema, rows) = (&[0x19, 0x0c][..], &[0x16, 0][..]);
    let list_of_structs = &[0x19, 0xfc][..];
    let footers = [
        [version, list_of_structs, most].concat(),
        [version, schema, rows, list_of_structs, most].concat(),
        // No row groups, then pairs of key and value.
        [version, schema, rows, &[0x19, 0x0c], list_of_structs, most].concat(),
        // One row group whose columns are so many.
        [version, schema, rows, &[0x19, 0x1c], list_of_structs, most].concat(),
    ];
    for footer in footers {
        for name in ["tensor", "plan", "dispositions", "table"] {
            refused(name, &with_footer(&footer));
        }
    }
    assert!(refused("tensor", &with_footer(&[])).contains("t:"));
}

/// A list of two billion booleans that no reader knows, in Thrift's compact form: Parquet takes no byte
/// for any of them, and so goes on for minutes.
const BOOLEANS: [u8; 7] = [0x99, 0xf1, 0xff, 0xff, 0xff, 0xff, 7];

#[test]
fn two_billion_booleans_in_seven_bytes_take_no_time() {
    let _alone = alone();
    for name in ["tensor", "plan", "dispositions", "table"] {
        let footer = [&[0x15, 2][..], &BOOLEANS, &[0]].concat();
        let error = refused(name, &with_footer(&footer));
        assert!(error.contains("shape"), "{name}: {error}");
    }
    // In the header of a page without bytes.
    let page = [&[0x15, 0, 0x15, 0, 0x15, 0][..], &BOOLEANS, &[0]].concat();
    for name in ["plan", "dispositions"] {
        let seed = &seeds::seeds()[name][0];
        let changed = regrouped(seed, &page, |mut groups, at| {
            let group = groups.remove(0);
            let mut columns = group.columns().to_vec();
            for column in &mut columns {
                let chunk = column.clone().into_builder().set_data_page_offset(at);
                *column = chunk.set_total_compressed_size(page.len() as i64).build().unwrap();
            }
            vec![group.into_builder().set_column_metadata(columns).build().unwrap()]
        });
        let error = refused(name, &changed);
        assert!(error.contains("shape"), "{name}: {error}");
    }
}

/// The Parquet file `file`, its footer written anew with the row groups that `change` makes of its own;
/// `added` stands behind the pages, from the place that `change` is told.
fn regrouped(
    file: &[u8],
    added: &[u8],
    change: impl FnOnce(Vec<RowGroupMetaData>, i64) -> Vec<RowGroupMetaData>,
) -> Vec<u8> {
    let (rest, length) = file[..file.len() - 4].split_last_chunk().unwrap();
    let (pages, footer) = rest.split_at(rest.len() - u32::from_le_bytes(*length) as usize);
    let metadata = ParquetMetaDataReader::decode_metadata(footer).unwrap();
    let groups = change(metadata.row_groups().to_vec(), pages.len() as i64);
    let metadata = metadata.into_builder().set_row_groups(groups).build();
    let mut bytes = Vec::new();
    {
        let mut out = TrackedWrite::new(&mut bytes);
        out.write_all(&[pages, added].concat()).unwrap();
        ParquetMetaDataWriter::new_with_tracked(out, &metadata).finish().unwrap();
    }
    bytes
}

#[test]
fn row_groups_that_share_their_bytes_are_refused() {
    let _alone = alone();
    let seeds = seeds::seeds();
    let again = |file: &[u8], times: usize| {
        let groups = |groups: Vec<_>, _| vec![groups; times].concat();
        regrouped(file, b"", groups)
    };
    for name in ["dispositions", "table"] {
        let seed = &seeds[name][0];
        let reader = READERS.iter().find(|(reader, _)| *reader == name).unwrap();
        assert_eq!(read(reader, &again(seed, 1), "unchanged").0, Ok(()), "{name}");
        let error = refused(name, &again(seed, 2000));
        assert!(error.contains("is free"), "{name}: {error}");
    }
    let [books, two, four] = readers::parts(&seeds["delta"][0]);
    let error = refused("delta", &readers::joined(&[&again(books, 2000), two, four]));
    assert!(error.contains("is free"), "{error}");
}

/// A data page of a list column: one row, of which the levels claim `values` nothings.
fn page_of_nothings(values: u32) -> Vec<u8> {
    let varint = |mut number: u64| {
        let mut bytes = Vec::new();
        while number > 0x7f {
            bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        [bytes, vec![number as u8]].concat()
    };
    // Runs of a length and a value: the first starts a row, all others go on with it, none is there.
    let levels = |runs: &[(u64, u8)]| {
        let runs = runs.iter().map(|(length, value)| [varint(length << 1), vec![*value]].concat());
        let runs = runs.collect::<Vec<_>>().concat();
        [&(runs.len() as u32).to_le_bytes()[..], &runs].concat()
    };
    let more = u64::from(values) - 1;
    let body = [levels(&[(1, 0), (more, 1)]), levels(&[(more + 1, 0)])].concat();
    let (len, values) = (varint(2 * body.len() as u64), varint(2 * u64::from(values)));
    // Type, both lengths; then of a data page values and encodings: PLAIN, RLE, RLE.
    let header = [&[0x15, 0, 0x15][..], &len, &[0x15], &len, &[0x2c, 0x15], &values];
    [&header.concat()[..], &[0x15, 0, 0x15, 6, 0x15, 6, 0, 0], &body].concat()
}

#[test]
fn a_billion_levels_in_some_bytes_are_not_counted_out() {
    let _alone = alone();
    let seed = &seeds::seeds()["plan"][0];
    let counts = |values: u32| {
        let page = page_of_nothings(values);
        regrouped(seed, &page.clone(), |mut groups, at| {
            let group = groups.remove(0);
            let mut columns = group.columns().to_vec();
            let list = columns.iter().position(|c| c.column_descr().max_rep_level() > 0).unwrap();
            let chunk = columns[list].clone().into_builder();
            let chunk = chunk.set_data_page_offset(at).set_total_compressed_size(page.len() as i64);
            columns[list] = chunk.build().unwrap();
            vec![group.into_builder().set_column_metadata(columns).build().unwrap()]
        })
    };
    for values in [3, 1 << 20, (1 << 30) - 1] {
        let error = refused("plan", &counts(values));
        assert!(error.contains("column counts"), "{values}: {error}");
    }
}

#[test]
fn an_index_that_is_longer_than_its_pages_is_not_read() {
    let _alone = alone();
    let seed = &seeds::seeds()["tensor"][0];
    // Twelve megabytes that each row group could name anew.
    let added = vec![0; 12 << 20];
    let file = regrouped(seed, &added, |mut groups, at| {
        let group = groups.remove(0);
        let chunk = group.column(0).clone().into_builder();
        let chunk = chunk.set_offset_index_offset(Some(at));
        let chunk = chunk.set_offset_index_length(Some(added.len() as i32)).build().unwrap();
        vec![group.into_builder().set_column_metadata(vec![chunk]).build().unwrap()]
    });
    let error = refused("tensor", &file);
    assert!(error.contains("no offset index"), "{error}");
}

#[test]
fn chunks_of_a_checkpoint_that_share_their_bytes_are_refused() {
    let _alone = alone();
    let seeds = seeds::seeds();
    let [metadata, first, second] = readers::parts(&seeds["dcp"][0]);
    let again = |metadata: &[u8]| readers::joined(&[metadata, first, second]);
    // Both ranks' chunks are said to lie in the second rank's file, which is the longer one.
    let name = b"__0_0.distcp";
    let places: Vec<usize> = (0..metadata.len() - name.len())
        .filter(|&at| &metadata[at..at + name.len()] == name)
        .collect();
    assert!(!places.is_empty());
    let mut changed = metadata.to_vec();
    places.iter().for_each(|at| changed[at + 2] = b'1');
    let error = refused("dcp", &again(&changed));
    assert!(error.contains("another takes, too"), "{error}");
}

#[test]
fn nesting_ends_before_the_stack_does() {
    let _alone = alone();
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let deep = [open.repeat(30_000), "0".to_owned(), close.repeat(30_000)].concat();
        for name in ["json", "record", "keyfile", "peers", "open_round", "retention"] {
            refused(name, deep.as_bytes());
        }
    }
    let tables = format!("a{} = 1", ".a".repeat(30_000));
    let inline = format!("a = {}1{}", "{a = ".repeat(30_000), "}".repeat(30_000));
    let lists = format!("a = {}{}", "[".repeat(30_000), "]".repeat(30_000));
    for text in [tables, inline, lists] {
        refused("config", text.as_bytes());
    }
}

#[test]
fn a_long_address_takes_no_time() {
    let _alone = alone();
    // Base 58 is quadratic in its length.
    let address = "z".repeat(60_000);
    refused("keyfile", address.as_bytes());
    let json = format!(r#"{{"secretSeed":"0x{}","ss58Address":"{address}"}}"#, "01".repeat(32));
    assert!(refused("keyfile", json.as_bytes()).contains("not an address"));
}

#[test]
fn a_member_of_gibibytes_is_not_made_room_for() {
    let _alone = alone();
    let seeds = seeds::seeds();
    let [key, bundle] = readers::parts(&seeds["bundle"][0]);
    let mut header = bundle[..512].to_vec();
    header[124..136].copy_from_slice(b"77777777777\0");
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let long = [&header[..], &bundle[512..]].concat();
    refused("bundle", &readers::joined(&[key, &long]));
}

#[test]
fn names_that_lead_elsewhere_open_nothing_there() {
    let _alone = alone();
    let (index, shard) = (|name: &str| format!(r#"{{"weight_map":{{"a":"{name}"}}}}"#), b"x");
    let tricks =
        ["../a", "/etc/passwd", "..", ".", "", ".a", "a/../b", "a\\\\b", "c:a", "a\\u0000"];
    for name in tricks {
        let input = readers::joined(&[index(name).as_bytes(), shard, shard]);
        let error = refused("shards", &input);
        assert!(error.contains("not a plain name"), "{name:?}: {error}");
    }
    for path in ["tile/../000", "/tile/0/000", "tile/0/../000", "tile/entries/x000", "tile//000"] {
        refused("tile", &readers::joined(&[path.as_bytes(), &[0; 32]]));
    }
}

#[test]
fn what_is_spelled_in_a_byte_takes_no_more_than_was_said() {
    let _alone = alone();
    let pickle = |op: u8| [&b"\x80\x02"[..], &[op; 1 << 18], b"."].concat();
    for op in *b"N])}(" {
        refused("pickle", &pickle(op));
    }
    // Many digits of one-digit numbers, empty lists, empty objects.
    for item in ["0", "[]", "{}", "\"\""] {
        let list = format!("[{}]", vec![item; 1 << 16].join(","));
        let reader = READERS.iter().find(|(name, _)| *name == "json").unwrap();
        assert_eq!(read(reader, list.as_bytes(), item).0, Ok(()));
        refused("record", list.as_bytes());
        refused("retention", list.as_bytes());
    }
    let members: Vec<String> = (0..1 << 14).map(|n| format!(r#""{n}":{{}}"#)).collect();
    let header = format!("{{{}}}", members.join(","));
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    refused("safetensors", &file);
    let tables: String = (0..1 << 14).map(|n| format!("[a{n}]\n")).collect();
    refused("config", tables.as_bytes());
}

#[test]
fn a_policy_of_many_names_takes_no_time() {
    let _alone = alone();
    let seeds = seeds::seeds();
    let [policy, note] = readers::parts(&seeds["policy"][0]);
    let witness = std::str::from_utf8(policy).unwrap().lines().find(|l| l.starts_with("witness"));
    let many = witness.unwrap().to_owned() + "\n";
    let many = many.repeat(60_000 / many.len());
    refused("policy", &readers::joined(&[many.as_bytes(), note]));
}
