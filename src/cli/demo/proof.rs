//! What a ledger is for: the rounds folded again, a receipt proven without it, a changed bit found.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{super::exit::CliError, miners::io};
use crate::{
    audit::{
        checks::{Verdict, verdict},
        prove::{Target, prove},
        trust::Trust,
        verify::verify,
    },
    ledger::{
        Ledger, LedgerError,
        fsck::fsck,
        replay::{ReplayOptions, replay},
        seal::FoldOptions,
        submit::Receipt,
    },
    merkle::{note::VerifierKey, policy::Policy},
    store::{StoreError, segment::place},
    types::{
        manifest::{PIECE_BYTES, group},
        progress::Silent,
    },
};

/// The tensor that is tampered with: it has more than one piece.
const TAMPERED: &str = "out.weight";

/// A proof that needs no ledger.
#[derive(Serialize)]
pub struct Proof {
    /// The bundle.
    pub bundle: PathBuf,
    pub bundle_bytes: u64,
    pub round: u64,
    pub miner: &'static str,
    /// Place in the submissions log.
    pub index: u64,
    /// Names of the checks that passed.
    pub passed: Vec<&'static str>,
    /// What to trust: the verifier keys of both logs.
    pub log_keys: Vec<String>,
}

/// A bit that was changed in a copy, and what `fsck` made of it.
#[derive(Serialize)]
pub struct Tampering {
    pub copy: PathBuf,
    /// Where the bit was.
    pub tensor: &'static str,
    pub piece: u64,
    /// What `fsck` named.
    pub found_in: String,
    pub found_piece: u64,
    pub found: String,
}

/// Folds all rounds again from the first state, comparing every root; gives how many.
pub fn replay_all(ledger: &Ledger, last: u64) -> Result<usize, CliError> {
    let options = ReplayOptions { rounds: 1..=last, tensor: None, fold: FoldOptions::default() };
    Ok(replay(ledger, &options, &Silent)?.rounds.len())
}

/// The keys that an auditor was given when the run started.
pub fn log_keys(ledger: &Ledger) -> Vec<String> {
    let keys = &ledger.genesis().log_keys;
    vec![keys.rounds.clone(), keys.submissions.clone()]
}

fn trust(keys: &[String]) -> Trust {
    let parse = |key: &String| key.parse::<VerifierKey>().expect("the ledger was opened with it");
    Trust { policy: Some(Policy::of_logs(keys.iter().map(parse).collect())), ..Trust::default() }
}

/// Proves a submission: cuts the bundle out of the ledger and judges it with nothing but the keys.
pub fn prove_receipt(
    ledger: &Ledger,
    dir: &Path,
    (round, miner, receipt): (u64, &'static str, &Receipt),
) -> Result<Proof, CliError> {
    let (bundle, log_keys) = (dir.join("receipt.tar"), log_keys(ledger));
    let key = log_keys[1].parse().expect("the ledger was opened with it");
    receipt.verify(&key).map_err(|error| CliError::Demo(format!("the receipt: {error}")))?;
    let file = File::create(&bundle).map_err(io(&bundle))?;
    prove(ledger, &Target::Submission(receipt.index), file, &Silent)?;
    let file = File::open(&bundle).map_err(io(&bundle))?;
    let bundle_bytes = file.metadata().map_err(io(&bundle))?.len();
    let verified = verify(file, &trust(&log_keys));
    if verdict(&verified.lines) != Verdict::Passed {
        return Err(CliError::Demo("the bundle of a receipt does not verify".to_owned()));
    }
    let required = verified.lines.iter().filter(|line| line.checked > 0);
    let passed = required.map(|line| line.check.as_str()).collect();
    Ok(Proof { bundle, bundle_bytes, round, miner, index: receipt.index, passed, log_keys })
}

/// Copies the ledger, flips one bit of the newest state, and gives what `fsck` says.
pub fn tamper(ledger: &Ledger, dir: &Path) -> Result<Tampering, CliError> {
    let copy = dir.join("tampered");
    copy_all(&ledger.place().root, &copy)?;
    let state = ledger.checkpoint(ledger.newest()).map_err(LedgerError::from)?;
    let weights = state.manifest().find(group::WEIGHTS, TAMPERED);
    let weights = weights.ok_or_else(|| CliError::Demo(format!("{TAMPERED} is missing")))?;
    let path = place::tensor(&copy, &weights.artifact(), weights.dtype);
    let mut bytes = fs::read(&path).map_err(io(&path))?;
    // The second page of the file holds the second piece; a page's header takes some 20 bytes.
    bytes[PIECE_BYTES as usize + 1000] ^= 1;
    fs::write(&path, bytes).map_err(io(&path))?;
    let found = match fsck(&Ledger::open(&copy)?, FoldOptions::default(), &Silent) {
        Ok(_) => return Err(CliError::Demo("nothing found the flipped bit".to_owned())),
        Err(found) => found,
    };
    let text = found.to_string();
    let LedgerError::Store(StoreError::Piece { what, piece, .. }) = found else {
        return Err(CliError::Demo(format!("the flipped bit is not named by its piece: {text}")));
    };
    let (tensor, found_in, found_piece) = (TAMPERED, what, piece);
    Ok(Tampering { copy, tensor, piece: 1, found_in, found_piece, found: text })
}

fn copy_all(from: &Path, to: &Path) -> Result<(), CliError> {
    fs::create_dir_all(to).map_err(io(to))?;
    for entry in fs::read_dir(from).map_err(io(from))? {
        let entry = entry.map_err(io(from))?;
        let target = to.join(entry.file_name());
        if entry.file_type().map_err(io(from))?.is_dir() {
            copy_all(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target).map_err(io(from))?;
        }
    }
    Ok(())
}
