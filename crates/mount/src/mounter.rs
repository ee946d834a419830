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
mod lock;
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
use larder_fuse::{fdpass::Listener, journal::InFlight, session};
use larder_keeper::client::Held;
use larder_members::Watch;
use larder_peer::Options;
use larder_telemetry::{Exposition, Health, Page, serve_admin_with};
use larder_trust::Tokens;
use lock::lock;
use mounts::Mounts;
pub use page::{MountPage, NodePage};
use std::{
    fs::{self, File},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::task::JoinSet;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// The node plugin's user.
const ROOT: u32 = 0;
/// Longest wait for the socket's folder, and how often it is tried.
const FOLDER_PATIENCE: Duration = Duration::from_secs(60);
const FOLDER_PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for the keeper at start. It may come later, and be given sessions by the node plugin: that is looked for this
/// often.
const LOOK: Duration = Duration::from_secs(1);
/// The same for a process that has sessions to go on with. A keeper that lives answers in a fraction of a millisecond, and readers wait.
const BRIEF: Duration = Duration::from_millis(200);
/// Without a keeper for so long, mounts end with their mounter, and a new one is as good as the old one.
const KEEPER_PATIENCE: Duration = Duration::from_secs(60);

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
    #[arg(long, default_value_t = larder_telemetry::listen::any(names::MOUNTER_ADMIN_PORT))]
    pub admin_addr: SocketAddr,
    /// Threads that answer the requests of one mount
    #[arg(long, env = "LARDER_FUSE_THREADS", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub fuse_threads: u16,
    /// Complete local files kept open, all mounts together
    #[arg(long, env = "LARDER_OPEN_FILES", default_value_t = 4096)]
    pub open_files: usize,
    /// What is answered after a takeover, of all that the process before had read: what the kernel sends again (`resend`, Linux 6.9), or
    /// what a `journal` has; `auto` takes the journal where the kernel cannot
    #[arg(long, env = "LARDER_IN_FLIGHT", default_value = "auto")]
    pub in_flight: InFlight,
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
    let mut locks = Vec::new();
    let ended = serve(args, client, shutdown, &mut locks).await;
    if let Err(error) = &ended {
        tracing::error!(error = format!("{error:#}"), "the mounter ends");
    }
    // With the lock: the next process must not begin while threads of this one read. And without an answer to what is under way.
    session::leave(i32::from(ended.is_err()))
}

/// As [`run`], in this process, with a client of the API server given.
///
/// # Errors
/// As [`run`].
pub async fn run_with(args: Args, client: kube::Client, shutdown: CancellationToken) -> anyhow::Result<()> {
    serve(args, client, shutdown, &mut Vec::new()).await
}

/// `locks` are to be held as long as FUSE threads may run.
async fn serve(args: Args, client: kube::Client, shutdown: CancellationToken, locks: &mut Vec<File>) -> anyhow::Result<()> {
    let open_files = open_files(args.open_files);
    let mut exposition = Exposition::default();
    let metrics = Metrics::register(&mut exposition);
    // From the start, so that a process that stands by has it all when keeper and mounter die together.
    let keeping = Keeping::new(Held::start(names::keeper_socket(&args.run_dir)));
    // Who has nothing, because the keeper is away, lets those go first who stand by and have it all.
    keeping.fetch(BRIEF).await;
    // The containers of a pod share its ports.
    let Some(pod) = lock(&args.catalog_dir.with_extension("lock"), &shutdown).await? else { return Ok(()) };
    locks.push(pod);
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
    let options = mounts::Options { threads: args.fuse_threads.into(), in_flight: args.in_flight };
    let mounts = Arc::new(Mounts::new(node, catalogs, metrics, &args.run_dir, options, keeping.clone()));

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
    // When it is an update, the mounter before this one is asked to end as soon as this one is ready: it must be able to go on.
    background.spawn(be_ready(Arc::clone(&mounts), keeping.clone(), health.clone()));
    let Some(serving) = turn(&names::mounter_lock(&args.run_dir), &mounts, &keeping, &shutdown).await? else {
        stopped.cancel();
        return admin.await.context("serve admin endpoints")?.map_err(Into::into);
    };
    locks.push(serving);
    if let larder_trust::Security::Mutual(held) = security {
        background.spawn(larder_trust::store::keep(held, identity));
    }
    mounts.take_over(&health).await;
    let listener = listen(&names::mounter_socket(&args.run_dir)).await?;
    let leaving = shutdown.child_token();
    let taking_over = keep_taking_over(Arc::clone(&mounts), keeping.clone(), health.clone(), leaving.clone());
    let taking_over = AbortOnDropHandle::new(tokio::spawn(taking_over));
    tracing::info!(node = args.node, open_files, "mounter is ready");

    let broken = mounts.broken();
    tokio::select! {
        () = socket::serve(listener, Arc::clone(&mounts)) => {}
        () = shutdown.cancelled() => {}
        () = broken.cancelled() => anyhow::bail!("a FUSE session broke; the next process goes on with it"),
    }
    health.set_ready(false);
    // Without its file this lock keeps nobody else from serving: nothing is begun any more.
    leaving.cancel();
    taking_over.await.context("take over what others hold")?;
    let drain = Duration::from_secs(args.drain_seconds);
    if !keeping.are_held().await && tokio::time::timeout(drain, mounts.all_gone()).await.is_err() {
        tracing::warn!(mounts = mounts.list().len(), ?drain, "stopping although mounts are in use; their readers get ENOTCONN");
    }
    // One of them writes what goes now.
    background.shutdown().await;
    if mounts.list().is_empty() {
        leave_nothing(&args.run_dir);
    }
    stopped.cancel();
    admin.await.context("serve admin endpoints")??;
    Ok(())
}

/// Waits until no other process serves and this one could go on with all that is held; with the lock then. One that cannot, leaves
/// the turn to others: one of the release that can may stand by too.
async fn turn(path: &Path, mounts: &Mounts, keeping: &Keeping, shutdown: &CancellationToken) -> anyhow::Result<Option<File>> {
    let mut told = None;
    loop {
        while let Err(error) = mounts.check().await {
            let error = error.to_string();
            if told.as_ref() != Some(&error) {
                tracing::error!(error, "leaves its turn to other processes");
                told = Some(error);
            }
            if shutdown.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_none() {
                return Ok(None);
            }
            keeping.fetch(LOOK).await;
        }
        let Some(serving) = lock(path, shutdown).await? else { return Ok(None) };
        let patience = if keeping.sessions().is_empty() { LOOK } else { BRIEF };
        if !keeping.fetch(patience).await {
            tracing::warn!("the keeper of this node does not answer yet; is its pod (DaemonSet larder-keeper) running?");
        }
        if mounts.check().await.is_ok() {
            return Ok(Some(serving));
        }
    }
}

/// Sessions that the node plugin has given to a keeper that came later than this process.
async fn keep_taking_over(mounts: Arc<Mounts>, keeping: Keeping, health: Health, leaving: CancellationToken) {
    while leaving.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
        if keeping.fetch(LOOK).await {
            mounts.take_over(&health).await;
        }
    }
}

/// Ready when everything that is held is here and can be read, or when there is no keeper to ask for so long that there is nobody
/// to go on from.
async fn be_ready(mounts: Arc<Mounts>, keeping: Keeping, health: Health) {
    let deadline = tokio::time::Instant::now() + KEEPER_PATIENCE;
    while mounts.is_fit() {
        let fetched = keeping.fetch(LOOK).await;
        match mounts.check().await {
            Ok(()) if fetched || tokio::time::Instant::now() > deadline => return health.set_ready(true),
            Ok(()) => {}
            Err(error) => tracing::error!(%error, "not ready: a mount that is held could not be taken over"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Takes away what only the next mounter would need: this may have been the last one on the node.
fn leave_nothing(run_dir: &Path) {
    for path in [names::mounter_identity(run_dir), names::mounter_lock(run_dir)] {
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "remove a file of the mounter");
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
