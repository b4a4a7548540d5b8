//! What the loader sets before the programs are loaded: where the running kernel keeps things.

use crate::set_by_loader::settings;

settings! {
    /// 1: the end of the system call that made a change is reported, too.
    ENDS: u32 = 0, ends;
    /// 1: the programs are those of the rung `syscall`.
    SYSCALLS: u32 = 0, syscalls;
    /// 1: writes of io_uring that bypass the page cache are told by nothing.
    DIRECT_UNSEEN: u32 = 0, direct_unseen;
    /// The process whose changes are not reported: our own.
    OWN_PID: u32 = 0, own_pid;

    // Offsets of members, from the running kernel's BTF.
    FILE_INODE: u32 = 0, file_inode;
    FILE_DENTRY: u32 = 0, file_dentry;
    FILE_MODE: u32 = 0, file_mode;
    FILE_FLAGS: u32 = 0, file_flags;
    FILE_POS: u32 = 0, file_pos;
    INODE_NUMBER: u32 = 0, inode_number;
    INODE_GENERATION: u32 = 0, inode_generation;
    INODE_SB: u32 = 0, inode_sb;
    INODE_SIZE: u32 = 0, inode_size;
    INODE_ALIASES: u32 = 0, inode_aliases;
    SB_DEV: u32 = 0, sb_dev;
    DENTRY_PARENT: u32 = 0, dentry_parent;
    DENTRY_NAME: u32 = 0, dentry_name;
    DENTRY_INODE: u32 = 0, dentry_inode;
    DENTRY_SB: u32 = 0, dentry_sb;
    DENTRY_ALIAS: u32 = 0, dentry_alias;
    PATH_DENTRY: u32 = 8, path_dentry;
    KIOCB_FILE: u32 = 0, kiocb_file;
    KIOCB_POS: u32 = 0, kiocb_pos;
    KIOCB_FLAGS: u32 = 0, kiocb_flags;
    ITER_COUNT: u32 = 0, iter_count;
    FAULT_VMA: u32 = 0, fault_vma;
    FAULT_PGOFF: u32 = 0, fault_pgoff;
    VMA_FILE: u32 = 0, vma_file;
    OPEN_FLAG: u32 = 0, open_flag;
    ATTR_VALID: u32 = 0, attr_valid;
    ATTR_SIZE: u32 = 0, attr_size;
    RENAME_OLD: u32 = 0, rename_old;
    RENAME_NEW: u32 = 0, rename_new;
    RENAME_FLAGS: u32 = 0, rename_flags;
    TASK_LEADER: u32 = 0, task_leader;
    TASK_START: u32 = 0, task_start;
    TASK_COMM: u32 = 0, task_comm;
    TASK_FILES: u32 = 0, task_files;
    TASK_FS: u32 = 0, task_fs;
    FILES_TABLE: u32 = 0, files_table;
    TABLE_MAX: u32 = 0, table_max;
    TABLE_FILES: u32 = 0, table_files;
    FS_PWD_DENTRY: u32 = 0, fs_pwd_dentry;
    MAPPING_INODE: u32 = 0, mapping_inode;
    FOLIO_INDEX: u32 = 0, folio_index;
    FOLIO_FLAGS: u32 = 0, folio_flags;
    FOLIO_ORDER: u32 = 0, folio_order;
    /// The flag of a folio of several pages.
    PG_HEAD: u32 = 0, pg_head;
    URING_OPCODE: u32 = 0, uring_opcode;
    URING_COMMAND: u32 = 0, uring_command;
    URING_OPEN_FLAGS: u32 = 0, uring_open_flags;
    URING_FILE: u32 = 0, uring_file;
    URING_RESULT: u32 = 0, uring_result;
    /// 0: this kernel runs no 32-bit programs, or one can't tell.
    TASK_STATUS: u32 = 0, task_status;
}
