//! What happens, told while it happens: short lines on stderr, for someone who sees this for the
//! first time.

use super::{
    cheats::COPIED,
    miners::{CHEAT, HONEST},
    proof::{Proof, Tampering},
    run::CopyLine,
};
use crate::{cli::output::size, types::progress::Progress};

/// Width of a line, and of what stands before its text.
const LINE: usize = 100;
const HEAD: usize = 10;

/// Tells what happens.
pub struct Story<'a> {
    pub progress: &'a dyn Progress,
}

impl Story<'_> {
    /// A paragraph: `head`, then `text` beside it, in lines that fit a terminal.
    fn tell(&self, head: &str, text: &str) {
        let mut line = format!("{head:HEAD$}");
        let mut empty = true;
        for word in text.split_whitespace() {
            if !empty && line.len() + 1 + word.len() > LINE {
                self.progress.note(&line);
                line = " ".repeat(HEAD);
                empty = true;
            }
            if !empty {
                line.push(' ');
            }
            line += word;
            empty = false;
        }
        self.progress.note(&line);
    }

    /// What is about to happen.
    pub fn opening(&self, parameters: usize, steps: u32) {
        let count = HONEST.len();
        self.tell(
            "",
            &format!(
                "{count} strangers train a small language model together. Each has a part of a text, the Apache \
                 licence, and shows it to nobody. One more, {CHEAT}, has nothing and wants a share all the same. \
                 What they send, what is refused and what the model becomes: all of it goes into a ledger."
            ),
        );
        self.tell(
            "init",
            &format!(
                "The first weights, {parameters} random numbers, and the public keys of all become the ledger's \
                 first entry."
            ),
        );
        self.tell(
            "",
            &format!(
                "Each round: a miner trains {steps} steps, and sends the changes that matter most, signed (a \
                 delta); the ledger checks all deltas and averages them (a seal); all go on from there."
            ),
        );
    }

    pub fn wrote(&self, when: &str, text: &str) {
        self.tell("", &format!("{when} the model writes: {text}"));
    }

    pub fn round(&self, round: u64, miners: usize, size: &str, before: f64, after: f64) {
        let text = format!("{miners} deltas of {size}; loss {before:.2} -> {after:.2}");
        self.tell(&format!("round {round}"), &text);
    }

    pub fn refused(&self, story: &str, details: &str, in_log: bool) {
        let place = if in_log { "in the log, with its reason" } else { "at the door" };
        self.tell("", story);
        self.tell("", &format!("REFUSED {place}: {details}"));
    }

    pub fn copied(&self, story: &str, copy: &CopyLine, others: f64) {
        let (share, others) = (100.0 * copy.share_common, 100.0 * others);
        self.tell("", story);
        self.tell(
            "",
            &format!(
                "SEEN: no rule forbids it, but {CHEAT} and {COPIED} have {share:.0} % of their positions in common, \
                 any two others at most {others:.0} % (table `overlap`)"
            ),
        );
    }

    pub fn replayed(&self, rounds: usize) {
        let text = format!(
            "All {rounds} rounds are folded again from the first weights: every root (a hash that stands for a \
             whole model) is equal."
        );
        self.tell("replay", &text);
    }

    pub fn proved(&self, proof: &Proof) {
        let Proof { miner, round, bundle_bytes, passed, .. } = proof;
        let (size, checks) = (size(*bundle_bytes), passed.len());
        let text = format!(
            "{miner} proves that the delta of round {round} was {miner}'s, and counted: {checks} checks of a file of \
             {size}, without the ledger."
        );
        self.tell("prove", &text);
    }

    pub fn tampered(&self, tampering: &Tampering) {
        self.tell(
            "tamper",
            "One bit of a copy is flipped, and everything hashed again (fsck). It finds:",
        );
        self.tell("", &tampering.found);
    }
}
