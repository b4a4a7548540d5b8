//! What tree protection makes of real loads: each is done in the protected tree, then a mark is made, and the target held against
//! the tree, by Afterwrite and by rsync. Programs are made to stand still for that in their midst, too. Prints the table of
//! docs/OPERATIONS.md. AFTERWRITE_FILES small files; AFTERWRITE_LARGE_GIB the large one, of which a fifth is data;
//! AFTERWRITE_COPY_OF the directory that rsync copies. Arguments: only loads whose name contains one of them.

mod loads;
mod others;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use afterwrite_tests::{
    Device, Fs, Loop, MIB, Midst, Mount, Pace, Protect, Protection, Random, judge_in_the_midst,
    number_from_env, run, same_by_rsync, same_trees, seed, target_is_tree,
};

use loads::Load;

const SIZE: u64 = 48 << 30;
const PACE: Pace = Pace { every: Duration::from_secs(5), looks_max: 4 };

/// A tree and its target, on a disk each.
struct Bench<'m, 'p> {
    protect: Protect<'p>,
    random: Random,
    tree: &'m Path,
    target: &'m Path,
    disk: &'m Loop,
    mount: &'m Mount,
}

fn main() -> Result<()> {
    let disks = [Loop::new(SIZE)?, Loop::new(SIZE)?];
    let mounts = [quiet_ext4(&disks[0])?, quiet_ext4(&disks[1])?];
    let (tree, target) = (mounts[0].point().join("tree"), mounts[1].point().join("target"));
    std::fs::create_dir(&tree)?;
    let protection = Protection::new(&tree)?.target_at(&target).arg("--mark-every").arg("never");
    let protect = protection.start()?;
    println!("rung {}", protect.volume_status()?["rung"]);
    let random = Random::new(seed());
    let (disk, mount) = (&disks[1], &mounts[1]);
    let mut bench = Bench { protect, random, tree: &tree, target: &target, disk, mount };
    println!(
        "| Load | took | target at the mark after | inodes | journal | data written to the target | its disk wrote | \
         RSS of protect, most | rescans | held against the target in its midst |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    for (name, load) in loads::LOADS {
        if wanted.is_empty() || wanted.iter().any(|wanted| name.contains(wanted)) {
            let line = bench.measure(load).with_context(|| (*name).to_owned())?;
            println!("| {name} | {line} |");
            same_trees(&tree, &target)?;
            same_by_rsync(&tree, &target)?;
            run(afterwrite_tests::afterwrite().arg("verify").arg(&tree).arg(&target))?;
        }
    }
    if tree.join(loads::LARGE).join("renamed").exists() {
        std::fs::rename(tree.join(loads::LARGE).join("renamed"), tree.join(loads::LARGE).join("file"))?;
        target_is_tree(&mut bench.protect, (&tree, &target))?;
        others::compare(&tree)?;
    }
    bench.protect.stop()?;
    protection.check_journal()
}

/// Whose inode tables are not written while it is used: that would be counted as written by whoever is measured.
fn quiet_ext4(disk: &Loop) -> Result<Mount> {
    Fs::Ext4.make(disk.path())?;
    Mount::with_options(disk.path(), Fs::Ext4.name(), "noinit_itable")
}

impl Bench<'_, '_> {
    fn measure(&mut self, load: &Load) -> Result<String> {
        let figure = |status: &Value, of: &str| status.pointer(of).and_then(Value::as_u64).unwrap_or(0);
        let before = self.protect.volume_status()?;
        let written = Written::begin(self.disk, self.mount)?;
        let begun = Instant::now();
        let (took, looks) = match load {
            Load::Here(load) => {
                load(self.tree)?;
                (begun.elapsed(), String::new())
            }
            Load::Program(program) => {
                let (both, mut command) = ((self.tree, self.target), program(self.tree));
                let midst =
                    judge_in_the_midst(&mut self.protect, both, &mut command, PACE, &mut self.random)?;
                let Midst { took, looks, .. } = midst;
                (took, format!("{looks} times"))
            }
        };
        let asked = Instant::now();
        // A look at all of the tree may be due first.
        let id: u64 = self.protect.mark("load")?.trim().parse()?;
        self.protect.wait_for("has brought the target to the mark", |status| {
            status[0]["replica"]["mark"].as_u64() >= Some(id) && status[0]["replica"]["consistent"] == true
        })?;
        let lag = asked.elapsed();
        let written = written.end()?;
        let after = self.protect.volume_status()?;
        let risen = |of: &str| (figure(&after, of) - figure(&before, of)) as f64 / MIB as f64;
        Ok(format!(
            "{:.1} s | {:.1} s | {} | {:.2} MiB | {:.3} MiB | {:.2} MiB | {} MiB | {} | {looks}",
            took.as_secs_f64(),
            lag.as_secs_f64(),
            figure(&after, "/inodes"),
            risen("/journal_bytes"),
            risen("/replica/data_bytes"),
            written as f64 / MIB as f64,
            most_memory(&self.protect)? / MIB,
            figure(&after, "/rescans") - figure(&before, "/rescans"),
        ))
    }
}

/// What a disk is made to write, file system's own included.
struct Written<'m> {
    stat: std::path::PathBuf,
    mount: &'m Mount,
    sectors: u64,
}

impl<'m> Written<'m> {
    fn begin(disk: &Loop, mount: &'m Mount) -> Result<Written<'m>> {
        let name = disk.path().file_name().context("a device has a name")?;
        let stat = Path::new("/sys/block").join(name).join("stat");
        let mut this = Written { stat, mount, sectors: 0 };
        this.sectors = this.sectors()?;
        Ok(this)
    }

    /// Bytes since.
    fn end(self) -> Result<u64> {
        Ok((self.sectors()? - self.sectors) * 512)
    }

    fn sectors(&self) -> Result<u64> {
        run(std::process::Command::new("sync").arg("-f").arg(self.mount.point()))?;
        let stat = std::fs::read_to_string(&self.stat)?;
        let field = stat.split_whitespace().nth(6).context("the seventh is the sectors written")?;
        Ok(field.parse()?)
    }
}

fn most_memory(protect: &Protect<'_>) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", protect.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

fn small_files() -> u64 {
    number_from_env("AFTERWRITE_FILES", 200_000)
}
