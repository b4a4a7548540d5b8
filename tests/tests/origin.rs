//! Who changed what: every way is seen as the manual's table says, what the journal says of it can be read, and a point just
//! before a disaster has everything before it and nothing after. On this machine's best rung; others are in the scenarios
//! `ways` and `before-process`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

const SIZE: u64 = 128 * MIB;
const FILES: u32 = 150;

fn every_way_on(fs: Fs) -> Result<()> {
    let disk = Loop::new(fs.volume_bytes().max(SIZE))?;
    let mount = Mount::make(fs, disk.path())?;
    let dir = mount.point().join("ways");
    let mut ways = Command::new(env!("CARGO_BIN_EXE_ways"));
    ways.env("AFTERWRITE_BIN", binary()).arg(dir).arg("best");
    let said = run(&mut ways)?;
    ensure!(said.contains("full"), "{said}");
    mount.unmount()
}

#[test]
fn every_way_on_ext4_is_seen_as_the_table_says() -> Result<()> {
    every_way_on(Fs::Ext4)
}

#[test]
fn every_way_on_xfs_is_seen_as_the_table_says() -> Result<()> {
    every_way_on(Fs::Xfs)
}

#[test]
fn every_way_on_btrfs_is_seen_as_the_table_says() -> Result<()> {
    every_way_on(Fs::Btrfs)
}

fn is_watched(protect: &mut Protect<'_>) -> Result<()> {
    protect.wait_for("watches the file system", |status| {
        let origin = &status[0]["origin"];
        !origin["rung"].is_null() && origin["file_systems"].as_u64() > Some(0)
    })
}

fn log(protection: &Protection, arguments: &[&OsStr]) -> Result<Vec<Value>> {
    let mut log = afterwrite();
    let said = run(log.arg("log").arg(protection.journal()).arg("--json").args(arguments))?;
    said.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// Files in `dir`, on the disk.
fn fill(dir: &Path, content: &str) -> Result<()> {
    fs::create_dir(dir)?;
    for number in 0..FILES {
        write_synced(&dir.join(format!("file{number}")), &format!("{content} {number}\n").repeat(50))?;
    }
    Ok(File::open(dir)?.sync_all()?)
}

fn write_synced(path: &Path, content: &str) -> Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content.as_bytes())?;
    Ok(file.sync_all()?)
}

/// What the point has of the files of `fill`: how many are whole, and whether it has a file of this name.
fn found(image: &Path, content: &str, later: &str) -> Result<(u32, bool)> {
    let device = Loop::over(image)?;
    let mount = Mount::recovered(Fs::Ext4, device.path())?;
    let whole = (0..FILES).filter(|number| {
        let path = mount.point().join(format!("data/file{number}"));
        fs::read(path).is_ok_and(|is| is == format!("{content} {number}\n").repeat(50).into_bytes())
    });
    let count = u32::try_from(whole.count())?;
    let has_later = mount.point().join(later).exists();
    mount.unmount()?;
    Ok((count, has_later))
}

/// A disaster amid other writes, and what the point before it has.
fn before(disaster: &dyn Fn(&Path, &Path) -> Result<()>, to: &str) -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    let protection = Capture::Payload.protection(disk.path())?;
    let mut protect = protection.start()?;
    is_watched(&mut protect)?;
    fill(&mount.point().join("data"), "content")?;
    protect.mark("filled")?;
    write_synced(&mount.point().join("last-before"), "x")?;
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let others = scope.spawn(|| -> Result<()> {
            for number in 0u64.. {
                if end.load(Ordering::Relaxed) {
                    break;
                }
                write_synced(&mount.point().join(format!("other{}", number % 7)), &"y".repeat(9000))?;
                // So that what they are beside comes forward on a slow machine, too.
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        });
        let done = disaster(&mount.point().join("data"), protection.dir());
        write_synced(&mount.point().join("first-after"), "x")?;
        end.store(true, Ordering::Relaxed);
        others.join().expect("it writes without a panic")?;
        done
    })?;
    mount.unmount()?;
    protect.stop()?;
    protection.check_journal()?;

    let image = protection.dir().join("before.img");
    protection.replay(to, &image)?;
    // Mounting replays its log, as after a power cut.
    let (whole, later) = found(&image, "content", "first-after")?;
    ensure!((whole, later) == (FILES, false), "{to}: {whole} of {FILES} files are whole; later: {later}");
    let device = Loop::over(&image)?;
    let mount = Mount::recovered(Fs::Ext4, device.path())?;
    ensure!(mount.point().join("last-before").exists(), "{to} lacks what was synced before");
    mount.unmount()?;
    check_file_system(Fs::Ext4, &image)?;
    // The disaster is real.
    let image = protection.dir().join("latest.img");
    protection.replay("latest", &image)?;
    let (whole, later) = found(&image, "content", "first-after")?;
    ensure!(whole < FILES && later, "the last mark has {whole} whole files; later: {later}");
    Ok(())
}

fn remove(data: &Path, _: &Path) -> Result<()> {
    run(Command::new("rm").arg("-rf").arg(data)).map(drop)
}

/// By a shell that is called `encrypter`, as each of its children is at first.
fn encrypt(data: &Path, dir: &Path) -> Result<()> {
    let program = dir.join("encrypter");
    copy_program("/bin/bash".as_ref(), &program)?;
    let script =
        "for file in *; do tr a-z n-za-m < $file > $file.locked && mv $file.locked $file; done; sync -f .";
    run(Command::new(program).current_dir(data).args(["-c", script])).map(drop)
}

#[test]
fn a_point_before_rm_has_everything() -> Result<()> {
    before(&remove, "before-process:rm")
}

#[test]
fn a_point_before_an_encrypting_script_has_everything() -> Result<()> {
    before(&encrypt, "before-process:encrypter")?;
    before(&encrypt, "before-file:*.locked")
}

#[test]
fn a_point_before_a_burst_of_many_processes_has_everything() -> Result<()> {
    let encrypt = |data: &Path, _: &Path| {
        // Another file, by another program than the one that removes: none of the processes does more than one thing.
        let script = "for file in *; do head -c 8192 /dev/urandom > $file.locked; rm $file; done; sync -f .";
        run(Command::new("bash").current_dir(data).args(["-c", script])).map(drop)
    };
    before(&encrypt, "before-burst:last")
}

/// A disaster in a directory beside a PostgreSQL cluster at work. What the point before it must be is judged by when the journal
/// says its first change was, which must be after the disaster was begun, and before it was over.
fn amid_transactions(disaster: &dyn Fn(&Path, &Path) -> Result<()>, process: &str) -> Result<()> {
    let disk = Loop::new(256 * MIB)?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    let server = Postgres::create(mount.point())?;
    server.prepare()?;
    let protection = Capture::Payload.protection(disk.path())?;
    let mut protect = protection.start()?;
    is_watched(&mut protect)?;
    fill(&mount.point().join("data"), "content")?;
    protect.mark("filled")?;
    let (operations, [begun_ns, ended_ns]) = std::thread::scope(|scope| {
        let load = scope.spawn(|| server.transactions(2 * load_seconds()));
        let under_way = || Ok(load.is_finished() || server.acknowledged()?.len() > 20);
        wait_until("transactions are under way", PATIENCE, under_way)?;
        let begun_ns = now_ns();
        let done = disaster(&mount.point().join("data"), protection.dir());
        let ended_ns = now_ns();
        let operations = load.join().expect("the load does not panic")?;
        done.map(|()| (operations, [begun_ns, ended_ns]))
    })?;
    write_synced(&mount.point().join("first-after"), "x")?;
    server.stop()?;
    mount.unmount()?;
    protect.stop()?;
    protection.check_journal()?;

    let to = format!("before-process:{process}");
    let image = protection.dir().join("before.img");
    let mut replay = afterwrite();
    replay.arg("replay").arg(protection.journal()).args(["--json", "--to", &to, "--target"]);
    let report: Value = serde_json::from_str(&run(replay.arg(&image))?)?;
    let before = &report["plan"]["before"];
    let first_ns = time_ns(&before["first"])?;
    ensure!(before["process"]["name"] == process && (begun_ns..ended_ns).contains(&first_ns), "{before}");
    let done = |operation: &&Operation| operation.acknowledged.is_some_and(|at| at.time_ns < first_ns);
    let [done, later] = [
        operations.iter().filter(done).count(),
        operations.iter().filter(|operation| operation.begun.time_ns > first_ns).count(),
    ];
    ensure!(done > 0 && later > 0, "{done} transactions before {to}, {later} after: not amid them");

    check_file_system(Fs::Ext4, &image)?;
    let (whole, later) = found(&image, "content", "first-after")?;
    ensure!((whole, later) == (FILES, false), "{to}: {whole} of {FILES} files are whole; later: {later}");
    let device = Loop::over(&image)?;
    let restored = Mount::recovered(Fs::Ext4, device.path())?;
    let server = Postgres::recover(restored.point()).context("recovery by PostgreSQL")?;
    let sum = judge(&server.find(&operations)?, first_ns)?;
    server.stop()?;
    Postgres::checksums(restored.point())?;
    restored.unmount()?;
    fsck(Fs::Ext4, device.path())?;
    println!("{to} amid {} transactions: {sum:?}", operations.len());
    // The disaster is real.
    let image = protection.dir().join("latest.img");
    protection.replay("latest", &image)?;
    let (whole, later) = found(&image, "content", "first-after")?;
    ensure!(whole < FILES && later, "the last mark has {whole} whole files; later: {later}");
    Ok(())
}

#[test]
fn before_rm_amid_transactions_all_files_and_acknowledged_transactions_are_there() -> Result<()> {
    amid_transactions(&remove, "rm")
}

#[test]
fn before_an_encrypting_script_amid_transactions_all_files_and_acknowledged_transactions_are_there()
-> Result<()> {
    amid_transactions(&encrypt, "encrypter")
}

#[test]
fn extents_give_the_last_mark_before() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    let protection = Capture::Extents.protection(disk.path())?;
    let mut protect = protection.start()?;
    is_watched(&mut protect)?;
    fill(&mount.point().join("data"), "content")?;
    protect.mark("filled")?;
    run(Command::new("rm").arg("-rf").arg(mount.point().join("data")))?;
    protect.mark("after")?;
    mount.unmount()?;
    protect.stop()?;
    let image = protection.dir().join("before.img");
    protection.replay("before-process:rm", &image)?;
    ensure!(found(&image, "content", "no such file")? == (FILES, false));
    let plan = run(afterwrite().arg("replay").arg(protection.journal()).args([
        "--to=before-process:rm",
        "--target=/nonexistent",
        "--dry-run",
        "--json",
    ]))?;
    let plan: Value = serde_json::from_str(&plan)?;
    ensure!(plan["plan"]["point"]["label"] == "filled", "{plan}");
    ensure!(plan["plan"]["before"]["process"]["name"] == "rm", "{plan}");
    // A name that nobody has, and one that has come less often.
    for (to, hint) in [("before-process:nobody", "nobody"), ("before-process:rm@2", "rm@2")] {
        let refused = finish(
            afterwrite().arg("replay").arg(protection.journal()).args(["--to", to, "--target=/nonexistent"]),
            PATIENCE,
        )?;
        says(&refused, 2, &[hint, "afterwrite log"])?;
    }
    Ok(())
}

#[test]
fn the_log_says_who_changed_what() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    let protection = Capture::Extents.protection(disk.path())?;
    let mut protect = protection.start()?;
    is_watched(&mut protect)?;
    // No UTF-8, a newline, and as long as a name can be.
    let long = "n".repeat(251);
    let names: [&[u8]; 3] = [b"\xff\xfe.odd", b"new\nline.odd", &[long.as_bytes(), b".odd"].concat()];
    fs::create_dir(mount.point().join("sub"))?;
    for name in names {
        fs::write(mount.point().join("sub").join(OsStr::from_bytes(name)), b"some bytes")?;
    }
    run(Command::new("mv").arg(mount.point().join("sub")).arg(mount.point().join("moved")))?;
    let file = File::options().write(true).open(mount.point().join("moved/new\nline.odd"))?;
    nix::sys::uio::pwrite(&file, b"more", 100)?;
    drop(file);
    mount.unmount()?;
    protect.stop()?;

    let all = log(&protection, &[])?;
    let status = |value: &Value| value["unknown"].is_null();
    ensure!(all.iter().any(|line| !status(line)), "what was before the start is not known: {all:?}");
    let odd = log(
        &protection,
        &["--file=*.odd".as_ref(), "--pid".as_ref(), std::process::id().to_string().as_ref()],
    )?;
    let paths: Vec<&str> = odd.iter().filter_map(|line| line["path"].as_str()).collect();
    for path in [
        "/sub/\u{fffd}\u{fffd}.odd",
        "/sub/new\nline.odd",
        &format!("/sub/{long}.odd"),
        "/moved/new\nline.odd",
    ] {
        ensure!(paths.contains(&path), "no {path:?} in {paths:?}");
    }
    let more =
        odd.iter().find(|line| line["path"] == "/moved/new\nline.odd").context("it was found above")?;
    ensure!(more["ranges"][0]["start"] == 100 && more["ranges"][0]["end"] == 104, "{more}");
    let moved = log(&protection, &["--process=mv".as_ref()])?;
    let rename = moved.iter().find(|line| line["ops"][0] == "rename").context("mv renamed")?;
    ensure!(rename["path"] == "/sub" && rename["new_path"] == "/moved", "{rename}");
    let none = log(&protection, &["--process=mv".as_ref(), "--until=2001-01-01T00:00:00Z".as_ref()])?;
    ensure!(none.iter().all(|line| !line["unknown"].is_null()), "{none:?}");
    Ok(())
}

#[test]
fn a_ring_that_is_too_small_loses_origins_only_and_says_so() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    let protection = Capture::Extents.protection(disk.path())?.arg("--origin-ring=4KiB");
    let mut protect = protection.start()?;
    is_watched(&mut protect)?;
    fill(&mount.point().join("data"), "content")?;
    for _ in 0..20 {
        run(Command::new("cp").arg("-r").arg(mount.point().join("data")).arg(mount.point().join("copy")))?;
        run(Command::new("rm").arg("-rf").arg(mount.point().join("copy")))?;
    }
    mount.unmount()?;
    protect.wait_for("has lost some", |status| {
        let counters = &status[0]["origin"]["counters"];
        let [seen, emitted, lost] =
            ["seen", "emitted", "lost"].map(|name| counters[name].as_u64().unwrap_or(0));
        lost > 0 && seen == emitted + lost
    })?;
    let status = protect.volume_status()?;
    ensure!(status["counters"]["marked"] == 0 && status["counters"]["read_failed"] == 0, "{status}");
    protect.stop()?;
    assert_identical(disk.path(), protection.target())?;
    let unknown = log(&protection, &[])?.into_iter().filter_map(|line| line["unknown"]["missing"].as_u64());
    ensure!(unknown.sum::<u64>() > 0, "the journal does not say that changes are missing");
    Ok(())
}

/// Mounted again, the file system is not looked at before the probes are attached; and who stops or kills protect before that
/// leaves a mark behind that says nothing of what was changed until then.
#[test]
fn what_is_changed_before_the_probes_are_back_is_told_of_also_if_it_ends_before() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    let protection = Capture::Extents.protection(disk.path())?;
    let mut protect = protection.start()?;
    is_watched(&mut protect)?;
    mount.unmount()?;
    let mut written = Vec::new();
    for round in 0..4 {
        protect.wait_for("has let go of the file system", |status| status[0]["origin"]["rung"].is_null())?;
        let mount = Mount::with_options(disk.path(), "ext4", "")?;
        let name = format!("unseen-{round}");
        let begun = now_ns();
        fs::write(mount.point().join(&name), "who did this?")?;
        written.push((name, begun, now_ns()));
        protect.mark(&format!("round {round}"))?;
        mount.unmount()?;
        match round % 2 {
            0 => protect.kill()?,
            _ => protect.stop()?,
        }
        protect = protection.start()?;
    }
    // The journal gets to know of it when somebody looks again.
    let mount = Mount::with_options(disk.path(), "ext4", "")?;
    is_watched(&mut protect)?;
    mount.unmount()?;
    protect.stop()?;

    let lines = log(&protection, &[])?;
    for (name, begun, ended) in written {
        let is_told = |line: &Value| -> Result<bool> {
            let unknown = &line["unknown"];
            if unknown.is_null() {
                return Ok(line["path"] == format!("/{name}"));
            }
            Ok(time_ns(&unknown["from"])? <= begun && time_ns(&unknown["to"])? >= ended)
        };
        let told = lines.iter().map(is_told).collect::<Result<Vec<_>>>()?;
        ensure!(told.contains(&true), "{name}, written from {begun} to {ended}, is in none of {lines:#?}");
    }
    Ok(())
}

#[test]
fn without_origins_the_journal_says_so() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let protection = Capture::Extents.protection(disk.path())?.arg("--origin=off");
    let protect = protection.start()?;
    let status = protect.volume_status()?;
    ensure!(status["origin"]["rung"].is_null() && status["origin"]["off"].is_string(), "{status}");
    protect.stop()?;
    ensure!(log(&protection, &[])?.is_empty());
    let mut replay = afterwrite();
    replay.arg("replay").arg(protection.journal()).args(["--to=before-process:rm", "--target=/nonexistent"]);
    says(&finish(&mut replay, PATIENCE)?, 2, &["no origin records"])?;
    Ok(())
}

#[test]
fn a_process_that_removes_many_files_is_warned_of() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    let protection = Capture::Extents.protection(disk.path())?;
    fill(&mount.point().join("data"), "content")?;
    let mut protect = protection.start()?;
    is_watched(&mut protect)?;
    run(Command::new("rm").arg("-rf").arg(mount.point().join("data")))?;
    protect.wait_for("has noticed it", |status| {
        let burst = &status[0]["origin"]["bursts"][0];
        burst["process"]["name"] == "rm" && burst["removed"].as_u64() >= Some(100)
    })?;
    ensure!(protect.log().contains("--to before-burst:last"), "{}", protect.log());
    let status = protect.volume_status()?;
    ensure!(status["origin"]["bursts"][0]["random"] == 0, "text is no random bytes: {status}");
    mount.unmount()?;
    protect.stop()?;
    let bursts = log(&protection, &["--bursts".as_ref()])?;
    ensure!(bursts.len() == 1 && bursts[0]["burst"]["process"]["name"] == "rm", "{bursts:?}");
    for (which, hint) in [("2", "1 bursts"), ("soon", "soon")] {
        let to = format!("--to=before-burst:{which}");
        let mut replay = afterwrite();
        replay.arg("replay").arg(protection.journal()).args([&to, "--target=/nonexistent"]);
        says(&finish(&mut replay, PATIENCE)?, 2, &[hint, "--bursts"])?;
    }
    Ok(())
}

/// Where `filefrag` says that the file's first byte lies.
fn first_byte_of(file: &Path) -> Result<u64> {
    let said = run(Command::new("filefrag").args(["-b1", "-v"]).arg(file))?;
    let line = said.lines().find(|line| line.trim_start().starts_with("0:")).context("no extent")?;
    let physical = line.split(':').nth(2).and_then(|part| part.split('.').next()).context("no address")?;
    Ok(physical.trim().parse()?)
}

fn who_wrote_what_lies_there(fs: Fs) -> Result<()> {
    let disk = Loop::new(fs.volume_bytes().max(SIZE))?;
    let mount = Mount::make(fs, disk.path())?;
    let protection = Capture::Extents.protection(disk.path())?;
    let (one, other) = (mount.point().join("one"), mount.point().join("other"));
    fs::write(&one, vec![1; 100_000])?;
    run(Command::new("sync").arg("-f").arg(&one))?;
    let mut protect = protection.start()?;
    is_watched(&mut protect)?;
    // In place, and anew.
    run(Command::new("dd")
        .args(["if=/dev/zero", "bs=4096", "count=1", "seek=3", "conv=notrunc"])
        .arg(of(&one)))?;
    run(Command::new("cp").arg("--reflink=never").arg(&one).arg(&other))?;
    run(Command::new("sync").arg("-f").arg(&one))?;
    let [of_one, of_other] = [first_byte_of(&one)?, first_byte_of(&other)?];
    let who = |byte: u64| -> Result<Vec<String>> {
        let lines = log(&protection, &["--at".as_ref(), byte.to_string().as_ref()])?;
        let name = |line: &Value| line["process"]["name"].as_str().map(str::to_owned);
        Ok(lines.iter().filter_map(name).collect())
    };
    wait_until("the journal knows where the files lie", PATIENCE, || {
        Ok(who(of_one + 3 * 4096)?.contains(&"dd".to_owned()) && !who(of_other)?.is_empty())
    })?;
    ensure!(who(of_one + 3 * 4096)? == ["dd"] && who(of_other + 8192)? == ["cp"], "another name");
    ensure!(who(of_one + 4 * 4096)?.is_empty(), "nobody changed that block");
    mount.unmount()?;
    protect.stop()
}

fn of(file: &Path) -> OsString {
    let mut argument = OsString::from("of=");
    argument.push(file);
    argument
}

#[test]
fn who_wrote_what_lies_at_a_byte_of_the_volume_is_told_on_ext4() -> Result<()> {
    who_wrote_what_lies_there(Fs::Ext4)
}

#[test]
fn who_wrote_what_lies_at_a_byte_of_the_volume_is_told_on_xfs() -> Result<()> {
    who_wrote_what_lies_there(Fs::Xfs)
}

#[test]
fn files_that_are_replaced_by_random_bytes_are_told_of() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    let protection = Capture::Extents.protection(disk.path())?;
    let data = mount.point().join("data");
    fill(&data, "content")?;
    let mut protect = protection.start()?;
    is_watched(&mut protect)?;
    let script = "for file in *; do head -c 8192 /dev/urandom > $file.locked; rm $file; done";
    run(Command::new("bash").current_dir(&data).args(["-c", script]))?;
    protect.wait_for("has noticed it", |status| {
        let burst = &status[0]["origin"]["bursts"][0];
        burst["sampled"].as_u64() > Some(5) && burst["random"] == burst["sampled"]
    })?;
    mount.unmount()?;
    protect.stop()
}

/// A protection whose replica is at a mark of now.
fn settle(protect: &mut Protect<'_>, label: &str) -> Result<()> {
    protect.mark(label)?;
    protect.wait_for("has brought the replica to the mark", |status| {
        let mark = &status[0]["last_mark"]["id"];
        !mark.is_null() && status[0]["replica"]["mark"] == *mark
    })
}

fn fill_with_random_bytes(dir: &Path, head: &[u8]) -> Result<()> {
    fs::create_dir(dir)?;
    for number in 0..FILES {
        let path = dir.join(format!("file{number}"));
        fs::write(&path, [head, &random_bytes(8192)?].concat())?;
    }
    run(Command::new("sync").arg("-f").arg(dir)).map(drop)
}

fn random_bytes(count: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    std::io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut bytes)?;
    Ok(bytes)
}

/// By a process for each of the files, of this name.
fn write_over_each(dir: &Path, source: &Path, program: &Path) -> Result<()> {
    let script = "for file in *; do \"$0\" if=\"$1\" of=$file bs=8192 count=1 conv=notrunc status=none; done";
    run(Command::new("bash").current_dir(dir).args(["-c", script]).arg(program).arg(source)).map(drop)
}

fn bursts(status: &Value) -> &[Value] {
    status[0]["origin"]["bursts"].as_array().map_or(&[], Vec::as_slice)
}

/// Those of which it was known what they held before all hold random bytes now.
fn all_are_spoiled(burst: &Value) -> bool {
    burst["compared"].as_u64() >= Some(4) && burst["spoiled"] == burst["compared"]
}

#[test]
fn files_that_are_encrypted_are_told_of_with_a_point_before_it() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    let protection = Capture::Extents.protection(disk.path())?;
    let [texts, archives, renamed] = ["data", "archives", "renamed"].map(|name| mount.point().join(name));
    fill(&texts, "content")?;
    fill(&renamed, "content")?;
    fill_with_random_bytes(&archives, b"\x1f\x8b\x08\0\0\0\0\0")?;
    let mut protect = protection.start()?;
    is_watched(&mut protect)?;
    settle(&mut protect, "filled")?;

    for (number, (name, dir)) in [("scrambler", &texts), ("archiver", &archives)].into_iter().enumerate() {
        let program = protection.dir().join(name);
        copy_program("/bin/dd".as_ref(), &program)?;
        write_over_each(dir, "/dev/urandom".as_ref(), &program)?;
        protect.wait_for(&format!("has noticed {name}"), |status| {
            bursts(status).get(number).is_some_and(|it| it["process"]["name"] == name && all_are_spoiled(it))
        })?;
    }
    // By another file, which is renamed over the first.
    let script = "for file in *; do head -c 8192 /dev/urandom > $file.new; mv $file.new $file; done";
    run(Command::new("bash").current_dir(&renamed).args(["-c", script]))?;
    protect.wait_for("has noticed mv", |status| {
        bursts(status).get(2).is_some_and(|it| it["process"]["name"] == "mv" && all_are_spoiled(it))
    })?;
    let status = protect.volume_status()?;
    ensure!(status["origin"]["bursts_dismissed"] == 0, "{status}");
    fs::write(mount.point().join("first-after"), "x")?;
    mount.unmount()?;
    protect.stop()?;

    let told = log(&protection, &["--bursts".as_ref()])?;
    ensure!(told.len() == 3 && told.iter().all(|line| all_are_spoiled(&line["burst"])), "{told:?}");
    let image = protection.dir().join("before.img");
    protection.replay("before-burst:1", &image)?;
    let (whole, later) = found(&image, "content", "first-after")?;
    ensure!((whole, later) == (FILES, false), "{whole} of {FILES} files are whole; later: {later}");
    Ok(())
}

#[test]
fn files_that_are_rewritten_and_none_the_worse_are_not_told_of() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    let protection = Capture::Extents.protection(disk.path())?;
    let [texts, random, archives] = ["data", "random", "archives"].map(|name| mount.point().join(name));
    fill(&texts, "content")?;
    fill_with_random_bytes(&random, b"")?;
    fill_with_random_bytes(&archives, b"\x28\xb5\x2f\xfd")?;
    let mut protect = protection.start()?;
    is_watched(&mut protect)?;
    settle(&mut protect, "filled")?;

    let new = mount.point().join("new");
    fill(&new, "content")?;
    let made = Instant::now();
    let [text, archive] = ["text", "archive"].map(|name| protection.dir().join(name));
    fs::write(&text, "something else\n".repeat(600))?;
    fs::write(&archive, [b"\x28\xb5\x2f\xfd", &random_bytes(9000)?[..]].concat())?;
    let works = [("a", &random, "/dev/urandom".as_ref()), ("b", &texts, &*text), ("c", &archives, &*archive)];
    for (number, (name, dir, source)) in (1..).zip(works) {
        let program = protection.dir().join(name);
        copy_program("/bin/dd".as_ref(), &program)?;
        write_over_each(dir, source, &program)?;
        protect.wait_for(&format!("has looked at what {name} did"), |status| {
            status[0]["origin"]["bursts_dismissed"].as_u64() >= Some(number) || !bursts(status).is_empty()
        })?;
        let status = protect.volume_status()?;
        ensure!(bursts(&Value::from([status.clone()].to_vec())).is_empty(), "{name}: {status}");
    }
    // The same by whom it was none: what counts is what becomes of files.
    write_over_each(&texts, "/dev/urandom".as_ref(), &protection.dir().join("a"))?;
    protect.wait_for("has noticed it", |status| {
        bursts(status).first().is_some_and(|it| it["process"]["name"] == "a" && all_are_spoiled(it))
    })?;
    // Nobody knows what these held at the mark. What was made less than 10 s ago does not count.
    wait_until("the new files are some seconds old", PATIENCE, || {
        Ok(made.elapsed() > Duration::from_secs(11))
    })?;
    let program = protection.dir().join("d");
    copy_program("/bin/dd".as_ref(), &program)?;
    write_over_each(&new, &text, &program)?;
    protect.wait_for("has told of it to be on the safe side", |status| {
        bursts(status).get(1).is_some_and(|it| it["process"]["name"] == "d" && it["compared"] == 0)
    })?;
    mount.unmount()?;
    protect.stop()
}
