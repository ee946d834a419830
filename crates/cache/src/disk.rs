//! One folder on one disk.

mod check;
mod chunk;
mod evict;
mod neighbours;
mod scrub;

use crate::{
    CHUNK, CacheError, Checked, Floor, Keep, Object, ReadError, Stay, blocks, chunk_range, chunks, covering,
    fill::{self, Chunk, Fill, Room},
    index::{Idle, Index},
    layout,
    scan::{self, Found, Unfinished},
    sidecar::Sidecar,
    space::{self, Space},
    unreadable::{Unreadable, off},
};
use bytes::Bytes;
use check::Checks;
pub use check::Integrity;
use futures::{
    FutureExt as _, StreamExt as _,
    stream::{self, FuturesUnordered},
};
use larder_core::{eviction::Wanted, key::ObjectKey};
use parking_lot::Mutex;
use std::{
    fs, io,
    ops::Range,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Bounds of a dataset on one disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Bytes it may use there; 0: no limit.
    pub quota: u64,
    /// Space of the disk that is left alone.
    pub floor: Floor,
}

/// What the disks of a dataset share.
#[derive(Clone, Debug)]
pub(crate) struct Common {
    /// Bytes of fetches in flight, in KiB.
    budget: Arc<Semaphore>,
    /// The part of it for fetches that nobody waits for; the rest is kept for reads.
    background: Arc<Semaphore>,
    /// Counts files, and chunks of those that are not complete, that were good in this run of the process and are not any more.
    damages: watch::Sender<u64>,
    given: watch::Sender<()>,
}

impl Common {
    /// With so many bytes in flight.
    pub fn new(in_flight: u64) -> Self {
        let budget = (in_flight.max(CHUNK) >> 10) as usize;
        Self {
            budget: Arc::new(Semaphore::new(budget)),
            background: Arc::new(Semaphore::new((budget * 3 / 4).max((CHUNK >> 10) as usize))),
            damages: watch::Sender::new(0),
            given: watch::Sender::new(()),
        }
    }

    /// Changes when something that was here was found to be bad or gone; also when it does not count, because it may never have been good.
    pub fn damages(&self) -> watch::Receiver<u64> {
        self.damages.subscribe()
    }

    /// Changes when files were given to the neighbours on a disk.
    pub fn given(&self) -> watch::Receiver<()> {
        self.given.subscribe()
    }
}

/// What the cache holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Complete files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes reserved for files on their way, and for those that are kept in part.
    pub fill_bytes: u64,
    /// Bytes of the latter that are here.
    pub part_bytes: u64,
}

impl Usage {
    /// Bytes of complete files and of parts of others that stay.
    #[must_use]
    pub fn on_disk(&self) -> u64 {
        self.bytes + self.part_bytes
    }

    /// Bytes reserved for what is not there yet.
    #[must_use]
    pub fn on_its_way(&self) -> u64 {
        self.fill_bytes.saturating_sub(self.part_bytes)
    }
}

/// The files of one dataset on one disk; clones are the same. `E` is the error of the fetchers.
pub(crate) struct Disk<E: std::error::Error + Clone + Send + Sync + 'static> {
    inner: Arc<Inner<E>>,
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> Clone for Disk<E> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> std::fmt::Debug for Disk<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("dir", &self.inner.dir).field("usage", &self.usage()).finish()
    }
}

struct Inner<E: std::error::Error + Clone + Send + Sync + 'static> {
    dir: PathBuf,
    index: Mutex<Index<E>>,
    space: Space,
    sidecars: Sidecars,
    checks: Checks,
    /// Bytes compared by checks and scrubs.
    compared: AtomicU64,
    scrubbed: Mutex<scrub::Progress>,
    evicted: AtomicU64,
    /// Whose turn it is to wait for room that neighbours make.
    short: Semaphore,
    /// When the neighbours could be given nothing, because all files were in use.
    firm: Mutex<Option<Instant>>,
    common: Common,
    closed: CancellationToken,
    tasks: TaskTracker,
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> Inner<E> {
    /// Ends fills that are marked as dropped, and gives the space of chunks back. Blocks.
    fn end_dropped(&self, Idle { whole: fills, chunks }: &Idle<E>) {
        for (fill, forgotten) in chunks {
            if let Err(error) = fill.give_back(&self.dir, forgotten) {
                tracing::warn!(key = %fill.key, %error, "a part of a file stays that is not wanted here");
            }
        }
        // Before the index knows: another fill of the same object may begin then, with a file of the same name.
        fills.iter().for_each(|fill| fill.abandon(&self.dir));
        let mut index = self.index.lock();
        fills.iter().for_each(|fill| index.end(fill, false));
    }
}

/// Who waits for the bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lane {
    Reader,
    Background,
}

/// Sidecars in memory, so that a read does not read one each time.
type Sidecars = quick_cache::sync::Cache<ObjectKey, Arc<Sidecar>, SidecarWeight>;
/// Bytes of them: those of 250 GiB of files that are being read.
const SIDECARS: usize = 16 << 20;

#[derive(Clone)]
struct SidecarWeight;

impl quick_cache::Weighter<ObjectKey, Arc<Sidecar>> for SidecarWeight {
    fn weight(&self, _: &ObjectKey, sidecar: &Arc<Sidecar>) -> u64 {
        // 150: the key, the entry and the headers of the allocations.
        150 + 4 * sidecar.crcs.len() as u64
    }
}

enum Here<E: std::error::Error + Clone + Send + Sync + 'static> {
    Complete,
    Fill(Arc<Fill<E>>),
}

/// A file that turns out to be gone or unreadable is fetched anew; more often than this means the disk is at its end.
const TRIES: usize = 3;
/// Longest wait for fetches to end before the folder is left to others, or erased.
const CLOSE_WAIT: Duration = Duration::from_secs(30);

impl<E: std::error::Error + Clone + Send + Sync + 'static> Disk<E> {
    /// Scans the folder and takes it over; one process at a time. Blocks while it scans.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(dir: &Path, options: Options, common: &Common) -> Result<Self, CacheError> {
        Self::open_on(dir, options, common, space::of_disk)
    }

    fn open_on(dir: &Path, options: Options, common: &Common, look: space::Look) -> Result<Self, CacheError> {
        let Found { complete, unfinished } = scan::scan(dir)?;
        let mut index = Index::new(complete, options.quota);
        for Unfinished { key, journal, whole } in unfinished {
            let fill = Arc::new(Fill::found(key, &journal, whole));
            index.begin(&fill, Keep::Own, !whole);
            index.reserve(&fill, if whole { fill.size } else { fill.bytes_here() });
        }
        Ok(Self {
            inner: Arc::new(Inner {
                dir: dir.to_owned(),
                index: Mutex::new(index),
                space: Space::new(dir, options.floor, look),
                sidecars: Sidecars::with_weighter(SIDECARS / 1024, SIDECARS as u64, SidecarWeight),
                checks: Checks::default(),
                compared: AtomicU64::new(0),
                scrubbed: Mutex::new(scrub::Progress::load(dir)),
                evicted: AtomicU64::new(0),
                short: Semaphore::new(1),
                firm: Mutex::new(None),
                common: common.clone(),
                closed: CancellationToken::new(),
                tasks: TaskTracker::new(),
            }),
        })
    }

    /// Changes the quota. What is there already stays; nothing more comes in while it is exceeded.
    pub fn set_quota(&self, quota: u64) {
        self.inner.index.lock().set_quota(quota);
    }

    /// What it holds now.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let index = self.inner.index.lock();
        let (bytes, fill_bytes) = index.bytes();
        Usage { files: index.files(), bytes, fill_bytes, part_bytes: index.part_bytes() }
    }

    /// Unfinished files and their sizes.
    pub fn unfinished(&self) -> Vec<(ObjectKey, u64)> {
        self.inner.index.lock().unfinished().collect()
    }

    /// Bytes that may come in now: what the quota leaves, and the disk above its floor. Blocks.
    ///
    /// # Errors
    /// The disk's.
    pub fn room(&self) -> Result<u64, CacheError> {
        let left = self.inner.index.lock().free();
        Ok(left.min(self.inner.space.room(&self.inner.dir)?))
    }

    /// Is the file complete?
    #[must_use]
    pub fn contains(&self, key: &ObjectKey) -> bool {
        self.inner.index.lock().complete(key).is_some()
    }

    /// Is it on its way?
    #[must_use]
    pub fn is_filling(&self, key: &ObjectKey) -> bool {
        self.inner.index.lock().fill(key).is_some()
    }

    /// Is anything of it here that is not complete?
    pub fn has_part(&self, key: &ObjectKey) -> bool {
        self.inner.index.lock().fill(key).is_some_and(|fill| fill.bytes_here() > 0)
    }

    /// Is the range on the disk, so that reading it asks no one?
    #[must_use]
    pub fn has(&self, key: &ObjectKey, range: &Range<u64>) -> bool {
        let index = self.inner.index.lock();
        index.complete(key).is_some() || index.fill(key).is_some_and(|f| f.has(covering(f.size, range)))
    }

    /// A whole chunk that is on the disk, compared with the checksums it was written with. Fetches nothing and waits for nobody.
    pub async fn chunk_here(&self, key: &ObjectKey, range: &Range<u64>) -> Option<Checked> {
        let n = range.start / CHUNK;
        let (size, fill) = {
            let index = self.inner.index.lock();
            let fill = index.fill(key).cloned();
            (index.complete(key).map(|e| e.size).or(fill.as_ref().map(|f| f.size))?, fill)
        };
        if range.start >= size || chunk_range(size, n) != *range {
            return None;
        }
        match fill {
            Some(fill) if fill.has(n..n + 1) => self.read_fill(&fill, range).await.ok(),
            Some(_) => None,
            None => self.read_complete(key, range).await.ok(),
        }
    }

    /// Waits until the fetch of this chunk has ended, if one is under way; begins none.
    pub async fn landed(&self, key: &ObjectKey, range: &Range<u64>) {
        let fill = self.inner.index.lock().fill(key).cloned();
        let Some(fill) = fill else { return };
        let flight = match fill.map.lock().chunks.get((range.start / CHUNK) as usize) {
            Some(Chunk::Flying(flight)) => flight.clone(),
            _ => return,
        };
        // How it ended is on the disk.
        let _ = flight.await;
    }

    /// Reads a range; what is not on the disk is fetched in whole chunks and kept. The range lies inside the object. Bytes on
    /// the disk that are not what was written are fetched again.
    ///
    /// # Errors
    /// [`ReadError::Cache`]: this disk cannot keep or give it, the bytes can be had past it. Else the fetcher's error.
    pub async fn read_range<F, Fut>(&self, object: &Object, range: Range<u64>, fetch: F) -> Result<Checked, ReadError<E>>
    where
        F: Fn(Range<u64>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, E>> + Send + 'static,
    {
        let mut last = CacheError::Closed { path: self.inner.dir.clone() };
        for _ in 0..TRIES {
            let wanted = covering(object.size, &range);
            let read = match self.claim(object, &wanted, evict::wanted(object, true)).await? {
                Here::Complete => self.read_complete(&object.key, &range).await,
                Here::Fill(fill) => {
                    let rooms = wanted.clone().filter_map(|n| fill.room(n));
                    let mut short = rooms.map(|room| async move { room.is_short().await }).collect::<FuturesUnordered<_>>();
                    tokio::select! {
                        biased;
                        // Who reads waits for nobody to make room.
                        Some(short) = short.next() => return Err(short.into()),
                        chunks = self.chunks(&fill, wanted, &fetch) => chunks?,
                    }
                    self.read_fill(&fill, &range).await
                }
            };
            match read {
                Ok(checked) => return Ok(checked),
                Err(e) => last = e,
            }
        }
        Err(last.into())
    }

    /// Fetches a range of an object that is kept in part, or the whole object, `parallel` chunks at once, and waits until it is durable. When
    /// nothing else of the object is missing, it is complete.
    ///
    /// # Errors
    /// As [`Self::read_range`]; chunks that are there stay, so that another attempt goes on.
    pub async fn fill_part<F, Fut>(
        &self,
        object: &Object,
        range: Range<u64>,
        parallel: usize,
        fetch: F,
    ) -> Result<(), ReadError<E>>
    where
        F: Fn(Range<u64>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, E>> + Send + 'static,
    {
        let wanted = covering(object.size, &range);
        let is_all = !object.in_part || wanted == (0..chunks(object.size));
        // What is not kept in part is filled as a whole.
        let wanted = if is_all { 0..chunks(object.size) } else { wanted };
        let mut damages = self.inner.common.damages();
        loop {
            damages.mark_unchanged();
            let Here::Fill(fill) = self.claim(object, &wanted, evict::wanted(object, false)).await? else { return Ok(()) };
            let present = || futures::future::ready(Ok(())).boxed().shared();
            let chunks = wanted.clone();
            let flights =
                chunks.map(|n| chunk::flight(&self.inner, &fill, n, &fetch, Lane::Background).unwrap_or_else(present));
            let mut flights = stream::iter(flights).buffer_unordered(parallel.max(1));
            while let Some(flown) = flights.next().await {
                flown?;
            }
            drop(flights);
            if !fill.has(wanted.clone()) {
                // A chunk that was here turned out to be bad meanwhile.
                continue;
            }
            if !is_all && !fill.is_whole() {
                let (dir, path) = (self.inner.dir.clone(), layout::fill(&self.inner.dir, &object.key));
                return Ok(blocking("sync", &path, move || fill.settle(&dir)).await?);
            }
            let mut ended = fill.ended.subscribe();
            tokio::select! {
                biased;
                ended = ended.wait_for(Option::is_some) => {
                    let closed = || Err(CacheError::Closed { path: self.inner.dir.clone() });
                    return Ok(ended.ok().and_then(|e| e.clone()).unwrap_or_else(closed)?);
                }
                Ok(()) = damages.changed() => {}
            }
        }
    }

    /// Files removed to make room since the folder was taken over.
    #[must_use]
    pub fn evicted_files(&self) -> u64 {
        self.inner.evicted.load(Relaxed)
    }

    /// Unlinks all files but those that are to stay, complete ones and those that nobody goes on filling; who reads one goes on
    /// reading it. What is not to stay of the latter gives its space back. Gives how many made room.
    ///
    /// # Errors
    /// The disk's; what was not unlinked then is found by the scan at the next start.
    pub async fn retain<S: Into<Stay>>(&self, stay: impl Fn(&ObjectKey) -> S) -> Result<u64, CacheError> {
        let stay = |key: &ObjectKey| stay(key).into();
        let (unwanted, idle) = {
            let mut index = self.inner.index.lock();
            (index.forget_unwanted(stay), index.drop_idle(stay))
        };
        let inner = Arc::clone(&self.inner);
        blocking("unlink files in", &self.inner.dir, move || {
            inner.end_dropped(&idle);
            let count = (unwanted.len() + idle.whole.len() + idle.chunks.len()) as u64;
            inner.evicted.fetch_add(count, Relaxed);
            unwanted.iter().try_for_each(|(key, size)| scan::unlink(&inner.dir, key, *size)).map(|()| count)
        })
        .await
    }

    /// Gives the space of an unfinished file back, but of what is to stay, and unless it is being fetched at this moment.
    ///
    /// # Errors
    /// None but a task that panics.
    pub async fn abandon(&self, key: &ObjectKey, stay: &Stay) -> Result<(), CacheError> {
        let idle = self.inner.index.lock().drop_idle(|k| if k == key { stay.clone() } else { Stay::All });
        let inner = Arc::clone(&self.inner);
        blocking("unlink files in", &self.inner.dir, move || {
            inner.end_dropped(&idle);
            Ok(())
        })
        .await
    }

    /// Stops all fetches and refuses new ones, so that another process can take the folder over.
    pub async fn close(&self) {
        self.inner.index.lock().closed = true;
        self.inner.closed.cancel();
        self.inner.tasks.close();
        if tokio::time::timeout(CLOSE_WAIT, self.inner.tasks.wait()).await.is_err() {
            tracing::warn!(folder = %self.inner.dir.display(), "fetches still run in a cache that is closed");
        }
    }

    /// Stops all fetches, removes every byte and refuses everything from then on. Gives the bytes freed on the disk.
    ///
    /// # Errors
    /// The disk's; another call goes on.
    pub async fn erase(&self) -> Result<u64, CacheError> {
        self.close().await;
        self.inner.index.lock().clear();
        let (dir, inner) = (self.inner.dir.clone(), Arc::clone(&self.inner));
        blocking("erase", &dir.clone(), move || {
            let mut freed = 0;
            inner.space.leave();
            scrub::forget(&dir)?;
            for folder in [layout::data_folder(&dir), layout::fill_folder(&dir), layout::quarantine(&dir)] {
                freed += allocated(&folder)?;
                match fs::remove_dir_all(&folder) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
            Ok(freed)
        })
        .await
    }

    /// The complete file, or its fill with space for these chunks; a new fill if there is neither.
    fn find(&self, object: &Object, part: &Range<u64>, wanted: Wanted) -> Result<Here<E>, CacheError> {
        let (inner, Object { key, size, keep, in_part }) = (&self.inner, *object);
        let mut index = inner.index.lock();
        if index.closed {
            return Err(CacheError::Closed { path: inner.dir.clone() });
        }
        if keep == Keep::Own {
            index.own(&key);
        }
        if index.complete(&key).is_some() {
            return Ok(Here::Complete);
        }
        let begun = index.fill(&key).cloned();
        let is_new = begun.is_none();
        // Also who reads nothing needs the file.
        let of = if in_part { part.start..part.end.max(1) } else { 0..fill::places(size) };
        if is_new {
            // Before anything is kept for each of its chunks: how many there are is the origin's word.
            let need = chunk_range(size, of.end - 1).end.saturating_sub(chunk_range(size, of.start).start);
            index.admit(&inner.dir, need)?;
        }
        if in_part {
            index.in_part(&key);
        }
        let fill = begun.unwrap_or_else(|| Arc::new(Fill::new(key, size)));
        if !is_new && (index.has_all_space(&key) || fill.dropped.load(Relaxed)) {
            return Ok(Here::Fill(fill));
        }
        let lacking = fill.lacking(of);
        if lacking.is_empty() {
            return Ok(Here::Fill(fill));
        }
        let need = lacking.iter().map(|r| r.end - r.start).sum();
        index.admit(&inner.dir, need)?;
        if is_new {
            index.begin(&fill, keep, in_part);
        }
        let (short, lacking) = (watch::Sender::new(None), Arc::<[Range<u64>]>::from(lacking));
        let found =
            Arc::clone(inner).find_space(Arc::clone(&fill), Arc::clone(&lacking), inner.wait(need), wanted, short.clone());
        let room = Arc::new(Room { start: found.boxed().shared(), short });
        fill.give(&lacking, &room);
        index.reserve(&fill, need);
        drop(index);
        chunk::started(inner, &fill, &room, need);
        Ok(Here::Fill(fill))
    }

    /// Waits until all of these chunks are on the disk.
    async fn chunks<F, Fut>(&self, fill: &Arc<Fill<E>>, wanted: Range<u64>, fetch: &F) -> Result<(), ReadError<E>>
    where
        F: Fn(Range<u64>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, E>> + Send + 'static,
    {
        let flights = wanted.map(|n| (n, chunk::flight(&self.inner, fill, n, fetch, Lane::Reader))).collect::<Vec<_>>();
        for (n, flight) in flights {
            let Some(flight) = flight else { continue };
            match flight.await {
                Ok(()) => {}
                Err(e @ ReadError::Cache(_)) => return Err(e),
                // It may have been someone else's fetch, begun under other conditions: one attempt of our own.
                Err(_) => {
                    if let Some(flight) = chunk::flight(&self.inner, fill, n, fetch, Lane::Reader) {
                        flight.await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Chunks that are on the disk, from a file that is being filled. A bad one is missing from then on.
    async fn read_fill(&self, fill: &Arc<Fill<E>>, range: &Range<u64>) -> Result<Checked, CacheError> {
        if let Some(room) = fill.room(range.start / CHUNK) {
            room.start.clone().await?;
        }
        let (crcs, changes) = fill.at_rest(range).ok_or_else(|| chunk::removed(&self.inner, fill))?;
        let (dir, key, size, at) = (self.inner.dir.clone(), fill.key, fill.size, range.clone());
        match off(move || blocks::read(&fill::open_to_read(&dir, &key)?, size, &at, &crcs)).await {
            Ok(checked) => Ok(checked),
            Err(e) => {
                if let Unreadable::Rotten { start, .. } = e {
                    chunk::lost(&self.inner, fill, start / CHUNK, changes, &e).await;
                }
                Err(e.of("read", &layout::fill(&self.inner.dir, &fill.key)))
            }
        }
    }
}

fn allocated(path: &Path) -> io::Result<u64> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(e),
    };
    if !meta.is_dir() {
        return Ok(meta.blocks() * 512);
    }
    fs::read_dir(path)?.try_fold(0, |sum, entry| Ok(sum + allocated(&entry?.path())?))
}

async fn blocking<T: Send + 'static>(
    action: &'static str,
    path: &Path,
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, CacheError> {
    let result = tokio::task::spawn_blocking(f).await.unwrap_or_else(|e| Err(io::Error::other(e)));
    result.map_err(CacheError::disk(action, path))
}

#[cfg(test)]
mod tests;
