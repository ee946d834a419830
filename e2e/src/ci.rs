//! Everything that must pass before a change lands, in the order in which failures are found soonest.

use std::ffi::OsString;
use std::fmt;
use std::ops::Add;
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Args;

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

/// What a run has come to so far; handed by arguments to the process that goes on.
#[derive(Args, Clone, Default)]
pub struct Record {
    /// Add this many to those that passed
    #[arg(long, hide = true, default_value_t = 0)]
    passed: usize,
    /// Add this many to those that failed
    #[arg(long, hide = true, default_value_t = 0)]
    failed: usize,
    /// What came before, and how long it took
    #[arg(long = "phase", hide = true)]
    pub phases: Vec<Phase>,
    /// What was not run, and why
    #[arg(long = "skipped", hide = true)]
    pub skipped: Vec<String>,
}

impl Record {
    /// The counts.
    #[must_use]
    pub fn tally(&self) -> Tally {
        Tally { passed: self.passed, failed: self.failed }
    }

    /// Sets the counts.
    pub fn count(&mut self, tally: Tally) {
        (self.passed, self.failed) = (tally.passed, tally.failed);
    }

    /// The arguments that make the same record again.
    pub fn arguments(&self) -> impl Iterator<Item = OsString> + use<> {
        let counts = [format!("--passed={}", self.passed), format!("--failed={}", self.failed)];
        let phases: Vec<_> = self.phases.iter().map(|phase| format!("--phase={phase}")).collect();
        let skipped: Vec<_> = self.skipped.iter().map(|what| format!("--skipped={what}")).collect();
        counts.into_iter().chain(phases).chain(skipped).map(OsString::from)
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
const FUZZ: &str = "crates/fuzz/run";
/// For each target; the first one builds for all of them. `make fuzz` takes its time.
const FUZZ_SECONDS: &str = "8";

/// Before anything is compiled for real.
const SOURCES: [Check; 2] = [
    ("format", CARGO, &["fmt", "--all", "--check"]),
    ("lints", CARGO, &["clippy", "--release", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]),
];

/// With everything compiled.
const BUILT: [Check; 11] = [
    ("dependencies", XTASK, &["deny"]),
    ("crds_are_fresh", XTASK, &["crds", "--check"]),
    ("manifests_are_fresh", XTASK, &["manifests", "--check"]),
    ("metrics_are_documented", XTASK, &["metrics", "--check"]),
    (UNIT, CARGO, &["test", "--release", "--workspace", "--all-targets", "--locked", "--no-fail-fast", "--", "--show-output"]),
    ("fuzz_catalog", FUZZ, &["catalog", FUZZ_SECONDS]),
    ("fuzz_disk", FUZZ, &["disk", FUZZ_SECONDS]),
    ("fuzz_keeper", FUZZ, &["keeper", FUZZ_SECONDS]),
    ("fuzz_messages", FUZZ, &["messages", FUZZ_SECONDS]),
    ("fuzz_peer", FUZZ, &["peer", FUZZ_SECONDS]),
    ("fuzz_volumes", FUZZ, &["volumes", FUZZ_SECONDS]),
];

/// What a unit test prints that found itself on the wrong machine.
const SKIPPED: &str = "SKIPPED, NOTHING WAS TESTED: ";

const UNIT: &str = "unit_tests";

/// Builds everything and runs the checks that need no cluster, one line for each.
pub fn checks(tools: &Tools, parts: product::Parts, record: &mut Record) {
    for check in SOURCES {
        run_check(tools, check, record);
    }
    let start = Instant::now();
    let built = product::build_all(tools, parts);
    record.phases.push(Phase::since("build", start));
    if let Err(error) = built {
        say(format!("FAILED build: {error:#}"));
        // Nothing may be tested that is not this checkout.
        let _ = std::fs::remove_file(product::archive());
        record.failed += 1;
        return;
    }
    for check in BUILT {
        run_check(tools, check, record);
    }
}

fn run_check(tools: &Tools, (name, program, arguments): Check, record: &mut Record) {
    say(format!("check {name}"));
    let start = Instant::now();
    let outcome = product::run(tools, program, name, arguments);
    let (passed, failed) = match &outcome {
        Ok(output) if name == UNIT => counts(output),
        Ok(_) => (1, 0),
        Err(_) if name == UNIT => counts(&product::last_output()),
        Err(_) => (0, 1),
    };
    let skipped = if name == UNIT { skips(&product::last_output()) } else { Vec::new() };
    // A test that was not run has not passed, whatever it says.
    record.passed += passed.saturating_sub(skipped.len());
    record.failed += failed.max(usize::from(outcome.is_err()));
    record.phases.push(Phase::since(name, start));
    match outcome {
        Ok(_) if name == UNIT => say(format!("ok {name} ({passed} passed, {} of them skipped)", skipped.len())),
        Ok(_) => say(format!("ok {name}")),
        Err(error) => {
            failures(&product::last_output()).for_each(say);
            say(format!("FAILED {name}: {error:#}"));
        }
    }
    record.skipped.extend(skipped);
}

/// What test programs say of tests that failed: which, and where they ended; the end of the output may be another program's.
fn failures(output: &str) -> impl Iterator<Item = String> {
    let lines: Vec<&str> = output.lines().collect();
    let starts = (0..lines.len()).filter(|at| lines[*at].ends_with("... FAILED") || lines[*at].contains(" panicked at "));
    // A panic's reason is on the lines after it.
    let told: Vec<String> = starts.map(|at| lines[at..lines.len().min(at + 4)].join("\n  ")).collect();
    told.into_iter()
}

/// The tests that say in their output that they were not run, and why.
fn skips(output: &str) -> Vec<String> {
    let mut test = "";
    let mut found = Vec::new();
    for line in output.lines() {
        if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            test = name;
        } else if let Some(why) = line.strip_prefix(SKIPPED) {
            found.push(format!("{test}: {why}"));
        }
    }
    found
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

/// Where the time went, what was not tested, and the line that says how it all ended; the last one of a run.
///
/// # Errors
/// Never.
pub fn conclude(mut record: Record) -> Result<i32> {
    for phase in &record.phases {
        say(format!("  {:<22} {:>6} s", phase.name, phase.seconds));
    }
    if !record.skipped.is_empty() {
        let ci = std::env::var("CI").is_ok_and(|value| value == "true");
        say(format!("SKIPPED, NOTHING OF THIS WAS TESTED ({}):", record.skipped.len()));
        record.skipped.iter().for_each(|what| say(format!("  {what}")));
        record.failed += failures_of_skips(record.skipped.len(), ci);
    }
    say(record.tally().to_string());
    Ok(i32::from(record.failed > 0))
}

/// Where nobody reads the list, nothing may be on it.
fn failures_of_skips(skipped: usize, ci: bool) -> usize {
    if ci { skipped } else { 0 }
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
    fn tests_that_failed_are_named_with_their_reason() {
        let output = "test a ... ok\ntest b ... FAILED\nthread 'b' (7) panicked at b.rs:1:2:\nno such file\n\nend\nmore\n";
        let told: Vec<String> = failures(output).collect();
        assert_eq!(told.len(), 2);
        assert!(told[0].starts_with("test b ... FAILED") && told[1].contains("no such file") && !told[1].contains("more"));
    }

    #[test]
    fn a_tally_is_read_as_it_is_written() {
        let tally: Tally = (Tally { passed: 3, failed: 1 } + Tally { passed: 4, failed: 0 }).to_string().parse().unwrap();
        assert_eq!((tally.passed, tally.failed), (7, 1));
        assert!("FAILED something".parse::<Tally>().is_err());
    }

    #[test]
    fn tests_that_say_so_are_skipped_and_not_passed() {
        let output = "---- a::b stdout ----\nSKIPPED, NOTHING WAS TESTED: needs root\n\n---- c stdout ----\nhello\n";
        assert_eq!(skips(output), ["a::b: needs root"]);
        assert_eq!(failures_of_skips(3, true), 3);
        assert_eq!(failures_of_skips(3, false), 0);
    }

    #[test]
    fn a_record_survives_being_handed_on() {
        #[derive(clap::Parser)]
        struct Handed {
            #[command(flatten)]
            record: Record,
        }
        let phases = vec!["tools=12".parse().unwrap()];
        let record = Record { passed: 3, failed: 1, phases, skipped: vec!["a b: needs root; fuse".to_owned()] };
        let again = <Handed as clap::Parser>::parse_from(["x".into()].into_iter().chain(record.arguments())).record;
        assert_eq!((again.passed, again.failed, again.skipped), (3, 1, record.skipped));
        assert_eq!(again.phases[0].to_string(), "tools=12");
    }
}
