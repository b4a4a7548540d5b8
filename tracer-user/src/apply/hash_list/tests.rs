//! Whatever happens, a known entry is the hash of what the target holds.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;

use super::format::ENTRIES_START;
use super::*;
use crate::apply::history::{History, SIZE};
use crate::apply::{ApplyError, Checkpoint, Replica};
use crate::model::{ByteRange, GranuleHash, Granules, Point, PointClass, RecordBody, VolumeId};
use crate::target::faulty::{Fault, FaultyDisk, Machine};
use crate::target::{Medium, Op, TargetWriter};

const GRANULE: u64 = 4096;

fn header(history: &History, id: HashListId) -> HashListHeader {
    let granules = Granules::new(SIZE as u64, GRANULE).unwrap();
    HashListHeader { volume: history.info.id, id, granules, target: [0; 32] }
}

/// A target and its hash list on the disks of a machine, with the checkpoint that is in the journal's directory.
struct Bench<'a> {
    history: &'a History,
    machine: Machine,
    target: FaultyDisk,
    hashes: FaultyDisk,
    header: HashListHeader,
    replica: Replica,
}

impl<'a> Bench<'a> {
    /// As `Replica::open` would do it.
    fn start(history: &'a History, target: Vec<u8>, mut hashes: Vec<u8>) -> Bench<'a> {
        let machine = Machine::default();
        let target = FaultyDisk::of(&machine, target);
        let found = Checkpoint::read(&history.files()).unwrap();
        let named = found.as_ref().and_then(|checkpoint| checkpoint.hash_list);
        let id = named.unwrap_or_else(|| {
            hashes.fill(0);
            HashListId(hashes.len() as u64)
        });
        let header = header(history, id);
        let hashes = FaultyDisk::of(&machine, hashes);
        let list = HashList::over(header, Box::new(hashes.clone())).unwrap();
        let checkpoint = found.unwrap_or_else(|| Checkpoint::fresh(history.info.id, "test".as_ref(), "test"));
        let checkpoint = Checkpoint { hash_list: Some(id), ..checkpoint };
        checkpoint.write(&history.files()).unwrap();
        let medium = TargetWriter::over(target.clone(), SIZE as u64);
        let mut replica = Replica::of(&history.files(), medium, checkpoint, KeptHashes::over(list))
            .checkpoint_every(20_000);
        replica.machine = machine.clone();
        Bench { history, machine, target, hashes, header, replica }
    }

    fn empty(history: &'a History) -> Bench<'a> {
        // A checkpoint of the run before.
        fs::remove_file(history.files().checkpoint()).ok();
        let hashes = vec![0; ENTRIES_START as usize + SIZE / GRANULE as usize * 32];
        Bench::start(history, vec![0xee; SIZE], hashes)
    }

    /// From mark to mark, back to the second and to the last again, a little refreshing in between and all of it at the end; at
    /// rest the list must be true.
    fn run(&mut self) -> Result<(), ApplyError> {
        let journal = self.history.journal();
        let points = self.history.points();
        if self.replica.pending().is_none() {
            self.known();
        }
        for point in points.iter().chain([&points[1], &points[points.len() - 1]]) {
            self.replica.go_to(&journal, point.lsn, Some(point), &mut |_| {})?;
            self.known();
            self.replica.refresh_hashes(3);
            self.known();
        }
        while self.replica.refresh_hashes(7) {
            self.known();
        }
        Ok(())
    }

    /// How many entries are known, each of which must be the hash of its granule. A list that was given up is nobody's.
    fn known(&self) -> usize {
        if self.replica.hashes.id().is_none() {
            return 0;
        }
        let (target, hashes) = (self.target.bytes(), self.hashes.bytes());
        let entries = self.header.decode_entries(0, &hashes[ENTRIES_START as usize..]);
        assert_eq!(entries.len(), SIZE / GRANULE as usize);
        for (index, (hash, bytes)) in entries.iter().zip(target.chunks(GRANULE as usize)).enumerate() {
            assert!(hash.is_none_or(|hash| hash == GranuleHash::of(bytes)), "entry {index} is a lie");
        }
        entries.into_iter().flatten().count()
    }

    fn assert_complete(&self) {
        let last = self.history.points().pop().unwrap();
        assert!(
            self.target.bytes() == self.history.state(last.lsn),
            "the replica is not at mark {}",
            last.id
        );
        assert_eq!(self.known(), SIZE / GRANULE as usize);
    }

    /// After a power cut, with another part of what was not synced on each disk.
    fn after_power_cut(self, keep: [u64; 2]) -> Bench<'a> {
        let (target, hashes) = (self.target.after_power_cut(keep[0]), self.hashes.after_power_cut(keep[1]));
        Bench::start(self.history, target, hashes)
    }
}

#[test]
fn a_power_cut_at_every_operation_of_target_hash_list_and_checkpoint_leaves_no_wrong_hash() {
    const NONE: u64 = 0;
    const ALL: u64 = u64::MAX;
    const HALF: u64 = 0x5555_5555_5555_5555;
    const MIXED: u64 = 0x1b87_93c4_e2d1_0f36;
    let mut known_after_cuts = 0;
    for seed in 1..3 {
        let history = History::new(seed, 3);
        let mut good = Bench::empty(&history);
        good.run().unwrap();
        good.assert_complete();
        let ops = good.machine.ops();
        assert!(ops > 60, "only {ops} operations");
        for cut in 0..ops {
            let keeps = [[NONE, ALL], [ALL, NONE], [MIXED, HALF], [NONE, MIXED]];
            for (nth, keep) in keeps.into_iter().enumerate() {
                let mut bench = Bench::empty(&history);
                bench.machine.fail_at(cut, Fault::Crash);
                // In a refresh nobody hears of it.
                bench.run().ok();
                let mut bench = bench.after_power_cut(keep);
                if (cut + nth).is_multiple_of(3) {
                    // And once more on the way back.
                    bench.machine.fail_at((cut * 5 + nth * 7) % 23, Fault::Crash);
                    bench.run().ok();
                    bench = bench.after_power_cut([keep[1].rotate_left(6), keep[0].rotate_left(10)]);
                }
                if bench.replica.pending().is_none() {
                    known_after_cuts += bench.known();
                }
                bench.run().unwrap();
                bench.assert_complete();
            }
        }
    }
    assert!(known_after_cuts > 1000, "hardly a hash was known after a cut: {known_after_cuts}");
}

#[test]
fn a_list_that_cannot_be_written_is_given_up_and_the_replica_goes_on() {
    for fault in [Fault::Eio, Fault::NoSpace] {
        for fail_at in 0.. {
            let history = History::new(9, 4);
            let mut bench = Bench::empty(&history);
            // The list's disk fails, the others do not.
            let list_machine = Machine::default();
            let list_disk = FaultyDisk::of(&list_machine, bench.hashes.bytes());
            let list = HashList::over(bench.header, Box::new(list_disk.clone())).unwrap();
            bench.replica.hashes = KeptHashes::over(list);
            bench.hashes = list_disk;
            list_machine.fail_at(fail_at, fault);
            bench.run().unwrap();
            let last = history.points().pop().unwrap();
            assert!(bench.target.bytes() == history.state(last.lsn));
            if list_machine.ops() <= fail_at {
                assert!(fail_at > 10, "nothing failed");
                break;
            }
            assert_eq!(bench.replica.hashes.id(), None, "operation {fail_at}");
            // Whoever begins anew finds no list named, or, after a failed refresh, one that is true.
            let named = Checkpoint::read(&history.files()).unwrap().unwrap().hash_list;
            if let Some(id) = named {
                assert_eq!(id, bench.header.id);
                let list = HashList::over(bench.header, Box::new(bench.hashes.clone())).unwrap();
                bench.replica.hashes = KeptHashes::over(list);
                bench.known();
            }
        }
    }
}

#[test]
fn whole_granules_are_known_at_once_and_others_when_refreshed() {
    let mut history = History::empty(30);
    history.append(RecordBody::Data { start: 0, bytes: vec![7; SIZE] });
    history.mark(PointClass::Crash);
    history.append(RecordBody::Data { start: 5000, bytes: vec![8; 100] });
    history.append(RecordBody::Zero(ByteRange::new(64 << 10, 96 << 10)));
    history.mark(PointClass::Crash);
    history.sync();
    let mut bench = Bench::empty(&history);
    let points = history.points();
    let granules = SIZE / GRANULE as usize;
    bench.replica.advance(&history.journal(), points[0].lsn, Some(&points[0])).unwrap();
    assert_eq!(bench.known(), granules);
    bench.replica.advance(&history.journal(), points[1].lsn, Some(&points[1])).unwrap();
    assert_eq!(bench.known(), granules - 1);
    assert!(!bench.replica.refresh_hashes(10));
    bench.assert_complete();
}

#[test]
fn nothing_is_refreshed_before_the_replica_is_at_a_mark() {
    let mut history = History::empty(31);
    history.append(RecordBody::Data { start: 100, bytes: vec![7; 100] });
    history.sync();
    let mut bench = Bench::empty(&history);
    assert!(!bench.replica.refresh_hashes(100));
    bench.replica.advance(&history.journal(), crate::model::Lsn(1), None).unwrap();
    assert!(!bench.replica.refresh_hashes(100));
    assert_eq!(bench.known(), 0);
}

/// A disk whose third granule can't be read.
struct BadSector(FaultyDisk);

impl Medium for BadSector {
    fn write_at(&mut self, start: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(start, bytes)
    }
    fn zero(&mut self, range: ByteRange, discard: bool) -> io::Result<()> {
        self.0.zero(range, discard)
    }
    fn read_at(&self, start: u64, bytes: &mut [u8]) -> io::Result<()> {
        match start == 2 * GRANULE {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => self.0.read_at(start, bytes),
        }
    }
    fn sync(&mut self) -> io::Result<()> {
        self.0.sync()
    }
}

#[test]
fn a_granule_that_cannot_be_read_stays_unknown_and_is_not_read_forever() {
    let history = History::new(32, 0);
    let header = header(&history, HashListId(1));
    let target = TargetWriter::over(BadSector(FaultyDisk::new(SIZE)), SIZE as u64);
    let disk = FaultyDisk::holding(vec![0; header.file_bytes() as usize]);
    let mut list = HashList::over(header, Box::new(disk.clone())).unwrap();
    assert!(list.refresh(&target, 10).unwrap());
    assert!(!list.refresh(&target, 1000).unwrap());
    let unknown = |disk: &FaultyDisk| {
        let entries = header.decode_entries(0, &disk.bytes()[ENTRIES_START as usize..]);
        entries.iter().enumerate().filter(|(_, hash)| hash.is_none()).map(|(at, _)| at).collect::<Vec<_>>()
    };
    assert_eq!(unknown(&disk), [2]);
    // Written anew, it is known.
    list.touch(Op::Write { start: 2 * GRANULE, bytes: &[1; GRANULE as usize] }).unwrap();
    assert!(unknown(&disk).is_empty());
}

mod opening {
    use super::*;

    fn open(history: &History) -> Replica {
        Replica::open(&history.files(), &history.target("replica"), &history.info, false).unwrap().0
    }

    fn built(history: &History) -> (Replica, Vec<Point>) {
        let points = history.points();
        let mut replica = open(history);
        for point in &points {
            replica.advance(&history.journal(), point.lsn, Some(point)).unwrap();
        }
        while replica.refresh_hashes(1) {}
        (replica, points)
    }

    /// The entries as a reader beside sees them; those that are known are right.
    fn entries(history: &History) -> Vec<Option<GranuleHash>> {
        let reader = HashListReader::of_replica(&history.files()).unwrap();
        let granules = reader.header().granules;
        let target = fs::read(history.target("replica")).unwrap();
        let entries = reader.read(0..granules.count()).unwrap();
        for (index, hash) in (0..).zip(&entries) {
            let range = granules.range(index);
            let bytes = &target[range.start as usize..range.end as usize];
            assert!(hash.is_none_or(|hash| hash == GranuleHash::of(bytes)));
        }
        entries
    }

    #[test]
    fn a_list_is_found_again() {
        let history = History::new(40, 3);
        let (replica, _) = built(&history);
        assert_eq!(entries(&history).len(), 2, "64 KiB each");
        assert!(entries(&history).iter().all(Option::is_some));
        let id = replica.checkpoint().hash_list.unwrap();
        drop(replica);
        let replica = open(&history);
        assert_eq!(replica.checkpoint().hash_list, Some(id));
        assert!(entries(&history).iter().all(Option::is_some));
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(history.files().hash_list()).unwrap());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_list_that_cannot_be_used_is_begun_anew() {
        type Damage = fn(&History);
        let file =
            |history: &History| fs::OpenOptions::new().write(true).open(history.files().hash_list()).unwrap();
        fn rewrite(history: &History, change: impl Fn(&mut HashListHeader)) {
            let path = history.files().hash_list();
            let mut bytes = fs::read(&path).unwrap();
            let mut header = HashListHeader::decode(&bytes).unwrap();
            change(&mut header);
            bytes[..128].copy_from_slice(&header.encode());
            fs::write(&path, bytes).unwrap();
        }
        let damages: [(&str, Damage); 6] = [
            ("missing", |history| fs::remove_file(history.files().hash_list()).unwrap()),
            ("cut", |history| {
                fs::OpenOptions::new()
                    .write(true)
                    .open(history.files().hash_list())
                    .unwrap()
                    .set_len(4100)
                    .unwrap()
            }),
            ("of another volume", |history| rewrite(history, |header| header.volume = VolumeId([0; 16]))),
            ("of another target", |history| rewrite(history, |header| header.target = [1; 32])),
            ("an older one", |history| rewrite(history, |header| header.id = HashListId(1))),
            ("a directory", |history| {
                fs::remove_file(history.files().hash_list()).unwrap();
                fs::create_dir(history.files().hash_list()).unwrap();
            }),
        ];
        for (what, damage) in damages {
            let history = History::new(41, 2);
            let (replica, _) = built(&history);
            let id = replica.checkpoint().hash_list;
            drop(replica);
            damage(&history);
            let mut replica = open(&history);
            if what == "a directory" {
                // It can't be replaced: there is no list, and all else goes on.
                assert!(HashListReader::of_replica(&history.files()).is_err());
                assert_eq!(replica.checkpoint().hash_list, None);
                let mut history = history;
                history.round();
                history.sync();
                let point = history.points().pop().unwrap();
                replica.advance(&history.journal(), point.lsn, Some(&point)).unwrap();
                continue;
            }
            assert!(replica.checkpoint().hash_list.is_some_and(|new| Some(new) != id), "{what}");
            assert!(entries(&history).iter().all(Option::is_none), "{what}");
            while replica.refresh_hashes(1) {}
            assert!(entries(&history).iter().all(Option::is_some), "{what}");
        }
        // A byte of the header, and one of an entry.
        for (at, kept) in [(20, 0), (ENTRIES_START + 40, 1)] {
            let history = History::new(42, 2);
            drop(built(&history));
            file(&history).write_all_at(&[0x77], at).unwrap();
            drop(open(&history));
            assert_eq!(entries(&history).iter().flatten().count(), kept);
        }
    }

    #[test]
    fn a_target_that_is_emptied_has_a_new_list() {
        let history = History::new(43, 1);
        drop(built(&history));
        fs::remove_file(history.files().checkpoint()).unwrap();
        let forced = Replica::open(&history.files(), &history.target("replica"), &history.info, true);
        forced.unwrap();
        assert!(entries(&history).iter().all(Option::is_none));
    }

    #[test]
    fn the_checkpoint_of_version_1_is_read_and_gets_a_list() {
        let history = History::new(44, 1);
        let (replica, points) = built(&history);
        let there = replica.checkpoint().clone();
        drop(replica);
        let path = history.files().checkpoint();
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with("hash_list") && !line.starts_with("blake3"));
        let old: String = lines.map(|line| line.replace("version = 2", "version = 1") + "\n").collect();
        fs::write(&path, format!("{old}blake3 = \"{}\"\n", blake3::hash(old.as_bytes()).to_hex())).unwrap();
        let found = Checkpoint::read(&history.files()).unwrap().unwrap();
        assert_eq!(found, Checkpoint { hash_list: None, ..there });
        let replica = open(&history);
        assert_eq!(replica.checkpoint().mark, Some(points.last().unwrap().id));
        assert!(replica.checkpoint().hash_list.is_some());
    }
}
