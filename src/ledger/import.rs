//! Importing a round of Templar's files: listed and reserve peers' files become statements in the
//! submissions log, their deltas segments, what is refused goes to quarantine.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use gradledger_kernels::sha256::Sha256;
use rayon::prelude::*;
use serde::Serialize;

use crate::{
    codec::layout::Layout,
    import::{
        source::{FileSource, Source},
        templar::{AggregatorFile, GradientFile, TemplarError},
        torch::TorchError,
        zip::{Archive, Verified},
    },
    intake::{
        admit::{Admission, Expected, Opened, admit},
        dispose,
    },
    store::{StoreError, open_round::OpenRound, quarantine},
    types::{
        digest::Digest,
        json,
        manifest::ManifestId,
        progress::{Progress, Silent},
        record::ACCEPTED_MAX,
        refusal::Code,
        rule::SparseMeanSgd,
        submission::{Fetched, Miner, Outcome, Submission},
    },
};

use super::{
    Ledger, LedgerError, fsck::hash_delta, seal::dispose_round, thread_pool, writer::LedgerWriter,
};

/// Bytes of a file that are hashed at once.
const CHUNK_BYTES: u64 = 4 << 20;

/// More than one, since a reader waits while its delta is synced.
const READERS_PER_CORE: usize = 2;

/// Where a round's deltas lie.
#[derive(Clone, Debug)]
pub enum Gradients<'a> {
    /// A directory with one `gradient-W-UID-vV.pt` a miner.
    Directory(&'a Path),
    /// A file that holds all of them, as Templar's leading validator uploads it.
    Aggregator(&'a Path),
    /// Nowhere: everybody who is listed is absent.
    Absent,
}

/// Whose files to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peers {
    /// Expected.
    pub listed: Vec<u16>,
    /// To take the places of the missing, in this order.
    pub reserve: Vec<u16>,
}

/// Peers or files that do not make a round.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum PeersError {
    #[error("round {round} is beyond 2^53 - 1, the largest number of a record")]
    RoundSize { round: u64 },
    #[error("no peers are given: --peers 7,3,41, --peers-file JSON, or --aggregator FILE")]
    None,
    #[error("uid {uid} stands twice in the {list} list")]
    Twice { uid: u16, list: &'static str },
    #[error("{count} peers are listed; a round takes at most {ACCEPTED_MAX}")]
    TooMany { count: usize },
    #[error("{path}: {source}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("two files of uid {uid} for round {round}: {first} and {second}; remove one")]
    TwoFiles { uid: u16, round: u64, first: String, second: String },
    #[error("the file name {name:?} cannot stand in a record; rename the file")]
    FileName { name: String },
    #[error(
        "{path} has no file of a listed peer: looked for gradient-{round}-UID-vVERSION.pt; if nobody \
         sent one, give --all-absent in its place"
    )]
    NoFiles { path: PathBuf, round: u64 },
    #[error("{path}: {source}")]
    Aggregator { path: PathBuf, source: TemplarError },
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
}

/// What an import came to.
#[derive(Debug, Serialize)]
pub struct ImportReport {
    /// The round, open now.
    pub round: u64,
    /// What became of each file, in the order of the submissions log.
    pub files: Vec<ImportedFile>,
    /// Listed peers without a file.
    pub absent: Vec<u16>,
    /// Files of others, left alone.
    pub others: Vec<String>,
}

/// What became of one file.
#[derive(Debug, Serialize)]
pub struct ImportedFile {
    /// Whose.
    pub uid: u16,
    /// Its base name.
    pub file: String,
    /// Index in the submissions log.
    pub index: u64,
    /// `delta`, `refused` or `unread`.
    pub outcome: &'static str,
    /// Why it was refused.
    pub reason: Option<String>,
}

/// A miner's file, or its part of an aggregator.
struct Found {
    uid: u16,
    file: String,
    path: PathBuf,
}

/// Imports round `round`.
///
/// Without `peers` an aggregator's own list is used. The same import again appends nothing.
///
/// # Errors
///
/// [`PeersError`], [`LedgerError::RoundSealed`], [`LedgerError::RoundOrder`], [`LedgerError::RoundOpen`], or what the disk gives.
pub fn import_templar(
    writer: &mut LedgerWriter,
    round: u64,
    gradients: &Gradients<'_>,
    peers: Option<Peers>,
    progress: &dyn Progress,
) -> Result<ImportReport, LedgerError> {
    may_open(writer.ledger(), round)?;
    let mut import = Import::new(writer.ledger(), round, gradients, peers)?;
    let open = OpenRound {
        round,
        listed: import.peers.listed.iter().copied().map(Miner::Uid).collect(),
        reserve: import.peers.reserve.iter().copied().map(Miner::Uid).collect(),
    };
    open.save(writer.ledger().place())?;
    progress.begin("import", import.source_bytes()?);
    let (listed, reserve) = (import.peers.listed.clone(), import.peers.reserve.clone());
    import.take(writer, &listed, progress)?;
    let good = good_listed(writer.ledger(), &open)?;
    let missing = listed.len() - good.len();
    let taken: Vec<u16> =
        reserve.iter().copied().filter(|uid| !good.contains(uid)).take(missing).collect();
    import.take(writer, &taken, progress)?;
    let unused: Vec<u16> =
        reserve.into_iter().filter(|uid| !good.contains(uid) && !taken.contains(uid)).collect();
    import.leave(writer, &unused, progress)?;
    progress.end();
    Ok(import.report(writer))
}

/// The listed miners whose deltas will count: what the seal will say, so that both take the same
/// reserves.
fn good_listed(ledger: &Ledger, open: &OpenRound) -> Result<BTreeSet<u16>, LedgerError> {
    let dispositions = dispose_round(ledger, open.round)?.0.dispositions;
    let accepted = dispose::accepted(&dispositions).into_iter().map(|(_, _, miner)| miner);
    Ok(accepted.filter(|m| open.listed.contains(m)).filter_map(|m| m.uid()).collect())
}

/// Only one round is open at a time, and rounds only go up.
fn may_open(ledger: &Ledger, round: u64) -> Result<(), LedgerError> {
    if round > json::INTEGER_MAX.unsigned_abs() {
        return Err(PeersError::RoundSize { round }.into());
    }
    if ledger.position(round).is_ok() {
        return Err(LedgerError::RoundSealed { round });
    }
    if let Some(last) = ledger.sealed().last().map(|s| s.record.round).filter(|&l| l >= round) {
        return Err(LedgerError::RoundOrder { round, last });
    }
    // The log says which round is open; the file that says so too may be lost.
    let window = ledger.window_start()..ledger.submissions_log().size();
    let submissions = window.end - window.start;
    let stated = ledger.submissions(window)?;
    match stated.iter().map(|(_, s)| s.round()).find(|&open| open != round) {
        Some(open) => Err(LedgerError::RoundOpen { round, open, submissions }),
        None => Ok(()),
    }
}

/// An import under way.
struct Import {
    round: u64,
    base: ManifestId,
    layout: Layout,
    rule: SparseMeanSgd,
    peers: Peers,
    found: BTreeMap<u16, Found>,
    aggregator: Option<Aggregator>,
    others: Vec<String>,
    /// Statements of the open window: what a killed import of the same files had done already.
    stated: Vec<(u64, Fetched)>,
    files: Vec<ImportedFile>,
    /// Held while a file goes to quarantine: two miners may send the same bytes.
    quarantine: Mutex<()>,
}

/// The file of all miners, hashed once.
struct Aggregator {
    file: AggregatorFile,
    sha256: Digest,
}

impl Aggregator {
    /// The part of `uid`, one of the file's.
    fn opened(&self, uid: u16) -> Opened<'_> {
        let (_, delta) = self
            .file
            .deltas()
            .iter()
            .find(|(of, _)| *of == uid)
            .expect("what was found is in the file");
        Opened { archive: self.file.archive(), delta, alone: false }
    }
}

impl Import {
    fn new(
        ledger: &Ledger,
        round: u64,
        gradients: &Gradients<'_>,
        peers: Option<Peers>,
    ) -> Result<Self, LedgerError> {
        let (aggregator, found, others, peers) = match gradients {
            Gradients::Directory(directory) => {
                let peers = peers.ok_or(PeersError::None)?;
                let (found, others) = gradient_files(directory, round, &peers)?;
                (None, found, others, peers)
            }
            Gradients::Absent => {
                (None, BTreeMap::new(), Vec::new(), peers.ok_or(PeersError::None)?)
            }
            Gradients::Aggregator(path) => {
                let (aggregator, found, own) = open_aggregator(path)?;
                let peers = peers.unwrap_or(own);
                let wanted = |uid: &u16| peers.listed.contains(uid) || peers.reserve.contains(uid);
                let (found, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
                    found.into_iter().partition(|(uid, _)| wanted(uid));
                let others = others.keys().map(|uid| format!("uid {uid}")).collect();
                (Some(aggregator), found, others, peers)
            }
        };
        check_peers(&peers)?;
        let window = ledger.window_start()..ledger.submissions_log().size();
        let fetched = |(index, submission)| match submission {
            Submission::Fetched(fetched) => Some((index, fetched)),
            Submission::Signed(_) => None,
        };
        Ok(Self {
            round,
            base: ledger.newest(),
            layout: ledger.layout()?,
            rule: ledger.rule().clone(),
            peers,
            found,
            aggregator,
            others,
            stated: ledger.submissions(window)?.into_iter().filter_map(fetched).collect(),
            files: Vec::new(),
            quarantine: Mutex::new(()),
        })
    }

    fn source_bytes(&self) -> Result<u64, LedgerError> {
        let len = |found: &Found| Ok(open_file(&found.path)?.len());
        match self.found.values().next() {
            Some(all) if self.aggregator.is_some() => len(all),
            _ => self.found.values().map(len).sum(),
        }
    }

    /// Reads the files of `uids` and states each.
    fn take(
        &mut self,
        writer: &mut LedgerWriter,
        uids: &[u16],
        progress: &dyn Progress,
    ) -> Result<(), LedgerError> {
        let mut present: Vec<u16> =
            uids.iter().copied().filter(|uid| self.found.contains_key(uid)).collect();
        present.sort_unstable();
        let pool = thread_pool(READERS_PER_CORE * rayon::current_num_threads())?;
        // A few at a time, so that a killed import has stated what it had read.
        for uids in present.chunks(2 * pool.current_num_threads()) {
            let place = writer.ledger().place();
            let read = |&uid: &u16| self.read(place, uid, progress);
            let read_all = || uids.par_iter().map(read).collect::<Result<Vec<_>, LedgerError>>();
            let fetched = pool.install(read_all)?;
            self.state(writer, fetched)?;
        }
        Ok(())
    }

    /// States the files of `uids` by their hash alone.
    fn leave(
        &mut self,
        writer: &mut LedgerWriter,
        uids: &[u16],
        progress: &dyn Progress,
    ) -> Result<(), LedgerError> {
        for uid in uids {
            let Some(found) = self.found.get(uid) else { continue };
            let source = open_file(&found.path)?;
            let fetched = self.statement(found, &source, progress, Outcome::Unread)?;
            self.state(writer, vec![fetched])?;
        }
        Ok(())
    }

    fn read(
        &self,
        place: &crate::store::place::Place,
        uid: u16,
        progress: &dyn Progress,
    ) -> Result<Fetched, LedgerError> {
        let found = &self.found[&uid];
        let source: Arc<dyn Source> = Arc::new(open_file(&found.path)?);
        let statement = self.statement(found, &*source, progress, Outcome::Unread)?;
        let same = |(_, s): &&(u64, Fetched)| {
            s.source_sha256 == statement.source_sha256
                && (s.round, s.base, s.uid) == (self.round, self.base, uid)
                && s.outcome != Outcome::Unread
        };
        // What is damaged is stored again; the statement is the same, and is not appended twice.
        let kept = |outcome: &Outcome| match outcome {
            Outcome::Delta(id) => hash_delta(place, &self.layout, *id, &Silent).is_ok(),
            Outcome::Refused(_) | Outcome::Unread => true,
        };
        if let Some((_, stated)) = self.stated.iter().find(same).filter(|(_, s)| kept(&s.outcome)) {
            return Ok(Fetched { file: statement.file, ..stated.clone() });
        }
        let gradient;
        let opened = match &self.aggregator {
            Some(aggregator) => Ok(aggregator.opened(uid)),
            None => {
                gradient = GradientFile::open(source.clone())
                    .map_err(|error| crc_comes_first(&source, error));
                gradient.as_ref().map(|file| {
                    let (archive, delta) = (file.archive(), file.delta());
                    Opened { archive, delta, alone: true }
                })
            }
        };
        let expected = Expected { layout: &self.layout, rule: &self.rule, round: self.round };
        let outcome = match admit(opened, expected, place, &format!("uid-{uid}"))? {
            Admission::Delta(id) => Outcome::Delta(id),
            Admission::Refused(refusal) => {
                let (files, digest) = (&*place.files, statement.source_sha256);
                let mut bytes = Sequential { source: &*source, at: 0 };
                let _one = self.quarantine.lock().unwrap_or_else(PoisonError::into_inner);
                // An aggregator is kept once, however many of its miners are refused.
                let kept = quarantine::find(files, &place.root, self.round, digest);
                if self.aggregator.is_none() || kept.map_err(StoreError::from)?.is_none() {
                    let (root, round, name) = (&place.root, self.round, &found.file);
                    quarantine::keep(files, root, round, &mut bytes, digest, name)
                        .map_err(StoreError::from)?;
                }
                Outcome::Refused(refusal)
            }
        };
        Ok(Fetched { outcome, ..statement })
    }

    fn statement(
        &self,
        found: &Found,
        source: &dyn Source,
        progress: &dyn Progress,
        outcome: Outcome,
    ) -> Result<Fetched, LedgerError> {
        let source_sha256 = match &self.aggregator {
            Some(aggregator) => aggregator.sha256,
            None => sha256_of(&found.path, source, progress)?,
        };
        Ok(Fetched {
            round: self.round,
            base: self.base,
            uid: found.uid,
            file: found.file.clone(),
            source_bytes: source.len(),
            source_sha256,
            outcome,
        })
    }

    /// Appends, in one commit, the statements that do not stand in the open window yet.
    fn state(
        &mut self,
        writer: &mut LedgerWriter,
        fetched: Vec<Fetched>,
    ) -> Result<(), LedgerError> {
        let stands = |fetched: &Fetched| self.stated.iter().any(|(_, stated)| stated == fetched);
        let new: Vec<_> = fetched.iter().filter(|fetched| !stands(fetched)).cloned().collect();
        let entries: Vec<_> = new.iter().cloned().map(Submission::Fetched).collect();
        let first = writer.append_submissions(&entries)?;
        self.stated.extend((first..).zip(new));
        for fetched in fetched {
            let stated = self.stated.iter().find(|(_, stated)| *stated == fetched);
            let (index, _) = *stated.expect("it stood there or was appended");
            let (outcome, reason) = match &fetched.outcome {
                Outcome::Delta(_) => ("delta", None),
                Outcome::Refused(refusal) => ("refused", Some(refusal.to_string())),
                Outcome::Unread => ("unread", None),
            };
            let (uid, file) = (fetched.uid, fetched.file);
            self.files.push(ImportedFile { uid, file, index, outcome, reason });
        }
        Ok(())
    }

    fn report(self, writer: &LedgerWriter) -> ImportReport {
        debug_assert_eq!(writer.ledger().newest(), self.base, "an import seals nothing");
        let absent =
            self.peers.listed.iter().copied().filter(|u| !self.found.contains_key(u)).collect();
        ImportReport { round: self.round, files: self.files, absent, others: self.others }
    }
}

fn check_peers(peers: &Peers) -> Result<(), PeersError> {
    for (list, uids) in [("peers", &peers.listed), ("reserve", &peers.reserve)] {
        let mut seen = BTreeSet::new();
        if let Some(&uid) = uids.iter().find(|uid| !seen.insert(**uid)) {
            return Err(PeersError::Twice { uid, list });
        }
    }
    if peers.listed.is_empty() {
        return Err(PeersError::None);
    }
    if peers.listed.len() > ACCEPTED_MAX {
        return Err(PeersError::TooMany { count: peers.listed.len() });
    }
    Ok(())
}

/// The files of listed and reserve peers by uid, and the names of the round's other files.
fn gradient_files(
    directory: &Path,
    round: u64,
    peers: &Peers,
) -> Result<(BTreeMap<u16, Found>, Vec<String>), PeersError> {
    let at = |source| PeersError::Directory { path: directory.to_owned(), source };
    let mut names: Vec<OsString> = fs::read_dir(directory)
        .and_then(|entries| entries.map(|e| Ok(e?.file_name())).collect())
        .map_err(at)?;
    names.sort();
    let (mut found, mut others) = (BTreeMap::<u16, Found>::new(), Vec::new());
    for name in names {
        let file = name.to_string_lossy().into_owned();
        let Some(uid) = gradient_uid(&file, round) else { continue };
        if !peers.listed.contains(&uid) && !peers.reserve.contains(&uid) {
            others.push(file);
            continue;
        }
        if name.to_str().is_none() {
            return Err(PeersError::FileName { name: file });
        }
        check_file_name(&file)?;
        if let Some(first) = found.get(&uid).map(|f| f.file.clone()) {
            return Err(PeersError::TwoFiles { uid, round, first, second: file });
        }
        let path = directory.join(&file);
        found.insert(uid, Found { uid, file, path });
    }
    if found.is_empty() {
        return Err(PeersError::NoFiles { path: directory.to_owned(), round });
    }
    Ok((found, others))
}

/// A file's name stands in its statement, so it has to be text that a record can hold.
fn check_file_name(name: &str) -> Result<(), PeersError> {
    if json::is_record_text(name) {
        Ok(())
    } else {
        Err(PeersError::FileName { name: name.to_owned() })
    }
}

/// The uid in `gradient-ROUND-UID-vVERSION.pt`.
fn gradient_uid(name: &str, round: u64) -> Option<u16> {
    let rest = name.strip_prefix("gradient-")?.strip_suffix(".pt")?;
    let (window, rest) = rest.split_once('-')?;
    let (uid, version) = rest.split_once("-v")?;
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let names_round = plain(window) && window.parse() == Ok(round);
    (names_round && plain(uid) && !version.is_empty()).then(|| uid.parse().ok())?
}

/// An aggregator file, its miners, and the peers that its lists tell.
///
/// Templar fills the list in two sorted groups: the listed who were good, then the reserves who
/// took the places of the skipped. So the first group ends where the uids stop rising; if they
/// never do, all count as listed, which gives the same order of fold.
fn open_aggregator(path: &Path) -> Result<(Aggregator, BTreeMap<u16, Found>, Peers), LedgerError> {
    let source: Arc<dyn Source> = Arc::new(open_file(path)?);
    let sha256 = sha256_of(path, &*source, &Silent)?;
    let file = AggregatorFile::open(source)
        .map_err(|source| PeersError::Aggregator { path: path.to_owned(), source })?;
    let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    check_file_name(&name)?;
    let uids: Vec<u16> = file.deltas().iter().map(|(uid, _)| *uid).collect();
    let found = |uid| (uid, Found { uid, file: name.clone(), path: path.to_owned() });
    let found = uids.iter().copied().map(found).collect();
    let rising = uids.windows(2).take_while(|pair| pair[0] < pair[1]).count();
    let (listed, reserve) = uids.split_at((rising + 1).min(uids.len()));
    let (mut listed, reserve) = (listed.to_vec(), reserve.to_vec());
    listed.extend(file.skipped().iter().copied().filter(|uid| !uids.contains(uid)));
    Ok((Aggregator { file, sha256 }, found, Peers { listed, reserve }))
}

/// A file whose pickle is refused may be damaged elsewhere: then that is its first fault.
fn crc_comes_first(source: &Arc<dyn Source>, error: TemplarError) -> TemplarError {
    if error.refusal().is_none_or(|refusal| refusal.code <= Code::CrcMismatch) {
        return error;
    }
    let checked = Archive::open(source.clone())
        .and_then(|archive| archive.verify_rest(&mut Verified::none(archive.entries().len())));
    checked.map_or_else(|found| TorchError::from(found).into(), |()| error)
}

/// A source read front to back.
struct Sequential<'a> {
    source: &'a dyn Source,
    at: u64,
}

impl io::Read for Sequential<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.source.len() - self.at).unwrap_or(usize::MAX);
        let now = buffer.len().min(left);
        self.source.read_exact_at(&mut buffer[..now], self.at)?;
        self.at += now as u64;
        Ok(now)
    }
}

fn open_file(path: &Path) -> Result<FileSource, LedgerError> {
    FileSource::open(path)
        .map_err(|source| PeersError::File { path: path.to_owned(), source }.into())
}

fn sha256_of(
    path: &Path,
    source: &dyn Source,
    progress: &dyn Progress,
) -> Result<Digest, LedgerError> {
    let mut sha256 = Sha256::new();
    let mut buffer = Vec::new();
    let mut at = 0;
    while at < source.len() {
        let now = CHUNK_BYTES.min(source.len() - at);
        buffer.resize(usize::try_from(now).expect("a chunk fits in memory"), 0);
        source
            .read_exact_at(&mut buffer, at)
            .map_err(|source| PeersError::File { path: path.to_owned(), source })?;
        sha256.update(&buffer);
        progress.advance(now);
        at += now;
    }
    Ok(Digest(sha256.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_says_whose_it_is() {
        assert_eq!(gradient_uid("gradient-62834-200-v2.1.28.pt", 62834), Some(200));
        for other in [
            "gradient-62835-200-v2.1.28.pt",
            "gradient-62834-200.pt",
            "gradient-62834-+7-v2.pt",
            "gradient-62834-70000-v2.pt",
            "aggregator-62834-v2.1.28.pt",
            "gradient-62834-2-v.pt",
        ] {
            assert_eq!(gradient_uid(other, 62834), None, "{other}");
        }
    }
}
