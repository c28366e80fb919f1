//! What happens, told while it happens: short lines on stderr, for someone who sees this for the
//! first time.

use super::{cheats::COPIED, miners::CHEAT, run::CopyLine};
use crate::types::progress::Progress;

/// Tells what happens.
pub struct Story<'a> {
    pub progress: &'a dyn Progress,
}

impl Story<'_> {
    pub fn say(&self, line: &str) {
        self.progress.note(line);
    }

    /// The opening.
    pub fn opening(&self, parameters: usize, steps: u32) {
        self.say("Five strangers train a small language model together. Each has a fifth of a text, the Apache");
        self.say("licence, and shows it to nobody. A sixth, mallory, has nothing and wants a share all the same.");
        self.say("What they send, what is refused and what the model becomes: all of it goes into a ledger.");
        self.say("");
        self.say(&format!("init      the first weights, {parameters} random numbers, and six public keys: the run's genesis"));
        self.say(&format!("          each round: train {steps} steps, send the changes that matter most (a delta), signed;"));
        self.say(
            "          the ledger checks and averages them (seal), and all go on from the result",
        );
    }

    /// What the model writes.
    pub fn wrote(&self, when: &str, text: &str) {
        self.say(&format!("          {when} it writes: {text}"));
    }

    pub fn round(&self, round: u64, miners: usize, size: &str, before: f64, after: f64) {
        self.say(&format!(
            "round {round:>2}  {miners} miners trained; {miners} deltas of {size}; loss {before:.2} -> {after:.2}"
        ));
    }

    pub fn refused(&self, story: &str, details: &str, in_log: bool) {
        let place = if in_log { "in the log, with its reason" } else { "at the door" };
        self.say(&format!("          {story}"));
        self.say(&format!("          REFUSED {place}: {details}"));
    }

    pub fn copied(&self, story: &str, copy: &CopyLine, others: f64) {
        self.say(&format!("          {story}"));
        self.say(&format!(
            "          no rule forbids it, but it shows: {CHEAT} and {COPIED} have {:.0} % of their positions in common,",
            100.0 * copy.share_common
        ));
        self.say(&format!(
            "          any two others at most {:.0} % (table `overlap`)",
            100.0 * others
        ));
    }
}
