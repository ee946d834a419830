//! The process that holds a node's namespaces: it makes the node's own view of the file system and then waits.
//!
//! Started as `nsenter --net=… unshare --mount --uts larder-e2e internal-node <folder> <name> <kind> <kubelet's folder>`; containerd, kubelet
//! and kube-proxy are then started into its namespaces. Not by `ip netns exec`, which mounts /sys anew: the kubelet
//! would find no cgroups there.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::capsule::mounts::{bind, shadow, share_all, tmpfs};

/// What every node has for itself: (path on the node, its folder in the node's folder).
const OWN: [(&str, &str); 5] = [
    ("/var/lib/containerd", "containerd"),
    ("/var/lib/cni", "cni"),
    ("/var/lib/larder", "larder"),
    ("/var/log/pods", "log-pods"),
    ("/var/log/containers", "log-containers"),
];

/// Where a GPU node has its local disk.
pub const NVME: &str = "/mnt/nvme0";

/// The folder, in a node's folder, that is its local disk.
pub(super) const NVME_FOLDER: &str = "nvme0";

/// Appears in the node's folder when the namespaces are ready.
pub(super) const READY: &str = "ready";

/// Stage `internal-node`.
///
/// # Errors
/// A mount failed.
pub fn hold(folder: &Path, name: &str, kind: &str, kubelet_dir: &str) -> Result<()> {
    fs::write("/proc/sys/kernel/hostname", name).context("set the host name")?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("switch on forwarding")?;
    // All mounts are private here, so that a bind mount is no peer of the folder it shows; sharing comes last.
    tmpfs(Path::new("/run"))?;
    shadow(Path::new("/var/lib"), &["kubelet", "containerd", "cni", "larder"])?;
    shadow(Path::new("/var/log"), &["pods", "containers"])?;
    shadow(Path::new("/mnt"), &["nvme0"])?;
    for (path, own) in OWN.into_iter().chain([(kubelet_dir, "kubelet")]).chain((kind == "gpu").then_some((NVME, NVME_FOLDER))) {
        let source = folder.join(own);
        fs::create_dir_all(&source).with_context(|| format!("make {}", source.display()))?;
        fs::create_dir_all(path).with_context(|| format!("make {path}"))?;
        bind(&source, Path::new(path))?;
    }
    share_all()?;
    fs::write(folder.join(READY), "").context("say that the node's namespaces are ready")?;
    loop {
        std::thread::park();
    }
}
