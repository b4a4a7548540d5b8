use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::cli::{Outcome, Output, config, say, size};
use crate::io::{BlockDevice, Space, candidates, mounted_on};

const A_DAY: Duration = Duration::from_secs(24 * 3600);

/// Write a configuration for this machine: shows its volumes, watches how much is written to them, and says what room that needs
///
/// Without --volume it asks, on a terminal; elsewhere it lists what there is.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  afterwrite init\n  afterwrite init --volume /dev/vg0/data --at /backup --watch 10s --config config.toml"
)]
pub(super) struct Args {
    /// A volume to protect; may be given several times
    #[arg(long, value_name = "DEV")]
    volume: Vec<PathBuf>,
    /// Where journals and replicas go: a directory on another disk
    #[arg(long, value_name = "DIR")]
    at: Option<PathBuf>,
    /// How long to watch what is written
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    watch: Duration,
    /// The file to write; one that exists is left alone
    #[arg(long, value_name = "FILE", default_value = config::PATH)]
    config: PathBuf,
}

/// A volume as it is shown.
struct Seen {
    device: BlockDevice,
    /// `ext4 at /srv`, or nothing.
    mounted: String,
    bytes_a_second: u64,
}

pub(super) fn run(args: &Args, out: &mut Output) -> anyhow::Result<Outcome> {
    if args.config.exists() {
        bail!("{} exists, and is left alone: name another --config, or move it away", args.config.display());
    }
    let devices = match args.volume.is_empty() {
        true => candidates().context("the block devices of this machine can't be listed")?,
        false => args.volume.iter().map(|path| BlockDevice::open(path)).collect::<Result<_, _>>()?,
    };
    if devices.is_empty() {
        bail!(
            "there is no block device that could be protected; a directory can: see `afterwrite protect --help`"
        );
    }
    let mut volumes = watched(devices, args.watch);
    for (number, volume) in volumes.iter().enumerate() {
        out.line(format_args!("{:3}  {}", number + 1, described(volume)))?;
    }
    out.finish()?;
    let asks = std::io::stdin().is_terminal();
    if args.volume.is_empty() {
        if !asks {
            bail!("name those to protect with --volume, and with --at where journals and replicas go");
        }
        let chosen = answer("Which of them are to be protected? Their numbers, with spaces between")?;
        volumes = choose(volumes, &chosen)?;
    }
    let at = match &args.at {
        Some(at) => at.clone(),
        None if asks => answer("A directory on another disk for journals and replicas")?.into(),
        None => bail!("say with --at where journals and replicas go: a directory on another disk"),
    };
    let at = std::path::absolute(&at).with_context(|| format!("{} is no path", at.display()))?;
    let text = configuration(&volumes, &at)?;
    if let Err(mistakes) = config::parse(&text) {
        let why: Vec<_> = mistakes.into_iter().map(|mistake| mistake.what).collect();
        bail!("nothing was written: {}", why.join("; "));
    }
    std::fs::create_dir_all(&at).with_context(|| format!("cannot make {}", at.display()))?;
    write_new(&args.config, &text).with_context(|| format!("cannot write {}", args.config.display()))?;
    tell_room(&volumes, &at);
    say(&format!(
        "{} is written: look at it, then `afterwrite config check --config {0}` and `afterwrite run --config {0}`",
        args.config.display()
    ));
    Ok(Outcome::Done)
}

fn watched(devices: Vec<BlockDevice>, time: Duration) -> Vec<Seen> {
    say(&format!("watching for {time:?} how much is written"));
    let before: Vec<_> = devices.iter().map(BlockDevice::written_bytes).collect();
    std::thread::sleep(time);
    devices
        .into_iter()
        .zip(before)
        .map(|(device, before)| {
            let bytes =
                device.written_bytes().zip(before).map_or(0, |(now, before)| now.saturating_sub(before));
            let bytes_a_second = (bytes as f64 / time.as_secs_f64().max(0.001)) as u64;
            // What can't be told is not shown.
            let mounts = mounted_on(device.number).unwrap_or_default();
            let mounted = mounts.iter().map(|fs| format!("{} at {}", fs.fs_type, fs.mount_point.display()));
            Seen { mounted: mounted.collect::<Vec<_>>().join(", "), device, bytes_a_second }
        })
        .collect()
}

fn described(Seen { device, mounted, bytes_a_second }: &Seen) -> String {
    let what = if mounted.is_empty() { "nothing mounted" } else { mounted };
    format!(
        "{}  {}, {what}, {} written a second",
        device.path.display(),
        size(device.size_bytes),
        size(*bytes_a_second)
    )
}

fn choose(volumes: Vec<Seen>, chosen: &str) -> anyhow::Result<Vec<Seen>> {
    let numbers = chosen.split([' ', ',']).filter(|word| !word.is_empty()).map(str::parse::<usize>);
    let numbers =
        numbers.collect::<Result<Vec<_>, _>>().with_context(|| format!("{chosen:?} are no numbers"))?;
    if numbers.is_empty() || numbers.iter().any(|number| !(1..=volumes.len()).contains(number)) {
        bail!("numbers from 1 to {} were expected, not {chosen:?}", volumes.len());
    }
    let is_chosen = |at: usize| numbers.contains(&(at + 1));
    Ok(volumes.into_iter().enumerate().filter(|(at, _)| is_chosen(*at)).map(|(_, volume)| volume).collect())
}

fn answer(question: &str) -> anyhow::Result<String> {
    eprint!("{question}: ");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("nothing was answered")?;
    match line.trim() {
        "" => bail!("nothing was answered, so nothing was written"),
        text => Ok(text.to_owned()),
    }
}

fn configuration(volumes: &[Seen], at: &Path) -> anyhow::Result<String> {
    let at = at.to_str().with_context(|| format!("{} is no UTF-8: TOML can't hold it", at.display()))?;
    let mut text = String::from(
        "# Written by `afterwrite init`. Keys are the options of `afterwrite protect`; docs/OPERATIONS.md has the rest.\n\n\
         # `afterwrite protect --help` lists them. A key below [defaults] holds for all volumes, one below [volume.NAME] for that one.\n\n\
         # [service]\n# listen = \"127.0.0.1:9184\"    # a page to look at, and metrics\n\n\
         [defaults]\nmark-every = \"1m\"\nkeep-all = \"24h\"\n\
         # capture = \"payload\"         # every write is a point, not marks only\n",
    );
    for volume in volumes {
        let name = name_of(&volume.device);
        let table: toml::Table = [
            ("source", volume.device.path.to_str().context("the device's path is no UTF-8")?.to_owned()),
            ("journal", format!("{at}/{name}.journal")),
            ("target", format!("{at}/{name}.img")),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.into()))
        .collect();
        write!(text, "\n# {}\n[volume.{name:?}]\n{}", described(volume), toml::to_string(&table)?)?;
    }
    Ok(text)
}

/// What people call it.
fn name_of(device: &BlockDevice) -> String {
    let mapped = device.path.strip_prefix("/dev/mapper").ok().and_then(Path::to_str);
    let name = mapped.unwrap_or(&device.name);
    name.chars().map(|c| if config::is_of_names(c) { c } else { '-' }).take(config::NAME_LEN_MAX).collect()
}

fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// What was written a second, for a day, and the replicas: no more than a hint, and said to be.
fn tell_room(volumes: &[Seen], at: &Path) {
    let replicas: u64 = volumes.iter().map(|volume| volume.device.size_bytes).sum();
    let a_second: u64 = volumes.iter().map(|volume| volume.bytes_a_second).sum();
    let a_day = a_second.saturating_mul(A_DAY.as_secs());
    say(&format!(
        "a full copy takes up to {}; a day of writes as just seen {} of journal",
        size(replicas),
        size(a_day)
    ));
    let there = at.ancestors().find(|dir| dir.exists()).and_then(|dir| Space::of(dir).ok());
    if let Some(space) = there
        && space.free_bytes < replicas.saturating_add(a_day)
    {
        say(&format!(
            "there are {} free at {}: that may not be enough; shorten `keep-all`, or choose a larger disk",
            size(space.free_bytes),
            at.display()
        ));
    }
}
