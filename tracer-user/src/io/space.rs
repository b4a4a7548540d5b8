use std::path::Path;

/// Bytes that can still be written to the file system `dir` is on.
pub fn free_bytes(dir: &Path) -> std::io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(dir)?;
    Ok(stat.blocks_available() * stat.fragment_size())
}
