//! Ways in and out: helm uninstall and back, and plain manifests.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::larder::{BUCKET, Named, SYSTEM, install, upload};
use crate::cluster::KUBELET_DIR;
use crate::lab::Lab;
use crate::product;
use crate::report::step;
use crate::s3::Request;
use crate::tools::repository;

const WAIT: Duration = Duration::from_secs(120);

/// Refused while a pod reads, clean otherwise; CacheDatasets and cached data stay and are used when Larder is back.
pub(super) fn helm_uninstall_spares_pods_and_a_new_install_finds_the_data(lab: &Lab) -> Result<()> {
    install(lab)?;
    let cluster = &lab.cluster;
    let named = Named { lab, namespace: "stays", name: "stays" };
    let manifest = upload(lab, BUCKET, "stays", 51)?;
    named.create()?;
    named.wait("Preloaded", WAIT)?;
    let node = &cluster.nodes()[0];
    named.start_holder(node)?;

    let uninstall = ["uninstall", "larder", "--namespace", SYSTEM, "--timeout", "60s"];
    ensure!(cluster.helm(&uninstall).is_err(), "helm uninstall went through although a pod has the dataset mounted");
    let pods = cluster.pods(SYSTEM, "app.kubernetes.io/component=uninstall-check")?;
    let hook = pods.first().context("the hook's pod is gone, and with it what it said")?;
    let said = cluster.logs(SYSTEM, hook["metadata"]["name"].as_str().unwrap_or_default(), None)?;
    ensure!(said.contains("stays/holder"), "the hook does not name the pod: {said}");
    named.check_holder(&manifest)?;

    cluster.delete_and_wait("pods", Some(named.namespace), "holder", WAIT)?;
    step("helm uninstall", || cluster.helm(&uninstall))?;
    ensure!(named.object().is_ok(), "the CacheDataset is gone");
    cluster.wait_until("daemons of the chart gone", WAIT, || {
        for kind in ["deployments", "daemonsets"] {
            let left = cluster.list(kind, Some(SYSTEM))?;
            let left = left.iter().find(|o| o["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm");
            ensure!(left.is_none(), "{} is there", left.map(|o| o["metadata"]["name"].to_string()).unwrap_or_default());
        }
        Ok(())
    })?;

    let sent = || -> Result<u64> {
        let reads = Request::reads(&lab.s3.requests()?, BUCKET);
        Ok(reads.iter().filter(|(key, _)| key.starts_with("stays/")).map(|(_, reads)| reads.bytes).sum())
    };
    let before = sent()?;
    install(lab)?;
    named.wait("Ready", WAIT)?;
    named.read_everywhere(&manifest, WAIT)?;
    let after = sent()?;
    ensure!(after == before, "{} bytes left the origin again although every file was on a disk", after - before);
    named.remove(WAIT)
}

/// Distributions put the kubelet's folder elsewhere; the chart's value says where.
pub(super) fn a_kubelet_with_another_root_folder_is_served_too(lab: &Lab) -> Result<()> {
    let kubelet = lab.cluster.kubelet_dir();
    ensure!(kubelet != KUBELET_DIR, "the kubelets' folder is the usual one");
    install(lab)?;
    let named = Named { lab, namespace: "elsewhere", name: "elsewhere" };
    let manifest = upload(lab, BUCKET, "elsewhere", 71)?;
    named.create()?;
    named.wait("Preloaded", WAIT)?;
    named.read_everywhere(&manifest, WAIT)?;
    for node in lab.cluster.nodes() {
        let socket = format!("{kubelet}/plugins/csi.larder.dev/csi.sock");
        ensure!(node.command("test")?.args(["-S", &socket]).status()?.success(), "{socket} is not on {}", node.name());
        // The kubelet itself makes a folder for device plugins there, wherever its own is.
        let usual = format!("{KUBELET_DIR}/plugins");
        ensure!(!node.command("test")?.args(["-e", &usual]).status()?.success(), "{usual} was made on {}", node.name());
    }
    named.remove(WAIT)
}

/// `kubectl apply --server-side -f crds/ -f manifests/larder.yaml`, nothing else.
pub(super) fn plain_manifests_install_larder_too(lab: &Lab) -> Result<()> {
    let cluster = &lab.cluster;
    step("image loaded on every node", || cluster.load_image(cluster.nodes(), &product::archive()))?;
    cluster.create_namespace(SYSTEM)?;
    let (crds, manifests) = (repository().join("crds"), repository().join("manifests/larder.yaml"));
    let text = std::fs::read_to_string(&manifests).with_context(|| format!("read {}", manifests.display()))?;
    // The one thing a user without a registry of ours has to change.
    let image = text.lines().find_map(|line| line.trim().strip_prefix("image: "));
    let image = image.context("the manifests name no image")?.trim_matches('"');
    let local = text.replace(image, &format!("{}:{}", product::IMAGE, product::TAG));
    step("kubectl apply of crds/ and manifests/", || {
        cluster.apply_file(&crds)?;
        cluster.apply(&local)
    })?;
    let named = Named { lab, namespace: "plain", name: "plain" };
    let manifest = upload(lab, BUCKET, "plain", 61)?;
    named.create()?;
    named.wait("Preloaded", WAIT)?;
    named.read_everywhere(&manifest, WAIT)?;
    named.remove(WAIT)
}
