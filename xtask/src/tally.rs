//! What passed, failed and was skipped, over everything that ran.

use std::collections::VecDeque;
use std::fmt;

use anyhow::Result;

/// Of what the failures of one test binary printed, the last lines are said again.
const LINES_SAID_AGAIN: usize = 120;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    failed: u64,
    /// Why each was skipped.
    pub skipped: Vec<String>,
    /// Skips that the result line still to come counts as passed.
    skips_to_subtract: u64,
    /// What the failures printed, for the end of a long log.
    failures: Vec<String>,
    /// Of the test binary that is running, once it tells of its failures.
    failing: Option<VecDeque<String>>,
}

/// Something that was checked is wrong: exit code 1.
#[derive(Debug)]
pub struct Failures(pub u64);

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed, see above", self.0)
    }
}

impl std::error::Error for Failures {}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped.len())
    }
}

impl Tally {
    pub fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
        self.failures.extend(other.failures);
    }

    /// One failed, of which this is worth saying again at the end.
    pub fn fail(&mut self, said: String) {
        self.failed += 1;
        self.failures.push(said);
    }

    pub fn has_failures(&self) -> bool {
        self.failed > 0
    }

    /// Prints what failed once more, and the sum as the last line of stdout; an error if anything failed.
    pub fn finish(self) -> Result<()> {
        for reason in &self.skipped {
            println!("SKIP: {reason}");
        }
        for line in &self.failures {
            println!("FAILED: {line}");
        }
        println!("{self}");
        if self.failed > 0 { Err(Failures(self.failed).into()) } else { Ok(()) }
    }

    /// Reads a line of `cargo test`. A test that cannot run here prints `SKIP: why` and then passes for libtest:
    /// it is counted as skipped, not as passed. Says whether the line is worth showing among hundreds of tests that pass.
    pub fn see_cargo_test(&mut self, line: &str) -> bool {
        if let Some(reason) = line.trim_start().strip_prefix("SKIP: ") {
            self.skipped.push(reason.trim().to_owned());
            self.skips_to_subtract += 1;
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            let count = |what: &str| {
                let before = counts.split(what).next()?;
                before.rsplit([' ', ';', '.']).find(|word| !word.is_empty())?.parse::<u64>().ok()
            };
            let skips = std::mem::take(&mut self.skips_to_subtract);
            self.passed += count(" passed").unwrap_or(0).saturating_sub(skips);
            self.failed += count(" failed").unwrap_or(0);
            self.failures.extend(self.failing.take().unwrap_or_default());
        } else if let Some(failing) = &mut self.failing {
            if !is_of_backtrace(line) {
                failing.push_back(line.to_owned());
            }
            if failing.len() > LINES_SAID_AGAIN {
                failing.pop_front();
            }
        } else if line == "failures:" {
            self.failing = Some(VecDeque::new());
        } else if line.starts_with("test ") && line.contains("... ignored") {
            self.skipped.push(line.to_owned());
        } else {
            return line.starts_with("test ") && line.ends_with("FAILED");
        }
        true
    }
}

/// `  12: function` and `      at file:1:2`: of these there are more than of what went wrong.
fn is_of_backtrace(line: &str) -> bool {
    let text = line.trim_start();
    let (number, _) = text.split_once(": ").unwrap_or_default();
    let is_frame = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    text.len() < line.len() && (is_frame || text.starts_with("at "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_test_binaries_add_up() {
        let mut tally = Tally::default();
        for line in [
            "running 4 tests",
            "test a ... ok",
            "test b ... ignored",
            "test c ... ignored, needs a browser",
            "test result: ok. 40 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.02s",
            "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s",
        ] {
            let is_shown = tally.see_cargo_test(line);
            assert_eq!(is_shown, !line.starts_with("running") && !line.ends_with("ok"), "{line}");
        }
        assert_eq!(tally.to_string(), "42 passed, 3 failed, 2 skipped");
    }

    #[test]
    fn a_test_that_said_skip_did_not_pass() {
        let mut tally = Tally { passed: 5, ..Tally::default() };
        assert!(tally.see_cargo_test("SKIP: no loop devices"));
        tally.see_cargo_test("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        assert_eq!(tally.to_string(), "5 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn what_the_failures_printed_is_kept_for_the_end_and_what_others_printed_is_not() {
        let mut tally = Tally::default();
        let frames = ["   0: anyhow::error", "             at ./src/command.rs:75:9"].map(str::to_owned);
        let printed = (0..200).map(|number| format!("line {number}")).chain(frames);
        let lines = ["successes:", "fine", "failures:", "---- a stdout ----"].map(str::to_owned);
        for line in
            lines.into_iter().chain(printed).chain(["test result: FAILED. 1 passed; 1 failed; 0".into()])
        {
            let _ = tally.see_cargo_test(&line);
        }
        assert!(!tally.see_cargo_test("after it"));
        tally.fail("vm: no verdict".to_owned());
        assert_eq!(tally.failed, 2);
        assert_eq!(tally.failures.len(), LINES_SAID_AGAIN + 1);
        assert_eq!(tally.failures[LINES_SAID_AGAIN - 1], "line 199");
        assert_eq!(tally.failures[LINES_SAID_AGAIN], "vm: no verdict");
    }
}
