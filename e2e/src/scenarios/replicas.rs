//! Files on more nodes than their owner.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::larder::{BUCKET, Named, install, upload};
use crate::cluster::NodeKind;
use crate::lab::Lab;
use crate::process::Run as _;
use crate::report::step;

const WAIT: Duration = Duration::from_secs(150);

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

    let lost = lab.cluster.gpu_nodes().next().context("no GPU node")?;
    let reader = lab.cluster.nodes().iter().find(|node| node.kind() == NodeKind::Cpu).context("no CPU node")?;
    step("power off", || lost.power_off())?;
    let read = step("a pod reads everything from the other node", || {
        named.start_reader(reader)?;
        named.check_reader(reader, &manifest, WAIT)
    });
    step("power on", || lost.power_on())?;
    read?;
    ensure!(named.origin_bytes()? == bytes, "{} bytes left the origin again", named.origin_bytes()? - bytes);
    lab.cluster.delete_and_wait("pods", Some(named.namespace), &format!("reader-{}", reader.name()), WAIT)?;
    named.wait("Ready", WAIT)?;
    named.remove(WAIT)
}
