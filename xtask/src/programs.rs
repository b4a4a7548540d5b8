//! `cargo xtask soak` and `cargo xtask bench`: programs of `tests/` that run for long, so not as tests.

use std::os::unix::process::CommandExt;

use anyhow::{Context, Result, bail};

use crate::{build, run, setup};

#[derive(clap::Args)]
pub struct SoakArguments {
    /// For how long; the last round is finished, and there is one at least
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Of the first round, the next one has the next number; default: the clock
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(clap::Subcommand)]
pub enum Bench {
    /// Start after a SIGKILL against start with a full compare, on a volume of 8 GiB with 100 MiB changed
    Restart {
        /// How often each is measured
        #[arg(long, default_value_t = 3)]
        repeats: u64,
        /// How much of the volume is filled with random bytes; three times that is needed in /var/tmp or AFTERWRITE_TMP
        #[arg(long, value_name = "GIB", default_value_t = 2)]
        fill_gib: u64,
    },
    /// How long an earlier point takes by `rewind` and by `replay`, from the whole history and from a folded one
    Rewind {
        /// How large the volume is; it is filled
        #[arg(long, default_value_t = 4)]
        volume_gib: u64,
        /// How often all of it is written again before
        #[arg(long, default_value_t = 0)]
        rewrites: u64,
        /// In how many hundredths of the volume the last changes are
        #[arg(long, default_value_t = 100)]
        within: u64,
        /// How often each is measured
        #[arg(long, default_value_t = 3)]
        repeats: u64,
    },
    /// What capture costs a writer, beside blktrace and bpftrace, on zram and on loop over memory and disk
    Capture {
        /// How often each is measured, in turns
        #[arg(long, default_value_t = 5)]
        rounds: u64,
        /// How long the writer writes each time
        #[arg(long, default_value_t = 4)]
        seconds: u64,
        /// Only these volumes: zram, loop-memory, loop-disk
        volumes: Vec<String>,
    },
    /// What a writer gets done while the volume is copied for the first time, with and without pauses and with a limit
    FirstCopy {
        /// How often each is measured, in turns
        #[arg(long, default_value_t = 3)]
        rounds: u64,
        /// How long the writer writes each time
        #[arg(long, default_value_t = 4)]
        seconds: u64,
        /// How large the volume is; twice that is needed in memory, or in AFTERWRITE_TMP
        #[arg(long, default_value_t = 768)]
        volume_mib: u64,
    },
    /// What seeing changes of files costs who makes them, beside inotifywait and lsyncd, on tmpfs and ext4
    Vfs {
        /// How often each is measured, in turns
        #[arg(long, default_value_t = 5)]
        rounds: u64,
        /// How long each time
        #[arg(long, default_value_t = 2)]
        seconds: u64,
    },
    /// How long after a save its map is in the cache, beside inotifywait and lsyncd, on ext4 and xfs
    Map {
        /// How many saves are measured each time
        #[arg(long, default_value_t = 4000)]
        saves: u64,
    },
    /// What tree protection makes of real loads: a clone, a build, a copy of /usr, small files, a large one, beside rsync and lsyncd
    Trees {
        /// How many small files
        #[arg(long, default_value_t = 200_000)]
        files: u64,
        /// How large the large file is, a fifth of it data; that and three times /usr is needed in /var/tmp or AFTERWRITE_TMP
        #[arg(long, default_value_t = 10)]
        large_gib: u64,
        /// The directory that is copied into the tree
        #[arg(long, default_value = "/usr")]
        copy_of: String,
    },
    /// What one service takes for many volumes under a steady load, how far it is behind, and that it loses nothing
    Many {
        /// Half of them with ext4; each takes 200 MB in memory, or in AFTERWRITE_TMP
        #[arg(long, default_value_t = 64)]
        volumes: u64,
        /// For how long they are written
        #[arg(long, default_value_t = 30)]
        minutes: u64,
        /// How many writes a second all of them get together
        #[arg(long, default_value_t = 500)]
        writes: u64,
    },
    /// Up to which rate of writes rings of 1, 4, 16 and 64 MiB hold what capture sees, and the processor time it takes
    Ring {
        /// How long each rate is kept up
        #[arg(long, default_value_t = 4)]
        seconds: u64,
    },
}

pub fn soak(arguments: &SoakArguments) -> Result<()> {
    let mut settings = vec![("AFTERWRITE_MINUTES", arguments.minutes.to_string())];
    settings.extend(arguments.seed.map(|seed| ("AFTERWRITE_SEED", seed.to_string())));
    become_program("soak", &settings)
}

pub fn bench(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Restart { repeats, fill_gib } => {
            let mut settings = vec![
                ("AFTERWRITE_REPEATS", repeats.to_string()),
                ("AFTERWRITE_FILL_GIB", fill_gib.to_string()),
            ];
            settings.extend(on_a_disk());
            become_program("restart", &settings)
        }
        Bench::Rewind { volume_gib, rewrites, within, repeats } => {
            let mut settings = vec![
                ("AFTERWRITE_VOLUME_GIB", volume_gib.to_string()),
                ("AFTERWRITE_REWRITES", rewrites.to_string()),
                ("AFTERWRITE_WITHIN", within.to_string()),
                ("AFTERWRITE_REPEATS", repeats.to_string()),
            ];
            settings.extend(on_a_disk());
            become_program("rewind", &settings)
        }
        Bench::Capture { rounds, seconds, volumes } => {
            setup::setup_tracers()?;
            let settings = [
                ("AFTERWRITE_ROUNDS", rounds.to_string()),
                ("AFTERWRITE_SECONDS", seconds.to_string()),
                ("AFTERWRITE_VOLUMES", volumes.join(" ")),
            ];
            become_program("capture", &settings)
        }
        Bench::FirstCopy { rounds, seconds, volume_mib } => {
            let settings = [
                ("AFTERWRITE_ROUNDS", rounds.to_string()),
                ("AFTERWRITE_SECONDS", seconds.to_string()),
                ("AFTERWRITE_VOLUME_MIB", volume_mib.to_string()),
            ];
            become_program("first_copy", &settings)
        }
        Bench::Vfs { rounds, seconds } => {
            setup::setup_followers()?;
            let settings =
                [("AFTERWRITE_ROUNDS", rounds.to_string()), ("AFTERWRITE_SECONDS", seconds.to_string())];
            become_program("vfs", &settings)
        }
        Bench::Map { saves } => {
            setup::setup_followers()?;
            become_program("map", &[("AFTERWRITE_SAVES", saves.to_string())])
        }
        Bench::Trees { files, large_gib, copy_of } => {
            setup::setup_followers()?;
            let mut settings = vec![
                ("AFTERWRITE_FILES", files.to_string()),
                ("AFTERWRITE_LARGE_GIB", large_gib.to_string()),
                ("AFTERWRITE_COPY_OF", copy_of.clone()),
                ("AFTERWRITE_PATIENCE", "1800".into()),
            ];
            settings.extend(on_a_disk());
            become_program("trees_bench", &settings)
        }
        Bench::Many { volumes, minutes, writes } => {
            let settings = [
                ("AFTERWRITE_VOLUMES", volumes.to_string()),
                ("AFTERWRITE_MINUTES", minutes.to_string()),
                ("AFTERWRITE_WRITES", writes.to_string()),
            ];
            become_program("many", &settings)
        }
        Bench::Ring { seconds } => become_program("ring", &[("AFTERWRITE_SECONDS", seconds.to_string())]),
    }
}

/// Unless it is named, a disk, where the tests' default is memory.
fn on_a_disk() -> Option<(&'static str, String)> {
    std::env::var_os("AFTERWRITE_TMP").is_none().then(|| ("AFTERWRITE_TMP", "/var/tmp".into()))
}

/// Builds the program and runs it instead of this one, so that Ctrl-C is for it alone to handle.
fn become_program(name: &str, settings: &[(&str, String)]) -> Result<()> {
    if !run::is_root() {
        bail!(
            "it makes devices, mounts and loads BPF programs, which needs root: run `sudo -E cargo xtask {name}`"
        );
    }
    setup::setup()?;
    let afterwrite = build::afterwrite(true)?;
    run::run(run::cargo().args(["build", "--package", "afterwrite-tests", "--bin", name]))?;
    let mut program = std::process::Command::new(run::target_dir().join("debug").join(name));
    program.env("AFTERWRITE_BIN", afterwrite).envs(settings.iter().map(|(name, value)| (name, value)));
    Err(program.exec()).with_context(|| format!("cannot run {name}"))
}
