//! Debian's stock kernels: fetched as packages, unpacked under target/vm, never installed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail};

use crate::{run, setup};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kernel {
    V6_1,
    V6_12,
}

impl Kernel {
    pub const ALL: [Kernel; 2] = [Kernel::V6_1, Kernel::V6_12];

    /// The package that depends on the newest build of this kernel.
    fn meta_package(self) -> &'static str {
        match self {
            Kernel::V6_1 => "linux-image-cloud-amd64",
            Kernel::V6_12 => "linux-image-6.12-cloud-amd64",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kernel::V6_1 => "6.1",
            Kernel::V6_12 => "6.12",
        })
    }
}

impl FromStr for Kernel {
    type Err = Error;

    fn from_str(text: &str) -> Result<Kernel> {
        let found = Kernel::ALL.into_iter().find(|kernel| kernel.to_string() == text);
        found.with_context(|| format!("`{text}` is no kernel of the tests: 6.1 or 6.12"))
    }
}

/// A kernel and its modules on this machine.
pub struct Unpacked {
    pub image: PathBuf,
    /// `lib/modules/RELEASE`
    pub modules_dir: PathBuf,
    /// `boot/config-RELEASE`
    pub config: PathBuf,
    dependencies: Dependencies,
}

/// Fetches and unpacks the kernel, unless the newest build that apt knows is already there.
pub fn unpack(kernel: Kernel, dir: &Path) -> Result<Unpacked> {
    // Lists that are missing or name a build that is gone: refreshed once.
    let package = match fetched(kernel, dir) {
        Ok(package) => package,
        Err(error) => {
            eprintln!("kernel {kernel}: {error:#}");
            setup::refresh_apt()?;
            fetched(kernel, dir)?
        }
    };
    let tree = dir.join(&package);
    let release =
        package.strip_prefix("linux-image-").context("a kernel's package is named linux-image-…")?;
    let modules_dir = tree.join("lib/modules").join(release);
    let read = |name: &str| {
        let path = modules_dir.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    Ok(Unpacked {
        image: tree.join("boot").join(format!("vmlinuz-{release}")),
        config: tree.join("boot").join(format!("config-{release}")),
        dependencies: Dependencies::parse(&read("modules.dep")?, &read("modules.builtin")?),
        modules_dir,
    })
}

impl Unpacked {
    /// The modules and what they depend on, in the order in which to load them: file name and content.
    pub fn modules(&self, names: &[String]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut modules = Vec::new();
        for path in self.dependencies.load_order(names)? {
            let file = self.modules_dir.join(&path);
            let content = if path.ends_with(".xz") {
                let unpacked = run::program("xz")?.args(["--decompress", "--stdout"]).arg(&file).output()?;
                if !unpacked.status.success() {
                    bail!("xz cannot unpack {}", file.display());
                }
                unpacked.stdout
            } else {
                fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?
            };
            modules.push((format!("{}.ko", module_name(&path)), content));
        }
        Ok(modules)
    }

    /// Has this kernel the module, as a file or built in?
    pub fn has(&self, name: &str) -> bool {
        let name = normal(name);
        self.dependencies.builtin.contains(&name) || self.dependencies.files.contains_key(&name)
    }
}

/// The name of the package, which now lies unpacked in the folder of that name.
fn fetched(kernel: Kernel, dir: &Path) -> Result<String> {
    let package = versioned_package(kernel)?;
    let tree = dir.join(&package);
    if !tree.join("complete").exists() {
        fetch(&package, dir, &tree)?;
    }
    Ok(package)
}

fn versioned_package(kernel: Kernel) -> Result<String> {
    let meta = kernel.meta_package();
    let missing = || {
        format!(
            "apt knows no package {meta}, the source of kernel {kernel}. It is in Debian 12 and its security \
             updates: add those suites to apt's sources"
        )
    };
    let depends = run::output(run::program("apt-cache")?.args(["depends", "--important", meta]));
    depends.ok().as_deref().and_then(first_image).with_context(missing)
}

/// The versioned package in the output of `apt-cache depends`.
fn first_image(depends: &str) -> Option<String> {
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.map(str::trim).find(|name| name.starts_with("linux-image-")).map(str::to_owned)
}

fn fetch(package: &str, dir: &Path, tree: &Path) -> Result<()> {
    // A half-fetched one of an interrupted run.
    if tree.exists() {
        fs::remove_dir_all(tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    }
    let download = dir.join(format!("{package}.download"));
    fs::create_dir_all(&download).with_context(|| format!("cannot create {}", download.display()))?;
    run::run(
        // As root, apt would fetch as another user, who cannot write here, and warn about it.
        run::program("apt-get")?
            .args(["-o", "APT::Sandbox::User=root", "download", package])
            .current_dir(&download),
    )?;
    let deb = fs::read_dir(&download)?.next().context("apt-get downloaded nothing")??.path();
    run::run(run::program("dpkg-deb")?.arg("--extract").args([&deb, tree]))?;
    let release = package.trim_start_matches("linux-image-");
    run::run(run::program("depmod")?.arg("-b").arg(tree).arg(release))?;
    fs::remove_dir_all(&download)?;
    fs::write(tree.join("complete"), "")?;
    Ok(())
}

/// What `modules.dep` and `modules.builtin` say.
struct Dependencies {
    /// Of each module: its own path, then those of all it needs, in the order of `modules.dep`: last loads first.
    files: BTreeMap<String, Vec<String>>,
    builtin: BTreeSet<String>,
}

impl Dependencies {
    fn parse(dep: &str, builtin: &str) -> Dependencies {
        let files = dep.lines().filter_map(|line| {
            let (own, needs) = line.split_once(':')?;
            let paths = std::iter::once(own).chain(needs.split_whitespace()).map(str::to_owned).collect();
            Some((normal(module_name(own)), paths))
        });
        let builtin = builtin.lines().map(|path| normal(module_name(path)));
        Dependencies { files: files.collect(), builtin: builtin.collect() }
    }

    fn load_order(&self, names: &[String]) -> Result<Vec<String>> {
        let mut order: Vec<String> = Vec::new();
        for name in names {
            let normal = normal(name);
            if self.builtin.contains(&normal) {
                continue;
            }
            let Some(paths) = self.files.get(&normal) else { bail!("this kernel has no module `{name}`") };
            for path in paths.iter().rev() {
                if !order.contains(path) {
                    order.push(path.clone());
                }
            }
        }
        Ok(order)
    }
}

/// `kernel/fs/ext4/ext4.ko.xz` → `ext4`
fn module_name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file)
}

/// The kernel does not tell `dm-mod` and `dm_mod` apart.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/drivers/md/dm-mod.ko.xz:\n\
        kernel/drivers/md/dm-snapshot.ko.xz: kernel/drivers/md/dm-bufio.ko.xz kernel/drivers/md/dm-mod.ko.xz\n\
        kernel/drivers/md/dm-bufio.ko.xz: kernel/drivers/md/dm-mod.ko.xz\n";

    fn order(names: &[&str]) -> Result<Vec<String>> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let order = Dependencies::parse(DEP, "kernel/fs/fuse/fuse.ko\n").load_order(&names)?;
        Ok(order.iter().map(|path| module_name(path).to_owned()).collect())
    }

    #[test]
    fn what_a_module_needs_is_loaded_before_it_and_once() {
        assert_eq!(
            order(&["dm_snapshot", "dm-mod"]).expect("both exist"),
            ["dm-mod", "dm-bufio", "dm-snapshot"]
        );
    }

    #[test]
    fn a_builtin_needs_no_file_and_an_unknown_one_is_an_error() {
        assert!(order(&["fuse"]).expect("it is built in").is_empty());
        assert!(order(&["ublk_drv"]).is_err());
    }

    #[test]
    fn the_versioned_package_is_found() {
        let depends = "linux-image-6.12-cloud-amd64\n  Depends: linux-image-6.12.117+deb12-cloud-amd64\n";
        assert_eq!(first_image(depends).as_deref(), Some("linux-image-6.12.117+deb12-cloud-amd64"));
        assert_eq!(first_image("linux-image-6.12-cloud-amd64\n"), None);
    }
}
