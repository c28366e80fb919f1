//! `demo`: a model trained by strangers through the whole ledger, cheats refused, all of it checked.
//!
//! `run` plays the rounds with `miners`, who train the `model`, and `cheats`; `proof` replays, proves
//! and tampers; `story` tells it, `report` and `plot` show what it came to. Nothing is staged: each
//! step calls what the command of its name calls, and what does not come out as told is an error.

mod cheats;
mod miners;
mod model;
mod plot;
mod proof;
mod report;
mod run;
mod story;
mod train;

use std::{fs, path::Path};

use self::{
    miners::{TEXT, io},
    model::{Model, Random},
    proof::{Proof, Tampering},
    report::{DemoReport, MinerLine, commands, text},
    run::{Course, ROUNDS, Run},
    story::Story,
};
use super::{DemoArgs, exit::CliError, output::print};
use crate::{ledger::Ledger, types::progress::Progress};

/// What the model has to have unlearned of its first surprise, at least.
const FALL_MIN: f64 = 0.25;

/// What the model is asked to go on from.
const PROMPT: &str = "Licensor";

/// How many bytes it writes.
const WRITTEN_BYTES: usize = 160;

/// Longest word of it that is shown whole.
const WORD_BYTES: usize = 40;

pub fn demo(args: &DemoArgs, progress: &dyn Progress) -> Result<(), CliError> {
    let dir = &args.dir;
    if dir.exists() && fs::read_dir(dir).map_err(io(dir))?.next().is_some() {
        return Err(CliError::NotEmpty { path: dir.clone() });
    }
    let report = play(args, &Story { progress })?;
    print(args.json, &report, || text(&report))
}

fn play(args: &DemoArgs, story: &Story<'_>) -> Result<DemoReport, CliError> {
    let dir = &args.dir;
    let mut run = Run::start(dir, args.steps, story)?;
    let (first, loss_first, wrote_first) = look(&run)?;
    story.opening(first.parameters(), args.steps);
    story.wrote("Untrained", &wrote_first);
    let course = run.all(loss_first)?;
    let (_, loss_last, wrote_last) = look(&run)?;
    story.wrote("Now", &wrote_last);
    if loss_last > (1.0 - FALL_MIN) * loss_first {
        return Err(CliError::Demo(format!("the loss went from {loss_first} to {loss_last}")));
    }
    run.leave_delta()?;
    let miners: Vec<MinerLine> =
        run.names().map(|(name, hotkey)| MinerLine { name, hotkey }).collect();
    // The ledger is let go of: what follows only reads it.
    drop(run);
    let (replayed, proof, tampering) = check(dir, &course, story)?;
    let report = DemoReport {
        ledger: dir.join("ledger"),
        plot: dir.join("demo.svg"),
        parameters: first.parameters(),
        steps: args.steps,
        miners,
        loss_first,
        loss_last,
        wrote_first,
        wrote_last,
        rounds: course.rounds,
        refusals: course.refusals,
        copies: course.copies,
        replayed,
        commands: commands(dir, &proof.log_keys),
        proof,
        tampering,
    };
    leave_files(dir, &report)?;
    Ok(report)
}

/// The newest model, its loss over the whole text, and what it writes.
fn look(run: &Run<'_>) -> Result<(Model, f64, String), CliError> {
    let model = run.model()?;
    let loss = train::loss(&model, TEXT.as_bytes());
    let wrote = written(&model.write(PROMPT, WRITTEN_BYTES, &mut Random(3)));
    Ok((model, loss, wrote))
}

/// What the ledger is for, done with the finished one.
fn check(
    dir: &Path,
    course: &Course,
    story: &Story<'_>,
) -> Result<(usize, Proof, Tampering), CliError> {
    let ledger = Ledger::open(&dir.join("ledger"))?;
    let replayed = proof::replay_all(&ledger, ROUNDS)?;
    story.replayed(replayed);
    let receipt = course.receipt.as_ref();
    let (round, receipt) = receipt.ok_or_else(|| CliError::Demo("no receipt".to_owned()))?;
    let proof = proof::prove_receipt(&ledger, dir, (*round, cheats::COPIED, receipt))?;
    story.proved(&proof);
    let tampering = proof::tamper(&ledger, dir)?;
    story.tampered(&tampering);
    Ok((replayed, proof, tampering))
}

/// The picture, the views, and who is who.
fn leave_files(dir: &Path, report: &DemoReport) -> Result<(), CliError> {
    let svg = plot::plot(report).map_err(|error| CliError::Demo(format!("the plot: {error}")))?;
    let names = report.miners.iter().map(|line| format!("{},{}\n", line.name, line.hotkey));
    let names = "name,miner\n".to_owned() + &names.collect::<String>();
    let sql = include_str!("../../../gradledger.sql");
    let files = [("demo.svg", svg.as_str()), ("miners.csv", &names), ("gradledger.sql", sql)];
    for (name, text) in files {
        let path = dir.join(name);
        fs::write(&path, text).map_err(io(&path))?;
    }
    Ok(())
}

/// What a model wrote, on one line: what cannot be printed becomes a dot, and no word is endless.
fn written(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_graphic() || c.is_ascii_whitespace() { c } else { '.' };
    let text: String = text.chars().map(plain).collect();
    let word = |word: &str| match word.get(..WORD_BYTES) {
        Some(start) => format!("{start}..."),
        None => word.to_owned(),
    };
    text.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}
