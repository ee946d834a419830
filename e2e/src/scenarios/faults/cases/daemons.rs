//! Daemons of a node.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::slice;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::nodes::with_value;
use super::{After, Faults, WAIT, each};
use crate::capsule::cgroup;
use crate::scenarios::larder::SYSTEM;
use crate::scenarios::takeover::{HOLDERS, kill, last_end, main_process, serving, wait_back};

/// Kills of the process that serves that are one fault for the report: to wait for all readers after each would take longer than
/// from one kill to the next.
const BATCH: usize = 25;
/// From one kill to the next.
const PERIOD: Duration = Duration::from_millis(700);

/// The process that serves is killed, again and again.
pub(super) fn mounter_process<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    kill_again_and_again(faults, after, if faults.quick { 2 } else { 40 })
}

fn kill_again_and_again<'f>(faults: &Faults<'f>, after: After<'_, 'f>, batches: usize) -> Result<usize> {
    each(faults, after, batches, |_| {
        for _ in 0..BATCH {
            let next = Instant::now() + PERIOD;
            serving(faults.lab, faults.node)?.signal(Signal::SIGKILL)?;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        Ok(())
    })
    .map(|batches| batches * BATCH)
}

/// The same on kernels that do not send again what was not answered, as far as this one can show it.
pub(super) fn mounter_process_journal<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    with_value(faults, ["mounter.inFlight=journal", "mounter.inFlight=auto"], "daemonset/larder-mounter", || {
        kill_again_and_again(faults, after, if faults.quick { 1 } else { 8 })
    })
}

/// The container of the process that serves is killed. The other one is there by then.
pub(super) fn mounter_container<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    each(faults, after, if faults.quick { 2 } else { 20 }, |_| {
        let victim = container_that_serves(faults)?;
        let killed = kill(faults.lab, faults.node, &[victim])?;
        wait_back(faults.lab, &killed)
    })
}

/// The same container reaches its limit of memory: the kernel kills what is in it, one process after the other.
pub(super) fn mounter_out_of_memory<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    each(faults, after, if faults.quick { 1 } else { 10 }, |_| {
        let (component, container) = container_that_serves(faults)?;
        let (was, main) = main_process(faults.lab, faults.node, component, container)?;
        let folder = cgroup::of_memory(main.pid)?;
        cgroup::limit_memory(&folder, 64 << 20)?;
        // Killed before the one that takes what there is, and what they start too.
        for process in faults.node.processes().iter().filter(|process| process.container_id == main.container_id) {
            fs::write(format!("/proc/{}/oom_score_adj", process.pid), "1000").context("choose who is killed")?;
        }
        let eat = r#"echo 0 > "$0/cgroup.procs"; exec tail /dev/zero"#;
        let mut eater = Command::new("sh").args(["-c", eat]).arg(&folder).spawn().context("start what takes memory")?;
        let ended = faults.lab.cluster.wait_until(&format!("{container} is out of memory"), WAIT, || {
            ensure!(!Path::new(&format!("/proc/{}", main.pid)).exists(), "it still runs");
            Ok(())
        });
        eater.kill().and_then(|()| eater.wait()).context("end what takes memory")?;
        ended?;
        wait_back(faults.lab, slice::from_ref(&was))?;
        let why = last_end(faults.lab, &was)?;
        ensure!(why == "OOMKilled", "the container ended for another reason: {why}");
        Ok(())
    })
}

/// The one of [`HOLDERS`] that has the process that serves.
fn container_that_serves(faults: &Faults<'_>) -> Result<(&'static str, &'static str)> {
    let serving = serving(faults.lab, faults.node)?;
    let pods = faults.lab.cluster.pods(SYSTEM, "app.kubernetes.io/component=mounter")?;
    let pod = pods.iter().find(|pod| pod["metadata"]["uid"] == serving.pod_uid.as_str()).context("no pod serves")?;
    let statuses = pod["status"]["containerStatuses"].as_array().context("the mounter has no containers")?;
    let id = format!("containerd://{}", serving.container_id);
    let container = statuses.iter().find(|status| status["containerID"] == id.as_str()).context("no container serves")?;
    HOLDERS.into_iter().find(|(_, name)| container["name"] == *name).context("another container serves")
}

/// Containers are killed at the same moment, and come back.
pub(super) fn containers<'f>(faults: &Faults<'f>, after: After<'_, 'f>, victims: &[usize]) -> Result<usize> {
    let victims: Vec<_> = victims.iter().map(|at| HOLDERS[*at]).collect();
    each(faults, after, if faults.quick { 1 } else { 5 }, |_| {
        let killed = kill(faults.lab, faults.node, &victims)?;
        wait_back(faults.lab, &killed)
    })
}

/// A container, and the process that serves, at the same moment.
pub(super) fn with_serving<'f>(faults: &Faults<'f>, after: After<'_, 'f>, victim: usize) -> Result<usize> {
    each(faults, after, if faults.quick { 1 } else { 5 }, |_| {
        let process = serving(faults.lab, faults.node)?;
        let killed = kill(faults.lab, faults.node, &[HOLDERS[victim]])?;
        process.signal(Signal::SIGKILL)?;
        wait_back(faults.lab, &killed)
    })
}

/// The process that serves hangs, and with it the mount, until its supervisor has had enough. The kubelet's calls do not wait
/// for that.
pub(super) fn mounter_stopped<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    each(faults, after, if faults.quick { 1 } else { 5 }, |_| {
        serving(faults.lab, faults.node)?.signal(Signal::SIGSTOP)?;
        for question in ["healthz", "pods", "stats/summary"] {
            let asked = Instant::now();
            let path = format!("/api/v1/nodes/{}/proxy/{question}", faults.node.name());
            faults.lab.cluster.api().text(&path)?;
            let took = asked.elapsed();
            ensure!(took < Duration::from_secs(1), "the kubelet took {took:?} to answer {question}");
        }
        Ok(())
    })
}

/// The kubelet starts again; it mounts nothing twice.
pub(super) fn kubelet_restart<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    let times = each(faults, after, if faults.quick { 2 } else { 20 }, |_| faults.node.restart_kubelet())?;
    // It serves: a pod gets its volume.
    let named = &faults.through_mounter.named;
    named.start_holder(faults.node)?;
    faults.lab.cluster.delete_and_wait("pods", Some(named.namespace), "holder", WAIT)?;
    Ok(times)
}

/// The mounter is replaced on all nodes by a rolling update.
pub(super) fn mounter_update<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    let cluster = &faults.lab.cluster;
    each(faults, after, if faults.quick { 1 } else { 5 }, |_| {
        cluster.kubectl(&["rollout", "restart", "-n", SYSTEM, "daemonset/larder-mounter"])?;
        cluster.kubectl(&["rollout", "status", "-n", SYSTEM, "daemonset/larder-mounter", "--timeout=300s"]).map(drop)
    })
}
