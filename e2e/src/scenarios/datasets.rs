//! Datasets beside each other, before their pods, after their pods, and again.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::larder::{BUCKET, Named, SYSTEM, install, upload};
use crate::lab::Lab;
use crate::report::say;
use crate::s3::Request;

const WAIT: Duration = Duration::from_secs(120);
const LONG: Duration = Duration::from_secs(300);

/// The workers of a dataset know it by its uid, not by its name.
pub(super) fn datasets_live_beside_each_other_also_with_the_same_name(lab: &Lab) -> Result<()> {
    install(lab)?;
    let all = [("team-a", "shared"), ("team-b", "shared"), ("team-a", "other")];
    let all = all.map(|(namespace, name)| Named { lab, namespace, name });
    let manifests =
        [upload(lab, BUCKET, all[0].name, 11)?, upload(lab, BUCKET, all[1].name, 11)?, upload(lab, BUCKET, all[2].name, 12)?];
    for named in &all {
        named.create()?;
    }
    for (named, manifest) in all.iter().zip(&manifests) {
        named.wait("Preloaded", WAIT)?;
        named.read_everywhere(manifest, WAIT)?;
        named.remove_readers(WAIT)?;
    }
    // The namespace goes with the last dataset in it.
    all[2].remove_but_namespace(WAIT)?;
    all[1].remove(WAIT)?;
    all[0].remove(WAIT)
}

/// A node has many datasets, of which few are read at a time.
pub(super) fn twenty_idle_workers_of_a_node_take_little_memory(lab: &Lab) -> Result<()> {
    install(lab)?;
    let node = lab.cluster.node("gpu-1")?;
    let namespaces: Vec<_> = (0..CROWD).map(|number| format!("crowd-{number}")).collect();
    let all: Vec<_> = namespaces.iter().map(|namespace| Named { lab, namespace, name: "crowd" }).collect();
    let manifest = upload(lab, BUCKET, "crowd", 13)?;
    for named in &all {
        lab.cluster.create_namespace(named.namespace)?;
        let workers =
            "  workers:\n    nodeSelector: { kubernetes.io/hostname: gpu-1 }\n    resources: { requests: { cpu: 10m } }\n";
        lab.cluster.apply(&format!("{}{workers}", named.yaml()?))?;
    }
    for named in &all {
        named.wait("Preloaded", LONG)?;
    }
    all[CROWD - 1].start_reader(node)?;
    all[CROWD - 1].check_reader(node, &manifest, WAIT)?;
    // What they needed to fetch goes back to the system within seconds.
    lab.cluster.wait_until(&format!("{CROWD} workers with at most {IDLE} MiB each"), WAIT, || {
        let workers: Vec<_> =
            node.processes().into_iter().filter(|process| process.command.contains("larder worker")).collect();
        let mut sizes = workers.iter().map(|worker| Ok(worker.resident()? >> 20)).collect::<Result<Vec<_>>>()?;
        sizes.sort_unstable();
        ensure!(sizes.len() == CROWD, "{} workers", sizes.len());
        ensure!(sizes[CROWD - 1] <= IDLE, "{sizes:?} MiB");
        say(format!("  {CROWD} workers have {} to {} MiB", sizes[0], sizes[CROWD - 1]));
        Ok(())
    })?;
    all.iter().try_for_each(|named| named.remove(WAIT))
}

const CROWD: usize = 20;
/// MiB of an idle worker.
const IDLE: u64 = 40;

/// A user may apply everything in one go, in any order.
pub(super) fn a_pod_that_comes_before_its_dataset_runs_when_it_is_ready(lab: &Lab) -> Result<()> {
    install(lab)?;
    let named = Named { lab, namespace: "early", name: "late" };
    let manifest = upload(lab, BUCKET, named.name, 21)?;
    lab.cluster.create_namespace(named.namespace)?;
    for node in lab.cluster.nodes() {
        named.start_reader(node)?;
    }
    named.create()?;
    for node in lab.cluster.nodes() {
        named.check_reader(node, &manifest, Duration::from_secs(200))?;
    }
    named.remove(WAIT)
}

/// Deleting takes nothing away from a pod, and says whom it waits for; created again, the dataset is as new.
pub(super) fn deletion_waits_for_pods_and_the_dataset_can_come_back(lab: &Lab) -> Result<()> {
    install(lab)?;
    let named = Named { lab, namespace: "again", name: "again" };
    let manifest = upload(lab, BUCKET, named.name, 31)?;
    named.create()?;
    named.wait("Ready", WAIT)?;
    let node = &lab.cluster.nodes()[0];
    named.start_holder(node)?;
    lab.cluster.delete("cachedatasets", Some(named.namespace), named.name)?;
    named.wait_reason("Ready", "InUse", "holder", WAIT)?;
    named.check_holder(&manifest)?;
    lab.cluster.delete_and_wait("pods", Some(named.namespace), "holder", WAIT)?;
    lab.cluster.wait_until("dataset gone", WAIT, || {
        ensure!(lab.cluster.find("cachedatasets", Some(named.namespace), named.name)?.is_none(), "still there");
        Ok(())
    })?;
    named.create()?;
    named.wait("Preloaded", WAIT)?;
    named.read_everywhere(&manifest, WAIT)?;
    named.remove(WAIT)
}

/// The share of a worker that dies is read elsewhere, the operator goes on where it was, and the plugin keeps its mounts.
pub(super) fn killed_daemons_come_back_and_no_byte_is_wrong(lab: &Lab) -> Result<()> {
    install(lab)?;
    let named = Named { lab, namespace: "kills", name: "kills" };
    let manifest = upload(lab, BUCKET, named.name, 41)?;
    named.create()?;
    let object = named.wait("Preloaded", WAIT)?;
    let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let node = &lab.cluster.nodes()[0];
    named.start_holder(node)?;
    named.check_holder(&manifest)?;

    let sent = |what: &str| -> Result<u64> {
        let reads = Request::reads(&lab.s3.requests()?, BUCKET);
        let sum = reads.iter().filter(|(key, _)| key.starts_with("kills/")).map(|(_, reads)| reads.bytes).sum();
        ensure!(sum > 0, "{what}: the access log has no reads");
        Ok(sum)
    };
    let before = sent("before")?;
    let victims = [
        ("app.kubernetes.io/component=operator".to_owned(), "operator"),
        ("app.kubernetes.io/component=node".to_owned(), "node"),
        (format!("larder.dev/dataset-uid={uid}"), "worker"),
    ];
    for (selector, container) in &victims {
        for pod in lab.cluster.pods(SYSTEM, selector)? {
            kill(lab, &pod, container)?;
        }
        // The pod that was there all the time, and new ones.
        named.check_holder(&manifest)?;
        named.read_everywhere(&manifest, WAIT)?;
        named.remove_readers(WAIT)?;
    }
    let after = sent("after")?;
    ensure!(after == before, "{} bytes left the origin again although every file was on a disk", after - before);
    lab.cluster.delete_and_wait("pods", Some(named.namespace), "holder", WAIT)?;
    named.remove(WAIT)
}

/// Kills the main process of a daemon's only container, and waits until it is back.
pub(super) fn kill(lab: &Lab, pod: &serde_json::Value, container: &str) -> Result<()> {
    let (name, restarts) = (pod["metadata"]["name"].as_str().unwrap_or_default(), restarts(pod));
    lab.cluster.kill_container(SYSTEM, name, container)?;
    lab.cluster.wait_until(&format!("{name} is back"), WAIT, || {
        let now = lab.cluster.get("pods", Some(SYSTEM), name)?;
        let ready = now["status"]["containerStatuses"][0]["ready"] == true;
        ensure!(ready && self::restarts(&now) > restarts, "not yet");
        Ok(())
    })
}

fn restarts(pod: &serde_json::Value) -> u64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or_default()
}

/// Fleets grow: a node that comes to match later gets its worker, its share, and the data of that share from the node that had
/// it: no byte leaves the origin twice.
pub(super) fn a_node_that_gains_the_label_gets_its_worker_and_share(lab: &Lab) -> Result<()> {
    install(lab)?;
    let label = |change: &str| lab.cluster.kubectl(&["label", "nodes", "gpu-2", "--overwrite", change]).map(drop);
    label("nvidia.com/gpu.present-")?;
    let named = Named { lab, namespace: "grows", name: "grows" };
    let manifest = upload(lab, BUCKET, named.name, 71)?;
    named.create()?;
    let object = named.wait("Preloaded", WAIT)?;
    ensure!(object["status"]["cache"]["workers"]["ready"] == 1, "{}", object["status"]["cache"]);
    let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let newcomer = lab.cluster.node("gpu-2")?;
    let data = newcomer.nvme().join("larder").join(uid).join("data");
    ensure!(!data.exists(), "{} is there although the node has no worker", data.display());
    label("nvidia.com/gpu.present=true")?;
    lab.cluster.wait_until("the newcomer has its share", WAIT, || {
        let object = named.object()?;
        ensure!(object["status"]["cache"]["workers"]["ready"] == 2, "{}", object["status"]["cache"]);
        ensure!(data.read_dir().is_ok_and(|mut folders| folders.next().is_some()), "{} is empty", data.display());
        Ok(())
    })?;
    named.wait("Preloaded", WAIT)?;
    named.read_everywhere(&manifest, WAIT)?;
    let folder = format!("{}/", named.name);
    let reads = Request::reads(&lab.s3.requests()?, BUCKET);
    let (keys, sent) = reads
        .iter()
        .filter(|(key, _)| key.starts_with(&folder))
        .fold((0, 0), |(keys, sent), (_, reads)| (keys + 1, sent + reads.bytes));
    let object = named.object()?;
    ensure!(
        keys > 0 && object["status"]["snapshot"]["bytes"] == sent,
        "the origin sent {sent} bytes of {keys} objects for a snapshot of {}",
        object["status"]["snapshot"]
    );
    named.remove(WAIT)
}
