//! The run: rounds of training through the ledger, with a trick in most of them.

use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use super::{
    super::{exit::CliError, output::size},
    cheats::{COPIED, Scene, Trick},
    miners::{Answer, CHEAT, Miner, TEXT, read_state, write_checkpoint},
    model::Model,
    story::Story,
    train::loss,
};
use crate::{
    ledger::{
        init::{InitOptions, init},
        seal::{FoldOptions, SealReport, seal},
        submit::Receipt,
        tables::{likenesses, shares},
        writer::LedgerWriter,
    },
    types::{
        bits::F32Bits,
        digest::Digest,
        progress::Silent,
        record::MinersPolicy,
        refusal::Code,
        rule::{Dialect, Mean, Norm, SparseMeanSgd},
    },
};

/// How many rounds there are.
pub const ROUNDS: u64 = 12;

/// Share of positions in common, and cosine, beyond which a delta is called a copy: as in the view
/// `copies` of gradledger.sql.
const COPY_SHARE: f64 = 0.9;

/// The seed of the first weights.
const SEED: u64 = 1;

/// A round as it went.
#[derive(Serialize)]
pub struct RoundLine {
    pub round: u64,
    /// Mean surprise a byte over the whole text, in nats.
    pub loss: f64,
    /// The state after it.
    pub state: Digest,
    pub contributions: Vec<ContributionLine>,
}

/// What an accepted miner gave to a round.
#[derive(Serialize)]
pub struct ContributionLine {
    pub miner: &'static str,
    /// L2 norm of what it sent.
    pub norm: f64,
    /// Of the squared norms after clipping, summed over the round.
    pub share: f64,
}

/// Something that was refused.
#[derive(Serialize)]
pub struct RefusalLine {
    pub round: u64,
    pub miner: &'static str,
    pub tried: &'static str,
    pub code: Code,
    /// Whether it stands in the log with its reason, or was answered at once and left no trace.
    pub in_log: bool,
    pub details: String,
}

/// Two deltas that are too alike, although neither was refused.
#[derive(Serialize)]
pub struct CopyLine {
    pub round: u64,
    pub miners: [&'static str; 2],
    pub share_common: f64,
    pub cosine: f64,
}

/// What the rounds came to.
#[derive(Default)]
pub struct Course {
    pub rounds: Vec<RoundLine>,
    pub refusals: Vec<RefusalLine>,
    pub copies: Vec<CopyLine>,
    /// The receipt of the miner whose delta was copied, and the round.
    pub receipt: Option<(u64, Receipt)>,
}

/// A run under way.
pub struct Run<'a> {
    pub writer: LedgerWriter,
    pub honest: Vec<Miner>,
    mallory: Miner,
    steps: u32,
    story: &'a Story<'a>,
}

impl<'a> Run<'a> {
    /// Makes the miners and the first weights, and starts a ledger from them.
    pub fn start(dir: &Path, steps: u32, story: &'a Story<'a>) -> Result<Self, CliError> {
        let honest = Miner::honest(dir)?;
        let mallory = Miner::new(dir, CHEAT, b"Pay me. Pay me. Pay me. Pay me. Pay me.")?;
        let genesis = dir.join("genesis.safetensors");
        write_checkpoint(&genesis, &Model::random(SEED))?;
        let hotkeys = honest.iter().chain([&mallory]).map(Miner::hotkey).collect();
        let options = InitOptions {
            miners: MinersPolicy::Hotkeys(hotkeys),
            ..InitOptions::new("demo", "demo.invalid/gradledger", &genesis, rule())
        };
        let ledger = dir.join("ledger");
        init(&ledger, &options, &Silent)?;
        let writer = LedgerWriter::open(&ledger, None)?;
        Ok(Self { writer, honest, mallory, steps, story })
    }

    /// The newest state's weights.
    pub fn model(&self) -> Result<Model, CliError> {
        read_state(self.writer.ledger(), self.writer.ledger().newest())
    }

    /// All rounds, one after the other, from a model with this loss.
    pub fn all(&mut self, loss_first: f64) -> Result<Course, CliError> {
        let mut course = Course::default();
        let mut before = loss_first;
        for round in 1..=ROUNDS {
            self.round(round, before, &mut course)?;
            before = course.rounds.last().map_or(before, |line| line.loss);
        }
        Ok(course)
    }

    fn round(&mut self, round: u64, before: f64, course: &mut Course) -> Result<(), CliError> {
        let (base, model) = (self.writer.ledger().newest(), self.model()?);
        let trained = self.train(&model);
        let mut bytes = 0;
        for (miner, trained) in self.honest.iter().zip(&trained) {
            let delta = miner.make_delta(self.writer.ledger(), base, trained, round)?;
            let path = miner.delta_path(round);
            let answer = miner.submit(&mut self.writer, &path, round, base)?;
            let receipt = answer.map_err(CliError::Refused)?;
            bytes += delta.bytes;
            if miner.name == COPIED && Trick::of_round(round) == Some(Trick::Copy) {
                course.receipt = Some((round, receipt));
            }
        }
        let trick = Trick::of_round(round);
        let answer = trick.map(|trick| self.play(trick, round, &model, &trained)).transpose()?;
        let report = seal(&mut self.writer, round, FoldOptions::default(), &Silent)?;
        let line = self.line(&report)?;
        let size = size(bytes / self.honest.len() as u64);
        self.story.round(round, self.honest.len(), &size, before, line.loss);
        course.rounds.push(line);
        match trick.zip(answer) {
            Some((trick, answer)) => self.outcome(trick, answer, &report, course),
            None => Ok(()),
        }
    }

    /// Each on a core of its own, if there are as many.
    fn train(&mut self, base: &Model) -> Vec<Model> {
        let steps = self.steps;
        self.honest.par_iter_mut().map(|miner| miner.train(base, steps)).collect()
    }

    fn play(
        &mut self,
        trick: Trick,
        round: u64,
        model: &Model,
        trained: &[Model],
    ) -> Result<Answer, CliError> {
        let idle = self.mallory.train(model, 1);
        let base = self.writer.ledger().newest();
        let (honest, mallory) = (&self.honest[..], &self.mallory);
        let scene = Scene { round, base, honest, trained, mallory, idle: &idle };
        scene.play(trick, &mut self.writer)
    }

    fn line(&self, report: &SealReport) -> Result<RoundLine, CliError> {
        let line = |share: crate::ledger::tables::Share| ContributionLine {
            miner: self.name(share.miner.hotkey()),
            norm: share.norm,
            share: share.share.unwrap_or_default(),
        };
        let contributions = shares(self.writer.ledger(), report.round)?.into_iter().map(line);
        Ok(RoundLine {
            round: report.round,
            loss: loss(&self.model()?, TEXT.as_bytes()),
            state: report.next.root,
            contributions: contributions.collect(),
        })
    }

    /// What came of a trick, which has to be what it should.
    fn outcome(
        &self,
        trick: Trick,
        answer: Answer,
        report: &SealReport,
        course: &mut Course,
    ) -> Result<(), CliError> {
        let (round, miner) = (report.round, trick.who());
        let rejected = report
            .rejected
            .iter()
            .find(|line| self.name(line.miner) == miner && line.reason != Code::Absent.as_str());
        let (code, in_log, details) = match (&answer, rejected) {
            (Err(refusal), _) => (refusal.code.as_str(), false, refusal.to_string()),
            (Ok(_), Some(line)) => {
                (line.reason.as_str(), true, line.details.clone().unwrap_or_default())
            }
            (Ok(_), None) => ("", true, String::new()),
        };
        if code != trick.code().map_or("", Code::as_str) {
            return Err(CliError::Demo(format!("round {round}: {trick:?} came to {code:?}")));
        }
        let Some(code) = trick.code() else { return self.alike(trick, round, course) };
        let details = self.readable(&details);
        self.story.refused(trick.story(), &details, in_log);
        let tried = trick.short();
        course.refusals.push(RefusalLine { round, miner, tried, code, in_log, details });
        Ok(())
    }

    /// A copy that no rule refuses is seen in what the deltas have in common.
    fn alike(&self, trick: Trick, round: u64, course: &mut Course) -> Result<(), CliError> {
        let all = likenesses(self.writer.ledger(), round)?;
        let mut others = 0.0_f64;
        for pair in all {
            if pair.share_common <= COPY_SHARE {
                others = others.max(pair.share_common);
                continue;
            }
            let miners = pair.miners.map(|miner| self.name(miner.hotkey()));
            let (share_common, cosine) = (pair.share_common, pair.cosine.unwrap_or_default());
            course.copies.push(CopyLine { round, miners, share_common, cosine });
        }
        match course.copies.last() {
            Some(copy) if copy.miners.contains(&COPIED) && copy.miners.contains(&CHEAT) => {
                self.story.copied(trick.story(), copy, others);
                Ok(())
            }
            _ => Err(CliError::Demo(format!("round {round}: the copy was not seen"))),
        }
    }

    /// Leaves a delta for the round that is open now, for the reader to submit.
    pub fn leave_delta(&mut self) -> Result<(), CliError> {
        let (base, model, steps) = (self.writer.ledger().newest(), self.model()?, self.steps);
        let trained = self.honest[0].train(&model, steps);
        self.honest[0].make_delta(self.writer.ledger(), base, &trained, ROUNDS + 1)?;
        Ok(())
    }

    /// Name and hotkey of each.
    pub fn names(&self) -> impl Iterator<Item = (&'static str, Digest)> {
        self.honest.iter().chain([&self.mallory]).map(|miner| (miner.name, miner.hotkey()))
    }

    fn name(&self, hotkey: Option<Digest>) -> &'static str {
        self.names().find(|(_, key)| Some(*key) == hotkey).map_or("?", |(name, _)| name)
    }

    /// `text` with names for hotkeys, and other digests cut short.
    fn readable(&self, text: &str) -> String {
        let word = |word: &str| match word.parse::<Digest>() {
            Ok(digest) => match self.name(Some(digest)) {
                "?" => format!("{}...", &word[..12]),
                name => name.to_owned(),
            },
            Err(_) => word.to_owned(),
        };
        // A digest may have a comma behind it.
        let words = text.split(' ').map(|text| match text.strip_suffix(',') {
            Some(before) => word(before) + ",",
            None => word(text),
        });
        words.collect::<Vec<_>>().join(" ")
    }
}

/// 30 of 256 weights a block are sent each round, in 2 bits and a position; the mean of what came is
/// applied at 0.8.
fn rule() -> SparseMeanSgd {
    SparseMeanSgd {
        dialect: Dialect::Native,
        chunk: 16,
        top_k: 30,
        bins: 4,
        lr_f32: F32Bits(0.8),
        mean: Mean::Contributors,
        norm: Norm::HistogramF64,
    }
}
