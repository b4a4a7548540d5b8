//! Finds a toolchain that compiles to BPF and compiles `tracer-ebpf` with it.
//!
//! Shared by afterwrite's build script and by `cargo xtask`, hence without dependencies. It never installs
//! anything: that is `cargo xtask setup`.
//!
//! Two ways lead to an object, the first that is complete is taken:
//! * rustup's nightly with `rust-src`, which compiles `core` for BPF itself;
//! * Debian's `rustc-web`, whose `libstd-rust-web-dev-bpf` holds a compiled `core`.
//!
//! Both link with `bpf-linker`, whose LLVM must be at least the compiler's.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// The version of bpf-linker that `cargo xtask setup` installs.
pub const BPF_LINKER_VERSION: &str = "0.13.0";
/// Debian's packages that are a BPF toolchain but for the linker.
pub const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

const TARGET: &str = "bpfel-unknown-none";
/// Compare-and-exchange and atomics that return the old value need v3; every kernel from 5.12 on has it.
/// Beware: LLVM 22 compiles a *relaxed* fetch-and-add without the fetch, silently; use acquire-release.
const BPF_CPU: &str = "v3";
/// The objects the crate makes: the probes of a volume, and those of its file systems.
pub const OBJECTS: [&str; 2] = ["probes", "vfs"];

/// A complete BPF toolchain of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    compiler: Compiler,
    linker: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Compiler {
    /// `rustup run CHANNEL cargo`.
    Rustup {
        rustup: PathBuf,
        channel: String,
    },
    Debian {
        cargo: PathBuf,
        rustc: PathBuf,
    },
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.compiler {
            Compiler::Rustup { channel, .. } => write!(f, "rustup's {channel}")?,
            Compiler::Debian { rustc, .. } => write!(f, "Debian's {}", rustc.display())?,
        }
        write!(f, ", {}", self.linker.display())
    }
}

/// What a machine lacks to compile BPF programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingToolchain {
    /// Neither a nightly with rust-src nor Debian's rustc-web was found.
    pub compiler: bool,
    /// bpf-linker was found neither in PATH nor in cargo's bin directory.
    pub linker: bool,
}

impl fmt::Display for MissingToolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.compiler, self.linker) {
            (true, true) => "a Rust compiler for BPF and bpf-linker are",
            (true, false) => "a Rust compiler for BPF (nightly with rust-src, or Debian's rustc-web) is",
            (false, _) => "bpf-linker is",
        };
        write!(f, "{what} missing to compile the BPF programs: run `cargo xtask setup`")
    }
}

impl std::error::Error for MissingToolchain {}

/// Why the probes could not be compiled.
#[derive(Debug)]
pub enum BuildError {
    /// The compiler could not be started.
    Start { program: PathBuf, source: io::Error },
    /// Cargo ran and failed; what it said went to this process's stderr.
    Failed { toolchain: String, status: ExitStatus },
    /// Cargo succeeded and left no object where it should be.
    NoObject { path: PathBuf },
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BuildError::Start { program, .. } => write!(f, "cannot start {}", program.display()),
            BuildError::Failed { toolchain, status } => {
                write!(f, "compiling the BPF programs failed ({toolchain}; {status})")
            }
            BuildError::NoObject { path } => {
                write!(f, "cargo succeeded but left no BPF object at {}", path.display())
            }
        }
    }
}

impl std::error::Error for BuildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            BuildError::Start { source, .. } => Some(source),
            BuildError::Failed { .. } | BuildError::NoObject { .. } => None,
        }
    }
}

/// Finds a complete toolchain, rustup's before Debian's. Installs nothing.
pub fn find() -> Result<Toolchain, MissingToolchain> {
    let compiler = rustup_nightly().or_else(|| debian_compiler(Path::new("/")));
    match (compiler, find_program("bpf-linker")) {
        (Some(compiler), Some(linker)) => Ok(Toolchain { compiler, linker }),
        (compiler, linker) => {
            Err(MissingToolchain { compiler: compiler.is_none(), linker: linker.is_none() })
        }
    }
}

/// Compiles the crate at `source_dir` (with its lock file as it is) under `target_dir` and returns the directory of
/// the ELF objects. Compiler messages go to stderr.
pub fn build_probes(
    toolchain: &Toolchain,
    source_dir: &Path,
    target_dir: &Path,
) -> Result<PathBuf, BuildError> {
    let mut command = match &toolchain.compiler {
        Compiler::Rustup { rustup, channel } => {
            let mut command = clean_command(rustup);
            command.args(["run", channel, "cargo", "build", "-Z", "build-std=core"]);
            command
        }
        Compiler::Debian { cargo, rustc } => {
            let mut command = clean_command(cargo);
            command.arg("build").env("RUSTC_BOOTSTRAP", "1").env("RUSTC", rustc);
            command
        }
    };
    command
        .args(["--release", "--locked", "--target", TARGET, "--bins", "--target-dir"])
        .arg(target_dir)
        .current_dir(source_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&toolchain.linker));

    let status = command
        .status()
        .map_err(|source| BuildError::Start { program: command.get_program().into(), source })?;
    if !status.success() {
        return Err(BuildError::Failed { toolchain: toolchain.to_string(), status });
    }
    let dir = target_dir.join(TARGET).join("release");
    match OBJECTS.iter().map(|name| dir.join(name)).find(|path| !path.is_file()) {
        Some(path) => Err(BuildError::NoObject { path }),
        None => Ok(dir),
    }
}

/// The names of rustup's installed nightlies, the plain one first; none without rustup.
pub fn rustup_nightlies() -> Vec<String> {
    let Some(rustup) = find_program("rustup") else { return Vec::new() };
    let mut command = clean_command(&rustup);
    command.args(["toolchain", "list"]);
    output(command).map(|text| nightlies(&text)).unwrap_or_default()
}

/// Looks in PATH, then in cargo's bin directory.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(cargo_home().map(|home| home.join("bin")))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

fn cargo_home() -> Option<PathBuf> {
    let set = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    set.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
}

fn rustup_nightly() -> Option<Compiler> {
    let rustup = find_program("rustup")?;
    let channel = rustup_nightlies().into_iter().find(|channel| {
        let mut command = clean_command(&rustup);
        command.args(["run", channel, "rustc", "--print", "sysroot"]);
        output(command).is_some_and(|sysroot| {
            Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file()
        })
    })?;
    Some(Compiler::Rustup { rustup, channel })
}

fn debian_compiler(root: &Path) -> Option<Compiler> {
    let (cargo, rustc) = (root.join("usr/bin/cargo"), root.join("usr/bin/rustc"));
    let core = root.join("usr/lib/rustlib").join(TARGET).join("lib");
    (cargo.is_file() && rustc.is_file() && core.is_dir()).then_some(Compiler::Debian { cargo, rustc })
}

/// The toolchains of `rustup toolchain list` that are nightlies, the undated one first.
fn nightlies(list: &str) -> Vec<String> {
    let mut names: Vec<String> = list
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .map(str::to_owned)
        .collect();
    // Newest date first, and before it the undated one, which begins "nightly-ARCH".
    names.sort_by(|a, b| b.cmp(a));
    names
}

fn rustflags(linker: &Path) -> OsString {
    let arch = std::env::consts::ARCH;
    let mut flags = OsString::from(format!(
        "--cfg=bpf_target_arch=\"{arch}\"\x1f-Cdebuginfo=2\x1f-Ctarget-cpu={BPF_CPU}\x1f-Clink-arg=--btf\x1f-Clinker="
    ));
    flags.push(linker);
    flags
}

/// A command without what an outer cargo, rustup or clippy put into the environment for its own compilation.
fn clean_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_of_outer_build) {
            command.env_remove(name);
        }
    }
    command
}

fn is_of_outer_build(name: &str) -> bool {
    // Where crates come from stays as the user set it.
    let keep = ["CARGO_HOME", "CARGO_TERM_", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_"];
    if keep.iter().any(|prefix| name.starts_with(prefix)) {
        return false;
    }
    let outer = ["CARGO", "RUSTC", "RUSTDOC", "CLIPPY_"];
    outer.iter().any(|prefix| name.starts_with(prefix))
        || ["RUSTFLAGS", "RUSTUP_TOOLCHAIN", "MAKEFLAGS", "MFLAGS", "TARGET", "HOST"].contains(&name)
}

fn output(mut command: Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undated_nightly_comes_first_then_the_newest() {
        let list = "stable-x86_64-unknown-linux-gnu (active, default)\nnightly-2026-01-02-x86_64-unknown-linux-gnu\n\
                    nightly-2026-05-20-x86_64-unknown-linux-gnu\nnightly-x86_64-unknown-linux-gnu\n1.95.0-x86_64\n";
        assert_eq!(
            nightlies(list),
            [
                "nightly-x86_64-unknown-linux-gnu",
                "nightly-2026-05-20-x86_64-unknown-linux-gnu",
                "nightly-2026-01-02-x86_64-unknown-linux-gnu"
            ]
        );
        assert!(nightlies("no installed toolchains\n").is_empty());
    }

    #[test]
    fn outer_build_is_not_inherited_but_registry_settings_are() {
        let outer = [
            "CARGO",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_MAKEFLAGS",
            "CARGO_TARGET_DIR",
            "CARGO_PROFILE_RELEASE_LTO",
            "RUSTC",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
            "RUSTDOCFLAGS",
            "RUSTUP_TOOLCHAIN",
        ];
        for name in outer {
            assert!(is_of_outer_build(name), "{name}");
        }
        for name in
            ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "CARGO_NET_OFFLINE", "CARGO_REGISTRIES_X_INDEX"]
        {
            assert!(!is_of_outer_build(name), "{name}");
        }
    }

    #[test]
    fn a_missing_toolchain_is_one_sentence_that_names_the_next_step() {
        for (compiler, linker) in [(true, true), (true, false), (false, true)] {
            let text = MissingToolchain { compiler, linker }.to_string();
            assert!(text.ends_with("run `cargo xtask setup`"), "{text}");
            assert_eq!(text.lines().count(), 1);
        }
    }

    #[test]
    fn debians_compiler_without_its_core_for_bpf_does_not_count() {
        let root = std::env::temp_dir().join(format!("tracer-build-{}", std::process::id()));
        std::fs::create_dir_all(root.join("usr/bin")).expect("a temporary directory");
        for name in ["cargo", "rustc"] {
            std::fs::write(root.join("usr/bin").join(name), "").expect("a file in it");
        }
        assert_eq!(debian_compiler(&root), None);
        std::fs::create_dir_all(root.join("usr/lib/rustlib").join(TARGET).join("lib"))
            .expect("a directory in it");
        assert!(debian_compiler(&root).is_some());
        std::fs::remove_dir_all(&root).expect("what was just made");
    }
}
