//! One object on its way to the disk.

use crate::{CacheError, ReadError, chunks, scan, sidecar::Sidecar};
use futures::future::{BoxFuture, Shared};
use larder_core::key::ObjectKey;
use parking_lot::Mutex;
use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
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
    /// On the disk, with its CRC.
    Present(u32),
}

pub(crate) struct Fill<E: std::error::Error + Clone + Send + Sync + 'static> {
    pub key: ObjectKey,
    pub size: u64,
    pub start: Start,
    pub chunks: Mutex<Vec<Chunk<E>>>,
    /// Chunks on the disk.
    pub present: AtomicU64,
    /// Its file was unlinked to make room. Who reads from it goes on; it never becomes a complete file.
    pub dropped: AtomicBool,
    /// How it ended.
    pub ended: watch::Sender<Option<Result<(), CacheError>>>,
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> Fill<E> {
    pub fn new(key: ObjectKey, size: u64, start: Start) -> Self {
        let chunks = (0..chunks(size)).map(|_| Chunk::Missing).collect();
        Self {
            key,
            size,
            start,
            chunks: Mutex::new(chunks),
            present: AtomicU64::new(0),
            dropped: AtomicBool::new(false),
            ended: watch::Sender::new(None),
        }
    }

    /// All on the disk already?
    pub fn has(&self, wanted: std::ops::Range<u64>) -> bool {
        let chunks = self.chunks.lock();
        wanted.into_iter().all(|n| matches!(chunks[n as usize], Chunk::Present(_)))
    }

    /// Marks it as dropped, if it is not whole and nobody works on it.
    pub fn drop_if_idle(&self) -> bool {
        let chunks = self.chunks.lock();
        let idle = chunks.iter().any(|c| matches!(c, Chunk::Missing)) && !chunks.iter().any(|c| matches!(c, Chunk::Flying(_)));
        if idle {
            self.dropped.store(true, Ordering::Release);
        }
        idle
    }

    /// The sidecar, if every chunk is on the disk.
    pub fn sidecar(&self) -> Option<Sidecar> {
        let crc = |c: &Chunk<E>| if let Chunk::Present(crc) = c { Some(*crc) } else { None };
        let crcs = self.chunks.lock().iter().map(crc).collect::<Option<Vec<_>>>()?;
        Some(Sidecar { size: self.size, crcs })
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
pub(crate) fn finish(dir: &Path, key: &ObjectKey, file: &File, sidecar: &Sidecar) -> Result<(), CacheError> {
    let (from, to) = (path(dir, key), scan::data(dir, key));
    file.sync_data().map_err(CacheError::disk("sync", &from))?;
    let meta_from = scan::meta(&from);
    let write = || {
        let mut meta = File::create(&meta_from)?;
        meta.write_all(&sidecar.encode())?;
        meta.sync_data()
    };
    write().map_err(CacheError::disk("write", &meta_from))?;
    let shard = to.parent().unwrap_or(dir);
    if !shard.is_dir() {
        fs::create_dir_all(shard).map_err(CacheError::disk("make", shard))?;
        sync_folder(&dir.join("data"))?;
    }
    let meta_to = scan::meta(&to);
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
    for path in [scan::meta(&path), path] {
        if let Err(e) = fs::remove_file(&path)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), error = %e, "remove unfinished file; the next start does it");
        }
    }
}
