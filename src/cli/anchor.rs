//! `anchor`: the newest head to a chain, and later what authorities sign for its block.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::{Args, Subcommand};
use gradledger_anchor::hash::Hex;
use serde::Serialize;

use crate::{
    anchor::{Chain, Witness, file::FileChain},
    ledger::{
        Ledger,
        anchor::{AnchorOptions, AnchorReport, OpenChain, anchor_with_patience, dry_run},
        witness::{JustifyLine, justify},
        writer::LedgerWriter,
    },
    store::files::Disk,
    types::{digest::Digest, progress::Progress},
};

use super::{
    KeyArgs,
    anchor_verify::{VerifyArgs, read_authorities, verify},
    exit::CliError,
    output::print,
};

/// How long after a node's failure it is asked again, the first time.
const RETRY: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct AnchorArgs {
    #[command(subcommand)]
    command: Option<AnchorCommand>,
    #[command(flatten)]
    put: PutArgs,
}

#[derive(Debug, Subcommand)]
enum AnchorCommand {
    /// Judges receipts offline: one, or all of a ledger.
    Verify(VerifyArgs),
    /// Fetches for a ledger's receipts the justifications that came after their blocks.
    Justify(JustifyArgs),
}

#[derive(Debug, Args)]
struct JustifyArgs {
    /// The ledger.
    ledger: PathBuf,
    /// A node of the chain that keeps the blocks from the receipts on (needs a build with `--features
    /// chain`).
    #[arg(long, value_name = "URL")]
    endpoint: String,
    /// The GRANDPA authorities: what they did not sign is refused.
    #[arg(long, value_name = "FILE")]
    authorities: Option<PathBuf>,
    #[command(flatten)]
    log_key: KeyArgs,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct PutArgs {
    /// The ledger.
    #[arg(required = true)]
    ledger: Option<PathBuf>,
    #[command(flatten)]
    chain: ChainArgs,
    /// A text file to anchor in, a digest a line, instead of a chain.
    #[arg(long, value_name = "FILE", conflicts_with = "endpoint")]
    file: Option<PathBuf>,
    /// Takes the word of a node that cannot prove its state, until another one is asked.
    #[arg(long)]
    unproven: bool,
    /// Prints call and extrinsic, and sends nothing.
    #[arg(long)]
    dry_run: bool,
    /// Keeps what stands in the hotkey's slot and is not ours as the first fields, where the runtime
    /// takes several.
    #[arg(long)]
    keep_foreign: bool,
    #[command(flatten)]
    log_key: KeyArgs,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

/// Where on which chain.
#[derive(Clone, Debug, Args)]
pub struct ChainArgs {
    /// A node of the chain (needs a build with `--features chain`).
    #[arg(long, value_name = "URL", requires = "netuid", requires = "hotkey")]
    pub endpoint: Option<String>,
    /// The subnet.
    #[arg(long)]
    pub netuid: Option<u16>,
    /// The hotkey file that signs, plain or encrypted.
    #[arg(long, value_name = "HOTKEYFILE")]
    pub hotkey: Option<PathBuf>,
    /// A file with the password of an encrypted hotkey [default: GRADLEDGER_PASSWORD, or a prompt].
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
}

pub fn anchor(args: &AnchorArgs, progress: &dyn Progress) -> Result<(), CliError> {
    match &args.command {
        Some(AnchorCommand::Verify(args)) => verify(args, progress),
        Some(AnchorCommand::Justify(args)) => fetch_justifications(args, progress),
        None => put_head(&args.put, progress),
    }
}

fn put_head(args: &PutArgs, progress: &dyn Progress) -> Result<(), CliError> {
    let to = Anchorage { chain: &args.chain, file: args.file.as_deref(), unproven: args.unproven };
    let mut open = to.opener(None)?;
    let mut chain = open(progress)?;
    let ledger = args.ledger.as_deref().ok_or(CliError::AnchorWhere)?;
    let mut writer = LedgerWriter::open(ledger, args.log_key.log_key_file.as_deref())?;
    let options = AnchorOptions { keep_foreign: args.keep_foreign };
    if args.dry_run {
        return print_dry_run(args, writer.ledger(), &mut *chain, options);
    }
    let report = anchor_with_patience(&mut writer, chain, &mut open, options, RETRY, progress)?;
    print(args.json, &report, || put_text(&report))
}

fn put_text(report: &AnchorReport) -> String {
    let AnchorReport { anchor, already, resumed } = report;
    let how = match (already, resumed) {
        (true, _) => "anchored before, and nothing new since",
        (_, true) => "an earlier run's transaction, taken up",
        _ => "anchored",
    };
    format!(
        "{how}\nhead     {} entries, root {}\nvalue    {}\nset in   block {}\n",
        anchor.size, anchor.root, anchor.value, anchor.set_in
    )
}

#[derive(Serialize)]
struct DryRunDocument {
    size: u64,
    value: Digest,
    call: Hex,
    extrinsic: Hex,
    last_block: u32,
}

fn print_dry_run(
    args: &PutArgs,
    ledger: &Ledger,
    chain: &mut dyn Chain,
    options: AnchorOptions,
) -> Result<(), CliError> {
    let dry = dry_run(ledger, chain, options)?;
    let document = DryRunDocument {
        size: dry.size,
        value: dry.value,
        call: Hex(dry.signed.call),
        extrinsic: Hex(dry.signed.extrinsic),
        last_block: dry.signed.dies,
    };
    print(args.json, &document, || {
        let DryRunDocument { size, value, call, extrinsic, last_block } = &document;
        format!(
            "head       {size} entries\nvalue      {value}\ncall       {call}\nextrinsic  {extrinsic}\n\
             valid to   block {last_block}\nnothing was sent\n"
        )
    })
}

/// Where heads go to.
pub struct Anchorage<'a> {
    /// A chain, unless there is a file.
    pub chain: &'a ChainArgs,
    /// A text file.
    pub file: Option<&'a Path>,
    /// Whether a node's word is taken where it proves nothing.
    #[cfg_attr(not(feature = "chain"), allow(dead_code))]
    pub unproven: bool,
}

impl Anchorage<'_> {
    /// What reaches it; the hotkey is read, and compared with the genesis of `ledger`.
    pub fn opener(&self, ledger: Option<&Ledger>) -> Result<OpenChain, CliError> {
        if let Some(path) = self.file.map(Path::to_owned) {
            return Ok(Box::new(move |_| {
                Ok(Box::new(FileChain::new(Arc::new(Disk), path.clone())))
            }));
        }
        let ChainArgs { endpoint, netuid, hotkey, .. } = self.chain;
        match (endpoint, netuid, hotkey) {
            (Some(endpoint), Some(netuid), Some(hotkey)) => {
                self.node(endpoint.clone(), *netuid, hotkey, ledger)
            }
            _ => Err(CliError::AnchorWhere),
        }
    }

    #[cfg(feature = "chain")]
    fn node(
        &self,
        endpoint: String,
        netuid: u16,
        hotkey: &Path,
        ledger: Option<&Ledger>,
    ) -> Result<OpenChain, CliError> {
        use crate::{
            anchor::subtensor::Subtensor,
            import::wallet::Hotkey,
            ledger::{
                LedgerError,
                anchor::{AnchorStepError, check_hotkey},
            },
        };
        let password_file = self.chain.password_file.as_deref();
        let hotkey = Hotkey::load(hotkey, &mut || super::submit::password(password_file))?;
        if let Some(ledger) = ledger {
            check_hotkey(ledger, netuid, hotkey.public()).map_err(LedgerError::from)?;
        }
        let (hotkey, unproven) = (Arc::new(hotkey), self.unproven);
        Ok(Box::new(move |progress| {
            let chain = Subtensor::connect(&endpoint, netuid, hotkey.clone(), unproven, progress);
            Ok(Box::new(chain.map_err(AnchorStepError::from)?))
        }))
    }

    #[cfg(not(feature = "chain"))]
    fn node(&self, _: String, _: u16, _: &Path, _: Option<&Ledger>) -> Result<OpenChain, CliError> {
        Err(CliError::NoChain)
    }
}

/// A node that is asked, and sent nothing.
#[cfg(feature = "chain")]
pub fn ask(endpoint: &str, progress: &dyn Progress) -> Result<Box<dyn Witness>, CliError> {
    use crate::{
        anchor::node::Node,
        ledger::{LedgerError, anchor::AnchorStepError},
    };
    let node = Node::connect(endpoint, progress);
    Ok(Box::new(node.map_err(|error| LedgerError::from(AnchorStepError::from(error)))?))
}

/// A node that is asked, and sent nothing.
#[cfg(not(feature = "chain"))]
pub fn ask(_: &str, _: &dyn Progress) -> Result<Box<dyn Witness>, CliError> {
    Err(CliError::NoChain)
}

fn fetch_justifications(args: &JustifyArgs, progress: &dyn Progress) -> Result<(), CliError> {
    let authorities = args.authorities.as_deref().map(read_authorities).transpose()?;
    let mut node = ask(&args.endpoint, progress)?;
    let mut writer = LedgerWriter::open(&args.ledger, args.log_key.log_key_file.as_deref())?;
    let report = justify(&mut writer, &mut *node, authorities.as_ref(), progress)?;
    print(args.json, &report, || {
        let line = |line: &JustifyLine| {
            let JustifyLine { size, shown_at, finality, changed } = line;
            let how = if *changed { "justification fetched" } else { "as before" };
            format!("anchor  {size:>6} entries  block {}  {finality:?}  {how}\n", shown_at.number)
        };
        report.receipts.iter().map(line).collect()
    })
}
