use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use crate::capture::CaptureOptions;
use crate::cli::protect::{Screen, say_all_stopped};
use crate::cli::{Outcome, Output, config, run, say};
use crate::io::log_line::{self, Priority};
use crate::service::{Attached, ProtectOptions, UnitKind, attach, finish};

/// Record where a volume is written from here on, before its journal can be reached: what the initramfs does
///
/// The probes stay at work when the command has ended. The next `protect` of the volume takes them over, and compares nothing if nothing
/// was written between its last stop and this. Of a volume whose probes are at work nothing is changed.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  afterwrite attach /dev/vda1\n  afterwrite attach --config /etc/afterwrite/config.toml"
)]
pub struct AttachArgs {
    /// Block devices; without, the volumes of the configuration that say `early = true`
    devices: Vec<PathBuf>,
    /// Attach nothing: print the volumes of the configuration that say `early = true`; exit 1 if there is none
    #[arg(long, conflicts_with = "devices")]
    list: bool,
    /// The configuration of the service
    #[arg(long, value_name = "FILE", default_value = config::PATH)]
    config: PathBuf,
}

/// Make a last mark of volumes that are written after the service has stopped: what the end of a shutdown does
///
/// For the volumes of the configuration that say `early = true`, when their file systems are read-only: what was written since the service
/// stopped is journaled, the probes are removed, and a marker is left by which the next boot compares nothing. A journal or target
/// that is not there any more is mounted for that, as /etc/fstab says.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  afterwrite finish --config /etc/afterwrite/config.toml")]
pub struct FinishArgs {
    /// The configuration of the service
    #[arg(long, value_name = "FILE", default_value = config::PATH)]
    config: PathBuf,
}

pub fn attach_all(args: &AttachArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    if args.list {
        let volumes = early(&args.config)?;
        volumes.iter().try_for_each(|volume| out.line(volume.source.display()))?;
        return Ok(if volumes.is_empty() { Outcome::Wrong } else { Outcome::Done });
    }
    let volumes: Vec<(PathBuf, CaptureOptions)> = match args.devices.is_empty() {
        true => early(&args.config)?.into_iter().map(|volume| (volume.source, volume.capture)).collect(),
        false => args.devices.iter().map(|device| (device.clone(), CaptureOptions::default())).collect(),
    };
    each(
        &volumes,
        |(source, _)| source,
        |(source, options)| {
            let what = match attach(source, options)? {
                Attached::Now => "its writes are recorded from here on",
                Attached::Already => "its writes are recorded already",
            };
            out.line(format_args!("{}: {what}", source.display()))
        },
    )
}

pub fn finish_all(args: &FinishArgs) -> anyhow::Result<Outcome> {
    let volumes = early(&args.config)?;
    each(
        &volumes,
        |volume| &volume.source,
        |volume| {
            let mut screen = Screen::new();
            let status = finish(volume, &mut |event| screen.show(&event))?.last;
            screen.clear();
            say_all_stopped(&status);
            Ok(())
        },
    )
}

/// Of the configuration.
fn early(config: &Path) -> anyhow::Result<Vec<ProtectOptions>> {
    let units = match run::read_by(config::parse_unmounted, config)? {
        Ok(configuration) => configuration.units,
        Err(mistakes) => bail!("the configuration is wrong:\n{}", mistakes.join("\n")),
    };
    let volumes = units.iter().filter(|unit| unit.kind == UnitKind::Volume).map(config::volume_options);
    let early: Vec<_> = volumes.filter(|volume| volume.early).collect();
    if early.is_empty() {
        say(&format!("no volume of {} says `early = true`", config.display()));
    }
    Ok(early)
}

/// What fails for one is told, and done for the others all the same.
fn each<V>(
    volumes: &[V],
    source: impl Fn(&V) -> &PathBuf,
    mut run: impl FnMut(&V) -> anyhow::Result<()>,
) -> anyhow::Result<Outcome> {
    let mut failed = 0;
    for volume in volumes {
        if let Err(error) = run(volume).with_context(|| source(volume).display().to_string()) {
            log_line::say(Priority::Error, &format!("{error:#}"));
            failed += 1;
        }
    }
    match failed {
        0 => Ok(Outcome::Done),
        _ => bail!("{failed} of {} failed", volumes.len()),
    }
}
