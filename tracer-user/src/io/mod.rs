//! What stands between this process and the kernel's files and devices.

pub mod store;
