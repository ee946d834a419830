//! A node loses its power and comes back.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::larder::{BUCKET, HOLD, Named, install, upload};
use crate::cluster::Node;
use crate::lab::Lab;
use crate::process::Run as _;
use crate::report::{say, seconds, step};

const WAIT: Duration = Duration::from_secs(120);

/// The kubelet's and the plugin's back-offs come one after the other.
const BACK: Duration = Duration::from_secs(240);

/// The pods of the node come back and read what is on its disk; what was deleted meanwhile is forgotten.
pub(super) fn a_rebooted_node_comes_back_with_its_data(lab: &Lab) -> Result<()> {
    install(lab)?;
    let cluster = &lab.cluster;
    let named = Named { lab, namespace: "reboots", name: "reboots" };
    let manifest = upload(lab, BUCKET, named.name, 81)?;
    named.create()?;
    named.wait("Preloaded", WAIT)?;
    let node = cluster.gpu_nodes().next().context("no GPU node")?;
    for pod in ["stays", "leaves"] {
        let mut pod = named.pod(pod, node, &HOLD);
        pod["spec"]["restartPolicy"] = json!("Always");
        cluster.apply(&pod.to_string())?;
    }
    for pod in ["stays", "leaves"] {
        cluster.wait_ready(named.namespace, pod, WAIT)?;
    }
    named.check_in("stays", &manifest)?;
    let before = Containers::on(lab, node)?;
    let sent = named.origin_bytes()?;
    let written = "/run/mark /var/lib/larder/mark /mnt/nvme0/mark";
    node.command("sh")?.args(["-c", &format!("for file in {written}; do echo 1 > $file; done")]).run()?;

    step("power off", || node.power_off())?;
    // Nobody is there to confirm it.
    cluster.kubectl(&["delete", "pod", "leaves", "--namespace", named.namespace, "--force", "--grace-period=0"])?;
    step("power on", || node.power_on())?;
    let left = node.command("sh")?.args(["-c", &format!("ls {written}; rm -f {written}")]).run_any()?.1;
    ensure!(left.split_whitespace().eq(["/mnt/nvme0/mark", "/var/lib/larder/mark"]), "after the reboot there were: {left}");

    let started = Instant::now();
    cluster.wait_until("all pods of the node run again", BACK, || before.all_replaced(&Containers::on(lab, node)?))?;
    say(format!("  all pods of {} ran again {} after power came back", node.name(), seconds(started.elapsed())));
    named.wait("Preloaded", WAIT)?;
    named.wait("Ready", WAIT)?;
    named.check_in("stays", &manifest)?;
    let after = named.origin_bytes()?;
    ensure!(sent > 0 && after == sent, "{sent} bytes had left the origin, now it is {after}: the disk was not used");
    let shown = targets(node)?;
    let pods = cluster.list("pods", Some(named.namespace))?;
    let uid = pods.first().and_then(|pod| pod["metadata"]["uid"].as_str()).context("the pod has no uid")?;
    ensure!(shown.len() == 1 && shown[0].contains(uid), "the plugin's records name {shown:?}, the pod is {uid}");

    cluster.delete_and_wait("pods", Some(named.namespace), "stays", WAIT)?;
    named.read_everywhere(&manifest, WAIT)?;
    named.remove(WAIT)?;
    let left = targets(node)?;
    ensure!(left.is_empty(), "records of mounts that are gone: {left:?}");
    Ok(())
}

/// The containers of a node: pod (its UID, namespace and name) → container, if it runs and is ready.
struct Containers(BTreeMap<(String, String, String), Option<String>>);

impl Containers {
    fn on(lab: &Lab, node: &Node) -> Result<Self> {
        let pods = lab.cluster.list("pods", None)?;
        let text = |pod: &Value, key: &str| pod["metadata"][key].as_str().unwrap_or_default().to_owned();
        let of = pods.iter().filter(|pod| pod["spec"]["nodeName"] == node.name()).map(|pod| {
            let container = &pod["status"]["containerStatuses"][0];
            let id = container["containerID"].as_str().filter(|_| container["ready"] == true);
            ((text(pod, "uid"), text(pod, "namespace"), text(pod, "name")), id.map(str::to_owned))
        });
        Ok(Self(of.collect()))
    }

    /// Whether the same pods have other containers, all of them ready. Those that are gone do not count.
    fn all_replaced(&self, now: &Self) -> Result<()> {
        for (pod, container) in &now.0 {
            let name = format!("{}/{}", pod.1, pod.2);
            let before = self.0.get(pod).with_context(|| format!("pod {name} is not the one it was"))?;
            ensure!(container.is_some(), "{name} is not ready");
            ensure!(container != before, "{name} is not known to have ended");
        }
        Ok(())
    }
}

/// What the node plugin's records say is mounted on a node.
pub(super) fn targets(node: &Node) -> Result<Vec<String>> {
    let folder = node.var_lib("kubelet").join("plugins/csi.larder.dev/state");
    let mut targets = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry.context("list records")?.path();
        let record: Value = serde_json::from_slice(&fs::read(&path).context("read a record")?).context("parse a record")?;
        let of = record["targets"].as_array().with_context(|| format!("{} has no targets", path.display()))?;
        targets.extend(of.iter().filter_map(|target| target.as_str().map(str::to_owned)));
    }
    Ok(targets)
}
