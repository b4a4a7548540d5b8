//! cargo on the volume: two crates of this project, edited and compiled again and again.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::demo::kept::Kept;
use crate::demo::load::Load;
use crate::run;

/// Those without dependencies: nothing is downloaded.
const CRATES: [&str; 2] = ["tracer-common", "tracer-build"];
const WORKSPACE: &str = "[workspace]\nresolver = \"3\"\nmembers = [\"tracer-common\", \"tracer-build\"]\n";
/// cargo may not write more than the journal is meant to hold.
const PAUSE: Duration = Duration::from_millis(200);

pub struct Compile {
    dir: PathBuf,
    /// As they are in the project.
    sources: Vec<(PathBuf, String)>,
    kept: Kept,
    builds: AtomicU64,
}

impl Compile {
    pub fn prepare(project: &Path, kept: Kept) -> Result<Compile> {
        let dir = kept.volume().join("build");
        let mut sources = Vec::new();
        for name in CRATES {
            let (from, to) = (project.join(name).join("src"), dir.join(name).join("src"));
            fs::create_dir_all(&to)?;
            for file in fs::read_dir(&from).with_context(|| format!("cannot read {}", from.display()))? {
                let file = file?;
                sources.push((to.join(file.file_name()), fs::read_to_string(file.path())?));
            }
            let manifest = format!("[package]\nname = \"{name}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n");
            fs::write(dir.join(name).join("Cargo.toml"), manifest)?;
        }
        fs::write(dir.join("Cargo.toml"), WORKSPACE)?;
        fs::create_dir_all(kept.volume().join("artifacts"))?;
        let compile = Compile { dir, sources, kept, builds: AtomicU64::new(0) };
        compile.build(0)?;
        Ok(compile)
    }

    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    pub fn run(&self, load: &Load) -> Result<()> {
        let mut number = 0;
        while load.pause(PAUSE) {
            number += 1;
            self.build(number)?;
            self.builds.store(number, Ordering::Relaxed);
        }
        Ok(())
    }

    fn build(&self, number: u64) -> Result<()> {
        for (path, text) in &self.sources {
            fs::write(path, format!("{text}\npub const DEMO_BUILD: u64 = {number};\n"))?;
        }
        let mut cargo = run::cargo();
        cargo.args(["build", "--quiet", "--offline", "--workspace"]).current_dir(&self.dir);
        for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_BUILD_TARGET_DIR"] {
            cargo.env_remove(name);
        }
        run::output(cargo.env("CARGO_TARGET_DIR", self.dir.join("target")))?;
        for name in CRATES {
            let name = format!("lib{}.rlib", name.replace('-', "_"));
            let artifact = fs::read(self.dir.join("target/debug").join(&name)).context(name.clone())?;
            let copy = self.dir.join("artifact");
            fs::write(&copy, &artifact)?;
            self.kept.keep(&copy, &format!("artifacts/{number:05}-{name}"), &artifact)?;
        }
        Ok(())
    }
}

impl fmt::Display for Compile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} compilations", self.builds.load(Ordering::Relaxed))
    }
}
