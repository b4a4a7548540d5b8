//! `afterwrite run`: several volumes and a tree by one configuration. What fails is started again, what is changed goes on, what is
//! wrong is told with its line, and no write is lost however it comes to its end.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SIZE: u64 = 32 * MIB;
const QUICK: &str = "mark-every = \"1s\"";

fn write_some(device: &Path, random: &mut Random) -> Result<()> {
    let bytes = random.bytes(256 << 10);
    let at = random.below((SIZE >> 12) - 64) << 12;
    let file = std::fs::File::options().write(true).open(device)?;
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, at)?;
    Ok(file.sync_all()?)
}

fn pid(service: &Service, source: &Path) -> Result<u64> {
    service.of(source)?["pid"].as_u64().context("it has a process")
}

/// Whether its probes went on while one process took over from another: then nothing was compared.
fn is_adopted(service: &Service, source: &Path) -> Result<bool> {
    Ok(service.of(source)?["probes"] == "adopted")
}

#[test]
fn volumes_and_a_tree_are_protected_and_are_equal_when_it_stops() -> Result<()> {
    let mut random = Random::new(seed());
    let (raw, disk) = (Loop::new(SIZE)?, Loop::new(SIZE)?);
    let home = scratch()?;
    std::fs::write(home.path().join("before"), "there before")?;
    let mut service = Service::new()?;
    service.configure(&[
        "[defaults]\nmark-every = \"1s\"\ncapture = \"payload\"\n".into(),
        service.table("volume", "raw", raw.path(), ""),
        service.table("volume", "disk", disk.path(), "capture = \"extents\""),
        service.table("tree", "home", home.path(), ""),
    ])?;
    service.start()?;
    service.wait_live(&[raw.path(), disk.path(), home.path()])?;
    ensure!(service.of(raw.path())?["capture"] == "payload");
    ensure!(service.of(disk.path())?["capture"] == "extents");
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    for number in 0..20 {
        write_some(raw.path(), &mut random)?;
        std::fs::write(mount.point().join(format!("file{number}")), vec![number; 10_000])?;
        std::fs::write(home.path().join(format!("file{number}")), vec![number; 10_000])?;
    }
    run(service.client().args(["mark", "--label", "by hand"]).arg(raw.path()))?;
    mount.unmount()?;
    service.stop()?;
    assert_identical(raw.path(), &service.path("raw.replica"))?;
    assert_identical(disk.path(), &service.path("disk.replica"))?;
    run(afterwrite().arg("verify").arg(home.path()).arg(service.path("home.replica")))?;
    ensure!(!is_in_kernel(raw.path()) && !is_in_kernel(disk.path()), "probes are left");
    ensure!(!service.path("run/service/control.sock").exists());
    Ok(())
}

#[test]
fn one_that_is_killed_is_started_again_and_the_others_go_on() -> Result<()> {
    let mut random = Random::new(seed());
    let (victim, other) = (Loop::new(SIZE)?, Loop::new(SIZE)?);
    let mut service = Service::new()?;
    service.configure(&[
        service.table("volume", "victim", victim.path(), QUICK),
        service.table("volume", "other", other.path(), QUICK),
    ])?;
    service.start()?;
    service.wait_live(&[victim.path(), other.path()])?;
    let of_other = pid(&service, other.path())?;
    let killed = pid(&service, victim.path())?;
    kill(Pid::from_raw(i32::try_from(killed)?), Signal::SIGKILL)?;
    for _ in 0..20 {
        write_some(victim.path(), &mut random)?;
        write_some(other.path(), &mut random)?;
    }
    service.wait_for("are live again", |status| {
        let live = |value: &serde_json::Value| value["state"] == "live";
        status.as_array().is_some_and(|all| all.len() == 2 && all.iter().all(live))
    })?;
    ensure!(pid(&service, victim.path())? != killed && is_adopted(&service, victim.path())?);
    ensure!(pid(&service, other.path())? == of_other);
    ensure!(service.log().contains("SIGKILL"), "{}", service.log());
    service.stop()?;
    assert_identical(victim.path(), &service.path("victim.replica"))?;
    assert_identical(other.path(), &service.path("other.replica"))
}

#[test]
fn a_reload_changes_what_is_changed_and_nothing_else() -> Result<()> {
    let mut random = Random::new(seed());
    let [same, changed, gone, new] = [(); 4].map(|()| Loop::new(SIZE));
    let (same, changed, gone, new) = (same?, changed?, gone?, new?);
    let mut service = Service::new()?;
    let of_same = service.table("volume", "same", same.path(), QUICK);
    service.configure(&[
        of_same.clone(),
        service.table("volume", "changed", changed.path(), QUICK),
        service.table("volume", "gone", gone.path(), QUICK),
    ])?;
    service.start()?;
    service.wait_live(&[same.path(), changed.path(), gone.path()])?;
    let before = (pid(&service, same.path())?, pid(&service, changed.path())?);

    // What is wrong changes nothing.
    service.configure(&[
        of_same.clone(),
        service.table("volume", "changed", changed.path(), "mark-every = 5"),
    ])?;
    let refused = finish(service.client().arg("reload"), PATIENCE)?;
    says(&refused, 2, &["config.toml:10", "mark-every", "as before"])?;
    ensure!((pid(&service, same.path())?, pid(&service, changed.path())?) == before);

    service.configure(&[
        of_same,
        service.table("volume", "changed", changed.path(), "mark-every = \"2s\"\ncapture = \"payload\""),
        service.table("volume", "new", new.path(), QUICK),
    ])?;
    service.signal(Signal::SIGHUP)?;
    for _ in 0..20 {
        [&same, &changed, &new].iter().try_for_each(|disk| write_some(disk.path(), &mut random))?;
    }
    service.wait_for("are as configured", |status| {
        let all = status.as_array().map(Vec::as_slice).unwrap_or_default();
        let live = |disk: &Loop| {
            let path = disk.path().display().to_string();
            all.iter().any(|value| value["source"] == path && value["state"] == "live")
        };
        all.len() == 3 && live(&same) && live(&changed) && live(&new)
    })?;
    let after = (pid(&service, same.path())?, pid(&service, changed.path())?);
    ensure!(after.0 == before.0 && after.1 != before.1, "{before:?} {after:?}");
    ensure!(service.of(changed.path())?["capture"] == "payload");
    ensure!(!is_in_kernel(gone.path()), "{} is still captured", gone.path().display());
    let log = service.log();
    for said in ["gone stops", "changed goes on with its new options", "new starts"] {
        ensure!(log.contains(said), "{log}");
    }
    let reloaded = finish(service.client().arg("reload"), PATIENCE)?;
    says(&reloaded, 0, &["nothing has changed"])?;
    service.stop()?;
    for (name, disk) in [("same", &same), ("changed", &changed), ("gone", &gone), ("new", &new)] {
        assert_identical(disk.path(), &service.path(&format!("{name}.replica"))).context(name)?;
    }
    Ok(())
}

#[test]
fn paused_the_probes_record_and_resumed_it_goes_on() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(SIZE)?;
    let mut service = Service::new()?;
    service.configure(&[service.table("volume", "data", disk.path(), QUICK)])?;
    service.start()?;
    service.wait_live(&[disk.path()])?;
    let paused = finish(service.client().args(["pause", "data"]), PATIENCE)?;
    says(&paused, 0, &["data is paused", "no write is lost", "`afterwrite resume data` goes on"])?;
    service.wait_for("are paused", |status| status[0]["state"] == "paused")?;
    (0..20).try_for_each(|_| write_some(disk.path(), &mut random))?;
    let status = service.of(disk.path())?;
    ensure!(status["recording"] == true && status["pid"].is_null(), "{status}");
    for asked in [["status", "data"], ["mark", "data"]] {
        says(
            &finish(service.client().args(asked), PATIENCE)?,
            2,
            &["data is paused", "`afterwrite resume data`"],
        )?;
    }
    // With another run directory it is seen by its probes, and whose it is.
    let mut elsewhere = service.client();
    elsewhere.arg("status").env("AFTERWRITE_RUN_DIR", service.path("nowhere"));
    let told = run(&mut elsewhere)?;
    let whose = format!("paused in the service with the run directory {}", service.path("run").display());
    ensure!(told.contains(&whose), "{told}");
    let unknown = finish(service.client().args(["resume", "dat"]), PATIENCE)?;
    says(&unknown, 2, &["dat is not in the configuration", "data"])?;
    let resumed = finish(service.client().arg("resume").arg(disk.path()), PATIENCE)?;
    says(&resumed, 0, &["data goes on", "is read now"])?;
    service.wait_live(&[disk.path()])?;
    // It is known by the name it has in the configuration, too.
    run(service.client().args(["mark", "data"]))?;
    ensure!(is_adopted(&service, disk.path())?);
    service.stop()?;
    assert_identical(disk.path(), &service.path("data.replica"))
}

#[test]
fn who_looks_in_another_run_directory_is_told_where_to_look() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let mut service = Service::new()?;
    service.configure(&[service.table("volume", "data", disk.path(), QUICK)])?;
    service.start()?;
    service.wait_live(&[disk.path()])?;
    let name = disk.path().file_name().context("it has a name")?.to_string_lossy().into_owned();
    let looked = |run_dir: &Path| {
        let mut client = service.client();
        client.arg("status").env("AFTERWRITE_RUN_DIR", run_dir);
        let finished = finish(&mut client, PATIENCE)?;
        let told = format!("{}{}", finished.stdout, finished.stderr);
        let place = format!("`AFTERWRITE_RUN_DIR={} afterwrite status`", service.path("run").display());
        let line = told
            .lines()
            .find(|line| line.starts_with("elsewhere: ") && line.contains(&place))
            .map(str::to_owned);
        Ok::<_, anyhow::Error>((line, told))
    };
    let (line, told) = looked(&service.path("nowhere"))?;
    let line = line.with_context(|| format!("nothing is told of it: {told}"))?;
    ensure!(line.contains(&name), "{line}");
    let (line, told) = looked(&service.path("run"))?;
    ensure!(line.is_none(), "{told}");
    service.stop()
}

#[test]
fn killed_or_replaced_as_a_whole_the_next_start_goes_on() -> Result<()> {
    let mut random = Random::new(seed());
    let disks = [Loop::new(SIZE)?, Loop::new(SIZE)?];
    let sources = [disks[0].path(), disks[1].path()];
    let mut service = Service::new()?;
    service.configure(&[
        service.table("volume", "first", sources[0], QUICK),
        service.table("volume", "second", sources[1], "capture = \"payload\""),
    ])?;
    service.start()?;
    service.wait_live(&sources)?;
    for signal in [Signal::SIGKILL, Signal::SIGUSR1] {
        let before = [pid(&service, sources[0])?, pid(&service, sources[1])?];
        service.signal(signal)?;
        let ended = service.ended()?;
        ensure!(ended.code == (signal == Signal::SIGUSR1).then_some(0), "{ended:?}");
        wait_until("what it started has ended with it", PATIENCE, || {
            Ok(before.iter().all(|pid| !Path::new(&format!("/proc/{pid}/status")).exists()))
        })?;
        for _ in 0..20 {
            sources.iter().try_for_each(|source| write_some(source, &mut random))?;
        }
        service.start()?;
        service.wait_live(&sources)?;
        for source in sources {
            ensure!(is_adopted(&service, source)?, "{signal}: {}", service.of(source)?);
        }
    }
    service.stop()?;
    assert_identical(sources[0], &service.path("first.replica"))?;
    assert_identical(sources[1], &service.path("second.replica"))
}

#[test]
fn what_cannot_be_started_is_told_and_tried_again() -> Result<()> {
    let (good, bad) = (Loop::new(SIZE)?, Loop::new(SIZE)?);
    let mut service = Service::new()?;
    let occupied = service.path("bad.replica");
    blank_image(&occupied, SIZE)?;
    fill_random(&occupied, SIZE, &mut Random::new(seed()))?;
    service.configure(&[
        service.table("volume", "good", good.path(), QUICK),
        service.table("volume", "bad", bad.path(), QUICK),
    ])?;
    service.start()?;
    service.wait_live(&[good.path()])?;
    service.wait_for("say what failed", |status| {
        let failed = |value: &serde_json::Value| value["name"] == "bad" && value["state"] == "failed";
        status.as_array().is_some_and(|all| all.iter().any(failed))
    })?;
    let status = service.of(bad.path())?;
    ensure!(status["why"].as_str().is_some_and(|why| why.contains("--force")), "{status}");
    let told = run(service.client().arg("status"))?;
    ensure!(told.contains("failed") && told.contains("tried again"), "{told}");
    std::fs::remove_file(&occupied)?;
    run(service.client().args(["resume", "bad"]))?;
    service.wait_live(&[good.path(), bad.path()])?;
    service.stop()?;
    assert_identical(bad.path(), &occupied)
}

/// Where changes of files are seen at system calls only, the probes of each protection run at each call of the machine.
#[test]
fn of_many_volumes_only_some_look_at_each_system_call() -> Result<()> {
    let disks: Vec<_> = (0..5).map(|_| Loop::new(SIZE)).collect::<Result<_>>()?;
    let mounts: Vec<_> =
        disks.iter().map(|disk| Mount::make(Fs::Ext4, disk.path())).collect::<Result<_>>()?;
    let mut service = Service::new()?;
    let table = |(number, disk): (usize, &Loop)| {
        service.table("volume", &format!("v{number}"), disk.path(), "origin-rung = \"syscall\"")
    };
    let wanted: Vec<_> = disks.iter().enumerate().map(table).collect();
    let by_itself: Vec<_> = wanted.iter().map(|table| table.replace("origin-rung", "#")).collect();
    // Others on this machine are not of this service.
    let is_ours = |volume: &&serde_json::Value| {
        disks.iter().any(|disk| volume["source"] == disk.path().display().to_string())
    };
    let known = |status: &serde_json::Value| -> Vec<serde_json::Value> {
        status
            .as_array()
            .into_iter()
            .flatten()
            .filter(is_ours)
            .map(|volume| volume["origin"].clone())
            .collect()
    };
    let decided = |origin: &serde_json::Value| origin["rung"].is_string() || origin["off"].is_string();
    service.configure(&by_itself)?;
    service.start()?;
    service.wait_for("look at changes of files, or say why not", |status| {
        known(status).len() == 5 && known(status).iter().all(decided)
    })?;
    let origins = known(&service.status()?);
    let off: Vec<_> = origins.iter().filter_map(|origin| origin["off"].as_str()).collect();
    match origins.iter().filter(|origin| origin["rung"] == "syscall").count() {
        0 => ensure!(off.is_empty(), "{origins:?}"),
        count => ensure!(count == 4 && off.len() == 1 && off[0].contains("4 others"), "{origins:?}"),
    }
    // Who wants it all the same has it.
    service.configure(&wanted)?;
    run(service.client().arg("reload"))?;
    service.wait_for("look at each system call", |status| {
        known(status).len() == 5 && known(status).iter().all(|origin| origin["rung"] == "syscall")
    })?;
    for mount in mounts {
        mount.unmount()?;
    }
    service.stop()
}

#[test]
fn a_second_service_strangers_and_garbage_are_refused() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let mut service = Service::new()?;
    service.configure(&[service.table("volume", "data", disk.path(), QUICK)])?;
    service.start()?;
    service.wait_live(&[disk.path()])?;
    says(&finish(&mut service.command(), PATIENCE)?, 2, &["already"])?;
    let as_nobody = |arguments: &[&str]| -> Result<Finished> {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(binary());
        finish(command.args(arguments).env("AFTERWRITE_RUN_DIR", service.path("run")), PATIENCE)
    };
    for arguments in [&["reload"][..], &["mark"], &["pause", "data"]] {
        let refused = as_nobody(arguments)?;
        ensure!(refused.code != Some(0), "{arguments:?}: {refused:?}");
    }
    let mut random = Random::new(seed());
    for socket in ["service/control.sock", "loop"] {
        let dir = service.path("run");
        let socket = match socket {
            "loop" => dir.join(format!("{}.sock", disk.path().file_name().context("a name")?.display())),
            _ => dir.join(socket),
        };
        for _ in 0..50 {
            let len = 1 + usize::try_from(random.below(100_000))?;
            let bytes = random.bytes(len);
            let mut stream = UnixStream::connect(&socket)?;
            // It may have heard enough before all is written, and an answer is as good as none.
            drop(stream.write_all(&bytes));
            drop(stream.shutdown(std::net::Shutdown::Write));
            drop(stream.read_to_end(&mut Vec::new()));
        }
    }
    ensure!(service.of(disk.path())?["state"] == "live");
    service.stop()?;
    assert_identical(disk.path(), &service.path("data.replica"))
}

#[test]
fn a_wrong_configuration_is_told_by_line() -> Result<()> {
    let service = Service::new()?;
    service
        .configure(&["[volume.data]\nsource = \"/dev/null\"\njournal = \"/j\"\ntarget = \"t\"\n".into()])?;
    let config = service.path("config.toml");
    let check = finish(service.client().args(["config", "check", "--config"]).arg(&config), PATIENCE)?;
    ensure!(check.code == Some(1) && check.stdout.contains("config.toml:4: `target`"), "{check:?}");
    says(&finish(&mut service.command(), PATIENCE)?, 2, &["config.toml:4", "absolute"])?;
    // What is there and can't be protected; a device that is not there would be waited for.
    let volume = |name: &str, source: &str| {
        format!("[volume.{name}]\nsource = {source:?}\njournal = \"/j/{name}\"\ntarget = \"/t/{name}\"\n")
    };
    service.configure(&[volume("file", "/etc/hosts"), volume("gone", "/dev/afterwrite-gone")])?;
    let check = finish(service.client().args(["config", "check", "--config"]).arg(&config), PATIENCE)?;
    says(&check, 1, &["gone: there is no /dev/afterwrite-gone", "waited for"])?;
    ensure!(check.stdout.contains("file: /etc/hosts is a regular file"), "{check:?}");
    std::fs::remove_file(&config)?;
    says(&finish(&mut service.command(), PATIENCE)?, 2, &["cannot read", "docs/OPERATIONS.md"])?;
    Ok(())
}
