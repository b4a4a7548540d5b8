//! What passed, failed and was skipped, over everything that ran.

use std::fmt;

use anyhow::Result;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    /// Why each was skipped.
    pub skipped: Vec<String>,
    /// Skips that the result line still to come counts as passed.
    skips_to_subtract: u64,
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
    }

    /// Prints the sum as the last line of stdout; an error if anything failed.
    pub fn finish(self) -> Result<()> {
        for reason in &self.skipped {
            println!("SKIP: {reason}");
        }
        println!("{self}");
        if self.failed > 0 { Err(Failures(self.failed).into()) } else { Ok(()) }
    }

    /// Reads a line of `cargo test`. A test that cannot run here prints `SKIP: why` and then passes for libtest:
    /// it is counted as skipped, not as passed.
    pub fn see_cargo_test(&mut self, line: &str) {
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
        } else if line.starts_with("test ") && line.contains("... ignored") {
            self.skipped.push(line.to_owned());
        }
    }
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
            tally.see_cargo_test(line);
        }
        assert_eq!(tally.to_string(), "42 passed, 3 failed, 2 skipped");
    }

    #[test]
    fn a_test_that_said_skip_did_not_pass() {
        let mut tally = Tally { passed: 5, ..Tally::default() };
        tally.see_cargo_test("SKIP: no loop devices");
        tally.see_cargo_test("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        assert_eq!(tally.to_string(), "5 passed, 0 failed, 1 skipped");
    }
}
