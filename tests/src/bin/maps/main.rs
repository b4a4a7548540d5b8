//! `maps DIR CACHE TARGET RUNG`, for the VM scenario `file-map`: files are saved in DIR by close, by rename and by each kind of fsync
//! that the rung sees (`best`: whichever that is). The device holds at the recorded blocks what the file holds, and `afterwrite copy` copies them by these.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};
use nix::unistd::syncfs;

const BYTES: usize = 300_000;

fn main() -> Result<()> {
    let arguments = Vec::from_iter(std::env::args().skip(1));
    let [dir, cache, target, rung] = &arguments[..] else {
        anyhow::bail!("usage: maps DIR CACHE TARGET RUNG");
    };
    let (dir, cache, target) = (Path::new(dir), Path::new(cache), Path::new(target));
    let options = ["--rung", rung];
    let map = Map::start(dir, cache, if rung == "best" { &[] } else { &options })?;
    let ready = map.said()?.first().context("it is ready")?["ready"].clone();
    println!("fsyncs by {}", ready["fsync"]);
    ensure!(ready["fsync"].is_string() && (rung == "best" || ready["fsync"] == **rung), "{ready}");
    let device = PathBuf::from(ready["device"].as_str().context("it names no device")?);
    let random = |n| Random::new(n).bytes(BYTES);

    fs::write(dir.join("closed"), random(1))?;
    ensure!(map.wait_for("closed")?["why"] == "close");
    fs::write(dir.join("new"), random(2))?;
    fs::rename(dir.join("new"), dir.join("renamed"))?;
    ensure!(map.wait_for("renamed")?["why"] == "rename");
    let mut names = vec!["closed", "renamed"];
    syncfs(File::open(dir)?)?;
    wait_until("all have blocks", PATIENCE, || {
        let maps = map.maps()?;
        Ok(names.iter().all(|name| maps[*name]["unsettled"] == false))
    })?;
    let mut open = Vec::new();
    for (n, way) in Sync::ALL.into_iter().filter(|way| way.is_seen_on(rung)).enumerate() {
        open.push(way.save(&dir.join(way.name()), &random(n as u64 + 3))?);
        let mapped = map.wait_for(way.name())?;
        ensure!(mapped["why"] == "fsync" && mapped["unsettled"] == false, "{way:?}: {mapped}");
        names.push(way.name());
    }

    run(Command::new("blockdev").arg("--flushbufs").arg(&device))?;
    let device = File::open(device)?;
    for (name, mapped) in map.maps()? {
        let Some(expected) = names.contains(&&*name).then(|| fs::read(dir.join(&name))).transpose()? else {
            continue;
        };
        let mut found = vec![0; BYTES.next_multiple_of(4096)];
        for (offset, place, length) in mapped_extents(&mapped) {
            let at = usize::try_from(offset)?;
            let end = (at + usize::try_from(length)?).min(found.len());
            device.read_exact_at(&mut found[at..end], place)?;
        }
        ensure!(found[..BYTES] == expected, "the device does not hold {name} where its map says: {mapped}");
        println!("{name}: {} extents, {}", mapped_extents(&mapped).len(), mapped["why"]);
    }
    let mut copy = afterwrite();
    copy.args(["copy", "--json", "--cache"]).arg(cache).arg("--target").arg(target);
    for line in lines(&run(&mut copy)?)? {
        ensure!(line["how"] == "blocks", "not copied by its blocks: {line}");
    }
    for name in names {
        ensure!(fs::read(dir.join(name))? == fs::read(target.join(name))?, "the copy of {name} is another");
    }
    map.stop()?;
    drop(open);
    Ok(())
}
