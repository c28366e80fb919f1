//! The disk as it is, and passes over it: first the floor, then the same with more work.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    sync::mpsc::{channel, sync_channel},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::lab::Lab;
use crate::{cli::exit::CliError, types::progress::Progress};

/// When there are turns enough; there is one at least.
const TIME_MAX: Duration = Duration::from_secs(15);
const TURNS_MAX: usize = 5;

/// Bytes read or written at once.
const BUFFER_BYTES: usize = 8 << 20;
const BUFFERS: usize = 4;

/// Rounds of a long pass.
pub const ROUNDS: usize = 10;

/// Bytes a second.
#[derive(Serialize)]
pub struct DiskRates {
    pub read_cold_bytes_per_s: f64,
    pub read_warm_bytes_per_s: f64,
    /// Synced.
    pub write_bytes_per_s: f64,
    /// What one round's deltas have more than the state.
    pub delta_bytes_per_state_byte: f64,
}

impl DiskRates {
    /// For people.
    pub fn lines(&self) -> [(&'static str, f64); 3] {
        [
            ("read, cold", self.read_cold_bytes_per_s),
            ("read, warm", self.read_warm_bytes_per_s),
            ("written and synced", self.write_bytes_per_s),
        ]
    }
}

/// One way to go over the state.
#[derive(Serialize)]
pub struct Pass {
    pub name: &'static str,
    pub seconds: f64,
    pub parameters_per_s: f64,
    /// What it is held against.
    pub over: Option<&'static str>,
    /// Its time over the other's.
    pub ratio: Option<f64>,
}

pub const COPY_COLD: &str = "copy, cold";
pub const ROUND_COLD: &str = "round, cold";
pub const REPLAY_WARM: &str = "round without writing, warm";
pub const ROUNDS_WARM: &str = "10 rounds without writing, warm";

/// What is timed, each with whether the files are out of the page cache before.
const KINDS: [(&str, bool); 11] = [
    ("read, cold", true),
    ("read, warm", false),
    ("write", false),
    (COPY_COLD, true),
    ("pass without a fold, cold", true),
    (ROUND_COLD, true),
    ("10 rounds, cold", true),
    ("pass without a fold, warm", false),
    (REPLAY_WARM, false),
    ("round, warm", false),
    (ROUNDS_WARM, false),
];

/// Measures all of them in turns.
pub fn measure(lab: &Lab<'_>, progress: &dyn Progress) -> Result<(DiskRates, Vec<Pass>), CliError> {
    let mut fastest = [f64::INFINITY; KINDS.len()];
    let (start, turn_bytes) = (Instant::now(), lab.state_bytes() * KINDS.len() as u64);
    progress.begin("passes", turn_bytes);
    for turn in 0..TURNS_MAX {
        for (kind, fastest) in fastest.iter_mut().enumerate() {
            if KINDS[kind].1 {
                lab.forget()?;
            }
            let start = Instant::now();
            run(lab, kind)?;
            *fastest = fastest.min(start.elapsed().as_secs_f64());
            if turn == 0 {
                progress.advance(lab.state_bytes());
            }
        }
        // The next turn takes as long as this one.
        if start.elapsed() + start.elapsed() / (turn as u32 + 1) > TIME_MAX {
            break;
        }
    }
    progress.end();
    Ok(results(lab, &fastest))
}

fn run(lab: &Lab<'_>, kind: usize) -> Result<(), CliError> {
    let (state, copy) = (lab.state_file(), lab.dir().join("tmp/copy"));
    let raw =
        |done: io::Result<()>| done.map_err(|source| CliError::Io { path: copy.clone(), source });
    match kind {
        0 | 1 => raw(File::open(&state).and_then(|file| read(file, |_| true))),
        2 => raw(File::create(&copy).and_then(|file| write_zeros(file, lab.state_bytes()))),
        3 => raw(copy_file(File::open(&state), File::create(&copy))),
        4 | 7 => lab.pass(0, true),
        5 | 9 => lab.pass(1, true),
        6 => lab.pass(ROUNDS, true),
        8 => lab.pass(1, false),
        _ => lab.pass(ROUNDS, false),
    }
}

fn results(lab: &Lab<'_>, fastest: &[f64; KINDS.len()]) -> (DiskRates, Vec<Pass>) {
    let bytes = lab.state_bytes() as f64;
    let rates = DiskRates {
        read_cold_bytes_per_s: bytes / fastest[0],
        read_warm_bytes_per_s: bytes / fastest[1],
        write_bytes_per_s: bytes / fastest[2],
        delta_bytes_per_state_byte: lab.delta_bytes() as f64 / bytes,
    };
    let pass = |kind: usize, over: Option<(&'static str, f64)>| Pass {
        name: KINDS[kind].0,
        seconds: fastest[kind],
        parameters_per_s: bytes / 4.0 / fastest[kind],
        over: over.map(|(over, _)| over),
        ratio: over.map(|(_, seconds)| fastest[kind] / seconds),
    };
    let passes = vec![
        pass(3, None),
        pass(4, Some((COPY_COLD, fastest[3]))),
        pass(5, Some((KINDS[4].0, fastest[4]))),
        pass(6, Some(("10 single rounds, cold", ROUNDS as f64 * fastest[5]))),
        pass(7, None),
        pass(8, None),
        pass(9, Some(("the larger of the two above", fastest[7].max(fastest[8])))),
        pass(10, Some(("10 single rounds without writing", ROUNDS as f64 * fastest[8]))),
    ];
    (rates, passes)
}

/// Reads a file to its end; `take` gets each buffer and says whether to go on.
fn read(mut file: File, mut take: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            read if take(&buffer[..read]) => {}
            _ => return Ok(()),
        }
    }
}

fn write_zeros(mut file: File, bytes: u64) -> io::Result<()> {
    let buffer = vec![0xa5; BUFFER_BYTES];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(BUFFER_BYTES as u64);
        file.write_all(&buffer[..now as usize])?;
        left -= now;
    }
    file.sync_all()
}

/// One thread reads, another writes and syncs: the least that a pass from disk to disk does.
fn copy_file(from: io::Result<File>, to: io::Result<File>) -> io::Result<()> {
    let (mut from, mut to) = (from?, to?);
    let (full_to, full) = sync_channel::<(Vec<u8>, usize)>(BUFFERS);
    let (empty_to, empty) = channel();
    for _ in 0..BUFFERS {
        empty_to.send(vec![0; BUFFER_BYTES]).expect("the other end is here");
    }
    thread::scope(|scope| {
        let reading = scope.spawn(move || -> io::Result<()> {
            while let Ok(mut buffer) = empty.recv() {
                let read = from.read(&mut buffer)?;
                if read == 0 || full_to.send((buffer, read)).is_err() {
                    break;
                }
            }
            Ok(())
        });
        for (buffer, read) in full {
            to.write_all(&buffer[..read])?;
            // The reader may be done already.
            let _ = empty_to.send(buffer);
        }
        drop(empty_to);
        reading.join().expect("reading does not panic")?;
        to.sync_all()
    })
}
