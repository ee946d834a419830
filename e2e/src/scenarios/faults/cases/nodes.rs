//! Nodes that are drained, lose all daemons, or are gone; what pods there see.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::workers::{cached, wait_ready};
use super::{After, Faults, WAIT, each};
use crate::cluster::phase;
use crate::images::TRAINING;
use crate::report::say;
use crate::scenarios::larder::{HOLD, SYSTEM, set_value};
use crate::scenarios::takeover::kill_all_holders;
use crate::scenarios::training::PageCache;

/// Readers may wait so long in a mount that nobody serves, and a node may be away so long before its share goes to others: less than
/// usual, to have it over with.
const SOON: u64 = 30;

/// A node is drained; a pod there that takes its whole grace period to end has its data until then.
pub(super) fn drain<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    let Faults { lab, other, remote, .. } = faults;
    let (named, cluster) = (&remote.named, &lab.cluster);
    let grace = if faults.quick { 20 } else { 120 };
    each(faults, after, 1, |_| {
        let mut pod = named.pod("leaves", other, &["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]);
        pod["spec"]["terminationGracePeriodSeconds"] = json!(grace);
        cluster.apply(&pod.to_string())?;
        cluster.wait_ready(named.namespace, "leaves", WAIT)?;
        let timeout = format!("--timeout={}s", grace + 60);
        let drain = ["drain", other.name(), "--ignore-daemonsets", "--force", "--delete-emptydir-data", &timeout];
        let (reads, took) = std::thread::scope(|scope| -> Result<(usize, Duration)> {
            let began = Instant::now();
            let drained = scope.spawn(move || cluster.kubectl(&drain));
            // The last of its time is left for the kill.
            let end = began + Duration::from_secs(grace - 5);
            let mut reads = 0;
            while Instant::now() < end {
                PageCache::hold(cluster.tools())?.clear()?;
                named.check_in("leaves", &remote.manifest)?;
                reads += 1;
                std::thread::sleep(Duration::from_secs(1));
            }
            drained.join().map_err(|_| crate::cluster::poisoned())??;
            Ok((reads, began.elapsed()))
        })?;
        ensure!(took >= Duration::from_secs(grace - 5), "the pod was gone after {took:?}");
        say(format!("  drain: the pod read everything {reads} times; the node was empty after {:.1} s", took.as_secs_f64()));
        cluster.kubectl(&["uncordon", other.name()]).map(drop)
    })
}

/// Reads a file without end; no page of it is there before. Says which error ended it.
pub(super) const READ_ON: &str = r#"
import os, sys
try:
    while True:
        with open("/data/shards/shard-00000.rec", "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.readall()
except OSError as error:
    print(os.strerror(error.errno), flush=True)
    while True:
        try:
            os.listdir("/data")
            sys.exit("it can be listed again")
        except OSError as error:
            print(os.strerror(error.errno), flush=True)
            sys.exit(error.errno != 107)
"#;

/// A pod whose mount is to end.
struct Victim<'a, 'f> {
    faults: &'a Faults<'f>,
}

impl<'a, 'f> Victim<'a, 'f> {
    fn start(faults: &'a Faults<'f>) -> Result<Self> {
        let (named, cluster) = (&faults.remote.named, &faults.lab.cluster);
        let mut pod = named.pod("victim", faults.other, &["python3", "-c", READ_ON]);
        pod["spec"]["containers"][0]["image"] = json!(TRAINING);
        cluster.apply(&pod.to_string())?;
        cluster.wait_ready(named.namespace, "victim", WAIT)?;
        Ok(Self { faults })
    }

    fn reads(&self) -> Result<bool> {
        let (named, cluster) = (&self.faults.remote.named, &self.faults.lab.cluster);
        Ok(phase(&cluster.get("pods", Some(named.namespace), "victim")?) == "Running")
    }

    /// It was told by an error, the dataset's users by Events; the next pod has a new mount.
    fn ended(self) -> Result<()> {
        let Faults { lab, other, remote, .. } = self.faults;
        let (named, cluster) = (&remote.named, &lab.cluster);
        cluster.wait_succeeded(named.namespace, "victim", WAIT)?;
        let said = cluster.logs(named.namespace, "victim", None)?;
        ensure!(said.trim().ends_with("Transport endpoint is not connected"), "the pod got: {said}");
        for regarded in ["victim", named.name] {
            cluster.wait_until(&format!("an Event on {regarded}"), WAIT, || {
                let events = cluster.list("events", Some(named.namespace))?;
                let of = |event: &&Value| event["involvedObject"]["name"] == regarded && event["reason"] == "MountEnded";
                let event = events.iter().find(of).context("there is none")?;
                let message = event["message"].as_str().unwrap_or_default();
                ensure!(message.contains(other.name()), "it does not name the node: {message}");
                Ok(())
            })?;
        }
        // Until a mounter is back a pod waits, which is an Event of its own.
        cluster.apply(&named.pod("next", other, &HOLD).to_string())?;
        cluster.wait_ready(named.namespace, "next", WAIT)?;
        named.check_in("next", &remote.manifest)?;
        for pod in ["victim", "next"] {
            cluster.delete_and_wait("pods", Some(named.namespace), pod, WAIT)?;
        }
        for event in cluster.list("events", Some(named.namespace))? {
            if let (Some(name), true) = (event["metadata"]["name"].as_str(), event["reason"] == "MountEnded") {
                cluster.delete("events", Some(named.namespace), name)?;
            }
        }
        Ok(())
    }
}

/// Mounter, standby, keeper and node plugin of a node die at the same moment: the mounts there end, and say so.
pub(super) fn all_holders<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    each(faults, after, if faults.quick { 1 } else { 5 }, |_| {
        let victim = Victim::start(faults)?;
        kill_all_holders(faults.lab, faults.other)?;
        victim.ended()
    })
}

/// No mounter of a node lives for long: whoever reads gets an error when it is time, and not before; the kubelet goes on.
pub(super) fn mounter_crash_loop<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    let other = faults.other;
    let mut kills = 0;
    let soon = format!("node.abortSeconds={SOON}");
    with_value(faults, [&soon, "node.abortSeconds=120"], "daemonset/larder-node", || {
        each(faults, after, 1, |_| {
            let victim = Victim::start(faults)?;
            let began = Instant::now();
            let limit = Duration::from_secs(SOON);
            while victim.reads()? {
                for process in other.processes().iter().filter(|process| process.command.contains("larder mounter")) {
                    // It may have died with its supervisor.
                    kills += usize::from(process.signal(Signal::SIGKILL).is_ok());
                }
                let took = began.elapsed();
                ensure!(took < limit * 3, "readers still wait after {took:?}");
                std::thread::sleep(Duration::from_millis(20));
            }
            let took = began.elapsed();
            ensure!(took >= limit, "the mount was ended after {took:?}, which is too soon");
            say(format!("  mounter-crash-loop: the mount was ended after {:.1} s", took.as_secs_f64()));
            victim.ended()
        })
    })?;
    Ok(kills)
}

/// A node loses its power and does not come back in time: the others take its share over. It comes back later.
pub(super) fn gone_for_good<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    let Faults { lab, node, other, remote, .. } = faults;
    let named = &remote.named;
    let soon = format!("operator.memberGraceSeconds={SOON}");
    with_value(faults, [&soon, "operator.memberGraceSeconds=600"], "deployment/larder-operator", || {
        let off = Instant::now();
        each(faults, after, 1, |_| other.power_off())?;
        let repaired = each(faults, after, 1, |_| {
            lab.cluster.wait_until("the others have everything", WAIT, || {
                let there = cached(named, node)?.len();
                ensure!(there == remote.manifest.len(), "{there} of {} files are on {}", remote.manifest.len(), node.name());
                Ok(())
            })
        });
        say(format!("  node-gone: its share is on the disk of another one after {:.1} s", off.elapsed().as_secs_f64()));
        other.power_on()?;
        repaired?;
        for readers in faults.all() {
            wait_ready(&readers.named, other)?;
            readers.named.wait("Preloaded", WAIT)?;
        }
        Ok(1)
    })
}

/// Does something while a value of the chart is the first one, and sets the second one afterwards, whatever came of it: other cases
/// follow. Waits each time until what it is for has it.
pub(super) fn with_value<T>(
    faults: &Faults<'_>,
    [value, usual]: [&str; 2],
    whose: &str,
    act: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let set = |value| {
        set_value(faults.lab, value)?;
        faults.lab.cluster.kubectl(&["rollout", "status", "-n", SYSTEM, whose, "--timeout=300s"])
    };
    let acted = set(value).and_then(|_| act());
    set(usual)?;
    acted
}
