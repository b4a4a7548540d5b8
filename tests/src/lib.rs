//! Fixtures of the black-box tests: real devices of this machine, file systems on them, a workload whose result is
//! known without asking the kernel, and `afterwrite` as a user runs it.
//!
//! The tests need root, loop devices and zram, and a built binary: `cargo build -p afterwrite` (or AFTERWRITE_BIN).
//! Every test makes its own devices, so they run in parallel; on two cores the default number of threads is right.
//! AFTERWRITE_SECONDS is how long a test keeps its load up (default 4), AFTERWRITE_KILLS how often crash.rs kills
//! (default 20), AFTERWRITE_RUNS how many runs completions.rs makes (default 4), AFTERWRITE_INSTANTS how many instants
//! each test of instants.rs and databases.rs restores (default 6, and 2), AFTERWRITE_SEED what the random choices start
//! from, AFTERWRITE_PATIENCE for how many seconds a `protect`
//! is waited for, AFTERWRITE_TMP where images, journals and targets go (default /dev/shm).

mod aligned;
mod command;
mod devices;
mod disk;
mod filesystem;
mod http;
mod image;
mod instants;
mod legal;
mod load;
mod map;
mod measured;
mod midst;
mod pace;
mod postgres;
mod proof;
mod protect;
mod random;
mod real_work;
mod rounds;
mod service;
mod sqlite;
mod stamp;
mod stamped_device;
mod stamped_files;
mod stamped_ring;
mod synced;
mod told;
mod tree_load;
mod tree_manifest;
mod watchers;
pub mod ways;
mod workload;

pub use aligned::Aligned;
pub use command::{Finished, afterwrite, binary, copy_program, finish, run, wait_until};
pub use devices::{Device, Loop, Zram};
pub use disk::{Breakage, Disk};
pub use filesystem::{Fs, Mount, ensure_tracefs, mount_tmpfs};
pub use http::{http, http_ask, http_get};
pub use image::{assert_identical, blank_image, check_file_system, check_image, fill_random, fsck};
pub use instants::{Point, Stretch, prove, time_ns};
pub use legal::{Found, Illegal, Moment, Operation, Presence, Ticks, judge, now_ns};
pub use load::{Churn, Fio};
pub use map::{Ground, Map, filefrag, lines, mapped_extents};
pub use measured::{Counters, Measured, Writer, counters, cpu_seconds, median, risen};
pub use midst::{Midst, Pace, judge_in_the_midst, same_by_rsync, target_is_tree};
pub use postgres::Postgres;
pub use proof::Capture;
pub use protect::{Protect, Protection, is_in_kernel, says};
pub use random::{Random, seed};
pub use real_work::{build, clone_and_check_out, copy_by_rsync};
pub use rounds::Rounds;
pub use service::Service;
pub use sqlite::Sqlite;
pub use stamp::Stamp;
pub use stamped_device::{DeviceHistory, Region, write_one_at_a_time};
pub use stamped_files::{FileHistory, write_files};
pub use stamped_ring::write_many_at_a_time;
pub use synced::Sync;
pub use told::{Tells, ToldVolumes, status_of_volume};
pub use tree_load::{change_tree, change_tree_by_ring};
pub use tree_manifest::{same_trees, tree_manifest};
pub use watchers::Watcher;
pub use workload::{Manifest, Workload};

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

pub const MIB: u64 = 1 << 20;

/// How long anything that a test waits for may take on a busy machine before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The same of what a `protect` is waited for; emulated machines take longer.
pub(crate) fn patience() -> Duration {
    Duration::from_secs(number_from_env("AFTERWRITE_PATIENCE", PATIENCE.as_secs()))
}

/// How long a test keeps its load up.
pub fn load_seconds() -> u64 {
    number_from_env("AFTERWRITE_SECONDS", 4)
}

/// How many times crash.rs kills.
pub fn kills() -> u64 {
    number_from_env("AFTERWRITE_KILLS", 20)
}

/// How many instants a test restores: few by default, or that would be all that tests do.
pub fn instants(by_default: u64) -> u64 {
    number_from_env("AFTERWRITE_INSTANTS", by_default).max(1)
}

/// A directory of the test's own, removed when dropped.
pub fn scratch() -> Result<tempfile::TempDir> {
    let base = std::env::var_os("AFTERWRITE_TMP").map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from);
    let dir = tempfile::Builder::new().prefix("afterwrite-test-").tempdir_in(&base);
    dir.with_context(|| format!("cannot make a directory in {}", base.display()))
}

pub fn number_from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}
