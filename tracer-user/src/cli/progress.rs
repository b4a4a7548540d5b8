use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::{say, size};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    Records,
}

/// How far a long work is, for people, on stderr: a bar with rate and time left on a terminal, otherwise a plain line
/// every few seconds. Short work shows nothing but the bar.
pub struct Progress {
    what: &'static str,
    unit: Unit,
    total: u64,
    done: u64,
    note: String,
    started: Instant,
    told: Instant,
    bar: Option<ProgressBar>,
}

const LINE_EVERY: Duration = Duration::from_secs(5);

impl Progress {
    /// `what` is the work as one says it: "restoring", "comparing".
    pub fn new(what: &'static str, unit: Unit, total: u64) -> Progress {
        let now = Instant::now();
        let bar = std::io::stderr().is_terminal().then(|| bar(what, unit, total));
        Progress { what, unit, total, done: 0, note: String::new(), started: now, told: now, bar }
    }

    /// `done` of the total; called as often as one likes.
    pub fn set(&mut self, done: u64) {
        self.done = done;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if self.told.elapsed() >= LINE_EVERY {
            self.told = Instant::now();
            say(&self.plain());
        }
    }

    /// The total turned out to be another.
    pub fn set_total(&mut self, total: u64) {
        self.total = total;
        if let Some(bar) = &self.bar {
            bar.set_length(total);
        }
    }

    /// A few words beside the numbers.
    pub fn note(&mut self, note: impl Into<String>) {
        self.note = note.into();
        if let Some(bar) = &self.bar {
            bar.set_message(self.note.clone());
        }
    }

    /// Takes the bar away; what came of it is told by the caller. Dropping does the same.
    pub fn finish(self) {}

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn plain(&self) -> String {
        let line = plain(self.what, self.unit, self.done, self.total, self.started.elapsed());
        if self.note.is_empty() { line } else { format!("{line}, {}", self.note) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(what: &'static str, unit: Unit, total: u64) -> ProgressBar {
    let template = match unit {
        Unit::Bytes => {
            "{prefix} [{wide_bar}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left {msg}"
        }
        Unit::Records => "{prefix} [{wide_bar}] {pos} of {len} records, {per_sec}, {eta} left {msg}",
    };
    let style =
        ProgressStyle::with_template(template).expect("the template is a constant that a test has parsed");
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(5));
    bar.set_style(style.progress_chars("=> "));
    bar.set_prefix(what);
    bar
}

fn plain(what: &str, unit: Unit, done: u64, total: u64, elapsed: Duration) -> String {
    let amount = |amount: u64| match unit {
        Unit::Bytes => size(amount),
        Unit::Records => format!("{amount} records"),
    };
    let percent = if total == 0 { 100 } else { u128::from(done) * 100 / u128::from(total) };
    let per_second = done as f64 / elapsed.as_secs_f64().max(0.001);
    let mut line = format!(
        "{what}: {} of {} ({percent} %), {}/s",
        amount(done),
        amount(total),
        amount(per_second as u64)
    );
    if per_second > 0.0 && total > done {
        let left = Duration::from_secs(((total - done) as f64 / per_second) as u64);
        line += &format!(", {} left", humantime::format_duration(left));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_have_rate_and_time_left() {
        let line = plain("comparing", Unit::Bytes, 1 << 30, 4 << 30, Duration::from_secs(10));
        assert_eq!(line, "comparing: 1.0 GiB of 4.0 GiB (25 %), 102.4 MiB/s, 30s left");
        let line = plain("restoring", Unit::Records, 50, 50, Duration::from_secs(5));
        assert_eq!(line, "restoring: 50 records of 50 records (100 %), 10 records/s");
        plain("nothing", Unit::Bytes, 0, 0, Duration::ZERO);
        plain("late", Unit::Bytes, 1, u64::MAX, Duration::from_secs(u64::MAX / 4));
    }

    #[test]
    fn both_bars_can_be_drawn() {
        for unit in [Unit::Bytes, Unit::Records] {
            bar("testing", unit, 10).finish_and_clear();
        }
    }
}
