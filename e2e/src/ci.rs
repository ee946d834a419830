//! Everything that must pass before a change lands, in the order in which failures are found soonest.

use std::fmt;
use std::ops::Add;
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::product;
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

impl Add for Tally {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { passed: self.passed + other.passed, failed: self.failed + other.failed }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

impl FromStr for Tally {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        let counts = text.split_once(" passed, ").and_then(|(passed, rest)| Some((passed, rest.strip_suffix(" failed")?)));
        let (passed, failed) = counts.context("want `N passed, N failed`")?;
        Ok(Self { passed: passed.parse()?, failed: failed.parse()? })
    }
}

/// How long a part of the run took.
#[derive(Clone, Debug)]
pub struct Phase {
    name: String,
    seconds: u64,
}

impl Phase {
    /// From then to now.
    #[must_use]
    pub fn since(name: &str, start: Instant) -> Self {
        Self { name: name.to_owned(), seconds: start.elapsed().as_secs() }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.seconds)
    }
}

impl FromStr for Phase {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        let (name, seconds) = text.split_once('=').context("want NAME=SECONDS")?;
        Ok(Self { name: name.to_owned(), seconds: seconds.parse().context("want NAME=SECONDS")? })
    }
}

/// A check that is a program and its arguments; the name is what a person calls it.
type Check = (&'static str, &'static str, &'static [&'static str]);

const CARGO: &str = "cargo";
const XTASK: &str = "target/release/larder-xtask";

/// Before anything is compiled for real.
const SOURCES: [Check; 2] = [
    ("format", CARGO, &["fmt", "--all", "--check"]),
    ("lints", CARGO, &["clippy", "--release", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]),
];

/// With everything compiled.
const BUILT: [Check; 3] = [
    ("crds_are_fresh", XTASK, &["crds", "--check"]),
    ("manifests_are_fresh", XTASK, &["manifests", "--check"]),
    (UNIT, CARGO, &["test", "--release", "--workspace", "--all-targets", "--locked", "--no-fail-fast"]),
];

const UNIT: &str = "unit_tests";

/// Builds everything and runs the checks that need no cluster, one line for each.
pub fn checks(tools: &Tools) -> (Tally, Vec<Phase>) {
    let mut tally = Tally::default();
    let mut phases = Vec::new();
    for check in SOURCES {
        run_check(tools, check, &mut tally, &mut phases);
    }
    let start = Instant::now();
    let built = product::build(tools, product::Scope::Workspace);
    phases.push(Phase::since("build", start));
    if let Err(error) = built {
        say(format!("FAILED build: {error:#}"));
        // Nothing may be tested that is not this checkout.
        let _ = std::fs::remove_file(product::archive());
        tally.failed += 1;
        return (tally, phases);
    }
    for check in BUILT {
        run_check(tools, check, &mut tally, &mut phases);
    }
    (tally, phases)
}

fn run_check(tools: &Tools, (name, program, arguments): Check, tally: &mut Tally, phases: &mut Vec<Phase>) {
    say(format!("check {name}"));
    let start = Instant::now();
    let outcome = product::run(tools, program, name, arguments);
    let (passed, failed) = match &outcome {
        Ok(output) if name == UNIT => counts(output),
        Ok(_) => (1, 0),
        Err(_) if name == UNIT => counts(&product::last_output()),
        Err(_) => (0, 1),
    };
    tally.passed += passed;
    tally.failed += failed.max(usize::from(outcome.is_err()));
    phases.push(Phase::since(name, start));
    match outcome {
        Ok(_) if name == UNIT => say(format!("ok {name} ({passed} passed)")),
        Ok(_) => say(format!("ok {name}")),
        Err(error) => say(format!("FAILED {name}: {error:#}")),
    }
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

/// Where the time went, and the line that says how it all ended; the last one of a run.
pub fn conclude(tally: Tally, phases: &[Phase]) -> Result<i32> {
    for phase in phases {
        say(format!("  {:<22} {:>6} s", phase.name, phase.seconds));
    }
    say(tally.to_string());
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

    #[test]
    fn a_tally_is_read_as_it_is_written() {
        let tally: Tally = (Tally { passed: 3, failed: 1 } + Tally { passed: 4, failed: 0 }).to_string().parse().unwrap();
        assert_eq!((tally.passed, tally.failed), (7, 1));
        assert!("FAILED something".parse::<Tally>().is_err());
    }
}
