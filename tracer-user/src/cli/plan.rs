use crate::cli::{Output, say};
use crate::model::{FileChanges, OriginUnknown};
use crate::restore::Beginning;

/// How a command is run that makes a plan and carries it out.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct PlanArgs {
    /// Print what would be done, and do nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// What a point that is before something is before.
pub(super) fn tell_before(before: Option<&Beginning>, out: &mut Output) -> anyhow::Result<()> {
    let Some(Beginning { changes, unknown }) = before else { return Ok(()) };
    let FileChanges { process, path, ops, first, .. } = changes;
    let (name, path) = (process.name.escape_ascii(), path.escape_ascii());
    out.line(format_args!("before   {first}, {name} ({}), {ops} of {path}", process.pid))?;
    for OriginUnknown { from, to, why, .. } in unknown {
        say(&format!("note: who changed what is not known from {from} to {to} ({why})"));
    }
    Ok(())
}
