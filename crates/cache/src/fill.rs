//! One object on its way to the disk.

mod files;
mod journal;

#[cfg(test)]
pub(crate) use files::{STEPS, Whole};
pub(crate) use files::{abandon, begin, create, finish, open_to_read, open_to_write};
pub(crate) use journal::{
    Journal, append, decode as read_journal, load as load_journal, with_checksums as journal_with_checksums,
};

use crate::{
    CHUNK, CacheError, ReadError,
    blocks::{block_size, covering},
    chunks,
    sidecar::Sidecar,
};
use futures::future::{BoxFuture, Shared};
use larder_core::key::ObjectKey;
use parking_lot::Mutex;
use std::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};
use tokio::sync::watch;

/// Done when the file is there and its space reserved. Made once, shared by all.
pub(crate) type Start = Shared<BoxFuture<'static, Result<(), CacheError>>>;
/// One fetch of one chunk, shared by all its readers.
pub(crate) type Flight<E> = Shared<BoxFuture<'static, Result<(), ReadError<E>>>>;

pub(crate) enum Chunk<E: std::error::Error + Clone + Send + Sync + 'static> {
    Missing,
    /// Written by a process before this one, says the journal.
    Found,
    Flying(Flight<E>),
    /// On the disk.
    Present,
}

/// Which chunks are on the disk, and the checksums they were written with.
pub(crate) struct Map<E: std::error::Error + Clone + Send + Sync + 'static> {
    pub chunks: Vec<Chunk<E>>,
    /// Chunks that are present.
    present: u64,
    /// Of each block; meaningless for a chunk that is missing.
    crcs: Vec<u32>,
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> Map<E> {
    fn put(&mut self, n: u64, size: u64, crcs: &[u32]) {
        let first = (n * CHUNK / block_size(size)) as usize;
        self.crcs[first..first + crcs.len()].copy_from_slice(crcs);
    }
}

pub(crate) struct Fill<E: std::error::Error + Clone + Send + Sync + 'static> {
    pub key: ObjectKey,
    pub size: u64,
    pub start: Start,
    /// Why it waits for neighbours to make room, while it does.
    pub short: watch::Sender<Option<CacheError>>,
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
            short: watch::Sender::new(None),
            map: Mutex::new(Map { chunks, present: 0, crcs }),
            dropped: AtomicBool::new(false),
            ended: watch::Sender::new(None),
        }
    }

    /// One that a process before this one had begun.
    pub fn found(key: ObjectKey, journal: &Journal) -> Self {
        let fill = Self::new(key, journal.size, futures::FutureExt::shared(Box::pin(std::future::ready(Ok(())))));
        {
            let mut map = fill.map.lock();
            for (n, crcs) in &journal.chunks {
                map.put(*n, fill.size, crcs);
                map.chunks[*n as usize] = Chunk::Found;
            }
        }
        fill
    }

    /// Waits until it waits for neighbours to make room.
    pub async fn is_short(&self) -> CacheError {
        let mut short = self.short.subscribe();
        match short.wait_for(Option::is_some).await.map(|short| short.clone()) {
            Ok(Some(error)) => error,
            _ => std::future::pending().await,
        }
    }

    /// All on the disk already?
    pub fn has(&self, wanted: Range<u64>) -> bool {
        let map = self.map.lock();
        wanted.into_iter().all(|n| matches!(map.chunks[n as usize], Chunk::Present | Chunk::Found))
    }

    /// A chunk is on the disk; was it the last one?
    pub fn landed(&self, n: u64, crcs: &[u32]) -> bool {
        let mut map = self.map.lock();
        map.put(n, self.size, crcs);
        map.chunks[n as usize] = Chunk::Present;
        map.present += 1;
        map.present == map.chunks.len() as u64
    }

    /// A chunk on the disk turned out to be bad.
    pub fn lost(&self, n: u64) {
        let mut map = self.map.lock();
        match map.chunks[n as usize] {
            Chunk::Present => map.present -= 1,
            Chunk::Found => {}
            Chunk::Missing | Chunk::Flying(_) => return,
        }
        map.chunks[n as usize] = Chunk::Missing;
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
