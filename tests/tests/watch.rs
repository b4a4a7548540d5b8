//! `status --watch` on a terminal: however it ends, the terminal is as it was.

use std::fs::File;
use std::io::{Read, Write};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;

const ENTERS: &str = "\u{1b}[?1049h";
const LEAVES: &str = "\u{1b}[?1049l";
const SHOWS_CURSOR: &str = "\u{1b}[?25h";

/// What tells it to end.
#[derive(Clone, Copy, Debug)]
enum End {
    Key(&'static [u8]),
    Signal(Signal),
}

#[test]
fn the_terminal_is_as_it_was_however_it_ends() -> Result<()> {
    let mut told = ToldVolumes::new()?;
    told.tell("dm-1", Tells::Status(status_of_volume(1, told.dir())))?;
    for end in [
        End::Key(b"q"),
        End::Key(b"\x03"),
        End::Signal(Signal::SIGTERM),
        End::Signal(Signal::SIGINT),
        End::Signal(Signal::SIGHUP),
    ] {
        watch_until(told.client(), end).with_context(|| format!("{end:?}"))?;
    }
    Ok(())
}

fn watch_until(mut client: Command, end: End) -> Result<()> {
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(&size, None)?;
    let (slave, mut master) = (File::from(pty.slave), File::from(pty.master));
    let before = tcgetattr(&slave)?;
    client.args(["status", "--watch"]).stdin(slave.try_clone()?).stdout(slave.try_clone()?);
    let mut child = client.stderr(slave.try_clone()?).spawn()?;
    drop(client);
    let shown = Arc::new(Mutex::new(String::new()));
    let (mut reader, showing) = (master.try_clone()?, shown.clone());
    // Until the last one who has the terminal has closed it.
    let thread = std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = reader.read(&mut bytes) {
            let text = String::from_utf8_lossy(&bytes[..count]);
            showing.lock().expect("nobody panics with it locked").push_str(&text);
        }
    });
    let shows = |what: &str| shown.lock().is_ok_and(|shown| shown.contains(what));
    let begun = wait_until("the volume is shown", PATIENCE, || Ok(shows("/dev/vg0/data1")));
    let raw = tcgetattr(&slave)?;
    match end {
        End::Key(key) => master.write_all(key)?,
        End::Signal(signal) => kill(Pid::from_raw(i32::try_from(child.id())?), signal)?,
    }
    let mut status = None;
    let ended = wait_until("it has ended", Duration::from_secs(20), || {
        status = child.try_wait()?;
        Ok(status.is_some())
    });
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    let after = tcgetattr(&slave)?;
    drop(slave);
    thread.join().ok().context("the reader has read")?;
    let shown = shown.lock().expect("nobody panics with it locked").clone();
    begun.and(ended).with_context(|| shown.clone())?;
    ensure!(status.is_some_and(|status| status.success()), "{status:?}: {shown}");
    ensure!(is_raw(&raw) && !is_raw(&before), "the terminal was not used");
    ensure!(after == before, "{before:?}, left as {after:?}");
    let last = |what: &str| shown.rfind(what);
    ensure!(last(ENTERS).is_some() && last(ENTERS) < last(LEAVES), "{shown:?}");
    ensure!(last(LEAVES) < last(SHOWS_CURSOR), "the cursor is gone: {shown:?}");
    Ok(())
}

fn is_raw(modes: &Termios) -> bool {
    !modes.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO)
}
