//! What cluster to make.

use std::fmt;

use anyhow::{Context as _, Result, ensure};

/// What a node is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeKind {
    /// Has GPUs (as Kubernetes sees them: label, taint, extended resource) and a local disk at `/mnt/nvme0`.
    Gpu,
    /// Has neither.
    Cpu,
}

impl fmt::Display for NodeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gpu => "gpu",
            Self::Cpu => "cpu",
        })
    }
}

/// One node.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    /// Its name in Kubernetes and its host name.
    pub name: String,
    /// What it is for.
    pub kind: NodeKind,
}

/// A cluster.
#[derive(Clone, Debug)]
pub struct ClusterSpec {
    /// Its nodes; 10.89.0.11 is the first one's address.
    pub nodes: Vec<NodeSpec>,
    /// The root folder of the kubelets: somewhere beneath `/var/lib`, which every node has for itself.
    pub kubelet_dir: &'static str,
    /// A container that ends again and again is started after a second, instead of up to five minutes: more faults fit in the same time.
    pub quick_restarts: bool,
}

/// Where a kubelet is unless it is told otherwise.
pub const KUBELET_DIR: &str = "/var/lib/kubelet";

/// Addresses 10.89.0.11 to .150 and pod networks 10.89.11.0 to .150.0 are the nodes'.
const MOST_NODES: usize = 100;

impl ClusterSpec {
    /// `gpu-1`, `gpu-2`, … and `cpu-1`, ….
    pub fn new(gpu: usize, cpu: usize) -> Self {
        let of = |kind: NodeKind, count: usize| (1..=count).map(move |i| NodeSpec { name: format!("{kind}-{i}"), kind });
        Self {
            kubelet_dir: KUBELET_DIR,
            quick_restarts: false,
            nodes: of(NodeKind::Gpu, gpu).chain(of(NodeKind::Cpu, cpu)).collect(),
        }
    }

    /// As the environment variable `NODES` says: a number of nodes, of which the last is a CPU node if there are three or
    /// more. Two GPU nodes and a CPU node if it is not set.
    ///
    /// # Errors
    /// It is not a number from 1 to 100.
    pub fn from_environment() -> Result<Self> {
        let count = match std::env::var("NODES") {
            Ok(text) if !text.is_empty() => text.parse().with_context(|| format!("NODES={text} is not a number"))?,
            _ => 3,
        };
        ensure!((1..=MOST_NODES).contains(&count), "NODES must be from 1 to {MOST_NODES}");
        Ok(if count < 3 { Self::new(count, 0) } else { Self::new(count - 1, 1) })
    }
}
