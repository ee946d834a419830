//! Starts, restarts and asks workers.

mod dataset;

pub(super) use dataset::{dataset, read_all, size};

use crate::{
    Listeners,
    connection::{Keys, Mounted},
    metrics::Metrics,
    serve,
    worker::{Disk, Settings, Worker},
};
use larder_cache::Floor;
use larder_core::{
    catalog::Catalog,
    key::ObjectKey,
    placement::{Member, Members},
};
use larder_fuse::{
    fdpass::{Conn, Listener},
    protocol::worker::{Reply, Request},
};
use larder_origin::{
    Folders,
    testing::{ACCESS_KEY, BUCKET, FakeS3},
};
use larder_peer::{Client, Fetched, ObjectRef, ObjectRequest, Options, ReadError, Roster};
use larder_proto::control::v1::{self as pb, Phase, worker_client::WorkerClient};
use larder_telemetry::Exposition;
use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Range,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

pub(super) const UID: &str = "0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f";

/// Orders that want nothing yet.
pub(super) fn orders(server: &FakeS3) -> pb::Config {
    let source = pb::Source {
        uri: format!("s3://{BUCKET}/demo/"),
        endpoint: server.endpoint(),
        credentials_generation: "1".into(),
        ..pb::Source::default()
    };
    pb::Config { generation: "g".into(), source: Some(source), ..pb::Config::default() }
}

/// One worker.
pub(super) struct Node {
    pub name: String,
    pub dir: PathBuf,
    pub credentials: PathBuf,
    pub socket: PathBuf,
    data: SocketAddr,
    control: SocketAddr,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
    exposition: Option<Exposition>,
    /// While it runs.
    worker: Weak<Worker>,
}

/// Some workers that know of each other.
pub(super) struct Cluster {
    pub nodes: Vec<Node>,
    roster: watch::Sender<Arc<Roster>>,
    client: Client,
    options: Options,
    _dir: TempDir,
}

/// Of a worker with this folder; the Secret is mounted beside it.
pub(super) fn settings(node: &str, dir: &Path, peer: Options) -> Settings {
    Settings {
        node: node.into(),
        dataset_uid: UID.into(),
        disks: vec![Disk { dir: dir.to_owned(), floor: Floor { percent: 0, at_least: 0 } }],
        keys: Keys::Mounted(Mounted {
            credentials: dir.with_file_name("credentials"),
            ca: dir.with_file_name("ca"),
            folders: Folders::Beneath(vec![dir.with_file_name("origin")]),
        }),
        lock_wait: Duration::from_secs(60),
        in_flight: 64 << 20,
        scrub: None,
        peer,
    }
}

/// Longest wait for what is to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until it is so.
pub(super) async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(tokio::time::Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn ip(n: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 1, n as u8 + 1))
}

impl Cluster {
    pub async fn start(count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut data = vec![TcpListener::bind((ip(0), 0)).await.unwrap()];
        let port = data[0].local_addr().unwrap().port();
        for n in 1..count {
            data.push(TcpListener::bind((ip(n), port)).await.unwrap());
        }
        let options = Options { port, whole: Duration::from_secs(20), ..Options::default() };
        let roster = watch::Sender::new(Arc::default());
        let mut nodes = Vec::new();
        for (n, data) in data.into_iter().enumerate() {
            let name = format!("gpu-{n}");
            let home = dir.path().join(&name);
            fs::create_dir_all(&home).unwrap();
            let mut node = Node {
                dir: home.join(UID),
                credentials: home.join("credentials"),
                socket: home.join("worker.sock"),
                data: data.local_addr().unwrap(),
                control: SocketAddr::from(([127, 0, 0, 1], 0)),
                stop: CancellationToken::new(),
                task: None,
                exposition: None,
                worker: Weak::new(),
                name,
            };
            node.mount_credentials(ACCESS_KEY, "1");
            node.start(data, roster.subscribe(), options.clone()).await;
            nodes.push(node);
        }
        let cluster = Self { nodes, roster, client: Client::with_options("client", options.clone()), options, _dir: dir };
        cluster.members(count);
        cluster
    }

    /// So many workers that have the snapshot, and nothing of its files.
    pub async fn with_snapshot(count: usize, server: &FakeS3) -> (Self, String) {
        let cluster = Self::start(count).await;
        let snapshot = cluster.take(server, orders(server)).await;
        (cluster, snapshot)
    }

    /// The first lists; all get these orders for the snapshot, and have its catalog then.
    pub async fn take(&self, server: &FakeS3, orders: pb::Config) -> String {
        let snapshot = self.nodes[0].list(server).await;
        for node in &self.nodes {
            node.configure(pb::Config { snapshot: snapshot.clone(), ..orders.clone() }).await;
            node.until(|s| s.snapshots.contains(&snapshot).then_some(())).await;
        }
        snapshot
    }

    /// The first so many nodes are members; who was not one before comes with a new list.
    pub fn members(&self, count: usize) {
        let old = self.roster.borrow().members.clone();
        let generation = old.generation + 1;
        let member = |n: &Node| {
            let new = Member { node: n.name.clone(), weight: 1, since: generation, leaving: false };
            old.members.iter().find(|m| m.node == n.name).cloned().unwrap_or(new)
        };
        let members = Members { generation, members: self.nodes[..count].iter().map(member).collect(), ..old };
        let addresses = self.nodes.iter().map(|n| (n.name.clone(), n.data.ip())).collect();
        self.roster.send_replace(Arc::new(Roster { members, addresses }));
    }

    /// Files larger than this lie in stripes.
    pub fn stripe(&self, bytes: u64) {
        self.roster.send_modify(|roster| {
            let roster = Arc::make_mut(roster);
            (roster.members.stripe_bytes, roster.members.generation) = (bytes, roster.members.generation + 1);
        });
    }

    pub async fn stop(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.stop.cancel();
        if let Some(task) = node.task.take() {
            task.await.unwrap();
        }
    }

    pub async fn restart(&mut self, n: usize) {
        self.stop(n).await;
        let node = &mut self.nodes[n];
        let data = TcpListener::bind(node.data).await.unwrap();
        node.stop = CancellationToken::new();
        node.start(data, self.roster.subscribe(), self.options.clone()).await;
    }

    /// Bytes and files that a node has to preload of a snapshot.
    pub fn share(&self, snapshot: &str, node: &Node) -> (u64, u64) {
        let (catalog, members) = (self.catalog(snapshot), &self.roster.borrow().members);
        let (mut bytes, mut files) = (0, 0);
        for index in catalog.file_indices().map(Result::unwrap) {
            let key = catalog.object_key(index).unwrap();
            for stripe in members.stripes(catalog.entry(index).unwrap().size()) {
                if members.holds(&members.place(&key, stripe.start), &node.name, 1) {
                    (bytes, files) = (bytes + stripe.end - stripe.start, files + u64::from(stripe.start == 0));
                }
            }
        }
        (bytes, files)
    }

    pub fn owner(&self, key: &ObjectKey) -> String {
        let members = &self.roster.borrow().members;
        members.owner(&members.place(key, 0)).unwrap().node.clone()
    }

    /// The first node's copy.
    pub fn catalog(&self, snapshot: &str) -> Catalog<File> {
        Catalog::open(File::open(self.nodes[0].dir.join("catalogs").join(snapshot)).unwrap()).unwrap()
    }

    /// What a client asks the owner.
    pub fn request(&self, snapshot: &str, index: u64, range: Range<u64>) -> ObjectRequest {
        let key = self.catalog(snapshot).object_key(index).unwrap();
        let (dataset_uid, snapshot, inode) = (UID.to_owned(), snapshot.to_owned(), index + 1);
        ObjectRequest { dataset_uid, snapshot, inode, key, range, stand_in: false, on_disk: false, check: false }
    }

    pub async fn read(&self, snapshot: &str, index: u64, range: Range<u64>) -> Result<Fetched, ReadError> {
        let key = self.catalog(snapshot).object_key(index).unwrap();
        let object = ObjectRef { dataset_uid: UID, snapshot, inode: index + 1, key };
        let roster = self.roster.borrow().clone();
        self.client.read(&roster, &object, range).await
    }
}

impl Node {
    async fn start(&mut self, data: TcpListener, roster: watch::Receiver<Arc<Roster>>, peer: Options) {
        let settings = settings(&self.name, &self.dir, peer);
        let mut exposition = Exposition::default();
        let metrics = Metrics::register(&mut exposition);
        self.exposition = Some(exposition);
        let opening = tokio::task::spawn_blocking(move || Worker::open(settings, roster, metrics));
        let worker = Arc::new(opening.await.unwrap().unwrap());
        self.worker = Arc::downgrade(&worker);
        let control = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.control = control.local_addr().unwrap();
        let me = fs::metadata(self.credentials.parent().unwrap()).map(|m| std::os::unix::fs::MetadataExt::uid(&m)).unwrap();
        let local = Listener::bind(&self.socket, &[me], 0o600).unwrap();
        let stop = self.stop.clone();
        self.task = Some(tokio::spawn(async move {
            serve(Arc::clone(&worker), Listeners { data, control, local }, stop).await.unwrap();
            worker.save_state().await.unwrap();
            // Fetches that nobody waits for hold the worker, and with it the lock, until they end.
            while Arc::strong_count(&worker) > 1 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }));
    }

    /// The worker itself; not to be held for long.
    pub fn worker(&self) -> Arc<Worker> {
        self.worker.upgrade().unwrap()
    }

    /// As the kubelet would.
    pub fn mount_credentials(&self, access_key: &str, generation: &str) {
        fs::create_dir_all(&self.credentials).unwrap();
        for (name, text) in [("accessKeyId", access_key), ("secretAccessKey", "secret"), ("generation", generation)] {
            fs::write(self.credentials.join(name), text).unwrap();
        }
    }

    pub async fn control(&self) -> WorkerClient<Channel> {
        WorkerClient::connect(format!("http://{}", self.control)).await.unwrap()
    }

    pub async fn configure(&self, config: pb::Config) {
        self.control().await.configure(pb::ConfigureRequest { config: Some(config) }).await.unwrap();
    }

    pub async fn status(&self) -> pb::StatusResponse {
        self.control().await.status(pb::StatusRequest {}).await.unwrap().into_inner()
    }

    /// Asks for the status until it says what is waited for.
    pub async fn until<T>(&self, says: impl Fn(pb::StatusResponse) -> Option<T>) -> T {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut control = self.control().await;
        loop {
            let status = control.status(pb::StatusRequest {}).await.unwrap().into_inner();
            if let Some(said) = says(status.clone()) {
                return said;
            }
            assert!(tokio::time::Instant::now() < deadline, "{status:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn list(&self, server: &FakeS3) -> String {
        self.configure(pb::Config { listing_id: "l1".into(), ..orders(server) }).await;
        self.listed().await.snapshot
    }

    /// The listing that was ordered, when it has succeeded.
    pub async fn listed(&self) -> pb::Listing {
        self.until(|s| s.listing.filter(|l| l.phase() == Phase::Succeeded)).await
    }

    /// The preload that was ordered, when it has succeeded.
    pub async fn preloaded(&self) -> pb::Preload {
        self.until(|s| s.preload.filter(|p| p.phase() == Phase::Succeeded)).await
    }

    /// A share, when it is that one and is here.
    pub async fn has_share(&self, (bytes, files): (u64, u64)) -> pb::Preload {
        let is_that = |p: &pb::Preload| (p.phase(), p.bytes_total, p.files_total) == (Phase::Succeeded, bytes, files);
        self.until(|s| s.preload.filter(is_that)).await
    }

    pub async fn list_and_preload(&self, server: &FakeS3) -> String {
        let snapshot = self.list(server).await;
        self.configure(pb::Config { snapshot: snapshot.clone(), preload: true, ..orders(server) }).await;
        self.preloaded().await;
        snapshot
    }

    /// Reports reads of a snapshot as a mounter would.
    pub async fn follow(&self, snapshot: &str) -> Follower {
        Follower { conn: self.connect().await, snapshot: snapshot.to_owned() }
    }

    /// Waits until a counter is at a value.
    pub async fn until_metric(&self, name: &str, value: u64) {
        let line = format!("{name} {value}\n");
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let text = self.exposition.as_ref().unwrap().text().unwrap();
            if text.contains(&line) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{line}{text}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// To the socket for the mounter.
    pub async fn connect(&self) -> Conn {
        Conn::connect(&self.socket).await.unwrap()
    }

    pub async fn ask(&self, request: Request) -> (Reply, Option<OwnedFd>) {
        let conn = self.connect().await;
        conn.send(&request, None).await.unwrap();
        conn.recv().await.unwrap().unwrap()
    }
}

/// A mounter's connection for reports.
pub(super) struct Follower {
    conn: Conn,
    snapshot: String,
}

impl Follower {
    pub async fn tell(&self, files: impl IntoIterator<Item = (u64, u64)>) {
        let report = Request::Reads { snapshot: self.snapshot.clone(), files: files.into_iter().collect() };
        self.conn.send(&report, None).await.unwrap();
    }

    /// What is told next.
    pub async fn arrived(&self) -> Vec<u64> {
        let told = tokio::time::timeout(PATIENCE, self.conn.recv()).await.expect("nothing arrived");
        match told.unwrap().unwrap() {
            (Reply::Arrived { inodes }, None) => inodes,
            other => panic!("{other:?}"),
        }
    }
}
