//! `cargo xtask bench many`: many volumes under one service, half of them with ext4, written at a steady rate all the time.
//! Prints what the service takes, in memory and processor time, and how far it is behind; at the end each replica is its
//! volume, and e2fsck finds nothing in those of ext4.
//!
//! AFTERWRITE_VOLUMES is how many volumes (default 64), AFTERWRITE_MINUTES for how long (default 30), AFTERWRITE_WRITES how
//! many writes a second all of them get together (default 500).

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};

const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// How long nothing is written before it is called idle, and then how long that is measured.
const IDLE: Duration = Duration::from_secs(30);
const BETWEEN_SYNCS: u64 = 8;

/// A volume and what is written to: the device itself, or a file of the file system on it.
struct Written {
    file: File,
    bytes: u64,
    mount: Option<Mount>,
    device: Loop,
}

/// What all processes of the service take together.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    processes: u64,
    /// Pages of each, shared ones counted in each.
    rss_kib: u64,
    /// Shared ones counted in parts.
    pss_kib: u64,
    /// The largest.
    rss_max_kib: u64,
    cpu_seconds: f64,
}

fn main() -> Result<()> {
    let volumes = number_from_env("AFTERWRITE_VOLUMES", 64).max(1);
    let load = Duration::from_secs(60 * number_from_env("AFTERWRITE_MINUTES", 30));
    let writes_per_second = number_from_env("AFTERWRITE_WRITES", 500).max(1);
    let mut random = Random::new(seed());
    let mut service = Service::new()?;
    let mut written = Vec::new();
    let mut tables = Vec::new();
    for number in 0..volumes {
        let volume = Written::new(number % 2 == 1)?;
        tables.push(service.table("volume", &format!("v{number}"), volume.device.path(), ""));
        written.push(volume);
    }
    service.configure(&tables)?;
    let begun = Instant::now();
    service.start()?;
    let devices: Vec<_> = written.iter().map(|volume| volume.device.path().to_owned()).collect();
    service.wait_live(&devices.iter().map(|path| &**path).collect::<Vec<_>>())?;
    println!("{volumes} volumes are live after {:.1} s", begun.elapsed().as_secs_f64());

    std::thread::sleep(IDLE);
    let idle = cost_of(&service, || {
        std::thread::sleep(IDLE);
        Ok(())
    })?;
    println!("idle for {} s: {}", IDLE.as_secs(), told(&idle));
    let mut lags_ms = Vec::new();
    let mut count = 0;
    let busy = cost_of(&service, || {
        let begun = Instant::now();
        while begun.elapsed() < load {
            count += write_for(SAMPLE_EVERY, writes_per_second, &mut written, &mut random)?;
            lags_ms.extend(lags(&service)?);
        }
        Ok(())
    })?;
    println!("{count} writes in {:.0} s: {}", load.as_secs_f64(), told(&busy));
    lags_ms.sort_unstable();
    let at = |part: usize| lags_ms[(lags_ms.len() - 1) * part / 1000];
    println!(
        "age of the oldest change that is not in the journal: p50 {} ms, p99 {} ms, p99.9 {} ms, most {} ms ({} samples)",
        at(500),
        at(990),
        at(999),
        at(1000),
        lags_ms.len()
    );

    for volume in &mut written {
        volume.file.sync_all()?;
        if let Some(mount) = volume.mount.take() {
            // What is open would keep it busy.
            volume.file = File::open(volume.device.path())?;
            mount.unmount()?;
        }
    }
    // Each makes a last mark and brings its replica to it.
    service.stop()?;
    for (number, volume) in written.iter().enumerate() {
        let replica = service.path(&format!("v{number}.replica"));
        assert_identical(volume.device.path(), &replica).with_context(|| format!("v{number}"))?;
        if number % 2 == 1 {
            check_file_system(Fs::Ext4, &replica)?;
        }
    }
    println!(
        "all {volumes} replicas are identical to their volumes, and e2fsck finds nothing in those of ext4"
    );
    Ok(())
}

impl Written {
    fn new(with_file_system: bool) -> Result<Written> {
        let device = Loop::new(Fs::Ext4.volume_bytes())?;
        let mount = with_file_system.then(|| Mount::make(Fs::Ext4, device.path())).transpose()?;
        let (path, bytes) = match &mount {
            Some(mount) => (mount.point().join("file"), Fs::Ext4.volume_bytes() / 4),
            None => (device.path().to_owned(), Fs::Ext4.volume_bytes()),
        };
        let is_file = mount.is_some();
        let file = OpenOptions::new().write(true).create(is_file).mode(0o600).open(&path)?;
        Ok(Written { file, bytes, mount, device })
    }

    fn write(&self, random: &mut Random) -> Result<()> {
        let len = 4096 * (1 + random.below(4));
        let start = random.below((self.bytes - len) / 4096) * 4096;
        // Its length is below 16 KiB.
        self.file.write_all_at(&random.bytes(len as usize), start)?;
        if random.below(BETWEEN_SYNCS) == 0 {
            self.file.sync_data()?;
        }
        Ok(())
    }
}

/// At this rate, to one after another.
fn write_for(length: Duration, a_second: u64, written: &mut [Written], random: &mut Random) -> Result<u64> {
    let begun = Instant::now();
    let mut count = 0;
    while begun.elapsed() < length {
        let due = begun.elapsed().as_secs_f64() * a_second as f64;
        while (count as f64) < due {
            let which = random.below(written.len() as u64) as usize;
            written[which].write(random)?;
            count += 1;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(count)
}

fn lags(service: &Service) -> Result<Vec<u64>> {
    let status = service.status()?;
    let all = status.as_array().context("a list")?;
    let lag = |volume: &serde_json::Value| {
        ensure!(volume["state"] == "live", "not live: {volume}");
        volume["pending_ms"].as_u64().context("the age of the oldest change")
    };
    all.iter()
        .filter(|volume| volume["pid"].is_u64() && volume.get("pending_ms").is_some())
        .map(lag)
        .collect()
}

/// What it takes meanwhile, and at the end.
fn cost_of(service: &Service, work: impl FnOnce() -> Result<()>) -> Result<(Duration, Taken)> {
    let (begun, before) = (Instant::now(), taken(service.pid()?)?);
    work()?;
    let after = taken(service.pid()?)?;
    let cpu_seconds = after.cpu_seconds - before.cpu_seconds;
    Ok((begun.elapsed(), Taken { cpu_seconds, ..after }))
}

fn told((length, taken): &(Duration, Taken)) -> String {
    let Taken { processes, rss_kib, pss_kib, rss_max_kib, cpu_seconds } = taken;
    format!(
        "{processes} processes, RSS {} MiB together (PSS {} MiB), the largest {} MiB; {:.1} % of a processor",
        rss_kib >> 10,
        pss_kib >> 10,
        rss_max_kib >> 10,
        100.0 * cpu_seconds / length.as_secs_f64()
    )
}

/// Of a process and of all that it started.
fn taken(pid: u32) -> Result<Taken> {
    let mut all = Taken::default();
    let mut left = vec![pid];
    while let Some(pid) = left.pop() {
        let dir = Path::new("/proc").join(pid.to_string());
        for thread in fs::read_dir(dir.join("task"))? {
            let children = fs::read_to_string(thread?.path().join("children"))?;
            let children: Vec<u32> = children.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
            left.extend(children);
        }
        let rollup = fs::read_to_string(dir.join("smaps_rollup"))?;
        let kib = |field: &str| -> Result<u64> {
            let line =
                rollup.lines().find_map(|line| line.strip_prefix(field)).context("a line of smaps_rollup")?;
            Ok(line.trim().trim_end_matches(" kB").parse()?)
        };
        let rss_kib = kib("Rss:")?;
        all.processes += 1;
        all.rss_kib += rss_kib;
        all.pss_kib += kib("Pss:")?;
        all.rss_max_kib = all.rss_max_kib.max(rss_kib);
        all.cpu_seconds += cpu_seconds(pid)?;
    }
    Ok(all)
}
