//! What a round does, chosen by its seed.

use std::fmt;
use std::path::{Path, PathBuf};

use afterwrite_tests::*;
use anyhow::Result;

use crate::faults::Fault;

const RAW_BYTES: u64 = 64 * MIB;
/// Of the partition, on a disk with a neighbour on either side.
const PARTITION_START: u64 = 16 * MIB;
const NEIGHBOUR_BYTES: u64 = 16 * MIB;
const FAULTS_MIN: u64 = 2;
const FAULTS_MAX: u64 = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Loop512,
    Loop4096,
    Zram,
    Partition,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    RawWriters,
    RawFio,
    Files(Fs),
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub kind: Kind,
    pub content: Content,
    pub capture: &'static str,
    pub rung: &'static str,
    pub ring: &'static str,
    pub sync: &'static str,
    pub mark_every: &'static str,
    /// File systems of the disks of journal and target.
    pub journal_fs: Fs,
    /// None: the target is a device.
    pub target_fs: Option<Fs>,
    pub faults: Vec<Fault>,
    /// At the end: killed and started once more before it is stopped.
    pub killed_last: bool,
}

impl Plan {
    pub fn choose(random: &mut Random) -> Plan {
        let content = match random.below(6) {
            0 | 1 => Content::RawWriters,
            2 => Content::RawFio,
            _ => Content::Files(random.pick(&Fs::ALL)),
        };
        let target_fs = [Some(Fs::Ext4), Some(Fs::Xfs), Some(Fs::Ext4), None];
        let mut plan = Plan {
            kind: random.pick(&[Kind::Loop512, Kind::Loop4096, Kind::Zram, Kind::Partition]),
            content,
            capture: random.pick(&["extents", "extents", "payload"]),
            rung: random.pick(&["tp_btf", "tp_btf", "raw_tp", "tracepoint"]),
            ring: random.pick(&["64KiB", "256KiB", "1MiB", "16MiB"]),
            sync: random.pick(&["mark", "interval", "interval", "always"]),
            mark_every: random.pick(&["1s", "3s", "10s", "never"]),
            journal_fs: random.pick(&[Fs::Ext4, Fs::Xfs]),
            target_fs: random.pick(&target_fs),
            faults: Vec::new(),
            killed_last: random.below(3) == 0,
        };
        let possible: Vec<Fault> = Fault::all()
            .into_iter()
            .filter(|fault| plan.target_fs.is_some() || !fault.is_of_target())
            .collect();
        let count = FAULTS_MIN + random.below(FAULTS_MAX - FAULTS_MIN + 1);
        plan.faults = (0..count).map(|_| random.pick(&possible)).collect();
        plan
    }

    pub fn volume_bytes(&self) -> u64 {
        match self.content {
            Content::Files(fs) => fs.volume_bytes(),
            _ => RAW_BYTES,
        }
    }

    pub fn sector_bytes(&self) -> u64 {
        match self.kind {
            Kind::Loop512 | Kind::Partition => 512,
            Kind::Loop4096 | Kind::Zram => 4096,
        }
    }

    pub fn arguments(&self) -> [&str; 12] {
        [
            "--capture",
            self.capture,
            "--rung",
            self.rung,
            "--ring",
            self.ring,
            "--sync",
            self.sync,
            "--mark-every",
            self.mark_every,
            "--freeze-timeout",
            "4s",
        ]
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |fs: Option<Fs>| fs.map_or("device", Fs::name);
        write!(
            f,
            "{:?} {:?}, {}, {}, ring {}, sync {}, marks {}, journal on {}, target on {}: {:?}{}",
            self.kind,
            self.content,
            self.capture,
            self.rung,
            self.ring,
            self.sync,
            self.mark_every,
            self.journal_fs.name(),
            name(self.target_fs),
            self.faults,
            if self.killed_last { ", killed last" } else { "" }
        )
    }
}

/// The volume of a round.
pub struct Volume {
    path: PathBuf,
    /// On what is beside the partition.
    neighbour: Option<Fio>,
    _device: Box<dyn Device>,
}

impl Volume {
    pub fn new(plan: &Plan) -> Result<Volume> {
        let bytes = plan.volume_bytes();
        let whole = |device: Box<dyn Device>| Volume {
            path: device.path().to_owned(),
            neighbour: None,
            _device: device,
        };
        match plan.kind {
            Kind::Loop512 => Ok(whole(Box::new(Loop::new(bytes)?))),
            Kind::Loop4096 => Ok(whole(Box::new(Loop::with_sectors(bytes, 4096)?))),
            Kind::Zram => Ok(whole(Box::new(Zram::new(bytes)?))),
            Kind::Partition => {
                let mut disk = Loop::new(PARTITION_START + bytes + NEIGHBOUR_BYTES)?;
                let path = disk.add_partition(PARTITION_START, bytes)?;
                let filename = format!("--filename={}", disk.path().display());
                let offset = format!("--offset={}", PARTITION_START + bytes);
                let size = format!("--size={NEIGHBOUR_BYTES}");
                let job = [&*filename, &offset, &size, "--bs=16k", "--verify=crc32c", "--rate=,2m"];
                let neighbour = Some(Fio::start(&job, 24 * 3600)?);
                Ok(Volume { path, neighbour, _device: Box::new(disk) })
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ends what goes on beside it.
    pub fn quiet(&mut self) -> Result<()> {
        self.neighbour.take().map_or(Ok(()), Fio::stop)
    }
}
