//! The machine: is it fast, large and regular enough?

use std::{path::Path, time::Duration};

use gradledger_kernels::{cpu, sha256};

use super::{Examined, Status};
use crate::store::{files::Files, machine};

/// Below this a seal of a 72B model takes over an hour and a half.
const DISK_BYTES_PER_S_MIN: f64 = 50e6;

/// A receipt waits for ten syncs.
const SYNC_MAX: Duration = Duration::from_millis(50);

/// No disk that keeps its word is faster; memory is.
const SYNC_MIN: Duration = Duration::from_micros(5);

/// What the largest common runs of deltas, segments and connections have open.
const OPEN_FILES_MIN: u64 = 1024;

/// Fewer than this do not even open a round of some dozen miners.
const OPEN_FILES_LEAST: u64 = 128;

/// An encrypted hotkey takes 512 MiB while it is opened, a seal of wide tensors some hundreds.
const MEMORY_BYTES_MIN: u64 = 1 << 30;

pub(super) fn examine(files: &dyn Files, dir: &Path) -> Vec<Examined> {
    let mut found = disk(files, dir);
    found.extend([memory(), open_files(), processor(), kernels(), gpu(), clock()]);
    found
}

fn disk(files: &dyn Files, dir: &Path) -> Vec<Examined> {
    let rate = match machine::measure(files, dir) {
        Ok(rate) => rate,
        Err(error) => {
            let found = format!("{} cannot be written: {error}", dir.display());
            let mend = "make the directory, or give this user the right to write in it";
            return vec![Examined::bad("disk", Status::Failure, found, mend)];
        }
    };
    let write = format!("writes and syncs {:.0} MB/s", rate.bytes_per_s / 1e6);
    let slow = rate.bytes_per_s < DISK_BYTES_PER_S_MIN;
    let mend = "a seal writes the whole state: put the ledger on a faster disk";
    let sync = format!("4 KiB and a sync take {:.1?}", rate.sync);
    vec![Examined::warn_if(slow, "disk", write, mend), judge_sync(rate.sync, sync)]
}

fn judge_sync(sync: Duration, found: String) -> Examined {
    let mend = if sync > SYNC_MAX {
        "each receipt waits for ten syncs: a disk with a protected write cache takes less"
    } else if sync < SYNC_MIN {
        "that is memory, or a disk that does not sync: a power cut may take what was acknowledged"
    } else {
        return Examined::ok("sync", found);
    };
    Examined::bad("sync", Status::Warning, found, mend)
}

fn memory() -> Examined {
    let Some(bytes) = machine::memory_bytes() else {
        return Examined::ok("memory", "the system does not say how much can be had");
    };
    let mend =
        "an encrypted hotkey takes 512 MiB while it is opened, a seal of a 72B model 100 to 400";
    let found = format!("{} MiB can be had", bytes >> 20);
    Examined::warn_if(bytes < MEMORY_BYTES_MIN, "memory", found, mend)
}

fn open_files() -> Examined {
    let Some(most) = machine::open_files_max() else {
        return Examined::ok("open-files", "the system does not say how many files may be open");
    };
    let found = match most {
        u64::MAX => "any number of files may be open".to_owned(),
        most => format!("{most} files may be open"),
    };
    let mend =
        format!("run `ulimit -n {OPEN_FILES_MIN}` or more in the shell or the unit that starts it");
    let status = match most {
        ..OPEN_FILES_LEAST => Status::Failure,
        ..OPEN_FILES_MIN => Status::Warning,
        _ => return Examined::ok("open-files", found),
    };
    Examined::bad("open-files", status, found, mend)
}

fn processor() -> Examined {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut features = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! ask {
            ($($name:tt)*) => {
                $(if std::arch::is_x86_feature_detected!($name) { features.push($name) })*
            };
        }
        ask!("avx2" "fma" "f16c" "sha" "avx512f" "avx512bw");
    }
    if features.is_empty() {
        features.push("none that is used");
    }
    let found = format!("{cores} cores, {}: {}", std::env::consts::ARCH, features.join(" "));
    Examined::ok("processor", found)
}

/// Every path gives the same bits, so a slow one is only slow.
fn kernels() -> Examined {
    let (fold, hash) = (cpu::Path::best(), sha256::Path::best());
    let slow = fold.name() == "scalar" || hash == sha256::Path::Scalar;
    let mend = "the results are the same; a processor with AVX2 and SHA instructions is faster";
    Examined::warn_if(slow, "kernels", format!("fold {fold}, SHA-256 {hash}"), mend)
}

fn gpu() -> Examined {
    let found = machine::gpus().unwrap_or_else(|| "none found".to_owned());
    Examined::ok("gpu", format!("{found}; not used by this version"))
}

fn clock() -> Examined {
    let (found, mend) = match machine::clock_is_synchronised() {
        Some(true) => return Examined::ok("clock", "the system says that it is synchronised"),
        Some(false) => ("the system says that it is not synchronised", "start the time daemon"),
        None => (
            "nobody here says whether it is synchronised",
            "run systemd-timesyncd or another time daemon; in a container the host's counts",
        ),
    };
    Examined::bad("clock", Status::Warning, found, mend)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_is_neither_slow_nor_too_good_to_be_true() {
        let status = |micros| judge_sync(Duration::from_micros(micros), String::new()).status;
        assert_eq!(
            [1, 30, 4000, 60_000].map(status),
            [Status::Warning, Status::Ok, Status::Ok, Status::Warning]
        );
    }
}
