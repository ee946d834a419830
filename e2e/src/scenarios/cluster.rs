//! The cluster itself, without anything of Larder: if these fail, no other test means anything.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::cluster::{GPUS, NodeKind};
use crate::dataset::Dataset;
use crate::images::BUSYBOX;
use crate::lab::Lab;
use crate::process::Run as _;
use crate::s3::{Reads, Request};

const WAIT: Duration = Duration::from_secs(90);

/// A DaemonSet that serves its node's name over HTTP, and a Service in front of it.
fn web(namespace: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {{ name: web, namespace: {namespace} }}
spec:
  selector: {{ matchLabels: {{ app: web }} }}
  template:
    metadata: {{ labels: {{ app: web }} }}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{{ operator: Exists }}]
      containers:
        - name: web
          image: {BUSYBOX}
          imagePullPolicy: Never
          env: [{{ name: NODE, valueFrom: {{ fieldRef: {{ fieldPath: spec.nodeName }} }} }}]
          command: [sh, -c, 'mkdir /www; echo "$NODE" > /www/index.html; echo "up on $NODE"; exec httpd -f -p 8080 -h /www']
          readinessProbe: {{ httpGet: {{ port: 8080, path: / }}, periodSeconds: 1 }}
---
apiVersion: v1
kind: Service
metadata: {{ name: web, namespace: {namespace} }}
spec: {{ selector: {{ app: web }}, ports: [{{ port: 80, targetPort: 8080 }}] }}
"#
    )
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A running copy of [`web`]; its pods.
fn start_web(lab: &Lab, namespace: &str) -> Result<Vec<Value>> {
    lab.cluster.create_namespace(namespace)?;
    lab.cluster.apply(&web(namespace))?;
    lab.cluster.wait_rolled_out("daemonsets", namespace, "web", WAIT)?;
    lab.cluster.pods(namespace, "app=web")
}

/// Its end is the namespace controller's business, which takes its time; the next test has another namespace.
fn remove(lab: &Lab, namespace: &str) -> Result<()> {
    lab.cluster.delete("namespaces", None, namespace)
}

pub(super) fn nodes_are_what_they_claim_to_be(lab: &Lab) -> Result<()> {
    for node in lab.cluster.nodes() {
        let object = lab.cluster.get("nodes", None, node.name())?;
        let gpus = text(&object, "/status/allocatable/nvidia.com~1gpu");
        let label = text(&object, "/metadata/labels/nvidia.com~1gpu.present");
        let tainted = object.pointer("/spec/taints").is_some_and(|taints| taints.to_string().contains("nvidia.com/gpu"));
        let (_, disk, _) = node.command("ls")?.args(["-d", "/mnt/nvme0"]).run_any()?;
        let seen = (gpus, label, tainted, disk.trim());
        let wanted = match node.kind() {
            NodeKind::Gpu => (GPUS, "true", true, "/mnt/nvme0"),
            NodeKind::Cpu => ("", "", false, ""),
        };
        ensure!(seen == wanted, "{}: {seen:?} instead of {wanted:?}", node.name());
        let name = node.command("cat")?.arg("/proc/sys/kernel/hostname").run()?;
        ensure!(name.trim() == node.name(), "{} calls itself {name}", node.name());
        // What one node writes, no other sees.
        node.command("sh")?.args(["-c", "echo $0 > /var/lib/larder/whose; echo $0 > /run/whose", node.name()]).run()?;
    }
    for node in lab.cluster.nodes() {
        let seen = node.command("cat")?.args(["/var/lib/larder/whose", "/run/whose"]).run()?;
        ensure!(seen.lines().all(|line| line == node.name()), "{} sees files of another node: {seen}", node.name());
        node.command("rm")?.args(["/var/lib/larder/whose", "/run/whose"]).run()?;
    }
    Ok(())
}

pub(super) fn runs_pods_that_reach_each_other(lab: &Lab) -> Result<()> {
    let (cluster, namespace) = (&lab.cluster, "web-reach");
    let pods = start_web(lab, namespace)?;
    ensure!(pods.len() == cluster.nodes().len(), "{} pods on {} nodes", pods.len(), cluster.nodes().len());
    for from in &pods {
        let from_name = text(from, "/metadata/name");
        let get = |url: &str| cluster.exec(namespace, from_name, None, &["wget", "-q", "-O", "-", url]);
        for to in &pods {
            let answer = get(&format!("http://{}:8080/", text(to, "/status/podIP")))?;
            ensure!(answer.trim() == text(to, "/spec/nodeName"), "{from_name} got `{answer}`");
        }
        // By name and ClusterIP; the name needs the search list.
        let answer = get(&format!("http://web.{namespace}/"))?;
        ensure!(cluster.node(answer.trim()).is_ok(), "the service answered `{answer}`");
        let log = cluster.logs(namespace, from_name, None)?;
        ensure!(log.contains("up on"), "the log of {from_name} is `{log}`");
    }
    remove(lab, namespace)
}

pub(super) fn restarts_a_killed_container(lab: &Lab) -> Result<()> {
    let (cluster, namespace) = (&lab.cluster, "web-kill");
    let pods = start_web(lab, namespace)?;
    let pod = text(&pods[0], "/metadata/name");
    let (node, process) = cluster.main_process(namespace, pod, "web")?;
    ensure!(process.command.starts_with("httpd"), "the main process is `{}`", process.command);
    ensure!(node.name() == text(&pods[0], "/spec/nodeName"), "on {} instead", node.name());
    cluster.kill_container(namespace, pod, "web")?;
    cluster.wait_until("the container runs again", WAIT, || {
        let object = cluster.get("pods", Some(namespace), pod)?;
        let status = object.pointer("/status/containerStatuses/0").context("no status")?;
        ensure!(status["restartCount"] == 1 && status["ready"] == true, "restarts: {}", status["restartCount"]);
        Ok(())
    })?;
    remove(lab, namespace)
}

pub(super) fn survives_a_kubelet_restart(lab: &Lab) -> Result<()> {
    let (cluster, namespace) = (&lab.cluster, "web-kubelet");
    let pods = start_web(lab, namespace)?;
    let pod = &pods[0];
    let node = cluster.node(text(pod, "/spec/nodeName"))?;
    node.restart_kubelet()?;
    // The lease is renewed only by a kubelet that runs.
    let renewed =
        || cluster.get("leases", Some("kube-node-lease"), node.name()).map(|lease| lease["spec"]["renewTime"].clone());
    // A node is Ready a moment before it has one.
    let before = cluster.wait_until("the node's lease", WAIT, renewed)?;
    cluster.wait_until("the kubelet is back", WAIT, || {
        ensure!(renewed()? != before, "its lease is not renewed");
        Ok(())
    })?;
    cluster.wait_until("the kubelet knows its pods again", WAIT, || {
        let answer = cluster.exec(namespace, text(pod, "/metadata/name"), None, &["cat", "/www/index.html"])?;
        ensure!(answer.trim() == node.name(), "exec printed `{answer}`");
        Ok(())
    })?;
    let again = cluster.get("pods", Some(namespace), text(pod, "/metadata/name"))?;
    ensure!(again.pointer("/status/containerStatuses/0/restartCount") == Some(&0.into()), "the container was restarted");
    if node.kind() == NodeKind::Gpu {
        cluster.wait_until("the GPUs are offered again", WAIT, || {
            let object = cluster.get("nodes", None, node.name())?;
            ensure!(text(&object, "/status/allocatable/nvidia.com~1gpu") == GPUS, "they are not");
            Ok(())
        })?;
    }
    remove(lab, namespace)
}

pub(super) fn origin_serves_objects_and_counts_them(lab: &Lab) -> Result<()> {
    let (cluster, s3, namespace) = (&lab.cluster, &lab.s3, "origin");
    let folder = s3.bucket("smoke")?;
    let files = Dataset { seed: 7, shards: vec![300_000], small: 5, small_bytes: 4096, odd_names: true };
    let manifest = files.write(&folder)?;
    let before = s3.requests()?.len();

    // Through TLS with the private authority, from outside the cluster: put, get, list.
    let put = s3.request("PUT", "smoke", "put/by hand.txt", b"hello")?;
    ensure!(put.starts_with("HTTP/1.1 200"), "PUT: {put}");
    let got = s3.request("GET", "smoke", "put/by hand.txt", &[])?;
    ensure!(got.ends_with("\r\n\r\nhello"), "GET: {got}");
    let of_file = s3.request("HEAD", "smoke", "shards/shard-00000.rec", &[])?;
    ensure!(
        of_file.contains(&format!("\"{}\"", &manifest["shards/shard-00000.rec"].sha256[..32])),
        "HEAD has another ETag: {of_file}"
    );
    let stored = fs::read(folder.join("put/by hand.txt")).context("read what was put")?;
    ensure!(stored == b"hello", "the server stored {stored:?}");

    // From a pod, by name, every odd key.
    let pods = start_web(lab, namespace)?;
    let pod = text(&pods[0], "/metadata/name");
    for (path, entry) in &manifest {
        let command = format!("wget -q -O - '{}' | sha256sum", s3.presigned("GET", "smoke", path));
        let sum = cluster.exec(namespace, pod, None, &["sh", "-c", &command])?;
        ensure!(sum.starts_with(&entry.sha256), "{path}: {sum}");
    }

    let log = s3.requests()?;
    let reads = Request::reads(&log[before..], "smoke");
    for (path, entry) in &manifest {
        let wanted = Reads { requests: 1, bytes: entry.size };
        ensure!(reads.get(path) == Some(&wanted), "{path}: the log has {:?}, not {wanted:?}", reads.get(path));
    }
    remove(lab, namespace)
}
