//! Layer 8: the command line. Data on stdout, talk and progress on stderr, exit codes as documented.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

mod anchor;
mod anchor_verify;
mod audit;
mod bench;
mod commands;
mod delta;
mod demo;
mod device;
mod dispute;
mod doctor;
mod exit;
mod gc;
mod man;
mod output;
mod progress;
mod prove;
mod serve;
mod source;
mod submit;
mod sync;
mod verify;

use crate::{
    ledger::At,
    merkle::note::VerifierKey,
    types::{digest::Digest, submission::Miner},
};

/// A ledger of model checkpoints and per-miner gradient deltas for decentralised training.
#[derive(Debug, Parser)]
#[command(name = "gradledger", version, about, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 ok, 1 failure, 2 usage, 3 incomplete, 10 no ledger, 11 \
locked by another writer,\n20 hash or replay mismatch, 21 bad signature, 22 anchor contradicts, 130 \
interrupted.")]
struct Cli {
    /// No progress, no talk.
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Trains a small model with five miners and a cheat, seals, replays, proves and tampers.
    Demo(DemoArgs),
    /// Starts a run from a checkpoint.
    Init(InitArgs),
    /// Takes in files of other systems.
    #[command(subcommand)]
    Import(ImportCommand),
    /// Makes a delta of a base and a trained checkpoint, and keeps what it did not send.
    Delta(DeltaArgs),
    /// Signs a delta with a hotkey and submits it; prints the receipt.
    Submit(SubmitArgs),
    /// Folds what was submitted for a round into the next checkpoint and seals it.
    Seal(SealArgs),
    /// Folds sealed rounds again and compares every root.
    Replay(ReplayArgs),
    /// Writes a checkpoint as safetensors files.
    Export(ExportArgs),
    /// Shows a ledger, or one of its rounds.
    Show(ShowArgs),
    /// Lists the entries of the rounds log, or of the submissions log; changes the log key.
    Log(LogArgs),
    /// Compares two checkpoints tensor by tensor.
    Diff(DiffArgs),
    /// Drops all states but the genesis, the newest and every k-th.
    Gc(GcArgs),
    /// Re-hashes and re-derives everything.
    Fsck(FsckArgs),
    /// Brings a copy of a ledger to its newest or a given state.
    Sync(sync::SyncArgs),
    /// Checks every claim of a ledger with keys from outside.
    Audit(audit::AuditArgs),
    /// Cuts out of a ledger what proves a round, a submission, a tensor or a piece without it.
    Prove(prove::ProveArgs),
    /// Judges a bundle that `prove` made, with keys from outside and no ledger.
    Verify(verify::VerifyArgs),
    /// Puts the newest head of the log on a chain, and verifies what receipts prove.
    Anchor(anchor::AnchorArgs),
    /// Serves the ledger over HTTP.
    Serve(serve::ServeArgs),
    /// Measures what this machine can do and how near to it each stage comes.
    Bench(bench::BenchArgs),
    /// Examines the machine and a ledger's configuration, and says what to mend.
    Doctor(DoctorArgs),
    /// Prints a completion script.
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
    /// Writes the manual: a page for each command.
    Man(ManArgs),
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// Where to put the demo's ledger and files: a new or an empty directory.
    #[arg(long, default_value = "gradledger-demo")]
    dir: PathBuf,
    /// Training steps of a miner in a round: fewer are faster and teach less.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(4..=10_000))]
    steps: u32,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct InitArgs {
    /// The ledger's directory, to be made.
    ledger: PathBuf,
    /// Name of the run.
    #[arg(long)]
    run: String,
    /// What the logs' origins start with, like a URL without a schema [default: the run's name].
    #[arg(long)]
    origin: Option<String>,
    /// safetensors file, or directory of safetensors or of a PyTorch distributed checkpoint.
    #[arg(long, value_name = "FILE|DIR")]
    checkpoint: PathBuf,
    /// Whose customs the fold follows.
    #[arg(long, value_enum)]
    rule: RuleName,
    /// Outer learning rate.
    #[arg(long, default_value = "0.4")]
    lr: f32,
    /// Target length of a block's side.
    #[arg(long, default_value_t = 64)]
    chunk: u64,
    /// Entries kept of each block, at most.
    #[arg(long, default_value_t = 64)]
    top_k: u64,
    /// Size of a quantisation book: 4, 16 or 256.
    #[arg(long, default_value_t = 4)]
    bins: u64,
    /// How norms are computed [default: torch-cpu-f32 for templar, histogram-f64 for native].
    #[arg(long, value_enum)]
    norm: Option<NormName>,
    /// What an element's sum is divided by.
    #[arg(long, value_enum, default_value = "contributors")]
    mean: MeanName,
    /// Records tensors that the rule cannot take, and never changes them.
    #[arg(long)]
    frozen: bool,
    /// Takes the tensors below this prefix and drops it [default for distributed checkpoints: app.
    /// or model. where such names exist].
    #[arg(long, value_name = "PREFIX")]
    select: Option<String>,
    /// Who may submit: a file with a hotkey a line, SS58 or 64 hex digits [default: those whom the
    /// operator lists for each round].
    #[arg(long, value_name = "FILE")]
    miners: Option<PathBuf>,
    /// The subnet that the run will be anchored in.
    #[arg(long, requires = "chain_genesis", requires = "anchor_hotkey")]
    netuid: Option<u16>,
    /// The chain, by the hash of its genesis block.
    #[arg(long, value_name = "HASH", requires = "netuid")]
    chain_genesis: Option<Digest>,
    /// The hotkey that will anchor: SS58 or 64 hex digits.
    #[arg(long, value_name = "ADDRESS", value_parser = anchor_verify::address, requires = "netuid")]
    anchor_hotkey: Option<Digest>,
    /// A small file that goes with the model and into its genesis: config.json, tokenizer.json, a
    /// model card. Exports and Hub clients get it under this name. May be given several times.
    #[arg(long, value_name = "FILE")]
    hub_file: Vec<PathBuf>,
    #[command(flatten)]
    key: KeyArgs,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct DeltaArgs {
    /// What training started from: a ledger (its newest state), a safetensors file, or a directory
    /// of safetensors or of a PyTorch distributed checkpoint.
    base: PathBuf,
    /// What training made of it: a checkpoint in any of these forms.
    trained: PathBuf,
    /// Where the delta goes: a directory, or a file with --format templar.
    #[arg(long, value_name = "PATH", required_unless_present = "dry_run")]
    out: Option<PathBuf>,
    /// Keeps what is not sent, for the next round; made if it is not there.
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// What the kept error is multiplied with before this round's gradient is added.
    #[arg(long, default_value_t = 0.95)]
    decay: f32,
    /// Delta segments for `submit`, or a gradient file that Templar's reader takes.
    #[arg(long, value_enum, default_value = "native")]
    format: FormatName,
    /// The round [default: the ledger's open one].
    #[arg(long)]
    round: Option<u64>,
    /// Target length of a block's side [default: the ledger's, or 64].
    #[arg(long)]
    chunk: Option<u64>,
    /// Entries kept of each block, at most [default: the ledger's, or 64].
    #[arg(long)]
    top_k: Option<u64>,
    /// Size of a quantisation book [default: the ledger's, or 4].
    #[arg(long)]
    bins: Option<u64>,
    /// Standard deviations that the codes span.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1000))]
    range: u32,
    /// Takes the tensors below this prefix and drops it, in every checkpoint given.
    #[arg(long, value_name = "PREFIX")]
    select: Option<String>,
    /// Prints sizes, norms and the share of energy kept; writes nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    fold: FoldArgs,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatName {
    Native,
    Templar,
}

#[derive(Debug, Args)]
struct SubmitArgs {
    /// The ledger: a directory, or the http or https URL of a server that takes uploads.
    ledger: PathBuf,
    /// The delta: a directory of delta segments, or a gradient file in Templar's layout.
    delta: PathBuf,
    /// The round: the one that is open.
    #[arg(long)]
    round: u64,
    /// The miner's Bittensor hotkey file, plain or encrypted.
    #[arg(long, value_name = "HOTKEYFILE")]
    key: PathBuf,
    /// A file with the password of an encrypted hotkey [default: GRADLEDGER_PASSWORD, or a prompt].
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// With a URL, a log's verifier key that must have signed the receipt's head [default: those that
    /// the server's log names].
    #[arg(long, value_name = "KEY")]
    log_key: Vec<VerifierKey>,
    #[command(flatten)]
    proxy: source::ProxyArgs,
    #[command(flatten)]
    writer: WriterArgs,
    /// Also writes the receipt to this file.
    #[arg(long, value_name = "FILE")]
    receipt: Option<PathBuf>,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct KeyArgs {
    /// Where the log key lies, if not in the ledger.
    #[arg(long, value_name = "FILE", env = "GRADLEDGER_LOG_KEY_FILE")]
    log_key_file: Option<PathBuf>,
}

/// What every command takes that writes to a ledger.
#[derive(Debug, Args)]
struct WriterArgs {
    #[command(flatten)]
    key: KeyArgs,
    /// A file with a signed head of either log that was kept elsewhere: a ledger that does not lead
    /// to it signs nothing. May be given several times.
    #[arg(long, value_name = "NOTE")]
    last_head: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RuleName {
    Templar,
    Native,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum NormName {
    HistogramF64,
    TorchCpuF32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum MeanName {
    Contributors,
    All,
}

#[derive(Debug, Subcommand)]
enum ImportCommand {
    /// Templar's gradient files of one round.
    Templar(ImportTemplarArgs),
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("source").required(true).args(["gradients", "aggregator", "all_absent"]))]
struct ImportTemplarArgs {
    /// The ledger.
    ledger: PathBuf,
    /// The round: Templar's window.
    #[arg(long)]
    round: u64,
    /// Directory with the gradient-ROUND-UID-vVERSION.pt files.
    #[arg(long, value_name = "DIR")]
    gradients: Option<PathBuf>,
    /// An aggregator file instead, which holds all miners' deltas.
    #[arg(long, value_name = "FILE")]
    aggregator: Option<PathBuf>,
    /// No files: nobody who is listed sent one.
    #[arg(long)]
    all_absent: bool,
    /// The uids expected, as gathered.
    #[arg(long, value_delimiter = ',', value_name = "UIDS")]
    peers: Vec<u16>,
    /// The uids that take the places of the missing, in this order.
    #[arg(long, value_delimiter = ',', value_name = "UIDS", requires = "peers")]
    reserve: Vec<u16>,
    /// Templar's peers file instead of --peers and --reserve.
    #[arg(long, value_name = "JSON", conflicts_with_all = ["peers", "reserve"])]
    peers_file: Option<PathBuf>,
    #[command(flatten)]
    writer: WriterArgs,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct FoldArgs {
    /// Threads of the arithmetic [default: one a core].
    #[arg(long, default_value_t = 0, hide_default_value = true, env = "GRADLEDGER_THREADS")]
    threads: usize,
}

#[derive(Debug, Args)]
struct DeviceArgs {
    /// Where the arithmetic runs: cpu, or a card such as cuda:0.
    #[arg(long, default_value = "cpu", env = "GRADLEDGER_DEVICE")]
    device: device::Device,
}

#[derive(Debug, Args)]
struct SealArgs {
    /// The ledger.
    ledger: PathBuf,
    /// The round to seal.
    #[arg(long)]
    round: u64,
    #[command(flatten)]
    writer: WriterArgs,
    #[command(flatten)]
    fold: FoldArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ReplayArgs {
    #[command(flatten)]
    source: source::SourceArgs,
    /// One round, or the first and the last of a range.
    #[arg(long, value_name = "W[..W2]")]
    round: RoundRange,
    /// This tensor alone: nothing else is read.
    #[arg(long, value_name = "NAME")]
    tensor: Option<String>,
    #[command(flatten)]
    fold: FoldArgs,
    /// Where the arithmetic runs: cpu, or a card such as cuda:0; several, as cpu,cuda:0, replay one
    /// after the other.
    #[arg(long, default_value = "cpu", value_delimiter = ',', env = "GRADLEDGER_DEVICE")]
    device: Vec<device::Device>,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

/// `W` or `W..W2`, both ends included.
#[derive(Debug, Clone, Copy)]
struct RoundRange {
    first: u64,
    last: u64,
}

impl std::str::FromStr for RoundRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |t: &str| t.parse::<u64>().map_err(|_| format!("{t:?} is not a round number"));
        let (first, last) = text.split_once("..").unwrap_or((text, text));
        let range = Self { first: number(first)?, last: number(last)? };
        if range.first <= range.last {
            Ok(range)
        } else {
            Err(format!("round {first} comes after round {last}"))
        }
    }
}

/// Writes a checkpoint as safetensors files.
///
/// A state that gc dropped is folded again first, from the last kept one, into OUT.rebuilt, which takes
/// the room of one state and is removed at the end.
#[derive(Debug, Args)]
struct ExportArgs {
    #[command(flatten)]
    source: source::SourceArgs,
    /// The state after this round, or `genesis`.
    #[arg(long, value_name = "W|genesis")]
    round: At,
    /// A new or an empty directory.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Element type of the weights.
    #[arg(long, value_enum, default_value = "f32")]
    dtype: DtypeName,
    /// Most bytes of a shard, unless one tensor is larger.
    #[arg(long, value_name = "BYTES", default_value_t = crate::export::SHARD_BYTES_MAX)]
    shard_bytes: u64,
    #[command(flatten)]
    fold: FoldArgs,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DtypeName {
    F32,
    Bf16,
}

#[derive(Debug, Args)]
struct ShowArgs {
    #[command(flatten)]
    source: source::SourceArgs,
    /// One round, with what came of each submission.
    #[arg(long)]
    round: Option<u64>,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct LogArgs {
    #[command(subcommand)]
    command: Option<LogCommand>,
    #[command(flatten)]
    source: source::SourceArgs,
    /// The submissions log instead of the rounds log.
    #[arg(long)]
    submissions: bool,
    /// Of the submissions log, the entry of this statement: 64 hex digits, as in its receipt.
    #[arg(long, value_name = "ID")]
    statement: Option<Digest>,
    /// Of the submissions log, the entries of this miner: hotkey (SS58 or 64 hex digits) or uid.
    #[arg(long, value_name = "HOTKEY|UID", value_parser = submit::miner)]
    miner: Option<Miner>,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum LogCommand {
    /// Makes another key the log key; the old one signs nothing more.
    RotateKey(RotateKeyArgs),
}

#[derive(Debug, Args)]
struct RotateKeyArgs {
    /// The ledger.
    ledger: PathBuf,
    #[command(flatten)]
    writer: WriterArgs,
    /// Where the new log key lies or is made, if not in the ledger.
    #[arg(long, value_name = "FILE")]
    new_log_key_file: Option<PathBuf>,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

/// Compares two checkpoints tensor by tensor; or two ledgers that disagree.
///
/// With --dispute A B, which are ledgers or reports of `audit`, finds the first round, tensor and piece
/// in which they differ, and writes a file from which `verify` says who is wrong. Two reports name a
/// place only; LEDGER is where its proofs come from. Exit 20 if they differ.
#[derive(Debug, Args)]
struct DiffArgs {
    /// The ledger: a directory, or the http or https URL of a server.
    #[arg(required_unless_present = "dispute")]
    ledger: Option<PathBuf>,
    #[command(flatten)]
    proxy: source::ProxyArgs,
    /// Two ledgers, or reports, that disagree.
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["from", "to"])]
    dispute: Vec<PathBuf>,
    /// The file to write about the dispute.
    #[arg(long, value_name = "FILE", requires = "dispute")]
    out: Option<PathBuf>,
    /// From the state after this round, or `genesis`.
    #[arg(long, value_name = "W|genesis", default_value = "genesis")]
    from: At,
    /// To the state after this round [default: the newest].
    #[arg(long, value_name = "W|genesis")]
    to: Option<At>,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

/// Drops all states but the genesis, the newest and every k-th.
///
/// All deltas, hashes and logs stay, so any round can still be replayed, from the last kept state
/// before it. What a killed import or seal left and no log names is removed too.
///
/// Nothing is dropped if the newest state, or what a dropped one would have to be folded from, is
/// missing or has a wrong size. Bytes are not hashed: that is for fsck. An export or a replay that is
/// reading a state while it is dropped fails, and can be run again.
#[derive(Debug, Args)]
struct GcArgs {
    /// The ledger.
    ledger: PathBuf,
    /// Every how many rounds a state is kept [default: retention.keep_every in the ledger's
    /// gradledger.toml, or 50].
    #[arg(long, value_name = "K", env = "GRADLEDGER_KEEP_EVERY")]
    keep_every: Option<std::num::NonZeroU64>,
    /// Says what would be done and changes nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    writer: WriterArgs,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct FsckArgs {
    /// The ledger's directory; a server is for `audit`.
    ledger: PathBuf,
    #[command(flatten)]
    fold: FoldArgs,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

/// Examines the machine and a ledger's configuration, and says what to mend.
///
/// Exits with 0 also after warnings, with 1 if something would make a command fail. The disk is measured
/// with one file of at most 64 MiB, which is gone however this ends.
#[derive(Debug, Args)]
struct DoctorArgs {
    /// The ledger, or the directory that one is to be made in [default: the machine alone, here].
    ledger: Option<PathBuf>,
    #[command(flatten)]
    key: KeyArgs,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ManArgs {
    /// The directory for gradledger.1, gradledger-seal.1 and so on; made if it is not there.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Parses the arguments, runs the command, and gives its exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let progress = progress::Terminal::new(cli.quiet);
    let done = match &cli.command {
        Command::Demo(args) => demo::demo(args, &progress),
        Command::Init(args) => commands::init(args, &progress),
        Command::Import(ImportCommand::Templar(args)) => commands::import(args, &progress),
        Command::Delta(args) => delta::delta(args, &progress),
        Command::Submit(args) => submit::submit(args, &progress),
        Command::Seal(args) => commands::seal(args, &progress),
        Command::Replay(args) => commands::replay(args, &progress),
        Command::Export(args) => commands::export(args, &progress),
        Command::Show(args) => commands::show(args),
        Command::Log(LogArgs { command: Some(LogCommand::RotateKey(args)), .. }) => {
            commands::rotate_key(args)
        }
        Command::Log(args) => commands::log(args),
        Command::Diff(args) if !args.dispute.is_empty() => dispute::dispute(args),
        Command::Diff(args) => commands::diff(args, &progress),
        Command::Gc(args) => gc::gc(args, &progress),
        Command::Fsck(args) => commands::fsck(args, &progress),
        Command::Sync(args) => sync::sync(args, &progress),
        Command::Audit(args) => audit::audit(args, &progress),
        Command::Prove(args) => prove::prove(args, &progress),
        Command::Verify(args) => verify::verify(args),
        Command::Anchor(args) => anchor::anchor(args, &progress),
        Command::Serve(args) => serve::serve(args),
        Command::Bench(args) => bench::bench(args, &progress),
        Command::Doctor(args) => doctor::doctor(args),
        Command::Man(args) => man::man(&args.out),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "gradledger", &mut script);
            output::write(&script)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            progress.clear();
            let error = source::explained(error);
            progress::say(format_args!("gradledger: {error}"));
            ExitCode::from(exit::code(&error))
        }
    }
}
