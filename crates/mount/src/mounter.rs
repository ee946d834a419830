//! The mounter daemon: serves FUSE descriptors that the node plugin has mounted.
//!
//! It needs no capability and no /dev/fuse. Node plugin (root) → socket → [`mounts`] → one session per descriptor.
//!
//! ```text
//! standing by ──flock──► taking over what others hold ──► serving ──► (killed, or asked to stop) the next one
//! ```
//!
//! One process of the node serves; what it needs to know of each mount is held by the keeper and the node plugin too, so that
//! the next one goes on: see `docs/design/takeover.md`. As long as the keeper does not hold it, a process that is asked to
//! stop goes on serving for a while, because its mounts would give ENOTCONN.

mod ended;
mod kept;
mod mounts;
mod page;
mod socket;

use crate::{
    catalogs::Catalogs,
    metrics::Metrics,
    node::{Node, OpenFiles},
    supervisor,
};
use anyhow::Context as _;
use kept::Keeping;
use larder_core::names;
use larder_fuse::fdpass::Listener;
use larder_keeper::client::Held;
use larder_members::Watch;
use larder_peer::Options;
use larder_telemetry::{Exposition, Health, Page, serve_admin_with};
use larder_trust::Tokens;
use mounts::Mounts;
pub use page::{MountPage, NodePage};
use std::{
    fs::{File, TryLockError},
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
/// Longest wait for the keeper at start. It may come later, and be given sessions by the node plugin: that is looked for this
/// often.
const LOOK: Duration = Duration::from_secs(1);

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
    /// Serve in this very process; without, it starts one that serves, and the next one when that one dies
    #[arg(long, hide = true)]
    pub serve: bool,
    /// How long to go on serving after being asked to stop, if mounts are in use that nobody else holds (seconds)
    #[arg(long, env = "LARDER_DRAIN_SECONDS", default_value_t = 20)]
    pub drain_seconds: u64,
}

/// Runs until `shutdown`, and then as long as mounts would end with this process.
///
/// # Errors
/// What makes the daemon useless from the start: no API server to talk to, no socket, no folder for catalogs.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    if !args.serve {
        let arguments = std::env::args_os().skip(1).chain(["--serve".into()]).collect();
        return supervisor::supervise(arguments, shutdown).await;
    }
    // A thread that is missing is a mount that hangs; the next process has all of them.
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        told(panic);
        std::process::abort();
    }));
    supervisor::beat().context("tell the supervisor that this process is alive")?;
    let client = kube::Client::try_default().await.context("connect to the API server")?;
    run_with(args, client, shutdown).await
}

/// As [`run`], in this process, with a client of the API server given.
///
/// # Errors
/// As [`run`].
pub async fn run_with(args: Args, client: kube::Client, shutdown: CancellationToken) -> anyhow::Result<()> {
    let open_files = open_files(args.open_files);
    let mut exposition = Exposition::default();
    let metrics = Metrics::register(&mut exposition);
    // From the start, so that a process that stands by has it all when keeper and mounter die together.
    let keeping = Keeping::new(Held::start(names::keeper_socket(&args.run_dir)));
    // The containers of a pod share its ports.
    let Some(_pod) = lock(&args.catalog_dir.with_extension("lock"), &shutdown).await? else { return Ok(()) };
    let identity = names::mounter_identity(&args.run_dir);
    let stored = larder_trust::store::load(&identity);
    let stored = stored.inspect_err(|error| tracing::info!(%error, "goes on without stored credentials")).ok().flatten();
    let (security, enrolment) = args.trust.security(|| larder_members::bundle(client.clone(), &args.namespace), stored);
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
    let threads = usize::from(args.fuse_threads);
    let mounts = Arc::new(Mounts::new(node, catalogs, metrics, &args.run_dir, threads, keeping.clone()));

    // The admin server outlives `shutdown`: metrics of a mounter that is draining are of interest.
    let (health, stopped) = (Health::default(), CancellationToken::new());
    let shown = Arc::clone(&mounts);
    let page: Page = Arc::new(move || serde_json::to_value(shown.page()).unwrap_or_default());
    // What is on this node can be read without one.
    health.set_waits_for(Some("a certificate of the operator"));
    let (waiting, certified) = (health.clone(), security.clone());
    background.spawn(async move {
        certified.ready().await;
        waiting.set_waits_for(None);
    });
    let admin =
        tokio::spawn(serve_admin_with(args.admin_addr, health.clone(), exposition, vec![("/mounts", page)], stopped.clone()));
    // Ready to take over: when it is an update, the mounter before this one is asked to end now.
    health.set_ready(true);
    let serving = names::mounter_lock(&args.run_dir);
    let waiting = lock(&serving, &shutdown).await?;
    let Some(_serving) = waiting else {
        stopped.cancel();
        return admin.await.context("serve admin endpoints")?.map_err(Into::into);
    };
    if let larder_trust::Security::Mutual(held) = security {
        background.spawn(larder_trust::store::keep(held, identity));
    }
    if !keeping.fetch(LOOK).await {
        tracing::warn!("the keeper of this node does not answer yet; is its pod (DaemonSet larder-keeper) running?");
    }
    mounts.take_over().await;
    let listener = listen(&names::mounter_socket(&args.run_dir)).await?;
    background.spawn(keep_taking_over(Arc::clone(&mounts), keeping.clone()));
    tracing::info!(node = args.node, open_files, "mounter is ready");

    let broken = mounts.broken();
    tokio::select! {
        () = socket::serve(listener, Arc::clone(&mounts)) => {}
        () = shutdown.cancelled() => {}
        () = broken.cancelled() => anyhow::bail!("a FUSE session broke; the next process goes on with it"),
    }
    health.set_ready(false);
    let drain = Duration::from_secs(args.drain_seconds);
    if !keeping.are_held().await && tokio::time::timeout(drain, mounts.all_gone()).await.is_err() {
        tracing::warn!(mounts = mounts.list().len(), ?drain, "stopping although mounts are in use; their readers get ENOTCONN");
    }
    stopped.cancel();
    admin.await.context("serve admin endpoints")??;
    Ok(())
}

/// Sessions that the node plugin has given to a keeper that came later than this process.
async fn keep_taking_over(mounts: Arc<Mounts>, keeping: Keeping) {
    loop {
        tokio::time::sleep(LOOK).await;
        if keeping.fetch(LOOK).await {
            mounts.take_over().await;
        }
    }
}

/// Waits until no other process has the file locked; none when it is to stop before that. The kernel gives the lock back when the
/// process is dead, and not before.
async fn lock(path: &Path, shutdown: &CancellationToken) -> anyhow::Result<Option<File>> {
    let deadline = tokio::time::Instant::now() + FOLDER_PATIENCE;
    let file = loop {
        match File::options().create(true).truncate(false).write(true).open(path) {
            // The folder is the node plugin's to make.
            Err(error) if tokio::time::Instant::now() < deadline => {
                tracing::warn!(path = %path.display(), %error, "waiting for the folder of a lock");
                tokio::time::sleep(FOLDER_PAUSE).await;
            }
            opened => break opened.with_context(|| format!("open {}", path.display()))?,
        }
    };
    match file.try_lock() {
        Ok(()) => return Ok(Some(file)),
        Err(TryLockError::WouldBlock) => tracing::info!(path = %path.display(), "another process serves; standing by"),
        Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("lock {}", path.display())),
    }
    let name = path.to_owned();
    // In a thread that may stay behind when this process ends.
    let (locked, wait) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || drop(locked.send(file.lock().map(|()| file))));
    match shutdown.run_until_cancelled(wait).await {
        None => Ok(None),
        Some(locked) => {
            let locked = locked.context("wait for a lock")?;
            locked.map(Some).with_context(|| format!("lock {}", name.display()))
        }
    }
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
