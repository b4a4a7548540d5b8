//! From changes of files to who changed what: paths, what a process did to a file within a while, bursts and what they made of
//! files, which files are to be looked up on the volume.

mod aggregate;
mod burst;
mod content;
mod places;
mod placing;
mod tree;
mod verdict;
mod watch;

pub use aggregate::Aggregate;
pub use burst::{Bursts, Rewritten, Suspicion};
pub use content::{BYTES_MAX, Content};
pub use placing::{Placing, Unplaced};
pub use tree::{Paths, Tree};
pub use verdict::Comparison;
pub use watch::{FileWatch, Seen};
