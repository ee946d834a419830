//! The configuration files of a node's containerd, CNI, kubelet and kube-proxy.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::network::{GATEWAY, pod_network};
use super::spec::{NodeKind, NodeSpec};
use crate::capsule::cgroup;
use crate::images::PAUSE;
use crate::run_dir::RunDir;
use crate::tools::Tools;

/// In the node's folder: how containerd gets at registries, a folder for each.
pub(super) const REGISTRIES: &str = "registries";

/// Writes them all into the node's folder. JSON where the program reads YAML: it is both.
pub(super) fn write(
    run: &RunDir,
    tools: &Tools,
    spec: &NodeSpec,
    index: usize,
    folder: &Path,
    quick_restarts: bool,
) -> Result<()> {
    let put = |name: &str, text: String| {
        let path = folder.join(name);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(path, text)
    };
    put("containerd.toml", containerd(folder, &tools.host_root())).context("write containerd's configuration")?;
    put("net.d/10-pods.conflist", pod_links(index).to_string()).context("write the CNI configuration")?;
    put("kubelet.yaml", kubelet(run, spec, quick_restarts).to_string()).context("write the kubelet's configuration")?;
    put("kube-proxy.yaml", proxy(run, spec).to_string()).context("write kube-proxy's configuration")?;
    // What containers find in their /etc/resolv.conf with dnsPolicy Default.
    put("resolv.conf", format!("nameserver {GATEWAY}\n")).context("write resolv.conf")
}

fn containerd(folder: &Path, host: &Path) -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_apparmor = true
  restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{folder}/{REGISTRIES}"

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{host}/usr/lib/cni"
  conf_dir = "{folder}/net.d"

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
"#,
        folder = folder.display(),
        host = host.display(),
    )
}

fn pod_links(index: usize) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        // No host ports: the only plugin for them needs iptables.
        "plugins": [{
            "type": "ptp",
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": pod_network(index) }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    })
}

fn kubelet(run: &RunDir, spec: &NodeSpec, quick_restarts: bool) -> Value {
    let pki = run.path("pki");
    let taints = match spec.kind {
        NodeKind::Gpu => json!([{ "key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule" }]),
        NodeKind::Cpu => json!([]),
    };
    let mut kubelet = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": pki.join("ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": pki.join(format!("{}.crt", spec.name)),
        "tlsPrivateKeyFile": pki.join(format!("{}.key", spec.name)),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup::node_path(run.id(), &spec.name),
        "failSwapOn": false,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "clusterDNS": [GATEWAY.to_string()],
        "clusterDomain": "cluster.local",
        "resolvConf": run.path("nodes").join(&spec.name).join("resolv.conf"),
        "registerWithTaints": taints,
        "evictionHard": { "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "4s",
    });
    if quick_restarts {
        kubelet["featureGates"] = json!({ "KubeletCrashLoopBackOffMax": true });
        kubelet["crashLoopBackOff"] = json!({ "maxContainerRestartPeriod": "1s" });
    }
    kubelet
}

fn proxy(run: &RunDir, spec: &NodeSpec) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": { "kubeconfig": run.path("proxy.kubeconfig") },
        "clusterCIDR": "10.89.0.0/16",
        "hostnameOverride": spec.name,
        // The capsule's namespaces may not change the machine's conntrack limits.
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s" },
    })
}
