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
    model::Random,
    report::{DemoReport, MinerLine, commands, text},
    run::{ROUNDS, Run},
    story::Story,
};
use super::{DemoArgs, exit::CliError, output::print};
use crate::{ledger::Ledger, types::progress::Progress};

/// What the model has to have unlearned of its first surprise, at least.
const FALL_MIN: f64 = 0.25;

/// What the model is asked to go on from.
const PROMPT: &str = "Licensor";

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
    let first = run.model()?;
    let loss_first = train::loss(&first, TEXT.as_bytes());
    let write = |model: &model::Model| written(&model.write(PROMPT, 60, &mut Random(3)));
    let wrote_first = write(&first);
    story.opening(first.parameters(), args.steps);
    story.wrote("untrained", &wrote_first);
    let course = run.all()?;
    let wrote_last = write(&run.model()?);
    story.wrote("now", &wrote_last);
    let loss_last = course.rounds.last().map_or(loss_first, |line| line.loss);
    if loss_last > (1.0 - FALL_MIN) * loss_first {
        return Err(CliError::Demo(format!("the loss went from {loss_first} to {loss_last}")));
    }
    run.leave_delta()?;
    let miners: Vec<MinerLine> =
        run.names().map(|(name, hotkey)| MinerLine { name, hotkey }).collect();
    // The ledger is let go of: what follows only reads it.
    drop(run);
    let ledger = Ledger::open(&dir.join("ledger"))?;
    story.say("");
    let replayed = proof::replay_all(&ledger, ROUNDS)?;
    story.say(&format!(
        "replay    all {replayed} rounds folded again from the genesis: every root is equal"
    ));
    let (round, receipt) = course.receipt.ok_or_else(|| CliError::Demo("no receipt".to_owned()))?;
    let proof = proof::prove_receipt(&ledger, dir, (round, cheats::COPIED, &receipt))?;
    story.say(&format!(
        "prove     {} proves with {} and no ledger that the delta of round {round} was {0}'s, and was first",
        proof.miner,
        super::output::size(proof.bundle_bytes)
    ));
    let tampering = proof::tamper(&ledger, dir)?;
    story.say("tamper    one bit of a copy is flipped; an audit finds it:");
    story.say(&format!("          {}", tampering.found));
    let mut report = DemoReport {
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
        proof,
        tampering,
        commands: Vec::new(),
    };
    report.commands = commands(dir, &report.proof.log_keys);
    leave_files(dir, &report)?;
    Ok(report)
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

/// What a model wrote, on one line; what cannot be printed becomes a dot.
fn written(text: &str) -> String {
    let plain =
        text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' || c == '\n' { c } else { '.' });
    let plain: String = plain.collect();
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}
