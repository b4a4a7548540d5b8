//! A journal on a disk that fails: XFS on a loop device whose file's own file system is full. Needs root, the loop driver
//! and mkfs.xfs.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use afterwrite::journal::{Journal, JournalError, JournalOptions, SyncPolicy, Writer};
use afterwrite::model::{Lsn, Record, RecordBody, Timestamp, VolumeId, VolumeInfo};

/// A file system on a loop device on a tmpfs of ours; all gone when dropped, also when the test failed.
struct Disk {
    dir: tempfile::TempDir,
    device: String,
}

impl Disk {
    fn new() -> Disk {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let mut disk = Disk { dir, device: String::new() };
        fs::create_dir(disk.host()).unwrap();
        fs::create_dir(disk.mount_point()).unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=80m", "none", text(&disk.host())]);
        let image = disk.host().join("image");
        // The file system believes in 320 MiB; there are 80.
        fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
        run("mkfs.xfs", &["-q", "-K", text(&image)]);
        disk.device = run("losetup", &["--find", "--show", text(&image)]).trim().to_owned();
        disk.mount();
        disk
    }

    fn host(&self) -> PathBuf {
        self.dir.path().join("host")
    }

    fn mount_point(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn mount(&self) {
        run("mount", &[&self.device, text(&self.mount_point())]);
    }

    /// Forgets all that is cached.
    fn mount_again(&self) {
        run("umount", &[text(&self.mount_point())]);
        self.mount();
    }

    /// Takes all room from below the file system.
    fn fill(&self) {
        let mut file = fs::File::create(self.host().join("filler")).unwrap();
        for piece in [1 << 20, 4096, 512] {
            while file.write_all(&vec![1; piece]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.host().join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let quietly = |program: &str, args: &[&str]| drop(Command::new(program).args(args).output());
        quietly("umount", &[text(&self.mount_point())]);
        quietly("losetup", &["--detach", &self.device]);
        quietly("umount", &[text(&self.host())]);
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn options() -> JournalOptions {
    JournalOptions { sync: SyncPolicy::Mark, zstd_level: 0, ..JournalOptions::default() }
}

fn data(writer: &mut Writer, fill: u8) {
    writer.append(Timestamp(0), RecordBody::Data { start: 0, bytes: vec![fill; 256 << 10] }).unwrap();
}

fn read(dir: &Path) -> Vec<Record> {
    let journal = Journal::open(dir).unwrap();
    let report = journal.check(&mut |_, _| {}).unwrap();
    assert_eq!(report.torn_tail, None);
    journal.records(Lsn(1), report.last_lsn).unwrap().map(Result::unwrap).collect()
}

fn sizes(dir: &Path) -> Vec<(PathBuf, u64)> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    let mut sizes: Vec<_> = entries.map(|entry| (entry.path(), entry.metadata().unwrap().len())).collect();
    sizes.sort();
    sizes
}

#[test]
fn after_an_fsync_error_the_same_process_goes_on_and_nothing_on_the_disk_is_a_lie() {
    let disk = Disk::new();
    let dir = disk.mount_point().join("journal");
    let info = VolumeInfo {
        id: VolumeId([3; 16]),
        source: "/dev/vdb".into(),
        identity: "name:vdb".into(),
        size_bytes: 1 << 30,
        sector_bytes: 512,
        created: Timestamp(0),
    };
    let mut writer = Writer::create(&dir, &info, options()).unwrap();
    (0..4).for_each(|fill| data(&mut writer, fill));
    let durable = writer.sync().unwrap();

    disk.fill();
    (4..12).for_each(|fill| data(&mut writer, fill));
    writer.flush().unwrap();
    let error = writer.sync().unwrap_err();
    assert!(matches!(error, JournalError::NoSpace { .. } | JournalError::Io { .. }), "{error}");
    drop(writer);

    // Without room it may be opened, as what is not on the disk is cut; where it fails it grows nothing.
    let mut closed = false;
    for _ in 0..5 {
        let left = sizes(&dir);
        match Writer::open(&dir, options()) {
            Ok((_, recovery)) => {
                assert!(recovery.last_lsn >= durable, "{recovery:?}");
                closed |= recovery.closed.is_some();
            }
            Err(JournalError::NoSpace { .. } | JournalError::Io { .. }) => assert_eq!(sizes(&dir), left),
            Err(other) => panic!("{other}"),
        }
    }

    disk.free();
    let (mut writer, recovery) = Writer::open(&dir, options()).unwrap();
    closed |= recovery.closed.is_some();
    assert!(closed && recovery.last_lsn >= durable, "{recovery:?}");
    let kept = recovery.last_lsn.0;
    (100..104).for_each(|fill| data(&mut writer, fill));
    writer.sync().unwrap();
    drop(writer);

    // What is on the disk, without the cache.
    disk.mount_again();
    let fills: Vec<u8> = read(&dir)
        .iter()
        .map(|record| match &record.body {
            RecordBody::Data { bytes, .. } => bytes[0],
            other => panic!("{other:?}"),
        })
        .collect();
    let wanted: Vec<u8> = (0..u8::try_from(kept).unwrap()).chain(100..104).collect();
    assert_eq!(fills, wanted);
}
