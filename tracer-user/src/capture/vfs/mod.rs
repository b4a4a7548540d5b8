//! The probes of file systems: who changes which file. Apart from those of the volume: another object, another ring, other
//! counters, and nothing of theirs can hold up or lose a block event.

mod attach;
mod event;
mod layout;
mod synced;

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::Ordering;

use aya::Ebpf;
use aya::maps::{HashMap, MapData, RingBuf};
use aya::programs::ProgramFd;
use serde::{Deserialize, Serialize};
use tracer_common::vfs::counter;

pub use attach::{VfsOptions, attach};
#[cfg(any(test, fuzzing))]
pub(super) use event::synced_file;
pub use event::{Named, VfsChange, VfsEvent};
pub use synced::SyncCapture;

use crate::capture::CaptureError;
use crate::capture::mapped::MappedArray;
use crate::capture::probes::recursion_misses;

/// A way to see changes of files, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VfsRung {
    /// At the beginning of the kernel's functions, by trampoline.
    Fentry,
    /// The same, by breakpoint.
    Kprobe,
    /// System calls, and what the page cache and direct I/O tell.
    Syscall,
}

pub const VFS_LADDER: [VfsRung; 3] = [VfsRung::Fentry, VfsRung::Kprobe, VfsRung::Syscall];

impl fmt::Display for VfsRung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            VfsRung::Fentry => "fentry",
            VfsRung::Kprobe => "kprobe",
            VfsRung::Syscall => "syscall",
        })
    }
}

impl FromStr for VfsRung {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        VFS_LADDER
            .into_iter()
            .find(|rung| rung.to_string() == text)
            .ok_or_else(|| format!("a rung is fentry, kprobe or syscall, not {text:?}"))
    }
}

/// What the probes of file systems have counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VfsCounters {
    /// Changes; equals emitted + lost when nothing changes.
    pub seen: u64,
    pub emitted: u64,
    /// The ring had no room.
    pub lost: u64,
    /// Events that say where an inode hangs, and found no room.
    pub names_lost: u64,
    /// Memory that could not be read.
    pub read_failed: u64,
    /// System calls of 32-bit programs, on the rung `syscall`.
    pub not_understood: u64,
    /// Changes by io_uring of unknown files or names, which may be none of those that are watched; on the rung `syscall`.
    /// Not among `seen`.
    pub unseen: u64,
    /// The kernel did not run a probe, as one was running on that processor.
    pub skipped: u64,
}

impl VfsCounters {
    /// Changes of which it is not known who made them.
    pub fn missing(&self) -> u64 {
        self.lost + self.read_failed + self.not_understood + self.skipped
    }
}

/// Attached probes of file systems. Dropping it detaches them.
pub struct VfsCapture {
    rung: VfsRung,
    /// Hooks this kernel does not have.
    absent: Vec<&'static str>,
    ring: RingBuf<MapData>,
    counters: MappedArray,
    file_systems: HashMap<MapData, u32, u8>,
    attached: Vec<ProgramFd>,
    _programs: Ebpf,
}

impl VfsCapture {
    pub fn rung(&self) -> VfsRung {
        self.rung
    }

    /// Functions or tracepoints that this kernel does not have.
    pub fn absent(&self) -> &[&'static str] {
        &self.absent
    }

    /// From now on changes of this file system (its number as the kernel has it) are reported.
    pub fn watch(&mut self, dev: u32) -> Result<(), CaptureError> {
        self.file_systems.insert(dev, 1, 0).map_err(|error| map_failed("FILE_SYSTEMS", error))
    }

    pub fn unwatch(&mut self, dev: u32) -> Result<(), CaptureError> {
        match self.file_systems.remove(&dev) {
            Ok(()) | Err(aya::maps::MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(map_failed("FILE_SYSTEMS", error)),
        }
    }

    /// The next event of the ring. `Some(None)` is one that no probe of this version writes.
    pub fn next_event(&mut self) -> Option<Option<VfsEvent>> {
        let item = self.ring.next()?;
        Some(VfsEvent::parse(&item))
    }

    pub fn counters(&self) -> VfsCounters {
        let count = |index| self.counters.get(index);
        // `seen` is counted first, so it is read last.
        let (emitted, lost) = (count(counter::EMITTED), count(counter::LOST));
        VfsCounters {
            emitted,
            lost,
            names_lost: self.names_lost(),
            read_failed: count(counter::READ_FAILED),
            not_understood: count(counter::NOT_UNDERSTOOD),
            unseen: count(counter::UNSEEN),
            skipped: self.attached.iter().map(recursion_misses).sum(),
            seen: count(counter::SEEN),
        }
    }

    /// [`VfsCounters::names_lost`] alone, without asking each probe what it skipped.
    pub fn names_lost(&self) -> u64 {
        self.counters.get(counter::NAMES_LOST)
    }

    /// Where inodes hang is told anew, as if nothing had been.
    pub fn forget_names(&mut self) {
        self.counters.words()[counter::EPOCH as usize].fetch_add(1, Ordering::AcqRel);
    }
}

fn map_failed(map: &'static str, error: aya::maps::MapError) -> CaptureError {
    CaptureError::Map { map, source: std::io::Error::other(error) }
}
