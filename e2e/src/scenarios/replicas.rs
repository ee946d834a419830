//! Files on more nodes than their owner.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::larder::{BUCKET, Named, SYSTEM, install, upload};
use crate::cluster::{Node, NodeKind};
use crate::lab::Lab;
use crate::process::Run as _;
use crate::report::step;

const WAIT: Duration = Duration::from_secs(150);

/// The kubelet's back-offs come one after the other.
const BACK: Duration = Duration::from_secs(240);

/// With two replicas on two nodes each has everything; one may be lost, and no byte leaves the origin again.
pub(super) fn a_node_with_a_replica_takes_the_place_of_one_that_is_lost(lab: &Lab) -> Result<()> {
    install(lab)?;
    let named = Named { lab, namespace: "replicas", name: "replicas" };
    let manifest = upload(lab, BUCKET, named.name, 91)?;
    let bytes: u64 = manifest.values().map(|entry| entry.size).sum();
    lab.cluster.create_namespace(named.namespace)?;
    lab.cluster.apply(&named.yaml()?.replace("quota: 5Gi }]", "quota: 5Gi }]\n    replicas: 2"))?;
    let object = named.wait("Preloaded", WAIT)?;
    ensure!(named.origin_bytes()? == bytes, "{} bytes left the origin, the dataset has {bytes}", named.origin_bytes()?);
    let uid = object["metadata"]["uid"].as_str().context("the dataset has no uid")?;
    for node in lab.cluster.gpu_nodes() {
        let data = node.nvme().join("larder").join(uid).join("data");
        let list = std::process::Command::new("find").arg(&data).args(["-type", "f", "-not", "-name", "*.meta"]).run()?;
        let there = list.lines().count();
        ensure!(there == manifest.len(), "{there} of {} files are on {}", manifest.len(), node.name());
    }

    let workers = |node: &Node| {
        lab.cluster.pods(SYSTEM, &format!("larder.dev/dataset-uid={uid}")).map(|pods| {
            let of_node = pods.into_iter().filter(|pod| pod["spec"]["nodeName"] == node.name());
            of_node.map(|pod| pod["status"]["containerStatuses"][0].clone()).next()
        })
    };
    let lost = lab.cluster.gpu_nodes().next().context("no GPU node")?;
    let reader = lab.cluster.nodes().iter().find(|node| node.kind() == NodeKind::Cpu).context("no CPU node")?;
    let before = workers(lost)?.context("the worker is not there")?;
    step("power off", || lost.power_off())?;
    let read = step("a pod reads everything from the other node", || {
        named.start_reader(reader)?;
        named.check_reader(reader, &manifest, WAIT)
    });
    step("power on", || lost.power_on())?;
    read?;
    ensure!(named.origin_bytes()? == bytes, "{} bytes left the origin again", named.origin_bytes()? - bytes);
    lab.cluster.delete_and_wait("pods", Some(named.namespace), &format!("reader-{}", reader.name()), WAIT)?;
    // Who is away cannot erase.
    lab.cluster.wait_until("the worker is back", BACK, || {
        let now = workers(lost)?.context("it is not there")?;
        ensure!(now["ready"] == true && now["containerID"] != before["containerID"], "not yet");
        Ok(())
    })?;
    named.remove(WAIT)
}
