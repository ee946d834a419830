//! What is served now.

use super::{
    ended::{EndedMounts, SHOWN, Series},
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
    protocol::mounter::{Mount, Served},
    session::{self, Ended, SessionError},
};
use larder_trust::TokenError;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{runtime::Handle, sync::watch, time::Instant};

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
    #[error("duplicate the FUSE descriptor of {identity}: {source}")]
    Duplicate { identity: String, source: std::io::Error },
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

pub(super) struct Mounts {
    node: Node,
    catalogs: Catalogs,
    metrics: Metrics,
    run_dir: PathBuf,
    fuse_threads: usize,
    table: Mutex<Table>,
    /// Number of sessions, for those who wait until there are none.
    sessions: watch::Sender<usize>,
}

#[derive(Default)]
struct Table {
    last_session: u64,
    sessions: BTreeMap<u64, Session>,
    /// Catalogs that were asked for and are not mounted yet, by identity.
    prepared: BTreeMap<String, (String, Arc<Catalog<File>>)>,
    ended: EndedMounts,
}

struct Session {
    mount: Mount,
    outcome: Arc<Outcome>,
}

impl Mounts {
    pub(super) fn new(node: Node, catalogs: Catalogs, metrics: Metrics, run_dir: &Path, fuse_threads: usize) -> Self {
        let sessions = watch::Sender::new(0);
        Self { node, catalogs, metrics, run_dir: run_dir.to_owned(), fuse_threads, table: Mutex::default(), sessions }
    }

    /// Shows the token to workers from now on.
    pub(super) fn permit(&self, dataset_uid: &str, token: &str) -> Result<(), MountError> {
        let failed = |source| MountError::Token { dataset_uid: dataset_uid.to_owned(), source };
        self.node.tokens.set(dataset_uid, token).map_err(failed)
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
        let duplicate = fuse.try_clone();
        let duplicate = duplicate.map_err(|source| MountError::Duplicate { identity: mount.identity.clone(), source })?;
        let backings = Plugin::new(names::backing_socket(&self.run_dir), duplicate, &Handle::current());
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
        let opening = Opening { wanted: mount.mode, backings: Some(Arc::new(backings)), outcome: Arc::default() };
        let outcome = Arc::clone(&opening.outcome);
        let filesystem = DatasetFs::new(&mount.identity, catalog, look, backend, reads, opening, Handle::current());
        let (name, threads) = (mount.identity.clone(), self.fuse_threads);
        let started = tokio::task::spawn_blocking(move || session::serve(filesystem, fuse, &name, threads));
        let started = started
            .await
            .map_err(|e| MountError::Task("FUSE handshake", e))
            .and_then(|started| started.map_err(|source| MountError::Session { identity: mount.identity.clone(), source }));
        let ended = match started {
            Ok(ended) => ended,
            Err(e) => {
                self.count_no_more(series);
                return Err(e);
            }
        };
        tracing::info!(identity = mount.identity, session, mode = ?outcome.mode.get(), "serving");
        {
            let mut table = self.table.lock();
            table.prepared.remove(&mount.identity);
            // Once more: the session before it may have ended meanwhile.
            table.ended.is_back(&series);
            table.sessions.insert(session, Session { mount, outcome });
        }
        self.sessions.send_modify(|n| *n += 1);
        self.metrics.mounts.inc();
        tokio::spawn(Arc::clone(self).drop_when_ended(session, ended));
        Ok(())
    }

    async fn drop_when_ended(self: Arc<Self>, session: u64, ended: Ended) {
        let result = ended.await;
        let mount = self.table.lock().sessions.remove(&session).map(|s| s.mount);
        self.metrics.mounts.dec();
        self.sessions.send_modify(|n| *n -= 1);
        let Some(mount) = mount else { return };
        match result {
            Ok(Ok(())) => tracing::info!(identity = mount.identity, session, "unmounted"),
            Ok(Err(error)) => tracing::error!(identity = mount.identity, session, %error, "FUSE session broke"),
            Err(_) => tracing::error!(identity = mount.identity, session, "FUSE session panicked"),
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
            kernel: nix::sys::utsname::uname().map_or_else(|e| e.to_string(), |u| u.release().to_string_lossy().into_owned()),
            passthrough: table.sessions.values().find_map(|s| s.outcome.kernel_can.get().copied()),
            mounts: table.sessions.values().map(shown).collect(),
        }
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
