//! The table at the end.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::demo::Made;
use crate::demo::volume::Traffic;

#[derive(Default)]
pub struct Report {
    pub volume_bytes: u64,
    pub baseline: Duration,
    /// Load after the baseline.
    pub seconds: Duration,
    /// What the workloads did.
    pub load: String,
    pub lag: Lag,
    pub replays: Vec<Duration>,
    /// Given to the device and to the journal, when the volume went live and in the end, since protect was started.
    pub at_live: Amounts,
    pub at_end: Amounts,
    pub events: Events,
    pub freezes_ms: Vec<u64>,
    pub marks_made: usize,
    pub marks_proven: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    pub device: Traffic,
    /// Stored, that is compressed.
    pub journal_bytes: u64,
}

/// Submissions the probes have counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    seen: u64,
    emitted: u64,
    marked: u64,
}

impl Events {
    pub fn of(status: &Value) -> Result<Events> {
        let counters = &status["counters"];
        let counter =
            |name: &str| counters[name].as_u64().with_context(|| format!("no counter `{name}`: {status}"));
        Ok(Events { seen: counter("seen")?, emitted: counter("emitted")?, marked: counter("marked")? })
    }
}

/// How far behind journal and replica were, each time it was looked at while live.
#[derive(Default)]
pub struct Lag {
    pending_ms: Vec<u64>,
    replica_ms: Vec<u64>,
}

impl Lag {
    pub fn see(&mut self, status: &Value) {
        if status["state"] == "live" {
            self.pending_ms.extend(status["pending_ms"].as_u64());
            self.replica_ms.extend(status["replica"]["age_ms"].as_u64());
        }
    }
}

impl Report {
    pub fn marks(&mut self, made: &[Made], proven: usize) {
        self.marks_made = made.len();
        self.marks_proven = proven;
        self.freezes_ms = made.iter().filter_map(|mark| mark.frozen_ms).collect();
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = self.at_end.device;
        let written = device.written_bytes - self.at_live.device.written_bytes;
        let journal = self.at_end.journal_bytes.saturating_sub(self.at_live.journal_bytes);
        let Events { seen, emitted, marked } = self.events;
        let seconds = |time: &Duration| format!("{:.1}", time.as_secs_f64());

        writeln!(f, "volume      {} ext4", size(self.volume_bytes))?;
        writeln!(f, "load        {} s live: {}", seconds(&self.seconds), self.load)?;
        writeln!(
            f,
            "written     {} to the device and {} discarded, {} of it live",
            size(device.written_bytes),
            size(device.discarded_bytes),
            size(written)
        )?;
        writeln!(f, "events      {seen} seen = {emitted} emitted + {marked} marked")?;
        writeln!(f, "baseline    {} s, under load", seconds(&self.baseline))?;
        write!(f, "journal     {}, {} of it since live", size(self.at_end.journal_bytes), size(journal))?;
        if written > 0 {
            write!(f, ": {:.2} for each byte written", journal as f64 / written as f64)?;
        }
        writeln!(f)?;
        let replica: Vec<_> = self.lag.replica_ms.iter().map(|ms| *ms as f64 / 1000.0).collect();
        writeln!(
            f,
            "lag         journal median {} ms, at most {} ms; replica median {:.1} s, at most {:.1} s; {} samples",
            median(&self.lag.pending_ms).unwrap_or_default(),
            self.lag.pending_ms.iter().max().unwrap_or(&0),
            median(&replica).unwrap_or_default(),
            replica.iter().copied().fold(0.0, f64::max),
            self.lag.pending_ms.len()
        )?;
        let bounds = |texts: Vec<String>| match (texts.first(), texts.last()) {
            (Some(least), Some(most)) => format!("{least} to {most}"),
            _ => "-".into(),
        };
        let mut freezes = self.freezes_ms.clone();
        freezes.sort_unstable();
        writeln!(f, "freeze      {} ms", bounds(freezes.iter().map(u64::to_string).collect()))?;
        let mut replays = self.replays.clone();
        replays.sort_unstable();
        writeln!(f, "replay      {} s", bounds(replays.iter().map(seconds).collect()))?;
        writeln!(f, "marks       {} made, {} proven", self.marks_made, self.marks_proven)
    }
}

/// `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((unit, shift)) => format!("{:.1} {unit}", bytes as f64 / (1_u64 << shift) as f64),
        None => format!("{bytes} B"),
    }
}

/// The upper one of two in the middle.
fn median<T: PartialOrd + Copy>(values: &[T]) -> Option<T> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_unit_that_fits() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(1 << 30), "1.0 GiB");
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[5, 1, 9]), Some(5));
        assert_eq!(median::<u64>(&[]), None);
    }

    #[test]
    fn lag_counts_only_while_live_and_a_replica_without_mark_has_no_age() {
        let mut lag = Lag::default();
        let status = |text: &str| serde_json::from_str::<Value>(text).expect("it is JSON");
        lag.see(&status(r#"{"state": "baseline", "pending_ms": 900, "replica": {"age_ms": null}}"#));
        lag.see(&status(r#"{"state": "live", "pending_ms": 7, "replica": {"age_ms": null}}"#));
        lag.see(&status(r#"{"state": "live", "pending_ms": 8, "replica": {"age_ms": 1500}}"#));
        assert_eq!((lag.pending_ms, lag.replica_ms), (vec![7, 8], vec![1500]));
    }

    #[test]
    fn counters_that_are_missing_are_an_error() {
        let status = serde_json::from_str(r#"{"counters": {"seen": 5, "emitted": 3}}"#).expect("it is JSON");
        assert!(Events::of(&status).expect_err("`marked` is missing").to_string().contains("marked"));
    }

    #[test]
    fn the_table_of_a_load_that_wrote_nothing_divides_by_nothing() {
        let text = Report::default().to_string();
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }
}
