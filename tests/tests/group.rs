//! Consistency groups: a mark of several volumes is of one instant, and whatever dies or is in the way, nothing stays frozen and
//! nothing is called a mark of the group that is none.

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const NEVER: &str = "mark-every = \"never\"";
/// Each of two members and the service, while the first is frozen and at any time.
const KILLS: usize = 6;
/// To stop a member in time.
const TRIES: usize = 50;
const NAMES: [&str; 3] = ["first", "second", "third"];

fn group(options: &str, volumes: &[&str]) -> String {
    format!("[group.shop]\nvolumes = {volumes:?}\n{options}\n")
}

/// The name of the mark.
fn mark(service: &Service, label: &str) -> Result<String> {
    let made = run(service.client().args(["mark", "--group", "shop", "--label", label]));
    Ok(made.with_context(|| format!("log:\n{}", service.log()))?.trim().to_owned())
}

fn status_of_group(service: &Service) -> Result<Value> {
    let status = service.status()?;
    let group = status.as_array().into_iter().flatten().find(|value| value["kind"] == "group").cloned();
    group.context("the group is in the status")
}

fn points(service: &Service, volume: &str) -> Result<Vec<Value>> {
    let json = run(afterwrite().arg("points").arg(service.path(&format!("{volume}.journal"))).arg("--json"))?;
    let points: Value = serde_json::from_str(&json)?;
    points["points"].as_array().or(points.as_array()).cloned().context("points are listed")
}

/// What the file holds in the mark of that name.
fn round_at(service: &Service, volume: &str, fs: Fs, name: &str) -> Result<u64> {
    let image = service.path(&format!("{volume}.img"));
    drop(std::fs::remove_file(&image));
    let journal = service.path(&format!("{volume}.journal"));
    let to = format!("mark:{name}");
    run(afterwrite().arg("replay").arg(journal).args(["--to", &to, "--target"]).arg(&image))?;
    let device = Loop::over(&image)?;
    let mount = Mount::recovered(fs, device.path())?;
    let text = std::fs::read_to_string(mount.point().join("round"))?;
    mount.unmount()?;
    Ok(text.parse()?)
}

/// Writes go through on it within a while.
fn is_thawed(mount: &Mount) -> Result<()> {
    let file = mount.point().join("thawed");
    let written = finish(
        Command::new("sh").arg("-c").arg(format!("echo x > {0} && sync {0}", file.display())),
        PATIENCE,
    )?;
    ensure!(written.code == Some(0), "{written:?}");
    Ok(())
}

fn each_has_the_next_mark(service: &Service, volumes: &[&str]) -> Result<()> {
    let name = mark(service, "after")?;
    for volume in volumes {
        let has = points(service, volume)?.iter().any(|point| point["label"] == *name);
        ensure!(has, "{volume} has no {name}");
    }
    Ok(())
}

#[test]
fn a_mark_of_a_group_is_the_same_instant_of_each_volume() -> Result<()> {
    let kinds = [Fs::Ext4, Fs::Xfs, Fs::Ext4];
    let disks = kinds.iter().map(|fs| Loop::new(fs.volume_bytes())).collect::<Result<Vec<_>>>()?;
    let mut service = Service::new()?;
    let mut tables = vec![group("mark-every = \"1s\"", &NAMES)];
    for (name, disk) in NAMES.iter().zip(&disks) {
        tables.push(service.table("volume", name, disk.path(), "mark-every = \"2s\""));
    }
    let mounts = kinds.iter().zip(&disks).map(|(fs, disk)| Mount::make(*fs, disk.path()));
    let mounts = mounts.collect::<Result<Vec<_>>>()?;
    let rounds = Rounds::start(mounts.iter().map(|mount| mount.point().join("round")).collect())?;
    // One has much to be read while it is frozen, and the others wait for it.
    let churn = Churn::start(mounts[1].point(), "churn", Random::new(seed()))?;
    service.configure(&tables)?;
    service.start()?;
    service.wait_live(&disks.iter().map(Loop::path).collect::<Vec<_>>())?;
    let mut names = Vec::new();
    for number in 0..5 {
        rounds.wait_for_more(3)?;
        names.push(mark(&service, &format!("by hand {number}"))?);
    }
    ensure!(names[3].starts_with("group:shop/") && names[3].ends_with("/by hand 3"), "{names:?}");
    service.wait_for("have a mark that was due", |status| {
        let group = status.as_array().into_iter().flatten().find(|value| value["kind"] == "group");
        let name = group.and_then(|group| group["last_mark"]["name"].as_str());
        name.is_some_and(|name| !name.contains("by hand"))
    })?;
    let told = run(service.client().arg("status"))?;
    ensure!(told.contains("group shop (first, second, third): group:shop/"), "{told}");
    ensure!(told.lines().next().is_some_and(|head| head.contains("GROUP")), "{told}");
    for disk in &disks {
        ensure!(service.of(disk.path())?["group"] == "shop", "{}", service.of(disk.path())?);
    }
    // Once nothing is mounted there is nothing to freeze, and a mark is of class crash.
    let of_first = points(&service, "first")?;
    churn.finish()?;
    rounds.stop()?;
    mounts.into_iter().try_for_each(Mount::unmount)?;
    service.stop()?;

    let due = of_first.iter().filter_map(|point| point["label"].as_str());
    names.extend(
        due.filter(|label| label.starts_with("group:shop/") && !label.contains("by hand"))
            .take(3)
            .map(str::to_owned),
    );
    ensure!(names.len() > 5, "none that was due is among {of_first:?}");
    for name in names {
        let mut instant = Vec::new();
        let mut times = Vec::new();
        for (volume, fs) in NAMES.iter().zip(kinds) {
            let of_volume = points(&service, volume)?;
            let point = of_volume.iter().find(|point| point["label"] == *name);
            let point = point.with_context(|| format!("{volume} has no {name}: {of_volume:?}"))?;
            ensure!(point["class"] == "fs", "{point}");
            times.push(point["time"].clone());
            instant.push(round_at(&service, volume, fs, &name)?);
        }
        println!("{name}: {instant:?}");
        let orderly = instant.windows(2).all(|pair| pair[0] >= pair[1]);
        ensure!(orderly && instant[0] - instant[2] <= 1, "{name}: no instant had the rounds {instant:?}");
        ensure!(times.iter().all(|time| *time == times[0]), "{name}: {times:?}");
    }
    Ok(())
}

#[test]
fn whoever_is_killed_amid_a_mark_nothing_stays_frozen_and_the_next_one_is_made() -> Result<()> {
    let disks = [Loop::new(Fs::Ext4.volume_bytes())?, Loop::new(Fs::Ext4.volume_bytes())?];
    let mut service = Service::new()?;
    let volumes = ["first", "second"];
    let (rest, on) = (service.path("rest"), service.path("on"));
    let hooks = format!("before-mark = 'touch {}'\nafter-mark = 'touch {}'", rest.display(), on.display());
    let mut tables = vec![group(&format!("{NEVER}\nfreeze-timeout = \"5s\"\n{hooks}"), &volumes)];
    for (name, disk) in volumes.iter().zip(&disks) {
        tables.push(service.table("volume", name, disk.path(), NEVER));
    }
    let mounts = [Mount::make(Fs::Ext4, disks[0].path())?, Mount::make(Fs::Ext4, disks[1].path())?];
    service.configure(&tables)?;
    service.start()?;
    let sources = [disks[0].path(), disks[1].path()];
    service.wait_live(&sources)?;
    let mut random = Random::new(seed());
    let rounds = Rounds::start(vec![mounts[0].point().join("round")])?;
    let mut failed = 0;
    for number in 0..KILLS {
        // What is to be written while it freezes makes that take longer.
        let bytes = random.bytes(8 << 20);
        std::fs::write(mounts[0].point().join("much"), &bytes)?;
        std::fs::write(mounts[1].point().join("much"), &bytes)?;
        drop((std::fs::remove_file(&rest), std::fs::remove_file(&on)));
        let pid = |source| Ok(i32::try_from(service.of(source)?["pid"].as_u64().context("it runs")?)?);
        let pids = sources.into_iter().map(pid).collect::<Result<Vec<_>>>()?;
        let mut asked = service.client();
        asked.args(["mark", "--group", "shop", "--label", &format!("try {number}")]);
        let marking = std::thread::spawn(move || finish(&mut asked, PATIENCE));
        wait_until("the mark has begun", PATIENCE, || Ok(rest.exists()))?;
        match number / 3 % 2 {
            // Most often while the first is frozen, and the second about to be.
            0 => rounds.wait_for_stall(Duration::from_millis(10))?,
            _ => std::thread::sleep(Duration::from_millis(random.below(200))),
        }
        match number % 3 {
            2 => {
                service.signal(Signal::SIGKILL)?;
                service.ended()?;
            }
            which => kill(Pid::from_raw(pids[which]), Signal::SIGKILL)?,
        }
        let outcome = marking.join().expect("it does not panic")?;
        println!("try {number}: {}", outcome.stderr.trim());
        failed += u32::from(outcome.code != Some(0));
        mounts.iter().try_for_each(is_thawed)?;
        wait_until("the application goes on", PATIENCE, || Ok(!rest.exists() || on.exists()))?;
        if number % 3 == 2 {
            service.start()?;
        }
        service.wait_live(&sources)?;
        each_has_the_next_mark(&service, &volumes)?;
    }
    rounds.stop()?;
    println!("{failed} of {KILLS} marks failed as someone was killed");
    mounts.into_iter().try_for_each(Mount::unmount)?;
    service.stop()
}

/// Who is killed while all volumes are frozen.
#[derive(Clone, Copy, Debug)]
enum Killed {
    First,
    Second,
    Service,
    All,
}

/// The mark is held amid it by stopping one of the members, and thawing by the time limit would take longer than is waited: so what
/// thaws is that someone died.
#[test]
fn killed_while_all_are_frozen_they_thaw_and_every_volume_is_whole() -> Result<()> {
    let disks = [Loop::new(Fs::Ext4.volume_bytes())?, Loop::new(Fs::Ext4.volume_bytes())?];
    let sources = [disks[0].path(), disks[1].path()];
    let volumes = ["first", "second"];
    let mut service = Service::new()?;
    let mut tables = vec![group(&format!("{NEVER}\nfreeze-timeout = \"30m\""), &volumes)];
    for (name, source) in volumes.iter().zip(sources) {
        tables.push(service.table("volume", name, source, NEVER));
    }
    let mounts = [Mount::make(Fs::Ext4, sources[0])?, Mount::make(Fs::Ext4, sources[1])?];
    service.configure(&tables)?;
    service.start()?;
    service.wait_live(&sources)?;
    let writers = mounts.iter().map(|mount| Rounds::start(vec![mount.point().join("round")]));
    let writers = writers.collect::<Result<Vec<_>>>()?;
    let all_are_held =
        || writers.iter().try_fold(true, |all, writer| Ok(all && writer.is_held_by_a_freeze()?));
    for killed in [Killed::First, Killed::Second, Killed::Service, Killed::All] {
        let pid = |source| {
            Ok(Pid::from_raw(i32::try_from(service.of(source)?["pid"].as_u64().context("it runs")?)?))
        };
        let pids = sources.into_iter().map(pid).collect::<Result<Vec<_>>>()?;
        let marking = (0..TRIES)
            .find_map(|_| held_amid_a_mark(&service, pids[1], &writers[1], &all_are_held).transpose());
        let marking = marking.context("no mark could be held while all were frozen")??;
        ensure!(all_are_held()?, "{killed:?}: it is killed while all are frozen");
        match killed {
            Killed::First => kill(pids[0], Signal::SIGKILL)?,
            Killed::Second => kill(pids[1], Signal::SIGKILL)?,
            Killed::Service => service.signal(Signal::SIGKILL)?,
            Killed::All => {
                service.signal(Signal::SIGKILL)?;
                pids.iter().try_for_each(|pid| kill(*pid, Signal::SIGKILL))?;
            }
        }
        is_thawed(&mounts[0])?;
        if matches!(killed, Killed::First) {
            // It was stopped, and hears only now that nothing comes of it.
            kill(pids[1], Signal::SIGCONT)?;
        }
        is_thawed(&mounts[1])?;
        let outcome = marking.join().expect("it does not panic")?;
        ensure!(outcome.code == Some(2), "{killed:?}: a mark was made: {outcome:?}");
        println!("{killed:?}: {}", outcome.stderr.trim());
        if matches!(killed, Killed::Service | Killed::All) {
            service.ended()?;
            service.start()?;
        }
        service.wait_live(&sources)?;
        each_has_the_next_mark(&service, &volumes)?;
    }
    writers.into_iter().try_for_each(Rounds::stop)?;
    mounts.into_iter().try_for_each(Mount::unmount)?;
    service.stop()?;
    for (volume, source) in volumes.iter().zip(sources) {
        assert_identical(source, &service.path(&format!("{volume}.replica")))?;
        run(afterwrite().args(["journal", "check"]).arg(service.path(&format!("{volume}.journal"))))?;
    }
    Ok(())
}

type Marking = std::thread::JoinHandle<Result<Finished>>;

/// Has a mark of the group made, and stops this member once its file system is frozen, the last one of all: nobody thaws then before
/// that goes on or ends. `None`: it was too late.
fn held_amid_a_mark(
    service: &Service,
    member: Pid,
    writer: &Rounds,
    all_are_held: &dyn Fn() -> Result<bool>,
) -> Result<Option<Marking>> {
    let mut asked = service.client();
    asked.args(["mark", "--group", "shop", "--label", "held"]);
    let marking = std::thread::spawn(move || finish(&mut asked, PATIENCE));
    while !writer.is_held_by_a_freeze()? && !marking.is_finished() {
        std::thread::sleep(Duration::from_micros(100));
    }
    kill(member, Signal::SIGSTOP)?;
    // Orders that were given before are carried out.
    std::thread::sleep(Duration::from_millis(200));
    if !marking.is_finished() && all_are_held()? {
        return Ok(Some(marking));
    }
    kill(member, Signal::SIGCONT)?;
    marking.join().expect("it does not panic")?;
    Ok(None)
}

#[test]
fn without_a_file_system_to_freeze_it_is_one_only_if_nobody_writes() -> Result<()> {
    let (disk, raw) = (Loop::new(Fs::Ext4.volume_bytes())?, Loop::new(32 * MIB)?);
    let mut service = Service::new()?;
    service.configure(&[
        group(&format!("{NEVER}\nfreeze-timeout = \"1s\""), &["raw", "disk"]),
        service.table("volume", "disk", disk.path(), NEVER),
        service.table("volume", "raw", raw.path(), NEVER),
    ])?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    service.start()?;
    service.wait_live(&[disk.path(), raw.path()])?;
    let name = mark(&service, "still")?;
    for (volume, class) in [("disk", "fs"), ("raw", "crash")] {
        let points = points(&service, volume)?;
        ensure!(points.iter().any(|point| point["label"] == *name && point["class"] == class), "{points:?}");
    }
    let rounds = Rounds::start(vec![raw.path().to_owned()])?;
    rounds.wait_for_more(10)?;
    let refused = finish(service.client().args(["mark", "--group", "shop"]), PATIENCE)?;
    says(&refused, 2, &["no mark of group shop was made", "raw"])?;
    let status = status_of_group(&service)?;
    ensure!(status["last_mark"]["name"] == *name && status["last_mark_error"].is_string(), "{status}");
    let told = run(service.client().arg("status"))?;
    ensure!(told.contains("! group shop: the last mark was not made"), "{told}");
    ensure!(service.log().contains("group shop: no mark was made"), "{}", service.log());
    rounds.stop()?;
    is_thawed(&mount)?;
    let after = mark(&service, "still again")?;
    ensure!(status_of_group(&service)?["last_mark_error"].is_null());
    for volume in ["disk", "raw"] {
        let points = points(&service, volume)?;
        let names: Vec<_> = points.iter().filter_map(|point| point["label"].as_str()).collect();
        let of_group: Vec<_> = names.iter().filter(|label| label.starts_with("group:")).collect();
        ensure!(of_group == [&name, &after], "{volume}: {names:?}");
    }
    mount.unmount()?;
    service.stop()
}

#[test]
fn volumes_that_stand_on_each_other_are_no_group() -> Result<()> {
    let lower = Loop::new(Fs::Ext4.volume_bytes())?;
    let mut service = Service::new()?;
    let below = Mount::make(Fs::Ext4, lower.path())?;
    let image = below.point().join("image");
    File::create(&image)?.set_len(32 * MIB)?;
    let upper = Loop::over(&image)?;
    let above = Mount::make(Fs::Ext4, upper.path())?;
    service.configure(&[
        group(&format!("{NEVER}\nfreeze-timeout = \"1s\""), &["lower", "upper"]),
        service.table("volume", "lower", lower.path(), NEVER),
        service.table("volume", "upper", upper.path(), NEVER),
    ])?;
    let config = service.path("config.toml");
    let check = finish(service.client().args(["config", "check", "--config"]).arg(config), PATIENCE)?;
    ensure!(check.code == Some(1) && check.stdout.contains("group shop cannot be marked"), "{check:?}");
    service.start()?;
    service.wait_live(&[lower.path(), upper.path()])?;
    let refused = finish(service.client().args(["mark", "--group", "shop"]), PATIENCE)?;
    says(&refused, 2, &["stands on", "lower", "upper"])?;
    [&above, &below].into_iter().try_for_each(is_thawed)?;
    // Each by itself has marks all the same.
    run(service.client().args(["mark", "--label", "own"]).arg(lower.path()))?;
    above.unmount()?;
    service.stop()?;
    drop(upper);
    below.unmount()
}

#[test]
fn commands_are_run_once_for_all_and_groups_come_and_go_by_a_reload() -> Result<()> {
    let (one, two) = (Loop::new(16 * MIB)?, Loop::new(16 * MIB)?);
    let mut service = Service::new()?;
    let log = service.path("hooks");
    let said = |what: &str| format!("echo {what} $AFTERWRITE_LABEL >> {}", log.display());
    let hooks = format!("before-mark = '{}'\nafter-mark = '{}'", said("rest"), said("on"));
    let volumes = [
        service.table("volume", "one", one.path(), NEVER),
        service.table("volume", "two", two.path(), NEVER),
    ];
    service.configure(&volumes)?;
    service.start()?;
    service.wait_live(&[one.path(), two.path()])?;
    let unknown = finish(service.client().args(["mark", "--group", "shop"]), PATIENCE)?;
    says(&unknown, 2, &["no group shop"])?;
    let pid = service.of(one.path())?["pid"].clone();

    service.configure(&[volumes.concat(), group(&format!("{NEVER}\n{hooks}"), &["one", "two"])])?;
    says(&finish(service.client().arg("reload"), PATIENCE)?, 0, &["group shop is new"])?;
    let name = mark(&service, "x")?;
    ensure!(std::fs::read_to_string(&log)? == format!("rest {name}\non {name}\n"));
    ensure!(points(&service, "two")?.iter().any(|point| point["label"] == *name && point["class"] == "app"));

    // One that fails makes less of the mark, and is told.
    let failing = "before-mark = 'exit 3'\nafter-mark = 'true'";
    service.configure(&[volumes.concat(), group(&format!("{NEVER}\n{failing}"), &["one", "two"])])?;
    says(&finish(service.client().arg("reload"), PATIENCE)?, 0, &["group shop goes on with"])?;
    let name = mark(&service, "")?;
    ensure!(
        points(&service, "one")?.iter().any(|point| point["label"] == *name && point["class"] == "crash")
    );
    let told = run(service.client().arg("status"))?;
    ensure!(told.contains("not of class app"), "{told}");

    // What is called so is of one instant: nobody else gives such a label.
    let forged = finish(service.client().args(["mark", "--label", &name]).arg(one.path()), PATIENCE)?;
    says(&forged, 2, &["--group"])?;
    let both = finish(service.client().args(["mark", "one", "--group", "shop"]), PATIENCE)?;
    says(&both, 2, &["cannot be used with"])?;
    let mut stranger = Command::new("setpriv");
    stranger.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(binary());
    stranger.args(["mark", "--group", "shop"]).env("AFTERWRITE_RUN_DIR", service.path("run"));
    ensure!(finish(&mut stranger, PATIENCE)?.code == Some(2));

    // A volume that does not run is no reason to take a mark of the other for one of both.
    run(service.client().args(["pause", "two"]))?;
    let paused = finish(service.client().args(["mark", "--group", "shop"]), PATIENCE)?;
    says(&paused, 2, &["no mark of group shop was made"])?;
    run(service.client().args(["resume", "two"]))?;
    service.configure(&volumes)?;
    says(&finish(service.client().arg("reload"), PATIENCE)?, 0, &["group shop is no more"])?;
    ensure!(service.of(one.path())?["pid"] == pid, "a group disturbs no protection");
    service.stop()
}
