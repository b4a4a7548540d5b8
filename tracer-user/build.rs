//! Compiles the BPF programs into `OUT_DIR/probes.bpf.o` and `OUT_DIR/vfs.bpf.o` when the feature `capture` is on.

fn main() {
    // Without `capture` nothing is built, and nothing but this file can change that.
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "capture")]
    if let Err(message) = capture::build() {
        println!("cargo::error={message}");
    }
}

#[cfg(feature = "capture")]
mod capture {
    use std::env;
    use std::fs;
    use std::path::{Path, PathBuf};

    pub fn build() -> Result<(), String> {
        let root = directory("CARGO_MANIFEST_DIR").join("..");
        let source = root.join("tracer-ebpf");
        for input in ["src", "Cargo.toml", "Cargo.lock"] {
            println!("cargo::rerun-if-changed={}", source.join(input).display());
        }
        for input in ["src", "Cargo.toml"] {
            println!("cargo::rerun-if-changed={}", root.join("tracer-common").join(input).display());
        }

        let out = directory("OUT_DIR");
        let toolchain = tracer_build::find().map_err(|missing| missing.to_string())?;
        let objects = tracer_build::build_probes(&toolchain, &source, &shared_target(&out))
            .map_err(|error| error.to_string())?;
        for name in tracer_build::OBJECTS {
            let (object, embedded) = (objects.join(name), out.join(format!("{name}.bpf.o")));
            fs::copy(&object, &embedded).map_err(|error| {
                format!("cannot copy {} to {}: {error}", object.display(), embedded.display())
            })?;
        }
        Ok(())
    }

    /// The object is the same for every profile, so all build it in one place: OUT_DIR is
    /// `target/PROFILE/build/afterwrite-HASH/out`.
    fn shared_target(out: &Path) -> PathBuf {
        out.ancestors().nth(4).unwrap_or(out).join("probes")
    }

    fn directory(name: &str) -> PathBuf {
        env::var_os(name).map(PathBuf::from).expect("cargo sets it for build scripts")
    }
}
