//! `submit`: a miner's delta, signed with its hotkey, into the log; the receipt out.

use std::{
    ffi::OsStr,
    fs,
    io::{self, IsTerminal as _},
    path::Path,
    sync::Arc,
};

use serde::Serialize;
use zeroize::Zeroizing;

use crate::{
    audit::trust::Trust,
    codec::{ss58, statement::Statement},
    import::{
        source::{FileSource, Source},
        templar::GradientFile,
        wallet::Hotkey,
    },
    intake::{
        admit::{Admission, Expected, Opened, admit},
        native::{NativeAdmission, admit_segments},
    },
    ledger::{
        Ledger, LedgerError,
        check::check_round,
        seal::dispose_round,
        submit::{
            Known, Receipt, ReceiptError, SignedStatement, check_listed, check_open, submit_batch,
        },
        writer::LedgerWriter,
    },
    merkle::{
        head::{HeadError, TreeHead},
        note::{SignedNote, VerifierKey},
        policy::Policy,
    },
    store::{
        files::{Disk, read_whole, write_whole},
        lock::WriterLock,
        place::Place,
        remote::Http,
    },
    sync::submit::{Staged, Submitting, submit as upload},
    types::{
        digest::Digest,
        manifest::ManifestId,
        progress::Progress,
        record::{ACCEPTED_MAX, Disposition, Verdict},
        refusal::Refusal,
        submission::Miner,
    },
};

use super::{
    SubmitArgs,
    commands::open_writer,
    exit::CliError,
    output::print,
    source::{served, url},
};

/// Largest list of miners and largest password file that are read.
const SMALL_FILE_BYTES_MAX: u64 = 1 << 20;

const PASSWORD: &str = "GRADLEDGER_PASSWORD";

#[derive(Serialize)]
struct SubmitDocument {
    hotkey: Digest,
    address: String,
    round: u64,
    delta: ManifestId,
    /// Why the delta will not count, as the log stands; null if it will.
    rejected: Option<Refusal>,
    receipt: Receipt,
}

pub fn submit(args: &SubmitArgs, progress: &dyn Progress) -> Result<(), CliError> {
    let hotkey = Hotkey::load(&args.key, &mut || password(args.password_file.as_deref()))?;
    let (ledger, delta, receipt) = match url(&args.ledger) {
        Some(url) => submit_url(url, args, &hotkey, progress)?,
        None => submit_local(args, &hotkey, progress)?,
    };
    if let Some(path) = &args.receipt {
        let io = |source| CliError::Io { path: path.clone(), source };
        let json = serde_json::to_vec_pretty(&receipt).map_err(CliError::Json)?;
        write_whole(&Disk, path, &json).map_err(io)?;
    }
    let document = SubmitDocument {
        hotkey: hotkey.public(),
        address: hotkey.address().to_owned(),
        round: args.round,
        delta,
        rejected: foreseen(&ledger, receipt.index, args.round)?,
        receipt,
    };
    print(args.json, &document, || text(&document))
}

/// The ledger after it, the delta, and the receipt.
type Submitted = (Ledger, ManifestId, Receipt);

fn submit_local(
    args: &SubmitArgs,
    hotkey: &Hotkey,
    progress: &dyn Progress,
) -> Result<Submitted, CliError> {
    let mut writer = open_writer(&args.ledger, &args.writer)?;
    let base = base(&mut writer, args.round, hotkey.public(), progress)?;
    let ledger = writer.ledger();
    let (delta, refused) = admit_delta(ledger, ledger.place(), &args.delta, args.round)?;
    let statement = Statement {
        run: ledger.run_id(),
        round: args.round,
        base: base.root,
        delta: delta.root,
        delta_bytes: delta.bytes,
        hotkey: hotkey.public(),
    };
    let signature = statement.sign(hotkey.secret()).map_err(LedgerError::from)?;
    let submission = SignedStatement { statement, signature, delta, refused };
    let answers = submit_batch(&mut writer, &mut Known::default(), &[submission])?;
    let receipt = answers.into_iter().next().expect("one statement, one answer");
    let receipt = receipt.map_err(CliError::Refused)?;
    Ok((writer.ledger().clone(), delta, receipt))
}

/// Sends the delta to a server, and believes nothing but what its receipt proves.
fn submit_url(
    url: &str,
    args: &SubmitArgs,
    hotkey: &Hotkey,
    progress: &dyn Progress,
) -> Result<Submitted, CliError> {
    let (options, place) = (args.proxy.http(), served(url, &args.proxy)?);
    let ledger = Ledger::open_in(place.files.clone(), &place.root)?;
    check_listed(&ledger, hotkey.public()).map_err(CliError::Refused)?;
    let base = match (check_open(&ledger, args.round)?, ledger.position(args.round)) {
        (Ok(()), _) => ledger.newest(),
        // It may hold this hotkey's, whose first answer was lost.
        (Err(_), Ok(position)) => ledger.sealed()[position].record.base,
        (Err(refusal), Err(_)) => return Err(CliError::Refused(refusal)),
    };
    let scratch = Scratch::beside(&args.delta)?;
    let (delta, _) = admit_delta(&ledger, &scratch.place, &args.delta, args.round)?;
    let layout = ledger.layout()?;
    let staged = Staged::open(&scratch.place, &layout, delta).map_err(LedgerError::from)?;
    let (secret, run, round, base) = (hotkey.secret(), ledger.run_id(), args.round, base.root);
    let submitting = Submitting { secret, run, round, base, wait: options.wait };
    let http = Http::new(url, &options)?;
    let receipt = upload(&http, &staged, &submitting, progress)?;
    let ledger = ledger.follow()?.unwrap_or(ledger);
    check_receipt(&ledger, &args.log_key, &submitting.statement(delta), &receipt)?;
    scratch.remove()?;
    Ok((ledger, delta, receipt))
}

/// The receipt is for what was signed, under a head of a key that was given, or else of the ledger's own.
fn check_receipt(
    ledger: &Ledger,
    given: &[VerifierKey],
    statement: &Statement,
    receipt: &Receipt,
) -> Result<(), CliError> {
    let (expected, found) = (statement.id(), receipt.statement);
    if found != expected || receipt.run_id != statement.run {
        return Err(ReceiptError::Statement { expected, found }.into());
    }
    let note = SignedNote::parse(receipt.head.as_bytes()).map_err(HeadError::from);
    let head = note.and_then(|note| TreeHead::parse(note.text())).map_err(ReceiptError::from)?;
    let keys = if given.is_empty() {
        ledger.keys().of_submissions(head.size)
    } else {
        let trust = Trust { policy: Some(Policy::of_logs(given.to_vec())), ..Trust::default() };
        trust.keys(&head, Some(ledger.keys()))
    };
    let mut why = CliError::ReceiptKey;
    for key in keys {
        match receipt.verify(&key) {
            Ok(_) => return Ok(()),
            Err(error) => why = error.into(),
        }
    }
    Err(why)
}

/// Where a delta is made ready to be sent: a directory beside it, for one command at a time.
struct Scratch {
    place: Place,
    _lock: WriterLock,
}

impl Scratch {
    fn beside(delta: &Path) -> Result<Self, CliError> {
        let name = delta.file_name().unwrap_or(OsStr::new("delta")).to_owned();
        let mut upload = name;
        upload.push(".upload");
        let root = delta.with_file_name(upload);
        let place = Place::new(Arc::new(Disk), &root);
        let io = |source| CliError::Io { path: root.clone(), source };
        fs::create_dir_all(&root).map_err(io)?;
        let lock = WriterLock::acquire(&root).map_err(LedgerError::from)?;
        let _ = fs::remove_dir_all(place.tmp()); // Of one that was killed.
        fs::create_dir_all(place.tmp()).map_err(io)?;
        Ok(Self { place, _lock: lock })
    }

    fn remove(self) -> Result<(), CliError> {
        let root = self.place.root;
        fs::remove_dir_all(&root).map_err(|source| CliError::Io { path: root, source })
    }
}

fn text(document: &SubmitDocument) -> String {
    let SubmitDocument { address, round, delta, receipt, rejected, .. } = document;
    let counts = match rejected {
        None => "it counts, as the log stands".to_owned(),
        Some(refusal) => format!("it will not count: {refusal}"),
    };
    format!(
        "submitted for round {round} by {address}\ndelta   {}\nindex   {}\n{counts}\nkeep the receipt \
         (--receipt FILE or --json): it proves that the statement is in the log\n",
        delta.root, receipt.index
    )
}

/// The state that a delta of `round` is made from. Asked before the delta is read: a closed round
/// takes none, but may hold this hotkey's, whose first answer was lost.
fn base(
    writer: &mut LedgerWriter,
    round: u64,
    hotkey: Digest,
    progress: &dyn Progress,
) -> Result<ManifestId, CliError> {
    let Err(refusal) = check_open(writer.ledger(), round)? else {
        return Ok(writer.ledger().newest());
    };
    if let Ok(position) = writer.ledger().position(round) {
        let base = writer.ledger().sealed()[position].record.base;
        let miner = Miner::Hotkey(hotkey);
        match writer.index(progress).and_then(|(ledger, index)| index.miner(ledger, miner, round)) {
            Ok(None) => {}
            Ok(Some(_)) => return Ok(base),
            // Then the log is read for it, once the statement is made.
            Err(LedgerError::Index(error)) => {
                progress.note(&error.to_string());
                return Ok(base);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(CliError::Refused(refusal))
}

/// Stores the delta: a directory of segments, or a file in Templar's layout.
pub(super) fn admit_delta(
    ledger: &Ledger,
    place: &Place,
    path: &Path,
    round: u64,
) -> Result<(ManifestId, Option<Refusal>), CliError> {
    let (layout, rule) = (ledger.layout()?, ledger.rule());
    let expected = Expected { layout: &layout, rule, round };
    if path.is_dir() {
        let admission = admit_segments(path, expected, place, "submit");
        return match admission.map_err(LedgerError::from)? {
            NativeAdmission::Stored { delta, refused } => Ok((delta, refused)),
            NativeAdmission::Malformed(refusal) => Err(CliError::Refused(refusal)),
        };
    }
    let io = |source| CliError::Io { path: path.to_owned(), source };
    let source: Arc<dyn Source> = Arc::new(FileSource::open(path).map_err(io)?);
    let gradient = GradientFile::open(source);
    let opened = gradient.as_ref().map(|file| {
        let (archive, delta) = (file.archive(), file.delta());
        Opened { archive, delta, alone: true }
    });
    let admission = admit(opened, expected, place, "submit");
    match admission.map_err(LedgerError::from)? {
        Admission::Delta(delta) => Ok((delta, None)),
        Admission::Refused(refusal) => Err(CliError::Refused(refusal)),
    }
}

/// What the round's dispositions say of the submission, or would if it were sealed now.
fn foreseen(ledger: &Ledger, index: u64, round: u64) -> Result<Option<Refusal>, CliError> {
    let ours = |dispositions: Vec<Disposition>| {
        let ours = dispositions.into_iter().find(|d| d.index == Some(index));
        ours.and_then(|d| match d.verdict {
            Verdict::Rejected(refusal) => Some(refusal),
            Verdict::Accepted { .. } | Verdict::Absent => None,
        })
    };
    if let Ok(position) = ledger.position(round) {
        return Ok(ours(check_round(ledger, position)?.disposed.dispositions));
    }
    Ok(ours(dispose_round(ledger, round)?.0.dispositions))
}

/// The password of an encrypted hotkey: from a file, the environment, or whoever sits there.
pub fn password(file: Option<&Path>) -> io::Result<Zeroizing<String>> {
    let text = match (file, std::env::var(PASSWORD)) {
        (Some(path), _) => {
            let bytes = Zeroizing::new(read_whole(&Disk, path, SMALL_FILE_BYTES_MAX)?);
            let text = std::str::from_utf8(&bytes).map_err(io::Error::other)?;
            Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned())
        }
        (None, Ok(text)) => Zeroizing::new(text),
        (None, Err(_)) if io::stdin().is_terminal() => {
            Zeroizing::new(rpassword::prompt_password("Password of the hotkey: ")?)
        }
        (None, Err(_)) => {
            let hint = format!("the hotkey is encrypted: give --password-file or {PASSWORD}");
            return Err(io::Error::other(hint));
        }
    };
    Ok(text)
}

/// The hotkeys that a file lists, one a line; `#` starts a comment.
pub fn hotkeys(path: &Path) -> Result<Vec<Digest>, CliError> {
    let io = |source| CliError::Io { path: path.to_owned(), source };
    if fs::metadata(path).map_err(io)?.len() > SMALL_FILE_BYTES_MAX {
        return Err(io(io::ErrorKind::FileTooLarge.into()));
    }
    let mut keys = Vec::new();
    for (line, text) in (1..).zip(fs::read_to_string(path).map_err(io)?.lines()) {
        let text = text.split('#').next().unwrap_or_default().trim();
        if text.is_empty() {
            continue;
        }
        let key = public_key(text).ok_or_else(|| CliError::Hotkey {
            path: path.to_owned(),
            line,
            text: text.chars().take(80).collect(),
        })?;
        if keys.contains(&key) {
            return Err(CliError::HotkeyTwice { path: path.to_owned(), hotkey: key });
        }
        keys.push(key);
    }
    if keys.is_empty() || keys.len() > ACCEPTED_MAX {
        return Err(CliError::Hotkeys { path: path.to_owned(), found: keys.len() });
    }
    Ok(keys)
}

/// A hotkey's public key: an SS58 address or 64 hex digits.
fn public_key(text: &str) -> Option<Digest> {
    text.parse().ok().or_else(|| ss58::decode(text).ok())
}

/// Whoever submits: a hotkey, or a uid where files are fetched.
pub fn miner(text: &str) -> Result<Miner, &'static str> {
    let uid = || text.parse().ok().map(Miner::Uid);
    let miner = public_key(text).map(Miner::Hotkey).or_else(uid);
    miner.ok_or("neither an SS58 address, nor 64 hex digits, nor a uid")
}
