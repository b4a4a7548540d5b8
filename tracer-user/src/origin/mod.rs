//! From changes of files to who changed what: paths, what a process did to a file within a while, bursts, and whether what they
//! wrote looks random.

mod aggregate;
mod burst;
mod places;
mod random;
mod tree;
mod watch;

pub use aggregate::Aggregate;
pub use burst::{Bursts, NewBurst};
pub use places::look_up;
pub use random::looks_random;
pub use tree::{Paths, Tree};
pub use watch::{FileWatch, Seen};
