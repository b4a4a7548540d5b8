//! Power cuts: a scenario whose machine is killed again and again, and booted with the same disks.
//!
//! Each boot runs the whole script, which knows the number of the boot from `$BOOT`. It either asks to be cut within
//! some time (`cut_within` in lib.sh), or comes to a verdict and powers off. After a verdict the host compares the disks
//! as it does for every scenario; then it goes on, until the machine was cut as often as the scenario says.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use fastrand::Rng;

const REQUEST: &str = "AFTERWRITE-CUT ";
const PHASE: &str = "AFTERWRITE-PHASE ";

#[derive(Debug, PartialEq, Eq)]
pub enum End {
    PoweredOff(ExitStatus),
    Cut,
    TimedOut,
}

/// What was cut, and what that cost.
#[derive(Default)]
pub struct CutTally {
    pub cuts: u64,
    by_phase: BTreeMap<String, u64>,
    lost: u64,
    unflushed: u64,
}

impl CutTally {
    /// Notes a cut and the phase that the guest's console says it was in.
    pub fn cut(&mut self, console: &str) {
        let phase = console.rsplit_once(PHASE).map_or("boot", |(_, said)| said);
        let phase = phase.lines().next().unwrap_or_default().trim();
        self.cuts += 1;
        *self.by_phase.entry(phase.to_owned()).or_default() += 1;
    }

    /// Notes how many blocks a disk lost, of how many that had not been flushed.
    pub fn lost(&mut self, (lost, unflushed): (u64, u64)) {
        self.lost += lost;
        self.unflushed += unflushed;
    }
}

impl fmt::Display for CutTally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cuts", self.cuts)?;
        for (phase, count) in &self.by_phase {
            write!(f, ", {count} in {phase}")?;
        }
        write!(f, "; {} of {} unflushed blocks of 4 KiB lost", self.lost, self.unflushed)
    }
}

/// Waits until the machine powers itself off or has been running for too long; or kills it at a random instant
/// within the time the guest asked for on its console.
pub fn wait(mut qemu: Child, console: &Path, timeout: Duration, random: &mut Rng) -> Result<End> {
    let deadline = Instant::now() + timeout;
    let mut cut_at = None;
    loop {
        if let Some(status) = qemu.try_wait()? {
            return Ok(End::PoweredOff(status));
        }
        let now = Instant::now();
        let cut = cut_at.is_some_and(|at| now >= at);
        if cut || now >= deadline {
            qemu.kill()?;
            qemu.wait()?;
            return Ok(if cut { End::Cut } else { End::TimedOut });
        }
        if cut_at.is_none() {
            // QEMU makes the file a moment after its start.
            let said = fs::read(console).unwrap_or_default();
            let within_ms = request(&String::from_utf8_lossy(&said));
            cut_at = within_ms.map(|ms| now + Duration::from_micros(random.u64(..ms * 1000 + 1)));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The milliseconds of the guest's request, once its line is complete.
fn request(console: &str) -> Option<u64> {
    let (_, after) = console.split_once(REQUEST)?;
    after.split_once('\n')?.0.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_counts_once_its_line_is_complete() {
        assert_eq!(request("boot\r\nAFTERWRITE-CUT 15"), None);
        assert_eq!(request("boot\r\nAFTERWRITE-CUT 1500\r\nmore"), Some(1500));
        assert_eq!(request("boot\r\n"), None);
    }

    #[test]
    fn a_cut_is_counted_in_the_phase_that_was_told_last() {
        let mut tally = CutTally::default();
        tally.cut("AFTERWRITE-PHASE resync\r\nx\r\nAFTERWRITE-PHASE live\r\ny");
        tally.cut("AFTERWRITE-PHASE resync\r\n");
        tally.cut("nothing");
        tally.lost((1, 2));
        let text = tally.to_string();
        assert_eq!(text, "3 cuts, 1 in boot, 1 in live, 1 in resync; 1 of 2 unflushed blocks of 4 KiB lost");
    }

    #[test]
    fn a_machine_that_asked_for_it_is_cut_and_another_is_not() {
        let console = std::env::temp_dir().join(format!("xtask-cuts-{}", std::process::id()));
        let run = |said: &str, command: &str, timeout_ms| {
            fs::write(&console, said).expect("it can be written");
            let child = std::process::Command::new("sh").args(["-c", command]).spawn().expect("sh exists");
            wait(child, &console, Duration::from_millis(timeout_ms), &mut Rng::with_seed(1)).expect("it runs")
        };
        assert_eq!(run("AFTERWRITE-CUT 20\n", "exec sleep 60", 30_000), End::Cut);
        assert_eq!(run("", "exec sleep 60", 100), End::TimedOut);
        assert!(
            matches!(run("AFTERWRITE-CUT 60000\n", "exit 3", 30_000), End::PoweredOff(status) if status.code() == Some(3))
        );
        fs::remove_file(&console).expect("it was there");
    }
}
