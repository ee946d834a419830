//! Nodes that start with a taint and lose it when datasets can be mounted on them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::larder::{BUCKET, Named, SYSTEM, install, set_value, upload};
use crate::cluster::{Node, condition};
use crate::lab::Lab;
use crate::report::step;

const WAIT: Duration = Duration::from_secs(120);

const TAINT: &str = "larder.dev/not-ready";

/// A pod waits for a node whose node plugin does not answer, and reads when it does; a node on which all is well loses the taint
/// meanwhile.
pub(super) fn a_pod_waits_for_a_tainted_node_until_datasets_can_be_mounted_there(lab: &Lab) -> Result<()> {
    install(lab)?;
    let cluster = &lab.cluster;
    let named = Named { lab, namespace: "fresh", name: "fresh" };
    let manifest = upload(lab, BUCKET, named.name, 83)?;
    named.create()?;
    named.wait("Preloaded", WAIT)?;
    switch(lab, true)?;

    let mut nodes = cluster.gpu_nodes();
    let (fresh, usual) = (nodes.next().context("no GPU node")?, nodes.next().context("one GPU node only")?);
    let plugins = cluster.pods(SYSTEM, "app.kubernetes.io/component=node")?;
    let plugin = plugins.iter().find(|pod| pod["spec"]["nodeName"] == fresh.name()).context("no node plugin")?;
    let plugin = plugin["metadata"]["name"].as_str().context("a pod without a name")?;
    let (_, process) = cluster.main_process(SYSTEM, plugin, "node")?;
    process.signal(Signal::SIGSTOP)?;
    cluster.wait_until("a node plugin that is not ready", WAIT, || {
        let pod = cluster.get("pods", Some(SYSTEM), plugin)?;
        ensure!(condition(&pod, "Ready") == Some("False"), "{plugin} is ready");
        Ok(())
    })?;
    for node in [fresh, usual] {
        cluster.kubectl(&["taint", "nodes", node.name(), &format!("{TAINT}:NoSchedule")])?;
    }
    named.start_reader(fresh)?;
    cluster.wait_until("a pod that waits for the node", WAIT, || {
        let pod = cluster.get("pods", Some(named.namespace), &format!("reader-{}", fresh.name()))?;
        // Which taint it is newer schedulers do not say.
        ensure!(pod["status"].to_string().contains("untolerated taint"), "{}", pod["status"]);
        Ok(())
    })?;
    cluster.wait_until("the other node without the taint", WAIT, || {
        ensure!(!is_tainted(lab, usual)?, "{} has it", usual.name());
        Ok(())
    })?;
    ensure!(is_tainted(lab, fresh)?, "{} lost the taint although its node plugin does not answer", fresh.name());

    process.signal(Signal::SIGCONT)?;
    step("node plugin answers again, the pod reads", || named.check_reader(fresh, &manifest, WAIT))?;
    ensure!(!is_tainted(lab, fresh)?, "{} has the taint, and a pod that does not tolerate it", fresh.name());
    switch(lab, false)?;
    named.remove(WAIT)
}

fn is_tainted(lab: &Lab, node: &Node) -> Result<bool> {
    let object = lab.cluster.get("nodes", None, node.name())?;
    Ok(object["spec"]["taints"].as_array().is_some_and(|taints| taints.iter().any(|taint| taint["key"] == TAINT)))
}

fn switch(lab: &Lab, on: bool) -> Result<()> {
    set_value(lab, &format!("startupTaint.enabled={on}"))?;
    lab.cluster.wait_rolled_out("deployments", SYSTEM, "larder-operator", WAIT)
}
