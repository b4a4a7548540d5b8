//! `cargo xtask COMMAND`: everything a developer or CI does with this repository.

mod build;
mod ci;
mod compare;
mod cpio;
mod cuts;
mod deb;
mod debian;
mod demo;
mod fsck;
mod fuzz;
mod honest_disk;
mod image;
mod kernel;
mod log_writes;
mod programs;
mod qemu;
mod run;
mod scenario;
mod seed;
mod setup;
mod tally;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set up, build and test Afterwrite.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing need; quick when all is there
    Setup,
    /// Build the afterwrite binary
    Build {
        /// Optimised, as it is meant to be used
        #[arg(long)]
        release: bool,
    },
    /// Make the Debian package, target/debian/afterwrite_VERSION_ARCHITECTURE.deb
    Deb,
    /// Protect a volume under a real workload and prove every mark made meanwhile (needs root)
    Demo(demo::Arguments),
    /// Run unit tests, tests over real devices, and scenarios in virtual machines (needs root)
    Test {
        /// Only tests and scenarios whose name contains one of these
        names: Vec<String>,
        /// Every scenario on every kernel it names, not only the default ones, and stress tests at full length
        #[arg(long)]
        all: bool,
    },
    /// Random faults against a protection under load, round after round, each ending in a comparison (needs root)
    Soak(programs::SoakArguments),
    /// Measure (needs root)
    #[command(subcommand)]
    Bench(programs::Bench),
    /// Run scenarios in virtual machines with Debian's stock kernels
    VmTest(vm::Arguments),
    /// Feed every decoder with mutated bytes for a minute each, two at a time
    Fuzz(fuzz::Arguments),
    /// The gate: format, lints, documentation, the demo, then all that `test` runs
    Ci {
        /// Licences of dependencies, fuzz targets under libFuzzer, and `test --all` besides: hours
        #[arg(long)]
        all: bool,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Setup => setup::setup().and_then(|()| setup::setup_cargo_fuzz()),
        Command::Build { release } => setup::setup().and_then(|()| build::afterwrite(release).map(|_| ())),
        Command::Deb => deb::command(),
        Command::Demo(arguments) => demo::command(&arguments),
        Command::Test { names, all } => test::test(&names, all),
        Command::Soak(arguments) => programs::soak(&arguments),
        Command::Bench(bench) => programs::bench(&bench),
        Command::VmTest(arguments) => vm::command(&arguments),
        Command::Fuzz(arguments) => fuzz::fuzz(&arguments),
        Command::Ci { all } => ci::ci(all),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            // 1: checked and found wrong; 2: could not run.
            if error.is::<tally::Failures>() { ExitCode::from(1) } else { ExitCode::from(2) }
        }
    }
}
