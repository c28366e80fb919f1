//! Tables to query, written after a round is sealed: who contributed what, who was refused and why,
//! who sent the same.
//!
//! Trusted for nothing and read by nothing here: derived from logs and segments, and made again when
//! they are missing or behind. Layout and columns: `schema/tables.md`.
//!
//! A file a round and table; once a hundred rounds are behind, their files become one.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

mod overlap;
mod rows;
mod schema;

use crate::{
    store::{
        StoreError,
        segment::query::{self, Cell},
    },
    types::submission::Miner,
};

pub use self::rows::Share;
use self::{
    overlap::overlaps,
    rows::RoundRows,
    schema::{CONTRIBUTIONS, MINERS, ROUND_TABLES},
};
use super::{Ledger, LedgerError, writer::LedgerWriter};

/// Rounds of a partition: `hundred=N` holds the rounds from 100 N on.
const PARTITION_ROUNDS: u64 = 100;

/// The file that a partition's others become.
const MERGED: &str = "all.parquet";

/// Writes the rows of every sealed round that the tables lack, and merges what is complete.
///
/// # Errors
///
/// [`LedgerError`] if the disk refuses, or a round's dispositions are missing; what was written stays.
pub fn update(writer: &LedgerWriter) -> Result<(), LedgerError> {
    let ledger = writer.ledger();
    let mut partitions: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (position, sealed) in ledger.sealed().iter().enumerate() {
        partitions.entry(sealed.record.round / PARTITION_ROUNDS).or_default().push(position);
    }
    let last = partitions.keys().next_back().copied();
    for (&hundred, positions) in &partitions {
        let partition = Partition { ledger, hundred, positions };
        partition.write_missing()?;
        if Some(hundred) != last {
            partition.merge()?;
        }
    }
    Ok(())
}

/// What the table of contributions has of the sealed round at `position`, each row by its columns.
///
/// # Errors
///
/// [`LedgerError`] if the round's dispositions are missing.
pub fn contributions(
    ledger: &Ledger,
    position: usize,
) -> Result<Vec<BTreeMap<&'static str, Cell>>, LedgerError> {
    let rows = RoundRows::of(ledger, position)?.of_table(&CONTRIBUTIONS);
    let names = || CONTRIBUTIONS.columns.iter().map(|column| column.name);
    Ok(rows.into_iter().map(|row| names().zip(row).collect()).collect())
}

/// How alike two accepted deltas of a round are.
#[derive(Clone, Copy, Debug)]
pub struct Likeness {
    /// Whose they are, in ledger order.
    pub miners: [Miner; 2],
    /// Share of the positions that both sent.
    pub share_common: f64,
    /// Of their values; none if one is zero.
    pub cosine: Option<f64>,
}

/// What each miner gave to a round, as in the table `contributions`.
///
/// # Errors
///
/// [`LedgerError`] if there is no such round, or its dispositions are missing.
pub fn shares(ledger: &Ledger, round: u64) -> Result<Vec<Share>, LedgerError> {
    Ok(RoundRows::of(ledger, ledger.position(round)?)?.shares())
}

/// How alike the deltas of each two miners of a round are, as in the table `overlap`.
///
/// # Errors
///
/// As [`shares`], or if a delta is missing.
pub fn likenesses(ledger: &Ledger, round: u64) -> Result<Vec<Likeness>, LedgerError> {
    let rows = RoundRows::of(ledger, ledger.position(round)?)?;
    let (miners, deltas): (Vec<Miner>, Vec<_>) = rows.deltas().into_iter().unzip();
    let found = overlaps(ledger.place(), &ledger.layout()?, &deltas).map_err(StoreError::from)?;
    let likeness = |pair: &overlap::Pair| Likeness {
        miners: [miners[pair.a], miners[pair.b]],
        share_common: found.share(pair),
        cosine: pair.cosine,
    };
    Ok(found.pairs.iter().map(likeness).collect())
}

/// A hundred rounds, those of them that are sealed.
struct Partition<'a> {
    ledger: &'a Ledger,
    hundred: u64,
    positions: &'a [usize],
}

impl Partition<'_> {
    fn dir(&self, table: &str) -> PathBuf {
        self.ledger.place().tables().join(table).join(format!("hundred={}", self.hundred))
    }

    fn round(&self, position: usize) -> u64 {
        self.ledger.sealed()[position].record.round
    }

    /// The names in a table's directory.
    fn names(&self, table: &str) -> Result<BTreeSet<PathBuf>, LedgerError> {
        let (files, dir) = (&self.ledger.place().files, self.dir(table));
        let io = |source| StoreError::Io { path: dir.clone(), source };
        if !files.exists(&dir).map_err(io)? {
            return Ok(BTreeSet::new());
        }
        Ok(files.list(&dir).map_err(io)?.into_iter().collect())
    }

    fn write_missing(&self) -> Result<(), LedgerError> {
        let mut missing: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (table, schema) in ROUND_TABLES.iter().enumerate() {
            let names = self.names(schema.name)?;
            if names.contains(Path::new(MERGED)) {
                continue;
            }
            for &position in self.positions {
                if !names.contains(&file_name(self.round(position))) {
                    missing.entry(position).or_default().push(table);
                }
            }
        }
        for (&position, tables) in &missing {
            let rows = RoundRows::of(self.ledger, position)?;
            for &table in tables {
                let schema = &ROUND_TABLES[table];
                let to = self.dir(schema.name).join(file_name(self.round(position)));
                self.put(&to, |tmp| {
                    query::write(&*self.ledger.place().files, tmp, schema, &rows.of_table(schema))
                })?;
            }
        }
        if missing.is_empty() && !self.names(MINERS.name)?.is_empty() {
            return Ok(());
        }
        let miners = rows::miners(self.ledger, self.positions)?;
        let to = self.dir(MINERS.name).join(MERGED);
        self.put(&to, |tmp| query::write(&*self.ledger.place().files, tmp, &MINERS, &miners))
    }

    /// Makes one file of those of each table. Readers may see both for a moment.
    fn merge(&self) -> Result<(), LedgerError> {
        let files = &*self.ledger.place().files;
        for schema in &ROUND_TABLES {
            let dir = self.dir(schema.name);
            let parts = self.names(schema.name)?;
            if !parts.contains(Path::new(MERGED)) {
                let sources = self.positions.iter().map(|&at| dir.join(file_name(self.round(at))));
                let sources: Vec<PathBuf> = sources.collect();
                self.put(&dir.join(MERGED), |tmp| query::merge(files, tmp, schema, &sources))?;
                // Its name has to last before the files that it stands for go.
                files
                    .sync_dir(&dir)
                    .map_err(|source| StoreError::Io { path: dir.clone(), source })?;
            }
            for part in parts.iter().filter(|name| name.as_path() != Path::new(MERGED)) {
                let path = dir.join(part);
                files.remove(&path).map_err(|source| StoreError::Io { path, source })?;
            }
        }
        Ok(())
    }

    /// Writes a file elsewhere and renames it to its place. Its bytes are synced, its name is not:
    /// a file that is gone after a crash is made again.
    fn put(
        &self,
        to: &Path,
        write: impl FnOnce(&Path) -> Result<(), crate::store::segment::SegmentError>,
    ) -> Result<(), LedgerError> {
        let place = self.ledger.place();
        let io = |source| StoreError::Io { path: to.to_owned(), source };
        let tmp = place.tmp().join("table.parquet");
        write(&tmp).map_err(StoreError::from)?;
        place.files.create_dir_all(to.parent().unwrap_or(&place.root)).map_err(io)?;
        Ok(place.files.rename(&tmp, to).map_err(io)?)
    }
}

fn file_name(round: u64) -> PathBuf {
    format!("round-{round}.parquet").into()
}
