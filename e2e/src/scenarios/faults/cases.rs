//! The cases.

mod daemons;
mod nodes;
mod pods;
mod random;
mod workers;

use std::time::Duration;

use anyhow::Result;

use super::{Faults, watch};

/// Longest wait for something to be as it was.
const WAIT: Duration = Duration::from_secs(400);

/// Called after a fault, with the second in which it began.
type After<'a, 'f> = &'a mut dyn FnMut(&Faults<'f>, u64) -> Result<()>;

/// Injects faults and returns how many.
type Run = for<'f> fn(&Faults<'f>, After<'_, 'f>) -> Result<usize>;

/// One kind of fault.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) whose: Whose,
    pub(super) limits: Limits,
    pub(super) run: Run,
}

/// Whose stalls are judged. Errors and wrong bytes are everybody's.
#[derive(Clone, Copy)]
pub(super) enum Whose {
    /// Those that go through the mounter of their node.
    OfTheNode,
    /// Those that have everything from other nodes.
    Remote,
}

/// Stalls that are promised.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) p99: Duration,
    pub(super) max: Duration,
    /// For the report.
    pub(super) text: &'static str,
}

const fn limits(p99: u64, max: u64, text: &'static str) -> Limits {
    Limits { p99: Duration::from_millis(p99), max: Duration::from_millis(max), text }
}

const SHORT: Limits = limits(300, 2_000, "p99 300 ms, max 2 s");
const TWO: Limits = limits(2_000, 2_000, "max 2 s");
const HUNG: Limits = limits(15_000, 15_000, "max 15 s");
/// A peer that is silent for a second is asked no more, and after two another one stands in for it.
const PEER: Limits = limits(5_000, 5_000, "max 5 s");

const fn on_node(name: &'static str, limits: Limits, run: Run) -> Case {
    Case { name, whose: Whose::OfTheNode, limits, run }
}

const fn elsewhere(name: &'static str, limits: Limits, run: Run) -> Case {
    Case { name, whose: Whose::Remote, limits, run }
}

/// In the order in which they run: those that change most come last.
pub(super) const CASES: [Case; 28] = [
    on_node("mounter-process", SHORT, daemons::mounter_process),
    on_node("mounter-process-journal", SHORT, daemons::mounter_process_journal),
    on_node("mounter-container", TWO, daemons::mounter_container),
    on_node("mounter-out-of-memory", TWO, daemons::mounter_out_of_memory),
    on_node("keeper", SHORT, |f, after| daemons::containers(f, after, &[0])),
    on_node("node-plugin", SHORT, |f, after| daemons::containers(f, after, &[1])),
    on_node("keeper-and-node-plugin", SHORT, |f, after| daemons::containers(f, after, &[0, 1])),
    on_node("keeper-and-mounter", TWO, |f, after| daemons::with_serving(f, after, 0)),
    on_node("node-plugin-and-mounter", TWO, |f, after| daemons::with_serving(f, after, 1)),
    on_node("mounter-stopped", HUNG, daemons::mounter_stopped),
    on_node("kubelet-restart", SHORT, daemons::kubelet_restart),
    on_node("mounter-update", TWO, daemons::mounter_update),
    on_node("random-kills", TWO, random::kills),
    on_node("app-restart-and-mounter", SHORT, |f, after| pods::app_and_mounter(f, after, false)),
    on_node("sub-path-and-mounter", SHORT, |f, after| pods::app_and_mounter(f, after, true)),
    on_node("blocked-reader-deleted", HUNG, pods::blocked_reader_deleted),
    on_node("publishes-at-once", TWO, pods::publishes_at_once),
    on_node("publish-cancelled", TWO, pods::publish_cancelled),
    elsewhere("worker-killed", PEER, workers::killed),
    elsewhere("worker-partitioned", PEER, workers::partitioned),
    elsewhere("worker-slow", PEER, workers::slow),
    elsewhere("worker-garbage", PEER, workers::garbage),
    on_node("disk-pulled", TWO, workers::disk_pulled),
    elsewhere("drain", SHORT, nodes::drain),
    elsewhere("all-holders", SHORT, nodes::all_holders),
    elsewhere("mounter-crash-loop", TWO, nodes::mounter_crash_loop),
    elsewhere("node-gone", PEER, nodes::gone_for_good),
    on_node("logs-at-trace", TWO, pods::logs_at_trace),
];

/// Does `fault` so many times, and waits after each until all readers go on.
fn each<'f>(
    faults: &Faults<'f>,
    after: After<'_, 'f>,
    times: usize,
    mut fault: impl FnMut(usize) -> Result<()>,
) -> Result<usize> {
    for number in 0..times {
        let since = watch::now()?;
        fault(number)?;
        after(faults, since)?;
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_a_line_for_each_case() {
        let page = include_str!("../../../../docs/reliability.md");
        let missing: Vec<_> =
            CASES.iter().filter(|case| !page.contains(&format!("`{}`", case.name))).map(|case| case.name).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
