//! `submit`: a miner's delta, signed with its hotkey, into the log; the receipt out.

use std::{
    fs,
    io::{self, IsTerminal as _},
    path::Path,
};

use serde::Serialize;
use zeroize::Zeroizing;

use crate::{
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
        LedgerError,
        check::check_round,
        seal::dispose_round,
        submit::{Known, Receipt, SignedStatement, check_open, submit_batch},
        writer::LedgerWriter,
    },
    store::files::{Disk, read_whole, write_whole},
    types::{
        digest::Digest,
        manifest::ManifestId,
        progress::Progress,
        record::{ACCEPTED_MAX, Disposition, Verdict},
        refusal::Refusal,
        submission::Miner,
    },
};

use super::{SubmitArgs, commands::open_writer, exit::CliError, output::print};

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
    let mut writer = open_writer(&args.ledger, &args.writer)?;
    let base = base(&mut writer, args.round, hotkey.public(), progress)?;
    let (delta, refused) = admit_delta(&writer, &args.delta, args.round)?;
    let ledger = writer.ledger();
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
        rejected: foreseen(&writer, receipt.index, args.round)?,
        receipt,
    };
    print(args.json, &document, || text(&document))
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
    writer: &LedgerWriter,
    path: &Path,
    round: u64,
) -> Result<(ManifestId, Option<Refusal>), CliError> {
    let ledger = writer.ledger();
    let (layout, rule) = (ledger.layout()?, ledger.rule());
    let expected = Expected { layout: &layout, rule, round };
    if path.is_dir() {
        let admission = admit_segments(path, expected, ledger.place(), "submit");
        return match admission.map_err(LedgerError::from)? {
            NativeAdmission::Stored { delta, refused } => Ok((delta, refused)),
            NativeAdmission::Malformed(refusal) => Err(CliError::Refused(refusal)),
        };
    }
    let io = |source| CliError::Io { path: path.to_owned(), source };
    let source: std::sync::Arc<dyn Source> =
        std::sync::Arc::new(FileSource::open(path).map_err(io)?);
    let gradient = GradientFile::open(source);
    let opened = gradient.as_ref().map(|file| {
        let (archive, delta) = (file.archive(), file.delta());
        Opened { archive, delta, alone: true }
    });
    let admission = admit(opened, expected, ledger.place(), "submit");
    match admission.map_err(LedgerError::from)? {
        Admission::Delta(delta) => Ok((delta, None)),
        Admission::Refused(refusal) => Err(CliError::Refused(refusal)),
    }
}

/// What the round's dispositions say of the submission, or would if it were sealed now.
fn foreseen(writer: &LedgerWriter, index: u64, round: u64) -> Result<Option<Refusal>, CliError> {
    let ledger = writer.ledger();
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
