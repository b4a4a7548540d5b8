//! The nouns of Afterwrite as plain values. No clock, no I/O, no thread: anything may use this module.

mod activity;
mod granule;
mod group;
mod identity;
mod origin;
mod point;
mod range;
mod record;
mod tree;

pub use activity::{Activity, ActivityShown, HISTORY_STEP_S, MAP_CELLS};
pub use granule::{GranuleHash, Granules};
pub use group::{GROUP_PREFIX, GroupMarkName};
pub use identity::{Lsn, Timestamp, VolumeId, VolumeInfo};
pub use origin::{
    FileBurst, FileChanges, FileId, FileOp, FileOps, FilePlaces, Origin, OriginUnknown, PlacedExtent, Process,
};
pub use point::{MarkId, Point, PointClass, Stretch, Target as PointTarget, Timeline};
pub use range::{ByteRange, ByteRangeSet};
pub use record::{Mark, Record, RecordBody};
pub use tree::{Attributes, FileTime, NodeId, NodeKind, SourceInode, TreeChange};
