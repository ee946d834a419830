//! One object on its way to the disk.

use crate::{
    CHUNK, CacheError, ReadError,
    blocks::{block_size, covering},
    chunks, scan,
    sidecar::{self, Sidecar},
};
use futures::future::{BoxFuture, Shared};
use larder_core::key::ObjectKey;
use parking_lot::Mutex;
use std::{
    fs::{self, File},
    io::Write as _,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::watch;

/// The file, once its space is reserved. Made once, shared by all.
pub(crate) type Start = Shared<BoxFuture<'static, Result<Arc<File>, CacheError>>>;
/// One fetch of one chunk, shared by all its readers.
pub(crate) type Flight<E> = Shared<BoxFuture<'static, Result<(), ReadError<E>>>>;

pub(crate) enum Chunk<E: std::error::Error + Clone + Send + Sync + 'static> {
    Missing,
    Flying(Flight<E>),
    /// On the disk.
    Present,
}

/// Which chunks are on the disk, and the checksums they were written with.
pub(crate) struct Map<E: std::error::Error + Clone + Send + Sync + 'static> {
    pub chunks: Vec<Chunk<E>>,
    /// Chunks on the disk.
    present: u64,
    /// Of each block; meaningless for a chunk that is not on the disk.
    crcs: Vec<u32>,
}

pub(crate) struct Fill<E: std::error::Error + Clone + Send + Sync + 'static> {
    pub key: ObjectKey,
    pub size: u64,
    pub start: Start,
    pub map: Mutex<Map<E>>,
    /// Its file was unlinked to make room. Who reads from it goes on; it never becomes a complete file.
    pub dropped: AtomicBool,
    /// How it ended.
    pub ended: watch::Sender<Option<Result<(), CacheError>>>,
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> Fill<E> {
    pub fn new(key: ObjectKey, size: u64, start: Start) -> Self {
        let chunks = (0..chunks(size)).map(|_| Chunk::Missing).collect();
        let crcs = vec![0; size.div_ceil(block_size(size)) as usize];
        Self {
            key,
            size,
            start,
            map: Mutex::new(Map { chunks, present: 0, crcs }),
            dropped: AtomicBool::new(false),
            ended: watch::Sender::new(None),
        }
    }

    /// All on the disk already?
    pub fn has(&self, wanted: Range<u64>) -> bool {
        let map = self.map.lock();
        wanted.into_iter().all(|n| matches!(map.chunks[n as usize], Chunk::Present))
    }

    /// A chunk is on the disk; was it the last one?
    pub fn landed(&self, n: u64, crcs: &[u32]) -> bool {
        let first = (n * CHUNK / block_size(self.size)) as usize;
        let mut map = self.map.lock();
        map.crcs[first..first + crcs.len()].copy_from_slice(crcs);
        map.chunks[n as usize] = Chunk::Present;
        map.present += 1;
        map.present == map.chunks.len() as u64
    }

    /// A chunk on the disk turned out to be bad.
    pub fn lost(&self, n: u64) {
        let mut map = self.map.lock();
        if matches!(map.chunks[n as usize], Chunk::Present) {
            map.chunks[n as usize] = Chunk::Missing;
            map.present -= 1;
        }
    }

    /// Checksums of the blocks that hold a range of chunks that are on the disk.
    pub fn crcs(&self, range: &Range<u64>) -> Vec<u32> {
        self.map.lock().crcs[covering(self.size, range)].to_vec()
    }

    /// Marks it as dropped, if it is not whole and nobody works on it.
    pub fn drop_if_idle(&self) -> bool {
        let map = self.map.lock();
        let idle =
            map.chunks.iter().any(|c| matches!(c, Chunk::Missing)) && !map.chunks.iter().any(|c| matches!(c, Chunk::Flying(_)));
        if idle {
            self.dropped.store(true, Ordering::Release);
        }
        idle
    }

    /// The sidecar, if every chunk is on the disk.
    pub fn sidecar(&self) -> Option<Sidecar> {
        let map = self.map.lock();
        (map.present == map.chunks.len() as u64).then(|| Sidecar { size: self.size, crcs: map.crcs.clone() })
    }
}

/// Where the file lies while it is filled.
pub(crate) fn path(dir: &Path, key: &ObjectKey) -> PathBuf {
    dir.join("fill").join(key.to_string())
}

/// Makes the file. Blocks.
pub(crate) fn create(dir: &Path, key: &ObjectKey) -> Result<File, CacheError> {
    let path = path(dir, key);
    File::options().read(true).write(true).create(true).truncate(true).open(&path).map_err(CacheError::disk("make", path))
}

/// Makes the file durable and puts it among the complete ones: sidecar first, so that no complete file is without. Blocks.
pub(crate) fn finish(dir: &Path, key: &ObjectKey, file: &File, whole: &Sidecar) -> Result<(), CacheError> {
    let (from, to) = (path(dir, key), scan::data(dir, key));
    file.sync_data().map_err(CacheError::disk("sync", &from))?;
    let meta_from = sidecar::path(&from);
    let write = || {
        let mut meta = File::create(&meta_from)?;
        meta.write_all(&whole.encode())?;
        meta.sync_data()
    };
    write().map_err(CacheError::disk("write", &meta_from))?;
    let shard = to.parent().unwrap_or(dir);
    if !shard.is_dir() {
        fs::create_dir_all(shard).map_err(CacheError::disk("make", shard))?;
        sync_folder(&dir.join("data"))?;
    }
    let meta_to = sidecar::path(&to);
    fs::rename(&meta_from, &meta_to).map_err(CacheError::disk("rename to", &meta_to))?;
    fs::rename(&from, &to).map_err(CacheError::disk("rename to", &to))?;
    sync_folder(shard)
}

fn sync_folder(folder: &Path) -> Result<(), CacheError> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(CacheError::disk("sync", folder))
}

/// Removes what a fill left behind. Blocks.
pub(crate) fn abandon(dir: &Path, key: &ObjectKey) {
    let path = path(dir, key);
    for path in [sidecar::path(&path), path] {
        if let Err(e) = fs::remove_file(&path)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), error = %e, "remove unfinished file; the next start does it");
        }
    }
}
