//! What a writer gets done, by fio, and what `afterwrite` counted and used meanwhile.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Protect, finish, scratch};

/// A writer of the benches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// 4 KiB at random places, 32 under way.
    Random4K,
    /// The same, one at a time: where the device is memory, that keeps one processor busy and no more.
    Single4K,
    /// 128 KiB one after the other, 8 under way.
    Sequential128K,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    pub iops: f64,
    /// 99 % of the writes took no longer.
    pub p99_us: f64,
    pub bytes: u64,
}

impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Writer::Random4K => "4 KiB random, io_uring, depth 32",
            Writer::Single4K => "4 KiB random, pwrite, one at a time",
            Writer::Sequential128K => "128 KiB sequential, io_uring, depth 8",
        })
    }
}

impl Writer {
    pub const ALL: [Writer; 3] = [Writer::Random4K, Writer::Single4K, Writer::Sequential128K];

    pub fn block_bytes(self) -> u64 {
        match self {
            Writer::Random4K | Writer::Single4K => 4 << 10,
            Writer::Sequential128K => 128 << 10,
        }
    }

    /// Writes to the device for so long, at most so many writes a second.
    pub fn measure(self, device: &Path, seconds: u64, iops_max: Option<u64>) -> Result<Measured> {
        let job = match self {
            Writer::Random4K => ["--ioengine=io_uring", "--rw=randwrite", "--bs=4k", "--iodepth=32"],
            Writer::Single4K => ["--ioengine=psync", "--rw=randwrite", "--bs=4k", "--iodepth=1"],
            Writer::Sequential128K => ["--ioengine=io_uring", "--rw=write", "--bs=128k", "--iodepth=8"],
        };
        let dir = scratch()?;
        let mut fio = Command::new("fio");
        fio.args(["--name=bench", "--thread", "--direct=1", "--time_based"]).args(job);
        fio.args(["--norandommap", "--randrepeat=0", "--output-format=json"]).current_dir(dir.path());
        fio.arg(format!("--filename={}", device.display())).arg(format!("--runtime={seconds}"));
        fio.args(iops_max.map(|iops| format!("--rate_iops={iops}")));
        let finished = finish(&mut fio, Duration::from_secs(seconds + 60))?;
        ensure!(finished.code == Some(0), "fio: {}{}", finished.stdout, finished.stderr);
        Measured::of(&finished.stdout)
    }
}

impl Measured {
    fn of(report: &str) -> Result<Measured> {
        // fio says things before its report now and then.
        let json = report.find('{').and_then(|at| report.get(at..)).unwrap_or_default();
        let report: Value = serde_json::from_str(json).with_context(|| format!("not JSON: {report}"))?;
        let write = &report["jobs"][0]["write"];
        let number = |value: &Value| value.as_f64().with_context(|| format!("fio does not say it: {write}"));
        Ok(Measured {
            iops: number(&write["iops"])?,
            p99_us: number(&write["clat_ns"]["percentile"]["99.000000"])? / 1000.0,
            bytes: write["io_bytes"].as_u64().context("fio does not say how much it wrote")?,
        })
    }
}

/// The counters of `status --json`, whichever there are.
pub type Counters = BTreeMap<String, u64>;

pub fn counters(protect: &Protect<'_>) -> Result<Counters> {
    let status = protect.volume_status()?;
    let all = status["counters"].as_object().with_context(|| format!("no counters in {status}"))?;
    Ok(all.iter().filter_map(|(name, value)| Some((name.clone(), value.as_u64()?))).collect())
}

/// By how much each that rose has risen.
pub fn risen(before: &Counters, after: &Counters) -> Counters {
    let by = |(name, value): (&String, &u64)| {
        let by = value.saturating_sub(*before.get(name).unwrap_or(&0));
        (by > 0).then(|| (name.clone(), by))
    };
    after.iter().filter_map(by).collect()
}

/// Processor time of the process so far, user and system, of all its threads.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // After the name, which may hold anything, from field 3 on: utime and stime are 14 and 15.
    let fields = stat.rsplit_once(") ").context("a line of /proc/PID/stat")?.1;
    let ticks: Vec<u64> = fields.split(' ').skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    // USER_HZ, which is 100 on every architecture that has BPF trampolines.
    Ok(ticks.iter().sum::<u64>() as f64 / 100.0)
}

/// Of a non-empty list.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (below, above) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
    (below + above) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_of_fio_is_read() {
        let report = "fio: a warning\n{\"jobs\": [{\"write\": {\"iops\": 1000.5, \"io_bytes\": 4096, \
                      \"clat_ns\": {\"percentile\": {\"99.000000\": 25000}}}}]}";
        let measured = Measured::of(report).expect("a report");
        assert_eq!(measured, Measured { iops: 1000.5, p99_us: 25.0, bytes: 4096 });
        assert!(Measured::of("fio: no such device").is_err());
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0])), (2.0, 2.5));
    }

    #[test]
    fn only_what_rose_is_told() {
        let counters =
            |values: &[(&str, u64)]| values.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect::<Counters>();
        let (before, after) =
            (counters(&[("seen", 5), ("marked", 1)]), counters(&[("seen", 9), ("marked", 1), ("new", 2)]));
        assert_eq!(risen(&before, &after), counters(&[("new", 2), ("seen", 4)]));
    }
}
