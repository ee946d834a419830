//! Fetches catalogs that other workers have.

use super::{Pause, goal_changed};
use crate::{
    orders::Orders,
    report::{Topic, folder_problem, problem, reasons},
    worker::Worker,
};
use larder_peer::CatalogFetchError;
use larder_proto::control::v1::Problem;
use std::{io, sync::Arc, time::Duration};

/// Between attempts at a snapshot that mounts ask for and the orders do not name.
const WANTED_PAUSE: Duration = Duration::from_secs(2);
/// Between attempts to replace a damaged catalog: bounds what a disk that damages every copy can cost.
const DAMAGED_PAUSE: Duration = Duration::from_secs(10);
/// Failures of the first attempts are no problem yet: the others' addresses, and the catalog itself, may just be on their way.
const QUIET: u32 = 3;

fn goal(orders: &Orders) -> Option<String> {
    Some(orders.snapshot.clone()).filter(|s| !s.is_empty())
}

/// Gets the snapshot of the orders, if it is not here.
pub(crate) async fn run(worker: Arc<Worker>) {
    let mut orders = worker.orders.subscribe();
    loop {
        let wanted = orders.borrow_and_update().as_deref().and_then(goal);
        tokio::select! {
            biased;
            () = goal_changed(&mut orders, goal, &wanted) => {}
            () = pursue(&worker, wanted.as_deref()) => {}
        }
    }
}

/// Never ends.
async fn pursue(worker: &Arc<Worker>, digest: Option<&str>) {
    let Some(digest) = digest else {
        worker.report.set(Topic::Snapshot, None);
        return std::future::pending().await;
    };
    let mut pause = Pause::new();
    let mut roster = worker.roster.clone();
    let mut attempts = 0u32;
    while worker.catalogs.get(digest).is_none() {
        roster.mark_unchanged();
        match fetch(worker, digest).await {
            Ok(()) => tracing::info!(snapshot = digest, "snapshot fetched from another worker"),
            Err(p) => {
                attempts += 1;
                if attempts > QUIET {
                    worker.report.set(Topic::Snapshot, Some(p));
                }
                tokio::select! {
                    () = pause.wait() => {}
                    // Here by another way: this worker listed it.
                    _ = worker.catalogs.wait(digest) => {}
                    // Someone new may have it.
                    changed = roster.changed() => if changed.is_err() { pause.wait().await },
                }
            }
        }
    }
    worker.report.set(Topic::Snapshot, None);
    std::future::pending().await
}

/// Gets what mounts of older snapshots ask for. One attempt each: who asks, asks again.
pub(crate) async fn run_wanted(worker: Arc<Worker>) {
    loop {
        let digest = worker.catalogs.wanted.next().await;
        if worker.catalogs.get(&digest).is_none() {
            match fetch(&worker, &digest).await {
                Ok(()) => tracing::info!(snapshot = digest, "older snapshot fetched, because a mount asks for it"),
                Err(p) => {
                    tracing::debug!(snapshot = digest, error = p.message, "a snapshot that was asked for is nowhere");
                    tokio::time::sleep(WANTED_PAUSE).await;
                }
            }
        }
        worker.catalogs.wanted.tried(&digest);
    }
}

/// Replaces catalogs of which a section cannot be read. Until then what can be read of them goes on being read.
pub(crate) async fn run_damaged(worker: Arc<Worker>) {
    loop {
        let digest = worker.catalogs.damaged.next().await;
        tracing::error!(snapshot = digest, "the catalog is damaged on this node's disk; fetching another copy");
        match fetch(&worker, &digest).await {
            Ok(()) => tracing::info!(snapshot = digest, "the damaged catalog is replaced"),
            Err(p) => {
                tracing::warn!(snapshot = digest, reason = p.reason, message = p.message, "no other copy of a damaged catalog");
                // Whoever listed it may list it again.
                worker.catalogs.lose(&digest);
            }
        }
        tokio::time::sleep(DAMAGED_PAUSE).await;
        worker.catalogs.damaged.tried(&digest);
    }
}

async fn fetch(worker: &Arc<Worker>, digest: &str) -> Result<(), Problem> {
    let roster = worker.roster.borrow().clone();
    let path = worker.catalogs.path(digest);
    let fetched = worker.peers.catalog(&roster, &worker.dataset_uid, digest, &path).await;
    fetched.map_err(|e| {
        let full = matches!(&e, CatalogFetchError::Disk { source, .. } if source.kind() == io::ErrorKind::StorageFull);
        problem(if full { reasons::DISK_FULL } else { reasons::SNAPSHOT_UNAVAILABLE }, e.to_string())
    })?;
    let (task, digest) = (Arc::clone(worker), digest.to_owned());
    let added = tokio::task::spawn_blocking(move || task.catalogs.add(&digest));
    added.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic())).map_err(|e| folder_problem(&e))
}
