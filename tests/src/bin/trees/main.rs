//! Holds a directory tree that is protected under a random load of every kind of operation against its target at each mark.
//! `trees DIR RUNG ROUNDS`: DIR is on the file system to try, and holds nothing. Exit code 2 with what differs.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use afterwrite_tests::{Protection, Random, change_tree, change_tree_by_ring, same_trees, seed};

const OPERATIONS: u64 = 200;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let tree = PathBuf::from(arguments.next().context("the directory")?);
    let rung = arguments.next().context("the rung")?;
    let rounds: u64 = arguments.next().context("how many rounds")?.parse()?;
    let mut random = Random::new(seed());
    change_tree(&tree, &mut random, OPERATIONS)?;
    let protection = Protection::new(&tree)?;
    let target = protection.dir().join("target");
    let protection = protection.target_at(&target).arg("--mark-every").arg("never");
    let protection = protection.arg("--origin-rung").arg(&rung);
    let mut protect = protection.start()?;
    let mut copies = Vec::new();
    for round in 0..rounds {
        let mut done = 0;
        for _ in 0..4 {
            done += change_tree(&tree, &mut random, OPERATIONS / 4)?;
            done += change_tree_by_ring(&tree, &mut random, 10)?;
        }
        let id: u64 = protect.mark(&format!("round{round}"))?.trim().parse()?;
        protect.wait_for("has brought the target to the mark", |status| {
            status[0]["replica"]["mark"].as_u64() >= Some(id) && status[0]["replica"]["consistent"] == true
        })?;
        let status = protect.volume_status()?;
        ensure!(status["rung"] == *rung && status["last_mark"]["class"] == "fs", "{status}");
        same_trees(&tree, &target)?;
        println!("mark {id}: {done} operations, {} inodes, rescans {}", status["inodes"], status["rescans"]);
        let copy = protection.dir().join(format!("copy{round}"));
        protection.replay(&format!("mark:{id}"), &copy)?;
        copies.push((id, copy));
    }
    protect.stop()?;
    same_trees(&tree, &target)?;
    for (id, copy) in copies {
        let again = protection.dir().join(format!("again{id}"));
        protection.replay(&format!("mark:{id}"), &again)?;
        same_trees(&copy, &again)?;
    }
    protection.check_journal()
}
