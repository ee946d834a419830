//! The cases.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::Faults;
use crate::scenarios::larder::{Named, SYSTEM};
use crate::scenarios::takeover::{HOLDERS, kill, serving, wait_back};

const WAIT: Duration = Duration::from_secs(400);

/// Called after each fault.
type After<'a, 'f> = &'a mut dyn FnMut(&Faults<'f>) -> Result<()>;

/// One kind of fault.
pub(super) struct Case {
    pub(super) name: &'static str,
    /// Stalls of readers that go through the mounter, p99 and longest.
    pub(super) p99: Duration,
    pub(super) max: Duration,
    /// What is promised, for the report.
    pub(super) target: &'static str,
    /// Returns how many faults there were.
    pub(super) run: for<'f> fn(&Faults<'f>, After<'_, 'f>) -> Result<usize>,
}

const SHORT: Duration = Duration::from_millis(300);
const TWO: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(15);

pub(super) const CASES: [Case; 10] = [
    Case { name: "mounter-process", p99: SHORT, max: TWO, target: "p99 300 ms, max 2 s", run: mounter_process },
    Case { name: "mounter-container", p99: TWO, max: TWO, target: "max 2 s", run: mounter_container },
    Case { name: "keeper", p99: SHORT, max: TWO, target: "p99 300 ms, max 2 s", run: |f, after| container(f, after, &[0]) },
    Case {
        name: "node-plugin",
        p99: SHORT,
        max: TWO,
        target: "p99 300 ms, max 2 s",
        run: |f, after| container(f, after, &[1]),
    },
    Case {
        name: "keeper-and-node-plugin",
        p99: SHORT,
        max: TWO,
        target: "p99 300 ms, max 2 s",
        run: |f, after| container(f, after, &[0, 1]),
    },
    Case { name: "keeper-and-mounter", p99: TWO, max: TWO, target: "max 2 s", run: |f, after| with_serving(f, after, 0) },
    Case { name: "node-plugin-and-mounter", p99: TWO, max: TWO, target: "max 2 s", run: |f, after| with_serving(f, after, 1) },
    Case { name: "mounter-stopped", p99: LONG, max: LONG, target: "max 15 s; kubelet answers in 1 s", run: mounter_stopped },
    Case { name: "kubelet-restart", p99: SHORT, max: TWO, target: "p99 300 ms, max 2 s", run: kubelet_restart },
    Case { name: "mounter-update", p99: TWO, max: TWO, target: "max 2 s", run: mounter_update },
];

/// The process that serves is killed, one time every three seconds.
fn mounter_process<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    let times = if faults.quick { 50 } else { 1000 };
    for _ in 0..times {
        let next = Instant::now() + Duration::from_secs(if faults.quick { 1 } else { 3 });
        serving(faults.lab, faults.node)?.signal(Signal::SIGKILL)?;
        after(faults)?;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(times)
}

/// The whole container of the process that serves is killed, as the kernel does when it has no memory left (`memory.oom.group`,
/// which the kubelet sets).
fn mounter_container<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    let times = if faults.quick { 2 } else { 20 };
    for _ in 0..times {
        let serving = serving(faults.lab, faults.node)?;
        let all = faults.node.processes();
        let main = all.iter().find(|process| process.container_id == serving.container_id && process.is_main());
        main.context("the container has no first process")?.signal(Signal::SIGKILL)?;
        after(faults)?;
    }
    Ok(times)
}

/// Containers are killed at the same moment, and come back.
fn container<'f>(faults: &Faults<'f>, after: After<'_, 'f>, victims: &[usize]) -> Result<usize> {
    let times = if faults.quick { 1 } else { 5 };
    let victims: Vec<_> = victims.iter().map(|at| HOLDERS[*at]).collect();
    for _ in 0..times {
        let killed = kill(faults.lab, faults.node, &victims)?;
        wait_back(faults.lab, &killed)?;
        after(faults)?;
    }
    Ok(times)
}

/// A container, and the process that serves, at the same moment.
fn with_serving<'f>(faults: &Faults<'f>, after: After<'_, 'f>, victim: usize) -> Result<usize> {
    let times = if faults.quick { 1 } else { 5 };
    for _ in 0..times {
        let process = serving(faults.lab, faults.node)?;
        let killed = kill(faults.lab, faults.node, &[HOLDERS[victim]])?;
        process.signal(Signal::SIGKILL)?;
        after(faults)?;
        wait_back(faults.lab, &killed)?;
    }
    Ok(times)
}

/// The process that serves hangs, and with it the mount, until its supervisor has had enough. The kubelet's calls do not wait
/// for that.
fn mounter_stopped<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    let times = if faults.quick { 1 } else { 5 };
    for _ in 0..times {
        serving(faults.lab, faults.node)?.signal(Signal::SIGSTOP)?;
        for question in ["healthz", "pods", "stats/summary"] {
            let asked = Instant::now();
            let path = format!("/api/v1/nodes/{}/proxy/{question}", faults.node.name());
            faults.lab.cluster.kubectl(&["get", "--raw", &path])?;
            let took = asked.elapsed();
            ensure!(took < Duration::from_secs(1), "the kubelet took {took:?} to answer {question}");
        }
        after(faults)?;
    }
    Ok(times)
}

/// The kubelet starts again; it mounts nothing twice.
fn kubelet_restart<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    let times = if faults.quick { 2 } else { 20 };
    for _ in 0..times {
        faults.node.restart_kubelet()?;
        after(faults)?;
    }
    // It serves: a pod gets its volume.
    let named = Named { lab: faults.lab, namespace: "faults-1", name: "faults-1" };
    named.start_holder(faults.node)?;
    faults.lab.cluster.delete_and_wait("pods", Some(named.namespace), "holder", WAIT)?;
    Ok(times)
}

/// The mounter is replaced on all nodes by a rolling update.
fn mounter_update<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    let times = if faults.quick { 1 } else { 5 };
    for _ in 0..times {
        faults.lab.cluster.kubectl(&["rollout", "restart", "-n", SYSTEM, "daemonset/larder-mounter"])?;
        faults.lab.cluster.wait_rolled_out("daemonsets", SYSTEM, "larder-mounter", WAIT)?;
        after(faults)?;
    }
    Ok(times)
}
