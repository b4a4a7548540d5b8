//! The one binary's commands. Arguments only parse; each command calls one library function and says what came of it:
//! the result on stdout, everything for people on stderr. Exit codes: 0 done, 1 checked and found wrong, 2 could not
//! run.
//!
//! A command of the `capture` feature is one more variant of `Command` under `#[cfg(feature = "capture")]`, in a file of
//! its own with an `Args` struct and its `run`.

#[cfg(feature = "capture")]
mod changes;
mod completions;
#[cfg(feature = "capture")]
mod config;
mod copy;
#[cfg(feature = "capture")]
mod detach;
#[cfg(feature = "capture")]
mod doctor;
#[cfg(feature = "capture")]
mod early;
mod files;
#[cfg(all(feature = "capture", any(test, fuzzing)))]
pub(crate) mod fuzzing;
#[cfg(feature = "capture")]
mod init;
mod journal;
mod log;
mod map;
#[cfg(feature = "capture")]
mod map_fsync;
#[cfg(feature = "capture")]
mod mark;
mod output;
mod plan;
mod points;
mod progress;
#[cfg(feature = "capture")]
mod protect;
#[cfg(feature = "capture")]
mod protect_tree;
mod prune;
mod replay;
mod restore_file;
mod retention;
mod rewind;
#[cfg(feature = "capture")]
mod run;
#[cfg(feature = "capture")]
mod serve;
#[cfg(feature = "capture")]
mod service;
#[cfg(feature = "capture")]
mod status;
#[cfg(feature = "capture")]
mod status_group;
#[cfg(feature = "capture")]
mod status_table;
#[cfg(feature = "capture")]
mod status_tree;
#[cfg(feature = "capture")]
mod status_unit;
mod tree;
mod verify;
#[cfg(feature = "capture")]
mod watch;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::io::log_line::{self, Priority};

pub use output::Output;
pub use progress::{Progress, Unit};

/// Continuous protection of Linux block volumes without a kernel module.
#[derive(Debug, Parser)]
#[command(name = "afterwrite", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[cfg(feature = "capture")]
    Doctor(doctor::DoctorArgs),
    #[cfg(feature = "capture")]
    Protect(protect::ProtectArgs),
    #[cfg(feature = "capture")]
    Init(init::Args),
    #[cfg(feature = "capture")]
    Run(run::Args),
    #[cfg(feature = "capture")]
    #[command(subcommand)]
    Config(run::ConfigCommand),
    #[cfg(feature = "capture")]
    Mark(mark::MarkArgs),
    #[cfg(feature = "capture")]
    Status(status::StatusArgs),
    #[cfg(feature = "capture")]
    Pause(service::UnitArgs),
    #[cfg(feature = "capture")]
    Resume(service::ResumeArgs),
    #[cfg(feature = "capture")]
    Reload(service::ReloadArgs),
    #[cfg(feature = "capture")]
    Serve(serve::ServeArgs),
    #[cfg(feature = "capture")]
    Detach(detach::DetachArgs),
    #[cfg(feature = "capture")]
    Attach(early::AttachArgs),
    #[cfg(feature = "capture")]
    Finish(early::FinishArgs),
    #[cfg(feature = "capture")]
    Changes(changes::Args),
    Map(map::Args),
    Copy(copy::Args),
    Points(points::Args),
    Log(log::Args),
    Files(files::Args),
    RestoreFile(restore_file::Args),
    Replay(replay::Args),
    Rewind(rewind::Args),
    Verify(verify::Args),
    #[command(subcommand)]
    Journal(journal::Command),
    Completions(completions::CompletionsArgs),
    Man(completions::ManArgs),
    /// The process that holds file systems frozen for `protect`, and thaws them whatever happens
    #[cfg(feature = "capture")]
    #[command(hide = true)]
    Freezer,
}

/// What a command that could run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Done,
    /// It checked something and found it wrong: exit code 1.
    Wrong,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 checked and found wrong, 2 could not run.";

/// Parses the arguments of the process and runs the command.
pub fn main() -> ExitCode {
    let mut logger = env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn"));
    if log_line::in_journal() {
        // Which adds the time.
        logger.format(|out, record| {
            let priority = Priority::of_level(record.level());
            writeln!(out, "<{}>{}", priority as u8, record.args())
        });
    }
    logger.init();
    let cli = Cli::parse();
    let mut out = Output::stdout();
    let result = run(cli, &mut out).and_then(|outcome| {
        out.finish()?;
        Ok(outcome)
    });
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Wrong) => ExitCode::from(1),
        Err(error) => {
            log_line::say(Priority::Error, &format!("afterwrite: {}", chain(&error)));
            ExitCode::from(2)
        }
    }
}

fn run(cli: Cli, out: &mut Output) -> anyhow::Result<Outcome> {
    match cli.command {
        #[cfg(feature = "capture")]
        Command::Doctor(args) => doctor::run(&args, out),
        #[cfg(feature = "capture")]
        Command::Protect(args) => protect::run(args),
        #[cfg(feature = "capture")]
        Command::Init(args) => init::run(&args, out),
        #[cfg(feature = "capture")]
        Command::Run(args) => run::run(&args),
        #[cfg(feature = "capture")]
        Command::Config(command) => run::config(&command, out),
        #[cfg(feature = "capture")]
        Command::Pause(args) => service::pause(args),
        #[cfg(feature = "capture")]
        Command::Resume(args) => service::resume(args),
        #[cfg(feature = "capture")]
        Command::Reload(_) => service::reload(),
        #[cfg(feature = "capture")]
        Command::Mark(args) => mark::run(&args, out),
        #[cfg(feature = "capture")]
        Command::Status(args) => status::run(&args, out),
        #[cfg(feature = "capture")]
        Command::Serve(args) => serve::run(&args),
        #[cfg(feature = "capture")]
        Command::Detach(args) => detach::run(&args, out),
        #[cfg(feature = "capture")]
        Command::Attach(args) => early::attach_all(&args, out),
        #[cfg(feature = "capture")]
        Command::Finish(args) => early::finish_all(&args),
        #[cfg(feature = "capture")]
        Command::Freezer => Ok(crate::collect::serve_freezer().map(|()| Outcome::Done)?),
        #[cfg(feature = "capture")]
        Command::Changes(args) => changes::run(&args, out),
        Command::Map(args) => map::run(&args, out),
        Command::Copy(args) => copy::run(&args, out),
        Command::Log(args) => log::run(&args, out),
        Command::Points(args) => points::run(&args, out),
        Command::Files(args) => files::run(&args, out),
        Command::RestoreFile(args) => restore_file::run(&args, out),
        Command::Replay(args) => replay::run(&args, out),
        Command::Rewind(args) => rewind::run(&args, out),
        Command::Verify(args) => verify::run(&args, out),
        Command::Journal(command) => journal::run(&command, out),
        Command::Completions(args) => completions::completions(&args, out),
        Command::Man(args) => completions::man(&args),
    }
}

/// Of what this kernel may or may not be able to do.
#[cfg(feature = "capture")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Whether {
    On,
    Off,
}

/// The error and its causes, one a line.
fn chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        text += &format!("\n  because: {cause}");
    }
    text
}

/// A line for people. That nobody reads it is no reason to stop.
pub(crate) fn say(line: &str) {
    log_line::say(Priority::Info, line);
}

/// `1.5 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_of_the_commands_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_tells_what_it_does_and_has_an_example() {
        fn check(command: &clap::Command, leaf_only: bool) {
            assert!(command.get_about().is_some(), "{} has no description", command.get_name());
            let example = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            if !leaf_only || !command.has_subcommands() {
                assert!(example.contains("afterwrite "), "{} has no example", command.get_name());
            }
            command.get_subcommands().for_each(|sub| check(sub, true));
        }
        Cli::command()
            .get_subcommands()
            .filter(|c| !c.is_hide_set())
            .for_each(|command| check(command, true));
    }

    #[test]
    fn the_chain_of_causes_is_told_once_each() {
        let error = anyhow::anyhow!("inner").context("middle").context("outer");
        assert_eq!(chain(&error), "outer\n  because: middle\n  because: inner");
    }
}
