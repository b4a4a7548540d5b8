//! Commands around a mark: an application that they bring to rest is at rest in the mark, goes on afterwards however the
//! protection ends, and where they fail the mark promises no more than it holds.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

const SIZE: u64 = 64 * MIB;
const PAUSE: Duration = Duration::from_millis(2);

/// An "application" whose two files say the same only when it is at rest: the lock is what a hook takes.
struct Pair {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<u64>>>,
}

impl Pair {
    fn start(dir: &Path, lock: &Path) -> Pair {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, dir, lock) = (stop.clone(), dir.to_owned(), lock.to_owned());
        let thread = std::thread::spawn(move || {
            let mut rounds = 0;
            while !stopped.load(Ordering::Relaxed) {
                if lock.exists() {
                    // Said to the hook, which waits for it.
                    std::fs::write(lock.with_extension("at-rest"), "")?;
                    std::thread::sleep(PAUSE);
                    continue;
                }
                drop(std::fs::remove_file(lock.with_extension("at-rest")));
                rounds += 1;
                for name in ["left", "right"] {
                    std::fs::write(dir.join(name), rounds.to_string())?;
                    std::thread::sleep(PAUSE);
                }
            }
            Ok(rounds)
        });
        Pair { stop, thread: Some(thread) }
    }

    fn stop(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().context("it runs")?.join().expect("it does not panic")
    }
}

fn with_hooks(protection: Protection, before: &str, after: &str) -> Protection {
    protection.arg("--before-mark").arg(before).arg("--after-mark").arg(after).arg("--mark-every=never")
}

fn take(lock: &Path) -> String {
    let at_rest = lock.with_extension("at-rest");
    format!("touch {}; until [ -e {} ]; do sleep 0.01; done", lock.display(), at_rest.display())
}

fn release(lock: &Path) -> String {
    format!("rm -f {}", lock.display())
}

#[test]
fn an_application_at_rest_is_so_in_its_mark() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    let locks = scratch()?;
    let lock = locks.path().join("lock");
    let pair = Pair::start(mount.point(), &lock);
    let protection = with_hooks(Protection::new(disk.path())?, &take(&lock), &release(&lock));
    let protect = protection.start()?;
    for number in 0..5 {
        protect.mark(&format!("rest{number}"))?;
        wait_until("the application goes on", PATIENCE, || Ok(!lock.exists()))?;
    }
    // Its last mark asks the application, too.
    protect.stop()?;
    let rounds = pair.stop()?;
    ensure!(rounds > 10, "it did not go on: {rounds} rounds");
    mount.unmount()?;
    let points = protection.points()?;
    for number in 0..5 {
        let label = format!("rest{number}");
        let point = points.iter().find(|point| point["label"] == *label).context("the mark is there")?;
        ensure!(point["class"] == "app", "{point}");
        let image = protection.dir().join(format!("{label}.img"));
        protection.replay(&format!("mark:{label}"), &image)?;
        let device = Loop::over(&image)?;
        let mount = Mount::recovered(Fs::Ext4, device.path())?;
        let [left, right] = ["left", "right"].map(|name| std::fs::read_to_string(mount.point().join(name)));
        let (left, right) = (left?, right?);
        mount.unmount()?;
        ensure!(left == right && !left.is_empty(), "{label}: {left} and {right}");
    }
    Ok(())
}

#[test]
fn where_a_command_fails_the_mark_is_of_the_lower_class_and_says_so() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    let dir = scratch()?;
    let undone = dir.path().join("undone");
    let before = "echo no database >&2; exit 3";
    let protection =
        with_hooks(Protection::new(disk.path())?, before, &format!("touch {}", undone.display()));
    let mut protect = protection.start()?;
    protect.mark("without")?;
    protect.wait_for("says why", |status| {
        status[0]["last_hook_error"].as_str().is_some_and(|why| why.contains("exit status: 3"))
    })?;
    let told = run(protection.client().arg("status"))?;
    ensure!(told.contains("not of class app"), "{told}");
    wait_until("what may be half at rest goes on", PATIENCE, || Ok(undone.exists()))?;
    mount.unmount()?;
    protect.stop()?;
    let points = protection.points()?;
    ensure!(points.iter().any(|point| point["label"] == "without" && point["class"] == "fs"), "{points:?}");
    ensure!(points.iter().all(|point| point["class"] != "app"), "{points:?}");
    Ok(())
}

#[test]
fn a_killed_protection_leaves_no_application_at_rest() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let dir = scratch()?;
    let lock = dir.path().join("lock");
    let began = dir.path().join("began");
    let protection = with_hooks(
        Protection::new(disk.path())?,
        &format!("touch {} {}; sleep 1", lock.display(), began.display()),
        &release(&lock),
    );
    let protect = protection.spawn()?;
    wait_until("a mark has begun", PATIENCE, || Ok(began.exists()))?;
    protect.kill()?;
    wait_until("the application goes on", PATIENCE, || Ok(!lock.exists()))?;
    let protect = protection.start()?;
    protect.signal(Signal::SIGINT)?;
    says(&protect.ended()?, 0, &["stopped"])?;
    assert_identical(disk.path(), protection.target())
}

#[test]
fn one_hook_without_the_other_is_refused() -> Result<()> {
    let disk = Loop::new(4 * MIB)?;
    let protection = Protection::new(disk.path())?.arg("--before-mark").arg("true");
    protection.refused(&["--after-mark"])?;
    Ok(())
}
