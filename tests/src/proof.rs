//! What tests of restored instants have in common: how the volume is captured, and which points they restore.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::instants::{Point, Stretch, choose, marks};
use crate::{Protect, Protection, Random};

/// `protect --capture`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// Only marks can be restored.
    Extents,
    /// Every instant can.
    Payload,
    /// Payload, with a ring of 256 KiB that nobody empties at times: what was written then can't be restored to the instant.
    Overloaded,
}

/// Of the time of the load, so that there is something to prove. How much more it is, is a matter of the machine's speed.
const LEAST_COVERED: f64 = 0.03;
/// Now and then a protection under overload stands still, for at least this long …
const STANDSTILL_MIN: Duration = Duration::from_millis(150);
/// … and long enough for so many writes: they fill a ring of 256 KiB, with their bytes and then without.
const STANDSTILL_WRITES: f64 = 450.0;

impl Capture {
    /// Of `protect --capture`.
    pub fn args(self) -> Vec<&'static str> {
        match self {
            Capture::Extents => vec![],
            Capture::Payload => vec!["--capture", "payload"],
            Capture::Overloaded => vec!["--capture", "payload", "--ring", "256KiB"],
        }
    }

    fn is_overloaded(self) -> bool {
        self == Capture::Overloaded
    }

    pub fn protection(self, device: &std::path::Path) -> Result<Protection> {
        let protection = Protection::new(device)?.arg("--mark-every").arg("never");
        Ok(self.args().into_iter().fold(protection, Protection::arg))
    }

    /// Has `load` run, with marks meanwhile, stops the protection, and chooses at most `count` marks and, where every
    /// instant can be restored, `count` instants of the load. `end` comes between load and stop.
    pub fn points_of<T: Send>(
        self,
        protection: &Protection,
        (length, count): (Duration, u64),
        random: &mut Random,
        load: impl FnOnce() -> Result<T> + Send,
        end: impl FnOnce() -> Result<()>,
    ) -> Result<(T, Vec<Point>)> {
        let protect = protection.start()?;
        // From it on, instants can be restored.
        protect.mark("before")?;
        let begun_ns = crate::now_ns();
        let done = std::thread::scope(|scope| {
            let marks = scope.spawn(|| mark_during(&protect, length, self.is_overloaded()));
            let done = load();
            marks.join().expect("marks are made or not, without a panic")?;
            done
        })?;
        let ended_ns = crate::now_ns();
        end()?;
        if self.is_overloaded() {
            ensure_every_rung_was_used(&protect)?;
        }
        protect.stop()?;

        let mut points = marks(protection, "during")?;
        ensure!(!points.is_empty(), "no mark during the load can be restored: {:?}", protection.points()?);
        while points.len() as u64 > count {
            points.swap_remove(usize::try_from(random.below(points.len() as u64))?);
        }
        if self != Capture::Extents {
            let stretches = Stretch::of_journal(protection.journal())?;
            points.extend(choose(&stretches, begun_ns..ended_ns, LEAST_COVERED, count, random)?);
        }
        Ok((done, points))
    }
}

/// Marks from time to time. On a bare device that is always busy a mark may be one that can't be restored.
fn mark_during(protect: &Protect<'_>, load: Duration, overload: bool) -> Result<()> {
    let (begun, mut longer) = (Instant::now(), 1.0);
    while begun.elapsed() < load * 9 / 10 {
        std::thread::sleep(load / 8);
        protect.mark("during")?;
        if overload {
            let counters = protect.volume_status()?["counters"].clone();
            let seen = counters["seen"].as_f64().context("no count of writes")?;
            let standstill = begun.elapsed().mul_f64(longer * STANDSTILL_WRITES / seen.max(1.0));
            protect.signal(Signal::SIGSTOP)?;
            std::thread::sleep(standstill.clamp(STANDSTILL_MIN, load / 2));
            protect.signal(Signal::SIGCONT)?;
            if protect.volume_status()?["counters"]["marked"] == 0 {
                longer *= 2.0;
            }
        }
    }
    Ok(())
}

/// Bytes, only where, and the bitmap.
fn ensure_every_rung_was_used(protect: &Protect<'_>) -> Result<()> {
    let counters = protect.volume_status()?["counters"].clone();
    let [payload, emitted, marked] = ["payload", "emitted", "marked"].map(|name| counters[name].as_u64());
    ensure!(payload > Some(0) && emitted > payload && marked > Some(0), "{counters}");
    Ok(())
}
