//! Anchoring beside the server: once enough rounds are sealed, the newest head goes to a chain.
//!
//! A thread looks at the ledger, waits for the chain, and takes the writer only to write down what it
//! is about to do and what came of it (`ledger/turns.rs`). A node that fails stops nothing: it is asked
//! again, after twice the time each time. What was under way when the server ended or was killed is
//! taken up when it starts again.

use std::{
    collections::VecDeque,
    num::NonZeroU64,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use super::Node;
use crate::{
    anchor::Witness,
    ledger::{
        Ledger, LedgerError,
        anchor::{AnchorOptions, AnchorReport, OpenChain, anchor},
        turns::Turns,
        witness::justify_waiting,
    },
    store::anchors,
    types::progress::Progress,
};

/// How often the ledger is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long after a failure it is tried again, the first time.
const RETRY_FIRST: Duration = Duration::from_secs(2);

/// How long after a failure it is tried again, at most.
const RETRY_MAX: Duration = Duration::from_secs(300);

/// How far the anchored heads are behind the sealed rounds, as this server saw it.
#[derive(Debug, Default)]
pub struct Lag {
    /// When each round that no anchored head holds was first seen, by its index in the log.
    waiting: VecDeque<(u64, Instant)>,
}

impl Lag {
    /// How many rounds wait, and for how long the oldest of them has.
    pub fn of(&mut self, ledger: &Ledger) -> (u64, Duration) {
        let unanchored = ledger.unanchored();
        let first = unanchored.first().map_or(u64::MAX, |sealed| sealed.index);
        while self.waiting.front().is_some_and(|(index, _)| *index < first) {
            self.waiting.pop_front();
        }
        let (seen, now) = (self.waiting.len().min(unanchored.len()), Instant::now());
        self.waiting.extend(unanchored[seen..].iter().map(|sealed| (sealed.index, now)));
        let since = self.waiting.front().map_or(now, |(_, since)| *since);
        (unanchored.len() as u64, now.duration_since(since))
    }
}

/// When and how it is anchored.
#[derive(Clone, Copy, Debug)]
pub struct AnchorEvery {
    /// Once so many rounds are sealed that no anchored head holds.
    pub rounds: NonZeroU64,
    /// What is done about what stands in the slot.
    pub options: AnchorOptions,
    /// How long after a look for justifications of earlier anchors the next one is taken.
    pub justify_after: Duration,
}

/// Whether the thread is to end.
#[derive(Default)]
struct Stop {
    told: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    fn tell(&self) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits so long, or until it is told to end; whether it was.
    fn wait(&self, time: Duration) -> bool {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(told, time, |told| !*told);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// The thread that anchors.
pub struct Anchorer {
    stop: Arc<Stop>,
    /// Nothing comes of it but its end.
    ended: Receiver<()>,
}

impl Anchorer {
    /// Starts to anchor the ledger of `node`, which `turns` writes.
    pub fn start(
        node: &Arc<Node>,
        turns: impl Turns + Send + 'static,
        open: OpenChain,
        every: AnchorEvery,
    ) -> Self {
        let (stop, (alive, ended)) = (Arc::new(Stop::default()), channel());
        let (node, stop_it) = (node.clone(), stop.clone());
        let work = Work { node, turns, open, every, stop: stop_it, justified: None };
        std::thread::spawn(move || work.run(alive));
        Self { stop, ended }
    }

    /// Tells it to begin nothing more.
    pub fn stop(&self) {
        self.stop.tell();
    }

    /// Waits so long for what is under way. What takes longer is taken up by the next server.
    pub fn end(self, time: Duration) {
        self.stop();
        if self.ended.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("an anchor is still under way; the next server takes it up");
        }
    }
}

struct Work<T> {
    node: Arc<Node>,
    turns: T,
    open: OpenChain,
    every: AnchorEvery,
    stop: Arc<Stop>,
    /// When justifications were last looked for.
    justified: Option<Instant>,
}

impl<T: Turns> Work<T> {
    /// Looks and anchors until it is told to end; `alive` is dropped then.
    fn run(mut self, alive: Sender<()>) {
        let mut retry = RETRY_FIRST;
        let mut pause = Duration::ZERO;
        while !self.stop.wait(pause) {
            // It tells of its failure itself.
            let _ = self.node.look();
            let ledger = self.node.snapshot().ledger.clone();
            let (rounds, since) = self.node.lag(&ledger);
            pause = LOOK_EVERY;
            match self.due(&ledger).then(|| self.anchor()) {
                None => {}
                Some(Ok(report)) => {
                    retry = RETRY_FIRST;
                    self.tell(&report, since);
                }
                Some(Err(error)) => {
                    self.node.metrics().anchor_failures.inc();
                    pause = retry;
                    retry = (retry * 2).min(RETRY_MAX);
                    let (lag_seconds, retry_seconds) = (since.as_secs(), pause.as_secs());
                    tracing::warn!(%error, lag_rounds = rounds, lag_seconds, retry_seconds, "not anchored");
                }
            }
        }
        drop(alive);
    }

    /// Whether enough rounds wait, or an earlier anchor is to be taken up.
    fn due(&self, ledger: &Ledger) -> bool {
        ledger.unanchored().len() as u64 >= self.every.rounds.get()
            || anchors::intent(ledger.place()).is_ok_and(|intent| intent.is_some())
    }

    fn anchor(&mut self) -> Result<AnchorReport, LedgerError> {
        let mut chain = (self.open)(&Logged)?;
        let report = anchor(&mut self.turns, &mut *chain, self.every.options, &Logged)?;
        if let Some(witness) = chain.witness() {
            self.justify(witness);
        }
        Ok(report)
    }

    /// Authorities sign for a block in some hundred: what they signed since is fetched.
    fn justify(&mut self, witness: &mut dyn Witness) {
        if self.justified.is_some_and(|at| at.elapsed() < self.every.justify_after) {
            return;
        }
        self.justified = Some(Instant::now());
        match justify_waiting(&mut self.turns, witness, &Logged) {
            Ok(0) => {}
            Ok(receipts) => tracing::info!(receipts, "justifications fetched"),
            Err(error) => tracing::warn!(%error, "no justifications fetched"),
        }
    }

    fn tell(&self, report: &AnchorReport, waited: Duration) {
        // It tells of its failure itself.
        let _ = self.node.look_now();
        let (lag_rounds, _) = self.node.lag(&self.node.snapshot().ledger);
        let (anchor, resumed) = (&report.anchor, report.resumed);
        let waited_seconds = waited.as_secs();
        tracing::info!(
            size = anchor.size,
            block = anchor.set_in,
            resumed,
            waited_seconds,
            lag_rounds,
            "anchored"
        );
    }
}

/// What a chain tells on the way goes to the log.
struct Logged;

impl Progress for Logged {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn end(&self) {}

    fn note(&self, line: &str) {
        tracing::info!("anchoring: {line}");
    }
}
