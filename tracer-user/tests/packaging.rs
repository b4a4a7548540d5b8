//! What `dist/` says of the program is true.

#![cfg(feature = "capture")]
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn dist(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist").join(name)
}

fn afterwrite(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_afterwrite")).args(arguments).output().unwrap()
}

#[test]
fn the_unit_starts_commands_that_there_are_with_options_that_they_take() {
    let unit = std::fs::read_to_string(dist("afterwrite.service")).unwrap();
    let commands: Vec<&str> = unit
        .lines()
        .filter_map(|line| line.strip_prefix("Exec")?.split_once('='))
        .map(|(_, command)| command)
        .collect();
    assert_eq!(commands.len(), 2, "{commands:?}");
    for command in commands {
        let words: Vec<&str> = command.split_whitespace().collect();
        assert_eq!(words[0], "/usr/bin/afterwrite");
        let help = afterwrite(&[words[1], "--help"]);
        assert!(help.status.success(), "{command}");
        let help = String::from_utf8(help.stdout).unwrap();
        for option in words.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(option), "{command}: there is no {option}");
        }
    }
}

#[test]
fn the_scripts_call_commands_that_there_are_and_are_packaged() {
    let manifest = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    for name in [
        "initramfs-tools/hooks/afterwrite",
        "initramfs-tools/scripts/afterwrite",
        "dracut/90afterwrite/module-setup.sh",
        "dracut/90afterwrite/attach.sh",
        "systemd-shutdown/afterwrite",
        "debian/postinst",
        "debian/prerm",
        "debian/postrm",
    ] {
        let script = dist(name);
        let parsed = Command::new("sh").arg("-n").arg(&script).output().unwrap();
        assert!(parsed.status.success(), "{name}: {}", String::from_utf8_lossy(&parsed.stderr));
        let folder = Path::new(name).parent().unwrap().display().to_string();
        assert!(manifest.contains(&format!("../dist/{folder}")), "{name} is in no package");
        let text = std::fs::read_to_string(&script).unwrap();
        for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let at = words.iter().position(|word| word.rsplit('/').next() == Some("afterwrite"));
            // A command, not a path or a name among others.
            let Some([command, rest @ ..]) = at.map(|at| &words[at + 1..]) else { continue };
            if !["attach", "finish", "detach"].contains(command) {
                continue;
            }
            let help = String::from_utf8(afterwrite(&[command, "--help"]).stdout).unwrap();
            for option in rest.iter().take_while(|word| word.starts_with("--")) {
                assert!(help.contains(option.trim_end_matches(';')), "{name}: there is no {option}");
            }
        }
    }
}

#[test]
fn the_example_of_a_configuration_is_a_right_one() {
    let example = dist("config.toml");
    let checked = afterwrite(&["config", "check", "--config", example.to_str().unwrap()]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

#[test]
fn systemd_takes_the_unit() {
    let Ok(verified) =
        Command::new("systemd-analyze").args(["--man=no", "verify"]).arg(dist("afterwrite.service")).output()
    else {
        println!("SKIP there is no systemd-analyze");
        return;
    };
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    // The program need not be installed here.
    let mistakes: Vec<&str> =
        said.lines().filter(|line| !line.contains("/usr/bin/afterwrite is not executable")).collect();
    assert!(mistakes.is_empty(), "{said}");
}
