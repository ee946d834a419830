//! What is served now.

use super::{
    ended::{EndedMounts, SHOWN, Series},
    kept::{self, Keeping, Kept, KeptError, Parts},
    page::{MountPage, NodePage},
};
use crate::{
    catalogs::{Catalogs, CatalogsError},
    filesystem::{DatasetFs, Look, Opening, Outcome},
    metrics::Metrics,
    node::{LocalWorker, Node, NodeBackend},
    passthrough::Plugin,
};
use larder_core::{catalog::Catalog, names};
use larder_fuse::{
    journal::{InFlight, Journal},
    protocol::mounter::{Mount, Served},
    session::{self, Ended, Exchange, SessionError, Started},
};
use larder_telemetry::Health;
use larder_trust::TokenError;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{runtime::Handle, sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// Longest wait for a catalog within one request; below the 10 s that the node plugin lets the kubelet wait. The fetch goes
/// on, so that the next request finds it.
const CATALOG_PATIENCE: Duration = Duration::from_secs(8);

/// Why a request about a mount failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum MountError {
    #[error("request is not valid: {0}")]
    Invalid(&'static str),
    #[error("no FUSE descriptor came with the request to serve {0}")]
    NoDescriptor(String),
    #[error(transparent)]
    Catalog(#[from] CatalogsError),
    #[error("catalog {0} is still being fetched")]
    StillFetching(String),
    #[error("duplicate a descriptor of {identity}: {source}")]
    Duplicate { identity: String, source: io::Error },
    #[error(transparent)]
    Kept(#[from] KeptError),
    #[error("serve {identity}: {source}")]
    Session { identity: String, source: SessionError },
    #[error("mount token of dataset {dataset_uid}: {source}")]
    Token { dataset_uid: String, source: TokenError },
    #[error("{0} was interrupted: {1}")]
    Task(&'static str, tokio::task::JoinError),
}

impl MountError {
    pub(super) fn retry(&self) -> bool {
        !matches!(self, Self::Invalid(_) | Self::NoDescriptor(_) | Self::Token { .. })
    }
}

/// How connections are served.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    /// For each.
    pub(super) threads: usize,
    pub(super) in_flight: InFlight,
}

pub(super) struct Mounts {
    node: Node,
    catalogs: Catalogs,
    metrics: Metrics,
    run_dir: PathBuf,
    options: Options,
    keeping: Keeping,
    table: Mutex<Table>,
    /// Number of sessions, for those who wait until there are none.
    sessions: watch::Sender<usize>,
    /// A session has ended although it is mounted.
    broken: CancellationToken,
    /// There is a session that this version cannot go on with.
    unfit: AtomicBool,
}

#[derive(Default)]
struct Table {
    last_session: u64,
    /// Names of sessions that this process has begun or gone on with, or knows that it cannot.
    names: BTreeSet<String>,
    sessions: BTreeMap<u64, Session>,
    /// Catalogs that were asked for and are not mounted yet, by identity.
    prepared: BTreeMap<String, (String, Arc<Catalog<File>>)>,
    ended: EndedMounts,
}

struct Session {
    name: String,
    mount: Mount,
    outcome: Arc<Outcome>,
}

/// A connection that is to be served.
struct Connection {
    name: String,
    mount: Mount,
    look: Look,
    catalog: Arc<Catalog<File>>,
    fuse: OwnedFd,
    table: Arc<File>,
    journal: File,
    /// When another process has begun.
    exchange: Option<Exchange>,
}

impl Mounts {
    pub(super) fn new(
        node: Node,
        catalogs: Catalogs,
        metrics: Metrics,
        run_dir: &Path,
        options: Options,
        keeping: Keeping,
    ) -> Self {
        let sessions = watch::Sender::new(0);
        let run_dir = run_dir.to_owned();
        let (table, broken) = (Mutex::default(), CancellationToken::new());
        let unfit = AtomicBool::new(false);
        Self { node, catalogs, metrics, run_dir, options, keeping, table, sessions, broken, unfit }
    }

    /// Shows the token to workers from now on.
    pub(super) fn permit(&self, dataset_uid: &str, token: &str) -> Result<(), MountError> {
        let failed = |source| MountError::Token { dataset_uid: dataset_uid.to_owned(), source };
        self.node.tokens.set(dataset_uid, token).map_err(failed)?;
        self.keeping.permit(dataset_uid, token);
        Ok(())
    }

    /// Gets the catalog here, so that `serve` cannot fail for want of it.
    pub(super) async fn prepare(self: &Arc<Self>, mount: Mount) -> Result<(), MountError> {
        check(&mount)?;
        let catalog = self.catalog(&mount).await?;
        self.table.lock().prepared.insert(mount.identity, (mount.snapshot, catalog));
        Ok(())
    }

    /// Serves the descriptor; returns when the kernel's INIT is answered.
    pub(super) async fn serve(self: &Arc<Self>, mount: Mount, fuse: OwnedFd) -> Result<(), MountError> {
        let look = check(&mount)?;
        let catalog = self.catalog(&mount).await?;
        let (table, journal) = (Opening::table(), Opening::journal());
        let made =
            |file: io::Result<File>| file.map_err(|source| MountError::Duplicate { identity: mount.identity.clone(), source });
        let (table, journal) = (Arc::new(made(table)?), made(journal)?);
        let name = kept::name(&mount.identity);
        self.table.lock().names.insert(name.clone());
        self.run(Connection { name, mount, look, catalog, fuse, table, journal, exchange: None }).await
    }

    /// Goes on with all sessions that others hold and that this process does not know yet. With one that it can never go on with
    /// it is not ready.
    pub(super) async fn take_over(self: &Arc<Self>, health: &Health) {
        for (dataset_uid, token) in self.keeping.permits() {
            if self.node.tokens.get(&dataset_uid).is_none()
                && let Err(error) = self.node.tokens.set(&dataset_uid, &token)
            {
                tracing::info!(dataset_uid, %error, "a mount token that was held is of no use");
                self.keeping.forbid(&dataset_uid);
            }
        }
        let unknown = |name: &String| !self.table.lock().names.contains(name);
        for name in self.keeping.sessions().into_iter().filter(unknown) {
            let Err(error) = self.go_on(&name).await else { continue };
            match &error {
                MountError::Session { source: SessionError::NoResend, .. } => {
                    tracing::error!(name, %error, "a mount has ended with the mounter that died");
                    // When nobody holds it any more the kernel ends it, and readers do not wait.
                    self.keeping.ended(&name);
                }
                MountError::Session { source: SessionError::OtherAnswer, .. }
                | MountError::Kept(KeptError::Later { .. } | KeptError::Damaged(..))
                | MountError::Invalid(_) => {
                    tracing::error!(name, %error, "a mount cannot be taken over; its readers wait for a mounter that can");
                    self.unfit.store(true, Relaxed);
                    health.set_ready(false);
                }
                // The rest of it may be on its way here, or there may be memory again.
                _ => {
                    tracing::warn!(name, %error, "a mount is not taken over yet");
                    continue;
                }
            }
            self.table.lock().names.insert(name);
        }
    }

    async fn go_on(self: &Arc<Self>, name: &str) -> Result<(), MountError> {
        let Kept { name, mount, exchange, fuse, table, journal, catalog } = self.keeping.get(name)?;
        let look = check(&mount)?;
        let catalog = self.catalogs.adopt(&mount.dataset_uid, &mount.snapshot, catalog).await?;
        // One that nobody holds: it will be found empty, and tells nothing that is not so.
        let journal = journal.map_or_else(Opening::journal, Ok);
        let journal = journal.map_err(|source| MountError::Duplicate { identity: mount.identity.clone(), source })?;
        let (known, exchange) = (name.clone(), Some(exchange));
        self.run(Connection { name, mount, look, catalog, fuse, table: Arc::new(table), journal, exchange }).await?;
        self.table.lock().names.insert(known);
        Ok(())
    }

    async fn run(self: &Arc<Self>, connection: Connection) -> Result<(), MountError> {
        let Connection { name, mut mount, look, catalog, fuse, table, journal: file, exchange } = connection;
        let failed = |source| MountError::Duplicate { identity: mount.identity.clone(), source };
        let (for_plugin, for_keeper) = (fuse.try_clone().map_err(failed)?, fuse.try_clone().map_err(failed)?);
        let journal = file.try_clone().and_then(|file| Journal::load(file, self.options.in_flight)).map_err(failed)?;
        let backings = Plugin::new(names::backing_socket(&self.run_dir), for_plugin);
        let series = (mount.dataset_uid.clone(), mount.identity.clone());
        let (session, reads) = {
            let mut table = self.table.lock();
            table.last_session += 1;
            table.ended.is_back(&series);
            (table.last_session, self.metrics.reads(&mount.dataset_uid, &mount.identity))
        };
        let worker = LocalWorker::new(names::worker_socket(&self.run_dir, &mount.dataset_uid));
        let hedged = reads.hedged.clone();
        let backend = NodeBackend::new(self.node.clone(), session, &mount.dataset_uid, &mount.snapshot, worker, hedged);
        let (backings, opens) = (Some(Arc::new(backings) as _), Some(Arc::clone(&table)));
        let noted = Some(Arc::clone(&journal));
        let opening = Opening { wanted: mount.mode, backings, table: opens, journal: noted, outcome: Arc::default() };
        let outcome = Arc::clone(&opening.outcome);
        let filesystem =
            DatasetFs::new(&mount.identity, Arc::clone(&catalog), look, backend, reads, opening, Handle::current());
        let resumed = exchange.is_some();
        let threads = self.options.threads;
        let started = async {
            let began = handshake(&mount, move || match exchange {
                Some(exchange) => session::Session::resume(filesystem, fuse, &exchange, threads),
                None => session::Session::begin(filesystem, fuse, threads),
            });
            let began = began.await?;
            mount.mode = outcome.mode.get().copied().unwrap_or(mount.mode);
            if !resumed {
                let parts = Parts { fuse: for_keeper, table: &table, journal: &file, catalog: &catalog };
                self.keep(&name, &mount, began.exchange(), parts).await;
            }
            let identity = mount.identity.clone();
            handshake(&mount, move || began.start(&identity, Some(&journal))).await
        };
        let Started { ended, replayed } = match started.await {
            Ok(started) => started,
            Err(e) => {
                // Of a session that was begun elsewhere somebody else may make more.
                if !resumed {
                    self.keeping.ended(&name);
                }
                self.count_no_more(series);
                return Err(e);
            }
        };
        self.metrics.replayed(replayed.unwrap_or_default());
        tracing::info!(identity = mount.identity, session, mode = ?mount.mode, resumed, ?replayed, "serving");
        {
            let mut table = self.table.lock();
            table.prepared.remove(&mount.identity);
            // Once more: the session before it may have ended meanwhile.
            table.ended.is_back(&series);
            table.sessions.insert(session, Session { name, mount, outcome });
        }
        self.sessions.send_modify(|n| *n += 1);
        self.metrics.mounts.inc();
        tokio::spawn(Arc::clone(self).drop_when_ended(session, ended));
        Ok(())
    }

    /// Before INIT is answered: no reader may depend on what only this process has.
    async fn keep(&self, name: &str, mount: &Mount, exchange: &Exchange, parts: Parts<'_>) {
        match self.keeping.session(name, mount, exchange, parts).await {
            Ok(true) => {}
            Ok(false) => tracing::warn!(
                identity = mount.identity,
                "the keeper does not answer; until it does, this mount ends with this process"
            ),
            Err(error) => tracing::error!(identity = mount.identity, %error, "this mount ends with this process"),
        }
    }

    async fn drop_when_ended(self: Arc<Self>, session: u64, ended: Ended) {
        let result = ended.await;
        let removed = self.table.lock().sessions.remove(&session);
        self.metrics.mounts.dec();
        self.sessions.send_modify(|n| *n -= 1);
        let Some(Session { name, mount, .. }) = removed else { return };
        match result {
            Ok(Ok(())) => tracing::info!(identity = mount.identity, session, "unmounted"),
            Ok(Err(error)) => {
                tracing::error!(identity = mount.identity, session, %error, "FUSE session broke");
                return self.broken.cancel();
            }
            Err(_) => {
                tracing::error!(identity = mount.identity, session, "FUSE session panicked");
                return self.broken.cancel();
            }
        }
        self.keeping.ended(&name);
        let needed = {
            let table = self.table.lock();
            table.sessions.values().any(|s| s.mount.dataset_uid == mount.dataset_uid)
                || table.prepared.keys().any(|identity| identity.starts_with(&mount.dataset_uid))
        };
        if !needed {
            self.keeping.forbid(&mount.dataset_uid);
        }
        self.catalogs.release(&mount.snapshot);
        self.count_no_more((mount.dataset_uid, mount.identity));
    }

    /// Drops the series of a mount after a while, unless it is served: still, or again by then.
    fn count_no_more(self: &Arc<Self>, series: Series) {
        {
            let mut table = self.table.lock();
            if table.sessions.values().any(|s| s.mount.identity == series.1) {
                return;
            }
            table.ended.ended(series, Instant::now());
        }
        let mounts = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(SHOWN).await;
            let Some(mounts) = mounts.upgrade() else { return };
            // Under the lock that `serve` takes its counters under.
            let mut table = mounts.table.lock();
            table.ended.due(Instant::now()).iter().for_each(|(uid, identity)| mounts.metrics.forget(uid, identity));
        });
    }

    /// Drops what was prepared and never served.
    pub(super) fn forget(&self, identity: &str) {
        let forgotten = self.table.lock().prepared.remove(identity);
        if let Some((snapshot, catalog)) = forgotten {
            drop(catalog);
            self.catalogs.release(&snapshot);
        }
    }

    pub(super) fn list(&self) -> Vec<Served> {
        let table = self.table.lock();
        // The last session of an identity is the one that pods see.
        let served: BTreeMap<&str, Served> =
            table.sessions.values().map(|s| (s.mount.identity.as_str(), self.served(s))).collect();
        served.into_values().collect()
    }

    fn served(&self, session: &Session) -> Served {
        let Mount { identity, dataset_uid, .. } = &session.mount;
        Served {
            identity: identity.clone(),
            mode: session.outcome.mode.get().copied().unwrap_or_default(),
            reads: self.metrics.reads(dataset_uid, identity).read(),
        }
    }

    /// All sessions, for people.
    pub(super) fn page(&self) -> NodePage {
        let table = self.table.lock();
        let shown = |session: &Session| {
            let Mount { identity, dataset_uid, snapshot, .. } = session.mount.clone();
            let outcome = &session.outcome;
            MountPage {
                reads: self.metrics.reads(&dataset_uid, &identity).read(),
                dataset_uid,
                snapshot,
                mode: outcome.mode.get().copied().unwrap_or_default(),
                refused: outcome.refused.get().cloned(),
            }
        };
        NodePage {
            version: larder_telemetry::version().to_owned(),
            kernel: nix::sys::utsname::uname().map_or_else(|e| e.to_string(), |u| u.release().to_string_lossy().into_owned()),
            passthrough: table.sessions.values().find_map(|s| s.outcome.kernel_can.get().copied()),
            mounts: table.sessions.values().map(shown).collect(),
        }
    }

    /// Could it go on with all that is held? To be asked before it is its turn.
    pub(super) async fn check(&self) -> Result<(), MountError> {
        let (keeping, threads) = (self.keeping.clone(), self.options.threads);
        let checked = tokio::task::spawn_blocking(move || keeping.check(threads)).await;
        Ok(checked.map_err(|e| MountError::Task("looking at what is held", e))??)
    }

    /// Could it go on with all that it has seen?
    pub(super) fn is_fit(&self) -> bool {
        !self.unfit.load(Relaxed)
    }

    /// Cancelled when the next process has to go on with what this one has.
    pub(super) fn broken(&self) -> CancellationToken {
        self.broken.clone()
    }

    /// Waits until nothing is served.
    pub(super) async fn all_gone(&self) {
        // Fails only when the sender is gone, and that is ours.
        let _ = self.sessions.subscribe().wait_for(|n| *n == 0).await;
    }

    async fn catalog(self: &Arc<Self>, mount: &Mount) -> Result<Arc<Catalog<File>>, MountError> {
        let (this, uid, digest) = (Arc::clone(self), mount.dataset_uid.clone(), mount.snapshot.clone());
        let fetch = tokio::spawn(async move { this.catalogs.get(&uid, &digest).await });
        match tokio::time::timeout(CATALOG_PATIENCE, fetch).await {
            Ok(fetched) => Ok(fetched.map_err(|e| MountError::Task("fetching the catalog", e))??),
            Err(_) => Err(MountError::StillFetching(mount.snapshot.clone())),
        }
    }
}

async fn handshake<T: Send + 'static>(
    mount: &Mount,
    run: impl FnOnce() -> Result<T, SessionError> + Send + 'static,
) -> Result<T, MountError> {
    let done = tokio::task::spawn_blocking(run).await.map_err(|e| MountError::Task("FUSE handshake", e))?;
    done.map_err(|source| MountError::Session { identity: mount.identity.clone(), source })
}

/// The names become parts of paths, the modes go to the kernel.
fn check(mount: &Mount) -> Result<Look, MountError> {
    if !names::is_uid(&mount.dataset_uid) {
        return Err(MountError::Invalid("datasetUid is no UID"));
    }
    if !names::is_digest(&mount.snapshot) {
        return Err(MountError::Invalid("snapshot is no digest"));
    }
    if mount.identity != names::mount_identity(&mount.dataset_uid, &mount.snapshot) {
        return Err(MountError::Invalid("identity is not that of dataset and snapshot"));
    }
    let mode = |mode: u32| {
        let mode = u16::try_from(mode).ok().filter(|m| *m <= 0o777);
        mode.ok_or(MountError::Invalid("fileMode and dirMode are permissions up to 0777"))
    };
    Ok(Look { uid: mount.uid, gid: mount.gid, file_mode: mode(mount.file_mode)?, dir_mode: mode(mount.dir_mode)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_fuse::protocol::mounter::Mode;

    fn mk_mount() -> Mount {
        let (uid, snapshot) = ("0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f", "ab".repeat(32));
        Mount {
            identity: names::mount_identity(uid, &snapshot),
            dataset_uid: uid.into(),
            snapshot,
            uid: 0,
            gid: 0,
            file_mode: 0o444,
            dir_mode: 0o555,
            mode: Mode::Auto,
        }
    }

    #[test]
    fn names_that_could_leave_a_folder_are_refused() {
        assert!(check(&mk_mount()).is_ok());
        for bad in [
            Mount { dataset_uid: "../../etc".into(), ..mk_mount() },
            Mount { snapshot: "../../etc".into(), ..mk_mount() },
            Mount { identity: "other".into(), ..mk_mount() },
            Mount { file_mode: 0o4755, ..mk_mount() },
            Mount { dir_mode: 0o1_000_000, ..mk_mount() },
        ] {
            assert!(matches!(check(&bad), Err(MountError::Invalid(_))), "{bad:?}");
        }
    }
}
