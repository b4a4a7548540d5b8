//! `cargo xtask setup`: what building and testing need, installed where it is missing.
//!
//! On Debian it installs; elsewhere it says what to install. Whether something is there is decided by looking for
//! the thing itself, so that a complete machine of any kind passes at once.

use std::io::IsTerminal;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

/// Programs that building, tests and the demo start, and Debian's package of each.
const PROGRAMS: [(&str, &str); 37] = [
    ("cc", "gcc"),
    ("c++", "g++"),
    ("make", "make"),
    ("git", "git"),
    ("pkg-config", "pkg-config"),
    ("strip", "binutils"),
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("xfs_repair", "xfsprogs"),
    ("xfs_io", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("fio", "fio"),
    ("sqlite3", "sqlite3"),
    ("initdb", "postgresql"),
    ("pg_amcheck", "postgresql"),
    ("pgbench", "postgresql"),
    ("dmsetup", "dmsetup"),
    ("rsync", "rsync"),
    ("lvm", "lvm2"),
    ("mdadm", "mdadm"),
    ("nbd-server", "nbd-server"),
    ("nbd-client", "nbd-client"),
    ("losetup", "mount"),
    ("mount", "mount"),
    ("sfdisk", "fdisk"),
    ("partx", "util-linux"),
    ("fsfreeze", "util-linux"),
    ("addpart", "util-linux"),
    ("blkdiscard", "util-linux"),
    ("modprobe", "kmod"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
];

/// The tracers that `bench capture` compares with.
const TRACERS: [(&str, &str); 2] = [("blktrace", "blktrace"), ("bpftrace", "bpftrace")];

/// What `bench map`, `trees` and `vfs` compare with.
const FOLLOWERS: [(&str, &str); 2] = [("inotifywait", "inotify-tools"), ("lsyncd", "lsyncd")];

/// LLVM to build bpf-linker against: at least the one inside the compiler.
const LLVM_PACKAGES: [&str; 2] = ["llvm-22-dev", "libpolly-22-dev"];
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const CARGO_DENY_VERSION: &str = "0.20.2";
const CARGO_DEB_VERSION: &str = "3.8.0";
const CARGO_FUZZ_VERSION: &str = "0.13.2";

/// Installs what is missing for `build`, `test` and `demo`.
pub fn setup() -> Result<()> {
    let packages = missing_packages(&PROGRAMS, |name| run::find(name).is_some());
    let toolchain = tracer_build::find();
    if let (true, Ok(toolchain)) = (packages.is_empty(), &toolchain) {
        eprintln!("setup: all there; BPF toolchain: {toolchain}");
        return Ok(());
    }
    if !is_debian() {
        bail!("{}", instructions(&packages, toolchain.err()));
    }
    install(&packages)?;
    if let Err(missing) = toolchain {
        if missing.compiler {
            install_compiler()?;
        }
        if missing.linker {
            install_linker()?;
        }
    }
    let toolchain = tracer_build::find().context("still after installing")?;
    eprintln!("setup: done; BPF toolchain: {toolchain}");
    Ok(())
}

/// cargo-deny, which only `ci --all` needs. Compiled from source: minutes.
pub fn setup_cargo_deny() -> Result<()> {
    setup_cargo_tool("cargo-deny", CARGO_DENY_VERSION)
}

/// cargo-fuzz, for `fuzz`. Compiled from source too.
pub fn setup_cargo_fuzz() -> Result<()> {
    setup_cargo_tool("cargo-fuzz", CARGO_FUZZ_VERSION)
}

/// cargo-deb, for `deb` and the scenarios that install a package.
pub fn setup_cargo_deb() -> Result<()> {
    setup_cargo_tool("cargo-deb", CARGO_DEB_VERSION)
}

/// What makes a root directory of Debian for a virtual machine.
pub fn setup_mmdebstrap() -> Result<()> {
    setup_programs(&[("mmdebstrap", "mmdebstrap")])
}

fn setup_cargo_tool(name: &str, version: &str) -> Result<()> {
    let installed = tracer_build::find_program(name).and_then(|tool| {
        let said = run::output(Command::new(tool).arg("--version")).ok()?;
        Some(said.trim().ends_with(version))
    });
    if installed == Some(true) {
        return Ok(());
    }
    run::run(cargo_install().args([name, "--version", version]))
}

/// The tracers that `bench capture` compares with.
pub fn setup_tracers() -> Result<()> {
    setup_programs(&TRACERS)
}

/// What `bench map`, `trees` and `vfs` compare with.
pub fn setup_followers() -> Result<()> {
    setup_programs(&FOLLOWERS)
}

/// What looks at the page, for `test --all`.
pub fn setup_browser() -> Result<()> {
    setup_programs(&[("chromium", "chromium")])
}

fn setup_programs(programs: &[(&str, &'static str)]) -> Result<()> {
    let packages = missing_packages(programs, |name| run::find(name).is_some());
    if !packages.is_empty() && !is_debian() {
        bail!("{}", instructions(&packages, None));
    }
    install(&packages)
}

/// Reads apt's lists anew.
pub fn refresh_apt() -> Result<()> {
    run::run(as_root("apt-get")?.arg("update"))
}

fn missing_packages(programs: &[(&str, &'static str)], is_there: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let missing = programs.iter().filter(|(program, _)| !is_there(program));
    let mut packages: Vec<_> = missing.map(|(_, package)| *package).collect();
    packages.dedup();
    packages
}

fn install_compiler() -> Result<()> {
    // A nightly that lacks only rust-src is one small download away.
    if let Some(nightly) = tracer_build::rustup_nightlies().first() {
        let rustup = tracer_build::find_program("rustup").context("rustup has just listed its toolchains")?;
        let added =
            run::run(Command::new(rustup).args(["component", "add", "rust-src", "--toolchain", nightly]));
        match added {
            Ok(()) => return Ok(()),
            Err(error) => eprintln!("setup: {error:#}; taking Debian's compiler instead"),
        }
    }
    install(&tracer_build::DEBIAN_PACKAGES)
}

fn install_linker() -> Result<()> {
    install(&LLVM_PACKAGES)?;
    run::run(
        cargo_install()
            .env("LLVM_PREFIX", LLVM_PREFIX)
            .args(["bpf-linker", "--version", tracer_build::BPF_LINKER_VERSION])
            .args(["--no-default-features", "--features", "llvm-22"]),
    )
}

fn cargo_install() -> Command {
    let mut cargo = run::cargo();
    // Its own directory, thrown away afterwards: nothing of it belongs among the project's artifacts.
    cargo.env_remove("CARGO_TARGET_DIR").args(["install", "--locked"]);
    cargo
}

/// Installs Debian packages, refreshing apt's lists only if they do not know one of them or are outdated.
fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let mut fresh = false;
    if !unknown(packages)?.is_empty() {
        refresh_apt()?;
        fresh = true;
    }
    let unknown = unknown(packages)?;
    if !unknown.is_empty() {
        bail!(
            "apt knows no package {}: this Debian's suites lack it. What is needed is a release that has it \
             (Debian 12 with its security updates does), or by hand: rustup's nightly with rust-src, and bpf-linker \
             {} in PATH",
            unknown.join(", "),
            tracer_build::BPF_LINKER_VERSION
        );
    }
    let first = apt_install(packages);
    if first.is_ok() || fresh {
        return first;
    }
    // Lists of last month name files that are gone.
    refresh_apt()?;
    apt_install(packages)
}

fn apt_install(packages: &[&str]) -> Result<()> {
    run::run(as_root("apt-get")?.args(["install", "--yes", "--no-install-recommends"]).args(packages))
}

/// Those of the packages that apt has no candidate for.
fn unknown<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    let policy = run::output(run::program("apt-cache")?.env("LC_ALL", "C").arg("policy").args(packages))?;
    Ok(packages.iter().copied().filter(|package| !has_candidate(&policy, package)).collect())
}

fn has_candidate(policy: &str, package: &str) -> bool {
    let mut lines = policy.lines().skip_while(|line| line.strip_suffix(':') != Some(package)).skip(1);
    let candidate = lines.find_map(|line| line.trim().strip_prefix("Candidate: "));
    candidate.is_some_and(|version| version != "(none)")
}

fn as_root(name: &str) -> Result<Command> {
    let mut command = if run::is_root() {
        run::program(name)?
    } else {
        let Some(sudo) = run::find("sudo") else {
            bail!("installing packages needs root and there is no sudo: run `cargo xtask setup` as root");
        };
        let mut command = Command::new(sudo);
        if !std::io::stdin().is_terminal() {
            command.arg("--non-interactive");
        }
        command.args(["DEBIAN_FRONTEND=noninteractive", name]);
        command
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    Ok(command)
}

fn is_debian() -> bool {
    std::fs::read_to_string("/etc/os-release").is_ok_and(|text| names_debian(&text))
}

fn names_debian(os_release: &str) -> bool {
    let value = |line: &str| {
        let (key, value) = line.split_once('=')?;
        matches!(key, "ID" | "ID_LIKE").then(|| value.trim_matches('"').to_owned())
    };
    os_release.lines().filter_map(value).any(|ids| ids.split_whitespace().any(|id| id == "debian"))
}

fn instructions(packages: &[&str], toolchain: Option<tracer_build::MissingToolchain>) -> String {
    let mut text = String::from("this is not Debian, so install by hand and run this again:");
    if !packages.is_empty() {
        text.push_str("\n  what Debian has in the packages ");
        text.push_str(&packages.join(" "));
    }
    if toolchain.is_some_and(|missing| missing.compiler) {
        text.push_str("\n  rustup toolchain install nightly --profile minimal --component rust-src");
    }
    if toolchain.is_some_and(|missing| missing.linker) {
        text.push_str(
            "\n  LLVM 22 with its headers, then: LLVM_PREFIX=… cargo install bpf-linker --version ",
        );
        text.push_str(tracer_build::BPF_LINKER_VERSION);
        text.push_str(" --locked --no-default-features --features llvm-22");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complete_machine_needs_nothing() {
        assert!(missing_packages(&PROGRAMS, |_| true).is_empty());
    }

    #[test]
    fn a_package_of_several_missing_programs_is_named_once() {
        let is_there = |name: &str| name != "e2fsck" && name != "mkfs.ext4";
        assert_eq!(missing_packages(&PROGRAMS, is_there), ["e2fsprogs"]);
    }

    #[test]
    fn a_package_without_candidate_is_unknown() {
        let policy = "llvm-22-dev:\n  Installed: (none)\n  Candidate: 1:22.1.8\n  Version table:\n\
                      gone:\n  Installed: 1.0\n  Candidate: (none)\n  Version table:\n";
        assert!(has_candidate(policy, "llvm-22-dev"));
        assert!(!has_candidate(policy, "gone"));
        assert!(!has_candidate(policy, "never-heard-of"));
    }

    #[test]
    fn debian_and_its_descendants_are_recognised() {
        assert!(names_debian("PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\n"));
        assert!(names_debian("ID=ubuntu\nID_LIKE=debian\n"));
        assert!(!names_debian("ID=fedora\nHOME_URL=\"https://debian.example/\"\n"));
    }

    #[test]
    fn instructions_name_only_what_is_missing() {
        let missing = tracer_build::MissingToolchain { compiler: false, linker: true };
        let text = instructions(&["fio"], Some(missing));
        assert!(text.contains("fio") && text.contains("bpf-linker") && !text.contains("rust-src"), "{text}");
    }
}
