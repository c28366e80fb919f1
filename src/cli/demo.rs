//! The demo: files that Templar's own code wrote, through the whole ledger, in a few seconds.
//!
//! Two rounds of four miners (and two reserves) are imported, sealed, replayed, and the result
//! compared with the parameters that Templar computed. Then one bit of a copy is flipped, and found.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    import::checkpoint::Checkpoint,
    ledger::{
        At, Ledger, LedgerError,
        fsck::fsck,
        import::{Gradients, Peers, import_templar},
        init::{InitOptions, init},
        replay::{ReplayOptions, replay},
        seal::{FoldOptions, SealReport, seal},
        writer::LedgerWriter,
    },
    types::{
        bits::F32Bits,
        progress::{Progress, Silent},
        record::MinersPolicy,
        rule::{Dialect, Mean, Norm, SparseMeanSgd},
    },
};

use super::{DemoArgs, exit::CliError, output::print};

/// A file of the demo's round, as Templar named it.
struct Sample {
    path: &'static str,
    bytes: &'static [u8],
}

macro_rules! samples {
    ($($path:literal),* $(,)?) => {
        [$(Sample {
            path: $path,
            bytes: include_bytes!(concat!("../../tests/golden/templar/small/", $path)),
        }),*]
    };
}

static SAMPLES: [Sample; 15] = samples![
    "params-initial.safetensors",
    "w62834/gradient-62834-3-v2.1.28.pt",
    "w62834/gradient-62834-7-v2.1.28.pt",
    "w62834/gradient-62834-12-v2.1.28.pt",
    "w62834/gradient-62834-41-v2.1.28.pt",
    "w62834/gradient-62834-55-v2.1.28.pt",
    "w62834/gradient-62834-200-v2.1.28.pt",
    "w62834/params-after.safetensors",
    "w62835/gradient-62835-3-v2.1.28.pt",
    "w62835/gradient-62835-7-v2.1.28.pt",
    "w62835/gradient-62835-12-v2.1.28.pt",
    "w62835/gradient-62835-41-v2.1.28.pt",
    "w62835/gradient-62835-55-v2.1.28.pt",
    "w62835/gradient-62835-200-v2.1.28.pt",
    "w62835/params-after.safetensors",
];

const ROUNDS: [u64; 2] = [62834, 62835];

/// What the demo came to.
#[derive(Serialize)]
struct DemoReport {
    ledger: PathBuf,
    rounds: Vec<SealReport>,
    /// Tensors whose bits equal those that Templar's own code computed, over both rounds.
    equal_tensors: usize,
    /// What `fsck` said of the copy with one bit flipped.
    tampered: String,
}

pub fn demo(args: &DemoArgs, progress: &dyn Progress) -> Result<(), CliError> {
    let files = args.dir.join("templar");
    let ledger = args.dir.join("ledger");
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| CliError::Io { path, source }
    };
    if args.dir.exists() && fs::read_dir(&args.dir).map_err(io(&args.dir))?.next().is_some() {
        return Err(CliError::NotEmpty { path: args.dir.clone() });
    }
    for Sample { path, bytes } in &SAMPLES {
        let path = files.join(path);
        let parent = path.parent().unwrap_or(&files);
        fs::create_dir_all(parent).map_err(io(parent))?;
        fs::write(&path, bytes).map_err(io(&path))?;
    }
    progress.note("1. init: the first parameters become the run's genesis");
    start(&files, &ledger)?;
    let mut rounds = Vec::new();
    for (number, round) in (2..).step_by(2).zip(ROUNDS) {
        let directory = files.join(format!("w{round}"));
        progress.note(&format!("{number}. import: round {round}, the files of six miners"));
        let mut writer = LedgerWriter::open(&ledger, None)?;
        let peers = Peers { listed: vec![7, 3, 41, 12], reserve: vec![200, 55] };
        import_templar(
            &mut writer,
            round,
            &Gradients::Directory(&directory),
            Some(peers),
            &Silent,
        )?;
        let report = seal(&mut writer, round, FoldOptions::default(), &Silent)?;
        progress.note(&format!(
            "{}. seal: {} deltas folded, {} not needed; next state {:.16}",
            number + 1,
            report.accepted.len(),
            report.rejected.len(),
            report.next.root.to_hex()
        ));
        rounds.push(report);
    }
    let opened = Ledger::open(&ledger)?;
    let equal_tensors = compare(&opened, &files)?;
    progress.note(&format!("6. compare: {equal_tensors} tensors equal Templar's own, bit for bit"));
    replay_all(&opened)?;
    progress.note("7. replay: both rounds folded again from the log, every root equal");
    let tampered = tamper(&opened, &args.dir)?;
    progress.note("8. tamper: one bit flipped in a copy; fsck found it:");
    progress.note(&format!("   {tampered}"));
    let report = DemoReport { ledger: ledger.clone(), rounds, equal_tensors, tampered };
    print(args.json, &report, || next_steps(&ledger))
}

fn start(files: &Path, ledger: &Path) -> Result<(), LedgerError> {
    let rule = SparseMeanSgd {
        dialect: Dialect::Templar,
        chunk: 8,
        top_k: 4,
        bins: 4,
        lr_f32: F32Bits(0.4),
        mean: Mean::Contributors,
        norm: Norm::TorchCpuF32,
    };
    let options = InitOptions {
        run: "demo".to_owned(),
        origin: "demo.invalid/gradledger".to_owned(),
        checkpoint: &files.join("params-initial.safetensors"),
        select: None,
        rule,
        frozen: false,
        miners: MinersPolicy::Listed,
        key_file: None,
        anchor: None,
        files: &[],
    };
    init(ledger, &options, &Silent).map(|_| ())
}

/// How many tensors of the sealed states equal the parameters that Templar computed.
fn compare(ledger: &Ledger, files: &Path) -> Result<usize, CliError> {
    let mut equal = 0;
    for round in ROUNDS {
        let theirs =
            Checkpoint::open(&files.join(format!("w{round}/params-after.safetensors")), None)?;
        let ours = ledger.checkpoint(ledger.state(At::Round(round))?).map_err(LedgerError::from)?;
        for (index, spec) in theirs.tensors().iter().enumerate() {
            let mut expected = vec![0; usize::try_from(spec.bytes()).unwrap_or(0)];
            theirs.read(index, 0, &mut expected)?;
            let group = crate::types::manifest::group::WEIGHTS;
            let position = ours.manifest().position(group, spec.name());
            let position = position.ok_or(CliError::Demo("a tensor is missing"))?;
            let mut found = vec![0; expected.len()];
            let mut reader = ours.tensor(position).map_err(LedgerError::from)?;
            reader.read_exact(&mut found).map_err(LedgerError::from)?;
            if expected != found {
                return Err(CliError::Demo("a tensor differs from the one Templar computed"));
            }
            equal += 1;
        }
    }
    Ok(equal)
}

fn replay_all(ledger: &Ledger) -> Result<(), LedgerError> {
    let rounds = ROUNDS[0]..=ROUNDS[1];
    let options = ReplayOptions { rounds, tensor: None, fold: FoldOptions::default() };
    replay(ledger, &options, &Silent).map(|_| ())
}

/// Copies the ledger, flips one bit of a stored tensor, and gives what `fsck` says.
fn tamper(ledger: &Ledger, dir: &Path) -> Result<String, CliError> {
    let copy = dir.join("tampered");
    copy_all(&ledger.place().root, &copy)?;
    let state = ledger.checkpoint(ledger.newest()).map_err(LedgerError::from)?;
    let largest = state.manifest().descriptors().iter().max_by_key(|d| d.bytes);
    let largest = largest.ok_or(CliError::Demo("the model has no tensors"))?;
    let path = crate::store::segment::place::tensor(&copy, &largest.artifact(), largest.dtype);
    let mut bytes =
        fs::read(&path).map_err(|source| CliError::Io { path: path.clone(), source })?;
    // The first page's body starts after its header of some 20 bytes: this hits a value.
    bytes[100] ^= 1;
    fs::write(&path, bytes).map_err(|source| CliError::Io { path, source })?;
    match fsck(&Ledger::open(&copy)?, FoldOptions::default(), &Silent) {
        Ok(_) => Err(CliError::Demo("fsck did not see the flipped bit")),
        Err(found) => Ok(found.to_string()),
    }
}

fn copy_all(from: &Path, to: &Path) -> Result<(), CliError> {
    let io = |source| CliError::Io { path: from.to_owned(), source };
    fs::create_dir_all(to).map_err(io)?;
    for entry in fs::read_dir(from).map_err(io)? {
        let entry = entry.map_err(io)?;
        let target = to.join(entry.file_name());
        if entry.file_type().map_err(io)?.is_dir() {
            copy_all(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target).map_err(io)?;
        }
    }
    Ok(())
}

fn next_steps(ledger: &Path) -> String {
    let ledger = ledger.display();
    let dir = ledger.to_string();
    let base = Path::new(&dir).parent().unwrap_or(Path::new(".")).display();
    format!(
        "\nThe ledger is yours to explore:\n  \
         gradledger show {ledger} --round 62834\n  \
         gradledger log {ledger} --submissions\n  \
         gradledger diff {ledger} --from 62834 --to 62835\n  \
         gradledger export {ledger} --round 62835 --out {base}/weights\n  \
         gradledger fsck {base}/tampered\n"
    )
}
