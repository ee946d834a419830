//! What the worker does by itself. Each job pursues one goal that it reads from the orders; when the goal changes, the job drops
//! what it does and begins anew. A job that failed tries again with a growing pause; none ever ends the process.

mod disks;
mod failures;
pub(crate) mod keep;
pub(crate) mod listing;
pub(crate) mod preload;
pub(crate) mod snapshot;

use crate::{
    connection,
    orders::Orders,
    report::{Topic, damage_problem, folder_problem},
    worker::Worker,
};
use larder_trust::Security;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// Between saves of the counters; a crash loses at most what was counted since.
const SAVE: Duration = Duration::from_secs(5);

/// Starts all jobs; they end when the dataset is erased or the worker's tasks are aborted.
pub(crate) fn start(worker: &Arc<Worker>) -> tokio::task::JoinSet<()> {
    let mut tasks = tokio::task::JoinSet::new();
    let mut spawn = |job: futures::future::BoxFuture<'static, ()>| {
        let erased = worker.erased.clone();
        let job = async move {
            tokio::select! {
                () = erased.cancelled() => {}
                () = job => {}
            }
        };
        tasks.spawn(worker.jobs.track_future(job));
    };
    spawn(Box::pin(connection::run(Arc::clone(worker))));
    spawn(Box::pin(listing::run(Arc::clone(worker))));
    spawn(Box::pin(snapshot::run(Arc::clone(worker))));
    spawn(Box::pin(snapshot::run_wanted(Arc::clone(worker))));
    spawn(Box::pin(snapshot::run_damaged(Arc::clone(worker))));
    spawn(Box::pin(preload::run(Arc::clone(worker))));
    spawn(Box::pin(keep::run(Arc::clone(worker))));
    spawn(Box::pin(save(Arc::clone(worker))));
    spawn(Box::pin(tell_damages(Arc::clone(worker))));
    spawn(Box::pin(disks::run(Arc::clone(worker))));
    if let Security::Mutual(held) = &worker.security {
        spawn(Box::pin(larder_trust::store::keep(held.clone(), worker.folder.identity_file())));
    }
    tasks
}

/// Keeps counters on the disk.
async fn save(worker: Arc<Worker>) {
    loop {
        tokio::time::sleep(SAVE).await;
        worker.catch_up().await;
        let origin = worker.received.objects();
        if worker.state.lock().origin_bytes != origin
            && let Err(e) = worker.save_state().await
        {
            let p = folder_problem(&e);
            tracing::warn!(reason = p.reason, message = p.message, "counters are not saved");
        }
    }
}

/// Files and parts of such that turned out to be bad, for the status and the metrics.
async fn tell_damages(worker: Arc<Worker>) {
    let (mut damages, mut told) = (worker.cache.damages(), 0);
    while damages.changed().await.is_ok() {
        let files = *damages.borrow_and_update();
        if files == told {
            // Something is missing again that was not known to be good.
            continue;
        }
        told = files;
        worker.metrics.damaged_files.inc_by(files.saturating_sub(worker.metrics.damaged_files.get()));
        worker.report.set(Topic::Integrity, Some(damage_problem(files, &worker.cache.quarantines())));
    }
}

/// Waits until the orders mean another goal; never if there will be no more orders.
async fn goal_changed<G: PartialEq>(
    orders: &mut watch::Receiver<Option<Arc<Orders>>>,
    of: impl Fn(&Orders) -> Option<G>,
    goal: &Option<G>,
) {
    if orders.wait_for(|o| o.as_deref().and_then(&of) != *goal).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Pauses between attempts: doubled from 1 s to 30 s.
pub(crate) struct Pause(Duration);

impl Pause {
    pub fn new() -> Self {
        Self(Duration::from_secs(1))
    }

    pub async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(Duration::from_secs(30));
    }
}
