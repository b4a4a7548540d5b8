use crate::files::FsError;
use crate::journal::View;
use crate::model::ByteRange;

/// Bytes that a file system may be on.
pub trait Volume {
    fn size_bytes(&self) -> u64;

    /// Fills `buffer` from byte `start` on, which are on the volume.
    fn read_at(&mut self, start: u64, buffer: &mut [u8]) -> Result<(), FsError>;
}

/// All of a volume, or a partition of it.
pub struct Part {
    view: View,
    range: ByteRange,
}

impl Part {
    pub fn whole(view: View) -> Part {
        let range = ByteRange::new(0, view.size_bytes());
        Part { view, range }
    }

    /// The same volume, of which this is seen; cut to what there is.
    pub fn narrowed(self, range: ByteRange) -> Part {
        let end = self.view.size_bytes();
        Part { range: ByteRange::new(range.start.min(end), range.end.min(end)), ..self }
    }

    pub fn range(&self) -> ByteRange {
        self.range
    }
}

impl Volume for Part {
    fn size_bytes(&self) -> u64 {
        self.range.len()
    }

    fn read_at(&mut self, start: u64, buffer: &mut [u8]) -> Result<(), FsError> {
        Ok(self.view.read_at(self.range.start + start, buffer)?)
    }
}
