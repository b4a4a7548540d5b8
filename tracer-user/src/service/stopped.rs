//! The marker of a clean stop, `stopped.toml` in the journal's directory: there only between a stop in order and the next
//! start.
//!
//! It is never trusted by itself. It says what the kernel had counted of the disk's I/O when journal and device said the
//! same and the probes were still at work; only if the same boot's kernel had counted the same for the same life of the
//! disk when the next probes were at work, was nothing written in between, and there is nothing to compare.
//!
//! Of another boot no kernel can say that nothing was written after the stop. So there is always something to compare, unless the user
//! vouches for that (`--trust-reboot`); even then nobody may have been able to write at the stop, the volume's beginning must be
//! what it was, and this boot's kernel must not have counted a write before the probes were at work.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::capture::Found;
use crate::io::{AlignedBuf, BlockDevice, DirectFile, IoCounts, mounted_on, replace};
use crate::model::{ByteRange, MarkId};

const FILE_NAME: &str = "stopped.toml";
/// A request is counted a moment after its completion was seen.
const REST_MAX: Duration = Duration::from_millis(500);
/// Holds the super blocks of ext4, xfs and btrfs, and the headers of LVM, md and LUKS.
const HEAD_BYTES: u64 = 128 << 10;
/// Whoever mounts one of these for writing writes that to the super block, which is in the head, before anything else.
const TELL_OF_MOUNTS: [&str; 3] = ["ext2", "ext3", "ext4"];

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stopped {
    boot: String,
    disk_sequence: u64,
    /// The mark at which journal and device said the same.
    mark: MarkId,
    /// Neither mounted nor part of another device: only who opened it by name could write to it from then on.
    #[serde(default)]
    unclaimed: bool,
    /// Mounted, but read-only, as the root is at the end of a shutdown.
    #[serde(default)]
    read_only: bool,
    /// BLAKE3 of the volume's beginning.
    #[serde(default)]
    head: String,
    counts: IoCounts,
}

/// The device as it was when the probes that are at work now were attached.
struct Then {
    boot: String,
    disk_sequence: u64,
    found: Found,
}

impl Stopped {
    /// What can be said of the device now. `None` if it is not at rest, or the kernel does not count its I/O: then
    /// `since`, from before it was read or written, is what it still counts.
    pub fn of(device: &BlockDevice, mark: MarkId, since: &IoCounts) -> Option<Stopped> {
        let found = look(device)?;
        if found.counts == *since {
            return None;
        }
        Some(Stopped {
            boot: boot_id()?,
            disk_sequence: device.disk_sequence()?,
            mark,
            unclaimed: !device.is_claimed(),
            read_only: is_read_only(device),
            head: hex(&found.head),
            counts: found.counts,
        })
    }

    /// Nothing was written since. `found`: what the device was when the probes had just been attached. `newest`: the journal's last
    /// restorable mark. `trust_reboot`: nothing else than this system writes to the device, nor does this system while it shuts down.
    pub fn still_holds(
        &self,
        device: &BlockDevice,
        found: Option<Found>,
        newest: Option<MarkId>,
        trust_reboot: bool,
    ) -> bool {
        let then = || Some(Then { boot: boot_id()?, disk_sequence: device.disk_sequence()?, found: found? });
        newest == Some(self.mark) && then().is_some_and(|then| self.was_not_written(&then, trust_reboot))
    }

    fn was_not_written(&self, then: &Then, trust_reboot: bool) -> bool {
        let counts = &then.found.counts;
        if then.boot == self.boot {
            return then.disk_sequence == self.disk_sequence && counts.same_writes(&self.counts);
        }
        trust_reboot
            && (self.unclaimed || self.read_only)
            && self.head == hex(&then.found.head)
            && counts.is_without_writes()
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

/// `None` if a write is under way for long, or the kernel does not count them.
pub fn look(device: &BlockDevice) -> Option<Found> {
    let bytes = HEAD_BYTES.min(device.size_bytes);
    let mut head = AlignedBuf::with_capacity(usize::try_from(bytes).ok()?);
    DirectFile::open(&device.path).ok()?.read_range(ByteRange::new(0, bytes), &mut head).ok()?;
    let begun = Instant::now();
    while device.writes_in_flight()? > 0 {
        if begun.elapsed() > REST_MAX {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    // Last, so that they tell of a write since the head was read.
    let counts = device.io_counts()?;
    Some(Found { counts, head: *blake3::hash(&head).as_bytes() })
}

/// It holds one file system, which nobody can write by, and that would tell if it were mounted for writing again.
fn is_read_only(device: &BlockDevice) -> bool {
    match mounted_on(device.number).as_deref() {
        Ok([fs]) => {
            fs.read_only && fs.number == device.number && TELL_OF_MOUNTS.contains(&fs.fs_type.as_str())
        }
        _ => false,
    }
}

fn hex(hash: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*hash).to_hex().to_string()
}

fn boot_id() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: [u8; 32] = [5; 32];

    fn stopped() -> Stopped {
        Stopped {
            boot: "a".into(),
            disk_sequence: 7,
            mark: MarkId(3),
            unclaimed: true,
            read_only: false,
            head: hex(&HEAD),
            counts: IoCounts { writes: 5, ..IoCounts::default() },
        }
    }

    #[test]
    fn the_marker_is_taken_once_and_a_damaged_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Stopped::take(dir.path()).unwrap(), None);
        let stopped = stopped();
        stopped.write(dir.path()).unwrap();
        assert_eq!(Stopped::take(dir.path()).unwrap(), Some(stopped.clone()));
        assert_eq!(Stopped::take(dir.path()).unwrap(), None);
        stopped.write(dir.path()).unwrap();
        let path = dir.path().join(FILE_NAME);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert_eq!(Stopped::take(dir.path()).unwrap(), None);
    }

    /// It says nothing of the volume's beginning, so it holds only within its boot.
    #[test]
    fn a_marker_of_an_earlier_version_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let text = "boot = \"a\"\ndisk_sequence = 7\nmark = 3\nunclaimed = true\n[counts]\ncounted = false\nreads = 0\n\
                    writes = 5\nwritten_sectors = 0\ndiscards = 0\ndiscarded_sectors = 0\n";
        fs::write(dir.path().join(FILE_NAME), text).unwrap();
        let taken = Stopped::take(dir.path()).unwrap();
        assert_eq!(taken, Some(Stopped { head: String::new(), ..stopped() }));
    }

    #[test]
    fn a_reboot_is_trusted_only_if_that_is_wanted_and_nothing_speaks_against_it() {
        let then = |boot: &str, disk_sequence, writes, discards, head| Then {
            boot: boot.into(),
            disk_sequence,
            found: Found { counts: IoCounts { reads: 9, writes, discards, ..IoCounts::default() }, head },
        };
        let unclaimed = stopped();
        let read_only = Stopped { unclaimed: false, read_only: true, ..stopped() };
        let mounted = Stopped { unclaimed: false, ..stopped() };
        // The same boot: what it counted says it.
        for trust in [false, true] {
            assert!(mounted.was_not_written(&then("a", 7, 5, 0, HEAD), trust));
            assert!(!mounted.was_not_written(&then("a", 7, 6, 0, HEAD), trust));
            assert!(!mounted.was_not_written(&then("a", 8, 5, 0, HEAD), trust));
        }
        // Another one.
        assert!(!mounted.was_not_written(&then("b", 1, 0, 0, HEAD), true));
        for stopped in [unclaimed, read_only] {
            assert!(stopped.was_not_written(&then("b", 1, 0, 0, HEAD), true));
            assert!(!stopped.was_not_written(&then("b", 1, 0, 0, HEAD), false));
            assert!(!stopped.was_not_written(&then("b", 1, 1, 0, HEAD), true));
            assert!(!stopped.was_not_written(&then("b", 1, 0, 1, HEAD), true));
            // In a boot in between, in which nobody looked, it was mounted.
            assert!(!stopped.was_not_written(&then("b", 1, 0, 0, [6; 32]), true));
        }
    }
}
