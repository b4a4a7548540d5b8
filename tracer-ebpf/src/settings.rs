//! What the loader sets before the programs are loaded: the volume, and where the running kernel keeps things.

use crate::set_by_loader::settings;

settings! {
    /// The whole disk's number as the kernel has it: major << 20 | first minor.
    DISK_DEV: u32 = 0, disk_dev;
    /// The volume on the disk, in sectors: [start, end).
    VOLUME_START: u64 = 0, volume_start;
    VOLUME_END: u64 = 0, volume_end;
    /// log2 of the sectors that one bit of the dirty bitmap stands for.
    GRANULE_SHIFT: u32 = 7, granule_shift;

    // Offsets of members, from the running kernel's BTF.
    REQUEST_Q: u32 = 0, request_q;
    REQUEST_CMD_FLAGS: u32 = 0, request_cmd_flags;
    REQUEST_DATA_LEN: u32 = 0, request_data_len;
    REQUEST_SECTOR: u32 = 0, request_sector;
    REQUEST_BIO: u32 = 0, request_bio;
    QUEUE_DISK: u32 = 0, queue_disk;
    GENDISK_MAJOR: u32 = 0, gendisk_major;
    GENDISK_FIRST_MINOR: u32 = 0, gendisk_first_minor;
    BDEV_DISK: u32 = 0, bdev_disk;
    BIO_BDEV: u32 = 0, bio_bdev;
    BIO_OPF: u32 = 0, bio_opf;
    BIO_STATUS: u32 = 0, bio_status;
    BIO_NEXT: u32 = 0, bio_next;
    BIO_SECTOR: u32 = 0, bio_sector;
    BIO_SIZE: u32 = 0, bio_size;
    BIO_VECS: u32 = 0, bio_vecs;
    BIO_INDEX: u32 = 0, bio_index;
    BIO_DONE: u32 = 0, bio_done;
    /// 0 if this kernel has no inline encryption.
    BIO_CRYPT: u32 = 0, bio_crypt;

    /// 1: what is written is copied.
    PAYLOAD: u32 = 0, payload;
    /// Size of the ring.
    RING_BYTES: u64 = 0, ring_bytes;
    /// The kernel's map of all memory and its array of `struct page` both lie in the order of physical memory. So the bytes
    /// of a page stand at `PAGE_FACTOR` (page size / size of `struct page`) times the address of its `struct page` plus a
    /// constant.
    PAGE_FACTOR: u64 = 64, page_factor;
    PAGE_CONSTANT: u64 = 0, page_constant;

    // Offsets of the formatted tracepoints' fields, from tracefs; dev and sector stand first in all of them.
    FORMAT_DEV: u32 = 8, format_dev;
    FORMAT_SECTOR: u32 = 16, format_sector;
    FORMAT_NR_SECTOR: u32 = 24, format_nr_sector;
    FORMAT_QUEUE_RWBS: u32 = 28, format_queue_rwbs;
    FORMAT_COMPLETE_RWBS: u32 = 32, format_complete_rwbs;
    FORMAT_COMPLETE_ERROR: u32 = 28, format_complete_error;
}
