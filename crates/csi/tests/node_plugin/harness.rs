//! A node in a folder: kubelet's folder, host's root, node plugin and mounter in this process, a worker and an API server made
//! of a few lines.
#![expect(clippy::unwrap_used, reason = "what a test cannot go on without")]

use larder_core::catalog::{Builder, Catalog, Listed, digest};
use larder_fuse::{
    control, device,
    fdpass::{Conn, Listener},
    mountinfo::{self, Mount},
    protocol::{mounter, worker},
};
use larder_proto::{
    csi::v1::{
        CreateVolumeRequest, NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeUnpublishVolumeRequest, VolumeCapability,
        VolumeUsage,
        controller_client::ControllerClient,
        identity_client::IdentityClient,
        node_client::NodeClient,
        volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
    },
    pluginregistration::v1::registration_client::RegistrationClient,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};
use tokio::{net::UnixStream, sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

pub const UID: &str = "0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f";
const RUN: &str = "r";
const WATCHDOG: Duration = Duration::from_secs(100);
/// Longest wait for a daemon to be there.
const START: Duration = Duration::from_secs(20);

/// The dataset as the API server has it.
#[derive(Default)]
struct Dataset {
    object: Mutex<Option<Value>>,
    looked_at: Notify,
    events: Mutex<Vec<Value>>,
}

type Api = Arc<Dataset>;
type Snapshots = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

pub struct Lab {
    base: tempfile::TempDir,
    api: Api,
    snapshots: Snapshots,
    plugin: (CancellationToken, JoinHandle<anyhow::Result<()>>),
    mounter: (CancellationToken, JoinHandle<anyhow::Result<()>>),
    worker: JoinHandle<()>,
    _watchdog: mpsc::Sender<()>,
}

/// The error number of what must fail.
pub fn errno<T>(result: io::Result<T>) -> i32 {
    result.err().expect("succeeded, but must not").raw_os_error().expect("an error of the kernel")
}

/// As the mounter that made the connection did, before it went away.
pub fn answer_init(fuse: impl AsFd) {
    const INIT: u32 = 26;
    let mut fuse = File::from(fuse.as_fd().try_clone_to_owned().unwrap());
    let mut request = vec![0; 1 << 20];
    let length = fuse.read(&mut request).unwrap();
    assert!(length >= 48 && request[4..8] == INIT.to_ne_bytes());
    // Header: length, error, request; then version 7.31 and limits that the kernel takes.
    let mut reply = vec![0; 80];
    reply[..4].copy_from_slice(&80u32.to_ne_bytes());
    reply[8..16].copy_from_slice(&request[8..16]);
    for (at, value) in [(16, 7u32), (20, 31), (36, 1 << 12), (40, 1)] {
        reply[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    fuse.write_all(&reply).unwrap();
}

pub fn capability(access_type: AccessType) -> VolumeCapability {
    let access_mode = Some(AccessMode { mode: Mode::MultiNodeReaderOnly.into() });
    VolumeCapability { access_mode, access_type: Some(access_type) }
}

impl Lab {
    /// None where FUSE cannot be mounted.
    pub async fn start() -> Option<Self> {
        let base = tempfile::Builder::new().prefix("l").tempdir_in("/tmp").unwrap();
        if let Err(e) = fuse_works(base.path()) {
            assert!(!std::env::var("CI").is_ok_and(|v| v == "true"), "FUSE does not work here: {e}");
            eprintln!("SKIPPED, NOTHING WAS TESTED: FUSE does not work here: {e}");
            return None;
        }
        let watchdog = start_watchdog(base.path());
        let _ = tokio::task::spawn_blocking(|| larder_telemetry::init("off", larder_telemetry::Format::Json)).await;
        for folder in ["k/pods", "h/r/mounter", "h/r/worker", "h/mnt/nvme0", "c"] {
            fs::create_dir_all(base.path().join(folder)).unwrap();
        }
        // As on every node: what is mounted in one place shows in others.
        let kubelet = base.path().join("k");
        mount(Some(&kubelet), &kubelet, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        mount(None::<&str>, &kubelet, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
        let (api, snapshots) = (Api::default(), Snapshots::default());
        let worker = start_worker(base.path(), &snapshots);
        let mounter = start_mounter(base.path()).await;
        let plugin = start_plugin(base.path(), &api).await;
        let lab = Self { base, api, snapshots, plugin, mounter, worker, _watchdog: watchdog };
        lab.set_snapshot(&["dir/a", "b"]);
        Some(lab)
    }

    pub fn kubelet(&self) -> PathBuf {
        self.base.path().join("k")
    }

    pub fn csi_folder(&self) -> PathBuf {
        self.kubelet().join("plugins/csi.larder.dev")
    }

    /// Where a pod's volume goes; the kubelet makes the folder above.
    pub fn target(&self, pod: &str) -> PathBuf {
        let volume = self.kubelet().join("pods").join(pod).join("pv");
        fs::create_dir_all(&volume).unwrap();
        volume.join("mount")
    }

    pub fn request(&self, target: &Path) -> NodePublishVolumeRequest {
        let mut volume_context = parameters();
        let pod = [("namespace", "vision"), ("name", "reader"), ("uid", UID)];
        volume_context.extend(pod.map(|(key, value)| (format!("csi.storage.k8s.io/pod.{key}"), value.to_owned())));
        NodePublishVolumeRequest {
            volume_id: format!("{UID}.{UID}"),
            target_path: target.to_str().unwrap().to_owned(),
            volume_capability: Some(capability(AccessType::Mount(MountVolume::default()))),
            volume_context,
            ..Default::default()
        }
    }

    pub fn create_request(&self, name: &str) -> CreateVolumeRequest {
        CreateVolumeRequest {
            name: name.to_owned(),
            volume_capabilities: vec![capability(AccessType::Mount(MountVolume::default()))],
            parameters: parameters(),
            ..Default::default()
        }
    }

    pub async fn publish(&self, target: &Path) -> Result<(), Status> {
        self.node().await.node_publish_volume(self.request(target)).await.map(drop)
    }

    /// As the kubelet does it: what is unavailable on a busy machine is asked for again.
    pub async fn publish_at(&self, pod: &str) -> PathBuf {
        let target = self.target(pod);
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match self.publish(&target).await {
                Err(status) if status.code() == Code::Unavailable && Instant::now() < deadline => {}
                outcome => break outcome.unwrap(),
            }
        }
        target
    }

    pub async fn unpublish(&self, target: &Path) -> Result<(), Status> {
        let request =
            NodeUnpublishVolumeRequest { volume_id: format!("{UID}.{UID}"), target_path: target.to_str().unwrap().to_owned() };
        self.node().await.node_unpublish_volume(request).await.map(drop)
    }

    pub async fn stats(&self, target: &Path) -> Result<Vec<VolumeUsage>, Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: format!("{UID}.{UID}"),
            volume_path: target.to_str().unwrap().to_owned(),
            ..Default::default()
        };
        Ok(self.node().await.node_get_volume_stats(request).await?.into_inner().usage)
    }

    pub async fn node(&self) -> NodeClient<Channel> {
        self.node_at("csi.sock").await
    }

    pub async fn node_at(&self, socket: &str) -> NodeClient<Channel> {
        NodeClient::new(connect(self.csi_folder().join(socket)).await)
    }

    /// On the socket that has the node service too, or on its own.
    pub async fn controller(&self, socket: &str) -> ControllerClient<Channel> {
        ControllerClient::new(connect(self.csi_folder().join(socket)).await)
    }

    pub async fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(connect(self.csi_folder().join("csi.sock")).await)
    }

    pub async fn registration(&self) -> RegistrationClient<Channel> {
        RegistrationClient::new(connect(self.kubelet().join("plugins_registry/larder@csi.larder.dev-reg.sock")).await)
    }

    /// Off the runtime's threads: they answer what is read here.
    pub async fn read(&self, target: &Path, path: &str) -> io::Result<Vec<u8>> {
        let path = target.join(path);
        tokio::task::spawn_blocking(move || fs::read(path)).await.unwrap()
    }

    pub fn content(&self, path: &str) -> Vec<u8> {
        content(path)
    }

    pub fn layers(&self, target: &Path) -> Vec<Mount> {
        let table = mountinfo::read().unwrap();
        mountinfo::at(&table, target).into_iter().cloned().collect()
    }

    /// The file of the only record.
    pub fn record(&self) -> PathBuf {
        let mut records = fs::read_dir(self.csi_folder().join("state")).unwrap().map(|entry| entry.unwrap().path());
        let record = records.next().unwrap();
        assert!(records.next().is_none());
        record
    }

    /// A folder beside the kubelet's.
    pub fn outside(&self) -> PathBuf {
        let outside = self.base.path().join("outside");
        fs::create_dir_all(&outside).unwrap();
        outside
    }

    pub fn mounter_socket(&self) -> PathBuf {
        self.base.path().join("h").join(RUN).join("mounter/mounter.sock")
    }

    pub fn superblock(&self, identity: &str) -> PathBuf {
        self.csi_folder().join("mounts").join(identity)
    }

    /// Mount options of the topmost layer.
    pub fn options(&self, target: &Path) -> Vec<String> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().rfind(|l| l.split(' ').nth(4) == target.to_str()).unwrap();
        line.split(' ').nth(5).unwrap().split(',').map(str::to_owned).collect()
    }

    fn set_snapshot(&self, paths: &[&str]) {
        let mut builder = Builder::new("s3://bucket/");
        for path in paths {
            let size = content(path).len() as u64;
            builder.push(Listed { path: (*path).to_owned(), size, mtime_ns: 0, version: "v".into() });
        }
        let (bytes, _) = builder.finish();
        let id = digest(&bytes);
        self.snapshots.lock().unwrap().insert(id.clone(), bytes);
        *self.api.object.lock().unwrap() = Some(dataset(json!({"snapshot": {"id": id, "files": paths.len(), "bytes": 0}})));
    }

    pub fn next_snapshot(&self, path: &str) {
        self.set_snapshot(&["dir/a", "b", path]);
    }

    pub fn set_ready(&self) {
        self.set_snapshot(&["dir/a", "b"]);
    }

    pub fn set_not_ready(&self, reason: &str, message: &str) {
        let condition = json!({"type": "Ready", "status": "False", "reason": reason, "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"});
        *self.api.object.lock().unwrap() = Some(dataset(json!({"conditions": [condition]})));
    }

    pub fn lose_dataset(&self) {
        *self.api.object.lock().unwrap() = None;
    }

    /// Waits until the plugin has looked at the dataset once more.
    pub async fn until_looked_at(&self) {
        tokio::time::timeout(START, self.api.looked_at.notified()).await.expect("nobody looks at the dataset");
    }

    /// Waits for Events with this reason; returns kind and name of what they regard, and their notes.
    pub async fn until_told(&self, reason: &str, count: usize) -> Vec<(String, String, String)> {
        let deadline = tokio::time::Instant::now() + START;
        loop {
            let events = self.api.events.lock().unwrap().clone();
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let told = events.iter().filter(|event| event["reason"] == reason);
            let told: Vec<_> = told
                .map(|event| (text(&event["regarding"]["kind"]), text(&event["regarding"]["name"]), text(&event["note"])))
                .collect();
            if told.len() >= count {
                return told;
            }
            assert!(tokio::time::Instant::now() < deadline, "only these Events came: {events:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn restart_plugin(&mut self) {
        self.plugin.0.cancel();
        (&mut self.plugin.1).await.unwrap().unwrap();
        self.plugin = start_plugin(self.base.path(), &self.api).await;
    }

    /// Stops the plugin, and says why the next one does not start.
    pub async fn refused_plugin(&mut self) -> String {
        self.plugin.0.cancel();
        (&mut self.plugin.1).await.unwrap().unwrap();
        self.plugin = run_plugin(self.base.path(), &self.api);
        let ended = tokio::time::timeout(START, &mut self.plugin.1).await.expect("it runs");
        format!("{:#}", ended.unwrap().unwrap_err())
    }

    /// One after another that has ended.
    pub async fn next_plugin(&mut self) {
        self.plugin = start_plugin(self.base.path(), &self.api).await;
    }

    pub fn stop_worker(&mut self) {
        self.worker.abort();
        fs::remove_file(worker_socket(self.base.path())).unwrap();
    }

    pub async fn stop_mounter(&mut self) {
        self.mounter.0.cancel();
        (&mut self.mounter.1).await.unwrap().unwrap();
    }

    /// One after another that has ended.
    pub async fn next_mounter(&mut self) {
        self.mounter = start_mounter(self.base.path()).await;
    }

    /// In its place, one that takes every call and answers none.
    pub async fn stall_mounter(&mut self) -> JoinHandle<()> {
        self.stop_mounter().await;
        let listener = Listener::bind(&self.mounter_socket(), &[0], 0o600).unwrap();
        tokio::spawn(async move {
            let mut held = Vec::new();
            loop {
                held.push(listener.accept().await);
            }
        })
    }

    /// No mount but the shroud, no record, no volume, no session is left.
    pub async fn expect_clean(&self) {
        let mounts = mounts_beneath(self.base.path()).into_iter().filter(|m| m.fs_type == device::FS_TYPE);
        let mounts: Vec<_> = mounts.map(|m| (m.source, m.target)).collect();
        assert_eq!(mounts, [("larder-shroud".to_owned(), self.csi_folder().join("shroud"))]);
        for folder in ["state", "mounts", "volumes"] {
            let left: Vec<_> = fs::read_dir(self.csi_folder().join(folder)).unwrap().collect();
            assert!(left.is_empty(), "{folder}: {left:?}");
        }
        if self.mounter.0.is_cancelled() {
            return;
        }
        // Sessions end a moment after their superblock.
        let deadline = tokio::time::Instant::now() + START;
        loop {
            let conn = Conn::connect(&self.mounter_socket()).await.unwrap();
            conn.send(&mounter::Request::List {}, None).await.unwrap();
            let (reply, _) = conn.recv::<mounter::Reply>().await.unwrap().unwrap();
            let catalogs = fs::read_dir(self.base.path().join("c")).unwrap().count();
            if reply == mounter::Reply::Mounts(Vec::new()) && catalogs == 0 {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{reply:?}, {catalogs} catalogs");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn stop(mut self) {
        self.plugin.0.cancel();
        (&mut self.plugin.1).await.unwrap().unwrap();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.plugin.0.cancel();
        self.mounter.0.cancel();
        self.worker.abort();
        tear_down(self.base.path());
    }
}

fn mounts_beneath(base: &Path) -> Vec<Mount> {
    mountinfo::read().unwrap().into_iter().filter(|m| m.target.starts_with(base)).collect()
}

fn tear_down(base: &Path) {
    for mount in mounts_beneath(base).into_iter().rev() {
        let _ = umount2(&mount.target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        if mount.fs_type == device::FS_TYPE {
            let _ = control::abort(mount.device.1);
        }
    }
}

fn start_watchdog(base: &Path) -> mpsc::Sender<()> {
    let (off, wait) = mpsc::channel::<()>();
    let base = base.to_owned();
    std::thread::spawn(move || {
        if wait.recv_timeout(WATCHDOG) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("watchdog: the test hangs; taking its mounts down");
            tear_down(&base);
        }
    });
    off
}

fn fuse_works(base: &Path) -> Result<(), device::DeviceError> {
    let fuse = device::open()?;
    device::mount(fuse.as_fd(), base, "try")?;
    drop(fuse);
    umount2(base, MntFlags::MNT_DETACH).unwrap();
    Ok(())
}

/// What names the dataset.
fn parameters() -> HashMap<String, String> {
    [("larder.dev/dataset-namespace", "vision"), ("larder.dev/dataset-name", "imagenet")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

fn content(path: &str) -> Vec<u8> {
    path.as_bytes().repeat(200)
}

fn dataset(status: Value) -> Value {
    json!({
        "apiVersion": "larder.dev/v1alpha1", "kind": "CacheDataset",
        "metadata": {"name": "imagenet", "namespace": "vision", "uid": UID},
        "spec": {"source": {"uri": "s3://bucket/", "credentials": {"anonymous": {}}}, "cache": {"tiers": [{"name": "nvme", "quota": "1Ti"}]}},
        "status": status,
    })
}

/// Answers `get` of the dataset and takes Events; everything else is not found.
fn client(api: &Api) -> kube::Client {
    let api = Arc::clone(api);
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let api = Arc::clone(&api);
        async move { answer(&api, request).await }
    });
    kube::Client::new(service, "default")
}

async fn answer(
    api: &Api,
    request: http::Request<kube::client::Body>,
) -> Result<http::Response<kube::client::Body>, Infallible> {
    if request.uri().path() == "/apis/events.k8s.io/v1/namespaces/vision/events" {
        let event = request.into_body().collect_bytes().await.unwrap();
        api.events.lock().unwrap().push(serde_json::from_slice(&event).unwrap());
        return Ok(http::Response::builder().status(201).body(event.to_vec().into()).unwrap());
    }
    let wanted = request.uri().path() == "/apis/larder.dev/v1alpha1/namespaces/vision/cachedatasets/imagenet";
    let object = api.object.lock().unwrap().clone().filter(|_| wanted);
    if wanted {
        api.looked_at.notify_waiters();
    }
    let (status, body) = match object {
        Some(object) => (200, object),
        None => (
            404,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "message": "not found", "code": 404}),
        ),
    };
    let body = kube::client::Body::from(serde_json::to_vec(&body).unwrap());
    Ok(http::Response::builder().status(status).body(body).unwrap())
}

fn worker_socket(base: &Path) -> PathBuf {
    base.join("h/r/worker").join(format!("{UID}.sock"))
}

/// A worker that has everything on its disk.
fn start_worker(base: &Path, snapshots: &Snapshots) -> JoinHandle<()> {
    let listener = Listener::bind(&worker_socket(base), &[0], 0o600).unwrap();
    let snapshots = Arc::clone(snapshots);
    let disk = base.join("disk");
    fs::create_dir_all(&disk).unwrap();
    tokio::spawn(async move {
        loop {
            let conn = listener.accept().await;
            let (snapshots, disk) = (Arc::clone(&snapshots), disk.clone());
            tokio::spawn(async move {
                while let Ok(Some((request, _))) = conn.recv::<worker::Request>().await {
                    let (name, bytes) = match request {
                        worker::Request::Catalog { digest } => (digest.clone(), snapshots.lock().unwrap()[&digest].clone()),
                        worker::Request::Open { snapshot, inode } => {
                            let bytes = snapshots.lock().unwrap()[&snapshot].clone();
                            (format!("{snapshot}-{inode}"), content(&Catalog::open(bytes).unwrap().path(inode - 1).unwrap()))
                        }
                        // It copies nothing: everything is here.
                        worker::Request::Reads { .. } => continue,
                    };
                    let path = disk.join(name);
                    if !path.exists() {
                        fs::write(&path, &bytes).unwrap();
                    }
                    let file = File::open(path).unwrap();
                    conn.send(&worker::Reply::File {}, Some(file.as_fd())).await.unwrap();
                }
            });
        }
    })
}

async fn start_mounter(base: &Path) -> (CancellationToken, JoinHandle<anyhow::Result<()>>) {
    let args = larder_mount::mounter::Args {
        node: "gpu-1".into(),
        namespace: "larder-system".into(),
        run_dir: base.join("h").join(RUN),
        catalog_dir: base.join("c"),
        trust: larder_trust::Flags::without_certificates(),
        admin_addr: ([127, 0, 0, 1], 0).into(),
        fuse_threads: 2,
        in_flight: larder_fuse::journal::InFlight::Auto,
        open_files: 16,
        serve: true,
        drain_seconds: 0,
    };
    let socket = args.run_dir.join("mounter/mounter.sock");
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(larder_mount::mounter::run_with(args, client(&Api::default()), shutdown.clone()));
    wait_for(&socket).await;
    (shutdown, task)
}

async fn start_plugin(base: &Path, api: &Api) -> (CancellationToken, JoinHandle<anyhow::Result<()>>) {
    let plugin = run_plugin(base, api);
    wait_for(&base.join("k/plugins_registry/larder@csi.larder.dev-reg.sock")).await;
    plugin
}

fn run_plugin(base: &Path, api: &Api) -> (CancellationToken, JoinHandle<anyhow::Result<()>>) {
    let args = larder_csi::Args {
        node: "gpu-1".into(),
        kubelet_dir: base.join("k"),
        host_root: base.join("h"),
        run_dir: Path::new("/").join(RUN),
        tiers: vec!["nvme=/mnt/nvme0".into()],
        namespace: "larder-system".into(),
        trust: larder_trust::Flags::without_certificates(),
        abort_seconds: 3,
        admin_addr: ([127, 0, 0, 1], 0).into(),
    };
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(larder_csi::run_with(args, client(api), shutdown.clone()));
    (shutdown, task)
}

async fn wait_for(socket: &Path) {
    let deadline = tokio::time::Instant::now() + START;
    while !socket.exists() {
        assert!(tokio::time::Instant::now() < deadline, "{} does not come", socket.display());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// As the kubelet does: authority `localhost`.
async fn connect(socket: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { Ok::<_, io::Error>(hyper_util::rt::TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap()
}
