//! Loads and attaches the probes of file systems, on the best rung there is.

use aya::maps::{HashMap, Map, MapData, RingBuf};
use aya::programs::{BtfTracePoint, FEntry, KProbe, Program, ProgramError, ProgramFd};
use aya::{Btf, Ebpf, EbpfLoader};
use tracer_common::vfs::counter;

use crate::capture::CaptureError;
use crate::capture::mapped::MappedArray;
use crate::capture::vfs::layout::VfsLayout;
use crate::capture::vfs::{VFS_LADDER, VfsCapture, VfsRung, map_failed};

/// Compiled by the build script from `tracer-ebpf/src/vfs`.
pub(super) static EMBEDDED: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/vfs.bpf.o"));

#[derive(Clone, Debug)]
pub struct VfsOptions {
    /// A rung to use instead of the best.
    pub rung: Option<VfsRung>,
    /// A power of two, at least 4096.
    pub ring_bytes: u32,
    /// The ends of the calls that make changes are reported, too.
    pub ends: bool,
}

impl Default for VfsOptions {
    fn default() -> Self {
        VfsOptions { rung: None, ring_bytes: 8 << 20, ends: false }
    }
}

/// A program and where it goes.
struct Hook {
    fentry: &'static str,
    kprobe: &'static str,
    function: &'static str,
    /// Kernels of ours have it.
    required: bool,
}

macro_rules! hooks {
    ($($fentry:literal $kprobe:literal $function:literal $required:literal,)*) => {
        [$(Hook { fentry: $fentry, kprobe: $kprobe, function: $function, required: $required },)*]
    };
}

// vfs_set_acl and vfs_remove_acl came with 6.2; before, ACLs go through __vfs_setxattr_noperm. (__vfs_setxattr has seven
// arguments, which is too many for fentry on 6.1; vfs_ioctl is inlined where it matters.)
const HOOKS: [Hook; 24] = hooks! {
    "opening_fentry" "opening_kprobe" "do_filp_open" true,
    "opened_fentry" "opened_kprobe" "vfs_open" true,
    "write_fentry" "write_kprobe" "generic_write_checks" true,
    "mkwrite_fentry" "mkwrite_kprobe" "do_page_mkwrite" true,
    "fallocate_fentry" "fallocate_kprobe" "vfs_fallocate" true,
    "copy_fentry" "copy_kprobe" "vfs_copy_file_range" true,
    "clone_fentry" "clone_kprobe" "vfs_clone_file_range" true,
    "dedupe_fentry" "dedupe_kprobe" "vfs_dedupe_file_range_one" true,
    "attr_fentry" "attr_kprobe" "notify_change" true,
    "setxattr_fentry" "setxattr_kprobe" "__vfs_setxattr_noperm" true,
    "rmxattr_fentry" "rmxattr_kprobe" "__vfs_removexattr" true,
    "setacl_fentry" "setacl_kprobe" "vfs_set_acl" false,
    "rmacl_fentry" "rmacl_kprobe" "vfs_remove_acl" false,
    "flags_fentry" "flags_kprobe" "vfs_fileattr_set" true,
    "ioctl_fentry" "ioctl_kprobe" "do_vfs_ioctl" true,
    "create_fentry" "create_kprobe" "vfs_create" true,
    "mkdir_fentry" "mkdir_kprobe" "vfs_mkdir" true,
    "mknod_fentry" "mknod_kprobe" "vfs_mknod" true,
    "symlink_fentry" "symlink_kprobe" "vfs_symlink" true,
    "unlink_fentry" "unlink_kprobe" "vfs_unlink" true,
    "rmdir_fentry" "rmdir_kprobe" "vfs_rmdir" true,
    "link_fentry" "link_kprobe" "vfs_link" true,
    "rename_fentry" "rename_kprobe" "vfs_rename" true,
    "tmpfile_fentry" "tmpfile_kprobe" "vfs_tmpfile" true,
};

/// Program, tracepoint, and whether it is always there. `sys_exit` first: what a call that has begun leaves is harmless.
const TRACEPOINTS: [(&str, &str, bool); 6] = [
    ("sys_exit", "sys_exit", true),
    ("sys_enter", "sys_enter", true),
    ("dirty_folio", "writeback_dirty_folio", true),
    ("requested", IO_URING, true),
    ("request_done", "io_uring_complete", true),
    // Came with 6.6 or so.
    ("direct_io", DIRECT_IO, false),
];
const DIRECT_IO: &str = "iomap_dio_rw_begin";
const IO_URING: &str = "io_uring_submit_req";
/// How it was called up to 6.3, with the same first argument.
const IO_URING_OLD: &str = "io_uring_submit_sqe";

/// On the best rung, or on the one wanted. Nothing is watched yet.
pub fn attach(options: &VfsOptions) -> Result<VfsCapture, CaptureError> {
    let layout = VfsLayout::read()?;
    let mut reasons = Vec::new();
    for rung in VFS_LADDER.into_iter().filter(|rung| options.rung.is_none_or(|wanted| wanted == *rung)) {
        match attach_on(rung, &layout, options) {
            Ok(capture) => return Ok(capture),
            Err(error) => {
                let error = anyhow::Error::from(error);
                log::debug!("file changes can't be seen on rung {rung}: {error:#}");
                reasons.push(format!("{rung}: {error:#}"));
            }
        }
    }
    Err(CaptureError::NoVfsRung { reasons: reasons.join("; ") })
}

fn attach_on(rung: VfsRung, layout: &VfsLayout, options: &VfsOptions) -> Result<VfsCapture, CaptureError> {
    if rung == VfsRung::Syscall && !cfg!(target_arch = "x86_64") {
        return Err(CaptureError::NoVfsRung { reasons: "it knows the system calls of x86-64 only".into() });
    }
    let mut programs = load(rung, layout, options)?;
    let Maps { counters, ring, file_systems } = take_maps(&mut programs)?;
    let mut absent = Vec::new();
    let mut attached = Vec::new();
    let kernel = Btf::from_sys_fs().map_err(|error| failed("all", rung, error))?;
    if rung != VfsRung::Syscall {
        for hook in &HOOKS {
            if !layout.has_function(hook.function) && !hook.required {
                absent.push(hook.function);
                continue;
            }
            let name = if rung == VfsRung::Fentry { hook.fentry } else { hook.kprobe };
            attached.push(attach_function(&mut programs, name, hook.function, rung, &kernel)?);
        }
    }
    for (name, tracepoint, required) in TRACEPOINTS {
        // On the other rungs only the ends of calls are of interest.
        if rung != VfsRung::Syscall && !(name == "sys_exit" && options.ends) {
            continue;
        }
        let there = layout.has_tracepoint(tracepoint);
        if !there && !required {
            absent.push(tracepoint);
            continue;
        }
        let tracepoint = if tracepoint == IO_URING && !there { IO_URING_OLD } else { tracepoint };
        attached.push(attach_tracepoint(&mut programs, name, tracepoint, rung, &kernel)?);
    }
    Ok(VfsCapture { rung, absent, ring, counters, file_systems, attached, _programs: programs })
}

fn load(rung: VfsRung, layout: &VfsLayout, options: &VfsOptions) -> Result<Ebpf, CaptureError> {
    let (ends, own_pid) = (u32::from(options.ends), std::process::id());
    let syscalls = u32::from(rung == VfsRung::Syscall);
    let direct_unseen = u32::from(!layout.has_tracepoint(DIRECT_IO));
    let mut loader = loader(layout, options.ring_bytes);
    loader
        .override_global("ENDS", &ends, true)
        .override_global("SYSCALLS", &syscalls, true)
        .override_global("OWN_PID", &own_pid, true)
        .override_global("DIRECT_UNSEEN", &direct_unseen, true);
    loader.load(EMBEDDED).map_err(|source| CaptureError::Load(Box::new(source)))
}

/// Knows where the running kernel keeps things.
pub(super) fn loader(layout: &VfsLayout, ring_bytes: u32) -> EbpfLoader<'_> {
    let mut loader = crate::capture::attach::loader();
    for (name, offset) in &layout.offsets {
        loader.override_global(name, offset, true);
    }
    loader.map_max_entries("VFS_EVENTS", ring_bytes);
    loader
}

/// What user space reads and sets.
pub(super) struct Maps {
    pub counters: MappedArray,
    pub ring: RingBuf<MapData>,
    pub file_systems: HashMap<MapData, u32, u8>,
}

pub(super) fn take_maps(programs: &mut Ebpf) -> Result<Maps, CaptureError> {
    let counters = match take_map(programs, "VFS_COUNTERS")? {
        Map::Array(data) => MappedArray::new(data, counter::COUNT as usize)
            .map_err(|source| CaptureError::Map { map: "VFS_COUNTERS", source })?,
        _ => return Err(CaptureError::Object("the map VFS_COUNTERS is no array".into())),
    };
    let ring = RingBuf::try_from(take_map(programs, "VFS_EVENTS")?)
        .map_err(|error| map_failed("VFS_EVENTS", error))?;
    let file_systems = HashMap::try_from(take_map(programs, "FILE_SYSTEMS")?)
        .map_err(|error| map_failed("FILE_SYSTEMS", error))?;
    Ok(Maps { counters, ring, file_systems })
}

fn attach_function(
    programs: &mut Ebpf,
    name: &'static str,
    function: &str,
    rung: VfsRung,
    kernel: &Btf,
) -> Result<ProgramFd, CaptureError> {
    let program = program(programs, name)?;
    let mut attached = || -> Result<ProgramFd, ProgramError> {
        if rung == VfsRung::Fentry {
            let program: &mut FEntry = program.try_into()?;
            program.load(function, kernel)?;
            program.attach()?;
        } else {
            let program: &mut KProbe = program.try_into()?;
            program.load()?;
            program.attach(function, 0)?;
        }
        program.info()?.fd()
    };
    attached().map_err(|error| failed(name, rung, error))
}

pub(super) fn attach_tracepoint(
    programs: &mut Ebpf,
    name: &'static str,
    tracepoint: &str,
    rung: VfsRung,
    kernel: &Btf,
) -> Result<ProgramFd, CaptureError> {
    let program = program(programs, name)?;
    let mut attached = || -> Result<ProgramFd, ProgramError> {
        let probe: &mut BtfTracePoint = program.try_into()?;
        probe.load(tracepoint, kernel)?;
        probe.attach()?;
        program.info()?.fd()
    };
    attached().map_err(|error| failed(name, rung, error))
}

pub(super) fn program<'a>(
    programs: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut Program, CaptureError> {
    programs.program_mut(name).ok_or_else(|| CaptureError::Object(format!("the program {name} is missing")))
}

fn take_map(programs: &mut Ebpf, name: &'static str) -> Result<Map, CaptureError> {
    programs.take_map(name).ok_or_else(|| CaptureError::Object(format!("the map {name} is missing")))
}

pub(super) fn failed(
    probe: &'static str,
    rung: VfsRung,
    source: impl std::error::Error + Send + Sync + 'static,
) -> CaptureError {
    CaptureError::AttachVfs { probe, rung, source: Box::new(source) }
}
