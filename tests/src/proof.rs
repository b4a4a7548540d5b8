//! What tests of restored instants have in common: how the volume is captured, and which points they restore.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::instants::{Point, Stretch, choose, marks};
use crate::{Protect, Protection, Random};

/// `protect --capture`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// Only marks can be restored.
    Extents,
    /// Every instant can.
    Payload,
}

impl Capture {
    /// Of `protect --capture`.
    pub fn args(self) -> &'static [&'static str] {
        match self {
            Capture::Extents => &[],
            Capture::Payload => &["--capture", "payload"],
        }
    }

    pub fn protection(self, device: &std::path::Path) -> Result<Protection> {
        let protection = Protection::new(device)?.arg("--mark-every").arg("never");
        Ok(self.args().iter().fold(protection, |protection, arg| protection.arg(*arg)))
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
            let marks = scope.spawn(|| mark_during(&protect, length));
            let done = load();
            marks.join().expect("marks are made or not, without a panic")?;
            done
        })?;
        let ended_ns = crate::now_ns();
        end()?;
        protect.stop()?;

        let mut points = marks(protection, "during")?;
        ensure!(!points.is_empty(), "no mark during the load can be restored: {:?}", protection.points()?);
        while points.len() as u64 > count {
            points.swap_remove(usize::try_from(random.below(points.len() as u64))?);
        }
        if self == Capture::Payload {
            let stretches = Stretch::of_journal(protection.journal())?;
            points.extend(choose(&stretches, begun_ns..ended_ns, count, random)?);
        }
        Ok((done, points))
    }
}

/// Marks from time to time. On a bare device that is always busy a mark may be one that can't be restored.
fn mark_during(protect: &Protect<'_>, load: Duration) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < load * 9 / 10 {
        std::thread::sleep(load / 8);
        protect.mark("during")?;
    }
    Ok(())
}
