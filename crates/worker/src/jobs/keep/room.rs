//! How much of the disk is left for copies: what the own share of the snapshot does not need.

use crate::worker::{Worker, locate};
use larder_core::{catalog::CatalogError, placement::Members};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// A count that says there is no room is made again after this, and after so many times what it took.
const AGAIN: Duration = Duration::from_secs(30);
const AGAIN_FACTOR: u32 = 100;

#[derive(Default)]
pub(super) struct Room {
    count: Option<Count>,
}

/// The snapshot of the orders, counted file by file.
struct Count {
    snapshot: String,
    members: Members,
    replicas: u32,
    /// Bytes of all files.
    all: u64,
    /// Bytes on this node that are not of this snapshot.
    other: u64,
    /// Bytes of the own share that were not here yet. It only shrinks, so an old number errs on the safe side.
    missing: u64,
    at: Instant,
    took: Duration,
}

impl Room {
    /// Could this node hold the whole snapshot? Only that of the orders ever can: older ones make room.
    pub async fn for_all_of(&mut self, worker: &Arc<Worker>, snapshot: &str) -> bool {
        for again in [false, true] {
            let Some(count) = self.count(worker, again).await.filter(|c| c.snapshot == snapshot) else { return false };
            let (all, other) = (count.all, count.other);
            let Some(left) = left(worker).await else { return false };
            let usage = worker.cache.usage();
            let most = left.saturating_add(usage.bytes + usage.fill_bytes);
            if all > most || all + other <= most {
                return all <= most;
            }
        }
        false
    }

    /// Is there room for so many bytes when the own share is complete?
    pub async fn beyond_the_share(&mut self, worker: &Arc<Worker>, bytes: u64) -> bool {
        for again in [false, true] {
            let Some(count) = self.count(worker, again).await else { return false };
            let needed = count.missing + bytes;
            if left(worker).await.is_some_and(|left| needed <= left) {
                return true;
            }
        }
        false
    }

    /// The count, made anew if it is of another snapshot or other members, or if it shall be and is old.
    async fn count(&mut self, worker: &Arc<Worker>, again: bool) -> Option<&Count> {
        let snapshot = worker.orders.borrow().as_ref().map(|o| o.snapshot.clone())?;
        let replicas = worker.orders.borrow().as_ref().map_or(1, |o| o.replicas.max(1));
        let members = worker.roster.borrow().members.clone();
        let valid = self.count.as_ref().is_some_and(|c| {
            let old = c.at.elapsed() >= AGAIN.max(c.took * AGAIN_FACTOR);
            c.snapshot == snapshot && c.replicas == replicas && c.members.places_like(&members) && !(again && old)
        });
        if !valid {
            let catalog = worker.catalogs.get(&snapshot).filter(|_| !members.members.is_empty())?;
            let (started, worker) = (Instant::now(), Arc::clone(worker));
            let counted = tokio::task::spawn_blocking(move || {
                let usage = worker.cache.usage();
                let (mut all, mut here, mut missing) = (0, 0, 0);
                for index in catalog.file_indices() {
                    let Some(at) = locate(&catalog, index?)? else { continue };
                    all += at.size;
                    for stripe in members.stripes(at.size) {
                        let bytes = stripe.end - stripe.start;
                        if worker.has(&members, &at, &stripe) {
                            here += bytes;
                        } else if members.holds(&members.place(&at.key, stripe.start), &worker.node, replicas) {
                            missing += bytes;
                        }
                    }
                }
                let other = usage.on_disk().saturating_sub(here);
                let (at, took) = (Instant::now(), started.elapsed());
                Ok::<_, CatalogError>(Count { snapshot, members, replicas, all, other, missing, at, took })
            });
            self.count = match counted.await {
                Ok(Ok(count)) => Some(count),
                Ok(Err(error)) => {
                    tracing::warn!(%error, "count the own share; no copies are kept");
                    None
                }
                Err(e) => std::panic::resume_unwind(e.into_panic()),
            };
        }
        self.count.as_ref()
    }
}

/// Bytes that the cache would take now.
async fn left(worker: &Arc<Worker>) -> Option<u64> {
    let worker = Arc::clone(worker);
    let left = tokio::task::spawn_blocking(move || worker.cache.room()).await;
    left.ok()?.inspect_err(|error| tracing::debug!(%error, "no copies are kept")).ok()
}
