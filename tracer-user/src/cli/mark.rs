use clap::Args;

use crate::cli::{Outcome, Output, say};
use crate::service::{Client, mark_group};

/// Make a consistent point of a protected volume now and print its number
///
/// Mounted file systems on the volume are frozen for a moment. The mark is durable in the journal when this returns.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  afterwrite mark --label before-upgrade\n  afterwrite mark --group shop --label before-upgrade"
)]
pub struct MarkArgs {
    /// The volume, as /dev/NAME or NAME, or its name in the configuration; may be left out when only one is protected
    volume: Option<String>,
    /// Of all volumes of this group of the service at the same instant; prints the name of the mark, the same in each journal
    #[arg(long, value_name = "NAME", conflicts_with = "volume")]
    group: Option<String>,
    /// A name to restore it by (`replay --to mark:LABEL`, which takes the last mark of that name)
    #[arg(long, default_value = "")]
    label: String,
    /// Print all about the mark as JSON: id, class, lsn, time, label, frozen_ms; of a group: name, time, frozen_ms, hook_error, members
    #[arg(long)]
    json: bool,
}

pub fn run(args: &MarkArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    if let Some(group) = &args.group {
        return run_group(group, args, out);
    }
    let done = Client::of(args.volume.as_deref())?.mark(&args.label)?;
    if args.json {
        out.json(&done)?;
        return Ok(Outcome::Done);
    }
    out.line(&done["id"])?;
    match done["class"].as_str() {
        Some("fuzzy") => say(&format!(
            "mark {} is fuzzy: the volume was written without a pause and nothing on it could be frozen, \
             so it can't be restored to this mark without --force",
            done["id"]
        )),
        Some(class) => say(&format!(
            "mark {} ({class}{})",
            done["id"],
            done["frozen_ms"].as_u64().map(|ms| format!(", frozen for {ms} ms")).unwrap_or_default()
        )),
        None => {}
    }
    Ok(Outcome::Done)
}

fn run_group(group: &str, args: &MarkArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let mark = mark_group(group, &args.label)?;
    if args.json {
        out.json(&mark)?;
        return Ok(Outcome::Done);
    }
    out.line(&mark.name)?;
    for member in &mark.members {
        say(&format!("{}: mark {} ({})", member.volume, member.id, member.class));
    }
    if let Some(why) = &mark.hook_error {
        say(&format!("{why}: the mark is not of class app"));
    }
    if let Some(ms) = mark.frozen_ms {
        say(&format!("frozen for {ms} ms"));
    }
    Ok(Outcome::Done)
}
