//! How much room a file system has left.

use std::io;
use std::path::Path;

/// What has to be free before a disk that was full is written to again, on a large file system.
const RESUME_BYTES: u64 = 64 << 20;
/// And on a small one: this part of it.
const RESUME_PART: u64 = 100;

/// The room of the file system that holds a path, for whom may not use the part reserved for root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub free_bytes: u64,
    pub total_bytes: u64,
}

impl Space {
    pub fn of(path: &Path) -> io::Result<Space> {
        let found = nix::sys::statvfs::statvfs(path)?;
        let block = found.fragment_size();
        Ok(Space {
            free_bytes: found.blocks_available().saturating_mul(block),
            total_bytes: found.blocks().saturating_mul(block),
        })
    }

    /// Whether what stopped for want of room may go on: with less it would stop again at once.
    pub fn is_enough_to_resume(self) -> bool {
        self.free_bytes >= RESUME_BYTES.min(self.total_bytes / RESUME_PART).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixty_four_mebibytes_or_a_hundredth_are_enough_to_resume() {
        for (free_bytes, total_bytes, enough) in [
            (64 << 20, 1 << 40, true),
            ((64 << 20) - 1, 1 << 40, false),
            (1 << 20, 100 << 20, true),
            ((1 << 20) - 1, 100 << 20, false),
            (0, 0, false),
            (0, 50, false),
        ] {
            let space = Space { free_bytes, total_bytes };
            assert_eq!(space.is_enough_to_resume(), enough, "{space:?}");
        }
    }

    #[test]
    fn the_room_of_a_directory_is_that_of_its_file_system() {
        let space = Space::of(&std::env::temp_dir()).unwrap();
        assert!(0 < space.free_bytes && space.free_bytes <= space.total_bytes, "{space:?}");
        assert!(Space::of(Path::new("/nowhere/at/all")).is_err());
    }
}
