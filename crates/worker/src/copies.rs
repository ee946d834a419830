//! Copies: a chunk that another node has is not fetched from the origin again.
//!
//! When the member list changes, the new owner of an object asks the owners before it, disk to disk, before it asks the origin:
//!
//! ```text
//! new owner: fill of a chunk ─► former owners, the last one first ─► origin
//!                                      │
//! former owner: on the disk? ──────────┴─► 206, with the checksum it was written with
//!               on its way from the origin? ─► that much is waited for, then 206
//!               else 404 at once
//! ```
//!
//! Nobody is made to fetch by being asked, and only a fetch that has come to the origin is waited for: it waits for no node.
//! So there are no circles, whatever lists the two have.

use crate::{
    objects::{self, FIRST_BYTE},
    worker::{Located, Worker},
};
use bytes::Bytes;
use larder_core::{checksum::crc32c, key::ObjectKey};
use larder_origin::{Error as OriginError, Reason};
use larder_peer::{CopyReply, Refusal};
use parking_lot::Mutex;
use std::{collections::HashSet, ops::Range, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Longest wait for a fetch from the origin; shorter than the 5 s after which the other node goes on without the copy.
const LANDING: Duration = Duration::from_secs(4);

/// Chunks whose fetch has come to asking the origin: object and first byte.
#[derive(Debug, Default)]
pub(crate) struct AtOrigin(Mutex<HashSet<(ObjectKey, u64)>>);

/// From the moment the origin is asked for a chunk until the chunk has landed on the disk, or has not.
pub(crate) fn at_origin(worker: &Arc<Worker>, key: ObjectKey, range: &Range<u64>) {
    if worker.at_origin.0.lock().insert((key, range.start)) {
        let (worker, range) = (Arc::clone(worker), range.clone());
        tokio::spawn(async move {
            worker.cache.landed(&key, &range).await;
            worker.at_origin.0.lock().remove(&(key, range.start));
        });
    }
}

/// The chunk from a disk of those who owned the object before, if one has it and it is good. A node that lost the object while
/// it fetches it asks the new owner as well; one that stands in for the owner does so because that one does not answer.
///
/// # Errors
/// This node keeps a replica, and the owner did not give the chunk: it is the owner's to fetch, not this node's.
pub(crate) async fn ask(
    worker: &Worker,
    at: &Located,
    range: &Range<u64>,
    stand_in: bool,
) -> Result<Option<Bytes>, OriginError> {
    let roster = worker.roster.borrow().clone();
    let place = roster.members.place(&at.key, range.start);
    let owner_of_place = roster.members.owner(&place);
    let owner = owner_of_place.filter(|m| !stand_in && m.node != worker.node);
    if let Some(owner) = owner.filter(|_| worker.holds(&at.key, range.start)) {
        let bytes = from(worker, &owner.node, at, range, true).await;
        return bytes.map(Some).ok_or_else(|| not_given(&owner.node, at));
    }
    let mut asked: Vec<_> = owner.into_iter().chain(roster.members.former_owners(&place, &worker.node)).collect();
    // Before files were striped, it had all of them; and a release that knows no stripes has.
    let first = roster.members.place(&at.key, 0);
    let whole = roster.members.owner(&first).filter(|m| first != place && m.node != worker.node);
    asked.extend(whole.filter(|m| Some(*m) != owner_of_place && !asked.contains(m)));
    for member in asked {
        if let Some(bytes) = from(worker, &member.node, at, range, false).await {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

/// The chunk from the disk of a node, if it is good. With `fetch` the owner fetches it first if it has to.
pub(crate) async fn from(worker: &Worker, node: &str, at: &Located, range: &Range<u64>, fetch: bool) -> Option<Bytes> {
    let roster = worker.roster.borrow().clone();
    let fetch = fetch.then_some((at.snapshot.as_str(), at.inode));
    let copy = worker.peers.copy(&roster, node, &worker.dataset_uid, &at.key, range, fetch).await?;
    if crc32c(&copy.bytes) == copy.crc32c {
        worker.metrics.copied_bytes.inc_by(range.end - range.start);
        return Some(copy.bytes);
    }
    tracing::warn!(key = %at.key, path = at.path, node, "a copy does not match its checksum; check that node's disk");
    None
}

/// Why a copy that only that node can give is not there.
pub(crate) fn not_given(node: &str, at: &Located) -> OriginError {
    let text =
        format!("node {node}, which owns {}{}, has not given it to this node; see that node's worker", at.origin, at.path);
    OriginError::new(Reason::OriginFailed, text)
}

/// What this node has of the chunk. An owner fetches it first, if the other node keeps a replica: that one waits for this node,
/// and this one, for a chunk of its own, only for nodes that have it at hand. So there is no circle here either.
pub(crate) async fn give(
    worker: &Arc<Worker>,
    key: &ObjectKey,
    range: &Range<u64>,
    fetch: Option<(String, u64)>,
) -> Result<CopyReply, Refusal> {
    let until = Instant::now() + FIRST_BYTE;
    if let Some((snapshot, inode)) = fetch
        && worker.owns(key, range.start)
    {
        objects::fetch(worker, &snapshot, inode, *key, range).await?;
    }
    if worker.at_origin.0.lock().contains(&(*key, range.start)) {
        // Too late is as good as never: the other node asks the origin itself.
        let _ = tokio::time::timeout(LANDING, worker.cache.landed(key, range)).await;
    }
    let memory = worker.serving.take(range.end - range.start, until).await?;
    let here = worker.cache.chunk_here(key, range).await;
    let chunk = here.ok_or_else(|| Refusal::NotFound(format!("node {} has no copy of {key}", worker.node)))?;
    worker.metrics.given_bytes.inc_by(range.end - range.start);
    Ok(CopyReply { bytes: memory.hold(chunk.bytes), crc32c: chunk.crc32c })
}
