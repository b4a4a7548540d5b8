use std::io::IsTerminal;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use crate::capture::vfs::{VfsOptions, VfsRung};
use crate::capture::{CaptureOptions, Origin, Rung};
use crate::cli::retention::RetentionArgs;
use crate::cli::{Outcome, Whether, protect_tree, say, size};
use crate::collect::{Hooks, State};
use crate::journal::{JournalOptions, SyncPolicy};
use crate::model::{MarkId, Point, PointClass};
use crate::service::{Limits, ProtectEvent, ProtectOptions, Status, TreeOptions, protect};

/// Each has a thread, and 32 MiB of memory while it is written.
pub(super) const TARGETS_MAX: usize = 8;
const PLAIN_EVERY: Duration = Duration::from_secs(5);
/// Of a tree an event is a file's, and a lost one costs a look at all of them.
const TREE_RING_MIN: u32 = 32 << 20;

/// Protect a block device or a directory tree: copy it, then keep the target current, until Ctrl-C
///
/// Captures every write to DEV from the start, journals what changed, and brings the target from mark to mark. Ctrl-C drains,
/// makes a last mark and stops; a second one stops at once. Started again with the same journal and target it compares source and
/// target and goes on.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  afterwrite protect /dev/vg0/data --journal /backup/data.journal --target /backup/data.img"
)]
pub struct ProtectArgs {
    /// The block device to protect: a whole disk, partition, loop, zram, dm or md device; or a directory
    device: PathBuf,
    /// Directory of the journal; made if it does not exist
    #[arg(long, value_name = "DIR")]
    journal: PathBuf,
    /// The replica: an image file (made if it does not exist) or a block device, at least as large as DEV; of a directory
    /// one that is empty, or made
    /// Given again, the volume has several: each is kept current by itself, whatever becomes of the others
    #[arg(long = "target", value_name = "PATH", required = true)]
    targets: Vec<PathBuf>,
    /// How often to make a mark, to which the target is then brought; `never` leaves it to `afterwrite mark`
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_every)]
    mark_every: Every,
    /// The longest that file systems may stay frozen for a mark
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    freeze_timeout: Duration,
    /// Run before each mark, to bring an application to rest; the mark is then of class app. As by `sh -c`, with AFTERWRITE_LABEL
    #[arg(long, value_name = "COMMAND", requires = "after_mark")]
    before_mark: Option<String>,
    /// Run after each mark, and whenever the command before it was run, to let the application go on
    #[arg(long, value_name = "COMMAND", requires = "before_mark")]
    after_mark: Option<String>,
    /// How long each of the two may take before it is killed
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    hook_timeout: Duration,
    /// When the journal is synced besides at marks: mark, always, interval (each second)
    #[arg(long, value_name = "POLICY", default_value = "interval")]
    sync: SyncPolicy,
    /// What is recorded of a write: extents (where it goes; marks can be restored) or payload (its bytes; every instant can)
    #[arg(long, value_name = "MODE", default_value = "extents")]
    capture: Mode,
    /// Size of the ring between probes and collector, a power of two; 16MiB for extents and 64MiB for payload
    #[arg(long, value_name = "SIZE", value_parser = parse_ring)]
    ring: Option<u32>,
    /// How to attach the probes instead of the best way: tp_btf, raw_tp, tracepoint
    #[arg(long, value_name = "RUNG")]
    rung: Option<Rung>,
    /// Journal who changes which file: on (if this kernel can), off
    #[arg(long, value_name = "WHETHER", default_value = "on")]
    origin: Whether,
    /// How to see changes of files instead of the best way: fentry, kprobe, syscall
    #[arg(long, value_name = "RUNG")]
    origin_rung: Option<VfsRung>,
    /// Size of the ring for changes of files, a power of two
    #[arg(long, value_name = "SIZE", value_parser = parse_ring, default_value = "8MiB")]
    origin_ring: u32,
    /// After a reboot compare nothing, if nobody could write to the volume when protect stopped, and it was not written since the boot.
    /// Only for a disk that nothing but this system writes to, not while it shuts down either
    #[arg(long)]
    trust_reboot: bool,
    /// Read no more of DEV a second, such as 50MiB, for the first copy and for the comparison after a restart
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    limit_baseline: Option<NonZeroU64>,
    /// Apply no more to a target a second; not at a stop, which would take long
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    limit_apply: Option<NonZeroU64>,
    /// Pause copying and applying while others read or write DEV: on (they go on at a part of their speed), off
    #[arg(long = "yield", value_name = "WHETHER", default_value = "on")]
    yields: Whether,
    /// The probes stay at work after the stop, until `afterwrite finish` at the end of the shutdown; and `afterwrite attach` is called
    /// for it in the initramfs. For the root and what else is written before the service starts and after it stops
    #[arg(long, requires = "trust_reboot")]
    early: bool,
    /// Overwrite a target that is not empty
    #[arg(long)]
    force: bool,
    /// Given any of these, old history is folded and thinned out now and then, as `journal prune` does; else all is kept
    #[command(flatten)]
    retention: RetentionArgs,
}

impl ProtectArgs {
    fn hooks(&self) -> Option<Hooks> {
        let (before, after) = self.before_mark.clone().zip(self.after_mark.clone())?;
        Some(Hooks { before, after, timeout: self.hook_timeout })
    }

    /// What of it is of a group, too: how often, how long at most, and what is run around it.
    pub(super) fn of_marks(&self) -> (Option<Duration>, Duration, Option<Hooks>) {
        (self.mark_every.0, self.freeze_timeout, self.hooks())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Extents,
    Payload,
}

impl Mode {
    fn ring_bytes(self) -> u32 {
        match self {
            Mode::Extents => 16 << 20,
            Mode::Payload => 64 << 20,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Every(Option<Duration>);

fn parse_every(text: &str) -> Result<Every, String> {
    match text {
        "never" => Ok(Every(None)),
        _ => match humantime::parse_duration(text) {
            Ok(time) if !time.is_zero() => Ok(Every(Some(time))),
            _ => Err("a time such as 30s, 5m, 1h, or never".into()),
        },
    }
}

fn parse_ring(text: &str) -> Result<u32, String> {
    let size: ByteSize = text.parse()?;
    match u32::try_from(size.as_u64()) {
        Ok(bytes) if bytes.is_power_of_two() && (4096..=1 << 30).contains(&bytes) => Ok(bytes),
        _ => Err("a power of two from 4KiB to 1GiB, such as 16MiB".into()),
    }
}

fn parse_rate(text: &str) -> Result<NonZeroU64, String> {
    let rate: Option<ByteSize> = text.strip_suffix("/s").unwrap_or(text).parse().ok();
    rate.and_then(|rate| NonZeroU64::new(rate.as_u64())).ok_or("bytes a second, such as 50MiB or 500k".into())
}

pub fn run(args: ProtectArgs) -> anyhow::Result<Outcome> {
    if args.targets.len() > TARGETS_MAX {
        anyhow::bail!("{} targets; a volume may have {TARGETS_MAX}", args.targets.len());
    }
    if args.device.is_dir() {
        return protect_tree::run(&tree_options(args)?);
    }
    let options = volume_options(args);
    let mut screen = Screen::new();
    let summary = protect(&options, &mut |event| screen.show(&event))?;
    screen.clear();
    let status = summary.last;
    say_all_stopped(&status);
    if options.early {
        say("its probes stay at work until `afterwrite finish` (`afterwrite detach` removes them, too)");
    }
    Ok(Outcome::Done)
}

/// Of a block device.
pub(super) fn volume_options(args: ProtectArgs) -> ProtectOptions {
    ProtectOptions {
        hooks: args.hooks(),
        source: args.device,
        journal: args.journal,
        targets: args.targets,
        mark_every: args.mark_every.0,
        freeze_timeout: args.freeze_timeout,
        journal_options: JournalOptions { sync: args.sync, ..JournalOptions::default() },
        capture: CaptureOptions {
            rung: args.rung,
            ring_bytes: args.ring.unwrap_or(args.capture.ring_bytes()),
            payload: args.capture == Mode::Payload,
        },
        origin: (args.origin == Whether::On).then_some(VfsOptions {
            rung: args.origin_rung,
            ring_bytes: args.origin_ring,
            ends: false,
        }),
        force: args.force,
        limits: Limits {
            baseline: args.limit_baseline,
            apply: args.limit_apply,
            yields: args.yields == Whether::On,
        },
        trust_reboot: args.trust_reboot,
        early: args.early,
        retention: args.retention.are_given().then(|| args.retention.options(true)),
    }
}

/// At which marks the targets of a volume were left.
pub(super) fn say_all_stopped(status: &Status) {
    for replica in &status.replicas {
        say_stopped(&status.source, &replica.target, replica.mark, status.last_mark.as_ref());
    }
}

/// At which mark the target was left.
pub(super) fn say_stopped(source: &str, target: &str, reached: Option<MarkId>, last: Option<&Point>) {
    say(&match (reached, last) {
        (Some(id), Some(last)) if id == last.id => {
            let why = match last.class {
                PointClass::Crash => {
                    " (of class crash as nothing was frozen at that instant: nothing has crashed)"
                }
                _ => "",
            };
            format!("stopped in order: {target} is {source} as it was at the end, mark {id}{why}")
        }
        (Some(id), Some(last)) => format!(
            "stopped in order: {target} is mark {id}; the last mark {} is {}, so the target was not brought to it",
            last.id, last.class
        ),
        _ => format!("stopped before the first mark: {target} is not complete, start again to go on"),
    });
}

/// Of a directory.
fn tree_options(args: ProtectArgs) -> anyhow::Result<TreeOptions> {
    if args.rung.is_some()
        || args.ring.is_some()
        || args.capture != Mode::Extents
        || args.before_mark.is_some()
        || args.trust_reboot
        || args.early
        || args.limit_baseline.is_some()
        || args.limit_apply.is_some()
    {
        anyhow::bail!(
            "{} is a directory, and its changes are captured by the probes of files; leave hooks, limits, --capture, --ring, \
             --rung, --trust-reboot and --early away (--origin-rung and --origin-ring are for those)",
            args.device.display()
        );
    }
    let retention = args.retention.are_given().then(|| args.retention.options(true));
    let [target] = <[PathBuf; 1]>::try_from(args.targets).map_err(|targets| {
        anyhow::anyhow!(
            "{} is a directory, and a tree has one target, not {}: protect it again with another --journal, or copy the target",
            args.device.display(),
            targets.len()
        )
    })?;
    Ok(TreeOptions {
        source: args.device,
        journal: args.journal,
        target,
        mark_every: args.mark_every.0,
        freeze_timeout: args.freeze_timeout,
        journal_options: JournalOptions { sync: args.sync, ..JournalOptions::default() },
        probes: VfsOptions {
            rung: args.origin_rung,
            ring_bytes: args.origin_ring.max(TREE_RING_MIN),
            ends: true,
        },
        retention,
        force: args.force,
    })
}

/// What a person sees on stderr: a bar on a terminal, lines elsewhere.
pub(super) struct Screen {
    bar: Option<ProgressBar>,
    last_line: Option<(State, Instant)>,
    last_error: Option<String>,
    failing: Vec<String>,
}

impl Screen {
    pub(super) fn new() -> Screen {
        Screen {
            bar: std::io::stderr().is_terminal().then(ProgressBar::new_spinner),
            last_line: None,
            last_error: None,
            failing: Vec::new(),
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => say(text),
        }
    }

    pub(super) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    pub(super) fn show(&mut self, event: &ProtectEvent<'_>) {
        match event {
            ProtectEvent::Recovered { bytes } => {
                self.say(&format!(
                    "the journal's end was torn ({bytes} bytes): cut back to the last whole frame"
                ));
            }
            ProtectEvent::CatchingUp { mark: Some(mark) } => {
                self.say(&format!("bringing the target to mark {}", mark.id));
            }
            ProtectEvent::CatchingUp { mark: None } => {
                self.say("applying what the interrupted baseline journaled")
            }
            ProtectEvent::Attached { rung, resumed, origin, unscanned_bytes } => {
                let next = match (origin, resumed, unscanned_bytes) {
                    (Origin::New | Origin::Early, false, _) => "copying the volume",
                    (Origin::New, true, 0) => "nothing was written since the last stop",
                    (Origin::Early, true, 0) => {
                        "nothing was written between the last stop and the early attach, so only what was recorded since is read"
                    }
                    (Origin::New | Origin::Early, true, _) => {
                        "comparing the volume with the target, since writes may have gone unseen meanwhile"
                    }
                    (Origin::Adopted | Origin::Replaced, ..) => {
                        "the probes were at work all the time, so only what they recorded is read"
                    }
                };
                self.say(&format!("capturing every write ({rung}); {next}"));
            }
            ProtectEvent::Stopping => {
                self.say("stopping: draining and making a last mark (again to stop at once)")
            }
            ProtectEvent::Progress(status) => self.progress(status),
        }
    }

    /// What fails on the backup's side and will be tried again, said when it changes.
    fn failures(&mut self, status: &Status) {
        let paused = status.paused.as_ref().map(|why| format!("paused, tried again every 2 s: {why}"));
        let targets = status.replicas.iter().filter_map(|replica| {
            let why = replica.error.as_ref()?;
            Some(format!("the target {} fails, tried again every 2 s: {why}", replica.target))
        });
        let failing: Vec<String> = paused.into_iter().chain(targets).collect();
        if failing != self.failing {
            match failing.is_empty() {
                true => self.say("journal and target can be written again"),
                false => failing.iter().for_each(|line| self.say(line)),
            }
            self.failing = failing;
        }
    }

    fn progress(&mut self, status: &Status) {
        let error = &status.collector.last_mark_error;
        if *error != self.last_error {
            if let Some(error) = error {
                self.say(&format!("mark failed: {error}"));
            }
            self.last_error.clone_from(error);
        }
        self.failures(status);
        let state = status.collector.state;
        let copying = matches!(state, State::Baseline | State::Resync);
        if let Some(bar) = &self.bar {
            if copying {
                bar.set_style(
                    ProgressStyle::with_template(
                        "{prefix} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} eta {eta}",
                    )
                    .expect("the template is valid"),
                );
                bar.set_prefix(format!("{state:?}").to_lowercase());
                bar.set_length(status.collector.scan_total_bytes);
                bar.set_position(status.collector.scan_done_bytes);
            } else {
                bar.set_style(ProgressStyle::with_template("{msg}").expect("the template is valid"));
                bar.set_message(line(status));
                bar.tick();
            }
            return;
        }
        let due = self
            .last_line
            .is_none_or(|(shown, when)| shown != state || (copying && when.elapsed() >= PLAIN_EVERY));
        if due {
            self.last_line = Some((state, Instant::now()));
            say(&line(status));
        }
    }
}

/// One line about a volume, also for `status`.
pub fn line(status: &Status) -> String {
    let collector = &status.collector;
    match collector.state {
        State::Baseline | State::Resync => format!(
            "{}: {:?}, {} of {}",
            status.source,
            collector.state,
            size(collector.scan_done_bytes),
            size(collector.scan_total_bytes)
        ),
        _ => format!(
            "{}: {:?}, {} writes seen, {} pending, mark {}, replica {} old",
            status.source,
            collector.state,
            collector.counters.seen,
            size(collector.pending_bytes),
            status.last_mark.as_ref().map_or("none".into(), |mark| mark.id.to_string()),
            status.replica.age_ms.map_or("incomplete".into(), |ms| format!("{:.1} s", ms as f64 / 1000.0)),
        ),
    }
}
