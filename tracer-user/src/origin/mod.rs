//! From changes of files to who changed what: paths, what a process did to a file within a while, bursts.

mod aggregate;
mod burst;
mod places;
mod tree;
mod watch;

pub use aggregate::Aggregate;
pub use burst::{Burst, Bursts};
pub use places::look_up;
pub use tree::{Paths, Tree};
pub use watch::{FileWatch, Seen};
