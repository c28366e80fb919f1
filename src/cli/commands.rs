//! The commands: arguments in, one call to the ledger, its report out.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    export::{ExportDtype, ExportError, export as export_checkpoint},
    http::control,
    import::templar::PeersFile,
    ledger::{
        At, Ledger, LedgerError,
        diff::{TensorDiff, diff as diff_states},
        fsck::fsck as check_ledger,
        hub::file_set,
        import::{Gradients, ImportReport, Peers, import_templar},
        init::{InitOptions, init as make_ledger},
        last_head::LastHead,
        replay::{ReplayOptions, rebuild, replay as replay_rounds},
        retention::Kept,
        rotate::rotate_key as change_key,
        seal::{FoldOptions, SealReport, seal as seal_round},
        show as views,
        submit::statement_of,
        writer::LedgerWriter,
    },
    merkle::note::NOTE_BYTES_MAX,
    store::{
        artifacts::StoredCheckpoint,
        files::{Disk, Files, read_whole},
        lock::LockError,
        log::LogError,
        place::Place,
    },
    types::{
        bits::F32Bits,
        digest::Digest,
        json,
        manifest::ManifestId,
        progress::Progress,
        record::{AnchorPlace, LogKeys, MinersPolicy, RoundsEntry},
        rule::{Dialect, Mean, Norm, SparseMeanSgd},
        submission::{Content, Submission},
    },
};

use super::{
    DiffArgs, DtypeName, ExportArgs, FoldArgs, FsckArgs, ImportTemplarArgs, InitArgs, LogArgs,
    MeanName, NormName, ReplayArgs, RotateKeyArgs, RuleName, SealArgs, ShowArgs, WriterArgs,
    device::Device,
    exit::CliError,
    output::{print, size},
    progress::say,
    source::open,
    submit,
};

/// Largest peers file that is read.
const PEERS_BYTES_MAX: u64 = 1 << 20;

type Done = Result<(), CliError>;

/// Opens the ledger for writing, if it leads to the heads given.
pub(super) fn open_writer(ledger: &Path, args: &WriterArgs) -> Result<LedgerWriter, CliError> {
    let key_file = args.key.log_key_file.as_deref();
    Ok(LedgerWriter::open_after(ledger, key_file, &last_heads(args)?)?)
}

/// The heads that somebody kept.
pub(super) fn last_heads(args: &WriterArgs) -> Result<Vec<LastHead>, CliError> {
    let read = |path: &PathBuf| {
        let note = read_whole(&Disk, path, NOTE_BYTES_MAX as u64);
        let note = note.map_err(|source| CliError::Io { path: path.clone(), source })?;
        Ok(LastHead { path: path.clone(), note })
    };
    args.last_head.iter().map(read).collect()
}

impl From<&FoldArgs> for FoldOptions {
    fn from(args: &FoldArgs) -> Self {
        Self { threads: args.threads, ..Self::default() }
    }
}

impl From<&InitArgs> for SparseMeanSgd {
    fn from(args: &InitArgs) -> Self {
        let dialect = match args.rule {
            RuleName::Templar => Dialect::Templar,
            RuleName::Native => Dialect::Native,
        };
        let norm = match (args.norm, dialect) {
            (Some(NormName::HistogramF64), _) | (None, Dialect::Native) => Norm::HistogramF64,
            (Some(NormName::TorchCpuF32), _) | (None, Dialect::Templar) => Norm::TorchCpuF32,
        };
        let mean = match args.mean {
            MeanName::Contributors => Mean::Contributors,
            MeanName::All => Mean::All,
        };
        Self {
            dialect,
            chunk: args.chunk,
            top_k: args.top_k,
            bins: args.bins,
            lr_f32: F32Bits(args.lr),
            mean,
            norm,
        }
    }
}

#[derive(Serialize)]
struct InitDocument {
    run: String,
    run_id: Digest,
    model: ManifestId,
    log_keys: LogKeys,
    frozen: Vec<String>,
    left_out: Vec<String>,
}

fn anchor_place(args: &InitArgs) -> Option<AnchorPlace> {
    let (netuid, chain_genesis) = (args.netuid?, args.chain_genesis?);
    Some(AnchorPlace { netuid, chain_genesis, hotkey: args.anchor_hotkey? })
}

pub fn init(args: &InitArgs, progress: &dyn Progress) -> Done {
    let miners = match &args.miners {
        Some(path) => MinersPolicy::Hotkeys(submit::hotkeys(path)?),
        None => MinersPolicy::Listed,
    };
    let options = InitOptions {
        run: args.run.clone(),
        origin: args.origin.clone().unwrap_or_else(|| args.run.clone()),
        checkpoint: &args.checkpoint,
        select: args.select.as_deref(),
        rule: SparseMeanSgd::from(args),
        frozen: args.frozen,
        miners,
        key_file: args.key.log_key_file.as_deref(),
        anchor: anchor_place(args),
        files: &args.hub_file,
    };
    let report = make_ledger(&args.ledger, &options, progress)?;
    for (name, why) in &report.frozen {
        progress.note(&format!("frozen {name}: {why}"));
    }
    for name in &report.left_out {
        progress.note(&format!("left out {name}"));
    }
    let genesis = report.ledger.genesis();
    let document = InitDocument {
        run: genesis.run.clone(),
        run_id: report.ledger.run_id(),
        model: genesis.model,
        log_keys: genesis.log_keys.clone(),
        frozen: report.frozen.into_iter().map(|(name, _)| name).collect(),
        left_out: report.left_out,
    };
    print(args.json, &document, || {
        let ManifestId { root, count, bytes } = document.model;
        format!(
            "run {} {}\nmodel {root}\n{count} tensors, {}\nlog keys, to give to auditors:\n  {}\n  {}\n",
            document.run,
            document.run_id,
            size(bytes),
            document.log_keys.rounds,
            document.log_keys.submissions
        )
    })
}

pub fn import(args: &ImportTemplarArgs, progress: &dyn Progress) -> Done {
    let peers = match &args.peers_file {
        Some(path) => {
            let io = |source| CliError::Io { path: path.clone(), source };
            let text = read_whole(&Disk, path, PEERS_BYTES_MAX).map_err(io)?;
            let peers = |source| CliError::Peers { path: path.clone(), source };
            let file = PeersFile::read(&text).map_err(peers)?;
            Some(Peers { listed: file.peers, reserve: file.reserve_peers })
        }
        None if args.peers.is_empty() => None,
        None => Some(Peers { listed: args.peers.clone(), reserve: args.reserve.clone() }),
    };
    let gradients = match (&args.gradients, &args.aggregator) {
        (Some(directory), _) => Gradients::Directory(directory),
        (None, Some(file)) => Gradients::Aggregator(file),
        (None, None) => Gradients::Absent,
    };
    let mut writer = open_writer(&args.ledger, &args.writer)?;
    let report = import_templar(&mut writer, args.round, &gradients, peers, progress)?;
    print(args.json, &report, || import_text(&report))
}

pub(super) fn import_text(report: &ImportReport) -> String {
    let mut text = format!("round {} is open\n", report.round);
    for file in &report.files {
        let reason = file.reason.as_ref().map_or_else(String::new, |reason| format!(" {reason}"));
        let name = file.file.escape_debug();
        let _ = writeln!(text, "  uid {:<5} {:8} {name}{reason}", file.uid, file.outcome);
    }
    for uid in &report.absent {
        let _ = writeln!(text, "  uid {uid:<5} absent");
    }
    if !report.others.is_empty() {
        // Names that nobody checked must not reach a terminal as they are.
        let names: Vec<String> =
            report.others.iter().map(|n| n.escape_debug().to_string()).collect();
        let _ = writeln!(text, "left alone: {}", names.join(", "));
    }
    text
}

pub fn seal(args: &SealArgs, progress: &dyn Progress) -> Done {
    let device = args.device.device;
    let options = device.options(&args.fold)?;
    let report = match open_writer(&args.ledger, &args.writer) {
        Ok(mut writer) => seal_round(&mut writer, args.round, options, progress)?,
        Err(CliError::Ledger(LedgerError::Locked(LockError::Held { .. })))
            if options.gpu.is_some() =>
        {
            let reason = format!("it seals on its own processor, not on {device}");
            return Err(CliError::NotSealed { reason });
        }
        Err(CliError::Ledger(locked @ LedgerError::Locked(LockError::Held { .. }))) => {
            seal_served(args, locked)?
        }
        Err(error) => return Err(error),
    };
    if report.already {
        say(format_args!("round {} was sealed already; this is what came of it", report.round));
    }
    print(args.json, &report, || seal_text(&report))
}

/// Has the server seal that holds the ledger's writer, if it is one.
fn seal_served(args: &SealArgs, locked: LedgerError) -> Result<SealReport, CliError> {
    let path = control::path(&args.ledger);
    let order = control::Order { seal: args.round, threads: args.fold.threads };
    let io = |source| CliError::Io { path, source };
    match control::order(&args.ledger, order).map_err(io)? {
        Some(control::Outcome::Sealed(report)) => Ok(report),
        Some(control::Outcome::Error(reason)) => Err(CliError::NotSealed { reason }),
        None => Err(locked.into()),
    }
}

pub(super) fn seal_text(report: &SealReport) -> String {
    let mut text = format!("sealed round {}\n", report.round);
    for line in &report.accepted {
        let _ = writeln!(text, "  {:>3}  {}", line.order, whose(line.uid, line.miner));
    }
    for line in &report.rejected {
        let details = line.details.as_ref().unwrap_or(&line.reason);
        let _ = writeln!(text, "  ---  {}  {details}", whose(line.uid, line.miner));
    }
    for name in &report.skipped {
        let _ = writeln!(text, "  left unchanged (its delta is not finite): {name}");
    }
    let _ = writeln!(text, "record {}\nnext   {}", report.record, report.next.root);
    text
}

fn whose(uid: Option<u16>, miner: Option<Digest>) -> String {
    match (uid, miner) {
        (Some(uid), _) => format!("uid {uid}"),
        (None, Some(key)) => key.to_hex(),
        (None, None) => String::new(),
    }
}

pub fn replay(args: &ReplayArgs, progress: &dyn Progress) -> Done {
    let ledger = args.source.open()?;
    let devices = args.device.iter().map(|device| device.options(&args.fold));
    let mut reports = Vec::new();
    for fold in devices.collect::<Result<Vec<_>, _>>()? {
        let rounds = args.round.first..=args.round.last;
        let options = ReplayOptions { rounds, tensor: args.tensor.clone(), fold };
        reports.push(replay_rounds(&ledger, &options, progress)?);
    }
    // Each came to the sealed roots, or it would have failed.
    let others: Vec<_> = reports.drain(1..).flat_map(|report| report.folded_on).collect();
    let mut report = reports.pop().expect("a device is named");
    report.folded_on.extend(others);
    print(args.json, &report, || {
        let mut text = String::new();
        if args.device.iter().any(|&device| device != Device::Cpu) {
            let names: Vec<_> = args.device.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "folded on {}", names.join(" and on "));
        }
        for round in &report.rounds {
            let (n, miners, tensors) = (round.round, round.miners, round.tensors);
            let _ = writeln!(
                text,
                "round {n}: equal, {miners} miners, {tensors} tensors, next {}",
                round.next.root
            );
        }
        text
    })
}

#[derive(Serialize)]
struct ExportDocument {
    files: Vec<ExportedFile>,
}

#[derive(Serialize)]
struct ExportedFile {
    name: String,
    sha256: Digest,
}

pub fn export(args: &ExportArgs, progress: &dyn Progress) -> Done {
    let ledger = args.source.open()?;
    let (kept, state) = (Kept::load(&ledger)?, ledger.state(args.round)?);
    let mut scratch = None;
    let checkpoint = match args.round {
        At::Round(round) if !kept.has(state) => {
            progress.note(&format!("the state after round {round} was dropped: folding it again"));
            let place = scratch.insert(scratch_beside(&args.out)?);
            rebuild(&ledger, round, place, (&args.fold).into(), progress)
        }
        at => kept.require(&ledger, at).and_then(|id| Ok(ledger.checkpoint(id)?)),
    };
    let done =
        checkpoint.map_err(CliError::from).and_then(|c| export_to(args, &ledger, &c, progress));
    if let Some(Place { root, .. }) = scratch {
        // Of a failure before, the first is told.
        let removed = Disk.remove_dir_all(&root);
        let document = done?;
        removed.map_err(|source| CliError::Io { path: root, source })?;
        return print_export(args, &document);
    }
    print_export(args, &done?)
}

/// A directory beside `out` for a state that is folded again; what is in the way is said before that.
fn scratch_beside(out: &Path) -> Result<Place, CliError> {
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(LedgerError::from(ExportError::NotEmpty { path: out.to_owned() }).into());
    }
    let mut name = out.as_os_str().to_owned();
    name.push(".rebuilt");
    let path = PathBuf::from(name);
    if path.exists() {
        return Err(CliError::InTheWay { path });
    }
    Ok(Place::new(std::sync::Arc::new(Disk), &path))
}

fn export_to(
    args: &ExportArgs,
    ledger: &Ledger,
    checkpoint: &StoredCheckpoint,
    progress: &dyn Progress,
) -> Result<ExportDocument, CliError> {
    let dtype = match args.dtype {
        DtypeName::F32 => ExportDtype::F32,
        DtypeName::Bf16 => ExportDtype::Bf16,
    };
    let set = file_set(ledger, checkpoint, dtype, args.shard_bytes)?;
    progress.begin("export", set.bytes());
    let written = export_checkpoint(checkpoint, &set, &Disk, &args.out, progress)
        .map_err(LedgerError::from)?;
    progress.end();
    let file = |(name, sha256)| ExportedFile { name, sha256 };
    Ok(ExportDocument { files: written.into_iter().map(file).collect() })
}

fn print_export(args: &ExportArgs, document: &ExportDocument) -> Done {
    print(args.json, document, || {
        document.files.iter().map(|f| format!("{}  {}\n", f.sha256, f.name)).collect()
    })
}

pub fn show(args: &ShowArgs) -> Done {
    let ledger = args.source.open()?;
    let Some(round) = args.round else {
        let view = views::show(&ledger)?;
        return print(args.json, &view, || show_text(&view));
    };
    let view = views::show_round(&ledger, round)?;
    print(args.json, &view, || round_text(&view))
}

fn show_text(view: &views::LedgerView) -> String {
    let head = &view.head;
    let after = head.round.map_or_else(|| "genesis".to_owned(), |round| format!("round {round}"));
    let mut text = format!(
        "run        {} {}\nrounds     {} sealed, {} submissions open\nhead       {after} {}\n           \
         {} tensors, {}\nstates     {}\nlog keys   {}\n           {}\n",
        view.run,
        view.run_id,
        view.rounds,
        view.open_submissions,
        head.root,
        head.count,
        size(head.bytes),
        states_text(&view.states),
        view.log_keys.rounds,
        view.log_keys.submissions
    );
    for retired in &view.retired_keys {
        let (key, until) = (&retired.log_keys.rounds, retired.until);
        let _ = writeln!(text, "retired    {key} (by entry {until} of the rounds log)");
    }
    if let Some(anchor) = &view.anchor {
        let (size, block, since) = (anchor.size, anchor.block.number, view.unanchored_rounds);
        let _ = writeln!(text, "anchored   {size} entries, at block {block}; {since} rounds since");
    }
    text
}

fn states_text(states: &views::StatesView) -> String {
    let views::StatesView { kept, dropped } = states;
    if dropped.is_empty() {
        return format!("{kept} kept, none dropped");
    }
    format!("{kept} kept; dropped after rounds {}", super::gc::ranges(dropped))
}

fn round_text(view: &views::RoundView) -> String {
    let record = &view.record;
    let mut text = format!(
        "round      {} (entry {}, {})\nbase       {}\nnext       {}{}\nplan       {}\n",
        record.round,
        view.index,
        view.leaf,
        record.base.root,
        record.next.root,
        if view.kept { "" } else { " (dropped)" },
        record.plan.root
    );
    for line in &view.dispositions {
        let (miner, index) = (line.miner.to_string(), line.index.map(|i| format!(" (entry {i})")));
        let what = match (&line.order, &line.refusal) {
            (Some(order), _) => format!("accepted, order {order}"),
            (None, Some(refusal)) => refusal.to_string(),
            (None, None) => "absent".to_owned(),
        };
        let _ = writeln!(text, "  {miner}{}: {what}", index.unwrap_or_default());
    }
    for name in &view.skipped {
        let _ = writeln!(text, "  left unchanged (its delta is not finite): {name}");
    }
    text
}

#[derive(Serialize)]
struct LogDocument {
    log: &'static str,
    size: u64,
    root: Digest,
    entries: Vec<LogLine>,
}

#[derive(Serialize)]
struct LogLine {
    index: u64,
    leaf: Digest,
    entry: serde_json::Value,
    #[serde(skip)]
    text: String,
}

pub fn log(args: &LogArgs) -> Done {
    let ledger = args.source.open()?;
    let submissions = args.submissions || args.statement.is_some() || args.miner.is_some();
    let (name, log) = if submissions {
        ("submissions", ledger.submissions_log())
    } else {
        ("rounds", ledger.rounds_log())
    };
    let entries = log.entries(0..log.size()).map_err(LedgerError::from)?;
    let line = |(index, entry): (u64, Result<Vec<u8>, LogError>)| {
        let bytes = entry.map_err(LedgerError::from)?;
        let read = |source| LedgerError::Entry { log: name, index, source };
        let text = if submissions {
            let submission = json::from_slice(&bytes).map_err(read)?;
            if !asked_for(args, &ledger, &submission) {
                return Ok(None);
            }
            submission_line(&submission)
        } else {
            round_line(&json::from_slice(&bytes).map_err(read)?)
        };
        let entry = serde_json::from_slice(&bytes).map_err(CliError::Json)?;
        Ok(Some(LogLine { index, leaf: crate::merkle::tree::leaf_hash(&bytes), entry, text }))
    };
    let lines = (0..).zip(entries).filter_map(|entry| line(entry).transpose());
    let entries = lines.collect::<Result<Vec<_>, CliError>>()?;
    let document = LogDocument { log: name, size: log.size(), root: log.head().root, entries };
    print(args.json, &document, || {
        let line = |l: &LogLine| format!("{:>6}  {:.16}  {}\n", l.index, l.leaf.to_hex(), l.text);
        let mut text: String = document.entries.iter().map(line).collect();
        let _ = writeln!(text, "size {} root {}", document.size, document.root);
        text
    })
}

/// Whether a submission is of the statement and the miner that are asked for. The log is read
/// through for it: readers leave the index alone.
fn asked_for(args: &LogArgs, ledger: &Ledger, submission: &Submission) -> bool {
    let statement = args.statement.is_none_or(|id| match submission {
        Submission::Signed(signed) => statement_of(ledger.run_id(), signed).id() == id,
        Submission::Fetched(_) => false,
    });
    statement && args.miner.is_none_or(|miner| submission.miner() == miner)
}

fn round_line(entry: &RoundsEntry) -> String {
    match entry {
        RoundsEntry::Genesis(genesis) => format!("genesis  {}", genesis.run),
        RoundsEntry::Round(record) => format!("round {}  next {}", record.round, record.next.root),
        RoundsEntry::Anchor(record) => {
            format!("anchor of {} entries  block {}", record.size, record.block.number)
        }
        RoundsEntry::KeyRotation(rotation) => format!("key rotation  {}", rotation.log_keys.rounds),
    }
}

fn submission_line(entry: &Submission) -> String {
    let content = match entry.content() {
        Content::Delta(id) => format!("delta {}", id.root),
        Content::Refused(refusal) => format!("refused {refusal}"),
        Content::Unread => "unread".to_owned(),
    };
    let kind = match entry {
        Submission::Fetched(_) => "fetched",
        Submission::Signed(_) => "signed",
    };
    format!("{kind}  round {}  {}  {content}", entry.round(), entry.miner())
}

pub fn rotate_key(args: &RotateKeyArgs) -> Done {
    if args.writer.key.log_key_file.is_some() && args.new_log_key_file.is_none() {
        return Err(CliError::NewKeyPlace);
    }
    let mut writer = open_writer(&args.ledger, &args.writer)?;
    let report = change_key(&mut writer, args.new_log_key_file.as_deref())?;
    if report.already {
        say(format_args!("this key took over with entry {} already", report.index));
    }
    print(args.json, &report, || {
        let LogKeys { rounds, submissions } = &report.log_keys;
        let index = report.index;
        format!(
            "entry {index} of the rounds log hands over; log keys, to give to auditors:\n  {rounds}\n  \
             {submissions}\n"
        )
    })
}

#[derive(Serialize)]
struct DiffDocument {
    tensors: Vec<TensorDiff>,
}

pub fn diff(args: &DiffArgs, progress: &dyn Progress) -> Done {
    let path = args.ledger.as_deref().expect("clap asks for it where there is no dispute");
    let ledger = open(path, &args.proxy)?;
    let newest = || ledger.sealed().last().map_or(At::Genesis, |s| At::Round(s.record.round));
    let tensors = diff_states(&ledger, args.from, args.to.unwrap_or_else(newest), progress)?;
    let document = DiffDocument { tensors };
    print(args.json, &document, || {
        let mut text =
            format!("{:>14} {:>14} {:>12} {:>12}  tensor\n", "changed", "of", "max", "rms");
        let number =
            |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.4e}"));
        for t in &document.tensors {
            let (max, rms) = (number(t.max_abs), number(t.rms));
            let _ = writeln!(
                text,
                "{:>14} {:>14} {max:>12} {rms:>12}  {}",
                t.changed, t.elements, t.name
            );
        }
        text
    })
}

pub fn fsck(args: &FsckArgs, progress: &dyn Progress) -> Done {
    let ledger = Ledger::open(&args.ledger)?;
    let report = check_ledger(&ledger, (&args.fold).into(), progress)?;
    print(args.json, &report, || {
        format!(
            "{} agrees: {} log entries, {} states{}, {} deltas, {} refused files, {} rounds \
             folded again, {} hashed\n",
            if report.copy { "what this copy holds" } else { "everything" },
            report.log_entries,
            report.checkpoints,
            if report.dropped > 0 {
                format!(" ({} dropped)", report.dropped)
            } else {
                String::new()
            },
            report.deltas,
            report.quarantined,
            report.rounds,
            size(report.bytes)
        )
    })
}
