//! Pods that start, start again, and go.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::nodes::{READ_ON, with_value};
use super::{After, Faults, WAIT, each};
use crate::cluster::condition;
use crate::dataset::Manifest;
use crate::images::TRAINING;
use crate::process::Run as _;
use crate::s3::SECRET_KEY;
use crate::scenarios::larder::{HOLD, Named, SYSTEM};
use crate::scenarios::reboot::targets;
use crate::scenarios::takeover::serving;

/// A folder of each dataset.
const PART: &str = "samples";

/// From the deletion of a pod that reads from a mounter that hangs to its end: as long as that mounter is waited for, and a little.
const GONE: Duration = Duration::from_secs(30);

/// The container of a pod starts again, and then the mounter dies; with the whole volume, or a folder of it, which the kubelet binds
/// itself (`subPath`).
pub(super) fn app_and_mounter<'f>(faults: &Faults<'f>, after: After<'_, 'f>, part: bool) -> Result<usize> {
    let Faults { lab, node, through_mounter, .. } = faults;
    let (named, cluster) = (&through_mounter.named, &lab.cluster);
    let mut pod = named.pod("app", node, &HOLD);
    pod["spec"]["restartPolicy"] = json!("Always");
    let mut wanted = through_mounter.manifest.clone();
    if part {
        pod["spec"]["containers"][0]["volumeMounts"][0]["subPath"] = json!(PART);
        let inside = wanted
            .into_iter()
            .filter_map(|(path, entry)| Some((path.strip_prefix(PART)?.strip_prefix('/')?.to_owned(), entry)));
        wanted = inside.collect::<Manifest>();
        ensure!(!wanted.is_empty(), "the dataset has no files in {PART}");
    }
    cluster.apply(&pod.to_string())?;
    cluster.wait_ready(named.namespace, "app", WAIT)?;
    named.check_in("app", &wanted)?;
    let times = each(faults, after, if faults.quick { 1 } else { 5 }, |_| {
        let before = cluster.main_process(named.namespace, "app", "reader")?.1;
        before.signal(Signal::SIGKILL)?;
        cluster.wait_until("the pod's container is started again", WAIT, || {
            let now = cluster.main_process(named.namespace, "app", "reader")?.1;
            ensure!(now.container_id != before.container_id, "not yet");
            Ok(())
        })?;
        serving(lab, node)?.signal(Signal::SIGKILL)?;
        named.check_in("app", &wanted)
    })?;
    cluster.delete_and_wait("pods", Some(named.namespace), "app", WAIT)?;
    Ok(times)
}

/// A pod is deleted by force while it reads from a mounter that hangs: what it leaves is a task that nobody can kill.
pub(super) fn blocked_reader_deleted<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    let Faults { lab, node, through_mounter: readers, .. } = faults;
    let (named, cluster) = (&readers.named, &lab.cluster);
    each(faults, after, if faults.quick { 1 } else { 5 }, |_| {
        let mut pod = named.pod("blocked", node, &["python3", "-c", READ_ON]);
        pod["spec"]["containers"][0]["image"] = json!(TRAINING);
        cluster.apply(&pod.to_string())?;
        let pod = cluster.wait_ready(named.namespace, "blocked", WAIT)?;
        let uid = pod["metadata"]["uid"].as_str().context("the pod has no uid")?.to_owned();
        let reader = cluster.main_process(named.namespace, "blocked", "reader")?.1;
        serving(lab, node)?.signal(Signal::SIGSTOP)?;
        cluster.wait_until("the pod's read to wait", Duration::from_secs(5), || {
            ensure!(state(reader.pid) == Some('D'), "it does not");
            Ok(())
        })?;
        cluster.kubectl(&["delete", "pod", "blocked", "-n", named.namespace, "--force", "--grace-period=0"])?;
        cluster.wait_until("nothing left of the pod", GONE, || {
            let left: Vec<_> = node.processes().into_iter().filter(|process| process.pod_uid == uid).collect();
            ensure!(left.is_empty(), "{left:?} are");
            let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", node.holder()?)).context("mounts of the node")?;
            ensure!(!mounts.contains(&uid), "a mount is");
            Ok(())
        })
    })
}

/// As in /proc: `D` is a wait that no signal ends.
fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// So many pods get the dataset at the same moment.
pub(super) fn publishes_at_once<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    let count = if faults.quick { 10 } else { 50 };
    each(faults, after, 1, |_| {
        let pods = Pods::apply(faults, "at-once", count)?;
        pods.read()?;
        pods.remove()
    })?;
    Ok(count)
}

/// The kubelet is killed 100 ms after the first of some targets is being mounted: its call is cut off, and comes again with
/// the same arguments.
pub(super) fn publish_cancelled<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    each(faults, after, if faults.quick { 2 } else { 10 }, |_| {
        let before = targets(faults.node)?.len();
        let pods = Pods::apply(faults, "cancelled", 3)?;
        let deadline = Instant::now() + WAIT;
        while targets(faults.node)?.len() == before {
            ensure!(Instant::now() < deadline, "nothing is published");
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(100));
        faults.node.restart_kubelet()?;
        pods.read()?;
        pods.remove()?;
        let left = targets(faults.node)?.len();
        ensure!(left == before, "there were {before} records of targets, now {left}");
        Ok(())
    })
}

/// The daemons say all they can, and neither a key of the origin nor a token.
pub(super) fn logs_at_trace<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    let cluster = &faults.lab.cluster;
    with_value(faults, ["logLevel=trace", "logLevel=info"], "daemonset/larder-node", || {
        for daemon in ["daemonset/larder-mounter", "deployment/larder-operator"] {
            cluster.kubectl(&["rollout", "status", "-n", SYSTEM, daemon, "--timeout=300s"])?;
        }
        each(faults, after, 1, |_| {
            let pods = Pods::apply(faults, "traced", 1)?;
            pods.read()?;
            pods.remove()
        })?;
        // What every JSON web token begins with; mount tokens: dataset, node, time of expiry, signature.
        let (secrets, mut traced) =
            (format!("{SECRET_KEY}|eyJhbGciOi|[0-9a-f-]{{36}}:[a-z0-9.-]+:[0-9]{{10}}:[0-9a-f]{{64}}"), 0);
        for node in cluster.nodes() {
            let logs = node.var_lib("log-pods");
            let found =
                Command::new("grep").args(["--recursive", "--files-with-matches", "-E", &secrets]).arg(&logs).run_any()?.1;
            ensure!(found.is_empty(), "a secret is in {found}");
            traced += Command::new("grep")
                .args(["--recursive", "--files-with-matches", "TRACE"])
                .arg(&logs)
                .run_any()?
                .1
                .lines()
                .count();
        }
        ensure!(traced > 0, "no log has a line of that level");
        Ok(traced)
    })
}

/// Pods that hold the dataset.
struct Pods<'a> {
    named: &'a Named<'a>,
    manifest: &'a Manifest,
    names: Vec<String>,
}

impl<'a> Pods<'a> {
    fn apply(faults: &'a Faults<'_>, name: &str, count: usize) -> Result<Self> {
        let readers = &faults.through_mounter;
        let names: Vec<String> = (0..count).map(|number| format!("{name}-{number}")).collect();
        let pods: Vec<Value> = names.iter().map(|name| readers.named.pod(name, faults.node, &HOLD)).collect();
        readers.named.lab.cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": pods }).to_string())?;
        Ok(Self { named: &readers.named, manifest: &readers.manifest, names })
    }

    /// Waits until all run; one of them reads everything.
    fn read(&self) -> Result<()> {
        let Self { named, manifest, names } = self;
        named.lab.cluster.wait_until("the pods run", WAIT, || {
            let pods = named.lab.cluster.list("pods", Some(named.namespace))?;
            let ready = |name: &&String| {
                pods.iter().any(|pod| pod["metadata"]["name"] == name.as_str() && condition(pod, "Ready") == Some("True"))
            };
            let ready = names.iter().filter(ready).count();
            ensure!(ready == names.len(), "{ready} of {} do", names.len());
            Ok(())
        })?;
        named.check_in(names.last().context("no pods")?, manifest)
    }

    fn remove(&self) -> Result<()> {
        let Self { named, names, .. } = self;
        names.iter().try_for_each(|name| named.lab.cluster.delete("pods", Some(named.namespace), name))?;
        names.iter().try_for_each(|name| named.lab.cluster.delete_and_wait("pods", Some(named.namespace), name, WAIT))
    }
}
