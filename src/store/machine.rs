//! What the machine offers: facts that `doctor` judges, asked of the system once.
//!
//! Where a system does not say (no `/proc`, no time daemon), the fact is missing and nothing is made up.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    process::{self, Command, Stdio},
    time::{Duration, Instant},
};

use super::files::Files;

/// What this process has taken of the processors so far: all threads, the system's work for them included.
#[must_use]
pub fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// Most bytes that a measurement of the disk writes: 64 MiB.
pub const PROBE_BYTES_MAX: u64 = 64 << 20;

/// When a slow disk has been watched long enough.
const PROBE_TIME_MAX: Duration = Duration::from_secs(5);

/// Bytes written at once, and synced after.
const RUN_BYTES: usize = 4 << 20;

/// Small writes, each synced: what a commit is made of.
const SYNCS: usize = 15;

/// Files that a server has open for each connection: a socket, and a blob's file.
const FILES_OF_CONNECTION: u64 = 2;

/// Files that it has open beside those.
const FILES_BESIDE: u64 = 128;

/// How fast a disk is.
#[derive(Clone, Copy, Debug)]
pub struct DiskRate {
    /// Bytes written and synced a second.
    pub bytes_per_s: f64,
    /// Median time of writing 4 KiB and syncing them.
    pub sync: Duration,
}

/// Measures the disk that holds the directory `dir`.
///
/// The file has no name from right after it was made: the system removes it however this process ends.
///
/// # Errors
///
/// The operating system's.
pub fn measure(files: &dyn Files, dir: &Path) -> io::Result<DiskRate> {
    let path = dir.join(format!(".gradledger-doctor-{}", process::id()));
    let mut file = files.create_secret(&path)?;
    files.remove(&path)?;
    let mut syncs = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let started = Instant::now();
        file.write_all(&[0x5a; 4096])?;
        file.sync()?;
        syncs.push(started.elapsed());
    }
    syncs.sort();
    let (started, mut written) = (Instant::now(), 0);
    let run = vec![0xa5; RUN_BYTES];
    let left = PROBE_BYTES_MAX - (SYNCS * 4096) as u64;
    while written + RUN_BYTES as u64 <= left && started.elapsed() < PROBE_TIME_MAX {
        file.write_all(&run)?;
        file.sync()?;
        written += RUN_BYTES as u64;
    }
    let bytes_per_s = written as f64 / started.elapsed().as_secs_f64();
    Ok(DiskRate { bytes_per_s, sync: syncs[SYNCS / 2] })
}

/// How many files this process may have open.
pub fn open_files_max() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// How many connections a server can take that may have so many files open.
pub fn connections_within(open_files: u64) -> u64 {
    (open_files.saturating_sub(FILES_BESIDE) / FILES_OF_CONNECTION).max(1)
}

/// How many files a server has to be allowed for so many connections.
pub fn open_files_for(connections: u64) -> u64 {
    connections.saturating_mul(FILES_OF_CONNECTION).saturating_add(FILES_BESIDE)
}

/// Memory that can be had: what the system has free, or what the process's control group leaves.
pub fn memory_bytes() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let group = |file: &str| {
        fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse::<u64>().ok()
    };
    let left =
        group("memory.max").map(|max| max.saturating_sub(group("memory.current").unwrap_or(0)));
    Some((kib << 10).min(left.unwrap_or(u64::MAX)))
}

/// Whether the system's clock is kept right; none if nobody here says so.
pub fn clock_is_synchronised() -> Option<bool> {
    if Path::new("/run/systemd/timesync/synchronized").exists() {
        return Some(true);
    }
    let asked = Command::new("timedatectl")
        .args(["show", "--property=NTPSynchronized", "--value"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    match asked.stdout.trim_ascii() {
        b"yes" => Some(true),
        b"no" => Some(false),
        _ => None,
    }
}

/// The GPUs that have a device file, and the version of their driver, in words; none if there is none.
pub fn gpus() -> Option<String> {
    let is_gpu = |name: &str| {
        name.strip_prefix("nvidia").is_some_and(|n| !n.is_empty() && n.parse::<u16>().is_ok())
    };
    let devices = fs::read_dir("/dev").ok()?.filter_map(Result::ok);
    let found = devices.filter(|entry| entry.file_name().to_str().is_some_and(is_gpu)).count();
    let driver = fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let version = driver
        .split_whitespace()
        .find(|word| word.contains('.') && word.bytes().all(|b| b.is_ascii_digit() || b == b'.'));
    let driver = version.map_or(String::new(), |version| format!(", driver {version}"));
    (found > 0).then(|| format!("{found} NVIDIA{driver}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::files::Disk;

    #[test]
    fn the_disk_is_measured_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let rate = measure(&Disk, dir.path()).unwrap();
        assert!(rate.bytes_per_s > 0.0 && rate.sync > Duration::ZERO, "{rate:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(measure(&Disk, &dir.path().join("absent")).is_err());
    }
}
