//! What the demo came to: one document, or a curve, tables and commands to try.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    cheats::COPIED,
    proof::{Proof, Tampering},
    run::{CopyLine, ROUNDS, RefusalLine, RoundLine},
};
use crate::types::digest::Digest;

/// Length of the longest bar.
const BAR: f64 = 50.0;

/// A miner of the demo.
#[derive(Serialize)]
pub struct MinerLine {
    pub name: &'static str,
    pub hotkey: Digest,
}

/// What the demo came to.
#[derive(Serialize)]
pub struct DemoReport {
    pub ledger: PathBuf,
    pub plot: PathBuf,
    pub parameters: usize,
    pub steps: u32,
    pub miners: Vec<MinerLine>,
    /// Mean surprise a byte, in nats, before the first round and after the last.
    pub loss_first: f64,
    pub loss_last: f64,
    pub wrote_first: String,
    pub wrote_last: String,
    pub rounds: Vec<RoundLine>,
    pub refusals: Vec<RefusalLine>,
    pub copies: Vec<CopyLine>,
    /// Rounds folded again to equal roots.
    pub replayed: usize,
    pub proof: Proof,
    pub tampering: Tampering,
    /// What to try.
    pub commands: Vec<String>,
}

/// For people.
pub fn text(report: &DemoReport) -> String {
    let bar = if io::stdout().is_terminal() { '█' } else { '#' };
    let mut text = curve(report, bar);
    text += &contributions(report);
    text += &refusals(report);
    let plot = report.plot.display();
    let _ = writeln!(text, "\nThe same as a picture: {plot}. Try, it is all yours:\n");
    report.commands.iter().for_each(|command| {
        let _ = writeln!(text, "  {command}");
    });
    let sql = shell(&report.ledger);
    let _ = writeln!(
        text,
        "\nAs tables, with DuckDB: (cd {sql} && duckdb -init ../gradledger.sql); the README has questions \
         to ask."
    );
    text
}

fn curve(report: &DemoReport, bar: char) -> String {
    let mut text =
        "\nloss: how surprised the model is by the next byte (0: it knew)\n\n".to_owned();
    let first = ("start".to_owned(), report.loss_first);
    let rounds = report.rounds.iter().map(|line| (format!("round {}", line.round), line.loss));
    for (name, loss) in [first].into_iter().chain(rounds) {
        let length = (BAR * loss / report.loss_first).round() as usize;
        let bars: String = std::iter::repeat_n(bar, length).collect();
        let _ = writeln!(text, "{name:>9} {loss:6.3} {bars}");
    }
    text
}

fn contributions(report: &DemoReport) -> String {
    let mut text =
        "\nwho contributed: rounds that counted, and the mean share of them\n\n".to_owned();
    for MinerLine { name, hotkey } in &report.miners {
        let lines = report.rounds.iter().flat_map(|round| &round.contributions);
        let shares: Vec<f64> = lines.filter(|l| l.miner == *name).map(|l| l.share).collect();
        let mean = shares.iter().sum::<f64>() / (shares.len() as f64).max(1.0);
        let refused = report.refusals.iter().filter(|refusal| refusal.miner == *name).count();
        let _ = writeln!(
            text,
            "{name:>9} {:>3} of {} rounds {:>5.1} %  {refused} refused  hotkey {:.12}...",
            shares.len(),
            report.rounds.len(),
            100.0 * mean,
            hotkey.to_hex()
        );
    }
    text
}

fn refusals(report: &DemoReport) -> String {
    let mut text = "\nwhat was refused, and why\n\n".to_owned();
    for line in &report.refusals {
        let RefusalLine { round, miner, tried, code, in_log, .. } = line;
        let place = if *in_log { "in the log" } else { "at the door" };
        let code = code.as_str();
        let _ = writeln!(text, "{round:>9} {miner:8} {tried:32} {code:22} {place}");
    }
    for copy in &report.copies {
        let ([a, b], round) = (copy.miners, copy.round);
        let other = if a == COPIED { b } else { a };
        let share = 100.0 * copy.share_common;
        let _ = writeln!(
            text,
            "{round:>9} {other:8} {:32} counted, but seen: {share:.0} % in common with {COPIED}",
            "a copy with a few bits changed"
        );
    }
    text
}

/// Five commands that work when pasted, from where the demo was called.
pub fn commands(dir: &Path, log_keys: &[String]) -> Vec<String> {
    let program = std::env::args_os().next().unwrap_or_else(|| "gradledger".into());
    let program = shell(Path::new(&program));
    let at = |path: &str| shell(&dir.join(path));
    let (ledger, open) = (at("ledger"), ROUNDS + 1);
    let keys: Vec<String> = log_keys.iter().map(|key| format!("--log-key {key}")).collect();
    vec![
        format!("{program} show {ledger} --round 7"),
        format!("{program} verify {} {}", at("receipt.tar"), keys.join(" ")),
        format!("{program} fsck {}", at("tampered")),
        format!(
            "{program} submit {ledger} {} --round {open} --key {}",
            at(&format!("miners/ana/round-{open}")),
            at("miners/ana/hotkey")
        ),
        format!("{program} seal {ledger} --round {open}"),
    ]
}

/// A path as a word of a shell.
fn shell(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+:@%,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_words_of_a_shell() {
        for (path, word) in [
            ("./target/gradledger", "./target/gradledger"),
            ("/a b/$x", "'/a b/$x'"),
            ("it's", r"'it'\''s'"),
            ("", "''"),
        ] {
            assert_eq!(shell(Path::new(path)), word);
        }
    }
}
