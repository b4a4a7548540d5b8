//! What random choices start from, so that they can be had again.

use anyhow::{Context, Result};

const VARIABLE: &str = "AFTERWRITE_SEED";

/// `AFTERWRITE_SEED` if it is set, else a new one. Whoever uses it prints it.
pub fn seed() -> Result<u64> {
    match std::env::var(VARIABLE) {
        Ok(text) => text.parse().with_context(|| format!("{VARIABLE}={text}: a seed is a number")),
        Err(_) => Ok(fastrand::u64(..)),
    }
}
