//! csi-sanity, the test suite of the CSI specification's own project, against the node plugin of a node of the cluster.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::larder::{BUCKET, Named, install, upload};
use super::reboot;
use crate::cluster::Node;
use crate::lab::Lab;
use crate::process::{Run as _, end_of};
use crate::report::{say, step};

const WAIT: Duration = Duration::from_secs(120);

/// What csi-sanity says of a spec that it skips because the driver does not offer what the spec is about. The driver stages and
/// attaches nothing, takes no snapshots of volumes and clones none, and a volume can neither grow nor change.
const NOT_OFFERED: [&str; 18] = [
    "Controller Publish, UnpublishVolume not supported",
    "ControllerExpandVolume not supported",
    "ControllerModifyVolume not supported",
    "ControllerPublishVolume not supported",
    "ControllerUnpublishVolume not supported",
    "CreateSnapshot not supported",
    "DeleteSnapshot not supported",
    "GetCapacity not supported",
    "GroupControllerService not supported",
    "ListSnapshots not supported",
    "ListVolumes not supported",
    "Modify Volume not supported",
    "Modify volume not supported",
    "NodeExpandVolume not supported",
    "NodeStageVolume not supported",
    "NodeUnstageVolume not supported",
    "Snapshot not supported",
    "Volume Cloning not supported",
];

/// Switched off in csi-sanity itself.
const SWITCHED_OFF: &str = "pagination should detect volumes added between pages";

/// Identity 3; controller: capabilities 1, create 7, delete 3, validate 4; node: capabilities and info 2, publish 3, unpublish 3,
/// statistics 4, a volume's whole life once and with each call ten times.
const PASSED: usize = 32;

/// One spec in csi-sanity's report.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_text: String,
    state: String,
    failure: Option<Failure>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    message: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    spec_reports: Vec<Spec>,
}

pub(super) fn csi_sanity_passes_with_one_socket_and_with_two(lab: &Lab) -> Result<()> {
    install(lab)?;
    let named = Named { lab, namespace: "sanity", name: "sanity" };
    upload(lab, BUCKET, named.name, 95)?;
    named.create()?;
    named.wait("Preloaded", WAIT)?;
    let node = lab.cluster.gpu_nodes().next().context("no GPU node")?;
    let folder = lab.cluster.run().path("csi-sanity");
    fs::create_dir_all(&folder).context("make the folder of csi-sanity's files")?;
    let parameters = folder.join("parameters.yaml");
    let text = format!("larder.dev/dataset-namespace: {}\nlarder.dev/dataset-name: {}\n", named.namespace, named.name);
    fs::write(&parameters, text).context("write the parameters of volumes")?;
    let driver = format!("{}/plugins/csi.larder.dev", lab.cluster.kubelet_dir());
    let node_socket = format!("--csi.endpoint=unix://{driver}/csi.sock");
    let controller_socket = format!("--csi.controllerendpoint=unix://{driver}/controller.sock");
    let sanity = Sanity { lab, node, parameters };
    step("csi-sanity, one socket", || sanity.passes(&folder.join("one.json"), &[&node_socket]))?;
    step("csi-sanity, two sockets", || sanity.passes(&folder.join("two.json"), &[&node_socket, &controller_socket]))?;
    named.remove(WAIT)
}

struct Sanity<'a> {
    lab: &'a Lab,
    node: &'a Node,
    parameters: PathBuf,
}

impl Sanity<'_> {
    /// Runs all specs, and looks at what is left afterwards.
    fn passes(&self, report: &Path, sockets: &[&str]) -> Result<()> {
        let Self { lab, node, parameters } = self;
        // The driver mounts beneath the kubelet's folder only; what is below pods/ there is the kubelet's to tidy up.
        let targets = format!("{}/csi-sanity", lab.cluster.kubelet_dir());
        node.command("mkdir")?.arg(&targets).run()?;
        let mut command = node.command(lab.cluster.tools().go("csi-sanity")?)?;
        command.args(sockets).arg(format!("--csi.testvolumeparameters={}", parameters.display()));
        command.args([format!("--csi.mountdir={targets}/mount"), format!("--csi.stagingdir={targets}/staging")]);
        command.arg("--ginkgo.no-color").arg(format!("--ginkgo.json-report={}", report.display()));
        let (succeeded, said, errors) = command.run_any()?;
        said.lines()
            .filter(|line| line.contains(" Specs in ") || line.contains(" Passed | "))
            .for_each(|line| say(format!("  {line}")));
        judge(&fs::read(report).with_context(|| format!("csi-sanity wrote no report: {}", end_of(&errors, 5)))?)?;
        ensure!(succeeded, "csi-sanity failed: {}", end_of(&said, 40));
        // No recursive removal: it fails when a target is left.
        node.command("rmdir")?.arg(&targets).run()?;
        let left = reboot::targets(node)?;
        ensure!(left.is_empty(), "records of mounts are left: {left:?}");
        let volumes = node.var_lib("kubelet").join("plugins/csi.larder.dev/volumes");
        let left: Vec<_> = fs::read_dir(&volumes).with_context(|| format!("list {}", volumes.display()))?.collect();
        ensure!(left.is_empty(), "volumes are left: {left:?}");
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", node.holder()?)).context("mounts of a node")?;
        ensure!(!mounts.contains(&targets), "a mount is left in {targets}");
        Ok(())
    }
}

/// No spec failed, those that were skipped are all about what the driver does not offer, and enough are left.
fn judge(report: &[u8]) -> Result<()> {
    let reports: Vec<Report> = serde_json::from_slice(report).context("parse csi-sanity's report")?;
    let (mut passed, mut reasons, mut wrong) = (0, BTreeSet::new(), Vec::new());
    for spec in reports.iter().flat_map(|report| &report.spec_reports) {
        let why = spec.failure.as_ref().map(|failure| failure.message.as_str()).unwrap_or_default();
        match spec.state.as_str() {
            "passed" => passed += 1,
            "skipped" if NOT_OFFERED.contains(&why) => {
                reasons.insert(why);
            }
            "pending" if spec.leaf_node_text.starts_with(SWITCHED_OFF) => {}
            state => {
                let place = spec.container_hierarchy_texts.as_deref().unwrap_or_default().join(", ");
                wrong.push(format!("{state}: {place}, {}: {why}", spec.leaf_node_text));
            }
        }
    }
    if !wrong.is_empty() {
        bail!("{} specs are not as they should be:\n{}", wrong.len(), wrong.join("\n"));
    }
    let stale: Vec<_> = NOT_OFFERED.iter().filter(|reason| !reasons.contains(*reason)).collect();
    ensure!(stale.is_empty(), "these reasons for skipping are given by no spec any more: {stale:?}");
    ensure!(passed >= PASSED, "only {passed} specs ran, not {PASSED}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn mk_spec(state: &str, why: &str) -> Value {
        json!({ "ContainerHierarchyTexts": ["Node Service"], "LeafNodeText": "should work", "State": state, "Failure": { "Message": why } })
    }

    /// What `judge` says of a run in which all is well but for `specs`.
    fn judge_with(passed: usize, specs: &[Value]) -> Result<(), String> {
        let skipped = NOT_OFFERED.iter().map(|why| mk_spec("skipped", why));
        let well = std::iter::repeat_n(json!({ "LeafNodeText": "should work", "State": "passed" }), passed);
        let all: Vec<Value> = well.chain(skipped).chain(specs.iter().cloned()).collect();
        judge(json!([{ "SpecReports": all }]).to_string().as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_failure_or_a_skip_that_is_not_listed_is_told() {
        assert_eq!(judge_with(PASSED, &[]), Ok(()));
        for (state, why) in
            [("skipped", "capacity of the volume is unknown"), ("failed", "no"), ("panicked", ""), ("pending", "")]
        {
            let told = judge_with(PASSED, &[mk_spec(state, why)]).expect_err("nothing is told");
            assert!(told.contains(&format!("{state}: Node Service, should work: {why}")), "{told}");
        }
        assert!(judge_with(PASSED - 1, &[]).is_err());
        assert!(judge(b"[]").is_err());
    }
}
