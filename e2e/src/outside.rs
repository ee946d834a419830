//! Tests of the harness itself: they start this program again as a person would, on the machine, outside of any capsule.

mod child;
mod kills;
mod machine;
mod traces;

use std::time::Instant;

use anyhow::Result;

use crate::ci::Tally;
use crate::report::{say, seconds};

/// A test that runs outside of a capsule. Its name may not contain that of a test it starts.
#[derive(Clone, Copy)]
pub struct Outside {
    /// Its name: a sentence in `snake_case`.
    pub name: &'static str,
    /// What it does; it minds the time itself.
    pub run: fn() -> Result<()>,
    /// It needs the image of Larder.
    pub needs_larder: bool,
}

/// All of them, quickest first.
pub const ALL: &[Outside] = &[
    Outside {
        name: "the_demo_says_at_once_what_the_machine_lacks",
        run: machine::the_demo_says_at_once_what_the_machine_lacks,
        needs_larder: false,
    },
    Outside { name: "two_clusters_live_side_by_side", run: kills::two_clusters_live_side_by_side, needs_larder: true },
    Outside { name: "killed_runs_leave_nothing", run: kills::killed_runs_leave_nothing, needs_larder: true },
];

/// Runs the tests and prints a line for each; adds them to the tally.
pub fn run(tests: &[Outside], mut tally: Tally) -> Tally {
    for (index, test) in tests.iter().enumerate() {
        say(format!("test {} ({} of {} outside of a capsule)", test.name, index + 1, tests.len()));
        let started = Instant::now();
        let outcome = (test.run)();
        let took = seconds(started.elapsed());
        match outcome {
            Ok(()) => {
                tally.passed += 1;
                say(format!("ok {} ({took})", test.name));
            }
            Err(error) => {
                tally.failed += 1;
                say(format!("FAILED {}: {error:#} ({took})", test.name));
            }
        }
    }
    tally
}
