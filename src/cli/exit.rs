//! Exit codes: what a script can tell apart.

use crate::{
    audit::{checks::Verdict, dispute::DisputeError, prove::ProveBundleError},
    delta::DeltaError,
    import::checkpoint::ImportError,
    ledger::{LedgerError, last_head::LastHeadError},
    merkle::{head::HeadError, note::NoteError},
    store::{StoreError, config::ConfigError, lock::LockError, log::LogError, remote::RemoteError},
    sync::{Fault, SyncError},
};

const FAILURE: u8 = 1;
const USAGE: u8 = 2;
const INCOMPLETE: u8 = 3;
const AUTHENTICATION: u8 = 4;
const NO_LEDGER: u8 = 10;
const LOCKED: u8 = 11;
const MISMATCH: u8 = 20;
const BAD_SIGNATURE: u8 = 21;
const CONTRADICTION: u8 = 22;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error(transparent)]
    Sync(#[from] SyncError),
    #[error("{path}: this command takes a directory; `gradledger sync URL DIR` makes one")]
    NeedsDirectory { path: std::path::PathBuf },
    #[error("{url} serves no ledger: give the URL that `gradledger serve` prints")]
    NoLedgerServed { url: String },
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    Delta(#[from] DeltaError),
    #[error(transparent)]
    Cuda(#[from] gradledger_kernels::cuda::CudaError),
    #[error("a checkpoint has no rounds: give --round")]
    NoRound,
    #[error("{option} {given} is not the ledger's, which is {ours}; leave it out")]
    NotTheLedgers { option: &'static str, given: u64, ours: u64 },
    #[error("writing JSON: {0}")]
    Json(serde_json::Error),
    #[error("writing to stdout: {0}")]
    Stdout(std::io::Error),
    #[error("{path}: {source}")]
    Io { path: std::path::PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    Peers { path: std::path::PathBuf, source: crate::import::templar::TemplarError },
    #[error(transparent)]
    Wallet(#[from] crate::import::wallet::WalletError),
    #[error("{path}, line {line}: {text:?} is neither an SS58 address nor 64 hex digits")]
    Hotkey { path: std::path::PathBuf, line: usize, text: String },
    #[error("{path} names the hotkey {hotkey} twice")]
    HotkeyTwice { path: std::path::PathBuf, hotkey: crate::types::digest::Digest },
    #[error("{path} names {found} hotkeys; 1 to 255 can be listed")]
    Hotkeys { path: std::path::PathBuf, found: usize },
    #[error("the submission is refused: {0}")]
    Refused(crate::types::refusal::Refusal),
    #[error("{path} is not empty; give a new or an empty directory with --dir")]
    NotEmpty { path: std::path::PathBuf },
    #[error(transparent)]
    Prove(#[from] ProveBundleError),
    #[error("{path}: {source}")]
    Policy { path: std::path::PathBuf, source: crate::merkle::policy::PolicyError },
    #[error(transparent)]
    Dispute(#[from] DisputeError),
    #[error("a dispute has two sides: --dispute A B")]
    DisputeSides,
    #[error("reports hold no proofs: name the ledger to take them from, too")]
    DisputeLedger,
    #[error(
        "they disagree: --out FILE writes what shows who is wrong, `gradledger verify` judges it"
    )]
    Disagree,
    #[error("the genesis is no round; with --tensor it is a state")]
    GenesisRound,
    #[error("{}", verdict_text(.0))]
    Verdict(Verdict),
    #[error(
        "which chain, subnet and hotkey? The genesis names none: give --genesis, --netuid and --hotkey"
    )]
    AnchorPlace,
    #[error(
        "anchor where? --endpoint URL --netuid N --hotkey FILE, or in a text file: --file FILE, of serve \
         --anchor-file FILE"
    )]
    AnchorWhere,
    #[error("--endpoint, --netuid and --hotkey say where to anchor: add --anchor to do so")]
    AnchorFlag,
    #[cfg(not(feature = "chain"))]
    #[error("this build knows no chain: build it with `cargo build --release --features chain`")]
    NoChain,
    #[error("{path}: {source}")]
    Receipt { path: std::path::PathBuf, source: crate::types::json::JsonError },
    #[error(
        "incomplete: not done: {checks}. --authorities says who signs for blocks, --included takes \
         the operator's word for them"
    )]
    AnchorIncomplete { checks: String },
    #[error(
        "incomplete: nothing of this log is anchored yet; `gradledger anchor` commits to its newest head"
    )]
    NotAnchored,
    #[error(
        "the log key lies outside the ledger, and a new one should too: name its place with \
         --new-log-key-file"
    )]
    NewKeyPlace,
    #[error(
        "{path} is in the way: a state is to be folded there; remove it, or give another --out"
    )]
    InTheWay { path: std::path::PathBuf },
    #[error("nothing was dropped: {0} things that must be there are not, as listed")]
    GcRefused(usize),
    #[error("--log {filter}: {reason}")]
    LogFilter { filter: String, reason: String },
    #[error(transparent)]
    Upload(#[from] crate::sync::submit::UploadError),
    #[error("the receipt does not prove that the statement is in the log: {0}")]
    WrongReceipt(#[from] crate::ledger::submit::ReceiptError),
    #[error("the receipt's head is not signed by a key that was given")]
    ReceiptKey,
    #[error("the server did not seal the round: {reason}")]
    NotSealed { reason: String },
    #[error(
        "the run takes no signed submissions: its miners are listed for each round. Serve it without \
         --uploads"
    )]
    NoUploads,
    #[error("the upload desk: {0}")]
    Uploads(#[from] crate::ledger::uploads::UploadError),
    #[error(transparent)]
    Serve(#[from] crate::http::ServeError),
    #[error("{0} of the things examined would make a command fail: see what to mend")]
    Unfit(usize),
    #[error("the demo did not give what it should: {0}")]
    Demo(String),
}

fn verdict_text(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "every required check passed",
        Verdict::Incomplete => {
            "incomplete: a required check was not done; the list says what it lacks. \
             `--without CHECK` is for those you do not require"
        }
        Verdict::Mismatch => "a check failed: the list says which, and where",
        Verdict::BadSignature => "a signature does not hold: the list says whose",
        Verdict::Contradiction => "an anchor contradicts the log: the list says which",
    }
}

/// The exit code of `error`.
pub fn code(error: &CliError) -> u8 {
    match error {
        CliError::Ledger(error) => ledger_code(error),
        CliError::Wallet(_) => AUTHENTICATION,
        CliError::NoLedgerServed { .. } => NO_LEDGER,
        CliError::Sync(error) => sync_code(error),
        CliError::Remote(RemoteError::Url { .. } | RemoteError::Proxy { .. }) => USAGE,
        CliError::Prove(error) | CliError::Dispute(DisputeError::Prove(error)) => prove_code(error),
        CliError::Disagree => MISMATCH,
        CliError::Dispute(_)
        | CliError::DisputeSides
        | CliError::DisputeLedger
        | CliError::Policy { .. }
        | CliError::GenesisRound => USAGE,
        CliError::Verdict(Verdict::Passed) => 0,
        CliError::Verdict(Verdict::Incomplete) => INCOMPLETE,
        CliError::Verdict(Verdict::Mismatch) => MISMATCH,
        CliError::Verdict(Verdict::BadSignature) => BAD_SIGNATURE,
        CliError::Verdict(Verdict::Contradiction) => CONTRADICTION,
        CliError::Delta(error) => delta_code(error),
        CliError::WrongReceipt(_) | CliError::ReceiptKey => BAD_SIGNATURE,
        CliError::NoUploads => USAGE,
        CliError::NoRound | CliError::NotTheLedgers { .. } => USAGE,
        #[cfg(not(feature = "chain"))]
        CliError::NoChain => USAGE,
        CliError::AnchorPlace | CliError::AnchorWhere | CliError::AnchorFlag => USAGE,
        CliError::Receipt { .. } => MISMATCH,
        CliError::AnchorIncomplete { .. } | CliError::NotAnchored => INCOMPLETE,
        CliError::NeedsDirectory { .. }
        | CliError::NewKeyPlace
        | CliError::Peers { .. }
        | CliError::LogFilter { .. } => USAGE,
        CliError::Hotkey { .. } | CliError::HotkeyTwice { .. } | CliError::Hotkeys { .. } => USAGE,
        _ => FAILURE,
    }
}

fn sync_code(error: &SyncError) -> u8 {
    match error {
        SyncError::Ledger(error) => ledger_code(error),
        SyncError::Url(RemoteError::Url { .. } | RemoteError::Proxy { .. })
        | SyncError::NotACopy { .. } => USAGE,
        SyncError::NoMirror { worst, .. } => match worst {
            Fault::Untrusted => BAD_SIGNATURE,
            Fault::Lie => MISMATCH,
            Fault::NoLedger => NO_LEDGER,
            Fault::Ours | Fault::Absent | Fault::Unanswered => FAILURE,
        },
        _ => FAILURE,
    }
}

fn ledger_code(error: &LedgerError) -> u8 {
    match error {
        LedgerError::NoLedger { .. } => NO_LEDGER,
        LedgerError::Locked(LockError::Held { .. }) => LOCKED,
        LedgerError::Disagrees(_) | LedgerError::Entry { .. } | LedgerError::EntryKind { .. } => {
            MISMATCH
        }
        LedgerError::Plan(crate::plan::PlanStepError::Store(error)) => store_code(error),
        LedgerError::Plan(_) | LedgerError::Fold(crate::fold::FoldError::Kernel { .. }) => MISMATCH,
        LedgerError::Fold(crate::fold::FoldError::Store(error))
        | LedgerError::Store(error)
        | LedgerError::Export(crate::export::ExportError::Store(error)) => store_code(error),
        LedgerError::StateLost { source, .. } | LedgerError::CopyDamaged { source, .. } => {
            store_code(source)
        }
        LedgerError::Note(_)
        | LedgerError::GenesisKeys(_)
        | LedgerError::Rotation { .. }
        | LedgerError::OtherKey { .. }
        | LedgerError::LastHead(LastHeadError::Unsigned { .. }) => BAD_SIGNATURE,
        LedgerError::LastHead(_) => MISMATCH,
        LedgerError::Anchor(error) if error.is_contradiction() => CONTRADICTION,
        LedgerError::Anchor(error) if error.is_signature() => BAD_SIGNATURE,
        LedgerError::Anchor(_) => MISMATCH,
        LedgerError::Rule(_)
        | LedgerError::NoRound { .. }
        | LedgerError::NoRounds
        | LedgerError::RoundOrder { .. }
        | LedgerError::RoundSealed { .. }
        | LedgerError::RoundOpen { .. }
        | LedgerError::RoundNotOpen { .. }
        | LedgerError::NoTensor { .. }
        | LedgerError::Dropped { .. }
        | LedgerError::NotHeld { .. }
        | LedgerError::Copy { .. }
        | LedgerError::Peers(_) => USAGE,
        _ => FAILURE,
    }
}

fn prove_code(error: &ProveBundleError) -> u8 {
    match error {
        ProveBundleError::Ledger(error) => ledger_code(error),
        ProveBundleError::NoTensor { .. }
        | ProveBundleError::NoPiece { .. }
        | ProveBundleError::NoSubmission { .. }
        | ProveBundleError::NotFolded { .. } => USAGE,
        _ => FAILURE,
    }
}

fn delta_code(error: &DeltaError) -> u8 {
    match error {
        DeltaError::Store(error) => store_code(error),
        DeltaError::Rule(_)
        | DeltaError::Round { .. }
        | DeltaError::Decay { .. }
        | DeltaError::Nothing
        | DeltaError::Missing { .. }
        | DeltaError::Shape { .. }
        | DeltaError::Behind { .. }
        | DeltaError::Other { .. }
        | DeltaError::Occupied { .. } => USAGE,
        _ => FAILURE,
    }
}

fn store_code(error: &StoreError) -> u8 {
    match error {
        StoreError::Log(LogError::Head {
            source: HeadError::Note(NoteError::Wrong { .. } | NoteError::Unknown { .. }),
            ..
        }) => BAD_SIGNATURE,
        StoreError::Config(ConfigError::Toml { .. }) => USAGE,
        error if error.is_mismatch() => MISMATCH,
        _ => FAILURE,
    }
}
