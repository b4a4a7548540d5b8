//! Programs at work as they are used, each in a directory of its own below the one it is given.

use std::path::Path;
use std::process::Command;

/// The sources of Afterwrite, with their history.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository holds this crate")
}

/// Clones the repository and checks out so many of its commits, from one end of the history to the other, back and forth.
pub fn clone_and_check_out(tree: &Path, checkouts: u64) -> Command {
    // Whatever the user's own settings are: these.
    let script = r#"
        git clone --quiet --no-hardlinks "$1" clone
        cd clone
        git config gc.auto 0; git config maintenance.auto false
        tip=$(git rev-parse HEAD); count=$(git rev-list --count "$tip")
        for n in $(seq 0 $(($2 - 1))); do
            back=$((n * count / $2)); [ $((n % 2)) = 0 ] || back=$((count - 1 - back))
            git checkout --quiet --force "$(git rev-list --skip=$back --max-count=1 "$tip")"
        done
        git fsck --connectivity-only --no-dangling"#;
    let mut shell = Command::new("bash");
    shell.args(["-euc", script, "bash"]).arg(repository()).arg(checkouts.to_string()).current_dir(tree);
    shell.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_COUNT", "1");
    shell.env("GIT_CONFIG_KEY_0", "safe.directory").env("GIT_CONFIG_VALUE_0", "*");
    shell
}

/// Builds a package of this workspace, and all it depends on; what comes of it is in the tree.
pub fn build(tree: &Path, package: &str) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--offline", "--locked", "--package", package]).current_dir(repository());
    cargo.env("CARGO_TARGET_DIR", tree.join("target"));
    cargo
}

/// All below a directory, with everything that belongs to it.
pub fn copy_by_rsync(tree: &Path, from: &Path) -> Command {
    let mut rsync = Command::new("rsync");
    rsync.args(["-aHAX", "--one-file-system"]).arg(from).arg(tree);
    rsync
}
