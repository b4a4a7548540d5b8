//! `serve` and `status` before sockets that tell what the tests want: right, hostile, or nothing. The page in a real
//! browser, without a screen.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
/// Of a window: a telephone, a small and a large screen.
const SIZES: [&str; 3] = ["390,844", "1024,768", "1920,1080"];

/// A `serve` at a port of its own, ended when dropped.
struct Serving {
    child: Child,
    address: String,
}

impl Serving {
    fn start(told: &ToldVolumes) -> Result<Serving> {
        let mut command = told.client();
        command.args(["serve", "--listen", "127.0.0.1:0"]).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("no serve")?;
        let mut line = String::new();
        BufReader::new(child.stderr.take().context("no stderr")?).read_line(&mut line)?;
        let address = line.trim().strip_prefix("serving http://").and_then(|rest| rest.strip_suffix('/'));
        let address = address.with_context(|| format!("it said {line}"))?.to_owned();
        Ok(Serving { child, address })
    }

    fn ask(&self, method: &str, path: &str) -> Result<(u16, String)> {
        http_ask(&self.address, method, path)
    }

    fn get(&self, path: &str) -> Result<String> {
        http_get(&self.address, path)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A journal with a labelled mark, made by a real protection.
fn with_journal(label: &str, test: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let disk = Loop::new(16 * MIB)?;
    let protection = Protection::new(disk.path())?.arg("--mark-every").arg("never");
    let protect = protection.start()?;
    run(protection.client().args(["mark", "--label", label]))?;
    protect.stop()?;
    test(protection.journal())
}

#[test]
fn what_is_asked_wrongly_is_refused_and_the_rest_is_answered() -> Result<()> {
    let mut told = ToldVolumes::new()?;
    told.tell("dm-1", Tells::Status(status_of_volume(1, Path::new("/nowhere"))))?;
    let serving = Serving::start(&told)?;
    for path in ["/", "/page.css", "/page.js", "/api/status", "/metrics"] {
        ensure!(!serving.get(path)?.is_empty(), "{path} is empty");
        let (status, _) = serving.ask("POST", path)?;
        ensure!(status == 405, "POST {path}: {status}");
    }
    for (path, wanted) in [
        ("/nothing", 404),
        ("/../../etc/passwd", 404),
        ("/api/volumes/dm-2/points", 404),
        ("/api/volumes/..%2f..%2fetc/points", 404),
        ("/api/volumes/dm-1/points?last=many", 400),
        // Its journal is not there.
        ("/api/volumes/dm-1/points", 503),
    ] {
        let (status, body) = serving.ask("GET", path)?;
        ensure!(status == wanted, "{path}: {status} {body}");
    }
    for request in [
        "GET / HTTP/1.1\r\nX: ".to_owned() + &"x".repeat(64 << 10),
        format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(64 << 10)),
    ] {
        let (status, _) = http(&serving.address, request.as_bytes())?;
        ensure!(status == 431, "{status}");
    }
    let (status, _) = http(&serving.address, b"\x16\x03\x01 nonsense\r\n\r\n")?;
    ensure!(status == 400, "{status}");
    ensure!(serving.get("/metrics")?.contains("afterwrite_up{volume=\"dm-1\"} 1\n"));
    Ok(())
}

#[test]
fn volumes_that_hang_or_lie_hold_up_none_of_the_others() -> Result<()> {
    let mut told = ToldVolumes::new()?;
    for index in 0..32 {
        told.tell(&format!("dm-{index}"), Tells::Status(status_of_volume(index, Path::new("/nowhere"))))?;
        told.tell(&format!("hangs-{index}"), Tells::Nothing)?;
    }
    told.tell("lies", Tells::Bytes(b"{\"ok\":{\"counters\":7}}\n".to_vec()))?;
    told.tell("stateless", Tells::Bytes(b"{\"ok\":{\"source\":\"/dev/vg0/x\"}}\n".to_vec()))?;
    told.tell("floods", Tells::Bytes(vec![b'['; 4 << 20]))?;
    told.tell("killed", Tells::Nothing)?;
    told.kill("killed");
    let serving = Serving::start(&told)?;
    let begun = Instant::now();
    let status: Value = serde_json::from_str(&serving.get("/api/status")?)?;
    ensure!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let volumes = status["volumes"].as_array().context("no volumes")?;
    let count = |standing: &str| volumes.iter().filter(|volume| volume["standing"] == standing).count();
    ensure!((count("live"), count("silent"), count("stopped")) == (32, 35, 1), "{status}");
    let metrics = serving.get("/metrics")?;
    ensure!(metrics.contains("afterwrite_up{volume=\"lies\"} 0\n"), "{metrics}");
    // The table says so, too, and what to do.
    let table = run(told.client().arg("status"))?;
    ensure!(table.lines().count() > 69 && table.contains("left its socket behind"), "{table}");
    Ok(())
}

#[test]
fn status_is_a_table_and_without_volumes_an_error() -> Result<()> {
    let mut told = ToldVolumes::new()?;
    says(&finish(told.client().arg("status"), LIMIT)?, 2, &["no volume is being protected"])?;
    let mut paused = status_of_volume(2, Path::new("/nowhere"));
    paused["paused"] = json!("no space \u{1b}[2J");
    told.tell("dm-1", Tells::Status(status_of_volume(1, Path::new("/nowhere"))))?;
    told.tell("dm-2", Tells::Status(paused))?;
    let table = run(told.client().arg("status"))?;
    let rows: Vec<&str> = table.lines().collect();
    ensure!(rows[0].starts_with("VOLUME") && rows[1].contains("22370 = 22369 + 1"), "{table}");
    ensure!(rows[2].contains("paused") && table.contains("! /dev/vg0/data2: paused"), "{table}");
    ensure!(!table.contains('\u{1b}'), "{table}");
    let all: Value = serde_json::from_str(&run(told.client().args(["status", "--json"]))?)?;
    ensure!(all[0]["source"] == "/dev/vg0/data1" && all[0]["replica"]["age_ms"] == 12_345, "{all}");
    Ok(())
}

/// What the browser has made of the page after some seconds, and what it said of errors.
fn browse(serving: &Serving, dir: &Path, size: &str, shot: Option<&Path>) -> Result<(String, String)> {
    let mut browser = Command::new("chromium");
    browser.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--enable-logging=stderr",
    ]);
    // A browser that is new to its directory would look for updates first.
    browser.args(["--no-first-run", "--disable-extensions", "--disable-component-update", "--disable-sync"]);
    browser.args(["--disable-background-networking", "--disable-default-apps", "--hide-scrollbars"]);
    browser.arg(format!("--user-data-dir={}", dir.display())).arg(format!("--window-size={size}"));
    // Milliseconds of the page's own time, which stands still while it waits for an answer.
    browser.arg("--virtual-time-budget=4000");
    match shot {
        Some(path) => browser.arg(format!("--screenshot={}", path.display())),
        None => browser.arg("--dump-dom"),
    };
    let finished = finish(browser.arg(format!("http://{}/", serving.address)), Duration::from_secs(180))?;
    ensure!(finished.code == Some(0), "{}", finished.stderr);
    let console = finished.stderr.lines().filter(|line| line.contains("CONSOLE"));
    Ok((finished.stdout, console.collect::<Vec<_>>().join("\n")))
}

/// For people to look at, in the directory AFTERWRITE_PICTURES if that is set.
fn picture(serving: &Serving, told: &ToldVolumes, what: &str, size: &str) -> Result<()> {
    let Some(dir) = std::env::var_os("AFTERWRITE_PICTURES") else { return Ok(()) };
    let shot = Path::new(&dir).join(format!("{what}-{}.png", size.replace(',', "x")));
    browse(serving, &told.dir().join("browser"), size, Some(&shot)).map(drop)
}

#[test]
#[ignore = "needs a browser: `cargo xtask test --all` installs and runs it"]
fn a_browser_shows_volumes_and_points_and_runs_nothing_of_theirs() -> Result<()> {
    let hostile = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">";
    with_journal(hostile, |journal| {
        let mut told = ToldVolumes::new()?;
        let mut odd = status_of_volume(2, journal);
        odd["source"] = json!(hostile);
        odd["paused"] = json!(hostile);
        told.tell("dm-1", Tells::Status(status_of_volume(1, journal)))?;
        told.tell("<b>dm-2", Tells::Status(odd))?;
        told.tell("dm-3", Tells::Bytes(b"nothing\n".to_vec()))?;
        let serving = Serving::start(&told)?;
        let (dom, console) = browse(&serving, &told.dir().join("browser"), "1024,768", None)?;
        ensure!(console.is_empty(), "{console}");
        ensure!(dom.contains("<title>Afterwrite</title>"), "something ran: {dom}");
        for wanted in [
            "data-volume=\"dm-1\"",
            "/dev/vg0/data1",
            "3 volumes: 1 live, 1 paused, 1 silent — 2 need attention",
            "&lt;script&gt;document.title='owned'&lt;/script&gt;",
            "class=\"mark crash labelled\"",
            "parts of the volume were written within the last minute",
            "22370 seen = 22369 emitted + 1 marked",
        ] {
            ensure!(dom.contains(wanted), "no {wanted} in {dom}");
        }
        ensure!(!dom.contains("<img"), "{dom}");
        let shot = told.dir().join("page.png");
        browse(&serving, &told.dir().join("browser"), "390,844", Some(&shot))?;
        ensure!(std::fs::metadata(&shot)?.len() > 5000, "the picture is empty");
        Ok(())
    })
}

/// Two groups of three volumes each, one of which has three targets and one more that was left out.
fn tell_of_groups(told: &mut ToldVolumes, journal: &Path) -> Result<()> {
    let names = |from: usize| (from..from + 3).map(|index| format!("data{index}")).collect::<Vec<_>>();
    for index in 0..6 {
        let mut status = status_of_volume(index, journal);
        status["source"] = json!(format!("/dev/dm-{index}"));
        if index == 1 {
            let replica = |target: &str, age_ms: u64, marks: u64, error: Option<&str>| {
                json!({
                    "target": target, "consistent": error.is_none(), "mark": 17 - marks, "age_ms": age_ms,
                    "lag_bytes": marks << 26, "behind_marks": marks, "error": error
                })
            };
            status["replicas"] = json!([
                replica("/backup/data1.img", 12_345, 0, None),
                replica("/mnt/usb/data1.img", 7_200_000, 9, None),
                replica(
                    "/mnt/a-disk-with-a-very-long-name/that-is-away/data1.img",
                    9_000_000,
                    12,
                    Some("No such file or directory")
                )
            ]);
            status["replica"] = status["replicas"][2].clone();
            status["left_out"] = json!([{ "target": "/mnt/old/data1.img", "mark": 3 }]);
        }
        told.tell(&format!("dm-{index}"), Tells::Status(status))?;
    }
    let units = (0..6).map(|index| {
        json!({
            "name": format!("data{index}"), "kind": "volume", "source": format!("/dev/dm-{index}"), "journal": "/j",
            "targets": ["/t"], "state": "running", "pid": 4000, "failures": 0, "why": null, "next_try_ms": null
        })
    });
    let members =
        |from| names(from).into_iter().map(|volume| json!({ "volume": volume, "id": 9, "class": "fs" }));
    let mark = |group: &str, from| {
        let time = humantime::format_rfc3339(SystemTime::now() - Duration::from_secs(30)).to_string();
        json!({
            "name": format!("group:{group}/2026-05-04T03:02:01.123456Z/before-upgrade"), "time": time, "frozen_ms": 31,
            "hook_error": null, "members": members(from).collect::<Vec<_>>()
        })
    };
    let group = |name: &str, from, why: Option<&str>| {
        json!({
            "name": name, "volumes": names(from), "mark_every_ms": 300_000, "last_mark": mark(name, from),
            "last_mark_error": why
        })
    };
    let groups = json!([group("shop", 0, None), group("ledger", 3, Some("data5 took too long"))]);
    told.tell("service/control", Tells::Service { units: Value::Array(units.collect()), groups })
}

#[test]
fn groups_and_each_target_are_told() -> Result<()> {
    let mut told = ToldVolumes::new()?;
    tell_of_groups(&mut told, Path::new("/nowhere"))?;
    let table = run(told.client().arg("status"))?;
    let rows: Vec<&str> = table.lines().collect();
    ensure!(rows[0].contains("GROUP") && rows[1].contains("shop") && rows[6].contains("ledger"), "{table}");
    for wanted in [
        "    current     12 s, 0 B",
        "    behind      2 h, 576.0 MiB, 9 marks",
        "    left out    at mark 3",
        "! group ledger: the last mark was not made: data5 took too long",
        "group shop (data0, data1, data2): group:shop/2026-05-04T03:02:01.123456Z/before-upgrade fs, frozen 31 ms, 3",
    ] {
        let wanted = wanted.split_whitespace().collect::<Vec<_>>().join(" ");
        let has =
            rows.iter().any(|row| row.split_whitespace().collect::<Vec<_>>().join(" ").starts_with(&wanted));
        ensure!(has, "no {wanted} in {table}");
    }
    let serving = Serving::start(&told)?;
    let status: Value = serde_json::from_str(&serving.get("/api/status")?)?;
    ensure!(
        status["groups"][0]["name"] == "shop" && status["groups"][1]["problems"][0]["urgent"] == true,
        "{status}"
    );
    ensure!(status["volumes"][5]["group"] == "ledger", "{status}");
    let metrics = serving.get("/metrics")?;
    for sample in [
        "afterwrite_group_member{group=\"shop\",volume=\"dm-2\"} 1",
        "afterwrite_group_last_mark_failed{group=\"ledger\"} 1.0",
        "afterwrite_replica_behind_marks{volume=\"dm-1\",target=\"/mnt/usb/data1.img\"} 9.0",
    ] {
        ensure!(metrics.lines().any(|line| line == sample), "no {sample} in {metrics}");
    }
    Ok(())
}

#[test]
#[ignore = "needs a browser: `cargo xtask test --all` installs and runs it"]
fn a_browser_shows_groups_and_each_target() -> Result<()> {
    let mut told = ToldVolumes::new()?;
    tell_of_groups(&mut told, Path::new("/nowhere"))?;
    let serving = Serving::start(&told)?;
    for size in SIZES {
        let (dom, console) = browse(&serving, &told.dir().join("browser"), size, None)?;
        let errors: Vec<&str> = console.lines().filter(|line| !line.contains("503")).collect();
        ensure!(errors.is_empty(), "{errors:?}");
        for wanted in [
            "data-group=\"shop\"",
            "6 volumes: 6 live; 2 groups — 2 need attention",
            "✕ mark failed",
            "mark:group:shop/2026-05-04T03:02:01.123456Z/before-upgrade",
            "dm-1, 32.0 GiB, group shop",
            "◔ behind",
            "○ left out",
        ] {
            ensure!(dom.contains(wanted), "no {wanted} in {dom}");
        }
        picture(&serving, &told, "groups", size)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs a browser: `cargo xtask test --all` installs and runs it"]
fn a_browser_shows_any_number_of_volumes() -> Result<()> {
    for count in [0, 1, 64] {
        let mut told = ToldVolumes::new()?;
        for index in 0..count {
            told.tell(&format!("dm-{index}"), Tells::Status(status_of_volume(index, Path::new("/nowhere"))))?;
        }
        let serving = Serving::start(&told)?;
        let (dom, console) = browse(&serving, &told.dir().join("browser"), "390,844", None)?;
        // Journals that are not there are told in the cards; the browser notes each such answer.
        let errors: Vec<&str> = console.lines().filter(|line| !line.contains("503")).collect();
        ensure!(errors.is_empty(), "{errors:?}");
        let cards = dom.matches("<article").count() as u64;
        ensure!(cards == count, "{cards} cards of {count} volumes");
        ensure!((count == 0) == dom.contains("nothing is protected"), "{dom}");
        for size in SIZES {
            picture(&serving, &told, &format!("{count}-volumes"), size)?;
        }
    }
    Ok(())
}
