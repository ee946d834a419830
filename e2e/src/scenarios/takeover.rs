//! A mount lives on when the processes that serve and hold it are killed.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::larder::{BUCKET, Named, SYSTEM, install, set_value, upload};
use super::training::PageCache;
use crate::cluster::{Node, Process};
use crate::dataset::Manifest;
use crate::images;
use crate::lab::Lab;
use crate::process::end_of;
use crate::report::say;

const WAIT: Duration = Duration::from_secs(120);

/// Kills of the process that serves, one after the other, with either means for what was in flight.
const KILLS: usize = 20;

/// Reads all files again and again, and some that it has open; says after each pass how long it took from one file to the next at
/// most, in milliseconds. Ends with the first error.
const READ_ON: &str = r#"
import hashlib, json, os, sys, time
sums = json.loads(os.environ["SUMS"])
held = {path: open(f"/data/{path}", "rb", buffering=0) for path in list(sums)[:3]}
slowest, last = 0, time.monotonic()
def check(path, opened):
    global slowest, last
    file = opened()
    # Pages that are there would answer without anybody.
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    content = file.read()
    slowest, last = max(slowest, time.monotonic() - last), time.monotonic()
    found = hashlib.sha256(content).hexdigest()
    if found != sums[path]:
        sys.exit(f"{path}: {found} is not {sums[path]}")
while True:
    slowest = 0
    for folder, _, names in os.walk("/data", onerror=lambda error: sys.exit(str(error))):
        for name in names:
            path = os.path.relpath(f"{folder}/{name}", "/data")
            check(path, lambda: open(f"/data/{path}", "rb", buffering=0))
    for path, file in held.items():
        file.seek(0)
        check(path, lambda: file)
    print(int(slowest * 1000), flush=True)
"#;

/// Containers that hold the mounts of a node, by component.
pub(super) const HOLDERS: [(&str, &str); 4] =
    [("keeper", "keeper"), ("node", "node"), ("mounter", "standby"), ("mounter", "mounter")];

/// Readers in both modes of a mount, and one on a node without data, while everything of their node that serves or holds a mount is killed: the process that
/// serves, its container, and the other daemons, alone and in pairs (`make faults` has all of them).
pub(super) fn readers_notice_no_death_of_any_daemon_of_their_node(lab: &Lab) -> Result<()> {
    install(lab)?;
    let node = lab.cluster.node("gpu-1")?;
    let mounts = [("takeover-1", "NoOpen"), ("takeover-2", "Passthrough")];
    let mut readers = Vec::new();
    for (name, mode) in mounts {
        let named = Named { lab, namespace: name, name };
        let manifest = upload(lab, BUCKET, name, 17)?;
        named.create()?;
        named.set_mount(&json!({ "mode": mode }))?;
        readers.push((named, manifest));
    }
    let archive = images::training_image(lab.cluster.run(), lab.cluster.tools())?;
    lab.cluster.load_image(lab.cluster.nodes(), &archive)?;
    let mut running = Vec::new();
    for (named, manifest) in &readers {
        named.wait("Preloaded", WAIT)?;
        running.push(Reader::start(named, node, manifest)?);
    }
    // Where nothing is on the disk: each read asks another node.
    let (named, manifest) = &readers[0];
    running.push(Reader::start(named, lab.cluster.node("cpu-1")?, manifest)?);
    let readers = running;
    reads_go_on(&readers, &made(&readers)?)?;

    let stalls = kill_again_and_again(lab, node, &readers)?;
    say(format!("  the process that serves killed {KILLS} times: readers waited {stalls:?} ms"));
    // As on kernels before 6.9; the mounts that there are go on with it.
    set_in_flight(lab, node, "journal")?;
    let stalls = kill_again_and_again(lab, node, &readers)?;
    say(format!("  the same {KILLS} times with a journal: readers waited {stalls:?} ms"));
    set_in_flight(lab, node, "auto")?;

    let (process, since) = (serving(lab, node)?, made(&readers)?);
    process.signal(Signal::SIGSTOP)?;
    let stall = reads_go_on(&readers, &since)?;
    say(format!("  the process that serves stopped: readers waited {} ms", stall.as_millis()));

    // More of each would only be the kubelet's time to start a container again.
    let pairs: [&[usize]; 5] = [&[3], &[2], &[0], &[0, 3], &[1, 3]];
    for victims in pairs {
        let victims: Vec<_> = victims.iter().map(|at| HOLDERS[*at]).collect();
        let since = made(&readers)?;
        let back = kill(lab, node, &victims)?;
        PageCache::hold(lab.cluster.tools())?.clear()?;
        let stall = reads_go_on(&readers, &since)?;
        let names: Vec<_> = victims.iter().map(|(_, container)| *container).collect();
        say(format!("  {} killed: readers waited {} ms", names.join(" and "), stall.as_millis()));
        wait_back(lab, &back)?;
    }
    for daemon in ["larder-mounter", "larder-node"] {
        let since = made(&readers)?;
        lab.cluster.kubectl(&["rollout", "restart", "-n", SYSTEM, &format!("daemonset/{daemon}")])?;
        lab.cluster.wait_rolled_out("daemonsets", SYSTEM, daemon, WAIT)?;
        PageCache::hold(lab.cluster.tools())?.clear()?;
        let stall = reads_go_on(&readers, &since)?;
        say(format!("  {daemon} replaced: readers waited {} ms", stall.as_millis()));
    }
    for Reader { named, pod } in &readers {
        lab.cluster.delete_and_wait("pods", Some(named.namespace), pod, WAIT)?;
    }
    readers[..mounts.len()].iter().try_for_each(|reader| reader.named.remove(WAIT))
}

/// How long readers waited at each kill of the process that serves, in milliseconds.
fn kill_again_and_again(lab: &Lab, node: &Node, readers: &[Reader<'_>]) -> Result<Vec<u128>> {
    let (mut stalls, before) = (Vec::new(), serving(lab, node)?.pid);
    for _ in 0..KILLS {
        let (process, since) = (serving(lab, node)?, made(readers)?);
        PageCache::hold(lab.cluster.tools())?.clear()?;
        process.signal(Signal::SIGKILL)?;
        stalls.push(reads_go_on(readers, &since)?.as_millis());
    }
    ensure!(serving(lab, node)?.pid != before, "it is still the process that was killed");
    stalls.sort_unstable();
    Ok(stalls)
}

/// Sets `mounter.inFlight` of the chart, and waits for the mounter that has it.
fn set_in_flight(lab: &Lab, node: &Node, means: &str) -> Result<()> {
    let value = format!("mounter.inFlight={means}");
    set_value(lab, &value)?;
    lab.cluster.wait_until(&format!("a mounter with {value} serves"), WAIT, || {
        let command = serving(lab, node)?.command;
        ensure!(command.contains(&format!("--in-flight={means}")), "{command}");
        Ok(())
    })?;
    lab.cluster.wait_rolled_out("daemonsets", SYSTEM, "larder-mounter", WAIT)
}

/// Kills everything that holds the connections of a node's mounts, and waits until all of it is back: the mounts are dead then.
pub(super) fn kill_all_holders(lab: &Lab, node: &Node) -> Result<()> {
    let back = kill(lab, node, &HOLDERS)?;
    wait_back(lab, &back)
}

/// A pod that reads.
struct Reader<'a> {
    named: &'a Named<'a>,
    pod: String,
}

impl<'a> Reader<'a> {
    fn start(named: &'a Named<'a>, node: &Node, manifest: &Manifest) -> Result<Self> {
        let sums: Value = manifest.iter().map(|(path, entry)| (path.clone(), json!(entry.sha256))).collect();
        let name = format!("reads-on-{}", node.name());
        let mut pod = named.pod(&name, node, &["python3", "-c", READ_ON]);
        let container = &mut pod["spec"]["containers"][0];
        container["image"] = json!(images::TRAINING);
        container["env"] = json!([{ "name": "SUMS", "value": sums.to_string() }]);
        named.lab.cluster.apply(&pod.to_string())?;
        named.lab.cluster.wait_ready(named.namespace, &name, WAIT)?;
        Ok(Self { named, pod: name })
    }

    /// What it has said so far.
    fn passes(&self) -> Result<Vec<u64>> {
        let log = self.named.lab.cluster.logs(self.named.namespace, &self.pod, None)?;
        log.lines().map(|line| line.parse().with_context(|| format!("{} says {line}", self.pod))).collect()
    }
}

/// How many passes each reader has made.
fn made(readers: &[Reader<'_>]) -> Result<Vec<usize>> {
    readers.iter().map(|reader| Ok(reader.passes()?.len())).collect()
}

/// Waits until each reader has made two passes more, one of them begun after now; returns the longest wait for a file in all
/// passes after the first `since`.
fn reads_go_on(readers: &[Reader<'_>], since: &[usize]) -> Result<Duration> {
    let mut longest = 0;
    for (reader, since) in readers.iter().zip(since) {
        let Reader { named, pod } = reader;
        let before = reader.passes()?.len();
        let began = Instant::now();
        let after = named.lab.cluster.wait_until(&format!("reads of {} in {pod}", named.name), WAIT, || {
            let object = named.lab.cluster.get("pods", Some(named.namespace), pod)?;
            let state = &object["status"]["containerStatuses"][0]["state"];
            if state["running"].is_null() {
                let said = named.lab.cluster.logs(named.namespace, pod, None).unwrap_or_default();
                let said = end_of(&said, 3);
                return Ok(Err(anyhow!("{pod} of {} ended after {:?}: {said}", named.name, began.elapsed())));
            }
            let now = reader.passes()?;
            ensure!(now.len() >= before + 2, "{} passes since", now.len() - before);
            Ok(Ok(now))
        })??;
        longest = after[*since..].iter().copied().chain([longest]).max().unwrap_or_default();
    }
    Ok(Duration::from_millis(longest))
}

/// The process that serves the mounts of a node: the one that has the lock.
pub(super) fn serving(lab: &Lab, node: &Node) -> Result<Process> {
    lab.cluster.wait_until("a process that serves", WAIT, || {
        let locks = fs::read_to_string("/proc/locks").context("read the kernel's locks")?;
        let has_lock = |process: &Process| -> bool {
            let file = format!("/proc/{}/root/var/lib/larder/run/mounter/serving.lock", process.pid);
            let Ok(file) = fs::metadata(file) else { return false };
            // `1: FLOCK ADVISORY WRITE <pid> <device>:<inode> 0 EOF`; one that waits has an arrow.
            let (pid, inode) = (process.pid.to_string(), format!(":{}", file.ino()));
            locks.lines().filter(|line| line.contains(" FLOCK ") && !line.contains("->")).any(|line| {
                let fields: Vec<_> = line.split_whitespace().collect();
                fields.get(4) == Some(&pid.as_str()) && fields.get(5).is_some_and(|file| file.ends_with(&inode))
            })
        };
        node.processes().into_iter().filter(|process| process.command.contains("--serve")).find(has_lock).context("none")
    })
}

/// A container that was killed, and how often it had been started.
pub(super) type Killed = (String, String, u64);

pub(super) fn kill(lab: &Lab, node: &Node, victims: &[(&str, &str)]) -> Result<Vec<Killed>> {
    let mut processes = Vec::new();
    let mut killed = Vec::new();
    for (component, container) in victims {
        let (was, process) = main_process(lab, node, component, container)?;
        processes.push(process);
        killed.push(was);
    }
    // All found before the first is killed, so that they die within a millisecond.
    processes.iter().try_for_each(|process| process.signal(Signal::SIGKILL))?;
    Ok(killed)
}

/// The first process of a container on a node.
pub(super) fn main_process(lab: &Lab, node: &Node, component: &str, container: &str) -> Result<(Killed, Process)> {
    let pods = lab.cluster.pods(SYSTEM, &format!("app.kubernetes.io/component={component}"))?;
    let pod = pods.iter().find(|pod| pod["spec"]["nodeName"] == node.name());
    let pod = pod.with_context(|| format!("the node has no {component}"))?;
    let name = pod["metadata"]["name"].as_str().context("a pod without a name")?;
    let process = lab.cluster.main_process(SYSTEM, name, container)?.1;
    Ok(((name.to_owned(), container.to_owned(), restarts(pod, container)), process))
}

/// Why a container ended the last time.
pub(super) fn last_end(lab: &Lab, (pod, container, _): &Killed) -> Result<String> {
    let pod = lab.cluster.get("pods", Some(SYSTEM), pod)?;
    let reason = status_of(&pod, container).and_then(|status| status["lastState"]["terminated"]["reason"].as_str());
    reason.map(str::to_owned).context("it has not ended")
}

pub(super) fn wait_back(lab: &Lab, killed: &[Killed]) -> Result<()> {
    for (pod, container, before) in killed {
        lab.cluster.wait_until(&format!("{container} of {pod} is back"), WAIT, || {
            let now = lab.cluster.get("pods", Some(SYSTEM), pod)?;
            ensure!(is_ready(&now, container) && restarts(&now, container) > *before, "not yet");
            Ok(())
        })?;
    }
    Ok(())
}

/// Is the container of a pod ready?
pub(super) fn is_ready(pod: &Value, container: &str) -> bool {
    status_of(pod, container).is_some_and(|status| status["ready"] == true)
}

/// How often was it started again?
fn restarts(pod: &Value, container: &str) -> u64 {
    status_of(pod, container).and_then(|status| status["restartCount"].as_u64()).unwrap_or_default()
}

fn status_of<'a>(pod: &'a Value, container: &str) -> Option<&'a Value> {
    pod["status"]["containerStatuses"].as_array()?.iter().find(|status| status["name"] == container)
}
