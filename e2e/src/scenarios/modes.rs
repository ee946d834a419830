//! How files are opened and read, as pods and the mounters' counters show it.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::larder::{BUCKET, Named, SYSTEM, install, upload};
use super::training::{Counters, PageCache};
use crate::cluster::Node;
use crate::lab::Lab;

const WAIT: Duration = Duration::from_secs(120);

/// On a passthrough mount the mounter sees no read of a file that is on its node's disk; nor does anything change for pods that
/// run when the node plugin, which registers those files, starts again.
pub(super) fn a_passthrough_mount_reads_local_files_in_the_kernel(lab: &Lab) -> Result<()> {
    install(lab)?;
    let named = Named { lab, namespace: "modes", name: "modes" };
    let manifest = upload(lab, BUCKET, named.name, 81)?;
    let bytes: u64 = manifest.values().map(|entry| entry.size).sum();
    named.create()?;
    named.set_mount(&json!({ "mode": "Passthrough" }))?;
    let object = named.wait("Preloaded", WAIT)?;
    let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let node = lab.cluster.node("gpu-1")?;
    named.start_holder(node)?;
    named.check_holder(&manifest)?;
    let read_cold = || -> Result<Counters> {
        let caches = PageCache::hold(lab.cluster.tools())?;
        caches.clear()?;
        let before = Counters::read(&named, &uid)?;
        named.check_holder(&manifest)?;
        Ok(Counters::read(&named, &uid)?.since(&before))
    };
    let counted = read_cold()?;
    ensure!(counted.local == 0 && counted.origin == 0, "reads of local files reached the mounter: {counted:?}");
    ensure!(counted.peer < bytes, "nothing of the dataset is read locally: {counted:?}");
    ensure_read_ahead(node, &uid)?;
    let described = lab.cluster.larder(&["describe", "node", node.name()])?;
    ensure!(described.contains("modes/modes") && described.contains("Passthrough"), "{described}");

    for pod in lab.cluster.pods(SYSTEM, "app.kubernetes.io/component=node")? {
        lab.cluster.kill_container(SYSTEM, pod["metadata"]["name"].as_str().unwrap_or_default(), "node")?;
    }
    read_cold()?;
    // Pods on all nodes: their files are registered with plugins that have just started.
    named.read_everywhere(&manifest, WAIT)?;
    let counted = read_cold()?;
    ensure!(counted.local == 0, "reads of local files reached the mounter after the node plugin was back: {counted:?}");
    lab.cluster.delete_and_wait("pods", Some(named.namespace), "holder", WAIT)?;
    named.remove(WAIT)
}

/// The node plugin has raised the read-ahead of the superblock, through the host's /sys.
fn ensure_read_ahead(node: &Node, uid: &str) -> Result<()> {
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", node.holder()?)).context("mounts of a node")?;
    let line =
        mounts.lines().find(|line| line.contains("fuse.larder") && line.contains(uid)).context("no mount of the dataset")?;
    let device = line.split(' ').nth(2).context("a mount without a device")?;
    let file = format!("/sys/class/bdi/{device}/read_ahead_kb");
    let kib = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    ensure!(kib.trim() == "4096", "{file} says {kib}");
    Ok(())
}
