use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use jiff::Zoned;
use jiff::civil::{Date, Time};

use crate::cli::{Outcome, Output, say, size};
use crate::filemap::{Copier, CopyOptions, How};

/// Copy the files that `afterwrite map` saw saved, by the blocks they lie in
///
/// Copies what was saved since its last copy, once, or again and again with --every or --copy-at until it is interrupted. Each file
/// is mapped anew before and after it is read. What is gone at the source stays in the target.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  afterwrite copy --cache /var/lib/afterwrite/maps --target /backup/data --copy-at 03:30"
)]
pub(super) struct Args {
    /// Directory of the maps, as given to `afterwrite map`
    #[arg(long, value_name = "DIR")]
    cache: PathBuf,
    /// Directory for the copies, not on the same file system
    #[arg(long, value_name = "DIR")]
    target: PathBuf,
    /// Read the blocks from here instead of the device that is mounted
    #[arg(long, value_name = "DEV")]
    device: Option<PathBuf>,
    /// Again and again, this long after the last time
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    every: Option<Duration>,
    /// Each day at this time, like 03:30
    #[arg(long, value_name = "TIME", conflicts_with = "every")]
    copy_at: Option<Time>,
    /// Say each file, one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, out: &mut Output) -> anyhow::Result<Outcome> {
    loop {
        if let Some(time) = args.copy_at {
            std::thread::sleep(until(time, &Zoned::now())?);
        }
        let outcome = copy(args, out)?;
        match args.every {
            _ if out.is_closed() => return Ok(outcome),
            Some(pause) => std::thread::sleep(pause),
            None if args.copy_at.is_some() => {}
            None => return Ok(outcome),
        }
    }
}

fn copy(args: &Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let options =
        CopyOptions { cache: args.cache.clone(), target: args.target.clone(), device: args.device.clone() };
    let (mut copied, mut bytes, mut gone, mut left, mut written) = (0u64, 0, 0u64, 0u64, Ok(()));
    Copier::open(options)?.copy(&mut |done| {
        match &done {
            Ok(file) => {
                match file.how {
                    How::Blocks | How::File => (copied, bytes) = (copied + 1, bytes + file.bytes),
                    How::Gone => gone += 1,
                    How::Unsteady => left += 1,
                }
                if args.json {
                    written = out.json(file);
                }
            }
            Err(error) => {
                left += 1;
                say(&format!(
                    "afterwrite: {error}: {}",
                    std::error::Error::source(error).map_or(String::new(), |e| e.to_string())
                ));
            }
        }
        written.is_ok()
    })?;
    written?;
    out.finish()?;
    say(&format!(
        "{copied} files copied, {}; {gone} are gone; {left} could not be copied as they are at one time, and stay to be copied",
        size(bytes)
    ));
    Ok(if left == 0 { Outcome::Done } else { Outcome::Wrong })
}

/// From `now` to the next time that the clock shows `time`.
fn until(time: Time, now: &Zoned) -> anyhow::Result<Duration> {
    let on = |day: Date| day.to_datetime(time).to_zoned(now.time_zone().clone());
    let next = match on(now.date())? {
        today if today > *now => today,
        _ => on(now.date().tomorrow()?)?,
    };
    Duration::try_from(now.until(&next)?.to_duration(now)?).context("the next time is in the past")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_time_is_today_or_tomorrow() {
        let now: Zoned = "2026-03-01T12:00:00[UTC]".parse().unwrap();
        let hours = |time: &str| until(time.parse().unwrap(), &now).unwrap().as_secs() / 3600;
        assert_eq!((hours("13:00"), hours("12:00"), hours("03:00")), (1, 24, 15));
    }
}
