//! What the largest known run of this kind would take on this machine.

use serde::Serialize;

use super::disk::{DiskRates, Pass, REPLAY_WARM, ROUNDS, ROUNDS_WARM};

/// Parameters of Covenant-72B.
const PARAMETERS: f64 = 72.7e9;

/// Its rounds.
const RUN_ROUNDS: f64 = 6190.0;

/// Bytes of its state.
const STATE_BYTES: f64 = 4.0 * PARAMETERS;

/// How long something would take: the longer of what the processor and what the disk needs, since they work
/// at the same time.
#[derive(Serialize)]
pub struct Estimate {
    pub what: &'static str,
    pub seconds: f64,
    pub bound_by: &'static str,
    pub processor_seconds: f64,
    pub disk_seconds: f64,
}

impl Estimate {
    fn new(what: &'static str, processor_seconds: f64, disk_seconds: f64) -> Self {
        let seconds = processor_seconds.max(disk_seconds);
        let bound_by = if seconds > disk_seconds { "processor" } else { "disk" };
        Self { what, seconds, bound_by, processor_seconds, disk_seconds }
    }
}

/// A round's seal, its replay, and a replay of all rounds in passes of ten, nothing written.
pub fn all(disk: &DiskRates, passes: &[Pass]) -> Vec<Estimate> {
    let rate = |name: &str| {
        passes.iter().find(|pass| pass.name == name).map_or(0.0, |pass| pass.parameters_per_s)
    };
    let delta_bytes = disk.delta_bytes_per_state_byte * STATE_BYTES;
    let read = |bytes: f64| bytes / disk.read_cold_bytes_per_s;
    let written = STATE_BYTES / disk.write_bytes_per_s;
    let one = PARAMETERS / rate(REPLAY_WARM);
    let ten = PARAMETERS / rate(ROUNDS_WARM);
    let reading = read(STATE_BYTES + delta_bytes);
    let long = read(STATE_BYTES + ROUNDS as f64 * delta_bytes);
    let passes = RUN_ROUNDS / ROUNDS as f64;
    vec![
        Estimate::new("a round sealed", one, reading + written),
        Estimate::new("a round replayed", one, reading),
        Estimate::new("all 6,190 rounds replayed", passes * ten, passes * long),
    ]
}
