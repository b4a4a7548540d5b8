//! Files that fsync and its like bring to their disk, for those who ask for nothing else: the object of the probes of file
//! systems once more, with other programs and a ring that wakes its reader.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use aya::maps::{HashMap, MapData, RingBuf};
use aya::programs::{FExit, ProgramError, ProgramFd};
use aya::{Btf, Ebpf};
use nix::sys::memfd::{MFdFlags, memfd_create};
use tracer_common::vfs::counter;

use crate::capture::CaptureError;
use crate::capture::mapped::MappedArray;
use crate::capture::probes::recursion_misses;
use crate::capture::vfs::attach::{EMBEDDED, Maps, attach_tracepoint, failed, loader, program, take_maps};
use crate::capture::vfs::event::synced_file;
use crate::capture::vfs::layout::VfsLayout;
use crate::capture::vfs::{VfsRung, map_failed};
use crate::model::FileId;

/// Not by kprobe: of calls that wait as fsync does there may be more than a kretprobe has room for, and then some go unseen.
const RUNGS: [VfsRung; 2] = [VfsRung::Fentry, VfsRung::Syscall];
const PROGRAM: &str = "synced_fexit";
const FUNCTION: &str = "vfs_fsync_range";
/// An event takes 24 bytes; who does not keep up is told that some are missing.
const RING_BYTES: u32 = 256 << 10;
/// Tables of the other programs.
const UNUSED: [&str; 4] = ["OPENING", "OPENS", "BEGUN", "TOLD"];
const SELF_TEST: &CStr = c"afterwrite-self-test";

/// Attached probes of fsync. Dropping it detaches them.
pub struct SyncCapture {
    rung: VfsRung,
    ring: RingBuf<MapData>,
    counters: MappedArray,
    file_systems: HashMap<MapData, u32, u8>,
    attached: Vec<ProgramFd>,
    _programs: Ebpf,
}

impl SyncCapture {
    /// Of the file system with this number (the kernel's: major << 20 | minor), on the best rung or the one wanted.
    pub fn attach(dev: u32, wanted: Option<VfsRung>) -> Result<SyncCapture, CaptureError> {
        if wanted == Some(VfsRung::Kprobe) {
            let reasons = "kprobe: fsync is seen on the rungs fentry and syscall only".into();
            return Err(CaptureError::NoVfsRung { reasons });
        }
        let layout = VfsLayout::read()?;
        let mut reasons = Vec::new();
        for rung in RUNGS.into_iter().filter(|rung| wanted.is_none_or(|wanted| wanted == *rung)) {
            let attached = SyncCapture::attach_on(rung, &layout).and_then(|mut capture| {
                capture.ensure_at_work()?;
                capture.watch(dev)?;
                Ok(capture)
            });
            match attached {
                Ok(capture) => return Ok(capture),
                Err(error) => reasons.push(format!("{rung}: {:#}", anyhow::Error::from(error))),
            }
        }
        Err(CaptureError::NoVfsRung { reasons: reasons.join("; ") })
    }

    fn attach_on(rung: VfsRung, layout: &VfsLayout) -> Result<SyncCapture, CaptureError> {
        if rung == VfsRung::Syscall && !cfg!(target_arch = "x86_64") {
            return Err(CaptureError::NoVfsRung {
                reasons: "it knows the system calls of x86-64 only".into(),
            });
        }
        let mut loader = loader(layout, RING_BYTES);
        for map in UNUSED {
            loader.map_max_entries(map, 64);
        }
        let mut programs = loader.load(EMBEDDED).map_err(|source| CaptureError::Load(Box::new(source)))?;
        let Maps { counters, ring, file_systems } = take_maps(&mut programs)?;
        let kernel = Btf::from_sys_fs().map_err(|error| failed("all", rung, error))?;
        let attached = match rung {
            VfsRung::Syscall => vec![
                attach_tracepoint(&mut programs, "synced_call", "sys_exit", rung, &kernel)?,
                attach_tracepoint(&mut programs, "synced_request", "io_uring_complete", rung, &kernel)?,
            ],
            _ => vec![attach_fexit(&mut programs, &kernel)?],
        };
        Ok(SyncCapture { rung, ring, counters, file_systems, attached, _programs: programs })
    }

    /// A kernel may have the function in some of its callers besides: then what they sync does not come by (so, it seems, 6.1 for
    /// fdatasync). So memory is synced in both ways.
    fn ensure_at_work(&mut self) -> Result<(), CaptureError> {
        let failed = |source| CaptureError::SelfTest { what: "fsync", source };
        let file = File::from(memfd_create(SELF_TEST, MFdFlags::MFD_CLOEXEC).map_err(|e| failed(e.into()))?);
        let metadata = file.metadata().map_err(failed)?;
        let dev = libc::major(metadata.dev()) << 20 | libc::minor(metadata.dev());
        self.watch(dev)?;
        file.sync_all().map_err(failed)?;
        file.sync_data().map_err(failed)?;
        let seen = self.take().iter().filter(|synced| synced.inode == metadata.ino()).count();
        self.file_systems.remove(&dev).map_err(|error| map_failed("FILE_SYSTEMS", error))?;
        match seen {
            2 => Ok(()),
            _ => Err(failed(std::io::Error::other(format!("of an fsync and an fdatasync it saw {seen}")))),
        }
    }

    fn watch(&mut self, dev: u32) -> Result<(), CaptureError> {
        self.file_systems.insert(dev, 1, 0).map_err(|error| map_failed("FILE_SYSTEMS", error))
    }

    pub fn rung(&self) -> VfsRung {
        self.rung
    }

    /// Those synced since.
    pub fn take(&mut self) -> Vec<FileId> {
        let mut files = Vec::new();
        while let Some(item) = self.ring.next() {
            files.extend(synced_file(&item));
        }
        files
    }

    /// How many syncs went unseen.
    pub fn missing(&self) -> u64 {
        let skipped: u64 = self.attached.iter().map(recursion_misses).sum();
        self.counters.get(counter::LOST) + self.counters.get(counter::READ_FAILED) + skipped
    }
}

/// Readable when there is something to take.
impl AsFd for SyncCapture {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

fn attach_fexit(programs: &mut Ebpf, kernel: &Btf) -> Result<ProgramFd, CaptureError> {
    let program = program(programs, PROGRAM)?;
    let mut attached = || -> Result<ProgramFd, ProgramError> {
        let probe: &mut FExit = program.try_into()?;
        probe.load(FUNCTION, kernel)?;
        probe.attach()?;
        program.info()?.fd()
    };
    attached().map_err(|error| failed(PROGRAM, VfsRung::Fentry, error))
}
