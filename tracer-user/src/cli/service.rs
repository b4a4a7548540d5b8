//! Orders for the running service.

use crate::cli::{Outcome, say};
use crate::service::{ServiceOrder, tell_service};

/// Stop journaling a volume of the service for a while; its probes go on recording where is written
///
/// Resumed, only that is read. Of a tree, whose probes end with it, everything is looked at again. `status` shows it as paused.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  afterwrite pause data && zpool scrub backup -w && afterwrite resume data"
)]
pub(super) struct UnitArgs {
    /// Its name in the configuration, or what it protects
    unit: String,
}

/// Go on with what was paused, or try at once what failed
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  afterwrite resume data")]
pub(super) struct ResumeArgs {
    /// Its name in the configuration, or what it protects
    unit: String,
}

/// Have the service read its configuration again, as SIGHUP does, and say what that changes
///
/// What is configured as before goes on undisturbed. With other options a volume goes on without losing a write: its probes
/// record while its process is replaced. If the configuration is wrong nothing changes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  afterwrite config check && afterwrite reload")]
pub(super) struct ReloadArgs {}

pub(super) fn pause(args: UnitArgs) -> anyhow::Result<Outcome> {
    tell(ServiceOrder::Pause(args.unit))
}

pub(super) fn resume(args: ResumeArgs) -> anyhow::Result<Outcome> {
    tell(ServiceOrder::Resume(args.unit))
}

pub(super) fn reload() -> anyhow::Result<Outcome> {
    tell(ServiceOrder::Reload)
}

fn tell(order: ServiceOrder) -> anyhow::Result<Outcome> {
    say(&tell_service(order)?);
    Ok(Outcome::Done)
}
