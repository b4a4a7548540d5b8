//! The marker of a clean stop, `stopped.toml` in the journal's directory: there only between a stop in order and the next
//! start.
//!
//! It is never trusted by itself. It says what the kernel had counted of the disk's I/O when journal and device said the
//! same and the probes were still at work; only if the same boot's kernel still counts the same for the same life of the
//! disk, was nothing written in between, and there is nothing to compare.
//!
//! Of another boot no kernel can say that nothing was written after the stop. So there is always something to compare, unless the user
//! vouches for that (`--trust-reboot`); even then nobody may have had the device mounted at the stop, and this boot's kernel
//! must not have counted a write.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::io::{BlockDevice, IoCounts, replace};
use crate::model::MarkId;

const FILE_NAME: &str = "stopped.toml";
/// A request is counted a moment after its completion was seen.
const REST_MAX: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stopped {
    boot: String,
    disk_sequence: u64,
    /// The mark at which journal and device said the same.
    mark: MarkId,
    counts: IoCounts,
    /// Neither mounted nor part of another device: only who opened it by name could write to it from then on.
    #[serde(default)]
    unclaimed: bool,
}

/// The device as the kernel sees it now.
struct Now {
    boot: String,
    disk_sequence: u64,
    counts: IoCounts,
}

impl Stopped {
    /// What can be said of the device now. `None` if it is not at rest, or the kernel does not count its I/O: then
    /// `since`, from before it was read or written, is what it still counts.
    pub fn of(device: &BlockDevice, mark: MarkId, since: &IoCounts) -> Option<Stopped> {
        let begun = Instant::now();
        while device.writes_in_flight()? > 0 {
            if begun.elapsed() > REST_MAX {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let counts = device.io_counts()?;
        if counts == *since {
            return None;
        }
        let unclaimed = !device.is_claimed();
        Some(Stopped { boot: boot_id()?, disk_sequence: device.disk_sequence()?, mark, counts, unclaimed })
    }

    /// Nothing was written since. `newest`: the journal's last restorable mark. `trust_reboot`: nothing else than this system writes
    /// to the device, nor does this system while it shuts down.
    pub fn still_holds(&self, device: &BlockDevice, newest: Option<MarkId>, trust_reboot: bool) -> bool {
        let now = || {
            Some(Now {
                boot: boot_id()?,
                disk_sequence: device.disk_sequence()?,
                counts: device.io_counts()?,
            })
        };
        newest == Some(self.mark)
            && device.writes_in_flight() == Some(0)
            && now().is_some_and(|now| self.was_not_written(&now, trust_reboot))
    }

    fn was_not_written(&self, now: &Now, trust_reboot: bool) -> bool {
        if now.boot == self.boot {
            return now.disk_sequence == self.disk_sequence && now.counts.same_writes(&self.counts);
        }
        trust_reboot && self.unclaimed && now.counts.is_without_writes()
    }

    /// Takes the marker away, durably: it must not be there again after a power cut. One that can't be understood is none: then all
    /// is compared.
    pub fn take(journal: &Path) -> io::Result<Option<Stopped>> {
        let path = journal.join(FILE_NAME);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        fs::remove_file(&path)?;
        File::open(journal)?.sync_all()?;
        Ok(toml::from_str(&text).ok())
    }

    pub fn write(&self, journal: &Path) -> io::Result<()> {
        let text = toml::to_string(self).map_err(io::Error::other)?;
        let text = format!("# Afterwrite was stopped in order. The next start takes this away.\n{text}");
        replace(&journal.join(FILE_NAME), text.as_bytes())
    }
}

fn boot_id() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_is_taken_once_and_a_damaged_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Stopped::take(dir.path()).unwrap(), None);
        let stopped = Stopped {
            boot: "b".into(),
            disk_sequence: 7,
            mark: MarkId(3),
            counts: IoCounts { writes: 1, ..IoCounts::default() },
            unclaimed: true,
        };
        stopped.write(dir.path()).unwrap();
        assert_eq!(Stopped::take(dir.path()).unwrap(), Some(stopped.clone()));
        assert_eq!(Stopped::take(dir.path()).unwrap(), None);
        stopped.write(dir.path()).unwrap();
        let path = dir.path().join(FILE_NAME);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert_eq!(Stopped::take(dir.path()).unwrap(), None);
    }
    #[test]
    fn a_reboot_is_trusted_only_if_that_is_wanted_and_nothing_speaks_against_it() {
        let stopped = Stopped {
            boot: "a".into(),
            disk_sequence: 7,
            mark: MarkId(3),
            counts: IoCounts { writes: 5, ..IoCounts::default() },
            unclaimed: true,
        };
        let claimed = Stopped { unclaimed: false, ..stopped.clone() };
        let now = |boot: &str, disk_sequence, writes, discards| Now {
            boot: boot.into(),
            disk_sequence,
            counts: IoCounts { reads: 9, writes, discards, ..IoCounts::default() },
        };
        // The same boot: what it counted says it.
        for trust in [false, true] {
            assert!(claimed.was_not_written(&now("a", 7, 5, 0), trust));
            assert!(!claimed.was_not_written(&now("a", 7, 6, 0), trust));
            assert!(!claimed.was_not_written(&now("a", 8, 5, 0), trust));
        }
        // Another one.
        assert!(stopped.was_not_written(&now("b", 1, 0, 0), true));
        assert!(!stopped.was_not_written(&now("b", 1, 0, 0), false));
        assert!(!claimed.was_not_written(&now("b", 1, 0, 0), true));
        assert!(!stopped.was_not_written(&now("b", 1, 1, 0), true));
        assert!(!stopped.was_not_written(&now("b", 1, 0, 1), true));
    }
}
