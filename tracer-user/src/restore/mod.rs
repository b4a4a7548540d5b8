//! Giving back a point of a journal, and proving that two volumes are the same. Needs no BPF, and no root beyond the
//! files. Readers here never write: `verify` opens both sides read-only, `replay` writes to the target alone.

mod digest;
mod origins;
mod replay;
mod resolve;
mod verify;
mod verify_hashes;

#[cfg(test)]
mod tests;

pub use origins::{BadGlob, Beginning, BeginningError, OriginQuery, PathGlob, beginning, origins};
pub use replay::{ReplayError, ReplayOptions, ReplayOutcome, ReplayPlan, ReplayProgress, replay};
pub use resolve::{ResolveError, ResolvedPoint, resolve};
pub use verify::{VerifyError, VerifyProgress, VerifyReport, verify};
pub use verify_hashes::{HashReport, VerifyHashesError, verify_hashes};
