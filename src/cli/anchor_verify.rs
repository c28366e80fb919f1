//! `anchor verify`: what receipts prove, offline or beside a node.

use std::path::{Path, PathBuf};

use clap::Args;
use gradledger_anchor::{grandpa::AuthoritySet, receipt::Receipt};
use serde::Serialize;

use crate::{
    codec::ss58,
    ledger::{
        Ledger, LedgerError,
        anchored::{
            AnchorTrust, AnchorView, AnchorsView, ExclusiveView, Finality, PlaceBy, Relation,
            SealedBetween, exclusive_view, judge, judge_all, sealed_between,
        },
        witness::{LiveSlot, LiveView, compare},
    },
    store::{
        anchors::RECEIPT_BYTES_MAX,
        files::{Disk, read_whole},
    },
    types::{digest::Digest, json, progress::Progress, record::AnchorPlace},
};

use super::{
    anchor::ask,
    exit::CliError,
    output::print,
    source::{self, ProxyArgs},
};

/// Largest file of authorities that is read.
const AUTHORITIES_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// A receipt, or a ledger with all of its receipts: a directory, or the URL of a server.
    #[arg(value_name = "RECEIPT|LEDGER|URL")]
    target: PathBuf,
    /// The ledger that a receipt is compared with: a directory, or a URL.
    #[arg(long)]
    ledger: Option<PathBuf>,
    #[command(flatten)]
    proxy: ProxyArgs,
    #[command(flatten)]
    trust: AnchorTrustArgs,
    /// Compares the receipts with what this node shows now (needs a build with `--features chain`).
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Between which blocks this round was sealed [default: every round].
    #[arg(long)]
    round: Option<u64>,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

/// What an auditor knows of the chain from elsewhere.
#[derive(Debug, Args)]
pub struct AnchorTrustArgs {
    /// The GRANDPA authorities: JSON, `{"set_id":N,"authorities":[{"key":HEX,"weight":1},..]}`.
    #[arg(long, value_name = "FILE")]
    authorities: Option<PathBuf>,
    /// Takes blocks that no authority set signed for: their hashes are the operator's word.
    #[arg(long)]
    included: bool,
    /// The chain, by the hash of its genesis block.
    #[arg(long, value_name = "HASH", requires = "netuid", requires = "hotkey")]
    genesis: Option<Digest>,
    /// The subnet.
    #[arg(long, requires = "genesis")]
    netuid: Option<u16>,
    /// Who anchors: SS58 or 64 hex digits.
    #[arg(long, value_name = "ADDRESS", value_parser = address, requires = "genesis")]
    hotkey: Option<Digest>,
    /// Whether the hotkey committed to nothing else in these blocks [default: from the first receipt
    /// to the last].
    #[arg(long, value_name = "A..B")]
    blocks: Option<BlockRange>,
}

impl AnchorTrustArgs {
    /// Chain, subnet and hotkey, if they were given.
    pub fn place(&self) -> Option<AnchorPlace> {
        let (chain_genesis, netuid) = (self.genesis?, self.netuid?);
        Some(AnchorPlace { netuid, chain_genesis, hotkey: self.hotkey? })
    }

    /// Who signs for blocks, if that was given.
    pub fn authorities(&self) -> Result<Option<AuthoritySet>, CliError> {
        self.authorities.as_deref().map(read_authorities).transpose()
    }

    /// Whether the operator's word for blocks is taken.
    pub fn included(&self) -> bool {
        self.included
    }

    /// The blocks that are asked about.
    pub fn blocks(&self) -> Option<(u32, u32)> {
        self.blocks.map(|range| (range.first, range.last))
    }
}

/// `A..B`, both ends included.
#[derive(Debug, Clone, Copy)]
struct BlockRange {
    first: u32,
    last: u32,
}

impl std::str::FromStr for BlockRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |t: &str| t.parse::<u32>().map_err(|_| format!("{t:?} is not a block number"));
        let (first, last) = text.split_once("..").ok_or("two block numbers, as in 100..200")?;
        let range = Self { first: number(first)?, last: number(last)? };
        if range.first <= range.last {
            Ok(range)
        } else {
            Err("the first block comes later".into())
        }
    }
}

/// Reads a public key as people write it.
pub fn address(text: &str) -> Result<Digest, String> {
    let hex = text.parse().ok();
    hex.or_else(|| ss58::decode(text).ok())
        .ok_or_else(|| "neither an SS58 address nor 64 hex digits".to_owned())
}

#[derive(Serialize)]
struct VerifyDocument {
    checks: Vec<CheckLine>,
    #[serde(flatten)]
    anchors: AnchorsView,
    live: Option<LiveView>,
    exclusive: Option<ExclusiveView>,
    rounds: Vec<SealedBetween>,
}

#[derive(Serialize)]
struct CheckLine {
    check: &'static str,
    status: Status,
    text: String,
}

#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Status {
    Passed,
    NotDone,
    NotRequired,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::NotDone => "not done",
            Self::NotRequired => "not required",
        }
    }
}

pub fn verify(args: &VerifyArgs, progress: &dyn Progress) -> Result<(), CliError> {
    let (place, authorities) = (args.trust.place(), args.trust.authorities()?);
    let trust = AnchorTrust { place, authorities: authorities.as_ref() };
    let (ledger, anchors) = judge_target(args, trust)?;
    let exclusive = match &ledger {
        Some(ledger) => exclusive_view(ledger, &anchors, args.trust.blocks())?,
        None => None,
    };
    let rounds = match &ledger {
        Some(ledger) => rounds(args, ledger, &anchors)?,
        None => Vec::new(),
    };
    let live = match &args.endpoint {
        Some(endpoint) => {
            let of_genesis = || ledger.as_ref().and_then(|ledger| ledger.genesis().anchor_place());
            let place = place.or_else(of_genesis).ok_or(CliError::AnchorPlace)?;
            let mut node = ask(endpoint, progress)?;
            Some(compare(ledger.as_ref(), &anchors, &place, &mut *node)?)
        }
        None => None,
    };
    let checks = checks(args, ledger.is_some(), &anchors, live.as_ref());
    let undone: Vec<_> =
        checks.iter().filter(|c| c.status == Status::NotDone).map(|c| c.check).collect();
    let incomplete = undone.join(", ");
    let none = anchors.receipts.is_empty() && anchors.without_receipt.is_empty();
    let document = VerifyDocument { checks, anchors, live, exclusive, rounds };
    print(args.json, &document, || text(&document))?;
    if incomplete.is_empty() {
        Ok(())
    } else if none {
        Err(CliError::NotAnchored)
    } else {
        Err(CliError::AnchorIncomplete { checks: incomplete })
    }
}

/// The ledger, if there is one, and what its receipts or the one receipt prove.
fn judge_target(
    args: &VerifyArgs,
    trust: AnchorTrust<'_>,
) -> Result<(Option<Ledger>, AnchorsView), CliError> {
    if args.target.is_dir() || source::url(&args.target).is_some() {
        let ledger = source::open(&args.target, &args.proxy)?;
        let anchors = judge_all(&ledger, trust)?;
        return Ok((Some(ledger), anchors));
    }
    let io = |source| CliError::Io { path: args.target.clone(), source };
    let bytes = read_whole(&Disk, &args.target, RECEIPT_BYTES_MAX).map_err(io)?;
    let receipt: Receipt = json::from_slice(&bytes)
        .map_err(|source| CliError::Receipt { path: args.target.clone(), source })?;
    let open = |ledger| source::open(ledger, &args.proxy);
    let ledger = args.ledger.as_deref().map(open).transpose()?;
    let receipts = vec![judge(ledger.as_ref(), &receipt, trust)?];
    Ok((ledger, AnchorsView { receipts, without_receipt: Vec::new() }))
}

/// Reads who signs for blocks.
pub fn read_authorities(path: &Path) -> Result<AuthoritySet, CliError> {
    let io = |source| CliError::Io { path: path.to_owned(), source };
    let bytes = read_whole(&Disk, path, AUTHORITIES_BYTES_MAX).map_err(io)?;
    serde_json::from_slice(&bytes).map_err(|error| io(error.into()))
}

fn rounds(
    args: &VerifyArgs,
    ledger: &Ledger,
    anchors: &AnchorsView,
) -> Result<Vec<SealedBetween>, LedgerError> {
    let all = || ledger.sealed().iter().map(|sealed| sealed.record.round).collect();
    let rounds: Vec<u64> = args.round.map_or_else(all, |round| vec![round]);
    rounds.into_iter().map(|round| sealed_between(ledger, anchors, round)).collect()
}

/// What was looked at. What does not hold never comes here: it is an error.
fn checks(
    args: &VerifyArgs,
    compared: bool,
    anchors: &AnchorsView,
    live: Option<&LiveView>,
) -> Vec<CheckLine> {
    let receipts = &anchors.receipts;
    let count = |holds: &dyn Fn(&AnchorView) -> bool| receipts.iter().filter(|r| holds(r)).count();
    let all = receipts.len();
    let line = |check, found: usize, what: &str, waived: bool| {
        let status = match found == all && all > 0 {
            true => Status::Passed,
            false if waived => Status::NotRequired,
            false => Status::NotDone,
        };
        CheckLine { check, status, text: format!("{found} of {all} receipts: {what}") }
    };
    let known = count(&|r| r.place_by != PlaceBy::Receipt);
    let proven = count(&|r| r.finality != Finality::Unproven);
    let justified = count(&|r| r.finality == Finality::Justified);
    let in_log = count(&|r| r.relation == Relation::InLog);
    let mut lines = vec![
        line("place", known, "the chain, subnet and hotkey that are meant", false),
        line("state", proven, "the digest stood in the state below the block's header", false),
        line("block", justified, "the given authorities signed for the block", args.trust.included),
        line("log", in_log, "the log starts with the anchored head", !compared),
    ];
    if let Some(live) = live {
        lines.push(line("node", live.blocks, "the node calls the block final", false));
    }
    if !anchors.without_receipt.is_empty() {
        let sizes =
            anchors.without_receipt.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let text = format!("the log tells of anchored heads of {sizes} entries without a receipt");
        lines.push(CheckLine { check: "receipts", status: Status::NotDone, text });
    }
    lines
}

fn text(document: &VerifyDocument) -> String {
    let check = |c: &CheckLine| format!("{:<13} {:<9} {}\n", c.status.name(), c.check, c.text);
    let checks: String = document.checks.iter().map(check).collect();
    let exclusive = document.exclusive.as_ref();
    let live = document.live.as_ref().map_or_else(String::new, live_text);
    checks + &anchors_text(&document.anchors.receipts, exclusive, &document.rounds) + &live
}

/// What a node shows of the hotkey's slot now.
fn live_text(LiveView { newest, slot, .. }: &LiveView) -> String {
    let slot = match slot {
        LiveSlot::Empty => "nothing".to_owned(),
        LiveSlot::Own { block, size } => format!("the head of {size} entries, set in {block}"),
        LiveSlot::Other { block } => format!("something else, set in {block}"),
    };
    format!("now, after final block {newest}, the hotkey's slot holds {slot}\n")
}

/// What receipts show.
pub fn anchors_text(
    receipts: &[AnchorView],
    exclusive: Option<&ExclusiveView>,
    rounds: &[SealedBetween],
) -> String {
    let mut text = String::new();
    for AnchorView { size, set_in, shown_at, value, .. } in receipts {
        text += &format!(
            "anchor  {size:>6} entries  set in block {set_in}, shown at {}  {value}\n",
            shown_at.number
        );
    }
    if let Some(ExclusiveView { first, last, exclusive, text: why }) = exclusive {
        let word = if *exclusive { "exclusive" } else { "not exclusive" };
        text += &format!("{word} in blocks {first} to {last}: {why}\n");
    }
    for SealedBetween { round, after, before } in rounds {
        let after = after
            .map_or("no block that a receipt shows".to_owned(), |b| format!("block {}", b.number));
        let before = before.map_or("no block yet".to_owned(), |b| format!("block {b}"));
        text += &format!("round {round}: sealed after {after}, before {before}\n");
    }
    text
}
