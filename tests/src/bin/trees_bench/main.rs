//! What tree protection makes of real loads: each is done in the protected tree, then a mark is made, and the target held against
//! the tree. Prints the table of docs/OPERATIONS.md. AFTERWRITE_FILES small files; AFTERWRITE_LARGE_GIB the large one.

mod loads;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use afterwrite_tests::{Device, Fs, Loop, MIB, Mount, Protect, Protection, number_from_env, run, same_trees};

const SIZE: u64 = 48 << 30;

fn main() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    let tree = mount.point().join("tree");
    std::fs::create_dir(&tree)?;
    let protection = Protection::new(&tree)?;
    let target = protection.dir().join("target");
    let protection = protection.target_at(&target).arg("--mark-every").arg("never");
    let mut protect = protection.start()?;
    println!("rung {}", protect.volume_status()?["rung"]);
    println!(
        "| Load | took | target at the mark after | inodes | journal | written to the target | RSS of protect, most |"
    );
    println!("|---|---|---|---|---|---|---|");
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    for (name, load) in loads::LOADS {
        if wanted.is_empty() || wanted.iter().any(|wanted| name.contains(wanted)) {
            let line = measure(&mut protect, &tree, *load).with_context(|| (*name).to_owned())?;
            println!("| {name} | {line}");
            same_trees(&tree, &target)?;
            run(afterwrite_tests::afterwrite().arg("verify").arg(&tree).arg(&target))?;
        }
    }
    protect.stop()
}

fn measure(protect: &mut Protect<'_>, tree: &Path, load: loads::Load) -> Result<String> {
    let figure =
        |status: &serde_json::Value, of: &str| status.pointer(of).and_then(|n| n.as_u64()).unwrap_or(0);
    let before = protect.volume_status()?;
    let begun = Instant::now();
    load(tree)?;
    let took = begun.elapsed();
    let asked = Instant::now();
    // A look at all of the tree may be due first.
    let id: u64 = protect.mark("load")?.trim().parse()?;
    protect.wait_for("has brought the target to the mark", |status| {
        status[0]["replica"]["mark"].as_u64() >= Some(id) && status[0]["replica"]["consistent"] == true
    })?;
    let lag = asked.elapsed();
    let after = protect.volume_status()?;
    let risen = |of: &str| (figure(&after, of) - figure(&before, of)) as f64 / MIB as f64;
    Ok(format!(
        "{:.1} s | {:.1} s | {} | {:.1} MiB | {:.3} MiB | {} MiB | (rescans {})",
        took.as_secs_f64(),
        lag.as_secs_f64(),
        figure(&after, "/inodes"),
        risen("/journal_bytes"),
        risen("/replica/data_bytes"),
        most_memory(protect)? / MIB,
        figure(&after, "/rescans") - figure(&before, "/rescans"),
    ))
}

fn most_memory(protect: &Protect<'_>) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", protect.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

fn small_files() -> u64 {
    number_from_env("AFTERWRITE_FILES", 200_000)
}
