//! From changes of files to who changed what: paths, what a process did to a file within a while, bursts, and whether what they
//! wrote looks random, which files are to be looked up on the volume.

mod aggregate;
mod burst;
mod places;
mod placing;
mod random;
mod tree;
mod watch;

pub use aggregate::Aggregate;
pub use burst::{Bursts, NewBurst};
pub use placing::{Placing, Unplaced};
pub use random::looks_random;
pub use tree::{Paths, Tree};
pub use watch::{FileWatch, Seen};
