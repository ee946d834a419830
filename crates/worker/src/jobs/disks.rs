//! The disks of the dataset on this node: each is shared with others and scrubbed; one that could not be taken over is tried again, and
//! what is wrong with any of several is told.
//!
//! When the disk fails that holds what is not data (orders, catalogs, certificate), the process ends: the next one begins on a disk that
//! works, and gets those anew.

use crate::{
    folder::Folder,
    report::{Topic, cache_problem, folder_problem, problem},
    worker::{Worker, open_problem},
};
use futures::{StreamExt as _, stream::FuturesUnordered};
use larder_proto::control::v1::Problem;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Between looks.
const LOOK: Duration = Duration::from_secs(5);
/// Between attempts at a disk that could not be taken over, and at writing to the others.
const AGAIN: Duration = Duration::from_secs(30);
/// Attempts in vain after which the disk with what is not data is given up.
const ATTEMPTS: u32 = 3;

pub(crate) async fn run(worker: Arc<Worker>) {
    let (mut tended, mut begun) = (FuturesUnordered::new(), BTreeSet::new());
    let (mut bad, mut failures, mut tried) = (Vec::new(), 0, None::<Instant>);
    let several = worker.disks.len() > 1;
    loop {
        for number in worker.cache.numbers() {
            if begun.insert(number) {
                let worker = Arc::clone(&worker);
                tended.push(async move { worker.cache.tend(number, worker.scrub.map(std::num::NonZero::get)).await });
            }
        }
        if several {
            if tried.is_none_or(|at| at.elapsed() >= AGAIN) {
                tried = Some(Instant::now());
                bad = worker.take_missing().await.iter().map(open_problem).collect::<Vec<_>>();
                let (home, others) = written(&worker).await;
                failures = if home.is_some() { failures + 1 } else { 0 };
                bad.extend(home.into_iter().chain(others));
                if failures == ATTEMPTS {
                    worker.homeless.cancel();
                }
            }
            let failing = worker.cache.failing().iter().map(cache_problem).collect::<Vec<_>>();
            let first = bad.first().or(failing.first());
            let told = first.map(|p| problem(&p.reason, format!("{}; the other disks of this node are used", p.message)));
            worker.report.set(Topic::Disk, told);
        }
        let tend = async { while tended.next().await.is_some() {} };
        if !several {
            return tend.await;
        }
        // What ended is not begun again: the cache is closed then.
        let _ = tokio::time::timeout(LOOK, async {
            tend.await;
            std::future::pending::<()>().await;
        })
        .await;
    }
}

/// Writes to each disk, if only a little: what is wrong with the one that holds what is not data, and with the others.
async fn written(worker: &Arc<Worker>) -> (Option<Problem>, Vec<Problem>) {
    let worker = Arc::clone(worker);
    let written = tokio::task::spawn_blocking(move || {
        let bad = |folder: &Folder| folder.try_to_write().err().filter(|e| !e.is_full()).map(|e| folder_problem(&e));
        (bad(&worker.folder), worker.others.lock().values().filter_map(bad).collect())
    });
    written.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
}
