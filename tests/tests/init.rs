//! `afterwrite init`: what it writes can be run, what it cannot do it says, and it overwrites nothing.

use afterwrite_tests::*;
use anyhow::{Result, ensure};

#[test]
fn what_it_writes_is_a_configuration_that_runs() -> Result<()> {
    let disk = Loop::new(32 * MIB)?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    let mut service = Service::new()?;
    let config = service.path("config.toml");
    let init = |at: &std::path::Path| {
        let mut init = afterwrite();
        init.arg("init")
            .arg("--volume")
            .arg(disk.path())
            .arg("--at")
            .arg(at)
            .args(["--watch", "100ms", "--config"]);
        init.arg(&config);
        init
    };
    // Not on the volume itself.
    let refused = finish(&mut init(&mount.point().join("backup")), PATIENCE)?;
    says(&refused, 2, &["nothing was written", "another disk"])?;
    ensure!(!config.exists());
    let done = finish(&mut init(&service.path("backup")), PATIENCE)?;
    says(&done, 0, &["is written", "config check"])?;
    ensure!(done.stdout.contains("ext4 at") && done.stdout.contains("32"), "{}", done.stdout);
    let text = std::fs::read_to_string(&config)?;
    says(&finish(&mut init(&service.path("other")), PATIENCE)?, 2, &["exists"])?;
    ensure!(std::fs::read_to_string(&config)? == text);

    service.start()?;
    service.wait_live(&[disk.path()])?;
    mount.unmount()?;
    service.stop()?;
    let name = disk.path().file_name().expect("a device has a name");
    assert_identical(disk.path(), &service.path("backup").join(name).with_extension("img"))
}

#[test]
fn without_a_terminal_it_lists_what_there_is() -> Result<()> {
    let disk = Loop::new(32 * MIB)?;
    let dir = scratch()?;
    let mut init = afterwrite();
    init.args(["init", "--watch", "10ms", "--config"]).arg(dir.path().join("config.toml"));
    let listed = finish(&mut init, PATIENCE)?;
    says(&listed, 2, &["--volume", "--at"])?;
    ensure!(listed.stdout.contains(&*disk.path().to_string_lossy()), "{}", listed.stdout);
    Ok(())
}
