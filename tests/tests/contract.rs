//! What every command keeps: help with an example, exit codes, stdout for the result and stderr for people.

use std::path::Path;
use std::time::Duration;

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};

const LIMIT: Duration = Duration::from_secs(20);

fn call(words: &[&str]) -> Result<Finished> {
    finish(afterwrite().args(words), LIMIT)
}

/// The commands that `--help` lists, subcommands with their parents.
fn commands() -> Result<Vec<Vec<String>>> {
    let mut found = Vec::new();
    let mut open: Vec<Vec<String>> = vec![Vec::new()];
    while let Some(parent) = open.pop() {
        let words: Vec<&str> = parent.iter().map(String::as_str).chain(["--help"]).collect();
        let help = call(&words)?.stdout;
        let listed = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
        let listed = listed.take_while(|line| line.starts_with(' '));
        let names =
            listed.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
        let children: Vec<_> = names.filter(|name| *name != "help").map(str::to_owned).collect();
        if children.is_empty() {
            found.push(parent);
        } else {
            open.extend(children.into_iter().map(|child| [parent.clone(), vec![child]].concat()));
        }
    }
    Ok(found)
}

#[test]
fn commands_of_the_design_are_there() -> Result<()> {
    let found = commands()?;
    for wanted in ["doctor", "protect", "status", "mark", "points", "replay", "verify", "journal"] {
        ensure!(
            found.iter().any(|command| command.first().is_some_and(|name| name == wanted)),
            "no {wanted}: {found:?}"
        );
    }
    Ok(())
}

#[test]
fn every_command_has_help_with_an_example_on_stdout() -> Result<()> {
    for command in commands()? {
        let words: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
        let help = call(&words)?;
        ensure!(help.code == Some(0) && help.stderr.is_empty(), "{words:?}: {help:?}");
        let example = format!("afterwrite {}", command.join(" "));
        let has_example =
            help.stdout.lines().any(|line| line.contains(&example) && !line.starts_with("Usage:"));
        ensure!(
            help.stdout.contains("xample") && has_example,
            "{words:?} shows no example:\n{}",
            help.stdout
        );
    }
    Ok(())
}

#[test]
fn bad_flag_is_exit_code_2_and_says_which() -> Result<()> {
    for command in commands()? {
        let words: Vec<&str> = command.iter().map(String::as_str).chain(["--no-such-flag"]).collect();
        let finished = call(&words)?;
        says(&finished, 2, &["--no-such-flag"])?;
        ensure!(finished.stdout.is_empty(), "{words:?}: {}", finished.stdout);
    }
    Ok(())
}

#[test]
fn missing_input_is_exit_code_2_and_named() -> Result<()> {
    let dir = scratch()?;
    let missing = dir.path().join("no-such-thing");
    let missing = missing.to_str().context("temporary paths are text")?;
    let image = dir.path().join("new.img");
    let image = image.to_str().context("temporary paths are text")?;
    let calls: [&[&str]; 4] = [
        &["points", missing],
        &["replay", missing, "--to", "latest", "--target", image],
        &["verify", missing, missing],
        &["journal", "check", missing],
    ];
    for words in calls {
        says(&call(words)?, 2, &["no-such-thing"]).with_context(|| format!("{words:?}"))?;
    }
    ensure!(!Path::new(image).exists(), "a failed replay has left its target behind");
    Ok(())
}

#[test]
fn status_and_mark_without_a_running_protection_say_so() -> Result<()> {
    let dir = scratch()?;
    for words in [&["mark"][..], &["mark", "--label", "x"]] {
        let finished = finish(afterwrite().args(words).env("AFTERWRITE_RUN_DIR", dir.path()), LIMIT)?;
        says(&finished, 2, &["protect"])?;
    }
    Ok(())
}

#[test]
fn version_is_told() -> Result<()> {
    let finished = call(&["--version"])?;
    ensure!(finished.code == Some(0) && finished.stdout.starts_with("afterwrite "), "{finished:?}");
    Ok(())
}

#[test]
fn readers_leave_the_journal_as_it_is() -> Result<()> {
    let disk = Loop::new(8 * MIB)?;
    fill_random(disk.path(), 8 * MIB, &mut Random::new(1))?;
    let protection = Protection::new(disk.path())?;
    protection.start()?.stop()?;
    let before = Manifest::read(protection.journal())?;
    protection.points()?;
    protection.check_journal()?;
    protection.replay("latest", &protection.dir().join("replayed.img"))?;
    run(afterwrite().arg("verify").arg(disk.path()).arg(protection.target()))?;
    Manifest::read(protection.journal())?.ensure_equals(&before)
}

#[test]
fn verify_finds_a_difference_and_exits_with_1() -> Result<()> {
    let disk = Loop::new(8 * MIB)?;
    fill_random(disk.path(), 8 * MIB, &mut Random::new(1))?;
    let dir = scratch()?;
    let copy = dir.path().join("copy.img");
    let mut bytes = std::fs::read(disk.image())?;
    bytes[5_000_000] ^= 1;
    std::fs::write(&copy, bytes)?;
    let finished = finish(afterwrite().arg("verify").arg(disk.path()).arg(&copy), LIMIT)?;
    // The 4 KiB block that holds the byte.
    let told = format!("{}{}", finished.stdout, finished.stderr);
    ensure!(finished.code == Some(1) && told.contains("4997120"), "{finished:?}");
    Ok(())
}

#[test]
fn replay_refuses_a_target_that_holds_something_and_dry_run_writes_nothing() -> Result<()> {
    let disk = Loop::new(4 * MIB)?;
    fill_random(disk.path(), 4 * MIB, &mut Random::new(1))?;
    let protection = Protection::new(disk.path())?;
    protection.start()?.stop()?;
    let image = protection.dir().join("image");
    let replay = || {
        let mut replay = afterwrite();
        replay.arg("replay").arg(protection.journal()).args(["--to", "latest", "--target"]).arg(&image);
        replay
    };
    run(replay().arg("--dry-run"))?;
    ensure!(!image.exists(), "a dry run has made the target");
    std::fs::write(&image, "precious")?;
    says(&finish(&mut replay(), LIMIT)?, 2, &["--force"])?;
    ensure!(std::fs::read(&image)? == b"precious", "a refused replay has written to its target");
    run(replay().arg("--force"))?;
    assert_identical(disk.path(), &image)
}
