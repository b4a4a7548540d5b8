//! The page of `afterwrite run`: where the configuration says, by a process that can change nothing, and out of the way of the
//! protections.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const SIZE: u64 = 16 * MIB;
const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist/afterwrite.service");

/// What `run` started to show the page, if it runs.
fn page_pid(service: &Service) -> Result<Option<u32>> {
    let pid = service.pid()?;
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let is_page = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("\0serve\0"))
    };
    Ok(children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(is_page))
}

/// Where it said last that it serves, once it has said so for the nth time.
fn address(service: &Service, nth: usize) -> Result<String> {
    let mut found = None;
    wait_until("the page is served", PATIENCE, || {
        let log = service.log();
        let told = log.lines().filter_map(|line| line.strip_prefix("the page: serving http://"));
        found = told.map(|rest| rest.trim_end_matches('/').to_owned()).nth(nth - 1);
        Ok(found.is_some())
    })
    .with_context(|| service.log())?;
    found.context("it was found")
}

/// As systemd starts it, with the capabilities of the unit and no others.
fn as_the_unit(service: &Service) -> Result<Command> {
    let unit = std::fs::read_to_string(UNIT)?;
    let lines = unit.lines().filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names = lines.flat_map(str::split_whitespace).map(|name| name.replace("CAP_", "+").to_lowercase());
    let run = service.command();
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", &format!("-all,{}", names.collect::<Vec<_>>().join(","))]);
    command.args(["--no-new-privs", "--"]).arg(run.get_program()).args(run.get_args());
    command.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Ok(command)
}

#[test]
fn the_page_is_served_by_a_process_that_can_only_read() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let mut service = Service::new()?;
    let volume = service.table("volume", "data", disk.path(), "mark-every = \"1s\"");
    service.configure(&["[service]\nlisten = \"127.0.0.1:0\"\n".into(), volume])?;
    service.start_by(as_the_unit(&service)?)?;
    service.wait_live(&[disk.path()])?;
    let address = address(&service, 1)?;
    let mut last = Value::Null;
    wait_until("the page shows the volume", PATIENCE, || {
        last = serde_json::from_str(&http_get(&address, "/api/status")?)?;
        Ok(last["volumes"][0]["standing"] == "live" && !last["volumes"][0]["status"]["last_mark"].is_null())
    })
    .with_context(|| last.to_string())?;
    // The journal is root's.
    let name = last["volumes"][0]["name"].as_str().context("it has a name")?;
    let points: Value = serde_json::from_str(&http_get(&address, &format!("/api/volumes/{name}/points"))?)?;
    ensure!(points["points"].as_array().is_some_and(|points| !points.is_empty()), "{points}");
    ensure!(http_get(&address, "/metrics")?.contains("afterwrite_up"));

    let pid = page_pid(&service)?.context("there is a process of the page")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    ensure!(field("Uid") == ["65534"; 4] && field("NoNewPrivs") == ["1"], "{status}");
    // CAP_DAC_READ_SEARCH.
    ensure!(field("CapEff") == ["0000000000000004"] && field("CapPrm") == field("CapEff"), "{status}");
    ensure!(field("CapInh") == ["0000000000000000"] && field("CapAmb") == field("CapInh"), "{status}");
    ensure!(field("Groups").len() <= 1, "{status}");

    // Killed, it is started again, and the protection does not notice.
    let protection = service.of(disk.path())?["pid"].clone();
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
    self::address(&service, 2)?;
    ensure!(service.log().contains("the page: ended, started again in 1 s"), "{}", service.log());
    ensure!(service.of(disk.path())?["pid"] == protection);
    let pid = page_pid(&service)?.context("it is there again")?;
    service.stop()?;
    ensure!(!Path::new(&format!("/proc/{pid}")).exists(), "it is left");
    assert_identical(disk.path(), &service.path("data.replica"))
}

#[test]
fn a_reload_moves_the_page_and_takes_it_away() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let mut service = Service::new()?;
    let volume = service.table("volume", "data", disk.path(), "");
    let at = |listen: &str| ["[service]\n".to_owned(), format!("listen = \"{listen}\"\n"), volume.clone()];
    service.configure(std::slice::from_ref(&volume))?;
    service.start()?;
    service.wait_live(&[disk.path()])?;
    ensure!(page_pid(&service)?.is_none(), "nobody asked for a page");
    let protection = service.of(disk.path())?["pid"].clone();

    service.configure(&at("127.0.0.1:0"))?;
    service.signal(Signal::SIGHUP)?;
    let first = address(&service, 1)?;
    http_get(&first, "/")?;

    // What is wrong changes nothing.
    let page = page_pid(&service)?;
    service.configure(&at("localhost"))?;
    says(&finish(service.client().arg("reload"), PATIENCE)?, 2, &["config.toml:2", "`listen`", "as before"])?;
    ensure!(page_pid(&service)? == page && page.is_some());

    service.configure(&at("[::1]:0"))?;
    says(&finish(service.client().arg("reload"), PATIENCE)?, 0, &["the page is served on [::1]:0"])?;
    let second = address(&service, 2)?;
    ensure!(second.starts_with("[::1]:"), "{second}");
    http_get(&second, "/")?;
    ensure!(TcpStream::connect(&first).is_err(), "{first} is still served");

    service.configure(&[volume])?;
    says(&finish(service.client().arg("reload"), PATIENCE)?, 0, &["the page is served no more"])?;
    wait_until("the page is gone", PATIENCE, || Ok(page_pid(&service)?.is_none()))?;
    ensure!(TcpStream::connect(&second).is_err(), "{second} is still served");
    ensure!(service.of(disk.path())?["pid"] == protection, "the protection was disturbed");
    ensure!(!service.log().contains("the page: ended"), "{}", service.log());
    service.stop()
}

#[test]
fn a_page_without_room_is_tried_again_and_ends_with_a_killed_service() -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let listen = taken.local_addr()?;
    let disk = Loop::new(SIZE)?;
    let mut service = Service::new()?;
    let volume = service.table("volume", "data", disk.path(), "");
    service.configure(&[format!("[service]\nlisten = \"{listen}\"\n"), volume])?;
    service.start()?;
    service.wait_live(&[disk.path()])?;
    wait_until("that is told", PATIENCE, || Ok(service.log().contains("cannot listen on")))?;
    drop(taken);
    address(&service, 1)?;
    let pid = page_pid(&service)?.context("it runs")?;
    service.signal(Signal::SIGKILL)?;
    service.ended()?;
    wait_until("the page has ended with it", PATIENCE, || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // One that nobody has waited for is over, too.
        Ok(stat.is_empty() || stat.contains(") Z "))
    })
}
