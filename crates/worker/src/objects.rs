//! Answers to peers: from the disk, else from the origin.

use crate::{
    copies,
    metrics::{BySource, ByStatus},
    report::{Topic, cache_problem, origin_problem},
    worker::{Located, Worker, locate},
};
use bytes::Bytes;
use futures::{StreamExt as _, future::BoxFuture, stream};
use larder_cache::{CHUNK, CacheError, Keep, ReadError, Unchecked};
use larder_core::key::ObjectKey;
use larder_origin::{Error as OriginError, Lane, Reason, Turn};
use larder_peer::{Body, CopyReply, ObjectReply, ObjectRequest, ObjectSource, Refusal, Source};
use std::{fs::File, io, ops::Range, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};

/// The data port's side of a worker.
pub(crate) struct DataPort(pub Arc<Worker>);

/// A peer takes 10 s of silence for a dead node and then asks others even for what is on this disk: answer before that.
/// The fetch goes on, and the next attempt joins it or finds its bytes.
pub(crate) const FIRST_BYTE: Duration = Duration::from_secs(8);
/// Pieces of one answer fetched or read at the same time.
const AHEAD: usize = 2;
/// Piece of a file that is complete here; one that is not goes out chunk by chunk, as it comes.
const PIECE: u64 = 1 << 20;

impl ObjectSource for DataPort {
    async fn object(&self, request: ObjectRequest) -> Result<ObjectReply, Refusal> {
        let len = request.range.end - request.range.start;
        let reply = answer(&self.0, request).await;
        let metrics = &self.0.metrics;
        match &reply {
            Ok(reply) => drop(metrics.served.get_or_create(&BySource { source: reply.source.as_str() }).inc_by(len)),
            Err(refusal) => drop(metrics.refused.get_or_create(&ByStatus { status: refusal.status().into() }).inc()),
        }
        reply
    }

    async fn copy(
        &self,
        dataset_uid: &str,
        key: ObjectKey,
        range: Range<u64>,
        fetch: Option<(String, u64)>,
    ) -> Result<CopyReply, Refusal> {
        same_dataset(&self.0, dataset_uid)?;
        copies::give(&self.0, &key, &range, fetch).await
    }

    async fn catalog(&self, dataset_uid: &str, digest: &str) -> Result<File, Refusal> {
        let worker = &self.0;
        same_dataset(worker, dataset_uid)?;
        if worker.catalogs.get(digest).is_none() {
            return Err(unknown_snapshot(worker, digest));
        }
        let path = worker.catalogs.path(digest);
        let opened = tokio::task::spawn_blocking(move || File::open(path)).await.unwrap_or_else(|e| Err(io::Error::other(e)));
        opened.map_err(|e| Refusal::Unavailable(format!("open catalog {digest} on node {}: {e}", worker.node)))
    }
}

fn same_dataset(worker: &Worker, dataset_uid: &str) -> Result<(), Refusal> {
    if worker.dataset_uid != dataset_uid {
        return Err(Refusal::NotFound(format!("this worker serves dataset {}", worker.dataset_uid)));
    }
    if worker.erased.is_cancelled() {
        return Err(Refusal::NotFound(format!("dataset {dataset_uid} was erased from node {}", worker.node)));
    }
    Ok(())
}

fn unknown_snapshot(worker: &Worker, digest: &str) -> Refusal {
    if worker.orders.borrow().is_none() {
        return Refusal::Unavailable(format!("the worker on node {} is not configured yet", worker.node));
    }
    Refusal::NotFound(format!("snapshot {digest} is not on node {}", worker.node))
}

pub(crate) async fn answer(worker: &Arc<Worker>, request: ObjectRequest) -> Result<ObjectReply, Refusal> {
    same_dataset(worker, &request.dataset_uid)?;
    let at = find(worker, &request.snapshot, request.inode, request.key).await?;
    let range = request.range;
    if range.end > at.size {
        return Err(Refusal::Range { size: at.size });
    }
    let here = worker.cache.has(&at.key, &range);
    if !here && (request.on_disk || !request.stand_in && !worker.owns(&at.key, range.start)) {
        return Err(Refusal::NotFound(format!("node {} is not the owner of {} and has no copy", worker.node, at.key)));
    }
    let source = if here { Source::Disk } else { Source::Origin };
    let asked = Asked { stand_in: request.stand_in, check: request.check };
    let (body, crc32c) = pieces(worker, &at, range, asked).await?;
    Ok(ObjectReply { source, size: at.size, crc32c, body })
}

async fn find(worker: &Arc<Worker>, snapshot: &str, inode: u64, key: ObjectKey) -> Result<Arc<Located>, Refusal> {
    let Some(catalog) = worker.catalogs.get(snapshot) else {
        worker.catalogs.wanted.ask(snapshot);
        return Err(unknown_snapshot(worker, snapshot));
    };
    // A large file is asked for a range at a time.
    if let Some(at) = worker.located.get(&inode).filter(|at| at.key == key && at.snapshot == snapshot) {
        return Ok(at);
    }
    let unknown = || Refusal::NotFound(format!("inode {inode} of snapshot {snapshot} is not object {key}"));
    let index = inode.checked_sub(1).ok_or_else(unknown)?;
    let located = tokio::task::spawn_blocking(move || locate(&catalog, index)).await;
    let failed = |e: &dyn std::fmt::Display| {
        Refusal::Unavailable(format!("look up inode {inode} in snapshot {snapshot} on node {}: {e}", worker.node))
    };
    let located = located.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
    let at = Arc::new(located.filter(|at| at.key == key).ok_or_else(unknown)?);
    worker.located.insert(inode, Arc::clone(&at));
    Ok(at)
}

/// Brings a chunk to the own disk, for a node that waits for it.
pub(crate) async fn fetch(
    worker: &Arc<Worker>,
    snapshot: &str,
    inode: u64,
    key: ObjectKey,
    range: &Range<u64>,
) -> Result<(), Refusal> {
    let at = find(worker, snapshot, inode, key).await?;
    if range.end > at.size {
        return Err(Refusal::Range { size: at.size });
    }
    // One byte of it: the cache fetches whole chunks.
    let object = worker.object(&at, Keep::Own);
    let chunk = worker.cache.read_range(&object, range.start..range.start + 1, fetcher(worker, &at, false, Lane::Background));
    let fetched = tokio::time::timeout(FIRST_BYTE, chunk).await.map_err(|_| late(&at))?;
    match fetched {
        Ok(_) => Ok(()),
        Err(ReadError::Fetch(e)) => Err(refusal(worker, &e)),
        Err(e) => Err(Refusal::Unavailable(format!("keep {} on node {}: {e}", at.path, worker.node))),
    }
}

fn late(at: &Located) -> Refusal {
    Refusal::Later(format!("{}{} did not come within {FIRST_BYTE:?}; it is still being fetched", at.origin, at.path))
}

/// How a range is to be had.
#[derive(Clone, Copy)]
struct Asked {
    stand_in: bool,
    /// Bytes of the disk are compared with their checksums here, not only by whoever gets them.
    check: bool,
}

/// The range piece by piece, cut at the borders of pieces, and its checksum, if all of it is known. The first piece is here
/// before the answer begins, so that its failure has a status.
async fn pieces(
    worker: &Arc<Worker>,
    at: &Arc<Located>,
    range: Range<u64>,
    mut asked: Asked,
) -> Result<(Body, Option<u32>), Refusal> {
    let until = Instant::now() + FIRST_BYTE;
    let memory = worker.serving.take((range.end - range.start).min(AHEAD as u64 * CHUNK), until).await?;
    let piece_len = if worker.cache.contains(&at.key) { PIECE } else { CHUNK };
    let cut = |from: u64| (from < range.end).then(|| from..range.end.min((from / piece_len + 1) * piece_len));
    let mut parts = std::iter::successors(cut(range.start), |part| cut(part.end));
    let first = parts.next().unwrap_or(range.clone());
    let rest: Vec<_> = parts.collect();
    let crc32c = if rest.is_empty() { None } else { worker.cache.checksum(&at.key, &range).await };
    // Nobody else could compare them.
    asked.check |= !rest.is_empty() && crc32c.is_none();
    let first = timeout_at(until, piece(worker, at, first, asked)).await.unwrap_or_else(|_| Err(late(at)))?;
    if rest.is_empty() {
        return Ok((Body::Bytes(memory.hold(first.bytes)), Some(first.crc32c)));
    }
    let (worker, at) = (Arc::clone(worker), Arc::clone(at));
    let rest = stream::iter(rest.into_iter().map(move |part| {
        let (worker, at) = (Arc::clone(&worker), Arc::clone(&at));
        async move { piece(&worker, &at, part, asked).await.map(|piece| piece.bytes).map_err(io::Error::other) }
    }));
    let all = stream::iter([Ok(first.bytes)]).chain(rest.buffered(AHEAD));
    // Freed with the stream.
    let body = all.map(move |bytes| {
        let _held = &memory;
        bytes
    });
    Ok((Body::Stream(body.boxed()), crc32c))
}

async fn piece(worker: &Arc<Worker>, at: &Located, range: Range<u64>, asked: Asked) -> Result<Unchecked, Refusal> {
    if !asked.check
        && let Some(unchecked) = worker.cache.read_unchecked(&at.key, &range).await
    {
        return Ok(unchecked);
    }
    let fetch = fetcher(worker, at, asked.stand_in, Lane::Reader);
    let missing = !worker.cache.has(&at.key, &range);
    let _reader = missing.then(|| worker.wanted.read(at.key, range.start / CHUNK * CHUNK));
    // A piece ends where a chunk does, and so does a stripe.
    let keep = if worker.holds(&at.key, range.start) { Keep::Own } else { Keep::Copy };
    let object = worker.object(at, keep);
    match worker.cache.read_range(&object, range.clone(), fetch.clone()).await {
        Ok(checked) => Ok(checked.into()),
        Err(ReadError::Fetch(e)) => Err(refusal(worker, &e)),
        Err(e @ ReadError::Length { .. }) => Err(Refusal::Origin(format!("read {}: {e}", at.path))),
        Err(ReadError::Cache(e @ CacheError::Closed { .. })) => Err(Refusal::NotFound(e.to_string())),
        // A disk that cannot keep the bytes is no reason to fail a read.
        Err(ReadError::Cache(e)) => {
            worker.report.set(Topic::Keep, Some(cache_problem(&e)));
            let read = worker.past_cache.read(at.key, range.clone(), fetch(range)).await;
            read.map(Unchecked::from).map_err(|e| refusal(worker, &e))
        }
    }
}

/// Fetches ranges of the object: from the disk of a former owner, else from the origin, each time by the newest connection.
pub(crate) fn fetcher(
    worker: &Arc<Worker>,
    at: &Located,
    stand_in: bool,
    lane: Lane,
) -> impl Fn(Range<u64>) -> BoxFuture<'static, Result<Bytes, OriginError>> + Clone + Send + Sync + 'static {
    let (worker, at) = (Arc::clone(worker), Arc::new(at.clone()));
    move |range| {
        let (worker, at) = (Arc::clone(&worker), Arc::clone(&at));
        Box::pin(async move {
            if let Some(bytes) = copies::ask(&worker, &at, &range, stand_in).await? {
                return Ok(bytes);
            }
            copies::at_origin(&worker, at.key, &range);
            let _turn = turn(&worker, lane, at.key, &range).await;
            let began = Instant::now();
            let read = async {
                let origin = worker.connections.now()?.origin_of(&at.origin)?;
                origin.read_range(&at.path, &at.version, range).await
            };
            let read = read.await.inspect(|_| worker.metrics.origin_read(began.elapsed()));
            read.inspect_err(|e| {
                worker.metrics.origin_failed("read", e);
                // Told here: a reader may have gone away before it ends.
                if lane == Lane::Reader {
                    worker.report.set(Topic::Read, Some(origin_problem(e)));
                }
            })
        })
    }
}

/// The right to ask the origin for a chunk. Ahead of use it is waited for as long as need be, until someone reads the chunk.
async fn turn(worker: &Worker, lane: Lane, key: ObjectKey, range: &Range<u64>) -> Turn {
    if lane == Lane::Reader {
        return worker.pace.turn(lane).await;
    }
    let guest = worker.wanted.ahead(key, range.start);
    let patient = async {
        let per_second = worker.orders.borrow().as_ref().map_or(0, |o| o.preload_bandwidth);
        worker.bandwidth.take(range.end - range.start, per_second).await;
        worker.pace.turn(lane).await
    };
    tokio::select! {
        biased;
        turn = patient => turn,
        () = guest.reader() => worker.pace.turn(Lane::Reader).await,
    }
}

fn refusal(worker: &Worker, e: &OriginError) -> Refusal {
    match e.reason() {
        Reason::Changed | Reason::ObjectNotFound => Refusal::Changed(e.to_string()),
        // With other keys it may be another matter.
        Reason::AccessDenied if !worker.connections.are_changing(worker.orders.borrow().as_deref()) => {
            Refusal::OriginDenied(e.to_string())
        }
        _ => Refusal::Origin(e.to_string()),
    }
}
