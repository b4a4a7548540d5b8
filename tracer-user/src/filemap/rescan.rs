//! Finds what was saved while nobody was told, by the files' times.

use std::io;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::OFlags;

use crate::filemap::MapError;
use crate::filemap::record::Why;
use crate::filemap::watch::Watcher;
use crate::model::FileTime;
use crate::tree::inode::{changed, modified};

/// A change's time is that of the clock's last tick, and the clock may be set back a little.
const MARGIN_NS: u64 = 2_000_000_000;

/// Maps every file below the watched directory that is not as its record says, or has none and changed since `since_ns`. Says
/// how many.
pub fn rescan(watcher: &mut Watcher<'_>, since_ns: u64) -> Result<u64, MapError> {
    let since = since_ns.saturating_sub(MARGIN_NS);
    let (mut mapped, mut open) = (0, vec![Vec::new()]);
    let path = watcher.watched.source.path().to_owned();
    let failed = |source| MapError::io("look through", &path)(source);
    while let Some(dir) = open.pop() {
        let at = match dir.is_empty() {
            true => path.clone(),
            false => path.join(std::ffi::OsStr::from_bytes(&dir)),
        };
        let (handle, names) = match list(watcher, &at) {
            Ok(listed) => listed,
            // Gone meanwhile, or something else is there now.
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(failed(error)),
        };
        let Some(opened) = watcher.open(&handle, OFlags::PATH).map_err(failed)? else { continue };
        for name in names {
            let Some(found) = watcher.watched.source.look(&opened, &name).map_err(failed)? else { continue };
            let below = if dir.is_empty() { name.clone() } else { [&dir[..], b"/", &name].concat() };
            if found.metadata.is_dir() {
                open.push(below);
            } else if found.metadata.is_file() {
                let times = [changed(&found.metadata), modified(&found.metadata)];
                let recent = || times.into_iter().any(|time| nanos(time) >= since);
                let as_known = watcher.is_as_known(&found.handle, found.metadata.len(), times[0]);
                if as_known.map_or_else(recent, |as_known| !as_known) {
                    mapped += u64::from(watcher.saved(Why::Rescan, &found.handle, &handle, &name)?);
                }
            }
        }
    }
    Ok(mapped)
}

/// The directory's handle, and the names in it.
fn list(watcher: &Watcher<'_>, path: &std::path::Path) -> io::Result<(Vec<u8>, Vec<Vec<u8>>)> {
    let dir = crate::tree::inode::open_path(rustix::fs::CWD, path.as_os_str().as_bytes())?;
    let handle = crate::tree::inode::handle_of(&dir)?;
    let names = watcher.watched.source.list(&handle)?;
    Ok((handle, names))
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ESTALE))
}

pub fn nanos(time: FileTime) -> u64 {
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(time.nanos.into())
}
