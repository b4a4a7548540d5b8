//! Targets that are block devices: loop devices over files of our own. Needs root and the loop driver.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use afterwrite::apply::{Replica, ReplicaFiles, ReplicaState};
use afterwrite::journal::{Journal, JournalOptions, Writer};
use afterwrite::model::{ByteRange, Mark, MarkId, PointClass, RecordBody, Timestamp, VolumeId, VolumeInfo};
use afterwrite::restore::{ReplayOptions, replay, verify};
use afterwrite::target::{OpenTarget, TargetError, TargetWriter};

const SIZE: u64 = 4 << 20;

/// A loop device over a file of ours; detached when dropped, also when the test failed.
struct Loop {
    device: PathBuf,
    image: PathBuf,
    _dir: tempfile::TempDir,
}

impl Loop {
    fn holding(byte: u8, size: u64) -> Loop {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let image = dir.path().join("image");
        fs::write(&image, vec![byte; size as usize]).unwrap();
        let device = run("losetup", &["--find", "--show", image.to_str().unwrap()]);
        Loop { device: device.trim().into(), image, _dir: dir }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        File::open(&self.device).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // The flag would stay with the number and meet the next who gets it.
        let _ = Command::new("blockdev").arg("--setrw").arg(&self.device).status();
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn open(path: &Path, how: OpenTarget) -> Result<TargetWriter, TargetError> {
    TargetWriter::open(path, SIZE, how)
}

fn refusal(path: &Path, how: OpenTarget) -> TargetError {
    match open(path, how) {
        Ok(_) => panic!("{} must be refused", path.display()),
        Err(error) => error,
    }
}

const NEW: OpenTarget = OpenTarget::New { force: false };
const FORCED: OpenTarget = OpenTarget::New { force: true };

#[test]
fn writes_zeros_and_discards_read_back_also_unaligned() {
    let device = Loop::holding(0xee, SIZE);
    let mut target = open(&device.device, FORCED).unwrap();
    let mut model = vec![0xee; SIZE as usize];
    for (start, end, zero, discard) in [
        (0, 1 << 20, false, false),
        (100, 5000, true, false),
        (4096, 8192, true, false),
        (512_000, 800_001, true, false),
        (2 << 20, 3 << 20, true, true),
        ((2 << 20) + 3, (2 << 20) + 600, false, false),
        (3_999_999, SIZE, true, true),
    ] {
        let range = ByteRange::new(start, end);
        let part = &mut model[start as usize..end as usize];
        if zero {
            part.fill(0);
            target.zero(range, discard).unwrap();
        } else {
            part.fill(start as u8 | 1);
            target.write(start, part).unwrap();
        }
        let mut now = vec![0; SIZE as usize];
        target.read_at(0, &mut now).unwrap();
        assert!(now == model, "after {range}");
    }
    target.sync().unwrap();
    drop(target);
    assert!(device.bytes() == model);
    // The discarded MiB was given back to the file below, except for the block written into it since.
    let blocks = fs::metadata(&device.image).unwrap().blocks() * 512;
    assert!(blocks <= SIZE - (1 << 20) + (64 << 10), "{blocks} bytes are still allocated");
}

#[test]
fn a_device_with_content_too_small_read_only_or_in_use_is_refused() {
    let device = Loop::holding(7, SIZE);
    assert!(matches!(refusal(&device.device, NEW), TargetError::NotEmpty { .. }));
    let small = TargetWriter::open(&device.device, SIZE + 512, FORCED).err().unwrap();
    assert!(matches!(small, TargetError::TooSmall { size_bytes: SIZE, .. }), "{small}");
    let held = open(&device.device, FORCED).unwrap();
    assert!(matches!(refusal(&device.device, FORCED), TargetError::Busy { .. }));
    drop(held);
    run("blockdev", &["--setro", device.device.to_str().unwrap()]);
    assert!(matches!(refusal(&device.device, FORCED), TargetError::ReadOnly { .. }));
    assert!(device.bytes().iter().all(|byte| *byte == 7));
    drop(open(&Loop::holding(0, SIZE).device, NEW).unwrap());
}

#[test]
fn a_mounted_device_is_refused() {
    let device = Loop::holding(0, 16 << 20);
    run("mkfs.ext4", &["-q", device.device.to_str().unwrap()]);
    let dir = tempfile::tempdir().unwrap();
    run("mount", &[device.device.to_str().unwrap(), dir.path().to_str().unwrap()]);
    let refused = open(&device.device, FORCED).err();
    run("umount", &[dir.path().to_str().unwrap()]);
    assert!(matches!(refused, Some(TargetError::Busy { .. })), "{refused:?}");
}

fn journal(dir: &Path, baseline: bool) -> VolumeInfo {
    let info = VolumeInfo {
        id: VolumeId([3; 16]),
        source: "/dev/example".into(),
        identity: "name:example".into(),
        size_bytes: SIZE,
        sector_bytes: 512,
        created: Timestamp(0),
    };
    let mut writer = Writer::create(dir, &info, JournalOptions::default()).unwrap();
    if baseline {
        writer.append(Timestamp(1), RecordBody::Zero(ByteRange::new(0, SIZE))).unwrap();
    }
    writer.append(Timestamp(2), RecordBody::Data { start: 1 << 20, bytes: vec![9; 1 << 20] }).unwrap();
    writer.append(Timestamp(3), RecordBody::Discard(ByteRange::new(3 << 19, 5 << 19))).unwrap();
    let mark = Mark { id: MarkId(1), class: PointClass::Crash, label: String::new() };
    writer.append(Timestamp(4), RecordBody::Mark(mark)).unwrap();
    writer.sync().unwrap();
    info
}

#[test]
fn replay_onto_a_full_device_leaves_nothing_of_what_was_there() {
    for baseline in [true, false] {
        // Larger than the volume: the rest is not ours.
        let device = Loop::holding(0xee, SIZE + (1 << 20));
        let dir = tempfile::tempdir().unwrap();
        journal(&dir.path().join("journal"), baseline);
        let mut options = ReplayOptions {
            journal: dir.path().join("journal"),
            to: "latest".parse().unwrap(),
            target: device.device.clone(),
            force: false,
            dry_run: false,
        };
        replay(&options, &mut |_| {}).unwrap_err();
        assert!(device.bytes().iter().all(|byte| *byte == 0xee));
        options.force = true;
        let outcome = replay(&options, &mut |_| {}).unwrap();
        assert_eq!(outcome.undefined_bytes > 0, !baseline);
        let mut wanted = vec![0; SIZE as usize];
        wanted[1 << 20..3 << 19].fill(9);
        let bytes = device.bytes();
        assert!(bytes[..SIZE as usize] == wanted);
        assert!(bytes[SIZE as usize..].iter().all(|byte| *byte == 0xee));
        let source = dir.path().join("source");
        fs::write(&source, &wanted).unwrap();
        assert!(verify(&source, &device.device, &mut |_| {}).unwrap().identical);
    }
}

#[test]
fn a_replica_on_a_device_is_found_again_when_its_number_changes() {
    let dir = tempfile::tempdir().unwrap();
    let info = journal(&dir.path().join("journal"), true);
    let device = Loop::holding(0, SIZE);
    let journal = Journal::open(&dir.path().join("journal")).unwrap();
    let point = journal.points().unwrap().pop().unwrap();
    let (mut replica, state) =
        Replica::open(&ReplicaFiles::first(&dir.path().join("journal")), &device.device, &info, false)
            .unwrap();
    assert_eq!(state, ReplicaState::Fresh);
    replica.advance(&journal, point.lsn, Some(&point)).unwrap();
    drop(replica);
    // The same disk under another number: a second loop device over the same file.
    let again = run("losetup", &["--find", "--show", device.image.to_str().unwrap()]);
    let again = PathBuf::from(again.trim());
    let opened = Replica::open(&ReplicaFiles::first(&dir.path().join("journal")), &again, &info, false)
        .map(|opened| opened.1);
    run("losetup", &["--detach", again.to_str().unwrap()]);
    assert!(matches!(opened, Ok(ReplicaState::At(at)) if at.mark == Some(point.id)));
}

#[test]
fn verify_reads_what_is_on_a_device_not_what_the_page_cache_holds() {
    let device = Loop::holding(1, SIZE);
    let other = device.image.with_extension("other");
    fs::write(&other, vec![1; SIZE as usize]).unwrap();
    device.bytes(); // now cached
    // Behind the device's back, as a mounted file system writes beside its page cache.
    let mut image = File::options().write(true).open(&device.image).unwrap();
    image.write_all(&[2; 4096]).unwrap();
    image.sync_all().unwrap();
    let report = verify(&device.device, &other, &mut |_| {}).unwrap();
    assert_eq!(report.differing, [ByteRange::new(0, 4096)]);
}
