//! The mounter daemon: serves FUSE descriptors that the node plugin has mounted.
//!
//! It needs no capability and no /dev/fuse. Node plugin (root) → socket → [`mounts`] → one session per descriptor.
//! When it is asked to stop it takes no new mounts and goes on serving for a while, because a mount whose mounter is gone
//! gives ENOTCONN; when it is killed, that is what they give.

mod ended;
mod mounts;
mod page;
mod socket;

use crate::{
    catalogs::Catalogs,
    metrics::Metrics,
    node::{Node, OpenFiles},
};
use anyhow::Context as _;
use larder_core::names;
use larder_fuse::fdpass::Listener;
use larder_members::Watch;
use larder_peer::Options;
use larder_telemetry::{Exposition, Health, Page, serve_admin_with};
use larder_trust::Tokens;
use mounts::Mounts;
pub use page::{MountPage, NodePage};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The node plugin's user.
const ROOT: u32 = 0;
/// Longest wait for the socket's folder, and how often it is tried.
const FOLDER_PATIENCE: Duration = Duration::from_secs(60);
const FOLDER_PAUSE: Duration = Duration::from_secs(1);

/// Flags of `larder mounter`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Name of this Node object
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// Namespace of the operator and the workers
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Folder of the sockets; the one of the mounter is `mounter/mounter.sock` in it
    #[arg(long, env = "LARDER_RUN_DIR", default_value = names::RUN_DIR)]
    pub run_dir: PathBuf,
    /// Folder for the catalogs of mounted snapshots; emptied at start
    #[arg(long, env = "LARDER_CATALOG_DIR", default_value = "/catalogs")]
    pub catalog_dir: PathBuf,
    /// Certificates
    #[command(flatten)]
    pub trust: larder_trust::Flags,
    /// Health and metrics
    #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], names::MOUNTER_ADMIN_PORT)))]
    pub admin_addr: SocketAddr,
    /// Threads that answer the requests of one mount
    #[arg(long, env = "LARDER_FUSE_THREADS", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub fuse_threads: u16,
    /// Complete local files kept open, all mounts together
    #[arg(long, env = "LARDER_OPEN_FILES", default_value_t = 4096)]
    pub open_files: usize,
    /// How long to go on serving after being asked to stop, if mounts are still in use (seconds)
    #[arg(long, env = "LARDER_DRAIN_SECONDS", default_value_t = 20)]
    pub drain_seconds: u64,
}

/// Runs until `shutdown`, and then until the last mount is gone or the time for it is over.
///
/// # Errors
/// What makes the daemon useless from the start: no API server to talk to, no socket, no folder for catalogs.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let client = kube::Client::try_default().await.context("connect to the API server")?;
    run_with(args, client, shutdown).await
}

/// As [`run`], with a client of the API server given.
///
/// # Errors
/// As [`run`].
pub async fn run_with(args: Args, client: kube::Client, shutdown: CancellationToken) -> anyhow::Result<()> {
    let open_files = open_files(args.open_files);
    let mut exposition = Exposition::default();
    let metrics = Metrics::register(&mut exposition);
    let (security, enrolment) = args.trust.security(|| larder_members::bundle(client.clone(), &args.namespace), None);
    let mut background = JoinSet::new();
    if let Some(enrolment) = enrolment {
        background.spawn(enrolment.run());
    }
    let tokens = Tokens::default();
    let options = Options { security: security.clone(), tokens: tokens.clone(), ..Options::default() };
    let node = Node {
        name: args.node.as_str().into(),
        peers: larder_peer::Client::with_options(&args.node, options),
        tokens,
        members: Watch::start(client, &args.namespace, None),
        files: Arc::new(OpenFiles::new(open_files)),
    };
    let catalogs = Catalogs::open(&args.catalog_dir, &args.run_dir, node.clone())?;
    let mounts = Arc::new(Mounts::new(node, catalogs, metrics, &args.run_dir, usize::from(args.fuse_threads)));
    let listener = listen(&names::mounter_socket(&args.run_dir)).await?;

    // The admin server outlives `shutdown`: metrics of a mounter that is draining are of interest.
    let (health, stopped) = (Health::default(), CancellationToken::new());
    let shown = Arc::clone(&mounts);
    let page: Page = Arc::new(move || serde_json::to_value(shown.page()).unwrap_or_default());
    // What is on this node can be read without one.
    health.set_waits_for(Some("a certificate of the operator"));
    let waiting = health.clone();
    background.spawn(async move {
        security.ready().await;
        waiting.set_waits_for(None);
    });
    let admin =
        tokio::spawn(serve_admin_with(args.admin_addr, health.clone(), exposition, vec![("/mounts", page)], stopped.clone()));
    health.set_ready(true);
    tracing::info!(node = args.node, open_files, "mounter is ready");

    shutdown.run_until_cancelled(socket::serve(listener, Arc::clone(&mounts))).await;
    health.set_ready(false);
    let drain = Duration::from_secs(args.drain_seconds);
    if tokio::time::timeout(drain, mounts.all_gone()).await.is_err() {
        tracing::warn!(mounts = mounts.list().len(), ?drain, "stopping although mounts are in use; their readers get ENOTCONN");
    }
    stopped.cancel();
    admin.await.context("serve admin endpoints")??;
    Ok(())
}

/// The folder is the node plugin's to make. When both start at once it may be a moment late, and the kubelet's restart back-off
/// would make that minutes.
async fn listen(socket: &Path) -> anyhow::Result<Listener> {
    let deadline = tokio::time::Instant::now() + FOLDER_PATIENCE;
    loop {
        match Listener::bind(socket, &[ROOT], 0o600) {
            Err(error) if tokio::time::Instant::now() < deadline => {
                tracing::warn!(%error, "waiting for the node plugin to make the folder of the socket");
                tokio::time::sleep(FOLDER_PAUSE).await;
            }
            result => return Ok(result?),
        }
    }
}

/// As many as wished for, but at most half of what the process may open: sockets and catalogs need some too.
fn open_files(wished: usize) -> usize {
    match larder_fuse::limits::raise_open_files() {
        Ok(limit) => wished.min(usize::try_from(limit / 2).unwrap_or(usize::MAX)).max(1),
        Err(error) => {
            tracing::warn!(%error, "raise the limit of open files; keeping few local files open");
            wished.clamp(1, 256)
        }
    }
}
