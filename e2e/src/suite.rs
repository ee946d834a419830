//! Runs tests one after the other on a lab, each under a watchdog.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::ci::Tally;
use crate::cluster::{ClusterSpec, DUMP};
use crate::lab::Lab;
use crate::report::{say, seconds};
use crate::run_dir::RunDir;
use crate::tools::Tools;

/// A test.
#[derive(Clone, Copy)]
pub struct Test {
    /// Its name: a sentence in `snake_case`.
    pub name: &'static str,
    /// What it does.
    pub run: fn(&Lab) -> Result<()>,
    /// The watchdog ends it after this long.
    pub timeout: Duration,
    /// It needs a cluster that no other test has used, and leaves one that none should.
    pub own_cluster: bool,
    /// What is special about that cluster.
    pub spec: fn(&mut ClusterSpec),
    /// It needs the image of Larder.
    pub needs_larder: bool,
}

impl Test {
    /// A test of at most three minutes on the shared cluster.
    pub const fn new(name: &'static str, run: fn(&Lab) -> Result<()>) -> Self {
        Self { name, run, timeout: Duration::from_secs(180), own_cluster: false, spec: |_| (), needs_larder: true }
    }

    /// Of the cluster alone.
    pub const fn without_larder(mut self) -> Self {
        self.needs_larder = false;
        self
    }

    /// With another limit.
    pub const fn within(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// With a cluster of its own.
    pub const fn on_its_own_cluster(mut self) -> Self {
        self.own_cluster = true;
        self
    }

    /// With a cluster of its own that is not like the others.
    pub const fn on_a_cluster(mut self, spec: fn(&mut ClusterSpec)) -> Self {
        self.own_cluster = true;
        self.spec = spec;
        self
    }
}

/// Runs the tests, each with its place among all, and prints a line for each.
///
/// # Errors
/// No lab could be started, or there is no saying which test is next.
pub fn run(run: &RunDir, tools: &Tools, mut next: impl FnMut() -> Result<Option<(Test, String)>>) -> Result<Tally> {
    let spec = ClusterSpec::from_environment()?;
    let mut tally = Tally::default();
    let mut lab: Option<Arc<Lab>> = None;
    while let Some((test, place)) = next()? {
        if test.own_cluster
            && let Some(used) = lab.take()
        {
            used.down()?;
        }
        let current = match &lab {
            Some(lab) => Arc::clone(lab),
            None => {
                let mut spec = spec.clone();
                (test.spec)(&mut spec);
                Arc::clone(lab.insert(Arc::new(Lab::up(run, tools, &spec)?)))
            }
        };
        let started = Instant::now();
        say(format!("test {} ({place})", test.name));
        let outcome = watch(&current, test);
        let took = seconds(started.elapsed());
        match outcome {
            Ok(()) => {
                tally.passed += 1;
                say(format!("ok {} ({took})", test.name));
            }
            Err(error) => {
                tally.failed += 1;
                let mut why = format!("{error:#}");
                if !why.contains(DUMP) {
                    why = format!("{why}; {}", current.cluster.dump(test.name));
                }
                say(format!("FAILED {}: {why} ({took})", test.name));
            }
        }
        // After a watchdog's bite a thread may still work on the old cluster; it gets errors from now on.
        if (test.own_cluster || current.cluster.is_cancelled())
            && let Some(used) = lab.take()
        {
            used.down()?;
        }
    }
    if let Some(lab) = lab {
        lab.down()?;
    }
    Ok(tally)
}

/// Runs one test in a thread of its own, so that it can be given up.
fn watch(lab: &Arc<Lab>, test: Test) -> Result<()> {
    let (done, finished) = mpsc::channel();
    let shared = Arc::clone(lab);
    std::thread::spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| (test.run)(&shared)));
        let _ = done.send(outcome.unwrap_or_else(|panic| Err(anyhow!("panicked: {}", panic_text(&*panic)))));
    });
    finished.recv_timeout(test.timeout).unwrap_or_else(|_| {
        let dump = lab.cluster.dump(test.name);
        lab.cluster.cancel();
        Err(anyhow!("not finished after {}; {dump}", seconds(test.timeout)))
    })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}
