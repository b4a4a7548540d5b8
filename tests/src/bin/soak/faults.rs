//! The faults, each from its cause to the moment when the protection has to be well again.

use std::time::Duration;

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};

use crate::guard::Guard;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL, and started again at once.
    Kill,
    /// SIGKILL, and started again after writes that nobody saw.
    KillAndWait,
    /// SIGKILL before it is live, and again.
    KillWhileItStarts,
    KillInMark,
    KillWhileItApplies,
    KillFreezer,
    /// SIGSTOP, later SIGCONT.
    Suspend,
    /// Stopped in order and started again.
    Restart,
    /// SIGKILL, and what it left in the kernel removed.
    Detach,
    Journal(Breakage),
    Target(Breakage),
    /// The target's file is renamed and back, and what is at its name meanwhile is nothing.
    TargetAway,
}

impl Fault {
    pub fn all() -> Vec<Fault> {
        let breakages = [Breakage::Full, Breakage::ShutDown, Breakage::IoErrors];
        let mut all = vec![
            Fault::Kill,
            Fault::Kill,
            Fault::KillAndWait,
            Fault::KillWhileItStarts,
            Fault::KillInMark,
            Fault::KillWhileItApplies,
            Fault::KillFreezer,
            Fault::Suspend,
            Fault::Suspend,
            Fault::Restart,
            Fault::Detach,
            Fault::TargetAway,
        ];
        all.extend(breakages.map(Fault::Journal));
        all.extend(breakages.map(Fault::Target));
        all
    }

    pub fn is_of_target(self) -> bool {
        matches!(self, Fault::Target(_) | Fault::TargetAway | Fault::KillWhileItApplies)
    }

    pub fn name(self) -> String {
        match self {
            Fault::Journal(how) => format!("Journal{how:?}"),
            Fault::Target(how) => format!("Target{how:?}"),
            other => format!("{other:?}"),
        }
    }
}

/// All that a fault may touch.
pub struct Stage<'s, 'p> {
    pub protection: &'p Protection,
    pub guard: &'s mut Guard<'p>,
    pub journal_disk: &'s mut Disk,
    pub target_disk: Option<&'s mut Disk>,
    pub random: &'s mut Random,
}

impl Stage<'_, '_> {
    /// Lets the fault happen; the protection is live again afterwards.
    pub fn strike(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Kill => {
                self.guard.kill()?;
                self.guard.start()?;
            }
            Fault::KillAndWait => {
                self.guard.kill()?;
                self.pause(4000);
                self.guard.start()?;
            }
            Fault::KillWhileItStarts => {
                for _ in 0..1 + self.random.below(3) {
                    self.guard.kill()?;
                    self.guard.start()?;
                    self.pause(600);
                }
                self.guard.kill()?;
                self.guard.start()?;
            }
            Fault::KillInMark => self.kill_after_mark(|stage| {
                stage.pause(120);
                Ok(())
            })?,
            Fault::KillWhileItApplies => self.kill_after_mark(Stage::wait_until_it_applies)?,
            Fault::KillFreezer => self.kill_freezer()?,
            Fault::Suspend => {
                let time = self.random.below(10_000);
                self.guard.suspend(Duration::from_millis(time))?;
            }
            Fault::Restart => {
                self.guard.stop()?;
                self.pause(1500);
                self.guard.start()?;
            }
            Fault::Detach => {
                self.guard.kill()?;
                // Killed before it had attached anything, it left nothing.
                if self.protection.is_in_kernel() {
                    run(self.protection.client().arg("detach").arg(self.protection.device()))?;
                }
                self.pause(1500);
                self.guard.start()?;
            }
            Fault::Journal(how) => self.break_storage(how, true)?,
            Fault::Target(how) => self.break_storage(how, false)?,
            Fault::TargetAway => self.take_target_away()?,
        }
        self.guard.wait_live()
    }

    fn pause(&mut self, millis_max: u64) {
        std::thread::sleep(Duration::from_millis(self.random.below(millis_max)));
    }

    /// Half of the time a freeze is under way when the helper goes.
    fn kill_freezer(&mut self) -> Result<()> {
        let mut mark = self.guard.ask_for_mark("no freezer")?;
        self.pause(100);
        self.guard.kill_freezer()?;
        self.pause(1000);
        // It may have been made or not, and have said so or not.
        drop(mark.kill());
        mark.wait()?;
        Ok(())
    }

    fn kill_after_mark(&mut self, wait: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let mut mark = self.guard.ask_for_mark("killed")?;
        let waited = wait(self);
        self.guard.kill()?;
        // Without its server it may have ended already.
        drop(mark.kill());
        mark.wait()?;
        waited?;
        self.guard.start()
    }

    /// Or until it is clear that there is nothing to apply.
    fn wait_until_it_applies(&mut self) -> Result<()> {
        use std::os::unix::fs::MetadataExt;
        let state = || -> Result<_> {
            let now = std::fs::metadata(self.protection.target())?;
            Ok((now.mtime(), now.mtime_nsec(), now.blocks()))
        };
        let before = state()?;
        let applies =
            wait_until("the replica is written to", Duration::from_secs(5), || Ok(state()? != before));
        // Without a change since the last mark nothing is applied.
        drop(applies);
        Ok(())
    }

    fn break_storage(&mut self, how: Breakage, journal: bool) -> Result<()> {
        self.guard.wait_answer()?;
        self.storage(journal)?.break_it(how).with_context(|| format!("breaking the disk: {how:?}"))?;
        let rounds = self.random.below(30);
        for _ in 0..rounds {
            std::thread::sleep(Duration::from_millis(200));
            self.guard.look();
            self.guard.ended()?;
        }
        match self.random.below(4) {
            0 => self.guard.kill()?,
            // Started while it can't work: it may wait, or say what is wrong and end.
            1 => {
                self.guard.kill()?;
                self.guard.start_in_vain()?;
                self.pause(1500);
            }
            _ => {}
        }
        let mended = self.storage(journal)?.mend()?;
        ensure!(
            mended,
            "protect keeps files of the broken disk open, so that it can't be unmounted: {how:?}"
        );
        if self.guard.ended()? {
            self.guard.start()?;
        }
        Ok(())
    }

    fn storage(&mut self, journal: bool) -> Result<&mut Disk> {
        if journal {
            return Ok(self.journal_disk);
        }
        self.target_disk.as_deref_mut().context("a device has no file system to break")
    }

    fn take_target_away(&mut self) -> Result<()> {
        let target = self.protection.target();
        let away = target.with_extension("away");
        self.guard.wait_answer()?;
        std::fs::rename(target, &away)?;
        self.pause(2000);
        if self.random.below(2) == 0 {
            self.guard.kill()?;
            self.guard.start_in_vain()?;
            self.pause(1500);
        }
        ensure!(!target.exists(), "a new target was begun where the old one had been");
        std::fs::rename(&away, target)?;
        if self.guard.ended()? {
            self.guard.start()?;
        }
        Ok(())
    }
}
