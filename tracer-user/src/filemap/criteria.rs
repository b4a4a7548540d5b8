use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use globset::GlobSet;

/// Which saved files are mapped.
#[derive(Clone, Debug)]
pub struct Criteria {
    /// Of paths below the watched directory; without any, all.
    pub include: Option<GlobSet>,
    pub exclude: GlobSet,
    pub size_min: u64,
    pub size_max: u64,
    pub owner: Option<u32>,
    /// It is mapped when it was not saved again for so long.
    pub quiet: Duration,
}

impl Criteria {
    pub fn wants_path(&self, path: &Path) -> bool {
        self.include.as_ref().is_none_or(|globs| globs.is_match(path)) && !self.exclude.is_match(path)
    }

    pub fn wants_file(&self, metadata: &Metadata) -> bool {
        metadata.is_file()
            && metadata.nlink() > 0
            && (self.size_min..=self.size_max).contains(&metadata.len())
            && self.owner.is_none_or(|owner| owner == metadata.uid())
    }
}
