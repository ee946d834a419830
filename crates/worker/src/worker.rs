//! What the parts of the worker share.

use crate::{
    catalogs::Catalogs,
    connection::{Connections, Keys},
    copies::AtOrigin,
    folder::{self, Folder, FolderError, State},
    jobs::preload::Bandwidth,
    kept::Kept,
    metrics::Metrics,
    orders::Orders,
    past_cache::PastCache,
    report::{Report, Topic, cache_problem, folder_problem},
    serving::Serving,
    wanted::Wanted,
};
use larder_cache::{CHUNK, Cache, CacheError, Floor, Keep, Object};
use larder_core::{catalog::CatalogError, catalog::Kind, key::ObjectKey, placement::Members};
use larder_origin::{Error as OriginError, Pace, Received};
use larder_peer::Roster;
use larder_proto::control::v1::Problem;
use larder_trust::Security;
use parking_lot::Mutex;
use std::{collections::BTreeMap, num::NonZeroU64, ops::Range, path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What a worker is made from.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub node: String,
    pub dataset_uid: String,
    pub disks: Vec<Disk>,
    pub keys: Keys,
    /// Longest wait for another process that uses the folder.
    pub lock_wait: Duration,
    pub in_flight: u64,
    /// Bytes a second that the scrub reads; `None`: there is no scrub.
    pub scrub: Option<NonZeroU64>,
    pub peer: larder_peer::Options,
}

/// A disk of the dataset on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    /// The dataset's folder on it.
    pub dir: PathBuf,
    pub floor: Floor,
}

/// Why there is no worker.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Cache(#[from] CacheError),
}

pub(crate) fn open_problem(e: &OpenError) -> Problem {
    match e {
        OpenError::Folder(e) => folder_problem(e),
        OpenError::Cache(e) => cache_problem(e),
    }
}

/// One dataset on one node.
pub(crate) struct Worker {
    pub node: String,
    pub dataset_uid: String,
    /// On the first disk that works: what is not data.
    pub folder: Folder,
    pub disks: Vec<Disk>,
    /// Those of the other disks, by number, for their locks.
    pub others: Mutex<BTreeMap<usize, Arc<Folder>>>,
    pub keys: Keys,
    pub cache: Cache<OriginError>,
    pub scrub: Option<NonZeroU64>,
    pub catalogs: Catalogs,
    pub orders: watch::Sender<Option<Arc<Orders>>>,
    pub connections: Connections,
    pub received: Arc<Received>,
    pub pace: Pace,
    /// KiB that may be in flight ahead of reads.
    pub ahead: Semaphore,
    pub bandwidth: Bandwidth,
    pub wanted: Wanted,
    pub peers: larder_peer::Client,
    pub security: Security,
    pub roster: watch::Receiver<Arc<Roster>>,
    pub report: Report,
    pub metrics: Metrics,
    pub state: Mutex<State>,
    /// Serialises what is written to config.json and state.json, and Erase with both.
    pub writing: tokio::sync::Mutex<()>,
    pub serving: Serving,
    /// Files that peers read just now, by inode.
    pub located: quick_cache::sync::Cache<u64, Arc<Located>>,
    /// Reads that go past the cache, because its disk is full.
    pub past_cache: Arc<PastCache>,
    pub at_origin: AtOrigin,
    pub kept: Kept,
    /// Cancelled by Erase.
    pub erased: CancellationToken,
    /// The disk of `folder` fails and there are others: the next process begins on one of those.
    pub homeless: CancellationToken,
    pub jobs: TaskTracker,
}

/// One file of a snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    pub snapshot: String,
    pub inode: u64,
    pub origin: String,
    pub path: String,
    pub version: String,
    pub size: u64,
    pub key: ObjectKey,
}

/// Files whose place in the catalog is remembered, half a KiB each: as many as the readers of a few nodes have open.
const LOCATED: usize = 1024;

/// KiB of what may be in flight that may be in flight ahead of reads: five eighths, and at least the one chunk without which nothing
/// would ever be fetched ahead.
fn ahead(in_flight: u64) -> usize {
    ((in_flight / 8 * 5).max(CHUNK) >> 10) as usize
}

impl Worker {
    /// Takes the folders over, as a worker before it left them; at least one of them. Blocks.
    pub fn open(settings: Settings, roster: watch::Receiver<Arc<Roster>>, metrics: Metrics) -> Result<Self, OpenError> {
        let (home, mut folders) = folder::open_all(settings.disks.iter().map(|disk| disk.dir.as_path()), settings.lock_wait)?;
        let folder = folders.remove(&home).ok_or(FolderError::None)?;
        let orders: Option<Orders> = folder::load(&folder.orders_file());
        let state: State = folder::load(&folder.state_file()).unwrap_or_default();
        let catalogs = Catalogs::load(&folder.catalogs())?;
        let quotas = orders.as_ref().map_or(&[] as &[u64], |o| o.quotas());
        let cache = Cache::new(settings.in_flight);
        take(&cache, &settings.disks, quotas, home)?;
        folders.retain(|number, _| {
            let taken = take(&cache, &settings.disks, quotas, *number);
            taken.inspect_err(|error| tracing::error!(%error, "goes on without this disk")).is_ok()
        });
        let received = Arc::new(Received::default());
        received.add_objects(state.origin_bytes);
        let usage = cache.usage();
        tracing::info!(
            folder = %folder.path().display(),
            disks = 1 + folders.len(),
            files = usage.files,
            bytes = usage.bytes,
            catalogs = catalogs.digests().len(),
            configured = orders.is_some(),
            "took over the dataset's folder"
        );
        let worker = Self {
            security: settings.peer.security.clone(),
            peers: larder_peer::Client::with_options(&settings.node, settings.peer),
            node: settings.node,
            dataset_uid: settings.dataset_uid,
            folder,
            disks: settings.disks,
            others: Mutex::new(folders.into_iter().map(|(number, folder)| (number, Arc::new(folder))).collect()),
            keys: settings.keys,
            cache,
            scrub: settings.scrub,
            catalogs,
            orders: watch::Sender::new(orders.map(Arc::new)),
            connections: Connections::new(),
            received,
            pace: Pace::default(),
            ahead: Semaphore::new(ahead(settings.in_flight)),
            bandwidth: Bandwidth::new(),
            wanted: Wanted::default(),
            roster,
            report: Report::default(),
            metrics,
            state: Mutex::new(state),
            writing: tokio::sync::Mutex::new(()),
            serving: Serving::default(),
            located: quick_cache::sync::Cache::new(LOCATED),
            past_cache: Arc::default(),
            at_origin: AtOrigin::default(),
            kept: Kept::default(),
            erased: CancellationToken::new(),
            homeless: CancellationToken::new(),
            jobs: TaskTracker::new(),
        };
        Ok(worker)
    }

    /// Writes what survives the process.
    pub async fn save_state(self: &Arc<Self>) -> Result<(), FolderError> {
        let _writing = self.writing.lock().await;
        if self.erased.is_cancelled() {
            return Ok(());
        }
        let worker = Arc::clone(self);
        let saved = tokio::task::spawn_blocking(move || {
            let state = {
                let mut state = worker.state.lock();
                state.origin_bytes = worker.received.objects();
                state.clone()
            };
            folder::save(&worker.folder.state_file(), &state)
        });
        saved.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
    }

    /// Takes new orders: stored first, then in force. A disk that does not take them, because it is full, is told, and holds
    /// nothing else up.
    pub async fn configure(self: &Arc<Self>, orders: Orders) {
        let _writing = self.writing.lock().await;
        if self.orders.borrow().as_deref() == Some(&orders) {
            return;
        }
        let orders = Arc::new(orders);
        self.store(&orders).await;
        tracing::info!(
            generation = orders.generation,
            source = orders.source.uri,
            listing = orders.listing_id,
            snapshot = orders.snapshot,
            preload = orders.preload,
            "new orders"
        );
        self.cache.set_quotas(orders.quotas());
        self.orders.send_replace(Some(orders));
    }

    /// Copies, so that nothing is waited for under the lock: a disk that fails may take its time.
    pub fn other_folders(&self) -> Vec<Arc<Folder>> {
        self.others.lock().values().cloned().collect()
    }

    /// Takes over the disks that could not be before. Gives what is wrong with those that still cannot.
    pub async fn take_missing(self: &Arc<Self>) -> Vec<OpenError> {
        let here = self.cache.numbers();
        let missing: Vec<_> = (0..self.disks.len()).filter(|number| !here.contains(number)).collect();
        let worker = Arc::clone(self);
        let taken = tokio::task::spawn_blocking(move || {
            let orders = worker.orders.borrow().clone();
            let quotas = orders.as_ref().map_or(&[] as &[u64], |o| o.quotas());
            let attempt = |number: usize| {
                let folder = Folder::open(&worker.disks[number].dir, Duration::ZERO)?;
                take(&worker.cache, &worker.disks, quotas, number)?;
                tracing::info!(folder = %folder.path().display(), "took over the dataset's folder on another disk");
                worker.others.lock().insert(number, Arc::new(folder));
                Ok(())
            };
            missing.into_iter().filter_map(|number| attempt(number).err()).collect()
        });
        taken.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
    }

    /// Stores the orders in force if they could not be stored before.
    pub async fn catch_up(self: &Arc<Self>) {
        let _writing = self.writing.lock().await;
        let orders = self.orders.borrow().clone();
        if let Some(orders) = orders.filter(|_| self.report.get(Topic::Store).is_some()) {
            self.store(&orders).await;
        }
    }

    async fn store(self: &Arc<Self>, orders: &Arc<Orders>) {
        let (worker, orders) = (Arc::clone(self), Arc::clone(orders));
        let saved = tokio::task::spawn_blocking(move || folder::save(&worker.folder.orders_file(), &*orders));
        let saved = saved.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
        self.report.set(Topic::Store, saved.err().map(|e| folder_problem(&e)));
    }

    /// Does this node own the stripe of the object that this byte lies in? Before the member list is known, whoever is asked does.
    pub fn owns(&self, key: &ObjectKey, offset: u64) -> bool {
        let members = &self.roster.borrow().members;
        members.owner(&members.place(key, offset)).is_none_or(|owner| owner.node == self.node)
    }

    /// Is that stripe in this node's share: does it own it, or keep a replica of it?
    pub fn holds(&self, key: &ObjectKey, offset: u64) -> bool {
        let replicas = self.orders.borrow().as_ref().map_or(1, |o| o.replicas.max(1));
        let members = &self.roster.borrow().members;
        members.members.is_empty() || members.holds(&members.place(key, offset), &self.node, replicas)
    }

    /// Stripes of an object that are in this node's share.
    pub fn held(&self, key: &ObjectKey, size: u64) -> Vec<Range<u64>> {
        let stripes = self.roster.borrow().members.stripes(size);
        stripes.filter(|stripe| self.holds(key, stripe.start)).collect()
    }

    /// Is all of the object in this node's share?
    pub fn holds_all(&self, key: &ObjectKey, size: u64) -> bool {
        let mut stripes = self.roster.borrow().members.stripes(size);
        stripes.all(|stripe| self.holds(key, stripe.start))
    }

    /// Is a stripe of a file here to stay? One that is placed whole: is it complete?
    pub fn has(&self, members: &Members, at: &Located, stripe: &Range<u64>) -> bool {
        if members.is_striped(at.size) { self.cache.has(&at.key, stripe) } else { self.cache.contains(&at.key) }
    }

    /// Files that this node has: complete ones, and those in stripes of which it is to have the first, and has all of that.
    pub fn files(&self) -> u64 {
        let members = self.roster.borrow().members.clone();
        let counts = |(key, size): &(ObjectKey, u64)| {
            let first = members.stripes(*size).next();
            members.is_striped(*size) && self.holds(key, 0) && first.is_some_and(|first| self.cache.has(key, &first))
        };
        // Before the others: one that becomes complete at this moment counts twice rather than not at all.
        let in_stripes = self.cache.unfinished().iter().filter(|file| counts(file)).count() as u64;
        in_stripes + self.cache.usage().files
    }

    /// A file for the cache; of one that is striped each node keeps a part.
    pub fn object(&self, at: &Located, keep: Keep) -> Object {
        Object { key: at.key, size: at.size, keep, in_part: self.roster.borrow().members.is_striped(at.size) }
    }
}

/// The cache takes over what is on a disk. Blocks.
fn take(cache: &Cache<OriginError>, disks: &[Disk], quotas: &[u64], number: usize) -> Result<(), CacheError> {
    let Disk { dir, floor } = &disks[number];
    let quota = quotas.get(number).copied().unwrap_or(0);
    cache.add(number, dir, larder_cache::Options { quota, floor: *floor })
}

/// A file of a catalog by its position; `None`: there is no such file. Blocks.
pub(crate) fn locate(catalog: &crate::catalogs::Open, index: u64) -> Result<Option<Located>, CatalogError> {
    if index >= catalog.entries() {
        return Ok(None);
    }
    let entry = catalog.entry(index)?;
    if entry.kind != Kind::File {
        return Ok(None);
    }
    let (origin, path, version, size) =
        (catalog.origin().to_owned(), catalog.path(index)?, catalog.version(index)?, entry.size());
    let key = ObjectKey::new(&origin, &path, &version, size);
    let snapshot = catalog.digest().to_owned();
    Ok(Some(Located { snapshot, inode: index + 1, origin, path, version, size, key }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_may_always_be_fetched_ahead() {
        assert_eq!(ahead(64 << 20), 40 << 10);
        for little in [0, 1, CHUNK] {
            assert_eq!(ahead(little), (CHUNK >> 10) as usize);
        }
    }
}
