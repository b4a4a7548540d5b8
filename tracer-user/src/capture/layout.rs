//! Where the running kernel keeps the members our probes read: from its BTF, at load time.

use std::path::{Path, PathBuf};

use btf_rs::{Btf, Type};

use crate::capture::CaptureError;

/// The kernel's BTF; AFTERWRITE_BTF names another file, for tests and for kernels that keep it elsewhere.
pub fn kernel_btf_path() -> PathBuf {
    std::env::var_os("AFTERWRITE_BTF").map_or_else(|| PathBuf::from("/sys/kernel/btf/vmlinux"), PathBuf::from)
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
        let btf =
            Btf::from_file(path).map_err(|error| failed(format!("readable type information ({error})")))?;
        Ok(KernelLayout { offsets: offsets_of(&btf, &MEMBERS).map_err(failed)? })
    }
}

/// Members that copying what is written needs besides.
const PAYLOAD_MEMBERS: [Member; 6] = [
    ("BIO_VECS", "bio", &["bi_io_vec"]),
    ("BIO_INDEX", "bio", &["bi_iter", "bi_idx"]),
    ("BIO_DONE", "bio", &["bi_iter", "bi_bvec_done"]),
    ("VEC_PAGE", "bio_vec", &["bv_page"]),
    ("VEC_LEN", "bio_vec", &["bv_len"]),
    ("VEC_OFFSET", "bio_vec", &["bv_offset"]),
];
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
        let btf =
            Btf::from_file(path).map_err(|error| failed(format!("readable type information ({error})")))?;
        let mut offsets = offsets_of(&btf, &PAYLOAD_MEMBERS).map_err(failed)?;
        let crypt = offset_of_path(&btf, "bio", &["bi_crypt_context"]).unwrap_or(0);
        let vec_bytes = size_of_struct(&btf, "bio_vec").ok_or_else(|| failed("bio_vec".into()))?;
        offsets.extend([("BIO_CRYPT", crypt), ("VEC_BYTES", vec_bytes)]);
        let page =
            size_of_struct(&btf, "page").map(u64::from).filter(|bytes| PAGE_BYTES.is_multiple_of(*bytes));
        let page = page.ok_or_else(|| failed("a struct page of 64 bytes or another power of two".into()))?;
        Ok(PayloadLayout { offsets, page_factor: PAGE_BYTES / page })
    }
}

pub fn offsets_of(btf: &Btf, members: &[Member]) -> Result<Vec<(&'static str, u32)>, String> {
    let offset = |(setting, owner, members): &Member| {
        offset_of_path(btf, owner, members)
            .map(|offset| (*setting, offset))
            .ok_or_else(|| format!("{owner}.{}", members.join(".")))
    };
    members.iter().map(offset).collect()
}

fn size_of_struct(btf: &Btf, name: &str) -> Option<u32> {
    btf.resolve_types_by_name(name).ok()?.into_iter().find_map(|found| match found {
        Type::Struct(body) => u32::try_from(body.size()).ok(),
        _ => None,
    })
}

pub fn offset_of_path(btf: &Btf, owner: &str, members: &[&str]) -> Option<u32> {
    let types = btf.resolve_types_by_name(owner).ok()?;
    let mut current = types.into_iter().find(|t| matches!(t, Type::Struct(_)))?;
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
        let member_type = btf.resolve_chained_type(member).ok()?;
        match btf.resolve_name(member) {
            Ok(found) if found == name => Some((offset, resolve_named(btf, member_type))),
            Ok(found) if !found.is_empty() => None,
            // It may be qualified: `const struct { … };`
            _ => {
                find_member(btf, &resolve_named(btf, member_type), name).map(|(inner, t)| (offset + inner, t))
            }
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
    fn a_kernel_without_btf_is_named() {
        let error = KernelLayout::read(Path::new("/nonexistent/btf")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/btf"), "{error}");
    }
}
