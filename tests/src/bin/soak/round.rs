//! One round: a volume under load, faults, and the proof at the end that nothing was lost.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use afterwrite_tests::*;
use anyhow::{Context, Result, bail, ensure};

use crate::faults::Stage;
use crate::guard::{Guard, Seen};
use crate::load::{Content, Load};
use crate::plan::{self, Plan, Volume};

/// The source must not notice: no write of its own takes longer, not even with a file system frozen for a mark while
/// `protect` stands still.
const WRITE_MAX: Duration = Duration::from_secs(20);
/// Points that are rebuilt at the end, of those whose content is known and of all others.
const KNOWN_MAX: usize = 3;
const OTHERS_MAX: usize = 2;

/// What came of a round.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub seen: Seen,
    pub points: usize,
    pub known_points: usize,
    pub longest_write_ms: u64,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Seen { lives, adopted, refused, paused, target_failed, submissions, marked, completions } =
            &self.seen;
        write!(
            f,
            "{lives} lives ({adopted} adopted, {refused} refused), journal failed {paused} times, target {target_failed}; \
             {submissions} submissions, {marked} marked, {completions} completions; {} points ({} known), longest write {} ms",
            self.points, self.known_points, self.longest_write_ms
        )
    }
}

/// Where a round takes place.
struct Ground {
    volume: Volume,
    journal_disk: Disk,
    target_disk: Option<Disk>,
    protection: Protection,
    _target_device: Option<Loop>,
}

/// A point whose content is known.
struct Known {
    label: String,
    content: Content,
}

/// Runs the round. If it fails, what it worked with is copied to `evidence`.
pub fn run_round(plan: &Plan, random: &mut Random, evidence: &Path, report: &mut Report) -> Result<()> {
    let volume = Volume::new(plan)?;
    let journal_disk = Disk::new(plan.journal_fs)?;
    let target_disk = plan.target_fs.map(Disk::new).transpose()?;
    let target_device = match target_disk {
        Some(_) => None,
        None => Some(Loop::new(plan.volume_bytes() + MIB)?),
    };
    let target = match (&target_disk, &target_device) {
        (None, Some(device)) => device.path().to_owned(),
        (Some(disk), _) => disk.path("replica.img"),
        (None, None) => bail!("a round without a target"),
    };
    let protection =
        Protection::new(volume.path())?.journal_at(&journal_disk.path("journal")).target_at(&target);
    let protection = plan.arguments().into_iter().fold(protection, Protection::arg);
    let mut ground = Ground { volume, journal_disk, target_disk, protection, _target_device: target_device };

    let result = ground.protect_and_prove(plan, random, report);
    if result.is_err() {
        match ground.keep_evidence(evidence) {
            Ok(()) => println!("  evidence is in {}", evidence.display()),
            Err(error) => println!("  the evidence could not be kept: {error:#}"),
        }
    }
    result
}

impl Ground {
    fn protect_and_prove(&mut self, plan: &Plan, random: &mut Random, report: &mut Report) -> Result<()> {
        let Ground { volume, journal_disk, target_disk, protection, .. } = self;
        let mut guard = Guard::new(protection);
        let mut stage =
            Stage { protection, guard: &mut guard, journal_disk, target_disk: target_disk.as_mut(), random };
        let endured = endure(plan, &mut stage, volume, report);
        let endured = endured.with_context(|| guard.describe());
        report.seen = guard.seen.clone();
        // Kills what a failed round has left running.
        drop(guard);
        let known = endured?;
        journal_disk.forget_cache()?;
        target_disk.as_mut().map_or(Ok(()), Disk::forget_cache)?;
        prove(plan, volume.path(), protection, &known, random, report)
    }

    fn keep_evidence(&self, evidence: &Path) -> Result<()> {
        std::fs::create_dir_all(evidence)?;
        let copy = |from: &Path, name: &str| -> Result<()> {
            let sparsely = ["--recursive", "--sparse=always", "--no-target-directory"];
            run(Command::new("cp").args(sparsely).arg(from).arg(evidence.join(name))).map(drop)
        };
        let mut source = Command::new("dd");
        source.arg(format!("if={}", self.volume.path().display()));
        source.arg(format!("of={}", evidence.join("source.img").display()));
        run(source.args(["bs=1M", "iflag=direct", "conv=sparse"]))?;
        copy(self.protection.dir(), "logs")?;
        copy(self.protection.journal(), "journal")?;
        match &self.target_disk {
            Some(_) => copy(self.protection.target(), "replica.img"),
            None => {
                let mut target = Command::new("dd");
                target.arg(format!("if={}", self.protection.target().display()));
                target.arg(format!("of={}", evidence.join("replica.img").display()));
                run(target.args(["bs=1M", "conv=sparse"])).map(drop)
            }
        }
    }
}

/// Load, faults and marks, until the protection has stopped in order with the volume at rest.
fn endure(
    plan: &Plan,
    stage: &mut Stage<'_, '_>,
    volume: &mut Volume,
    report: &mut Report,
) -> Result<Vec<Known>> {
    let device = volume.path().to_owned();
    let mut load = match plan.content {
        plan::Content::RawWriters => {
            Load::raw_writers(&device, plan.volume_bytes(), plan.sector_bytes(), stage.random)?
        }
        plan::Content::RawFio => Load::raw_fio(&device)?,
        plan::Content::Files(fs) => Load::files(fs, &device, stage.random)?,
    };
    let mut known = Vec::new();
    stage.guard.start()?;
    // Else the first fault meets the baseline.
    if stage.random.below(3) > 0 {
        stage.guard.wait_live()?;
    }
    for (number, fault) in (1..).zip(&plan.faults) {
        std::thread::sleep(Duration::from_millis(stage.random.below(2500)));
        known.extend(mark(stage, &mut load, format!("before fault {number}"))?);
        stage.strike(*fault).with_context(|| format!("fault {number}, {fault:?}"))?;
        stage.guard.look();
    }
    known.extend(mark(stage, &mut load, "after all faults".into())?);
    report.longest_write_ms = load.longest_ms();
    load.finish()?;
    volume.quiet()?;
    let longest = Duration::from_millis(report.longest_write_ms);
    ensure!(longest < WRITE_MAX, "a write to the source took {longest:?}");
    stage.guard.counters_add_up()?;
    if plan.killed_last {
        stage.guard.kill()?;
        stage.guard.start()?;
        stage.guard.wait_live()?;
        stage.guard.counters_add_up()?;
    }
    stage.guard.stop()?;
    ensure!(
        !stage.protection.is_in_kernel(),
        "it was stopped in order, and something of it is left in the kernel"
    );
    Ok(known)
}

/// Two times of three; none if it can't be made just now.
fn mark(stage: &mut Stage<'_, '_>, load: &mut Load, label: String) -> Result<Option<Known>> {
    if stage.random.below(3) == 0 {
        return Ok(None);
    }
    let (made, content) = load.still(|| stage.guard.mark(&label))?;
    Ok(content.filter(|_| made).map(|content| Known { label, content }))
}

/// The replica is the source, the journal is sound, and its points hold what the volume held.
fn prove(
    plan: &Plan,
    device: &Path,
    protection: &Protection,
    known: &[Known],
    random: &mut Random,
    report: &mut Report,
) -> Result<()> {
    assert_identical(device, protection.target())?;
    protection.check_journal().context("journal check")?;
    let points = protection.points()?;
    report.points = points.len();
    let image = protection.dir().join("replayed.img");
    protection.replay("latest", &image)?;
    assert_identical(device, &image).context("the journal's last point")?;
    std::fs::remove_file(&image)?;

    let mut confirmed = Vec::new();
    for Known { label, content } in known {
        let point = points.iter().find(|point| point["label"] == *label);
        let point = point.with_context(|| format!("the confirmed mark {label:?} is not in the journal"))?;
        // Frozen for the one, at rest for the other; else what it held is not known after all.
        let wanted = if matches!(content, Content::Files(..)) { "fs" } else { "crash" };
        if point["class"] == wanted {
            confirmed.push((label, content));
        }
    }
    report.known_points = confirmed.len();
    for (label, content) in choose(random, confirmed, KNOWN_MAX) {
        protection.replay(&format!("mark:{label}"), &image)?;
        let held = match content {
            Content::Files(fs, manifest) => check_image(*fs, &image, "steady".as_ref(), manifest),
            Content::Bytes(wanted) => hash_of(&image).and_then(|found| {
                ensure!(found == *wanted, "it is not what was on the device");
                Ok(())
            }),
        };
        held.with_context(|| format!("mark {label:?}"))?;
        std::fs::remove_file(&image)?;
    }
    let plan::Content::Files(fs) = plan.content else { return Ok(()) };
    let frozen = points.iter().filter(|point| point["class"] == "fs");
    for id in choose(random, frozen.filter_map(|point| point["id"].as_u64()).collect(), OTHERS_MAX) {
        protection.replay(&format!("mark:{id}"), &image)?;
        check_file_system(fs, &image).with_context(|| format!("mark {id}"))?;
        std::fs::remove_file(&image)?;
    }
    Ok(())
}

fn choose<T>(random: &mut Random, mut from: Vec<T>, count: usize) -> Vec<T> {
    let mut chosen = Vec::new();
    while chosen.len() < count && !from.is_empty() {
        let at = random.below(from.len() as u64);
        chosen.push(from.swap_remove(usize::try_from(at).unwrap_or(0)));
    }
    chosen
}

fn hash_of(image: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(std::fs::File::open(image)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}
