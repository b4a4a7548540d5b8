use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Subcommand;

use crate::cli::config::{self, Mistake};
use crate::cli::{Outcome, Output, say};
use crate::io::BlockDevice;
use crate::service::{Configuration, Group, Unit, UnitKind, UnitsOptions, run_units, together};

/// Protect all that is configured, as a service: what the systemd unit starts
///
/// Each volume and tree has a process of its own, started again when it ends by itself. SIGTERM and Ctrl-C make a last mark of each and
/// stop; SIGHUP reads the configuration again; SIGUSR1 ends at once and leaves the probes at work, so that the next start, of another
/// version too, goes on without reading anything anew.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  afterwrite run --config /etc/afterwrite/config.toml")]
pub(super) struct Args {
    /// What to protect; docs/OPERATIONS.md describes it
    #[arg(long, value_name = "FILE", default_value = config::PATH)]
    config: PathBuf,
}

/// Look at the configuration of the service
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Say what is wrong with it, by line, or what it would protect; exit 1 if anything is wrong
    #[command(after_help = "Example:\n  afterwrite config check --config /etc/afterwrite/config.toml")]
    Check {
        /// The file
        #[arg(long, value_name = "FILE", default_value = config::PATH)]
        config: PathBuf,
    },
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the service reads and writes devices and loads BPF programs, which needs root");
    }
    let configuration = match read(&args.config)? {
        Ok(configuration) => configuration,
        Err(mistakes) => bail!("the configuration is wrong:\n{}", mistakes.join("\n")),
    };
    say(&format!("{}: {} to protect", args.config.display(), configuration.units.len()));
    run_units(UnitsOptions {
        configuration,
        reread: &mut || match read(&args.config) {
            Ok(Ok(configuration)) => Ok(configuration),
            Ok(Err(mistakes)) => Err(mistakes.join("\n")),
            Err(error) => Err(format!("{error:#}")),
        },
    })?;
    Ok(Outcome::Done)
}

pub(super) fn config(command: &ConfigCommand, out: &mut Output) -> anyhow::Result<Outcome> {
    let ConfigCommand::Check { config } = command;
    match read(config)? {
        Ok(Configuration { units, groups, listen }) => {
            if let Some(address) = listen {
                out.line(format_args!("the page: http://{address}/"))?;
            }
            for Unit { name, source, journal, targets, .. } in &units {
                let (source, journal) = (source.display(), journal.display());
                let targets: Vec<String> =
                    targets.iter().map(|target| target.display().to_string()).collect();
                let (many, targets) = (if targets.len() == 1 { "" } else { "s" }, targets.join(", "));
                out.line(format_args!("{name}: {source}, journal {journal}, target{many} {targets}"))?;
            }
            let is_early = |unit: &&Unit| unit.arguments.iter().any(|argument| argument == "--early");
            for unit in units.iter().filter(is_early) {
                say(&format!(
                    "{}: attached at boot once `update-initramfs -u` (or `dracut --force`) has put this into the initramfs",
                    unit.name
                ));
            }
            let mut outcome = Outcome::Done;
            for unit in &units {
                if !unit.source.exists() {
                    let (name, source) = (&unit.name, unit.source.display());
                    say(&format!("{name}: there is no {source} at the moment; it will be waited for"));
                } else if let Err(why) = protectable(unit) {
                    out.line(format_args!("{}: {why:#}", unit.name))?;
                    outcome = Outcome::Wrong;
                }
            }
            for Group { name, volumes, .. } in &groups {
                out.line(format_args!("group {name}: {}", volumes.join(", ")))?;
                let of_it = units.iter().filter(|unit| volumes.contains(&unit.name));
                let sources: Vec<_> = of_it.map(|unit| (&unit.name[..], unit.source.as_path())).collect();
                if let Err(why) = together(&sources) {
                    out.line(format_args!("group {name} cannot be marked: {why}"))?;
                    outcome = Outcome::Wrong;
                }
            }
            Ok(outcome)
        }
        Err(mistakes) => {
            for mistake in &mistakes {
                out.line(mistake)?;
            }
            Ok(Outcome::Wrong)
        }
    }
}

/// As it is now. `run` starts all the same, for what is wrong with one volume is not to keep others unprotected.
fn protectable(unit: &Unit) -> anyhow::Result<()> {
    match unit.kind {
        UnitKind::Volume => match BlockDevice::open(&unit.source)?.obstacle() {
            Some(obstacle) => bail!("{} {obstacle}", unit.source.display()),
            None => Ok(()),
        },
        UnitKind::Tree if unit.source.is_dir() => Ok(()),
        UnitKind::Tree => bail!("{} is no directory", unit.source.display()),
    }
}

/// What the file says, or all that is wrong with it.
fn read(path: &Path) -> anyhow::Result<Result<Configuration, Vec<String>>> {
    read_by(config::parse, path)
}

/// By [`config::parse`] or [`config::parse_unmounted`].
pub(super) fn read_by(
    parse: fn(&str) -> Result<Configuration, Vec<Mistake>>,
    path: &Path,
) -> anyhow::Result<Result<Configuration, Vec<String>>> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!(
            "cannot read {}: `afterwrite init` writes one, docs/OPERATIONS.md says what may be in it",
            path.display()
        )
    })?;
    let at = |mistake: Mistake| format!("{}:{}: {}", path.display(), mistake.line, mistake.what);
    Ok(parse(&text).map_err(|mistakes| mistakes.into_iter().map(at).collect()))
}
