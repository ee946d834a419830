//! Two runs at once, and runs that are killed.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use nix::sys::signal::Signal;

use super::child::OwnRun;
use super::traces::{Machine, Traces};
use crate::report::{say, seconds};

/// What the runs do: everything from `helm install` to the right bytes in pods.
const MAIN_JOB: [&str; 3] = ["test", "first_light", "--no-build"];

const UP: Duration = Duration::from_secs(240);
const DONE: Duration = Duration::from_secs(600);
/// The kernel takes its time for the last cgroup.
const GONE: Duration = Duration::from_secs(40);

/// Same addresses, same names, same paths: each run has the machine for itself.
pub(super) fn two_clusters_live_side_by_side() -> Result<()> {
    let mut runs = [OwnRun::start("side-a", &MAIN_JOB)?, OwnRun::start("side-b", &MAIN_JOB)?];
    for run in &mut runs {
        run.wait_printed("cluster up:", UP)?;
    }
    // Both have one at this moment.
    runs.iter_mut().try_for_each(OwnRun::check_alive)?;
    for run in &mut runs {
        let status = run.wait_ended(DONE)?;
        let said = run.tail(1);
        ensure!(status.success() && said == "1 passed, 0 failed", "{status}: {}", run.tail(20));
    }
    Ok(())
}

/// One is killed by force, one by Ctrl-C, both while pods have a dataset mounted.
pub(super) fn killed_runs_leave_nothing() -> Result<()> {
    let before = Machine::look()?;
    // Started by this thread, because they end with the one that started them.
    let mut runs = [OwnRun::start("killed", &MAIN_JOB)?, OwnRun::start("interrupted", &MAIN_JOB)?];
    std::thread::scope(|scope| {
        let signals = [Signal::SIGKILL, Signal::SIGINT];
        let kills: Vec<_> =
            runs.iter_mut().zip(signals).map(|(run, signal)| scope.spawn(move || kill_and_look(run, signal))).collect();
        kills.into_iter().try_for_each(|kill| kill.join().map_err(|_| anyhow!("panicked"))?)
    })?;
    before.compare(&Machine::look()?)
}

fn kill_and_look(run: &mut OwnRun, signal: Signal) -> Result<()> {
    let traces = run.wait_until("a pod has the dataset mounted", UP, |run| {
        let traces = Traces::of(run.pid())?;
        Ok(traces.has_mounted_datasets().then_some(traces))
    })?;
    let folder = run.run().clone();
    say(format!("  {signal} to {}, whose run has {traces}", run.pid()));
    // What is looked for later is what is there now.
    let now = traces.left(&folder).join(", ");
    for kind in ["process ", "namespace ", "cgroup ", "file "] {
        ensure!(now.contains(kind), "no {kind}is found while the run lives: {now}");
    }
    run.signal(signal)?;
    let killed = Instant::now();
    let status = run.wait_ended(GONE)?;
    ensure!(signal == Signal::SIGKILL || status.code() == Some(128 + Signal::SIGINT as i32), "it ended with {status}");
    loop {
        let left = traces.left(&folder);
        if left.is_empty() {
            break;
        }
        ensure!(killed.elapsed() < GONE, "left {GONE:?} after {signal}: {}", left.join(", "));
        std::thread::sleep(Duration::from_millis(100));
    }
    say(format!("  nothing is left of it {} after {signal}", seconds(killed.elapsed())));
    Ok(())
}
