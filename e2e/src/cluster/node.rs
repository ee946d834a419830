//! One node: its namespaces, its containerd, kube-proxy and kubelet, and what a test does to them.

mod power;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::network::Host;
use super::node_holder::{NVME_FOLDER, READY};
use super::spec::{ClusterSpec, NodeKind, NodeSpec};
use super::{Component, node_files, poisoned};
use crate::capsule::{cgroup, own_program, stage};
use crate::process::Run as _;
use crate::run_dir::RunDir;
use crate::tools::Tools;

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Where a kubelet says on 127.0.0.1 that it is well; it listens when it has found containerd.
const KUBELET_HEALTHZ: u16 = 10248;

/// A node of the cluster.
pub struct Node {
    tools: Tools,
    run: RunDir,
    spec: NodeSpec,
    host: Host,
    folder: PathBuf,
    kubelet_dir: &'static str,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    holder: Option<Component>,
    containerd: Option<Component>,
    proxy: Option<Component>,
    kubelet: Option<Component>,
}

/// A process in one of a node's containers.
#[derive(Clone, Debug)]
pub struct Process {
    /// As the harness sees it.
    pub pid: i32,
    /// The pod it belongs to.
    pub pod_uid: String,
    /// The container it belongs to; the pod's sandbox is one too.
    pub container_id: String,
    /// Its arguments, separated by spaces.
    pub command: String,
}

impl Node {
    /// Makes the node's folder, files and cgroups; starts nothing.
    pub(super) fn prepare(run: &RunDir, tools: &Tools, spec: &ClusterSpec, index: usize, host: Host) -> Result<Self> {
        let (kubelet_dir, quick_restarts, spec) = (spec.kubelet_dir, spec.quick_restarts, &spec.nodes[index]);
        let folder = run.path("nodes").join(&spec.name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        node_files::write(run, tools, spec, index, &folder, quick_restarts)?;
        cgroup::create(run.id(), &spec.name)?;
        Ok(Self {
            tools: tools.clone(),
            run: run.clone(),
            spec: spec.clone(),
            host,
            folder,
            kubelet_dir,
            running: Mutex::default(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// What it is for.
    pub fn kind(&self) -> NodeKind {
        self.spec.kind
    }

    /// The root folder of its kubelet.
    pub fn kubelet_dir(&self) -> &str {
        self.kubelet_dir
    }

    /// Its place in the network.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The folder that the node sees as `/mnt/nvme0`; a CPU node sees none.
    pub fn nvme(&self) -> PathBuf {
        self.folder.join(NVME_FOLDER)
    }

    /// The folder that the node sees as `/var/lib/<name>`: `containerd`, `larder`; `kubelet` is the kubelet's, wherever that
    /// is.
    pub fn var_lib(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The folder in which containerd looks for a registry's address and CA, at each pull.
    pub fn registries(&self) -> PathBuf {
        self.folder.join(node_files::REGISTRIES)
    }

    /// The process that holds the node's namespaces.
    ///
    /// # Errors
    /// The node is not started.
    pub fn holder(&self) -> Result<i32> {
        Ok(self.running()?.holder.as_ref().context("the node is not started")?.pid())
    }

    fn running(&self) -> Result<MutexGuard<'_, Running>> {
        self.running.lock().map_err(|_| poisoned())
    }

    fn start_component(&self, name: &str, command: &mut Command) -> Result<Component> {
        Component::start(&self.run, &format!("{}-{name}", self.spec.name), command)
    }

    /// A command that runs on this node: in its network, mounts and host name.
    ///
    /// # Errors
    /// The node is not started.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder()?.to_string(), "--net", "--mount", "--uts", "--"]).arg(program);
        Ok(command)
    }

    /// Starts the namespaces and containerd, and imports images.
    pub(super) fn start_runtime(&self, images: &[PathBuf]) -> Result<()> {
        let ready = self.folder.join(READY);
        let _ = fs::remove_file(&ready);
        let holder = self.start_component(
            "holder",
            self.host
                .command("unshare")
                .args(["--mount", "--uts", "--propagation", "private", "--"])
                .arg(own_program(&self.run))
                .arg(stage::NODE)
                .arg(&self.folder)
                .args([self.name(), &self.spec.kind.to_string(), self.kubelet_dir]),
        )?;
        self.running()?.holder = Some(holder);
        self.wait_for("its namespaces", || Ok(ready.exists()))?;
        let containerd = self.start_component(
            "containerd",
            self.command(self.tools.host_root().join("usr/bin/containerd"))?
                .arg("--config")
                .arg(self.folder.join("containerd.toml")),
        )?;
        self.running()?.containerd = Some(containerd);
        self.wait_for("containerd", || Ok(self.ctr()?.args(["version"]).run_any()?.0))?;
        images.iter().try_for_each(|image| self.load_image(image))
    }

    /// Starts kube-proxy and the kubelet.
    pub(super) fn start_kubelet(&self) -> Result<()> {
        let proxy = self.start_component(
            "kube-proxy",
            self.command(self.tools.go("kube-proxy")?)?.arg("--config").arg(self.folder.join("kube-proxy.yaml")),
        )?;
        self.running()?.proxy = Some(proxy);
        self.start_kubelet_only()
    }

    fn start_kubelet_only(&self) -> Result<()> {
        let mut command = self.command(self.tools.go("kubelet")?)?;
        command
            .arg("--config")
            .arg(self.folder.join("kubelet.yaml"))
            .arg("--kubeconfig")
            .arg(self.run.path(format!("{}.kubeconfig", self.name())))
            .args(["--hostname-override", self.name(), "--node-ip", &self.host.address.to_string()])
            .args(["--root-dir", self.kubelet_dir, "--volume-plugin-dir"])
            .arg(Path::new(self.kubelet_dir).join("volume-plugins"))
            .arg("--v=2");
        if self.spec.kind == NodeKind::Gpu {
            command.args(["--node-labels", "nvidia.com/gpu.present=true"]);
        }
        let kubelet = self.start_until_it_stays(&mut command)?;
        self.running()?.kubelet = Some(kubelet);
        Ok(())
    }

    /// As a service manager would: a kubelet ends at once when containerd answers, but not yet for kubelets.
    fn start_until_it_stays(&self, command: &mut Command) -> Result<Component> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let mut kubelet = self.start_component("kubelet", command)?;
            let ended = loop {
                if let Err(ended) = kubelet.check() {
                    break ended;
                }
                if self.listens(KUBELET_HEALTHZ)? {
                    return Ok(kubelet);
                }
                ensure!(Instant::now() < deadline, "{}: kubelet does not listen after {START_TIMEOUT:?}", self.name());
                std::thread::sleep(Duration::from_millis(50));
            };
            ensure!(Instant::now() < deadline, "{}: kubelet does not stay: {ended:#}", self.name());
        }
    }

    /// Does a process on this node listen on a port of 127.0.0.1?
    fn listens(&self, port: u16) -> Result<bool> {
        let table = fs::read_to_string(format!("/proc/{}/net/tcp", self.holder()?)).context("sockets of a node")?;
        let (address, listening) = (format!("0100007F:{port:04X}"), "0A");
        Ok(table.lines().any(|line| {
            let mut columns = line.split_whitespace().skip(1);
            columns.next() == Some(&address) && columns.nth(1) == Some(listening)
        }))
    }

    /// Ends the kubelet; containers go on.
    ///
    /// # Errors
    /// The harness is broken.
    pub fn stop_kubelet(&self) -> Result<()> {
        if let Some(mut kubelet) = self.running()?.kubelet.take() {
            kubelet.stop();
        }
        Ok(())
    }

    /// Ends the kubelet and starts it again; containers go on.
    ///
    /// # Errors
    /// It did not start.
    pub fn restart_kubelet(&self) -> Result<()> {
        self.stop_kubelet()?;
        self.start_kubelet_only()
    }

    pub(super) fn check(&self) -> Result<()> {
        let mut running = self.running()?;
        let Running { holder, containerd, proxy, kubelet } = &mut *running;
        [holder, containerd, proxy, kubelet].into_iter().flatten().try_for_each(Component::check)
    }

    fn wait_for(&self, what: &str, done: impl Fn() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !done()? {
            self.check()?;
            ensure!(Instant::now() < deadline, "{}: {what} not ready after {START_TIMEOUT:?}", self.name());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// containerd's own client, for the kubelet's namespace of images and containers.
    ///
    /// # Errors
    /// The node is not started.
    pub fn ctr(&self) -> Result<Command> {
        let mut command = self.command(self.tools.host_root().join("usr/bin/ctr"))?;
        command.args(["--namespace", "k8s.io"]);
        Ok(command)
    }

    /// Imports an image archive.
    ///
    /// # Errors
    /// containerd refused it.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        self.ctr()?
            .args(["images", "import"])
            .arg(archive)
            .run()
            .with_context(|| format!("import {} on {}", archive.display(), self.name()))?;
        Ok(())
    }

    /// The processes of all containers on this node.
    pub fn processes(&self) -> Vec<Process> {
        cgroup::processes(self.run.id(), self.name())
            .into_iter()
            .filter_map(|(pid, path)| {
                let (pod, container_id) = path.rsplit_once('/')?;
                let pod_uid = pod.rsplit('/').next()?.strip_prefix("pod")?.to_owned();
                let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let command = String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " ");
                Some(Process { pid, pod_uid, container_id: container_id.to_owned(), command })
            })
            .collect()
    }
}

impl Process {
    /// Whether it is PID 1 of its container.
    pub fn is_main(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))
            .is_some_and(|pids| pids.split_whitespace().last() == Some("1"))
    }

    /// Bytes of memory that it has.
    ///
    /// # Errors
    /// It is gone.
    pub fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).context("look at a process")?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        Ok(kib.with_context(|| format!("{} has no memory", self.command))?.parse::<u64>()? << 10)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid), signal).with_context(|| format!("send {signal} to {} ({})", self.pid, self.command))
    }
}
