//! Devices for this module's tests: loop over own files, own zram; gone when dropped, also when a test failed.

use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) struct Loop {
    pub(crate) device: PathBuf,
    image: PathBuf,
    partitions: u32,
    _dir: Option<tempfile::TempDir>,
}

impl Loop {
    pub(crate) fn with_content(content: &[u8]) -> Loop {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let image = dir.path().join("image");
        std::fs::write(&image, content).unwrap();
        Loop::owning(dir, &image)
    }

    pub(crate) fn of_size(bytes: u64) -> Loop {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let image = dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        Loop::owning(dir, &image)
    }

    fn owning(dir: tempfile::TempDir, image: &Path) -> Loop {
        let mut this = Loop::over(image);
        this._dir = Some(dir);
        this
    }

    /// Over a file that somebody else keeps.
    pub(crate) fn over(image: &Path) -> Loop {
        let device = run("losetup", &["--find", "--show", text(image)]).trim().into();
        Loop { device, image: image.to_owned(), partitions: 0, _dir: None }
    }

    /// Adds the next partition (the kernel here reads no partition tables, so by ioctl). Units are 512 bytes.
    pub(crate) fn add_partition(&mut self, start: u64, len: u64) -> PathBuf {
        let number = (self.partitions + 1).to_string();
        run("addpart", &[text(&self.device), &number, &start.to_string(), &len.to_string()]);
        self.partitions += 1;
        PathBuf::from(format!("{}p{number}", self.device.display()))
    }

    pub(crate) fn file(&self) -> &PathBuf {
        &self.image
    }

    pub(crate) fn name(&self) -> &str {
        self.device.file_name().unwrap().to_str().unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        for number in 1..=self.partitions {
            quietly("delpart", &[text(&self.device), &number.to_string()]);
        }
        quietly("losetup", &["--detach", text(&self.device)]);
    }
}

/// A zram device of our own, removed when dropped.
pub(crate) struct Zram {
    pub(crate) device: PathBuf,
    number: String,
}

impl Zram {
    pub(crate) fn without_size() -> Zram {
        let number = std::fs::read_to_string("/sys/class/zram-control/hot_add").unwrap().trim().to_owned();
        Zram { device: format!("/dev/zram{number}").into(), number }
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        if let Err(e) = std::fs::write("/sys/class/zram-control/hot_remove", &self.number) {
            eprintln!("removing zram{}: {e}", self.number);
        }
    }
}

/// A mounted file system, unmounted when dropped.
pub(crate) struct Mounted {
    pub(crate) point: PathBuf,
    _dir: tempfile::TempDir,
}

impl Mounted {
    pub(crate) fn mkfs(fs_type: &str, device: &Path) -> Mounted {
        run(&format!("mkfs.{fs_type}"), &["-q", text(device)]);
        Mounted::new(device, &[])
    }

    pub(crate) fn new(device: &Path, options: &[&str]) -> Mounted {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let point = dir.path().join("mount point"); // with a space: mountinfo escapes it
        std::fs::create_dir(&point).unwrap();
        run("mount", &[options, &[text(device), text(&point)]].concat());
        Mounted { point, _dir: dir }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        quietly("umount", &[text(&self.point)]);
    }
}

pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}: {stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn quietly(program: &str, args: &[&str]) {
    if let Err(e) = Command::new(program).args(args).output() {
        eprintln!("{program} {args:?}: {e}");
    }
}
