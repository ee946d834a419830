//! The cache as its users see it.

mod chunk;

use crate::{
    CHUNK, CacheError, Floor, ReadError, chunk_range, chunks,
    fill::{self, Chunk, Fill},
    index::Index,
    scan,
    sidecar::crc32c,
    space::Space,
};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, stream};
use larder_core::key::ObjectKey;
use parking_lot::Mutex;
use std::{
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Bounds of a cache.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes the dataset may use on this node; 0: no limit.
    pub quota: u64,
    /// Space of the disk that is left alone.
    pub floor: Floor,
    /// Bytes of all fetches in flight together; a quarter is kept for reads that someone waits for. Default 64 MiB:
    /// 16 chunks, enough for 1.25 GB/s at 50 ms per chunk.
    pub in_flight: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { quota: 0, floor: Floor::default(), in_flight: 64 << 20 }
    }
}

/// What the cache holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Complete files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes reserved for files on their way.
    pub fill_bytes: u64,
}

/// The cache of one dataset; clones are the same cache. `E` is the error of the fetchers.
pub struct Cache<E: std::error::Error + Clone + Send + Sync + 'static> {
    inner: Arc<Inner<E>>,
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> Clone for Cache<E> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> std::fmt::Debug for Cache<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("dir", &self.inner.dir).field("usage", &self.usage()).finish()
    }
}

struct Inner<E: std::error::Error + Clone + Send + Sync + 'static> {
    dir: PathBuf,
    index: Mutex<Index<E>>,
    space: Space,
    /// In KiB.
    budget: Semaphore,
    background: Semaphore,
    closed: CancellationToken,
    tasks: TaskTracker,
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> Inner<E> {
    /// Ends fills that are marked as dropped. Blocks.
    fn end_dropped(&self, fills: &[Arc<Fill<E>>]) {
        // Before the index knows: another fill of the same object may begin then, with a file of the same name.
        fills.iter().for_each(|fill| fill::abandon(&self.dir, &fill.key));
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

enum Found<E: std::error::Error + Clone + Send + Sync + 'static> {
    Complete,
    Fill(Arc<Fill<E>>),
}

/// A file that turns out to be gone or unreadable is fetched anew; more often than this means the disk is at its end.
const TRIES: usize = 3;
/// Longest wait for fetches to end before the folder is erased under them.
const ERASE_WAIT: Duration = Duration::from_secs(30);

impl<E: std::error::Error + Clone + Send + Sync + 'static> Cache<E> {
    /// Scans the folder and takes it over; one process at a time. Blocks while it scans.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(dir: &Path, options: Options) -> Result<Self, CacheError> {
        let complete = scan::scan(dir)?;
        let budget = (options.in_flight.max(CHUNK) >> 10) as usize;
        Ok(Self {
            inner: Arc::new(Inner {
                dir: dir.to_owned(),
                index: Mutex::new(Index::new(complete, options.quota)),
                space: Space::new(options.floor),
                budget: Semaphore::new(budget),
                background: Semaphore::new((budget * 3 / 4).max((CHUNK >> 10) as usize)),
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
        Usage { files: index.files(), bytes, fill_bytes }
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

    /// Is the range on the disk, so that reading it asks no one?
    #[must_use]
    pub fn has(&self, key: &ObjectKey, range: &Range<u64>) -> bool {
        let index = self.inner.index.lock();
        index.complete(key).is_some() || index.fill(key).is_some_and(|f| f.has(covering(f.size, range)))
    }

    /// As [`Self::open_complete`], if that needs no more than to open the file. Blocks for the disk only.
    #[must_use]
    pub fn open_now(&self, key: &ObjectKey) -> Option<File> {
        self.contains(key).then(|| File::open(scan::data(&self.inner.dir, key)).ok())?
    }

    /// The complete file, read-only. It is never changed again; erasing unlinks it.
    pub async fn open_complete(&self, key: &ObjectKey) -> Option<File> {
        if !self.contains(key) {
            return None;
        }
        let path = scan::data(&self.inner.dir, key);
        let open = path.clone();
        match blocking("open", &path, move || File::open(open)).await {
            Ok(file) => Some(file),
            Err(e) => {
                self.discard(key, &e).await;
                None
            }
        }
    }

    /// A whole chunk that is on the disk: the file that holds it and the CRC-32C it was written with. Fetches nothing and waits
    /// for nobody.
    pub async fn chunk_here(&self, key: &ObjectKey, range: &Range<u64>) -> Option<(File, u32)> {
        let n = range.start / CHUNK;
        let fill = {
            let index = self.inner.index.lock();
            let fill = index.fill(key).cloned();
            let size = index.complete(key).or(fill.as_ref().map(|f| f.size))?;
            if chunk_range(size, n) != *range {
                return None;
            }
            fill
        };
        if let Some(fill) = fill {
            let crc = if let Chunk::Present(crc) = fill.chunks.lock()[n as usize] { crc } else { return None };
            return Some((fill.start.clone().await.ok()?.try_clone().ok()?, crc));
        }
        let path = scan::data(&self.inner.dir, key);
        let open = path.clone();
        let opened = blocking("open", &path, move || {
            let sidecar = scan::read_sidecar(&open).map_err(io::Error::other)?;
            Ok((File::open(&open)?, sidecar))
        });
        let (file, sidecar) = opened.await.ok()?;
        Some((file, *sidecar.crcs.get(n as usize)?))
    }

    /// Waits until the fetch of this chunk has ended, if one is under way; begins none.
    pub async fn landed(&self, key: &ObjectKey, range: &Range<u64>) {
        let fill = self.inner.index.lock().fill(key).cloned();
        let Some(fill) = fill else { return };
        let flight = match fill.chunks.lock().get((range.start / CHUNK) as usize) {
            Some(Chunk::Flying(flight)) => flight.clone(),
            _ => return,
        };
        // How it ended is on the disk.
        let _ = flight.await;
    }

    /// Reads a range; what is not on the disk is fetched in whole chunks and kept. The range lies inside the object.
    ///
    /// # Errors
    /// [`ReadError::Cache`]: this disk cannot keep or give it, the bytes can be had past it. Else the fetcher's error.
    pub async fn read_range<F, Fut>(
        &self,
        key: &ObjectKey,
        size: u64,
        range: Range<u64>,
        fetch: F,
    ) -> Result<Bytes, ReadError<E>>
    where
        F: Fn(Range<u64>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, E>> + Send + 'static,
    {
        let mut last = None;
        for _ in 0..TRIES {
            let read = match self.find(key, size)? {
                Found::Complete => {
                    let path = scan::data(&self.inner.dir, key);
                    let range = range.clone();
                    blocking("read", &path.clone(), move || pread(&File::open(path)?, &range)).await
                }
                Found::Fill(fill) => {
                    self.chunks(&fill, covering(size, &range), &fetch).await?;
                    let file = fill.start.clone().await?;
                    let range = range.clone();
                    blocking("read", &fill::path(&self.inner.dir, key), move || pread(&file, &range)).await
                }
            };
            match read {
                Ok(bytes) => return Ok(bytes),
                Err(e) => {
                    self.discard(key, &e).await;
                    last = Some(e);
                }
            }
        }
        Err(last.unwrap_or_else(|| CacheError::Erased { path: self.inner.dir.clone() }).into())
    }

    /// Fetches the whole object, `parallel` chunks at once, and waits until it is complete and durable.
    ///
    /// # Errors
    /// As [`Self::read_range`]; chunks that are there stay, so that another attempt goes on.
    pub async fn fill<F, Fut>(&self, key: &ObjectKey, size: u64, parallel: usize, fetch: F) -> Result<(), ReadError<E>>
    where
        F: Fn(Range<u64>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, E>> + Send + 'static,
    {
        let Found::Fill(fill) = self.find(key, size)? else { return Ok(()) };
        let present = || futures::future::ready(Ok(())).boxed().shared();
        let flights =
            (0..chunks(size)).map(|n| chunk::flight(&self.inner, &fill, n, &fetch, Lane::Background).unwrap_or_else(present));
        let mut flights = stream::iter(flights).buffer_unordered(parallel.max(1));
        while let Some(flown) = flights.next().await {
            flown?;
        }
        drop(flights);
        let mut ended = fill.ended.subscribe();
        let ended = ended.wait_for(Option::is_some).await;
        ended.ok().and_then(|e| e.clone()).unwrap_or_else(|| Err(CacheError::Erased { path: self.inner.dir.clone() }))?;
        Ok(())
    }

    /// Reads the whole file and compares it with its checksums; a file that does not match is thrown away.
    ///
    /// # Errors
    /// The disk's; the file is thrown away then too.
    pub async fn verify(&self, key: &ObjectKey) -> Result<bool, CacheError> {
        if !self.contains(key) {
            return Ok(false);
        }
        let path = scan::data(&self.inner.dir, key);
        let good = blocking("verify", &path.clone(), move || {
            let sidecar = scan::read_sidecar(&path).map_err(io::Error::other)?;
            let file = File::open(&path)?;
            let mut crcs = sidecar.crcs.iter().enumerate();
            crcs.try_fold(true, |good, (n, crc)| {
                let range = chunk_range(sidecar.size, n as u64);
                Ok::<_, io::Error>(good && crc32c(&pread(&file, &range)?) == *crc)
            })
        })
        .await;
        match good {
            Ok(true) => Ok(true),
            Ok(false) => {
                let path = scan::data(&self.inner.dir, key);
                self.discard(key, &CacheError::disk("verify", path)(io::ErrorKind::InvalidData.into())).await;
                Ok(false)
            }
            Err(e) => {
                self.discard(key, &e).await;
                Err(e)
            }
        }
    }

    /// Unlinks all files but those to keep, complete ones and those that nobody goes on filling; who reads one goes on reading
    /// it. Gives how many went.
    ///
    /// # Errors
    /// The disk's; what was not unlinked then is found by the scan at the next start.
    pub async fn retain(&self, keep: impl Fn(&ObjectKey) -> bool) -> Result<u64, CacheError> {
        let (unwanted, idle) = {
            let mut index = self.inner.index.lock();
            (index.forget_unwanted(&keep), index.drop_idle(&keep))
        };
        let inner = Arc::clone(&self.inner);
        blocking("unlink files in", &self.inner.dir, move || {
            inner.end_dropped(&idle);
            let count = (unwanted.len() + idle.len()) as u64;
            unwanted.iter().try_for_each(|key| unlink(&scan::data(&inner.dir, key))).map(|()| count)
        })
        .await
    }

    /// Gives the space of an unfinished file back, unless it is being fetched at this moment.
    ///
    /// # Errors
    /// None but a task that panics.
    pub async fn abandon(&self, key: &ObjectKey) -> Result<(), CacheError> {
        let idle = self.inner.index.lock().drop_idle(|k| k != key);
        let inner = Arc::clone(&self.inner);
        blocking("unlink files in", &self.inner.dir, move || {
            inner.end_dropped(&idle);
            Ok(())
        })
        .await
    }

    /// Stops all fetches, removes every byte and refuses everything from then on. Gives the bytes freed on the disk.
    ///
    /// # Errors
    /// The disk's; another call goes on.
    pub async fn erase(&self) -> Result<u64, CacheError> {
        {
            let mut index = self.inner.index.lock();
            index.erased = true;
            index.clear();
        }
        self.inner.closed.cancel();
        self.inner.tasks.close();
        if tokio::time::timeout(ERASE_WAIT, self.inner.tasks.wait()).await.is_err() {
            tracing::warn!(folder = %self.inner.dir.display(), "fetches still run; erasing under them");
        }
        let dir = self.inner.dir.clone();
        blocking("erase", &dir.clone(), move || {
            let mut freed = 0;
            for folder in ["data", "fill"].map(|f| dir.join(f)) {
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

    /// The complete file or its fill; a new fill if there is neither.
    fn find(&self, key: &ObjectKey, size: u64) -> Result<Found<E>, CacheError> {
        let inner = &self.inner;
        let mut index = inner.index.lock();
        if index.erased {
            return Err(CacheError::Erased { path: inner.dir.clone() });
        }
        if index.complete(key).is_some() {
            return Ok(Found::Complete);
        }
        if let Some(fill) = index.fill(key) {
            return Ok(Found::Fill(Arc::clone(fill)));
        }
        let free = index.free();
        if size > free {
            return Err(CacheError::QuotaExceeded { path: inner.dir.clone(), need: size, free, quota: index.quota() });
        }
        let task = inner.tasks.spawn_blocking({
            let (inner, key) = (Arc::clone(inner), *key);
            move || {
                let file = fill::create(&inner.dir, &key)?;
                inner.space.reserve(&inner.dir, &fill::path(&inner.dir, &key), &file, size)?;
                Ok(Arc::new(file))
            }
        });
        let path = fill::path(&inner.dir, key);
        let start = async move { task.await.unwrap_or_else(|e| Err(CacheError::disk("make", path)(io::Error::other(e)))) };
        let fill = Arc::new(Fill::new(*key, size, start.boxed().shared()));
        index.begin(&fill);
        drop(index);
        chunk::started(inner, &fill);
        Ok(Found::Fill(fill))
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

    /// Throws a file away that cannot be read.
    async fn discard(&self, key: &ObjectKey, why: &CacheError) {
        if !self.inner.index.lock().forget(key) {
            return;
        }
        tracing::warn!(%key, error = %why, "thrown away; it is fetched again");
        let path = scan::data(&self.inner.dir, key);
        let file = path.clone();
        if let Err(e) = blocking("remove", &path, move || unlink(&file)).await {
            tracing::warn!(%key, error = %e, "a file that cannot be read stays on the disk");
        }
    }
}

/// Removes a complete file and its sidecar, if they are there.
fn unlink(file: &Path) -> io::Result<()> {
    for path in [file.to_owned(), scan::meta(file)] {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Chunks that hold a range.
fn covering(size: u64, range: &Range<u64>) -> Range<u64> {
    if range.is_empty() { 0..0 } else { range.start / CHUNK..range.end.div_ceil(CHUNK).min(chunks(size)) }
}

fn pread(file: &File, range: &Range<u64>) -> io::Result<Bytes> {
    let mut buf = vec![0; (range.end - range.start) as usize];
    file.read_exact_at(&mut buf, range.start)?;
    Ok(buf.into())
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
