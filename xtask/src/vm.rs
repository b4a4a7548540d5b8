//! `cargo xtask vm-test`: scenarios in QEMU, by software emulation, on Debian's stock kernels.
//!
//! The guest says how it went in one line on its serial console; the host then compares the disk images itself,
//! so that what the guest believes is checked from outside.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::compare::{self, Range};
use crate::cuts::{self, CutTally, End};
use crate::honest_disk::HonestDisk;
use crate::kernel::{self, Kernel, Unpacked};
use crate::qemu::{self, Backing};
use crate::scenario::{self, Cuts, Disk, Part, Scenario};
use crate::seed::seed;
use crate::tally::Tally;
use crate::{build, deb, debian, fsck, image, log_writes, run, setup};

const VERDICT: &str = "AFTERWRITE-VERDICT ";
const LOG_TAIL_LINES: usize = 150;
/// Of the packages of scenarios that upgrade.
const PACKAGE_VERSIONS: [&str; 2] = ["0.1-1", "99.0-1"];

#[derive(clap::Args)]
pub struct Arguments {
    /// Scenarios whose name contains one of these; without, the default set
    names: Vec<String>,
    /// In full length, and without names the complete set: every scenario on every kernel it names
    #[arg(long)]
    all: bool,
    /// Only this kernel: 6.1 or 6.12
    #[arg(long)]
    kernel: Option<Kernel>,
    /// Print what there is and run nothing
    #[arg(long)]
    list: bool,
    /// Keep the disk images of every run
    #[arg(long)]
    keep: bool,
    /// Virtual machines at a time; each takes one processor and 1 GiB
    #[arg(long)]
    jobs: Option<usize>,
}

/// How `run` runs them.
#[derive(Clone, Copy, Default)]
pub struct How {
    /// As often and as long as a scenario can.
    pub full: bool,
    pub keep: bool,
    /// Virtual machines at a time; without, one for each processor.
    pub jobs: Option<usize>,
}

/// Which scenarios `run` takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    Default,
    All,
}

/// The subcommand.
pub fn command(arguments: &Arguments) -> Result<()> {
    let scenarios = scenarios()?;
    let complete = arguments.all || arguments.list || !arguments.names.is_empty();
    let choice = if complete { Choice::All } else { Choice::Default };
    let mut selected = select(&scenarios, &arguments.names, choice);
    selected.retain(|(_, kernel)| arguments.kernel.is_none_or(|only| only == *kernel));
    if arguments.list {
        for (scenario, kernel) in selected {
            let default = if scenario.default.contains(&kernel) { "default" } else { "" };
            println!("{kernel:5} {:24} {default}", scenario.name);
        }
        return Ok(());
    }
    if selected.is_empty() {
        bail!("no scenario of that name: see `cargo xtask vm-test --list`");
    }
    setup::setup()?;
    let afterwrite = build::afterwrite(true)?;
    let how = How { full: arguments.all, keep: arguments.keep, jobs: arguments.jobs };
    run(&selected, &afterwrite, how)?.finish()
}

/// All scenarios of the repository.
pub fn scenarios() -> Result<Vec<Scenario>> {
    scenario::all(&run::root().join("vm-tests/scenarios"))
}

/// The runs of the choice whose scenario's name contains one of `names`, if there are any.
pub fn select<'a>(
    scenarios: &'a [Scenario],
    names: &[String],
    choice: Choice,
) -> Vec<(&'a Scenario, Kernel)> {
    let named =
        |scenario: &&Scenario| names.is_empty() || names.iter().any(|name| scenario.name.contains(name));
    let kernels = |scenario: &'a Scenario| match choice {
        Choice::Default => &scenario.default,
        Choice::All => &scenario.kernels,
    };
    scenarios
        .iter()
        .filter(named)
        .flat_map(|scenario| kernels(scenario).iter().map(move |kernel| (scenario, *kernel)))
        .collect()
}

/// Runs them, several at a time, and counts.
pub fn run(selected: &[(&Scenario, Kernel)], afterwrite: &Path, how: How) -> Result<Tally> {
    let dir = run::target_dir().join("vm");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let stripped = dir.join("afterwrite");
    run::run(run::program("strip")?.arg("--strip-debug").arg("-o").args([&stripped, afterwrite]))?;
    let programs: BTreeSet<&String> = selected.iter().flat_map(|(scenario, _)| &scenario.programs).collect();
    for name in programs {
        run::run(run::cargo().args(["build", "--package", "afterwrite-tests", "--bin", name]))?;
    }
    let debian = match selected.iter().any(|(scenario, _)| scenario.debian.is_some()) {
        true => Some(Debian {
            root: debian::root_image(&dir)?,
            packages: PACKAGE_VERSIONS
                .into_iter()
                .map(|version| deb::package(afterwrite, Some((version, &dir))))
                .collect::<Result<_>>()?,
        }),
        false => None,
    };
    let mut unpacked: Vec<(Kernel, Unpacked)> = Vec::new();
    for kernel in Kernel::ALL {
        if selected.iter().any(|(_, wanted)| *wanted == kernel) {
            unpacked.push((kernel, kernel::unpack(kernel, &dir)?));
        }
    }

    // The longest first, so that none is left running alone at the end.
    let mut selected = selected.to_vec();
    selected.sort_by_key(|(scenario, _)| Reverse(scenario.timeout_seconds));
    let jobs = how.jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from)).max(1);
    let queue = Mutex::new(selected.iter());
    let tally = Mutex::new(Tally::default());
    thread::scope(|scope| {
        for _ in 0..jobs.min(selected.len()) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().expect("no thread panics with it").next();
                    let Some((scenario, kernel)) = next else { return };
                    let files = unpacked.iter().find(|(unpacked, _)| unpacked == kernel);
                    let (_, files) = files.expect("each selected kernel was unpacked above");
                    let machine = Machine {
                        scenario,
                        kernel: *kernel,
                        dir: dir.join("runs").join(format!("{kernel}-{}", scenario.name)),
                        full: how.full,
                        debian: debian.as_ref().filter(|_| scenario.debian.is_some()),
                    };
                    let begun = Instant::now();
                    let outcome = machine.run(files, &stripped, how.keep);
                    let mut tally = tally.lock().expect("no thread panics with it");
                    report(&mut tally, &machine, outcome, begun.elapsed());
                }
            });
        }
    });
    Ok(tally.into_inner().expect("no thread panics with it"))
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// What a scenario that runs in one needs.
struct Debian {
    root: PathBuf,
    /// Of two versions.
    packages: Vec<PathBuf>,
}

/// One scenario on one kernel.
struct Machine<'a> {
    scenario: &'a Scenario,
    kernel: Kernel,
    dir: PathBuf,
    full: bool,
    debian: Option<&'a Debian>,
}

fn report(tally: &mut Tally, machine: &Machine<'_>, outcome: Result<Outcome>, took: Duration) {
    let what = machine.name();
    let seconds = took.as_secs();
    let outcome = outcome.unwrap_or_else(|error| Outcome::Failed(format!("could not run: {error:#}")));
    match outcome {
        Outcome::Passed => {
            println!("{what} ... ok ({seconds} s)");
            tally.passed += 1;
        }
        Outcome::Skipped(why) => {
            println!("{what} ... skipped ({seconds} s): {why}");
            tally.skipped.push(format!("{what}: {why}"));
        }
        Outcome::Failed(why) => {
            let log = machine.console();
            println!("{what} ... FAILED ({seconds} s): {why}");
            println!("---- end of {}", log.display());
            let bytes = fs::read(&log).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            tail(&text, LOG_TAIL_LINES).for_each(|line| println!("    {line}"));
            println!("----");
            tally.fail(format!("{what}: {why}"));
        }
    }
}

impl Machine<'_> {
    fn name(&self) -> String {
        format!("vm {} {}", self.kernel, self.scenario.name)
    }

    fn console(&self) -> PathBuf {
        self.dir.join("serial.log")
    }

    fn run(&self, kernel: &Unpacked, afterwrite: &Path, keep: bool) -> Result<Outcome> {
        let (scenario, dir) = (self.scenario, &self.dir);
        if dir.exists() {
            fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
        }
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let mut initrd = dir.join("initrd.cpio");
        let mut root = None;
        if let (Some(initramfs), Some(debian)) = (&scenario.initramfs, self.debian) {
            let made = debian::bootable(dir, scenario, initramfs, kernel, &debian.packages[0])?;
            (root, initrd) = (Some(made.0), made.1);
        } else {
            let mut file = BufWriter::new(File::create(&initrd)?);
            image::build(scenario, kernel, afterwrite)?.write(&mut file)?;
            file.flush()?;
        }
        for disk in &scenario.disks {
            let image = disk_image(dir, &disk.name);
            if let Some(debian) = self.debian.filter(|_| scenario.debian.as_ref() == Some(&disk.name)) {
                match &root {
                    Some(root) => fs::rename(root, &image)?,
                    None => debian::copy_root(&debian.root, &image, &debian.packages)?,
                }
            }
            File::options().create(true).append(true).open(&image)?.set_len(disk.bytes)?;
        }

        let outcome = match scenario.cuts {
            Some(cuts) => self.boot_and_cut(&kernel.image, &initrd, cuts, afterwrite)?,
            None => self.boot_each(&kernel.image, &initrd, afterwrite)?,
        };
        fs::remove_file(&initrd)?;
        if !keep {
            for disk in &scenario.disks {
                fs::remove_file(disk_image(dir, &disk.name))?;
            }
        }
        Ok(outcome)
    }

    /// As often as the scenario asks for, until one does not pass.
    fn boot_each(&self, kernel: &Path, initrd: &Path, afterwrite: &Path) -> Result<Outcome> {
        let mut outcome = self.boot(kernel, initrd, 1, afterwrite)?;
        if outcome == Outcome::Passed && self.scenario.boots_from.is_some() {
            self.lose_root()?;
            outcome = self.boot(kernel, initrd, 2, afterwrite)?;
        }
        for disk in self.scenario.disks.iter().filter(|disk| self.scenario.boots.contains(&disk.name)) {
            if outcome == Outcome::Passed {
                outcome = self.boot_from(disk)?;
            }
        }
        Ok(outcome)
    }

    fn boot(&self, kernel: &Path, initrd: &Path, boot: u64, afterwrite: &Path) -> Result<Outcome> {
        let status = self.wait(self.start(kernel, initrd, boot, &[])?)?;
        self.judge(status, afterwrite)
    }

    /// The root's disk is gone: that of `boots-from` takes its place, and a new one that one's.
    fn lose_root(&self) -> Result<()> {
        let (Some(root), Some(replica)) = (&self.scenario.debian, &self.scenario.boots_from) else {
            return Ok(());
        };
        fs::rename(self.console(), self.dir.join("serial-1.log"))?;
        let replica = disk_image(&self.dir, replica);
        let bytes = fs::metadata(&replica)?.len();
        fs::rename(&replica, disk_image(&self.dir, root))?;
        Ok(File::create_new(&replica)?.set_len(bytes)?)
    }

    /// What the guest says of itself, and then the disks.
    fn judge(&self, status: Option<ExitStatus>, afterwrite: &Path) -> Result<Outcome> {
        match self.said(status)? {
            Outcome::Passed => check_disks(self.scenario, &self.dir, afterwrite),
            outcome => Ok(outcome),
        }
    }

    fn said(&self, status: Option<ExitStatus>) -> Result<Outcome> {
        let Some(status) = status else {
            return Ok(Outcome::Failed(format!("not done after {} s", self.scenario.timeout_seconds)));
        };
        let log = fs::read(self.console()).context("QEMU wrote no serial log")?;
        let said = verdict(&String::from_utf8_lossy(&log));
        Ok(said.unwrap_or_else(|| Outcome::Failed(format!("the guest gave no verdict (QEMU: {status})"))))
    }

    /// See `cuts.rs`.
    fn boot_and_cut(&self, kernel: &Path, initrd: &Path, cuts: Cuts, afterwrite: &Path) -> Result<Outcome> {
        let wanted = if self.full { cuts.in_full } else { cuts.by_default };
        let seed = seed()?;
        println!("{}: AFTERWRITE_SEED={seed}", self.name());
        let mut random = fastrand::Rng::with_seed(seed);
        let mut tally = CutTally::default();
        for boot in 1.. {
            let disks = self.scenario.disks.iter().map(|disk| {
                let image = disk_image(&self.dir, &disk.name);
                HonestDisk::serve(&image, &image.with_extension("nbd"))
            });
            let disks: Vec<_> = disks.collect::<Result<_>>()?;
            let qemu = self.start(kernel, initrd, boot, &disks)?;
            let timeout = Duration::from_secs(self.scenario.timeout_seconds);
            let status = match cuts::wait(qemu, &self.console(), timeout, &mut random)? {
                End::Cut => {
                    tally.cut(&String::from_utf8_lossy(&fs::read(self.console())?));
                    for disk in disks {
                        tally.lost(disk.cut(&mut random)?);
                    }
                    fs::rename(self.console(), self.dir.join(format!("serial-{boot}.log")))?;
                    continue;
                }
                End::PoweredOff(status) => Some(status),
                End::TimedOut => None,
            };
            disks.into_iter().try_for_each(HonestDisk::power_off)?;
            let outcome = self.judge(status, afterwrite)?;
            if tally.cuts >= wanted || outcome != Outcome::Passed {
                println!("{}: AFTERWRITE_SEED={seed}, {boot} boots: {tally}", self.name());
                return Ok(outcome);
            }
            fs::rename(self.console(), self.dir.join(format!("serial-{boot}.log")))?;
        }
        unreachable!("the loop has no end of its own")
    }

    /// Starts the machine. Its disks are the images, or those served instead.
    fn start(&self, kernel: &Path, initrd: &Path, boot: u64, served: &[HonestDisk]) -> Result<Child> {
        // A Debian does much that no scenario waits for, and each of its processors waits for the other one's turn.
        let mut qemu = qemu::machine(&self.console(), if self.debian.is_some() { 1 } else { 2 })?;
        // Words with `=` that the kernel does not know become the environment of process 1.
        let full = if self.full { " FULL=1" } else { "" };
        let root = if self.scenario.initramfs.is_some() { " root=/dev/vda ro" } else { "" };
        let words = format!(
            "console=ttyS0 panic=-1 quiet mitigations=off BOOT={boot}{full}{root} {}",
            self.scenario.cmdline.join(" ")
        );
        // A Debian may reboot; all else that does has failed.
        qemu.args(self.debian.is_none().then_some("-no-reboot"))
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initrd)
            .args(["-append", &words]);
        for (index, disk) in self.scenario.disks.iter().enumerate() {
            let image = disk_image(&self.dir, &disk.name);
            let backing =
                served.get(index).map_or(Backing::Image(&image), |disk| Backing::Served(disk.socket()));
            qemu::add_disk(&mut qemu, disk, &backing)?;
        }
        for device in qemu::adapters(self.scenario) {
            qemu.args(["-device", &device]);
        }
        qemu::start(qemu, &self.dir.join("qemu.log"))
    }

    /// Starts a machine that has this disk alone, as firmware and boot loader do it. The console so far becomes `serial-before-DISK.log`.
    fn boot_from(&self, disk: &Disk) -> Result<Outcome> {
        fs::rename(self.console(), self.dir.join(format!("serial-before-{}.log", disk.name)))?;
        let mut qemu = qemu::machine(&self.console(), 1)?;
        // Firmware and boot loader write to the serial port, as there is no screen. Whoever finds nothing to start, or reboots, has failed.
        qemu.args(["-machine", "pc,graphics=off", "-boot", "reboot-timeout=0", "-no-reboot"]);
        qemu::add_disk(&mut qemu, disk, &Backing::Image(&disk_image(&self.dir, &disk.name)))?;
        let begun = Instant::now();
        let status = self.wait(qemu::start(qemu, &self.dir.join("qemu.log"))?)?;
        let seconds = begun.elapsed().as_secs();
        Ok(match self.said(status)? {
            Outcome::Failed(why) => Outcome::Failed(format!("started from {}: {why}", disk.name)),
            outcome => {
                println!("{}: started from {} ({seconds} s)", self.name(), disk.name);
                outcome
            }
        })
    }

    fn wait(&self, qemu: Child) -> Result<Option<ExitStatus>> {
        qemu::wait(qemu, Duration::from_secs(self.scenario.timeout_seconds))
    }
}

/// The guest's last word. Firmware and kernel may have written on the same line before it.
fn verdict(log: &str) -> Option<Outcome> {
    let (_, said) = log.rsplit_once(VERDICT)?;
    let said = said.lines().next().unwrap_or_default().trim();
    let (word, why) = said.split_once(' ').unwrap_or((said, ""));
    match word {
        "pass" => Some(Outcome::Passed),
        "skip" => Some(Outcome::Skipped(why.to_owned())),
        "fail" => Some(Outcome::Failed(why.to_owned())),
        _ => None,
    }
}

/// The machine is off: are its disks what they should be?
fn check_disks(scenario: &Scenario, dir: &Path, afterwrite: &Path) -> Result<Outcome> {
    for comparison in &scenario.compare {
        let (left, right) = (&comparison.left, &comparison.right);
        let (left_image, right_image) = (disk_image(dir, &left.disk), disk_image(dir, &right.disk));
        let range = |part: &Part, file| Range { file, offset: part.offset, bytes: part.bytes };
        let found = compare::compare(range(left, &left_image), range(right, &right_image))?;
        if let Some(difference) = found {
            return Ok(Outcome::Failed(format!(
                "the host finds {} and {} different in {} blocks of 4 KiB, first at byte {}",
                left.disk, right.disk, difference.blocks, difference.first_offset
            )));
        }
    }
    for disk in &scenario.fsck {
        if let Err(why) = fsck::check(&disk_image(dir, disk))? {
            return Ok(Outcome::Failed(format!("{disk}: {why}")));
        }
    }
    if let Some(disks) = &scenario.log_writes {
        let [log, volume, journal] =
            [&disks.log, &disks.volume, &disks.journal].map(|name| disk_image(dir, name));
        let images =
            log_writes::Images { log: &log, volume: &volume, journal: &journal, instants: disks.instants };
        match log_writes::check(&images, afterwrite, dir)? {
            Err(why) => return Ok(Outcome::Failed(why)),
            Ok(0) => return Ok(Outcome::Failed("no mark was noted in the log of the writes".to_owned())),
            Ok(_) => {}
        }
    }
    Ok(Outcome::Passed)
}

fn disk_image(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.img"))
}

fn tail(text: &str, lines: usize) -> impl Iterator<Item = &str> {
    let count = text.lines().count();
    text.lines().skip(count.saturating_sub(lines)).map(str::trim_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_verdict_counts_wherever_it_stands_in_its_line() {
        let log = "SeaBIOS\nAFTERWRITE-VERDICT pass\nx\n[ 1.2] oops AFTERWRITE-VERDICT fail mark 2: not live\r\nlate";
        assert_eq!(verdict(log), Some(Outcome::Failed("mark 2: not live".into())));
        assert_eq!(verdict("AFTERWRITE-VERDICT pass\r\n"), Some(Outcome::Passed));
        assert_eq!(verdict("AFTERWRITE-VERDICT skip no BTF"), Some(Outcome::Skipped("no BTF".into())));
    }

    #[test]
    fn no_verdict_and_a_torn_one_are_none() {
        assert_eq!(verdict("Kernel panic - not syncing"), None);
        assert_eq!(verdict("AFTERWRITE-VERDICT pa"), None);
    }

    #[test]
    fn the_scenarios_of_the_repository_parse_and_cover_each_kernel_by_default() {
        let scenarios = scenarios().expect("every head is well-formed");
        let default = select(&scenarios, &[], Choice::Default);
        for kernel in Kernel::ALL {
            assert!(default.iter().any(|(_, on)| *on == kernel), "no default scenario on {kernel}");
        }
    }

    #[test]
    fn names_select_by_part() {
        let scenarios = scenarios().expect("every head is well-formed");
        let selected = select(&scenarios, &["selfte".into()], Choice::All);
        assert!(!selected.is_empty() && selected.iter().all(|(scenario, _)| scenario.name == "selftest"));
    }
}
