//! Tables to query: what they say of sealed rounds, and that losing them costs nothing.

#![allow(clippy::unwrap_used)] // Helpers of tests, too.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use common::{
    Random,
    gradient::Gradient,
    model::{Delta, Model, Run, all_files, rejected},
};
use gradledger::types::{digest::Digest, rule::Dialect};
use parquet::{
    file::{reader::FileReader as _, serialized_reader::SerializedFileReader},
    record::Field,
};

/// A row by column.
type Row = BTreeMap<String, Field>;

const ROUND_TABLES: [&str; 5] =
    ["rounds", "contributions", "contribution_tensors", "checkpoints", "overlap"];

/// All rows of a table, files in the order of their names.
fn rows(run: &Run, table: &str) -> Vec<Row> {
    let mut files = all_files(&run.path().join("tables").join(table));
    files.sort_by_key(|path| (hundred(path), path.clone()));
    let mut rows = Vec::new();
    for path in files {
        let reader = SerializedFileReader::new(fs::File::open(&path).unwrap()).unwrap();
        for row in reader.get_row_iter(None).unwrap() {
            rows.push(row.unwrap().into_columns().into_iter().collect());
        }
    }
    rows
}

fn hundred(path: &Path) -> u64 {
    let dir = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
    dir.strip_prefix("hundred=").unwrap().parse().unwrap()
}

fn text(row: &Row, column: &str) -> Option<String> {
    match &row[column] {
        Field::Str(text) => Some(text.clone()),
        Field::Null => None,
        other => panic!("{column} is {other:?}"),
    }
}

fn int(row: &Row, column: &str) -> Option<i64> {
    match &row[column] {
        Field::Long(value) => Some(*value),
        Field::Null => None,
        other => panic!("{column} is {other:?}"),
    }
}

fn double(row: &Row, column: &str) -> Option<f64> {
    match &row[column] {
        Field::Double(value) => Some(*value),
        Field::Null => None,
        other => panic!("{column} is {other:?}"),
    }
}

/// A run of Templar's kind and a source of deltas.
struct Rounds {
    run: Run,
    model: Model,
    random: Random,
}

impl Rounds {
    fn new() -> Self {
        let model = Model::small(Dialect::Templar);
        Self { run: Run::new(&model), model, random: Random(21) }
    }

    fn delta(&mut self) -> Delta {
        self.model.delta(&mut self.random)
    }

    fn put(&self, round: u64, uid: u16, delta: &Delta) {
        self.run.put(round, uid, &Gradient::of(&self.model, round, delta).write());
    }

    /// Seals a round of two miners.
    fn round(&mut self, round: u64) {
        for uid in [3, 7] {
            let delta = self.delta();
            self.put(round, uid, &delta);
        }
        self.run.import(round, &[3, 7], &[]);
        self.run.seal(round);
    }

    fn files(&self) -> Vec<PathBuf> {
        let tables = self.run.path().join("tables");
        let within = |path: PathBuf| path.strip_prefix(&tables).unwrap().to_owned();
        all_files(&tables).into_iter().map(within).collect()
    }

    fn digests(&self) -> BTreeMap<PathBuf, Digest> {
        let tables = self.run.path().join("tables");
        let digest = |path: PathBuf| {
            let bytes = fs::read(tables.join(&path)).unwrap();
            (path, Digest::of(&bytes))
        };
        self.files().into_iter().map(digest).collect()
    }
}

#[test]
fn tables_say_who_contributed_what_and_who_was_refused() {
    let mut rounds = Rounds::new();
    let (copied, own) = (rounds.delta(), rounds.delta());
    rounds.put(5, 3, &copied);
    rounds.put(5, 9, &copied);
    rounds.put(5, 7, &own);
    let mut bad = Gradient::of(&rounds.model, 5, &own);
    bad.window = Some(6);
    rounds.run.put(5, 8, &bad.write());
    rounds.run.import(5, &[3, 7, 8, 9, 11], &[]);
    let report = rounds.run.seal(5);
    assert_eq!(rejected(&report), [(8, "wrong-round".to_owned()), (11, "absent".to_owned())]);

    let found = rows(&rounds.run, "rounds");
    assert_eq!(found.len(), 1);
    let counts = ["round", "listed", "accepted", "rejected", "absent", "skipped_tensors"];
    let counts: Vec<_> = counts.iter().map(|c| int(&found[0], c).unwrap()).collect();
    assert_eq!(counts, [5, 5, 3, 1, 1, 0]);
    assert_eq!(text(&found[0], "record"), Some(report.record.to_hex()));
    assert_eq!(text(&found[0], "next_root"), Some(report.next.root.to_hex()));

    let contributions = rows(&rounds.run, "contributions");
    let by: BTreeMap<String, &Row> =
        contributions.iter().map(|row| (text(row, "miner").unwrap(), row)).collect();
    assert_eq!(by.keys().collect::<Vec<_>>(), ["11", "3", "7", "8", "9"]);
    let disposition = |miner: &str| text(by[miner], "disposition").unwrap();
    assert_eq!(
        ["3", "7", "8", "9", "11"].map(disposition),
        ["accepted", "accepted", "rejected", "accepted", "absent"]
    );
    assert_eq!(text(by["8"], "reason").as_deref(), Some("wrong-round"));
    assert_eq!(text(by["8"], "found").as_deref(), Some("6"));
    assert_eq!((text(by["11"], "delta_root"), double(by["11"], "norm")), (None, None));
    assert_eq!(text(by["3"], "delta_root"), text(by["9"], "delta_root"));
    assert_eq!(text(by["3"], "file").as_deref(), Some("gradient-5-3-v2.1.28.pt"));
    let shares: f64 = contributions.iter().filter_map(|row| double(row, "share")).sum();
    assert!((shares - 1.0).abs() < 1e-12, "{shares}");

    // Norms by hand, from what was sent.
    let sent = |delta: &Delta| -> f64 {
        let squares = delta.values().flat_map(|sent| {
            let value = |code: &u8| f64::from(sent.lookup[usize::from(*code)] + sent.shift);
            sent.codes.iter().flatten().map(move |code| value(code).powi(2))
        });
        squares.sum::<f64>().sqrt()
    };
    for (miner, delta) in [("3", &copied), ("9", &copied), ("7", &own)] {
        let (norm, expected) = (double(by[miner], "norm").unwrap(), sent(delta));
        assert!((norm - expected).abs() < 1e-5 * expected, "{miner}: {norm} {expected}");
        let folded = double(by[miner], "norm_folded").unwrap();
        assert!(folded > 0.0 && folded <= norm);
    }

    let tensors = rows(&rounds.run, "contribution_tensors");
    assert_eq!(tensors.len(), 3 * rounds.model.folded().len());
    for row in &tensors {
        let miner = text(row, "miner").unwrap();
        let delta = if miner == "7" { &own } else { &copied };
        let codes = &delta[&text(row, "tensor").unwrap()].codes;
        let count = |code: i64| {
            let all = codes.iter().flatten();
            Field::Long(all.filter(|&&c| i64::from(c) == code).count() as i64)
        };
        let Field::ListInternal(counts) = &row["code_counts"] else { panic!("{row:?}") };
        assert_eq!(counts.elements(), (0..4).map(count).collect::<Vec<_>>());
        assert_eq!(row["skipped"], Field::Bool(false));
    }

    let overlap = rows(&rounds.run, "overlap");
    let pair = |a: &str, b: &str| {
        let is = |row: &&Row| {
            (text(row, "miner_a").as_deref(), text(row, "miner_b").as_deref()) == (Some(a), Some(b))
        };
        overlap.iter().find(is).unwrap()
    };
    assert_eq!(overlap.len(), 3);
    let copy = pair("3", "9");
    assert_eq!(copy["same_delta"], Field::Bool(true));
    assert_eq!(double(copy, "share_common"), Some(1.0));
    assert!((double(copy, "cosine").unwrap() - 1.0).abs() < 1e-12);
    // All blocks are few: this is exact.
    let honest = pair("3", "7");
    assert_eq!(honest["same_delta"], Field::Bool(false));
    let (mut common, mut dot) = (0, 0.0);
    for (name, ours) in &copied {
        let theirs = &own[name];
        for block in 0..ours.index.len() {
            for (at, p) in ours.index[block].iter().enumerate() {
                let Some(b) = theirs.index[block].iter().position(|q| q == p) else { continue };
                common += 1;
                let value = |sent: &common::model::Sent, at: usize| {
                    let code = usize::from(sent.codes[block][at]);
                    f64::from(sent.lookup[code] + sent.shift)
                };
                dot += value(ours, at) * value(theirs, b);
            }
        }
    }
    assert_eq!(int(honest, "positions_common"), Some(common));
    assert_eq!(int(honest, "blocks_sampled"), int(honest, "blocks"));
    let cosine = dot / (sent(&copied) * sent(&own));
    assert!((double(honest, "cosine").unwrap() - cosine).abs() < 1e-12);

    let checkpoints = rows(&rounds.run, "checkpoints");
    let of: Vec<_> = checkpoints.iter().map(|row| int(row, "round")).collect();
    assert_eq!(of, [None, Some(5)]);
    assert_eq!(text(&checkpoints[1], "base_root"), text(&checkpoints[0], "root"));
    let miners = rows(&rounds.run, "miners");
    assert_eq!(miners.len(), 5);
    assert_eq!(int(&miners[0], "accepted"), Some(1), "{miners:?}");
}

#[test]
fn tables_that_are_missing_are_made_again() {
    let mut rounds = Rounds::new();
    for round in [1, 2, 3] {
        rounds.round(round);
    }
    let before = rounds.digests();
    assert_eq!(before.len(), 5 * 3 + 1);
    let tables = rounds.run.path().join("tables");
    fs::remove_dir_all(tables.join("overlap")).unwrap();
    fs::remove_file(tables.join("contributions/hundred=0/round-2.parquet")).unwrap();
    rounds.round(4);
    let after = rounds.digests();
    for (path, digest) in &before {
        let same = after[path] == *digest;
        // Miners are summed over the hundred.
        assert_eq!(same, !path.starts_with("miners"), "{}", path.display());
    }
    fs::remove_dir_all(&tables).unwrap();
    rounds.round(5);
    for (path, digest) in after.iter().filter(|(path, _)| !path.starts_with("miners")) {
        assert_eq!(rounds.digests()[path], *digest, "{}", path.display());
    }
}

#[test]
fn a_hundred_that_is_behind_becomes_one_file_a_table() {
    let mut rounds = Rounds::new();
    let mut before = BTreeMap::new();
    for round in [97, 98, 205] {
        for table in ROUND_TABLES {
            before.insert(table, rows_if_any(&rounds.run, table));
        }
        rounds.round(round);
    }
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    for table in ROUND_TABLES {
        let files: Vec<String> =
            rounds.files().iter().filter(|p| p.starts_with(table)).map(name).collect();
        assert_eq!(files, ["all.parquet", "round-205.parquet"], "{table}");
        let rows = rows(&rounds.run, table);
        assert_eq!(rows[..before[table].len()], before[table][..], "{table}");
        assert!(rows.len() > before[table].len());
    }
    let miners = rows(&rounds.run, "miners");
    let spans: Vec<_> =
        miners.iter().map(|m| (int(m, "first_round"), int(m, "last_round"))).collect();
    assert_eq!(
        spans,
        [(97, 98), (97, 98), (205, 205), (205, 205)].map(|(a, b)| (Some(a), Some(b)))
    );
    // A part that a crash left beside the merged file is removed.
    let tables = rounds.run.path().join("tables");
    let left = tables.join("rounds/hundred=0/round-97.parquet");
    fs::write(&left, b"left").unwrap();
    rounds.round(206);
    assert!(!left.exists());
}

/// The rows after the last round but one.
fn rows_if_any(run: &Run, table: &str) -> Vec<Row> {
    if run.path().join("tables").join(table).exists() { rows(run, table) } else { Vec::new() }
}

#[test]
fn a_round_is_sealed_even_where_no_table_can_be_written() {
    let mut rounds = Rounds::new();
    fs::write(rounds.run.path().join("tables"), b"in the way").unwrap();
    rounds.round(1);
    fs::remove_file(rounds.run.path().join("tables")).unwrap();
    rounds.round(2);
    assert_eq!(rows(&rounds.run, "rounds").len(), 2);
}
