//! A Kubernetes cluster of real components: etcd, API server, controller manager, scheduler, CoreDNS, and nodes with a
//! kubelet, containerd and kube-proxy each.
//!
//! ```text
//! br0 10.89.0.1   API server :6443, DNS :53              (the capsule's own network namespace)
//!  ├─ 10.89.0.11  node 1, pods 10.89.11.0/24             (a namespace per node: network, mounts, host name)
//!  ├─ 10.89.0.12  node 2, pods 10.89.12.0/24
//!  ├─ 10.89.0.200 s3.lab.internal                        (see `crate::s3`)
//!  ├─ 10.89.0.201 registry.example                       (see `crate::registry`; only where a test needs it)
//!  └─ 10.89.0.202 Prometheus                             (see `crate::prometheus`; the same)
//!     services    10.90.0.0/16
//! ```
//!
//! Everything here runs inside a capsule, so addresses and paths may be the same in two runs at once.

mod api;
mod control_plane;
mod dump;
mod gpus;
mod kubectl;
mod network;
mod node;
mod node_files;
pub mod node_holder;
mod spec;
mod wait;

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::Value;

pub use api::{Api, path_of};
pub use dump::DUMP;
pub use gpus::GPUS;
pub use kubectl::phase;
pub use network::{GATEWAY, Host};
pub use node::{Node, Process};
pub use spec::{ClusterSpec, KUBELET_DIR, NodeKind, NodeSpec};

use crate::process::{Run as _, tail};
use crate::report::step;
use crate::run_dir::RunDir;
use crate::tools::Tools;

/// A program of the cluster that runs in the background.
pub(crate) struct Component {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Component {
    pub(crate) fn start(run: &RunDir, name: &str, command: &mut Command) -> Result<Self> {
        let log = run.log(name);
        let child = command.start(&log)?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().with_context(|| format!("look at {}", self.name))? {
            bail!("{} ended ({status}); {} ends with:\n{}", self.name, self.log.display(), tail(&self.log, 15));
        }
        Ok(())
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub(crate) fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// For a program with processes of its own, which it must end itself: asked first, killed if it does not listen.
    pub(crate) fn stop_with_its_children(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(5);
        let _ = signal::kill(Pid::from_raw(self.pid()), Signal::SIGTERM);
        let asked = Instant::now();
        while asked.elapsed() < PATIENCE && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.stop();
    }
}

/// A running cluster.
pub struct Cluster {
    tools: Tools,
    run: RunDir,
    api: Api,
    components: Mutex<Vec<Component>>,
    nodes: Vec<Node>,
    cancelled: Arc<AtomicBool>,
    dumps: Mutex<u32>,
}

impl Cluster {
    /// Starts a cluster and waits till its nodes are Ready.
    ///
    /// # Errors
    /// A component ended or did not come up in time; the message has the end of its log.
    pub fn up(run: &RunDir, tools: &Tools, spec: &ClusterSpec) -> Result<Self> {
        let pki = step("certificates", || control_plane::certificates(run, spec))?;
        network::prepare(spec.nodes.len())?;
        let images = crate::images::test_images(run, tools)?;
        let nodes = spec
            .nodes
            .iter()
            .enumerate()
            .map(|(index, _)| Node::prepare(run, tools, spec, index, network::add_node(spec, index)?))
            .collect::<Result<Vec<_>>>()?;
        let mut components = control_plane::start_storage_and_api(run, tools, &pki)?;
        step("API server ready, containerds running", || {
            std::thread::scope(|scope| {
                let runtimes: Vec<_> = nodes.iter().map(|node| scope.spawn(|| node.start_runtime(&images))).collect();
                control_plane::wait_ready(tools, run, &mut components)?;
                runtimes.into_iter().try_for_each(|runtime| runtime.join().map_err(|_| poisoned())?)
            })
        })?;
        components.extend(control_plane::start_rest(run, tools, &pki)?);
        let cluster = Self {
            tools: tools.clone(),
            run: run.clone(),
            api: Api::new(Path::new(control_plane::API_SOCKET)),
            components: Mutex::new(components),
            nodes,
            cancelled: Arc::default(),
            dumps: Mutex::new(0),
        };
        step("nodes Ready", || {
            cluster.start_kubelets()?;
            cluster.wait_for_service_account("default")
        })?;
        Ok(cluster)
    }

    fn start_kubelets(&self) -> Result<()> {
        self.nodes.iter().try_for_each(Node::start_kubelet)?;
        self.wait_until("all nodes Ready", Duration::from_secs(120), || {
            let nodes = self.list("nodes", None)?;
            let ready = nodes.iter().filter(|node| condition(node, "Ready") == Some("True")).count();
            ensure!(ready == self.nodes.len(), "{ready} of {} nodes Ready", self.nodes.len());
            Ok(())
        })?;
        let gpu_nodes: Vec<String> = self.gpu_nodes().map(|node| node.name().to_owned()).collect();
        gpus::offer(&self.api, &gpu_nodes)?;
        gpus::keep_offering(self.api.clone(), gpu_nodes, Arc::clone(&self.cancelled));
        Ok(())
    }

    /// Ends every process of the cluster and removes what belongs to its nodes. The caller makes sure that nothing uses it.
    ///
    /// # Errors
    /// A cgroup could not be removed.
    pub fn down(&self) -> Result<()> {
        self.cancel();
        for node in &self.nodes {
            node.end_everything()?;
        }
        if let Ok(mut components) = self.components.lock() {
            components.iter_mut().for_each(Component::stop);
        }
        crate::capsule::cgroup::remove(self.run.id())
    }

    /// Ends DNS: names have no addresses any more, in pods and on nodes.
    ///
    /// # Errors
    /// The harness is broken.
    pub fn stop_dns(&self) -> Result<()> {
        let mut components = self.components.lock().map_err(|_| poisoned())?;
        components.iter_mut().filter(|component| component.name == control_plane::DNS).for_each(Component::stop);
        components.retain(|component| component.name != control_plane::DNS);
        Ok(())
    }

    /// Starts it again after [`Cluster::stop_dns`], or anew.
    ///
    /// # Errors
    /// It did not start.
    pub fn start_dns(&self) -> Result<()> {
        self.stop_dns()?;
        let dns = control_plane::start_dns(&self.run, &self.tools)?;
        self.components.lock().map_err(|_| poisoned())?.push(dns);
        Ok(())
    }

    /// Makes every wait on this cluster fail at once.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether [`Cluster::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// The run this cluster belongs to.
    pub fn run(&self) -> &RunDir {
        &self.run
    }

    /// The programs it is made of.
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// The API server, without kubectl.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The GPU nodes.
    pub fn gpu_nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.kind() == NodeKind::Gpu)
    }

    /// The root folder of the kubelets.
    pub fn kubelet_dir(&self) -> &str {
        self.nodes.first().map_or(KUBELET_DIR, Node::kubelet_dir)
    }

    /// A node by name.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name() == name).with_context(|| format!("no node is named {name}"))
    }

    /// Fails if a component that should run has ended.
    ///
    /// # Errors
    /// Names it, with the end of its log.
    pub fn check_components(&self) -> Result<()> {
        self.components.lock().map_err(|_| poisoned())?.iter_mut().try_for_each(Component::check)?;
        self.nodes.iter().try_for_each(Node::check)
    }
}

/// The status of a condition of any object: `True`, `False`, `Unknown`.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let all = object.pointer("/status/conditions")?.as_array()?;
    all.iter().find(|condition| condition["type"] == kind)?["status"].as_str()
}

pub(crate) fn poisoned() -> anyhow::Error {
    anyhow::anyhow!("another thread of the harness panicked")
}
