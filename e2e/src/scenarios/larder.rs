//! What every test of Larder does first and last: install it, name a dataset, read it from pods, take it away.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::{Node, condition};
use crate::dataset::{self, Dataset, Manifest};
use crate::images::BUSYBOX;
use crate::lab::Lab;
use crate::product;
use crate::report::step;
use crate::s3::{ACCESS_KEY, Request, SECRET_KEY};

/// The namespace of operator, plugin and workers.
pub(super) const SYSTEM: &str = "larder-system";

/// The bucket that datasets are in.
pub(super) const BUCKET: &str = "datasets";

/// Folder of the second tier, `spare`. No node has it.
pub(super) const SPARE_TIER: &str = "/mnt/spare";

/// Folder of the nodes that sources may name. No node has it.
pub(super) const SHARED: &str = "/mnt/shared";

/// Reads every file and prints its sum.
const READ_ALL: [&str; 8] = ["find", "/data", "-type", "f", "-exec", "sha256sum", "{}", "+"];

/// Does nothing for longer than any test.
pub(super) const HOLD: [&str; 2] = ["sleep", "86400"];

const INSTALL_TIMEOUT: Duration = Duration::from_secs(120);

/// Installs Larder with helm unless it is there, and waits till all of it runs.
pub(super) fn install(lab: &Lab) -> Result<()> {
    let cluster = &lab.cluster;
    if !cluster.helm(&["list", "--namespace", SYSTEM, "--short"])?.trim().is_empty() {
        return Ok(());
    }
    step("image loaded on every node", || cluster.load_image(cluster.nodes(), &product::archive()))?;
    step("helm install", || {
        let values = [
            format!("image.repository={}", product::IMAGE),
            format!("image.tag={}", product::TAG),
            "image.pullPolicy=IfNotPresent".to_owned(),
            "tiers[0].name=nvme".to_owned(),
            "tiers[0].hostPath=/mnt/nvme0".to_owned(),
            "tiers[1].name=spare".to_owned(),
            format!("tiers[1].hostPath={SPARE_TIER}"),
            format!("fileOrigins[0]={SHARED}"),
            format!("kubeletDir={}", cluster.kubelet_dir()),
            "grafana.dashboard.enabled=true".to_owned(),
        ]
        .join(",");
        let chart = product::chart();
        let chart = chart.to_str().context("the chart's path is not UTF-8")?;
        cluster.helm(&["install", "larder", chart, "--namespace", SYSTEM, "--create-namespace", "--set", &values])
    })?;
    step("Larder running", || {
        for kind in ["deployments", "daemonsets"] {
            for object in cluster.list(kind, Some(SYSTEM))? {
                let name = object["metadata"]["name"].as_str().context("an object without a name")?;
                cluster.wait_rolled_out(kind, SYSTEM, name, INSTALL_TIMEOUT)?;
            }
        }
        Ok(())
    })
}

/// Changes a value of the installed chart, as `name=value`; what it means for the daemons is still to come.
pub(super) fn set_value(lab: &Lab, value: &str) -> Result<()> {
    let chart = product::chart();
    let chart = chart.to_str().context("the chart's path is not UTF-8")?;
    lab.cluster.helm(&["upgrade", "larder", chart, "--namespace", SYSTEM, "--reuse-values", "--set", value]).map(drop)
}

/// Puts a small dataset with all kinds of names into a folder of a bucket; returns what is in it.
pub(super) fn upload(lab: &Lab, bucket: &str, folder: &str, seed: u64) -> Result<Manifest> {
    let mut files = Dataset::small(seed);
    files.shards.truncate(1);
    files.small = 40;
    files.write(&lab.s3.bucket(bucket)?.join(folder))
}

/// A `CacheDataset` in a namespace of its own, of a folder of the bucket.
pub(super) struct Named<'a> {
    pub(super) lab: &'a Lab,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
}

impl Named<'_> {
    /// Namespace, Secret, ConfigMap and CacheDataset, as YAML that a user could write.
    pub(super) fn yaml(&self) -> Result<String> {
        let Self { lab, namespace, name } = self;
        let authority: String = lab.s3.authority()?.lines().map(|line| format!("    {line}\n")).collect();
        Ok(format!(
            r#"apiVersion: v1
kind: Secret
metadata: {{ name: s3, namespace: {namespace} }}
stringData: {{ accessKeyId: {ACCESS_KEY}, secretAccessKey: {SECRET_KEY} }}
---
apiVersion: v1
kind: ConfigMap
metadata: {{ name: corp-ca, namespace: {namespace} }}
data:
  ca.crt: |
{authority}---
apiVersion: larder.dev/v1alpha1
kind: CacheDataset
metadata: {{ name: {name}, namespace: {namespace} }}
spec:
  source:
    uri: s3://{BUCKET}/{name}/
    endpoint: {endpoint}
    pathStyle: true
    ca: {{ configMapRef: {{ name: corp-ca }} }}
    credentials: {{ secretRef: {{ name: s3 }} }}
  cache:
    tiers: [{{ name: nvme, quota: 5Gi }}]
  preload: {{ policy: OnCreate }}
"#,
            endpoint = lab.s3.endpoint(),
        ))
    }

    /// The object as it is now.
    pub(super) fn object(&self) -> Result<Value> {
        self.lab.cluster.get("cachedatasets", Some(self.namespace), self.name)
    }

    /// Its UID.
    pub(super) fn uid(&self) -> Result<String> {
        self.object()?["metadata"]["uid"].as_str().map(str::to_owned).context("the dataset has no uid")
    }

    /// Creates it.
    pub(super) fn create(&self) -> Result<()> {
        self.lab.cluster.create_namespace(self.namespace)?;
        self.lab.cluster.apply(&self.yaml()?).map(drop)
    }

    /// Sets `spec.mount` for what is mounted from now on.
    pub(super) fn set_mount(&self, mount: &Value) -> Result<()> {
        let Self { lab, namespace, name } = self;
        let spec = json!({ "spec": { "mount": mount } }).to_string();
        lab.cluster.kubectl(&["patch", "cachedataset", "-n", namespace, name, "--type=merge", "-p", &spec]).map(drop)
    }

    /// Waits for a condition to be True.
    pub(super) fn wait(&self, kind: &str, timeout: Duration) -> Result<Value> {
        let what = format!("cachedataset {}/{} {kind}", self.namespace, self.name);
        self.lab.cluster.wait_until(&what, timeout, || {
            let object = self.object()?;
            ensure!(condition(&object, kind) == Some("True"), "{}", explain(&object));
            Ok(object)
        })
    }

    /// A pod on each node reads every file; returns how long the slowest took.
    pub(super) fn read_everywhere(&self, manifest: &Manifest, timeout: Duration) -> Result<Duration> {
        let started = Instant::now();
        let nodes = self.lab.cluster.nodes();
        for node in nodes {
            self.start_reader(node)?;
        }
        for node in nodes {
            self.check_reader(node, manifest, timeout)?;
        }
        Ok(started.elapsed())
    }

    /// Starts a pod that reads every file.
    pub(super) fn start_reader(&self, node: &Node) -> Result<()> {
        self.lab.cluster.apply(&self.reader(node).to_string()).map(drop)
    }

    /// Waits till it has, and compares; returns how long that took.
    pub(super) fn check_reader(&self, node: &Node, manifest: &Manifest, timeout: Duration) -> Result<Duration> {
        let started = Instant::now();
        let pod = reader_name(node);
        self.lab.cluster.wait_succeeded(self.namespace, &pod, timeout)?;
        // The API server may first have to notice that its connection to a kubelet that has started again is dead.
        let log = self
            .lab
            .cluster
            .wait_until("a reader's log", Duration::from_secs(30), || self.lab.cluster.logs(self.namespace, &pod, None))?;
        let sums: BTreeMap<_, _> = dataset::parse_sums(&log, "/data")?;
        dataset::compare(manifest, &sums).with_context(|| format!("what the pod on {} read", node.name()))?;
        Ok(started.elapsed())
    }

    /// The message of the Event that says why the reader's volume is not mounted.
    pub(super) fn wait_mount_event(&self, node: &Node, timeout: Duration) -> Result<String> {
        let pod = reader_name(node);
        self.lab.cluster.wait_until(&format!("an Event that says why {pod} waits"), timeout, || {
            let events = self.lab.cluster.list("events", Some(self.namespace))?;
            let event =
                events.iter().find(|event| event["involvedObject"]["name"] == pod.as_str() && event["reason"] == "FailedMount");
            let message = event.and_then(|event| event["message"].as_str()).context("none yet")?;
            Ok(message.to_owned())
        })
    }

    /// Starts a pod that keeps the dataset mounted, and waits till it runs.
    pub(super) fn start_holder(&self, node: &Node) -> Result<()> {
        self.lab.cluster.apply(&self.pod("holder", node, &HOLD).to_string())?;
        self.lab.cluster.wait_ready(self.namespace, "holder", Duration::from_secs(120)).map(drop)
    }

    /// Lets that pod read every file.
    pub(super) fn check_holder(&self, manifest: &Manifest) -> Result<()> {
        self.check_in("holder", manifest)
    }

    /// Lets a pod that runs read every file.
    pub(super) fn check_in(&self, pod: &str, manifest: &Manifest) -> Result<()> {
        let log = self.lab.cluster.exec(self.namespace, pod, None, &READ_ALL)?;
        let sums: BTreeMap<_, _> = dataset::parse_sums(&log, "/data")?;
        dataset::compare(manifest, &sums).with_context(|| format!("what the running pod {pod} read"))
    }

    /// The bytes of this dataset that have left the origin so far.
    pub(super) fn origin_bytes(&self) -> Result<u64> {
        let reads = Request::reads(&self.lab.s3.requests()?, BUCKET);
        let folder = format!("{}/", self.name);
        Ok(reads.iter().filter(|(key, _)| key.starts_with(&folder)).map(|(_, reads)| reads.bytes).sum())
    }

    /// Waits for a condition to be False for a reason, with a message that names something.
    pub(super) fn wait_reason(&self, kind: &str, reason: &str, names: &str, timeout: Duration) -> Result<()> {
        let what = format!("cachedataset {}/{} {kind}=False for {reason}", self.namespace, self.name);
        self.lab.cluster.wait_until(&what, timeout, || {
            let object = self.object()?;
            let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
            let found = conditions.iter().find(|condition| condition["type"] == kind).context("no such condition yet")?;
            ensure!(found["status"] == "False" && found["reason"] == reason, "{}", explain(&object));
            let message = found["message"].as_str().unwrap_or_default();
            ensure!(message.contains(names), "the message does not name {names}: {message}");
            Ok(())
        })
    }

    fn reader(&self, node: &Node) -> Value {
        self.pod(&reader_name(node), node, &READ_ALL)
    }

    /// A pod on a node that runs a command once, with the dataset at `/data`.
    pub(super) fn pod(&self, name: &str, node: &Node, command: &[&str]) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "namespace": self.namespace },
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "nodeSelector": { "kubernetes.io/hostname": node.name() },
                "tolerations": [{ "key": "nvidia.com/gpu", "operator": "Exists" }],
                "containers": [{
                    "name": "reader",
                    "image": BUSYBOX,
                    "imagePullPolicy": "Never",
                    "command": command,
                    "volumeMounts": [{ "name": "data", "mountPath": "/data", "readOnly": true }],
                }],
                "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": self.name } }],
            },
        })
    }

    /// Deletes the readers and the dataset, waits till nothing of it is left in the cluster and on the nodes' disks, and
    /// deletes the namespace.
    pub(super) fn remove(&self, timeout: Duration) -> Result<()> {
        self.remove_but_namespace(timeout)?;
        self.lab.cluster.delete("namespaces", None, self.namespace)
    }

    /// The same without the last step.
    pub(super) fn remove_but_namespace(&self, timeout: Duration) -> Result<()> {
        let Self { lab, namespace, name } = self;
        let object = self.object()?;
        let uid = object["metadata"]["uid"].as_str().context("the dataset has no uid")?;
        let bound = lab.cluster.find("persistentvolumeclaims", Some(namespace), name)?;
        let volume = bound.and_then(|claim| claim["spec"]["volumeName"].as_str().map(str::to_owned));
        self.remove_readers(timeout)?;
        lab.cluster.delete_and_wait("cachedatasets", Some(namespace), name, timeout)?;
        lab.cluster.wait_until("nothing left of the dataset", timeout, || {
            ensure!(lab.cluster.find("persistentvolumeclaims", Some(namespace), name)?.is_none(), "the PVC is");
            if let Some(volume) = &volume {
                ensure!(lab.cluster.find("persistentvolumes", None, volume)?.is_none(), "the PV is");
            }
            for kind in ["daemonsets", "services", "configmaps", "secrets", "pods"] {
                let left = lab.cluster.list(kind, Some(SYSTEM))?;
                let left = left.iter().find(|object| object["metadata"]["labels"]["larder.dev/dataset-uid"] == uid);
                ensure!(left.is_none(), "one of the {kind} is");
            }
            for node in lab.cluster.gpu_nodes() {
                let data = node.nvme().join("larder").join(uid);
                ensure!(!data.exists(), "{} is, on {}", data.display(), node.name());
            }
            for node in lab.cluster.nodes() {
                let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", node.holder()?)).context("mounts of a node")?;
                ensure!(!mounts.contains(uid), "a mount on {} is", node.name());
            }
            Ok(())
        })
    }

    /// Deletes the pods of [`Named::read_everywhere`].
    pub(super) fn remove_readers(&self, timeout: Duration) -> Result<()> {
        for node in self.lab.cluster.nodes() {
            self.lab.cluster.delete_and_wait("pods", Some(self.namespace), &reader_name(node), timeout)?;
        }
        Ok(())
    }
}

fn reader_name(node: &Node) -> String {
    format!("reader-{}", node.name())
}

/// The conditions that are not True, and how far the preload is, in one line.
pub(super) fn explain(object: &Value) -> String {
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut parts: Vec<String> = conditions
        .iter()
        .filter(|condition| condition["status"] != "True")
        .map(|condition| {
            let text = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
            format!("{} {}: {}", text("type"), text("reason"), text("message"))
        })
        .collect();
    if conditions.is_empty() {
        parts.push("it has no conditions yet".to_owned());
    }
    if let Some(percent) = object["status"]["cache"]["percent"].as_u64() {
        parts.push(format!("{percent} % cached"));
    }
    parts.join("; ")
}
