//! `serve` and `status` before sockets that tell what the tests want: right, hostile, or nothing. The page in a real
//! browser, without a screen.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

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
    }
    Ok(())
}
