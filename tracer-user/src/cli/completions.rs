use std::path::PathBuf;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::{Cli, Outcome, Output};

/// Print the completions of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  afterwrite completions bash > /etc/bash_completion.d/afterwrite")]
pub(super) struct CompletionsArgs {
    shell: Shell,
}

/// Write the man pages of all commands into a directory
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  afterwrite man /usr/local/share/man/man1")]
pub(super) struct ManArgs {
    /// An existing directory
    directory: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    // Into memory first: clap_complete panics when it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "afterwrite", &mut script);
    out.bytes(&script)?;
    Ok(Outcome::Done)
}

pub(super) fn man(args: &ManArgs) -> anyhow::Result<Outcome> {
    clap_mangen::generate_to(Cli::command(), &args.directory)
        .with_context(|| format!("cannot write the man pages to {}", args.directory.display()))?;
    Ok(Outcome::Done)
}
