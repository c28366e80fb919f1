//! Runs a process and watches how much anonymous memory it takes: what it allocated, and not the
//! page cache of the files it read.

use std::{
    fs, io,
    process::{Command, ExitStatus, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

/// How often the system is asked.
const EVERY: Duration = Duration::from_millis(10);

/// Runs `command` to its end, its output thrown away; gives the most anonymous memory, in bytes, that
/// it was seen with. Where there is no `/proc` that is 0.
pub fn watched(command: &mut Command) -> io::Result<(ExitStatus, u64)> {
    let mut child = command.stdout(Stdio::null()).spawn()?;
    let path = format!("/proc/{}/status", child.id());
    let (peak, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let status = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous_bytes(&path), Ordering::Relaxed);
                thread::sleep(EVERY);
            }
        });
        let status = child.wait();
        done.store(true, Ordering::Relaxed);
        status
    })?;
    Ok((status, peak.into_inner()))
}

/// What a status file in `/proc` says; 0 where there is none.
fn anonymous_bytes(status: &str) -> u64 {
    let text = fs::read_to_string(status).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
