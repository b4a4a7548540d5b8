//! Where the running kernel keeps the members our probes read: from its BTF, at load time.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use btf_rs::{Backend, Btf, Type};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::capture::CaptureError;

/// The kernel's BTF; AFTERWRITE_BTF names another file, for tests and for kernels that keep it elsewhere.
pub fn kernel_btf_path() -> PathBuf {
    std::env::var_os("AFTERWRITE_BTF").map_or_else(|| PathBuf::from("/sys/kernel/btf/vmlinux"), PathBuf::from)
}

/// Looked at where it lies: taken apart it would be some ten times as large, of which hardly anything is asked for. It lies in a
/// copy, as a kernel before 6.16 does not let its own be mapped.
///
/// # Errors
/// What it lacks, for [`CaptureError::Layout`].
pub fn open_btf(path: &Path) -> Result<Btf, String> {
    let copy = || -> io::Result<File> {
        let mut copy = File::from(memfd_create(c"kernel-btf", MFdFlags::MFD_CLOEXEC)?);
        io::copy(&mut File::open(path)?, &mut copy)?;
        Ok(copy)
    };
    let unreadable = |error: &dyn std::fmt::Display| format!("readable type information ({error})");
    let copy = copy().map_err(|error| unreadable(&error))?;
    Btf::from_file_with_backend(format!("/proc/self/fd/{}", copy.as_raw_fd()), Backend::Mmap)
        .map_err(|error| unreadable(&error))
}

/// (setting of the probes, struct, path to the member)
pub type Member = (&'static str, &'static str, &'static [&'static str]);

const MEMBERS: [Member; 15] = [
    ("REQUEST_Q", "request", &["q"]),
    ("REQUEST_CMD_FLAGS", "request", &["cmd_flags"]),
    ("REQUEST_DATA_LEN", "request", &["__data_len"]),
    ("REQUEST_SECTOR", "request", &["__sector"]),
    ("REQUEST_BIO", "request", &["bio"]),
    ("QUEUE_DISK", "request_queue", &["disk"]),
    ("GENDISK_MAJOR", "gendisk", &["major"]),
    ("GENDISK_FIRST_MINOR", "gendisk", &["first_minor"]),
    ("BDEV_DISK", "block_device", &["bd_disk"]),
    ("BIO_BDEV", "bio", &["bi_bdev"]),
    ("BIO_OPF", "bio", &["bi_opf"]),
    ("BIO_STATUS", "bio", &["bi_status"]),
    ("BIO_NEXT", "bio", &["bi_next"]),
    ("BIO_SECTOR", "bio", &["bi_iter", "bi_sector"]),
    ("BIO_SIZE", "bio", &["bi_iter", "bi_size"]),
];

/// Offsets in bytes, by the name of the probes' setting.
#[derive(Debug)]
pub struct KernelLayout {
    pub offsets: Vec<(&'static str, u32)>,
}

impl KernelLayout {
    pub fn read(path: &Path) -> Result<KernelLayout, CaptureError> {
        let failed = |what: String| CaptureError::Layout { path: path.display().to_string(), what };
        let btf = open_btf(path).map_err(failed)?;
        Ok(KernelLayout { offsets: offsets_of(&btf, &MEMBERS).map_err(failed)? })
    }
}

/// Members that copying what is written needs besides.
const PAYLOAD_MEMBERS: [Member; 3] = [
    ("BIO_VECS", "bio", &["bi_io_vec"]),
    ("BIO_INDEX", "bio", &["bi_iter", "bi_idx"]),
    ("BIO_DONE", "bio", &["bi_iter", "bi_bvec_done"]),
];
/// The probes read a segment at once: its members, and where they have to be.
const SEGMENT: [(&str, u32); 3] = [("bv_page", 0), ("bv_len", 8), ("bv_offset", 12)];
const SEGMENT_BYTES: u32 = 16;
const PAGE_BYTES: u64 = 4096;

/// How the kernel describes the memory of a write.
#[derive(Clone, Debug)]
pub struct PayloadLayout {
    pub offsets: Vec<(&'static str, u32)>,
    /// Size of a page over the size of its description.
    pub page_factor: u64,
}

impl PayloadLayout {
    pub fn read(path: &Path) -> Result<PayloadLayout, CaptureError> {
        let failed = |what: String| CaptureError::Layout { path: path.display().to_string(), what };
        let btf = open_btf(path).map_err(failed)?;
        let mut offsets = offsets_of(&btf, &PAYLOAD_MEMBERS).map_err(failed)?;
        let crypt = offset_of_path(&btf, "bio", &["bi_crypt_context"]).unwrap_or(0);
        offsets.push(("BIO_CRYPT", crypt));
        let at_place = |(name, at): (&str, u32)| offset_of_path(&btf, "bio_vec", &[name]) == Some(at);
        if size_of_struct(&btf, "bio_vec") != Some(SEGMENT_BYTES) || !SEGMENT.into_iter().all(at_place) {
            return Err(failed("a struct bio_vec of page, length and offset".into()));
        }
        let page =
            size_of_struct(&btf, "page").map(u64::from).filter(|bytes| PAGE_BYTES.is_multiple_of(*bytes));
        let page = page.ok_or_else(|| failed("a struct page of 64 bytes or another power of two".into()))?;
        Ok(PayloadLayout { offsets, page_factor: PAGE_BYTES / page })
    }
}

/// Those of one struct follow each other, as finding a name takes a look at all of them.
pub fn offsets_of(btf: &Btf, members: &[Member]) -> Result<Vec<(&'static str, u32)>, String> {
    let mut offsets = Vec::new();
    for of_one in members.chunk_by(|(_, a, _), (_, b, _)| a == b) {
        let owner = of_one.first().and_then(|(_, owner, _)| find_struct(btf, owner));
        for (setting, name, members) in of_one {
            let offset = owner.as_ref().and_then(|owner| offset_within(btf, owner, members));
            offsets.push((*setting, offset.ok_or_else(|| format!("{name}.{}", members.join(".")))?));
        }
    }
    Ok(offsets)
}

fn size_of_struct(btf: &Btf, name: &str) -> Option<u32> {
    let Type::Struct(body) = find_struct(btf, name)? else { return None };
    u32::try_from(body.size()).ok()
}

pub fn offset_of_path(btf: &Btf, owner: &str, members: &[&str]) -> Option<u32> {
    offset_within(btf, &find_struct(btf, owner)?, members)
}

fn find_struct(btf: &Btf, name: &str) -> Option<Type> {
    btf.resolve_types_by_name(name).ok()?.into_iter().find(|found| matches!(found, Type::Struct(_)))
}

fn offset_within(btf: &Btf, owner: &Type, members: &[&str]) -> Option<u32> {
    let mut current = owner.clone();
    let mut offset = 0;
    for member in members {
        let (at, member_type) = find_member(btf, &current, member)?;
        offset += at;
        current = member_type;
    }
    Some(offset)
}

/// Looks through anonymous structs and unions.
fn find_member(btf: &Btf, owner: &Type, name: &str) -> Option<(u32, Type)> {
    let (Type::Struct(body) | Type::Union(body)) = owner else { return None };
    body.members.iter().find_map(|member| {
        let offset = member.bit_offset() / 8;
        let member_type = || Some(resolve_named(btf, btf.resolve_chained_type(member).ok()?));
        match btf.resolve_name(member) {
            Ok(found) if found == name => Some((offset, member_type()?)),
            Ok(found) if !found.is_empty() => None,
            // It may be qualified: `const struct { … };`
            _ => find_member(btf, &member_type()?, name).map(|(inner, t)| (offset + inner, t)),
        }
    })
}

/// A member's type may be a typedef or qualified: what is behind it.
fn resolve_named(btf: &Btf, mut current: Type) -> Type {
    loop {
        let next = match &current {
            Type::Typedef(t) => btf.resolve_chained_type(t),
            Type::Const(t) => btf.resolve_chained_type(t),
            Type::Volatile(t) => btf.resolve_chained_type(t),
            _ => return current,
        };
        match next {
            Ok(next) => current = next,
            Err(_) => return current,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_has_every_member() {
        let path = Path::new("/sys/kernel/btf/vmlinux");
        if !path.exists() {
            println!("SKIP: this kernel has no BTF");
            return;
        }
        let layout = KernelLayout::read(path).unwrap();
        assert_eq!(layout.offsets.len(), MEMBERS.len());
        let offset = |name| layout.offsets.iter().find(|(n, _)| *n == name).unwrap().1;
        // bi_iter starts with the sector, the size follows it.
        assert_eq!(offset("BIO_SIZE"), offset("BIO_SECTOR") + 8);
    }

    #[test]
    fn type_information_that_is_cut_short_is_refused() {
        let Ok(whole) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            println!("SKIP: this kernel has no BTF");
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("btf");
        for len in [0, 1, 23, 24, 4096, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..len]).unwrap();
            let error = KernelLayout::read(&path).unwrap_err().to_string();
            assert!(error.contains("type information"), "{len} bytes: {error}");
        }
    }

    #[test]
    fn a_kernel_without_btf_is_named() {
        let error = KernelLayout::read(Path::new("/nonexistent/btf")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/btf"), "{error}");
    }
}
