//! A scenario: one shell script under vm-tests/scenarios, whose head says what its machine looks like.
//!
//! ```text
//! #!/bin/sh
//! # What it shows, in plain words.
//! # kernels: 6.1 6.12
//! # disks: source=192M target=256M
//! # nvme: fast=64M large_sectors=64M/4096
//! # scsi: slow=64M
//! # modules: dm-mod ext4 brd
//! # parameters: brd.rd_nr=1
//! # cmdline: nvme_core.multipath=N
//! # tools: mkfs.ext4 fio
//! # programs: ways
//! # default: yes
//! # timeout: 300
//! # compare: source@1048576+134217728 target
//! # fsck: target
//! # cuts: 3 30
//! # log-writes: log source journal 40
//! # debian: root
//! # initramfs: root.toml dracut
//! # packages: lvm2 xfsprogs
//! # boots-from: target
//! # boots: restored
//! # runs: root.sh
//! ```
//!
//! `disks` are virtio-blk, `nvme` the namespaces of one NVMe controller, `scsi` disks of one virtio-scsi adapter; a
//! size may be followed by the size of a sector. `parameters` are those of modules, `cmdline` is for the kernel.
//! `programs` are binaries of `tests/`. `default` is `yes`, `no`, or the kernels on which it belongs to the default set. `timeout` is in seconds. Each
//! `compare` has the host compare the images after power-off: the bytes of the first, from the offset and of the
//! length given, with as many of the second. Then it checks the file system on each disk of `fsck`. `cuts` are the power
//! cuts by default and in full (`cuts.rs`), with `timeout` for each boot. `log-writes` names the disks of the log, of the volume under it and of
//! the journal (`log_writes.rs`), and of how many instants are compared besides the marks. `debian`
//! names the disk that holds a Debian with systemd, which the scenario runs in, once each boot; it finds packages of this afterwrite of two
//! versions in /scenario. With `initramfs` it boots as a Debian does, by the initramfs that it has made of itself with `initramfs-tools` or `dracut`, the package
//! installed; the file beside the scenario is the configuration of afterwrite; kernel and initramfs are in its /boot, too, and it has these `packages` of Debian
//! besides. Once that has passed, the disk of `boots-from` is put in the place of `debian`'s,
//! which is lost, a new one in its own, and the machine is started again, to pass a second time. Then each disk of `boots` becomes the only disk of
//! a machine that is started by its firmware and the boot loader on the disk, and has to pass as well. `runs` is the
//! scenario beside it whose script it runs in place of its own. A word and a colon that is none of these is an error: a misspelt
//! directive must not be silently ignored.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::kernel::Kernel;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Initramfs {
    /// Of the afterwrite in it.
    pub config: PathBuf,
    pub made_by: InitramfsTool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitramfsTool {
    InitramfsTools,
    Dracut,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    pub name: String,
    pub script: PathBuf,
    pub kernels: Vec<Kernel>,
    /// In the order in which the guest sees those of each bus: vda, vdb, …
    pub disks: Vec<Disk>,
    pub modules: Vec<String>,
    /// `MODULE.NAME=VALUE`
    pub parameters: Vec<String>,
    /// More words for the kernel's command line.
    pub cmdline: Vec<String>,
    /// Programs of the host that busybox does not have or not well enough.
    pub tools: Vec<String>,
    /// Binaries of `tests/`.
    pub programs: Vec<String>,
    /// The kernels on which it belongs to the default set.
    pub default: Vec<Kernel>,
    pub timeout_seconds: u64,
    pub compare: Vec<Comparison>,
    /// Disks with a file system that must be sound.
    pub fsck: Vec<String>,
    pub cuts: Option<Cuts>,
    pub log_writes: Option<LogWrites>,
    /// The disk with its root directory.
    pub debian: Option<String>,
    /// Its own.
    pub initramfs: Option<Initramfs>,
    /// Debian's, for it.
    pub packages: Vec<String>,
    /// The disk that its root is put back from.
    pub boots_from: Option<String>,
    /// Disks that start a machine each.
    pub boots: Vec<String>,
}

/// How often the machine loses its power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cuts {
    pub by_default: u64,
    pub in_full: u64,
}

/// Disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogWrites {
    pub log: String,
    pub volume: String,
    pub journal: String,
    /// How many instants besides the marks are compared.
    pub instants: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    pub name: String,
    pub bytes: u64,
    pub bus: Bus,
    pub sector_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    Virtio,
    Nvme,
    Scsi,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    pub left: Part,
    pub right: Part,
}

/// A range of a disk's image; without a length to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub disk: String,
    pub offset: u64,
    pub bytes: Option<u64>,
}

const TIMEOUT_SECONDS: u64 = 300;

/// All scenarios of the folder, by name.
pub fn all(folder: &Path) -> Result<Vec<Scenario>> {
    let mut scenarios = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let script = entry?.path();
        if script.extension().is_none_or(|extension| extension != "sh") {
            continue;
        }
        let text =
            fs::read_to_string(&script).with_context(|| format!("cannot read {}", script.display()))?;
        scenarios.push(parse(&script, &text).with_context(|| script.display().to_string())?);
    }
    scenarios.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(scenarios)
}

/// Reads the head of a script.
pub fn parse(script: &Path, text: &str) -> Result<Scenario> {
    let name = script.file_stem().context("a script has a name")?.to_string_lossy().into_owned();
    let mut scenario = Scenario {
        name,
        script: script.to_owned(),
        kernels: Vec::new(),
        disks: Vec::new(),
        modules: Vec::new(),
        parameters: Vec::new(),
        cmdline: Vec::new(),
        tools: Vec::new(),
        programs: Vec::new(),
        default: Vec::new(),
        timeout_seconds: TIMEOUT_SECONDS,
        compare: Vec::new(),
        fsck: Vec::new(),
        cuts: None,
        log_writes: None,
        debian: None,
        initramfs: None,
        packages: Vec::new(),
        boots_from: None,
        boots: Vec::new(),
    };
    let mut default = None;
    for line in text.lines().take_while(|line| line.starts_with('#')) {
        let Some((key, value)) = directive(line) else { continue };
        let words = value.split_whitespace();
        match key {
            "kernels" => scenario.kernels = words.map(str::parse).collect::<Result<_>>()?,
            "disks" => scenario.add_disks(words, Bus::Virtio)?,
            "nvme" => scenario.add_disks(words, Bus::Nvme)?,
            "scsi" => scenario.add_disks(words, Bus::Scsi)?,
            "modules" => scenario.modules = words.map(str::to_owned).collect(),
            "parameters" => scenario.parameters.extend(words.map(parameter).collect::<Result<Vec<_>>>()?),
            "cmdline" => scenario.cmdline = words.map(str::to_owned).collect(),
            "tools" => scenario.tools = words.map(str::to_owned).collect(),
            "programs" => scenario.programs = words.map(str::to_owned).collect(),
            "default" => default = Some(value),
            "timeout" => scenario.timeout_seconds = value.parse().context("timeout: seconds")?,
            "compare" => scenario.compare.push(comparison(value)?),
            "fsck" => scenario.fsck = words.map(str::to_owned).collect(),
            "cuts" => scenario.cuts = Some(cuts(value)?),
            "log-writes" => scenario.log_writes = Some(log_writes(value)?),
            "debian" => scenario.debian = Some(value.to_owned()),
            "initramfs" => scenario.initramfs = Some(initramfs(script, value)?),
            "packages" => scenario.packages = words.map(str::to_owned).collect(),
            "boots-from" => scenario.boots_from = Some(value.to_owned()),
            "boots" => scenario.boots = words.map(str::to_owned).collect(),
            "runs" => scenario.script = script.with_file_name(value),
            _ => bail!("`{key}:` is no directive of a scenario (see xtask/src/scenario.rs)"),
        }
    }

    ensure!(!scenario.kernels.is_empty(), "`# kernels:` is missing");
    scenario.default = match default {
        Some("yes") => scenario.kernels.clone(),
        Some("no") => Vec::new(),
        Some(kernels) => kernels.split_whitespace().map(str::parse).collect::<Result<_>>()?,
        None => bail!("`# default: yes|no|KERNELS` is missing"),
    };
    for kernel in &scenario.default {
        ensure!(scenario.kernels.contains(kernel), "default: {kernel} is not among its kernels");
    }
    let compared = scenario.compare.iter().flat_map(|compare| [&compare.left.disk, &compare.right.disk]);
    let logged = scenario.log_writes.iter().flat_map(|disks| [&disks.log, &disks.volume, &disks.journal]);
    let started = scenario.debian.iter().chain(&scenario.boots_from).chain(&scenario.boots);
    for name in compared.chain(logged).chain(&scenario.fsck).chain(started) {
        ensure!(scenario.disks.iter().any(|disk| disk.name == *name), "there is no disk `{name}`");
    }
    ensure!(scenario.initramfs.is_none() || scenario.debian.is_some(), "initramfs: that of a `# debian:`");
    ensure!(
        scenario.boots_from.is_none() || scenario.initramfs.is_some(),
        "boots-from: the machine has to boot by its own initramfs"
    );
    ensure!(
        scenario.packages.is_empty() || scenario.initramfs.is_some(),
        "packages: only a Debian with an initramfs is made for one scenario"
    );
    for name in &scenario.boots {
        let virtio = scenario.disks_on(Bus::Virtio).any(|disk| disk.name == *name);
        ensure!(virtio, "boots: `{name}`: the firmware is asked to start from a disk of `disks`");
    }
    Ok(scenario)
}

impl Scenario {
    /// The disks of a bus, in the order in which the guest sees them.
    pub fn disks_on(&self, bus: Bus) -> impl Iterator<Item = &Disk> {
        self.disks.iter().filter(move |disk| disk.bus == bus)
    }

    fn add_disks<'a>(&mut self, words: impl Iterator<Item = &'a str>, bus: Bus) -> Result<()> {
        for word in words {
            self.disks.push(disk(word, bus)?);
        }
        Ok(())
    }
}

fn initramfs(script: &Path, value: &str) -> Result<Initramfs> {
    let (config, made_by) = match value.split_whitespace().collect::<Vec<_>>()[..] {
        [config, "initramfs-tools"] => (config, InitramfsTool::InitramfsTools),
        [config, "dracut"] => (config, InitramfsTool::Dracut),
        _ => bail!("initramfs: `{value}` is not a configuration, and initramfs-tools or dracut"),
    };
    Ok(Initramfs { config: script.with_file_name(config), made_by })
}

/// `# key: value`, where the key is one lower-case word; anything else is a comment.
fn directive(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.strip_prefix("# ")?.split_once(':')?;
    let is_word = !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    is_word.then_some((key, value.trim()))
}

fn parameter(word: &str) -> Result<String> {
    let known = word.split_once('=').is_some_and(|(name, _)| name.contains('.'));
    ensure!(known, "parameters: `{word}` is not MODULE.NAME=VALUE");
    Ok(word.to_owned())
}

fn disk(word: &str, bus: Bus) -> Result<Disk> {
    let (name, size) = word.split_once('=').with_context(|| format!("disks: `{word}` is not NAME=SIZE"))?;
    let (size, sector) = size.split_once('/').unwrap_or((size, "512"));
    let is_name =
        !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    ensure!(is_name, "disks: `{name}`: a name is of a-z, 0-9 and _");
    let bytes = size_bytes(size)?;
    let sector_bytes = size_bytes(sector)?;
    ensure!(matches!(sector_bytes, 512 | 4096), "disks: {name}: sectors are of 512 or 4096 bytes");
    ensure!(bytes > 0 && bytes.is_multiple_of(sector_bytes), "disks: {name}: whole sectors, at least one");
    Ok(Disk { name: name.to_owned(), bytes, bus, sector_bytes })
}

fn comparison(value: &str) -> Result<Comparison> {
    match value.split_whitespace().collect::<Vec<_>>()[..] {
        [left, right] => Ok(Comparison { left: part(left)?, right: part(right)? }),
        _ => bail!("compare: `{value}` is not two disks"),
    }
}

fn part(word: &str) -> Result<Part> {
    let Some((disk, range)) = word.split_once('@') else {
        return Ok(Part { disk: word.to_owned(), offset: 0, bytes: None });
    };
    let (offset, bytes) = match range.split_once('+') {
        Some((offset, bytes)) => (offset, Some(size_bytes(bytes)?)),
        None => (range, None),
    };
    Ok(Part { disk: disk.to_owned(), offset: size_bytes(offset)?, bytes })
}

fn cuts(value: &str) -> Result<Cuts> {
    let (by_default, in_full) = value.split_once(' ').context("cuts: by default, in full")?;
    let cuts = Cuts { by_default: by_default.parse()?, in_full: in_full.parse()? };
    ensure!(cuts.by_default > 0 && cuts.in_full > 0, "cuts: at least one");
    Ok(cuts)
}

fn log_writes(value: &str) -> Result<LogWrites> {
    let words: Vec<_> = value.split_whitespace().collect();
    let (disks, instants) = match words[..] {
        [log, volume, journal] => ([log, volume, journal], 0),
        [log, volume, journal, instants] => ([log, volume, journal], instants.parse()?),
        _ => bail!("log-writes: `{value}` is not the disks of the log, of the volume and of the journal"),
    };
    let [log, volume, journal] = disks.map(str::to_owned);
    Ok(LogWrites { log, volume, journal, instants })
}

/// `1048576`, `4K`, `192M` or `1G`, in powers of 1024.
fn size_bytes(text: &str) -> Result<u64> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().with_context(|| format!("`{text}` is no size"))?;
    number.checked_mul(1 << shift).with_context(|| format!("`{text}` is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "#!/bin/sh\n# Shows that a partition: and only it, is protected.\n# kernels: 6.1 6.12\n";

    fn scenario(rest: &str) -> Result<Scenario> {
        parse(Path::new("/x/part.sh"), &format!("{HEAD}{rest}\n. /lib.sh\n# disks: ignored=1M\n"))
    }

    #[test]
    fn every_directive_is_read() {
        let read = scenario(
            "# disks: source=192M target=1G\n# modules: dm-mod ext4\n# tools: fio\n# default: 6.12\n# timeout: 60\n\
             # compare: source@1M+134217728 target\n# compare: target@4K source\n# nvme: fast=4M/4096\n\
             # parameters: brd.rd_nr=1\n# cmdline: nvme_core.multipath=N\n\
             # fsck: target\n# programs: ways\n# cuts: 3 30\n# log-writes: target source source 5\n\
             # debian: source\n# initramfs: part.toml dracut\n# boots-from: target\n\
             # packages: lvm2 xfsprogs\n# boots: target source",
        )
        .expect("a good head");
        assert_eq!(read.name, "part");
        assert_eq!(read.kernels, [Kernel::V6_1, Kernel::V6_12]);
        assert_eq!(read.default, [Kernel::V6_12]);
        let disk =
            |name: &str, bytes, bus, sector_bytes| Disk { name: name.into(), bytes, bus, sector_bytes };
        assert_eq!(read.disks[0], disk("source", 192 << 20, Bus::Virtio, 512));
        assert_eq!(read.disks_on(Bus::Nvme).collect::<Vec<_>>(), [&disk("fast", 4 << 20, Bus::Nvme, 4096)]);
        assert_eq!((&*read.parameters[0], &*read.cmdline[0]), ("brd.rd_nr=1", "nvme_core.multipath=N"));
        assert_eq!(read.disks[1].bytes, 1 << 30);
        assert_eq!((read.modules.len(), read.tools.len(), read.timeout_seconds), (2, 1, 60));
        let part = |disk: &str, offset, bytes| Part { disk: disk.into(), offset, bytes };
        assert_eq!(read.compare[0].left, part("source", 1 << 20, Some(134_217_728)));
        assert_eq!(read.compare[0].right, part("target", 0, None));
        assert_eq!(read.compare[1].left, part("target", 4096, None));
        assert_eq!((&*read.fsck, &*read.programs), (&["target".to_owned()][..], &["ways".to_owned()][..]));
        assert_eq!(read.cuts, Some(Cuts { by_default: 3, in_full: 30 }));
        assert_eq!(read.debian.as_deref(), Some("source"));
        let config = PathBuf::from("/x/part.toml");
        assert_eq!(read.initramfs, Some(Initramfs { config, made_by: InitramfsTool::Dracut }));
        assert_eq!(read.boots_from.as_deref(), Some("target"));
        assert_eq!(
            (read.packages.join("+"), read.boots.join("+")),
            ("lvm2+xfsprogs".into(), "target+source".into())
        );
        let log_writes = read.log_writes.expect("named");
        assert_eq!((&*log_writes.log, log_writes.instants), ("target", 5));
    }

    #[test]
    fn yes_means_on_all_its_kernels_and_no_on_none() {
        assert_eq!(scenario("# default: yes").expect("good").default.len(), 2);
        assert!(scenario("# default: no").expect("good").default.is_empty());
    }

    #[test]
    fn a_misspelt_directive_is_refused() {
        let error = scenario("# default: no\n# disk: source=1M").expect_err("`disk` is not `disks`");
        assert!(error.to_string().contains("`disk:`"), "{error}");
    }

    #[test]
    fn what_cannot_be_true_is_refused() {
        for bad in [
            "",
            "# default: 6.6",
            "# default: yes\n# disks: source",
            "# default: yes\n# disks: source=1000",
            "# default: yes\n# disks: source=99999999999G",
            "# default: yes\n# disks: source=1M\n# compare: source",
            "# default: yes\n# disks: source=1M\n# compare: source target",
            "# default: yes\n# nvme: fast=1M/1024",
            "# default: yes\n# parameters: rd_nr=1",
            "# default: yes\n# timeout: soon",
            "# default: yes\n# cuts: 3",
            "# default: yes\n# cuts: 0 30",
            "# default: yes\n# fsck: target",
            "# default: yes\n# disks: root=1M\n# boots-from: root",
            "# default: yes\n# disks: root=1M\n# debian: root\n# packages: lvm2",
            "# default: yes\n# boots: root",
            "# default: yes\n# scsi: root=1M\n# boots: root",
            "# default: yes\n# disks: log=1M\n# log-writes: log",
            "# default: yes\n# disks: log=1M\n# log-writes: log log log some",
            "# default: yes\n# disks: log=1M\n# log-writes: log log journal",
        ] {
            assert!(scenario(bad).is_err(), "{bad}");
        }
    }
}
