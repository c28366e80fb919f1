//! What a card reaches, beside what it can copy: one made-up matrix, turns, of which the fastest counts.

use std::{sync::Mutex, time::Instant};

use super::{CudaError, Gpu, Held, Lane, Round, Span, Threads};
use crate::{
    Band, Contribution, bytes as f32_bytes, made_up,
    memory::Floats,
    rates::{COLUMNS, MINERS_MAX, STEP, STRIP},
};

/// Rounds that are folded onto a resident state.
pub const ROUNDS: usize = 10;

const TURNS: usize = 5;
/// Lanes of a round whose state comes from the host, and strips (of 2 MiB) that each takes at a time.
const LANES: usize = 4;
const STRIPS_AT_ONCE: usize = 64;

/// What was measured, in bytes a second.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Bytes of the state.
    pub state_bytes: u64,
    /// Page-locked memory to the card.
    pub to_card: f64,
    /// The card to page-locked memory.
    pub to_host: f64,
    /// Within the card's memory, read and written bytes together.
    pub copy: f64,
    /// The fold of a state on the card, read and written bytes together.
    pub fold: f64,
    /// Hashing of pieces on the card.
    pub hash: f64,
    /// A round of a state on the host, back and forth with its rows, folded and hashed: bytes of state.
    pub single: f64,
    /// What the bus alone allows it.
    pub single_at_most: f64,
    /// Ten rounds of a state and rows on the card, folded, hashed and brought to roots: bytes of state
    /// times rounds.
    pub resident: f64,
}

/// Measures a state of about so many bytes, 20 miners a round.
///
/// Takes as much page-locked memory and a sixth, and on the card two and a half times as much.
///
/// # Errors
///
/// What befalls a card.
pub fn measure(gpu: &Gpu, state_bytes: u64) -> Result<Rates, CudaError> {
    let strips = usize::try_from(state_bytes / (4 * STRIP as u64)).unwrap_or(usize::MAX).max(1);
    let made_up = made_up::Round::new(strips * STRIP / COLUMNS, COLUMNS, MINERS_MAX, 7);
    let mut state = gpu.floats(strips * STRIP)?;
    state.fill(1.0);
    let rows = gpu.floats(MINERS_MAX * strips * made_up.strip_bytes().div_ceil(4))?;
    let rows = Rows::new(&made_up, strips, rows);
    let (bytes, row_bytes) = (size_of_val(&state[..]) as f64, rows.bytes as f64);
    let single = single(gpu, &rows, strips, &mut state)?;
    let mut lane = Lane::new(gpu, Threads::default())?;
    let round = Round { contributions: rows.of(0, strips), step: STEP, apply: true };
    let mut held = lane.hold(&rows.band(strips), &vec![round; ROUNDS], &state)?;
    let to_card = bytes / fastest(|| held.set_state(&state))?;
    let to_host = bytes / fastest(|| held.state(&mut state))?;
    let copy = bytes / waited(&mut held, Held::copy_half)?;
    let fold = (2.0 * bytes + row_bytes) / waited(&mut held, |held| held.fold(0))?;
    let hash = bytes / waited(&mut held, |held| held.hash(0))?;
    let resident = waited(&mut held, |held| {
        (0..ROUNDS).try_for_each(|round| held.fold(round).and_then(|()| held.hash(round)))?;
        held.roots()
    })?;
    Ok(Rates {
        state_bytes: bytes as u64,
        to_card,
        to_host,
        copy,
        fold,
        hash,
        single,
        // The bus works both ways at a time.
        single_at_most: bytes / ((bytes + row_bytes) / to_card).max(bytes / to_host),
        resident: ROUNDS as f64 * bytes / resident,
    })
}

/// Seconds of the fastest turn; the first warms up.
fn fastest(mut run: impl FnMut() -> Result<(), CudaError>) -> Result<f64, CudaError> {
    let mut least = f64::INFINITY;
    for turn in 0..=TURNS {
        let started = Instant::now();
        run()?;
        if turn > 0 {
            least = least.min(started.elapsed().as_secs_f64());
        }
    }
    Ok(least)
}

fn waited<'l, 'g>(
    held: &mut Held<'l, 'g>,
    queue: impl Fn(&mut Held<'l, 'g>) -> Result<(), CudaError>,
) -> Result<f64, CudaError> {
    fastest(|| {
        queue(held)?;
        held.wait()
    })
}

/// A round of a state on the host, lanes side by side: bytes of state a second.
fn single(gpu: &Gpu, rows: &Rows<'_>, strips: usize, state: &mut [f32]) -> Result<f64, CudaError> {
    let bytes = size_of_val(state) as f64;
    let mut lanes: Vec<_> =
        (0..LANES).map(|_| Lane::new(gpu, Threads::default())).collect::<Result<_, _>>()?;
    let seconds = fastest(|| {
        let left = Mutex::new(state.chunks_mut(STRIPS_AT_ONCE * STRIP).enumerate());
        let next = || left.lock().map_or(None, |mut left| left.next());
        let work = |lane: &mut Lane<'_>| -> Result<(), CudaError> {
            while let Some((number, state)) = next() {
                let first = number * STRIPS_AT_ONCE;
                let count = STRIPS_AT_ONCE.min(strips - first);
                let contributions = rows.of(first, count);
                let round = Round { contributions, step: STEP, apply: true };
                let span = Span { offset: 4 * (first * STRIP) as u64, last: false };
                lane.fold(&rows.band(count), span, &[round], state, true)?;
            }
            Ok(())
        };
        let work = &work;
        std::thread::scope(|scope| {
            let lanes = lanes.iter_mut();
            let started: Vec<_> = lanes.map(|lane| scope.spawn(move || work(lane))).collect();
            started.into_iter().try_for_each(|lane| lane.join().expect("a lane does not panic"))
        })
    })?;
    Ok(bytes / seconds)
}

/// A made-up round in page-locked memory: miner after miner, indices, then codes.
struct Rows<'r> {
    made_up: &'r made_up::Round,
    strips: usize,
    memory: Floats,
    bytes: usize,
}

impl<'r> Rows<'r> {
    fn new(made_up: &'r made_up::Round, strips: usize, mut memory: Floats) -> Self {
        let to = f32_bytes::of_f32_mut(&mut memory);
        let mut bytes = 0;
        for sent in made_up.contributions(MINERS_MAX, 0, strips) {
            for part in [sent.index, sent.code] {
                to[bytes..bytes + part.len()].copy_from_slice(part);
                bytes += part.len();
            }
        }
        Self { made_up, strips, memory, bytes }
    }

    fn band(&self, strips: usize) -> Band {
        self.made_up.strips(strips)
    }

    /// As [`made_up::Round::contributions`], of all miners.
    fn of(&self, first: usize, count: usize) -> Vec<Contribution<'_>> {
        let bytes = f32_bytes::of_f32(&self.memory);
        let mut start = 0;
        let mut part = |of: &[u8]| {
            let strip = of.len() / count;
            let part = &bytes[start + first * strip..][..of.len()];
            start += self.strips * strip;
            part
        };
        let sent = self.made_up.contributions(MINERS_MAX, first, count);
        sent.into_iter()
            .map(|sent| Contribution { index: part(sent.index), code: part(sent.code), ..sent })
            .collect()
    }
}
