//! The disk as it is, and passes over it: first the floor, then the same with more work.

use std::{
    fs::File,
    io::{self, Read as _},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::mpsc::{channel, sync_channel},
    thread,
    time::{Duration, Instant},
};

use gradledger_kernels::cpu;
use serde::Serialize;

use super::lab::Lab;
use crate::{
    cli::exit::CliError,
    fold::Engine,
    store::{
        files::{Disk, Files as _, WriteFile},
        machine::processor_time,
    },
    types::progress::Progress,
};

/// When there are turns enough, where nobody says how many; there is one at least.
const TIME_MAX: Duration = Duration::from_secs(15);
/// How many there are at most then.
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

const READ_COLD: &str = "read, cold";
const READ_WARM: &str = "read, warm";
const WRITE: &str = "write";
const COPY_COLD: &str = "copy, cold";
const PASS_COLD: &str = "pass without a fold, cold";
const ROUND_COLD: &str = "round, cold";
const ROUNDS_COLD: &str = "10 rounds, cold";
const PASS_WARM: &str = "pass without a fold, warm";
const ROUND_WARM: &str = "round, warm";
pub const REPLAY_WARM: &str = "round without writing, warm";
pub const ROUNDS_WARM: &str = "10 rounds without writing, warm";

/// What is done with the state.
#[derive(Clone, Copy)]
enum Work {
    Read,
    Write,
    Copy,
    /// Everything is read and checked, nothing folded, the state written.
    PassWithout,
    Pass {
        rounds: usize,
        writes: bool,
    },
}

impl Work {
    fn writes(self) -> bool {
        match self {
            Self::Read => false,
            Self::Write | Self::Copy | Self::PassWithout => true,
            Self::Pass { writes, .. } => writes,
        }
    }
}

/// What is timed, each with whether the files are out of the page cache before.
const KINDS: [(&str, bool, Work); 11] = [
    (READ_COLD, true, Work::Read),
    (READ_WARM, false, Work::Read),
    (WRITE, false, Work::Write),
    (COPY_COLD, true, Work::Copy),
    (PASS_COLD, true, Work::PassWithout),
    (ROUND_COLD, true, Work::Pass { rounds: 1, writes: true }),
    (ROUNDS_COLD, true, Work::Pass { rounds: ROUNDS, writes: true }),
    (PASS_WARM, false, Work::PassWithout),
    (REPLAY_WARM, false, Work::Pass { rounds: 1, writes: false }),
    (ROUND_WARM, false, Work::Pass { rounds: 1, writes: true }),
    (ROUNDS_WARM, false, Work::Pass { rounds: ROUNDS, writes: false }),
];

/// What one of them took.
#[derive(Clone, Copy)]
struct Taken {
    wall_s: f64,
    /// Of all threads together, the system's work for them included.
    processor_s: f64,
}

impl Taken {
    fn by(work: impl FnOnce() -> Result<(), CliError>) -> Result<Self, CliError> {
        let (start, processor) = (Instant::now(), processor_time());
        work()?;
        let processor_s = (processor_time() - processor).as_secs_f64();
        Ok(Self { wall_s: start.elapsed().as_secs_f64(), processor_s })
    }
}

/// Measures all of them in so many turns, or in as many as a quarter of a minute has; says how many it were.
pub fn measure(
    lab: &Lab<'_>,
    turns: Option<NonZeroUsize>,
    progress: &dyn Progress,
) -> Result<(usize, DiskRates, Vec<Pass>), CliError> {
    let mut fastest = [Taken { wall_s: f64::INFINITY, processor_s: 0.0 }; KINDS.len()];
    let turn_bytes = lab.state_bytes() * KINDS.len() as u64;
    progress.begin("passes", turn_bytes);
    // Each writes into memory that was just given back; memory that a virtual machine touches for the
    // first time costs more than all else.
    run(lab, Work::Write)?;
    let (start, mut done) = (Instant::now(), 0);
    while done < turns.map_or(TURNS_MAX, NonZeroUsize::get) {
        for (&(_, cold, work), fastest) in KINDS.iter().zip(&mut fastest) {
            if work.writes() {
                lab.clear()?;
            }
            if cold {
                lab.forget()?;
            }
            let taken = Taken::by(|| run(lab, work))?;
            if taken.wall_s < fastest.wall_s {
                *fastest = taken;
            }
            if done == 0 {
                progress.advance(lab.state_bytes());
            }
        }
        done += 1;
        // The next turn takes as long as this one.
        if turns.is_none() && start.elapsed() + start.elapsed() / done as u32 > TIME_MAX {
            break;
        }
    }
    progress.end();
    let (rates, passes) = results(lab, &fastest);
    Ok((done, rates, passes))
}

fn run(lab: &Lab<'_>, work: Work) -> Result<(), CliError> {
    let (copy, files) = (lab.output(), lab.files()?);
    let done = match work {
        Work::Read => File::open(&files[0]).and_then(read),
        Work::Write => create(&copy, lab).and_then(|file| write_filler(file, lab.state_bytes())),
        Work::Copy => create(&copy, lab).and_then(|to| copy_state(&files, to)),
        Work::PassWithout => return lab.pass(Engine::Idle, 1, true),
        Work::Pass { rounds, writes } => {
            return lab.pass(Engine::Cpu(cpu::Path::best()), rounds, writes);
        }
    };
    done.map_err(|source| CliError::Io { path: copy, source })
}

fn results(lab: &Lab<'_>, fastest: &[Taken; KINDS.len()]) -> (DiskRates, Vec<Pass>) {
    let bytes = lab.state_bytes() as f64;
    let taken = |of: &str| {
        let timed = KINDS.iter().zip(fastest).find(|((name, ..), _)| *name == of);
        *timed.expect("every name is one of a kind").1
    };
    let seconds = |of: &str| taken(of).wall_s;
    let rates = DiskRates {
        read_cold_bytes_per_s: bytes / seconds(READ_COLD),
        read_warm_bytes_per_s: bytes / seconds(READ_WARM),
        write_bytes_per_s: bytes / seconds(WRITE),
        delta_bytes_per_state_byte: lab.delta_bytes() as f64 / bytes,
    };
    let pass = |name, over: Option<(&'static str, f64)>| Pass {
        name,
        seconds: seconds(name),
        parameters_per_s: bytes / 4.0 / seconds(name),
        over: over.map(|(over, _)| over),
        ratio: over.map(|(_, other)| seconds(name) / other),
    };
    let singles = |of| ROUNDS as f64 * seconds(of);
    let each_thread = taken(ROUND_WARM).processor_s / lab.threads() as f64;
    let larger = seconds(WRITE).max(each_thread);
    let passes = vec![
        pass(COPY_COLD, None),
        pass(PASS_COLD, Some((COPY_COLD, seconds(COPY_COLD)))),
        pass(ROUND_COLD, Some((PASS_COLD, seconds(PASS_COLD)))),
        pass(ROUNDS_COLD, Some(("10 single rounds, cold", singles(ROUND_COLD)))),
        pass(PASS_WARM, None),
        pass(REPLAY_WARM, None),
        pass(ROUND_WARM, Some(("the larger of writing and a thread's processor time", larger))),
        pass(ROUNDS_WARM, Some(("10 single rounds without writing", singles(REPLAY_WARM)))),
    ];
    (rates, passes)
}

/// Reads a file to its end.
fn read(mut file: File) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

/// A file for the state, written the way that ours are, which is the fastest we know.
fn create(path: &Path, lab: &Lab<'_>) -> io::Result<Box<dyn WriteFile>> {
    let mut file = Disk.create(path)?;
    file.reserve(lab.state_bytes())?;
    Ok(file)
}

fn write_filler(mut file: Box<dyn WriteFile>, bytes: u64) -> io::Result<()> {
    let buffer = vec![0xa5; BUFFER_BYTES];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(BUFFER_BYTES as u64);
        file.write_all(&buffer[..now as usize])?;
        left -= now;
    }
    file.sync()
}

/// One thread reads all files, another writes the first and syncs: the least that a pass from disk to disk
/// does.
fn copy_state(files: &[PathBuf], mut to: Box<dyn WriteFile>) -> io::Result<()> {
    let (full_to, full) = sync_channel::<(Vec<u8>, usize)>(BUFFERS);
    let (empty_to, empty) = channel();
    for _ in 0..BUFFERS {
        empty_to.send(vec![0; BUFFER_BYTES]).expect("the other end is here");
    }
    thread::scope(|scope| {
        let reading = scope.spawn(move || -> io::Result<()> {
            let (state, deltas) = files.split_first().expect("there is a state");
            let mut from = File::open(state)?;
            while let Ok(mut buffer) = empty.recv() {
                let read = from.read(&mut buffer)?;
                if read == 0 || full_to.send((buffer, read)).is_err() {
                    break;
                }
            }
            deltas.iter().try_for_each(|delta| read(File::open(delta)?))
        });
        for (buffer, read) in full {
            to.write_all(&buffer[..read])?;
            // The reader may be done already.
            let _ = empty_to.send(buffer);
        }
        drop(empty_to);
        reading.join().expect("reading does not panic")?;
        to.sync()
    })
}
