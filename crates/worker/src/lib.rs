//! The worker daemon: owns a share of one dataset on one node.
//!
//! ```text
//! operator ─gRPC─► orders (config.json) ─► connection ─► listing  ─► catalogs/<digest>, state.json
//!                                             │      └─► snapshot ◄─ catalogs of other workers
//!                                             │      └─► preload  ─► cache ─► data/
//! peers, mounters ─HTTP─► objects ─► cache ◄──┴─ copies of former owners, origin
//! mounter of this node ─unix socket─► descriptors of complete files
//!                      └─ what it reads elsewhere ─► keep ─► cache ◄─ disks of the owners
//! ```
//!
//! Owns everything in `<tier>/larder/<dataset uid>`, on each tier that the dataset uses, and holds a lock on it. Orders come from the operator, are stored, and
//! stay in force without it. All jobs compare what is with what is ordered, so a restart at any instant goes on where the disk
//! says: complete files and verified catalogs are kept, the rest is fetched again. While the process is dead, its share is read
//! from the origin through the next workers in rendezvous order.
#![forbid(unsafe_code)]

mod catalogs;
mod connection;
mod control;
mod copies;
pub mod embedded;
mod folder;
mod held_up;
mod jobs;
mod kept;
mod local;
pub mod metrics;
mod objects;
mod orders;
mod past_cache;
mod report;
mod serving;
mod wanted;
mod worker;

use anyhow::Context as _;
use connection::{Keys, Mounted};
use larder_cache::Floor;
use larder_core::{
    names,
    shares::{FLOOR_BYTES, FLOOR_PERCENT},
};
use larder_fuse::fdpass::Listener;
use larder_origin::Folders;
use larder_peer::Roster;
use larder_proto::control::v1::worker_server::WorkerServer;
use larder_telemetry::{
    Health,
    listen::{any, listen},
};
use larder_trust::{Clients, admit, incoming};
use std::{net::SocketAddr, num::NonZeroU64, path::PathBuf, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use worker::{Disk, Settings, Worker};

/// Flags of `larder worker`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Name of the Node this runs on
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// Namespace of the member list: that of the operator and all workers
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// UID of the CacheDataset
    #[arg(long, env = "LARDER_DATASET_UID", value_parser = dataset_uid)]
    pub dataset_uid: String,
    /// Folder of the dataset on a tier, once for each disk; the folder above it must be there
    #[arg(long = "dir", env = "LARDER_DIR", value_delimiter = ',', required = true)]
    pub dirs: Vec<PathBuf>,
    /// Folder of the sockets; the worker's lies in its folder `worker`
    #[arg(long, env = "LARDER_RUN_DIR", default_value = names::RUN_DIR)]
    pub run_dir: PathBuf,
    /// Where the Secret with the credentials is mounted
    #[arg(long, env = "LARDER_CREDENTIALS_DIR", default_value = "/etc/larder/credentials")]
    pub credentials_dir: PathBuf,
    /// Where the ConfigMap with ca.crt is mounted
    #[arg(long, env = "LARDER_CA_DIR", default_value = "/etc/larder/ca")]
    pub ca_dir: PathBuf,
    /// Certificates
    #[command(flatten)]
    pub trust: larder_trust::Flags,
    /// A folder of the host that is mounted here under its own name and that sources may name (file:///...)
    #[arg(long = "file-origin", env = "LARDER_FILE_ORIGINS", value_delimiter = ',')]
    pub file_origins: Vec<PathBuf>,
    /// Address of the data port
    #[arg(long, env = "LARDER_DATA_ADDR", default_value_t = any(names::WORKER_DATA_PORT))]
    pub data_addr: SocketAddr,
    /// Address of the control port
    #[arg(long, env = "LARDER_CONTROL_ADDR", default_value_t = any(names::WORKER_CONTROL_PORT))]
    pub control_addr: SocketAddr,
    /// Address of health and metrics
    #[arg(long, env = "LARDER_ADMIN_ADDR", default_value_t = any(names::WORKER_ADMIN_PORT))]
    pub admin_addr: SocketAddr,
    /// Percent of a disk that stays free, for all disks or for each
    #[arg(long, env = "LARDER_DISK_FLOOR_PERCENT", value_delimiter = ',', default_values_t = [FLOOR_PERCENT], value_parser = clap::value_parser!(u8).range(0..=100))]
    pub disk_floor_percent: Vec<u8>,
    /// Bytes of a disk that stay free at least, for all disks or for each (10 GiB)
    #[arg(long, env = "LARDER_DISK_FLOOR_BYTES", value_delimiter = ',', default_values_t = [FLOOR_BYTES])]
    pub disk_floor_bytes: Vec<u64>,
    /// Bytes in flight from the origin at the same time (64 MiB)
    #[arg(long, env = "LARDER_IN_FLIGHT_BYTES", default_value_t = 64 << 20)]
    pub in_flight_bytes: u64,
    /// Bytes per second that are read in the background to find files that went bad on the disk (32 MiB); 0: none
    #[arg(long, env = "LARDER_SCRUB_BYTES", default_value_t = SCRUB)]
    pub scrub_bytes: u64,
}

fn dataset_uid(text: &str) -> Result<String, String> {
    if names::is_uid(text) { Ok(text.to_owned()) } else { Err("is no UID of a Kubernetes object".to_owned()) }
}

/// Bytes a second that the scrub reads at most: 2.6 TiB a day.
const SCRUB: u64 = 32 << 20;
/// The mounter and root may ask for descriptors; who it is, is checked by the kernel's word, so the file mode may be open.
const SOCKET_MODE: u32 = 0o666;
/// The worker before this one gets 15 s to end; a node that is busy may take longer.
const LOCK_WAIT: Duration = Duration::from_secs(60);
/// Longest wait for answers to end at shutdown.
const DRAIN: Duration = Duration::from_secs(6);

/// Runs the worker until the shutdown.
///
/// # Errors
/// A folder, socket or port that cannot be had. What goes wrong later is told in Status and tried again.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    // Each connection, each file that is read or filled, and each that the mounter was given takes one.
    if let Err(error) = larder_fuse::limits::raise_open_files() {
        tracing::warn!(%error, "raise the limit of open files; going on with few");
    }
    let health = Health::default();
    let mut exposition = metrics::of_dataset(&args.dataset_uid);
    let metrics = metrics::Metrics::register(&mut exposition);
    // First of all: taking over a large folder takes long, and the process is alive meanwhile.
    let admin = tokio::spawn(larder_telemetry::serve_admin(args.admin_addr, health.clone(), exposition, shutdown.clone()));

    let client = kube::Client::try_default().await.context("find the API server")?;
    let (security, enrolment) =
        args.trust.security(|| larder_members::bundle(client.clone(), &args.namespace), stored_credentials(&args.dirs));
    let enrolment = enrolment.map(|enrolment| tokio::spawn(enrolment.run()));
    health.set_waits_for(Some("a certificate of the operator"));
    let certified = tokio::spawn({
        let (security, health) = (security.clone(), health.clone());
        async move {
            security.ready().await;
            health.set_waits_for(None);
        }
    });
    let members = larder_members::Watch::start(client, &args.namespace, Some(&args.dataset_uid));
    let (roster_tx, roster) = watch::channel(members.roster(&args.dataset_uid));
    let follower = tokio::spawn(follow(members, args.dataset_uid.clone(), roster_tx));

    let disks = disks(&args)?;
    let settings = Settings {
        node: args.node,
        dataset_uid: args.dataset_uid.clone(),
        disks,
        keys: Keys::Mounted(Mounted {
            credentials: args.credentials_dir,
            ca: args.ca_dir,
            folders: Folders::Beneath(args.file_origins),
        }),
        lock_wait: LOCK_WAIT,
        in_flight: args.in_flight_bytes,
        scrub: NonZeroU64::new(args.scrub_bytes),
        peer: larder_peer::Options { security, ..larder_peer::Options::default() },
    };
    let bind = async |what, addr| listen(addr).await.with_context(|| format!("listen on {what} address {addr}"));
    let control = bind("control", args.control_addr).await?;
    let opened = held_up::open(&settings, &roster, &metrics, control, &health, &shutdown).await?;
    let Some(worker) = opened.map(Arc::new) else { return Ok(()) };
    // Set once, here.
    let _ = worker.metrics.worker.set(Arc::downgrade(&worker));
    let listeners = Listeners {
        data: bind("data", args.data_addr).await?,
        control: bind("control", args.control_addr).await?,
        local: Listener::bind(&names::worker_socket(&args.run_dir, &args.dataset_uid), &[names::MOUNTER_UID, 0], SOCKET_MODE)?,
    };
    health.set_ready(true);
    tracing::info!(dataset = worker.dataset_uid, node = worker.node, version = larder_telemetry::version(), "worker is ready");
    let served = tokio::select! {
        served = serve(Arc::clone(&worker), listeners, shutdown.clone()) => served,
        admin = admin => admin.context("admin server")?.context("admin server").and_then(|()| {
            if shutdown.is_cancelled() { Ok(()) } else { anyhow::bail!("the admin server ended by itself") }
        }),
    };
    health.set_ready(false);
    follower.abort();
    certified.abort();
    if let Some(enrolment) = enrolment {
        enrolment.abort();
    }
    if let Err(error) = worker.save_state().await {
        tracing::warn!(%error, "counters are not saved");
    }
    served
}

/// The disks, and what is left free of each.
fn disks(args: &Args) -> anyhow::Result<Vec<Disk>> {
    fn of<T: Copy>(flag: &str, given: &[T], n: usize, disks: usize) -> anyhow::Result<T> {
        let fits = given.len() == 1 || given.len() == disks;
        anyhow::ensure!(fits, "{flag} is given {} times for {disks} disks; give it once, or once for each --dir", given.len());
        Ok(given[if given.len() == 1 { 0 } else { n }])
    }
    let count = args.dirs.len();
    let disk = |(n, dir): (usize, &PathBuf)| {
        let percent = of("--disk-floor-percent", &args.disk_floor_percent, n, count)?;
        let at_least = of("--disk-floor-bytes", &args.disk_floor_bytes, n, count)?;
        Ok(Disk { dir: dir.clone(), floor: Floor { percent, at_least } })
    };
    args.dirs.iter().enumerate().map(disk).collect()
}

/// What the worker before this one was given. Without any this one asks for its own.
fn stored_credentials(dirs: &[PathBuf]) -> Option<larder_trust::Credentials> {
    dirs.iter().find_map(|dir| {
        let stored = larder_trust::store::load(&dir.join(names::WORKER_IDENTITY));
        stored.inspect_err(|error| tracing::info!(%error, "goes on without stored credentials")).ok().flatten()
    })
}

/// Turns the watch of member lists into one of this dataset's roster.
async fn follow(mut members: larder_members::Watch, dataset_uid: String, roster: watch::Sender<Arc<Roster>>) {
    loop {
        members.changed().await;
        let now = members.roster(&dataset_uid);
        roster.send_if_modified(|old| {
            let changed = *old != now;
            if changed {
                *old = now;
            }
            changed
        });
    }
}

struct Listeners {
    data: TcpListener,
    control: TcpListener,
    local: Listener,
}

/// All servers and jobs, until the shutdown or until one of the servers ends.
async fn serve(worker: Arc<Worker>, listeners: Listeners, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut jobs = jobs::start(&worker);
    let control = tonic::transport::Server::builder()
        .add_service(WorkerServer::with_interceptor(control::ControlPort(Arc::clone(&worker)), admit::control_requests))
        .serve_with_incoming_shutdown(
            incoming(listeners.control, &worker.security, Clients::Known),
            shutdown.clone().cancelled_owned(),
        );
    let source = Arc::new(objects::DataPort(Arc::clone(&worker)));
    let data = larder_peer::serve(listeners.data, source, &worker.security, shutdown.clone());
    let local = local::serve(Arc::clone(&worker), listeners.local);
    let servers = async {
        tokio::try_join!(
            async { control.await.context("serve the control port") },
            async {
                data.await;
                Ok(())
            },
            async {
                tokio::select! {
                    () = local => anyhow::bail!("the local socket ended by itself"),
                    () = shutdown.cancelled() => Ok(()),
                }
            },
        )
    };
    let homeless = worker.homeless.clone();
    let overdue = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    let ended = tokio::select! {
        ended = servers => ended.map(drop),
        () = overdue => Ok(()),
        () = homeless.cancelled() => Err(anyhow::anyhow!("the disk of {} fails; beginning anew on another one", worker.folder.path().display())),
    };
    jobs.shutdown().await;
    // Before the lock of the folder goes: what is still being written may not meet the next worker's files.
    worker.cache.close().await;
    ended
}

#[cfg(test)]
mod tests;
