//! Giving back a point of a journal, and proving that two volumes are the same. Needs no BPF, and no root beyond the
//! files. Readers here never write: `verify` opens both sides read-only, `replay` writes to the target alone, `rewind` to the
//! replica and its checkpoint.

mod digest;
mod origins;
mod point;
mod replay;
mod resolve;
mod rewind;
mod verify;
mod verify_hashes;

#[cfg(test)]
mod tests;

pub use origins::{BadGlob, Beginning, OriginQuery, PathGlob, beginning, files_at, origins};
pub use point::{FindError, find_point};
pub use replay::{ReplayError, ReplayOptions, ReplayOutcome, ReplayPlan, ReplayProgress, replay};
pub use resolve::{ResolveError, ResolvedPoint, resolve};
pub use rewind::{RewindError, RewindOptions, RewindOutcome, RewindPlan, RewindProgress, rewind};
pub use verify::{VerifyError, VerifyProgress, VerifyReport, verify};
pub use verify_hashes::{HashReport, VerifyHashesError, verify_hashes};
