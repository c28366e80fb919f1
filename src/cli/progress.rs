//! Progress on stderr: a bar on a terminal, a line a step elsewhere.

use std::{
    fmt,
    io::{self, IsTerminal as _, Write as _},
    sync::Mutex,
    time::Instant,
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::types::progress::Progress;

use super::output::size;

/// A line on stderr. If nobody reads it any more, the work goes on.
pub fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The process's stderr.
pub struct Terminal {
    quiet: bool,
    bars: bool,
    step: Mutex<Option<Step>>,
}

struct Step {
    name: String,
    bar: Option<ProgressBar>,
    bytes: u64,
    since: Instant,
}

impl Terminal {
    /// Progress for people, unless they want none.
    pub fn new(quiet: bool) -> Self {
        Self { quiet, bars: io::stderr().is_terminal(), step: Mutex::new(None) }
    }

    /// Takes a bar off the screen, so that an error message stands alone.
    pub fn clear(&self) {
        if let Some(Step { bar: Some(bar), .. }) = self.lock().take() {
            bar.finish_and_clear();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Step>> {
        // A panic elsewhere must not hide behind a second one here.
        self.step.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Progress for Terminal {
    fn begin(&self, step: &str, total_bytes: u64) {
        if self.quiet {
            return;
        }
        let bar = self.bars.then(|| {
            let template = "{msg:16} {bar:32} {bytes}/{total_bytes} {bytes_per_sec} eta {eta}";
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total_bytes).with_style(style).with_message(step.to_owned())
        });
        let name = step.to_owned();
        *self.lock() = Some(Step { name, bar, bytes: 0, since: Instant::now() });
    }

    fn advance(&self, bytes: u64) {
        if let Some(step) = self.lock().as_mut() {
            step.bytes += bytes;
            if let Some(bar) = &step.bar {
                bar.inc(bytes);
            }
        }
    }

    fn end(&self) {
        let Some(step) = self.lock().take() else { return };
        if let Some(bar) = step.bar {
            bar.finish_and_clear();
        }
        let seconds = step.since.elapsed().as_secs_f64();
        say(format_args!("{:16} {} in {seconds:.2} s", step.name, size(step.bytes)));
    }

    fn note(&self, line: &str) {
        if self.quiet {
            return;
        }
        match self.lock().as_ref().and_then(|step| step.bar.as_ref()) {
            Some(bar) => bar.suspend(|| say(format_args!("{line}"))),
            None => say(format_args!("{line}")),
        }
    }
}
