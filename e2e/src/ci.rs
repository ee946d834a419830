//! Everything that must pass before a change lands, in the order in which failures are found soonest.

use anyhow::Result;

use crate::product::cargo;
use crate::report::say;
use crate::tools::Tools;

/// How many checks and tests passed and failed.
#[derive(Clone, Copy, Default)]
pub struct Tally {
    /// Passed.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
}

/// The checks that need no cluster. Each is a cargo command; the name is what a person calls it.
const CHECKS: [(&str, &[&str]); 5] = [
    ("format", &["fmt", "--all", "--check"]),
    ("lints", &["clippy", "--release", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]),
    ("crds_are_fresh", &["run", "--release", "--locked", "--package", "larder-xtask", "--", "crds", "--check"]),
    ("manifests_are_fresh", &["run", "--release", "--locked", "--package", "larder-xtask", "--", "manifests", "--check"]),
    (UNIT, &["test", "--release", "--workspace", "--locked", "--no-fail-fast"]),
];

const UNIT: &str = "unit_tests";

/// Runs the checks, one line for each.
pub fn checks(tools: &Tools) -> Tally {
    let mut tally = Tally::default();
    for (name, arguments) in CHECKS {
        say(format!("check {name}"));
        let outcome = cargo(tools, name, arguments);
        let (passed, failed) = match &outcome {
            Ok(output) if name == UNIT => counts(output),
            Ok(_) => (1, 0),
            Err(error) => counts(&error.to_string()),
        };
        tally.passed += passed;
        tally.failed += failed.max(usize::from(outcome.is_err()));
        match outcome {
            Ok(_) if name == UNIT => say(format!("ok {name} ({passed} passed)")),
            Ok(_) => say(format!("ok {name}")),
            Err(error) => say(format!("FAILED {name}: {error:#}")),
        }
    }
    tally
}

/// Sums the closing lines of the test programs in what `cargo test` printed.
fn counts(output: &str) -> (usize, usize) {
    let number = |line: &str, word: &str| -> usize {
        let before = line.split(word).next().unwrap_or_default();
        before.split_whitespace().last().and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    output
        .lines()
        .filter(|line| line.starts_with("test result:"))
        .fold((0, 0), |(passed, failed), line| (passed + number(line, " passed"), failed + number(line, " failed")))
}

/// The line that says how it all ended; the last one of a run.
pub fn conclude(tally: Tally) -> Result<i32> {
    say(format!("{} passed, {} failed", tally.passed, tally.failed));
    Ok(i32::from(tally.failed > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_lines_of_all_test_programs_are_summed() {
        let output = "test a ... ok\ntest result: ok. 12 passed; 0 failed; 1 ignored; 0 measured\n\
                      test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured\n";
        assert_eq!(counts(output), (15, 2));
    }
}
