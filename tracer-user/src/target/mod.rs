//! Where a volume is written to: a raw image file (sparse) or a block device.
//!
//! `TargetWriter` is the only thing of Afterwrite that writes to a target. It goes through the page cache, so `read_at`
//! sees what was written, and nothing counts as written before `sync` returned. It knows nothing of journals.

mod coalescer;
mod error;
mod medium;
mod open;
mod writer;

#[cfg(test)]
pub(crate) mod faulty;

pub use coalescer::{Coalescer, Op};
pub use error::TargetError;
pub(crate) use medium::{Kind as MediumKind, Medium, RawMedium};
pub use open::OpenTarget;
pub(crate) use open::look;
pub use writer::TargetWriter;
