//! The marker of a clean stop, `stopped.toml` in the journal's directory: there only between a stop in order and the next
//! start.
//!
//! It is never trusted by itself. It says what the kernel had counted of the disk's I/O when journal and device said the
//! same and the probes were still at work; only if the same boot's kernel still counts the same for the same life of the
//! disk, was nothing written in between, and there is nothing to compare. After a reboot there always is.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::io::{BlockDevice, IoCounts};
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
        Some(Stopped { boot: boot_id()?, disk_sequence: device.disk_sequence()?, mark, counts })
    }

    /// Nothing was written since. `newest`: the journal's last restorable mark.
    pub fn still_holds(&self, device: &BlockDevice, newest: Option<MarkId>) -> bool {
        newest == Some(self.mark)
            && boot_id().as_ref() == Some(&self.boot)
            && device.disk_sequence() == Some(self.disk_sequence)
            && device.writes_in_flight() == Some(0)
            && device.io_counts().is_some_and(|now| now.same_writes(&self.counts))
    }

    /// Takes the marker away. One that can't be understood is none: then all is compared.
    pub fn take(journal: &Path) -> io::Result<Option<Stopped>> {
        let path = journal.join(FILE_NAME);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        fs::remove_file(&path)?;
        Ok(toml::from_str(&text).ok())
    }

    pub fn write(&self, journal: &Path) -> io::Result<()> {
        let path = journal.join(FILE_NAME);
        let beside = path.with_extension("toml.new");
        let mut file = File::create(&beside)?;
        file.write_all(b"# Afterwrite was stopped in order. The next start takes this away.\n")?;
        file.write_all(toml::to_string(self).map_err(io::Error::other)?.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        File::open(journal)?.sync_all()
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
}
