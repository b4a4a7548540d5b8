//! Checking a file system in an image, without changing it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::run;

/// `Err` inside says what is wrong with it.
pub fn check(image: &Path) -> Result<Result<(), String>> {
    let mut head = [0; 2048];
    File::open(image)
        .and_then(|file| file.read_exact_at(&mut head, 0))
        .with_context(|| format!("cannot read {}", image.display()))?;
    let mut fsck = if head[..4] == *b"XFSB" {
        run::program("xfs_repair")?
    } else if head[0x438..0x43a] == [0x53, 0xef] {
        let mut e2fsck = run::program("e2fsck")?;
        e2fsck.arg("-f");
        e2fsck
    } else {
        bail!("{}: neither ext4 nor xfs", image.display());
    };
    let output = fsck.arg("-n").arg(image).output().context("cannot start a file system check")?;
    if output.status.success() {
        return Ok(Ok(()));
    }
    let said = [output.stdout, output.stderr].concat();
    let program = fsck.get_program().to_string_lossy();
    Ok(Err(format!("{program} finds it damaged ({}): {}", output.status, String::from_utf8_lossy(&said))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sound_file_system_passes_and_a_damaged_one_does_not() {
        let image = std::env::temp_dir().join(format!("xtask-fsck-{}", std::process::id()));
        let file = File::create(&image).expect("a new file");
        file.set_len(8 << 20).expect("it can be sparse");
        assert!(check(&image).is_err(), "zeros are no file system");
        run::output(run::program("mkfs.ext4").expect("installed").arg("-q").arg(&image))
            .expect("it is large enough");
        assert_eq!(check(&image).expect("it is ext4"), Ok(()));
        // The inode table, somewhere behind superblock and bitmaps.
        file.write_all_at(&[0xff; 64 << 10], 64 << 10).expect("it fits");
        assert!(check(&image).expect("it is ext4").is_err());
        std::fs::remove_file(&image).expect("it was there");
    }
}
