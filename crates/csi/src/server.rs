//! Wiring: flags, sockets, the order in which things start.

use crate::{
    backing,
    controller::Controller,
    datasets::Datasets,
    events::Events,
    host::Host,
    identity::Identity,
    layout::Layout,
    metrics::Metrics,
    mount,
    mounter::Mounter,
    node::{Node, Plugin},
    permits::Permits,
    probe::Prober,
    reconcile::reconcile,
    registration::Registration,
    state::State,
    volumes::Volumes,
    watchdog,
};
use anyhow::Context as _;
use larder_core::names;
use larder_keeper::client::Held;
use larder_proto::{
    csi::v1::{controller_server::ControllerServer, identity_server::IdentityServer, node_server::NodeServer},
    pluginregistration::v1::registration_server::RegistrationServer,
};
use larder_telemetry::{Exposition, Health, serve_admin};
use std::{
    fs::{self, Permissions},
    io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{net::UnixListener, task::JoinSet};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

/// Flags of `larder node`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Name of this Node object
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// The kubelet's root folder; at the same path in this container as on the host, with Bidirectional propagation
    #[arg(long, env = "LARDER_KUBELET_DIR", default_value = "/var/lib/kubelet")]
    pub kubelet_dir: PathBuf,
    /// The host's root folder in this container, with HostToContainer propagation
    #[arg(long, env = "LARDER_HOST_ROOT", default_value = "/host")]
    pub host_root: PathBuf,
    /// Folder of the sockets, as a path on the host
    #[arg(long, env = "LARDER_RUN_DIR", default_value = names::RUN_DIR)]
    pub run_dir: PathBuf,
    /// A kind of disk that datasets may use, as <name>=<folder on the host>
    #[arg(long = "tier", env = "LARDER_TIERS", value_delimiter = ',')]
    pub tiers: Vec<String>,
    /// Namespace of the operator
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Certificates
    #[command(flatten)]
    pub trust: larder_trust::Flags,
    /// How long readers may wait in a mount that no mounter serves, before it is ended for them (seconds)
    #[arg(long, env = "LARDER_ABORT_SECONDS", default_value_t = 120)]
    pub abort_seconds: u64,
    /// Address of the admin port
    #[arg(long, default_value_t = larder_telemetry::listen::any(names::NODE_ADMIN_PORT))]
    pub admin_addr: SocketAddr,
}

/// Runs until `shutdown`. Mounts stay.
///
/// # Errors
/// What makes the daemon useless from the start: no API server to talk to, no socket, no folder for its records.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    // The mounter has up to some thousand connections for backing files.
    if let Err(error) = larder_fuse::limits::raise_open_files() {
        tracing::warn!(%error, "raise the limit of open files; going on with few");
    }
    let client = kube::Client::try_default().await.context("connect to the API server")?;
    run_with(args, client, shutdown).await
}

/// As [`run`], with a client of the API server given.
///
/// # Errors
/// As [`run`].
pub async fn run_with(args: Args, client: kube::Client, shutdown: CancellationToken) -> anyhow::Result<()> {
    let host = Host::new(&args.host_root, &args.run_dir, &args.tiers)?;
    let layout = Layout::new(&args.kubelet_dir);
    let mut exposition = Exposition::default();
    let mounter = Mounter::new(&names::mounter_socket(&host.inside(&args.run_dir)));
    let permits = args.trust.issuer().map(|issuer| {
        let bundle = larder_members::bundle(client.clone(), &args.namespace);
        Permits::open(issuer, bundle, mounter.clone(), &layout.tokens())
    });
    let plugin = Arc::new(Plugin {
        node: args.node.clone(),
        state: State::open(&layout.state())?,
        volumes: Volumes::open(&layout.volumes())?,
        events: Events::new(client.clone(), &args.node),
        datasets: Datasets::new(client),
        mounter,
        held: Held::start(names::keeper_socket(&host.inside(&args.run_dir))),
        permits,
        prober: Prober::default(),
        metrics: Metrics::register(&mut exposition),
        locks: Default::default(),
        ended: Default::default(),
        layout: layout.clone(),
    });
    let (starting, preparing) = (Arc::clone(&plugin), host.clone());
    tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
        preparing.prepare_run_dir()?;
        // Nobody but root may look for the superblocks.
        fs::set_permissions(starting.layout.plugin(), Permissions::from_mode(0o700)).context("close the driver's folder")?;
        reconcile(&starting).context("compare records with the mount table")?;
        starting.metrics.published.set(starting.state.targets());
        mount::ensure_shroud(&starting.layout).context("make the shroud")
    })
    .await??;

    let health = Health::default();
    let backing_files = backing::listen(&names::backing_socket(&host.inside(&args.run_dir)))?;
    let (csi, alone) = (listen(&layout.csi_socket())?, listen(&layout.controller_socket())?);
    let registration = listen(&layout.registration_socket())?;
    // The kubelet calls as soon as it sees the registration socket; the CSI socket listens by then.
    let mut tasks = JoinSet::new();
    let controller = ControllerServer::new(Controller::new(Arc::clone(&plugin)));
    let services = Server::builder()
        .add_service(IdentityServer::new(Identity))
        .add_service(NodeServer::new(Node::new(Arc::clone(&plugin))))
        .add_service(controller.clone())
        .serve_with_incoming_shutdown(UnixListenerStream::new(csi), shutdown.clone().cancelled_owned());
    tasks.spawn(async move { services.await.context("serve CSI") });
    let controller = Server::builder()
        .add_service(IdentityServer::new(Identity))
        .add_service(controller)
        .serve_with_incoming_shutdown(UnixListenerStream::new(alone), shutdown.clone().cancelled_owned());
    tasks.spawn(async move { controller.await.context("serve the CSI controller") });
    let registrar = RegistrationServer::new(Registration::new(&layout.csi_socket(), health.clone()));
    let registrar = Server::builder()
        .add_service(registrar)
        .serve_with_incoming_shutdown(UnixListenerStream::new(registration), shutdown.clone().cancelled_owned());
    tasks.spawn(async move { registrar.await.context("serve registration") });
    let backing_files = backing::serve(backing_files, shutdown.clone());
    tasks.spawn(async move {
        backing_files.await;
        Ok(())
    });
    let admin = serve_admin(args.admin_addr, health, exposition, shutdown.clone());
    tasks.spawn(async move { admin.await.context("serve admin endpoints") });
    let keep = host.keep_prepared(shutdown.clone());
    tasks.spawn(async move {
        keep.await;
        Ok(())
    });
    let (watched, end, limit) = (Arc::clone(&plugin), shutdown.clone(), Duration::from_secs(args.abort_seconds));
    tasks.spawn(async move {
        end.run_until_cancelled(watchdog::watch(&watched, limit)).await;
        Ok(())
    });
    let renew = shutdown.clone();
    tasks.spawn(async move {
        renew.run_until_cancelled(plugin.keep_permitted()).await;
        Ok(())
    });
    tracing::info!(node = args.node, kubelet = %args.kubelet_dir.display(), "node plugin is serving");

    // Each ends only by shutdown or by an error, and then nothing goes on without it.
    let first = tasks.join_next().await;
    // The kubelet forgets us until we are back, instead of calling a socket that nobody serves.
    if let Err(error) = fs::remove_file(layout.registration_socket())
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "remove the registration socket");
    }
    shutdown.cancel();
    let mut result = first.map_or(Ok(()), |joined| joined?);
    while let Some(joined) = tasks.join_next().await {
        result = result.and(joined?);
    }
    leave_nothing(&layout);
    result
}

/// Takes away what only a plugin that runs needs, because this may have been the last one on the node; the next one makes it
/// again. The bind mounts in pods stay. So do mount tokens where something is mounted: they outlive an operator that is away.
fn leave_nothing(layout: &Layout) {
    let nothing_mounted = fs::read_dir(layout.state()).is_ok_and(|mut records| records.next().is_none());
    let left = mount::unmount_all(&layout.shroud())
        .and_then(|()| mount::remove(&layout.shroud()))
        .and_then(|()| mount::remove(&layout.csi_socket()))
        .and_then(|()| mount::remove(&layout.controller_socket()))
        .and_then(|()| if nothing_mounted { mount::remove(&layout.tokens()) } else { Ok(()) });
    if let Err(error) = left {
        tracing::warn!(%error, "remove shroud, CSI sockets and mount tokens");
    }
}

/// Listens for root only, in place of what an earlier process left there.
fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let folder = path.parent().context("socket path has a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("make folder {}", folder.display()))?;
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {
            fs::remove_file(path).with_context(|| format!("remove stale socket {}", path.display()))?;
        }
        Ok(_) => anyhow::bail!("{} is in the way and no socket", path.display()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("look at {}", path.display())),
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).with_context(|| format!("close {}", path.display()))?;
    Ok(listener)
}
