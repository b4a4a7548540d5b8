//! Where the running kernel keeps what the probes of file systems read.

use btf_rs::{Btf, EnumMember, Type};

use crate::capture::CaptureError;
use crate::capture::layout::{Member, kernel_btf_path, offset_of_path, offsets_of, open_btf};

const MEMBERS: [Member; 39] = [
    ("FILE_INODE", "file", &["f_inode"]),
    ("FILE_DENTRY", "file", &["f_path", "dentry"]),
    ("FILE_MODE", "file", &["f_mode"]),
    ("FILE_FLAGS", "file", &["f_flags"]),
    ("FILE_POS", "file", &["f_pos"]),
    ("INODE_NUMBER", "inode", &["i_ino"]),
    ("INODE_GENERATION", "inode", &["i_generation"]),
    ("INODE_SB", "inode", &["i_sb"]),
    ("INODE_SIZE", "inode", &["i_size"]),
    ("INODE_ALIASES", "inode", &["i_dentry"]),
    ("SB_DEV", "super_block", &["s_dev"]),
    ("DENTRY_PARENT", "dentry", &["d_parent"]),
    ("DENTRY_NAME", "dentry", &["d_name", "name"]),
    ("DENTRY_INODE", "dentry", &["d_inode"]),
    ("DENTRY_SB", "dentry", &["d_sb"]),
    ("DENTRY_ALIAS", "dentry", &["d_u", "d_alias"]),
    ("PATH_DENTRY", "path", &["dentry"]),
    ("KIOCB_FILE", "kiocb", &["ki_filp"]),
    ("KIOCB_POS", "kiocb", &["ki_pos"]),
    ("KIOCB_FLAGS", "kiocb", &["ki_flags"]),
    ("ITER_COUNT", "iov_iter", &["count"]),
    ("FAULT_VMA", "vm_fault", &["vma"]),
    ("FAULT_PGOFF", "vm_fault", &["pgoff"]),
    ("VMA_FILE", "vm_area_struct", &["vm_file"]),
    ("OPEN_FLAG", "open_flags", &["open_flag"]),
    ("ATTR_VALID", "iattr", &["ia_valid"]),
    ("ATTR_SIZE", "iattr", &["ia_size"]),
    ("RENAME_OLD", "renamedata", &["old_dentry"]),
    ("RENAME_NEW", "renamedata", &["new_dentry"]),
    ("RENAME_FLAGS", "renamedata", &["flags"]),
    ("TASK_LEADER", "task_struct", &["group_leader"]),
    ("TASK_START", "task_struct", &["start_boottime"]),
    ("TASK_COMM", "task_struct", &["comm"]),
    ("TASK_FILES", "task_struct", &["files"]),
    ("TASK_FS", "task_struct", &["fs"]),
    ("FILES_TABLE", "files_struct", &["fdt"]),
    ("TABLE_MAX", "fdtable", &["max_fds"]),
    ("TABLE_FILES", "fdtable", &["fd"]),
    ("FS_PWD_DENTRY", "fs_struct", &["pwd", "dentry"]),
];
const FALLBACK_MEMBERS: [Member; 8] = [
    ("MAPPING_INODE", "address_space", &["host"]),
    ("FOLIO_INDEX", "folio", &["index"]),
    ("FOLIO_FLAGS", "folio", &["flags"]),
    ("URING_OPCODE", "io_kiocb", &["opcode"]),
    ("URING_COMMAND", "io_kiocb", &["cmd"]),
    ("URING_OPEN_FLAGS", "io_open", &["how", "flags"]),
    ("URING_FILE", "io_kiocb", &["file"]),
    ("URING_RESULT", "io_kiocb", &["cqe", "res"]),
];

/// What this kernel's type information says.
pub struct VfsLayout {
    pub offsets: Vec<(&'static str, u32)>,
    btf: Btf,
}

impl VfsLayout {
    pub fn read() -> Result<VfsLayout, CaptureError> {
        let path = kernel_btf_path();
        let failed = |what: String| CaptureError::Layout { path: path.display().to_string(), what };
        let btf = open_btf(&path).map_err(failed)?;
        let mut offsets = offsets_of(&btf, &MEMBERS).map_err(failed)?;
        offsets.extend(offsets_of(&btf, &FALLBACK_MEMBERS).map_err(failed)?);
        // Not there on other processors: then there are no 32-bit programs to be told.
        let status = offset_of_path(&btf, "task_struct", &["thread_info", "status"]).unwrap_or(0);
        offsets.push(("TASK_STATUS", status));
        // A byte of its own, until it became the lowest of the flags of the second page.
        let order = offset_of_path(&btf, "folio", &["_folio_order"])
            .or_else(|| offset_of_path(&btf, "folio", &["_flags_1"]))
            .ok_or_else(|| failed("folio._flags_1".into()))?;
        offsets.push(("FOLIO_ORDER", order));
        let head = enumerator(&btf, "pageflags", "PG_head").ok_or_else(|| failed("PG_head".into()))?;
        offsets.push(("PG_HEAD", head));
        Ok(VfsLayout { offsets, btf })
    }

    /// Whether the kernel has a function of this name that is not inlined everywhere.
    pub fn has_function(&self, name: &str) -> bool {
        let found = self.btf.resolve_types_by_name(name).unwrap_or_default();
        found.iter().any(|found| matches!(found, Type::Func(_)))
    }

    pub fn has_tracepoint(&self, name: &str) -> bool {
        let found = self.btf.resolve_types_by_name(&format!("btf_trace_{name}")).unwrap_or_default();
        found.iter().any(|found| matches!(found, Type::Typedef(_)))
    }
}

fn enumerator(btf: &Btf, owner: &str, name: &str) -> Option<u32> {
    btf.resolve_types_by_name(owner).ok()?.into_iter().find_map(|found| match found {
        Type::Enum(body) => {
            let named = |member: &&EnumMember| btf.resolve_name(*member).is_ok_and(|found| found == name);
            body.members.iter().find(named).map(EnumMember::val)
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_has_what_the_probes_of_file_systems_read() {
        if !kernel_btf_path().exists() {
            println!("SKIP: this kernel has no BTF");
            return;
        }
        let layout = VfsLayout::read().unwrap();
        assert!(layout.has_function("vfs_unlink") && layout.has_tracepoint("sys_enter"));
        assert!(!layout.has_function("no_such_function") && !layout.has_tracepoint("no_such_tracepoint"));
    }
}
