//! Some nodes of a cluster on this machine: the worker and mounter processes themselves, and in this process what a cluster has
//! besides them.
//!
//! ```text
//! plane: API server with one member list, certificates ◄─┐
//! orders: what the operator says to workers ─────────────┼─► larder worker    of each node, at an address of its own
//! mount: what the node plugin says to mounters ──────────┴─► larder mounter
//! ```

mod network;
mod plane;

pub(crate) use network::Network;
use network::Space;

use crate::{daemon::Daemon, rows::Run};
use anyhow::Context as _;
use larder_core::{catalog::Catalog, names};
use larder_fuse::{
    control, device,
    fdpass::Conn,
    protocol::mounter::{Mode, Mount, Reply, Request},
};
use larder_peer::{Client, Options, Roster};
use larder_proto::control::v1::{self as pb, Phase, worker_client::WorkerClient};
use larder_trust::{Connector, Identity, Lifetimes, worker_uri};
use nix::{
    mount::{MntFlags, umount2},
    sys::stat::minor,
};
use plane::Plane;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

/// Of the only dataset.
pub(crate) const UID: &str = "0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f";
const NAMESPACE: &str = "larder-bench";
/// Sockets: the folder for data may have a name that is too long for them.
const RUN: &str = "/run/larder-bench";
/// Longest wait for a process to be ready, and for an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for work that was ordered.
const WORK: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_millis(10);

/// The nodes of one dataset.
pub(crate) struct Lab {
    pub runtime: Runtime,
    plane: Plane,
    program: PathBuf,
    dir: PathBuf,
    workers: Vec<Worker>,
}

struct Worker {
    node: String,
    space: Option<Space>,
    daemon: Daemon,
    control: WorkerClient<Channel>,
}

/// A mounter with one mount.
pub(crate) struct Mounter {
    pub daemon: Daemon,
    /// A publish waits for it.
    keeper: Daemon,
    at: PathBuf,
}

/// Where the processes of a node run.
pub(crate) enum Place<'a> {
    /// Nodes of this machine's own network, so many.
    Loopback(u8),
    /// Nodes behind links.
    Behind(&'a Network),
}

impl Place<'_> {
    fn nodes(&self) -> BTreeMap<String, IpAddr> {
        match self {
            Self::Loopback(count) => (0..*count).map(|n| (node(n.into()), loopback(n))).collect(),
            Self::Behind(network) => (0..network.nodes()).map(|n| (node(n.into()), Network::node(n))).collect(),
        }
    }

    fn host(&self) -> IpAddr {
        match self {
            Self::Loopback(_) => IpAddr::from([127, 0, 0, 1]),
            Self::Behind(_) => Network::HOST,
        }
    }

    fn space(&self, n: u8) -> Option<Space> {
        match self {
            Self::Loopback(_) => None,
            Self::Behind(network) => Some(network.space(n)),
        }
    }
}

/// Runs there, or where this process does.
fn command(program: &Path, space: Option<&Space>) -> Command {
    space.map_or_else(|| Command::new(program), |space| space.command(program))
}

fn node(n: usize) -> String {
    format!("node-{n}")
}

fn loopback(n: u8) -> IpAddr {
    IpAddr::from([127, 0, 77, n + 1])
}

impl Lab {
    /// Starts workers with empty disks, but for catalogs that lie in `catalogs` of the first one's folder.
    pub fn start(run: &Run<'_>, place: &Place<'_>, tls: bool) -> anyhow::Result<Self> {
        let runtime = Runtime::new().context("start threads")?;
        let nodes = place.nodes();
        let plane = Plane::start(&runtime, place.host(), tls, nodes.clone())?;
        let mut this = Self { runtime, plane, program: run.larder.clone(), dir: run.data.join("lab"), workers: Vec::new() };
        for ((node, address), n) in nodes.into_iter().zip(0..) {
            let space = place.space(n);
            let (dir, sockets) = (this.disk(&node), this.sockets(&node)?);
            fs::create_dir_all(dir.parent().unwrap_or(&dir)).with_context(|| format!("make {}", dir.display()))?;
            let identity = Identity::Worker { dataset: UID.to_owned(), node: node.clone() };
            let mut command = command(&this.program, space.as_ref());
            command.arg("worker").args(["--dataset-uid", UID]).arg("--dir").arg(&dir).arg("--file-origin").arg(&run.data);
            let port = |port| SocketAddr::new(address, port).to_string();
            command.args(["--data-addr", &port(names::WORKER_DATA_PORT)]);
            command.args(["--control-addr", &port(names::WORKER_CONTROL_PORT)]);
            command.args(["--admin-addr", &port(names::WORKER_ADMIN_PORT)]);
            this.common(&mut command, &node, &sockets, &identity)?;
            let log = this.dir.join(format!("{node}-worker.log"));
            let daemon = Daemon::start(&mut command, &log, "worker is ready", PATIENCE)?;
            let control = this.control(address)?;
            this.workers.push(Worker { node, space, daemon, control });
        }
        Ok(this)
    }

    /// Folder of the dataset on a node's disk.
    pub fn disk(&self, node: &str) -> PathBuf {
        disk(&self.dir, node)
    }

    /// Folders of a node's sockets, as the node plugin makes them.
    fn sockets(&self, node: &str) -> anyhow::Result<PathBuf> {
        let dir = Path::new(RUN).join(node);
        for who in ["worker", "mounter", "keeper", "node"] {
            fs::create_dir_all(dir.join(who)).with_context(|| format!("make {}", dir.display()))?;
        }
        Ok(dir)
    }

    /// Flags that all daemons have.
    fn common(&self, command: &mut Command, node: &str, sockets: &Path, identity: &Identity) -> anyhow::Result<()> {
        let api = self.dir.join("kubeconfig");
        let cluster = serde_json::json!({ "server": format!("http://{}", self.plane.api) });
        let text = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "clusters": [{ "name": "bench", "cluster": cluster }],
            "users": [{ "name": "bench", "user": {} }],
            "contexts": [{ "name": "bench", "context": { "cluster": "bench", "user": "bench" } }],
        });
        fs::write(&api, text.to_string()).with_context(|| format!("write {}", api.display()))?;
        command.env("KUBECONFIG", &api).args(["--node", node, "--namespace", NAMESPACE]).arg("--run-dir").arg(sockets);
        match &self.plane.authority {
            None => command.arg("--plain"),
            Some((address, _)) => {
                let token = sockets.join(format!("{}.token", identity.to_string().replace('/', "-")));
                fs::write(&token, identity.to_string()).with_context(|| format!("write {}", token.display()))?;
                command.args(["--authority", &address.to_string()]).arg("--authority-token").arg(token)
            }
        };
        Ok(())
    }

    /// Connects as the operator; a worker without a certificate yet is waited for.
    fn control(&self, address: IpAddr) -> anyhow::Result<WorkerClient<Channel>> {
        let security = self.plane.security(&Identity::Operator)?;
        let uri = worker_uri(UID, SocketAddr::new(address, names::WORKER_CONTROL_PORT), "/")?;
        let endpoint = Endpoint::from(uri).timeout(PATIENCE).origin(http::Uri::from_static("http://worker"));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let connecting = endpoint.connect_with_connector(Connector::new(&security, PATIENCE));
            match self.runtime.block_on(connecting) {
                Ok(channel) => return Ok(WorkerClient::new(channel)),
                Err(e) if Instant::now() > deadline => return Err(e).with_context(|| format!("reach the worker at {address}")),
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }

    /// Gives orders to all workers at once.
    pub fn order(&self, config: &pb::Config) -> anyhow::Result<()> {
        self.order_these(&self.workers, config)
    }

    fn order_these(&self, workers: &[Worker], config: &pb::Config) -> anyhow::Result<()> {
        let orders = workers.iter().map(|worker| {
            let (mut control, config) = (worker.control.clone(), Some(config.clone()));
            async move { control.configure(pb::ConfigureRequest { config }).await }
        });
        self.runtime.block_on(futures::future::try_join_all(orders))?;
        Ok(())
    }

    /// Waits until every worker says what is waited for.
    pub fn until<T>(&self, says: impl Fn(&pb::StatusResponse) -> Option<T>) -> anyhow::Result<Vec<T>> {
        self.until_these(&self.workers, says)
    }

    fn until_these<T>(&self, workers: &[Worker], says: impl Fn(&pb::StatusResponse) -> Option<T>) -> anyhow::Result<Vec<T>> {
        let deadline = Instant::now() + WORK;
        let asked = workers.iter().map(|worker| {
            let (mut control, says) = (worker.control.clone(), &says);
            async move {
                loop {
                    let status = control.status(pb::StatusRequest {}).await?.into_inner();
                    if let Some(said) = says(&status) {
                        return Ok(said);
                    }
                    anyhow::ensure!(Instant::now() < deadline, "{}: not done within {WORK:?}: {status:?}", worker.node);
                    tokio::time::sleep(LOOK).await;
                }
            }
        });
        self.runtime.block_on(futures::future::try_join_all(asked))
    }

    /// The first worker lists the source, and all take the snapshot.
    pub fn list(&self, source: &pb::Source) -> anyhow::Result<String> {
        let first = &self.workers[..1];
        let config = |config| pb::Config { source: Some(source.clone()), ..config };
        let listing = pb::Config { generation: "list".to_owned(), listing_id: "1".to_owned(), ..pb::Config::default() };
        self.order_these(first, &config(listing))?;
        let listed =
            |s: &pb::StatusResponse| Some(s.listing.as_ref().filter(|l| l.phase() == Phase::Succeeded)?.snapshot.clone());
        let snapshot = self.until_these(first, listed)?.remove(0);
        self.order(&config(pb::Config { generation: "have".to_owned(), snapshot: snapshot.clone(), ..pb::Config::default() }))?;
        self.until(|s| s.snapshots.contains(&snapshot).then_some(()))?;
        Ok(snapshot)
    }

    /// All workers fetch their shares; returns when every byte is on disk.
    pub fn preload(&self, source: &pb::Source, snapshot: &str) -> anyhow::Result<()> {
        self.order(&pb::Config {
            generation: "preload".to_owned(),
            source: Some(source.clone()),
            snapshot: snapshot.to_owned(),
            preload: true,
            ..pb::Config::default()
        })?;
        self.until(|s| s.preload.as_ref().filter(|p| p.phase() == Phase::Succeeded && p.snapshot == snapshot).map(drop))?;
        Ok(())
    }

    /// The first worker's copy of a catalog.
    pub fn catalog(&self, snapshot: &str) -> anyhow::Result<Catalog<File>> {
        let path = self.disk(&self.workers[0].node).join("catalogs").join(snapshot);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        Catalog::open_as(file, snapshot).with_context(|| format!("open {}", path.display()))
    }

    pub fn roster(&self) -> Arc<Roster> {
        Arc::clone(&self.plane.roster)
    }

    /// As a worker of another node would ask.
    pub fn client(&self) -> anyhow::Result<Client> {
        let node = "reader".to_owned();
        let security = self.plane.security(&Identity::Worker { dataset: UID.to_owned(), node: node.clone() })?;
        let _runtime = self.runtime.enter();
        Ok(Client::with_options(&node, Options { security, ..Options::default() }))
    }

    /// Of all workers so far.
    pub fn cpu(&self) -> f64 {
        self.workers.iter().map(|w| w.daemon.cpu()).sum()
    }

    /// Bytes that each worker has given to peers so far, as its metrics say.
    pub fn served(&self) -> anyhow::Result<Vec<u64>> {
        let of = |worker: &Worker| {
            let address = SocketAddr::new(self.plane.roster.addresses[&worker.node], names::WORKER_ADMIN_PORT);
            let text = metrics(address).with_context(|| format!("read the metrics of {}", worker.node))?;
            let served = text.lines().filter(|line| line.starts_with("larder_worker_served_bytes_total{"));
            Ok(served.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum())
        };
        self.workers.iter().map(of).collect()
    }

    /// The most that one worker ever held, in bytes.
    pub fn peak_memory(&self) -> Option<u64> {
        self.workers.iter().filter_map(|w| w.daemon.peak_memory()).max()
    }

    /// Starts the mounter of a node: that of a worker, or one without.
    pub fn mounter(&self, n: u8, has_worker: bool) -> anyhow::Result<Mounter> {
        let worker = has_worker.then(|| &self.workers[usize::from(n)]);
        let (node, space) = worker.map_or_else(|| ("reader".to_owned(), None), |w| (w.node.clone(), w.space.as_ref()));
        let sockets = self.sockets(&node)?;
        let admin = |port| SocketAddr::new(loopback(n), port).to_string();
        let mut keeping = command(&self.program, space);
        keeping.arg("keeper").arg("--run-dir").arg(&sockets).args(["--admin-addr", &admin(names::KEEPER_ADMIN_PORT)]);
        let keeper = Daemon::start(&mut keeping, &self.dir.join(format!("{node}-keeper.log")), "keeper is ready", PATIENCE)?;
        let mut command = command(&self.program, space);
        command.arg("mounter").arg("--catalog-dir").arg(self.dir.join(format!("{node}-catalogs")));
        command.args(["--drain-seconds", "1", "--admin-addr", &admin(names::MOUNTER_ADMIN_PORT)]);
        self.common(&mut command, &node, &sockets, &Identity::Mounter { node: node.clone() })?;
        let log = self.dir.join(format!("{node}-mounter.log"));
        let daemon = Daemon::start(&mut command, &log, "mounter is ready", PATIENCE)?;
        Ok(Mounter { daemon, keeper, at: self.dir.join("mnt").join(node) })
    }

    /// Mounts a snapshot as the node plugin does, and waits until it answers.
    pub fn mount(&self, mounter: &Mounter, snapshot: &str) -> anyhow::Result<()> {
        let node = mounter.at.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let socket = names::mounter_socket(&Path::new(RUN).join(node));
        let mount = Mount {
            identity: names::mount_identity(UID, snapshot),
            dataset_uid: UID.to_owned(),
            snapshot: snapshot.to_owned(),
            uid: 0,
            gid: 0,
            file_mode: 0o444,
            dir_mode: 0o555,
            mode: Mode::Auto,
        };
        fs::create_dir_all(&mounter.at).with_context(|| format!("make {}", mounter.at.display()))?;
        if let Some((_, authority)) = &self.plane.authority {
            let token = authority.mount_token(UID, node, &Lifetimes::default())?.as_str().to_owned();
            self.ask(&socket, &Request::Permit { dataset_uid: UID.to_owned(), token }, None)?;
        }
        self.ask(&socket, &Request::Prepare(mount.clone()), None)?;
        let fuse = device::open()?;
        device::mount(fuse.as_fd(), &mounter.at, &mount.identity)?;
        self.ask(&socket, &Request::Serve(mount), Some(fuse.as_fd()))?;
        drop(fuse);
        let minor = minor(fs::metadata(&mounter.at).with_context(|| format!("look at {}", mounter.at.display()))?.dev());
        control::set_read_ahead(u32::try_from(minor)?, control::READ_AHEAD_KIB)?;
        let first = fs::read_dir(&mounter.at).and_then(|mut names| names.next().transpose());
        first.context("list the mount")?.context("the mount is empty")?;
        Ok(())
    }

    /// One that says that it may succeed later is asked again.
    fn ask(&self, socket: &Path, request: &Request, fd: Option<BorrowedFd<'_>>) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let reply = self.runtime.block_on(async {
                let conn = Conn::connect(socket).await?;
                conn.send(request, fd).await?;
                conn.recv().await
            })?;
            match reply.context("the mounter hung up")?.0 {
                Reply::Error { retry: true, .. } if Instant::now() < deadline => std::thread::sleep(LOOK),
                Reply::Error { message, .. } => anyhow::bail!("mounter: {message}"),
                _ => return Ok(()),
            }
        }
    }

    /// Ends the workers, and takes their disks away.
    pub fn stop(mut self) -> anyhow::Result<()> {
        for worker in &mut self.workers {
            worker.daemon.stop()?;
        }
        fs::remove_dir_all(&self.dir).with_context(|| format!("remove {}", self.dir.display()))
    }
}

/// What an admin port shows.
fn metrics(address: SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    anyhow::ensure!(text.lines().next().is_some_and(|status| status.contains(" 200 ")), "{address} does not show its metrics");
    Ok(text)
}

/// Of a node of a lab in this folder.
fn disk(lab: &Path, node: &str) -> PathBuf {
    lab.join(node).join(UID)
}

/// Where the first worker of a lab that is to be started finds catalogs.
pub(crate) fn catalogs(run: &Run<'_>) -> PathBuf {
    disk(&run.data.join("lab"), &node(0)).join("catalogs")
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(RUN);
    }
}

impl Mounter {
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Unmounts, and ends it.
    pub fn stop(mut self) -> anyhow::Result<()> {
        umount2(&self.at, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", self.at.display()))?;
        self.daemon.stop()?;
        self.keeper.stop()
    }
}
