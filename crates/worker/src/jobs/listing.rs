//! Lists the origin and writes the catalog.

use super::{Pause, goal_changed};
use crate::{
    folder::{self, FolderError},
    orders::{Orders, Source},
    report::{folder_problem, origin_problem, problem, reasons},
    worker::Worker,
};
use larder_core::catalog::Skipped;
use larder_proto::control::v1::{self as pb, Phase, Problem};
use larder_snapshot::{Progress, Skips, TakeError, Taken};
use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Longest text of one skipped key.
const EXAMPLE: usize = 300;
/// Between two reports.
const TELL: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Goal {
    id: String,
    source: Source,
    retry: u64,
}

fn goal(orders: &Orders) -> Option<Goal> {
    let Orders { listing_id, source, retry, .. } = orders;
    (!listing_id.is_empty()).then(|| Goal { id: listing_id.clone(), source: source.clone(), retry: *retry })
}

/// Takes the listing of the orders, if it is not the one taken.
pub(crate) async fn run(worker: Arc<Worker>) {
    let mut orders = worker.orders.subscribe();
    loop {
        let wanted = orders.borrow_and_update().as_deref().and_then(goal);
        tokio::select! {
            biased;
            () = goal_changed(&mut orders, goal, &wanted) => {}
            () = pursue(&worker, wanted.as_ref()) => {}
        }
    }
}

/// Never ends.
async fn pursue(worker: &Arc<Worker>, goal: Option<&Goal>) {
    let Some(goal) = goal else {
        worker.report.set_listing(None);
        return std::future::pending().await;
    };
    loop {
        if let Some(snapshot) = taken(worker, goal) {
            worker.report.set_listing(None);
            worker.catalogs.lost(&snapshot).await;
            tracing::warn!(snapshot, "the catalog is damaged and nobody else has it; listing the origin again");
        }
        take(worker, goal).await;
    }
}

/// The snapshot of the listing that is wanted, if its catalog is here.
fn taken(worker: &Worker, goal: &Goal) -> Option<String> {
    let state = worker.state.lock();
    let listing = state.listing.as_ref().filter(|l| l.id == goal.id && worker.catalogs.is_whole(&l.snapshot));
    listing.map(|l| l.snapshot.clone())
}

/// Tries until there is a listing.
async fn take(worker: &Arc<Worker>, goal: &Goal) {
    let running = pb::Listing { id: goal.id.clone(), phase: Phase::Running.into(), ..pb::Listing::default() };
    let mut pause = Pause::new();
    let mut last: Option<Problem> = None;
    // A failure stays told while it is tried again, so that nobody sees it come and go.
    while let Err(p) = attempt(worker, goal, &running, last.is_none()).await {
        if last.as_ref() != Some(&p) {
            tracing::warn!(
                listing = goal.id,
                source = goal.source.uri,
                reason = p.reason,
                message = p.message,
                "listing failed"
            );
        }
        let listing = pb::Listing { phase: Phase::Failed.into(), problem: Some(p.clone()), ..running.clone() };
        worker.report.set_listing(Some(listing));
        last = Some(p);
        pause.wait().await;
    }
}

async fn attempt(worker: &Arc<Worker>, goal: &Goal, running: &pb::Listing, tell: bool) -> Result<(), Problem> {
    if tell {
        worker.report.set_listing(Some(running.clone()));
    }
    let held_up = |p| {
        let problem = Some(p);
        worker.report.set_listing(Some(pb::Listing { phase: Phase::Failed.into(), problem, ..running.clone() }));
    };
    let connection = worker.connections.exactly_or(&goal.source, &worker.report, held_up).await;
    let origin = connection.origin().map_err(|e| origin_problem(&e))?;
    tracing::info!(listing = goal.id, source = origin.uri(), "listing begins");
    let progress = Arc::new(Progress::default());
    let taking = larder_snapshot::take(&*origin, worker.catalogs.folder(), &progress);
    let taken = tokio::select! {
        biased;
        taken = taking => taken.map_err(|e| {
            if let TakeError::Origin(e) = &e {
                worker.metrics.origin_failed("list", e);
            }
            take_problem(origin.uri(), e)
        })?,
        never = tell_progress(worker, running, &progress, tell) => match never {},
    };
    let (task, digest) = (Arc::clone(worker), taken.digest.clone());
    let added = tokio::task::spawn_blocking(move || task.catalogs.add(&digest)).await;
    added.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic())).map_err(|e| folder_problem(&e))?;
    tracing::info!(listing = goal.id, snapshot = taken.digest, skipped = taken.skips.count, "listing taken");
    worker.state.lock().listing = Some(remembered(goal, taken));
    worker.save_state().await.map_err(|e| folder_problem(&e))
}

async fn tell_progress(worker: &Worker, running: &pb::Listing, progress: &Progress, tell: bool) -> Infallible {
    loop {
        tokio::time::sleep(TELL).await;
        if tell {
            worker.report.set_listing(Some(pb::Listing {
                files: progress.files(),
                bytes: progress.bytes(),
                files_per_second: progress.rate(),
                entries_written: progress.written(),
                ..running.clone()
            }));
        }
    }
}

fn remembered(goal: &Goal, taken: Taken) -> folder::Listing {
    folder::Listing {
        id: goal.id.clone(),
        snapshot: taken.digest,
        files: taken.files,
        bytes: taken.bytes,
        skipped: taken.skips.count,
        skipped_examples: taken.skips.examples.iter().map(example).collect(),
        time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()).cast_signed(),
    }
}

fn take_problem(uri: &str, error: TakeError) -> Problem {
    match error {
        TakeError::Origin(e) => origin_problem(&e),
        TakeError::Disk { action, folder, source } => folder_problem(&FolderError::Disk { action, path: folder, source }),
        TakeError::Empty(skips) => {
            let Skips { count, examples } = skips;
            let example = examples.first().map(|first| format!(" ({count} keys left out: {})", example(first)));
            let text = format!(
                "list {uri}: no object there that source.include and source.exclude let through{}; correct the source",
                example.unwrap_or_default()
            );
            problem(reasons::EMPTY_SOURCE, text)
        }
        e @ TakeError::Interrupted => problem(reasons::SNAPSHOT_UNAVAILABLE, format!("list {uri}: {e}; report this")),
    }
}

fn example(skipped: &Skipped) -> String {
    let text: String = format!("{:?} {}", skipped.key, skipped.reason);
    if text.len() <= EXAMPLE {
        text
    } else {
        format!("{}… {}", text.chars().take(EXAMPLE / 4).collect::<String>(), skipped.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_disk_that_is_full_while_the_listing_is_sorted_is_named() {
        let disk = |kind: io::ErrorKind| TakeError::Disk {
            action: "sort the listing in",
            folder: "/mnt/nvme0/larder/uid/catalogs".into(),
            source: kind.into(),
        };
        let full = take_problem("s3://b/", disk(io::ErrorKind::StorageFull));
        assert_eq!(full.reason, reasons::DISK_FULL);
        assert!(
            full.message.contains("sort the listing in /mnt/nvme0") && full.message.contains("free space"),
            "{}",
            full.message
        );
        assert_eq!(take_problem("s3://b/", disk(io::ErrorKind::ReadOnlyFilesystem)).reason, reasons::DISK_FAILED);
    }
}
