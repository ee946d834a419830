//! Fetches chunks, each once at a time, and ends fills.

use super::{Inner, Lane};
use crate::{
    CacheError, ReadError, blocks, chunk_range, chunks,
    fill::{self, Chunk, Fill, Flight, Lost, Room},
    layout,
    unreadable::{Unreadable, off},
};
use bytes::Bytes;
use futures::FutureExt as _;
use std::{
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    sync::{Arc, atomic::Ordering},
};
use tokio::sync::SemaphorePermit;

/// Called once for each new room of a fill: an object without chunks is complete when its file is made, one that has no space for
/// anything is over.
pub(super) fn started<E: std::error::Error + Clone + Send + Sync + 'static>(
    inner: &Arc<Inner<E>>,
    fill: &Arc<Fill<E>>,
    room: &Arc<Room>,
    bytes: u64,
) {
    let (inner, fill, room) = (Arc::clone(inner), Arc::clone(fill), Arc::clone(room));
    inner.tasks.clone().spawn(async move {
        match room.start.clone().await {
            Ok(()) if chunks(fill.size) == 0 => finish(&inner, &fill).await,
            Ok(()) => {}
            Err(e) if !without(&inner, &fill, &room, bytes) => end(&inner, &fill, Err(e)).await,
            Err(_) => {}
        }
    });
}

/// Takes a room that did not come off the count; false: the fill has no other.
fn without<E: std::error::Error + Clone + Send + Sync + 'static>(
    inner: &Inner<E>,
    fill: &Fill<E>,
    room: &Arc<Room>,
    bytes: u64,
) -> bool {
    let mut index = inner.index.lock();
    let goes_on = fill.goes_on_without(room);
    if goes_on {
        index.unreserve(fill, bytes);
    }
    goes_on
}

/// The fetch of a chunk, begun now if none is on its way; `None`: the chunk is there.
pub(super) fn flight<E, F, Fut>(inner: &Arc<Inner<E>>, fill: &Arc<Fill<E>>, n: u64, fetch: &F, lane: Lane) -> Option<Flight<E>>
where
    E: std::error::Error + Clone + Send + Sync + 'static,
    F: Fn(Range<u64>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Bytes, E>> + Send + 'static,
{
    let mut map = fill.map.lock();
    match &map.chunks[n as usize] {
        Chunk::Present => None,
        Chunk::Flying(flight) => Some(flight.clone()),
        chunk @ (Chunk::Missing | Chunk::Found) => {
            let found = matches!(chunk, Chunk::Found);
            let space = map.rooms[n as usize].clone();
            let task =
                inner.tasks.spawn(fly(Arc::clone(inner), Arc::clone(fill), n, Before { found, space }, fetch.clone(), lane));
            let path = layout::fill(&inner.dir, &fill.key);
            let flight =
                async move { task.await.unwrap_or_else(|e| Err(CacheError::disk("fill", path)(io::Error::other(e)).into())) };
            let flight = flight.boxed().shared();
            map.chunks[n as usize] = Chunk::Flying(flight.clone());
            map.here -= u64::from(found);
            Some(flight)
        }
    }
}

/// What there was of a chunk before it is fetched.
struct Before {
    /// It is on the disk, a process before this one said.
    found: bool,
    space: Option<Arc<Room>>,
}

/// Puts a chunk back to missing when its fetch ends without it, by an error or a panic.
struct Flying<'a, E: std::error::Error + Clone + Send + Sync + 'static>(&'a Fill<E>, u64);

impl<E: std::error::Error + Clone + Send + Sync + 'static> Drop for Flying<'_, E> {
    fn drop(&mut self) {
        let chunk = &mut self.0.map.lock().chunks[self.1 as usize];
        if matches!(chunk, Chunk::Flying(_)) {
            *chunk = Chunk::Missing;
        }
    }
}

/// Brings one chunk to the disk; one that is `found` there, if it is good, without fetching it.
async fn fly<E, F, Fut>(
    inner: Arc<Inner<E>>,
    fill: Arc<Fill<E>>,
    n: u64,
    Before { found, space }: Before,
    fetch: F,
    lane: Lane,
) -> Result<(), ReadError<E>>
where
    E: std::error::Error + Clone + Send + Sync + 'static,
    F: Fn(Range<u64>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Bytes, E>> + Send + 'static,
{
    let flying = Flying(&fill, n);
    let Some(room) = space else { return Err(removed(&inner, &fill).into()) };
    room.start.clone().await?;
    let range = chunk_range(fill.size, n);
    let want = range.end - range.start;
    if found {
        let _permits = permits(&inner, want, lane).await;
        if let Some(crcs) = compare(&inner, &fill, &range).await {
            landed(&inner, &fill, n, &crcs);
            return Ok(());
        }
        fill.is_rewritten(n);
        // Whoever counted it goes over it, should it not come.
        inner.common.damages.send_modify(|_| ());
    }
    let fetched = async {
        let permits = permits(&inner, want, lane).await;
        fetch(range.clone()).await.map(|bytes| (bytes, permits)).map_err(ReadError::Fetch)
    };
    // The permits are held until the bytes are written: a slow disk must hold the fetches back.
    let (bytes, _permits) = tokio::select! {
        biased;
        () = inner.closed.cancelled() => return Err(CacheError::Closed { path: inner.dir.clone() }.into()),
        fetched = fetched => fetched?,
    };
    if bytes.len() as u64 != want {
        return Err(ReadError::Length { want, got: bytes.len() as u64 });
    }
    let (dir, of) = (inner.dir.clone(), Arc::clone(&fill));
    let write = move || {
        fill::open_to_write(&dir, &of.key)?.write_all_at(&bytes, range.start)?;
        let crcs = blocks::crcs(of.size, &bytes);
        if chunks(of.size) > 1 {
            of.record(&dir, n, &crcs);
        }
        Ok(crcs)
    };
    let crcs = super::blocking("write", &layout::fill(&inner.dir, &fill.key), write).await?;
    landed(&inner, &fill, n, &crcs);
    drop(flying);
    Ok(())
}

/// The chunk is on the disk; the last one makes the file complete.
fn landed<E: std::error::Error + Clone + Send + Sync + 'static>(
    inner: &Arc<Inner<E>>,
    fill: &Arc<Fill<E>>,
    n: u64,
    crcs: &[u32],
) {
    if fill.landed(n, crcs) {
        complete(inner, fill);
    }
}

/// Apart: the readers of the last chunk do not wait for the disk to sync.
fn complete<E: std::error::Error + Clone + Send + Sync + 'static>(inner: &Arc<Inner<E>>, fill: &Arc<Fill<E>>) {
    let (inner, fill) = (Arc::clone(inner), Arc::clone(fill));
    inner.tasks.clone().spawn(async move { finish(&inner, &fill).await });
}

/// A chunk that was read when so many changes had been made is what it was written as.
pub(super) fn good<E: std::error::Error + Clone + Send + Sync + 'static>(
    inner: &Arc<Inner<E>>,
    fill: &Arc<Fill<E>>,
    n: u64,
    changes: u64,
) {
    if fill.is_good(n, changes) {
        complete(inner, fill);
    }
}

/// A chunk of an unfinished file that was read when so many changes had been made is bad: it is missing from then on, on the disk as
/// well, and whoever goes on filling it is told.
pub(super) async fn lost<E: std::error::Error + Clone + Send + Sync + 'static>(
    inner: &Arc<Inner<E>>,
    fill: &Arc<Fill<E>>,
    n: u64,
    changes: u64,
    error: &Unreadable,
) {
    let lost = fill.lost(n, changes);
    if lost == Lost::Before {
        return;
    }
    // It may have become complete with that chunk in it.
    inner.index.lock().doubt(&fill.key);
    let path = layout::fill(&inner.dir, &fill.key);
    tracing::warn!(path = %path.display(), %error, "a chunk of an unfinished file is bad; it is fetched again");
    let (dir, of) = (inner.dir.clone(), Arc::clone(fill));
    if let Err(error) = super::blocking("write", &layout::journal(&inner.dir, &fill.key), move || of.tell_lost(&dir)).await {
        tracing::warn!(%error, "a bad chunk stays in the journal; a restart finds it once more");
    }
    inner.common.damages.send_modify(|count| *count += u64::from(lost == Lost::Good));
}

/// The checksums of a chunk that a process before this one had written, if it is still what they say.
async fn compare<E: std::error::Error + Clone + Send + Sync + 'static>(
    inner: &Inner<E>,
    fill: &Fill<E>,
    range: &Range<u64>,
) -> Option<Vec<u32>> {
    let (dir, key, size, range, crcs) = (inner.dir.clone(), fill.key, fill.size, range.clone(), fill.crcs(range));
    let read = off(move || blocks::read(&fill::open_to_read(&dir, &key)?, size, &range, &crcs).map(|_| crcs)).await;
    read.inspect_err(|error| tracing::info!(key = %fill.key, %error, "a chunk was not safely on the disk; it is fetched again"))
        .ok()
}

/// Memory for a fetch.
async fn permits<E: std::error::Error + Clone + Send + Sync + 'static>(
    inner: &Inner<E>,
    bytes: u64,
    lane: Lane,
) -> (Option<SemaphorePermit<'_>>, Option<SemaphorePermit<'_>>) {
    let kib = bytes.div_ceil(1024) as u32;
    // An error means a closed semaphore, and these are never closed.
    let background = match lane {
        Lane::Background => inner.common.background.acquire_many(kib).await.ok(),
        Lane::Reader => None,
    };
    (background, inner.common.budget.acquire_many(kib).await.ok())
}

pub(super) fn removed<E: std::error::Error + Clone + Send + Sync + 'static>(inner: &Inner<E>, fill: &Fill<E>) -> CacheError {
    CacheError::Removed { path: layout::fill(&inner.dir, &fill.key) }
}

async fn finish<E: std::error::Error + Clone + Send + Sync + 'static>(inner: &Arc<Inner<E>>, fill: &Arc<Fill<E>>) {
    if fill.dropped.load(Ordering::Acquire) {
        fill.ended.send_replace(Some(Err(removed(inner, fill))));
        return;
    }
    let Some(sidecar) = fill.sidecar() else { return };
    let (dir, of) = (inner.dir.clone(), Arc::clone(fill));
    let result = tokio::task::spawn_blocking(move || of.finish(&dir, &sidecar)).await;
    let path = layout::fill(&inner.dir, &fill.key);
    end(inner, fill, result.unwrap_or_else(|e| Err(CacheError::disk("finish", path)(io::Error::other(e))))).await;
}

/// The index knows first, then those who wait. A fill that failed leaves nothing behind, before another one may begin.
async fn end<E: std::error::Error + Clone + Send + Sync + 'static>(
    inner: &Arc<Inner<E>>,
    fill: &Arc<Fill<E>>,
    result: Result<(), CacheError>,
) {
    if result.is_err() {
        let (dir, of) = (inner.dir.clone(), Arc::clone(fill));
        if let Err(e) = tokio::task::spawn_blocking(move || of.abandon(&dir)).await {
            tracing::warn!(key = %fill.key, error = %e, "remove unfinished file");
        }
    }
    inner.index.lock().end(fill, result.is_ok());
    fill.ended.send_replace(Some(result));
}
