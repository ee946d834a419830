//! The disks of the dataset on this node: each is shared with others and scrubbed; one that could not be taken over is tried again, and
//! what is wrong with any of them is told.
//!
//! When the disk fails that holds what is not data (orders, catalogs, certificate), the process ends: the next one begins on a disk that
//! works, and gets those anew.

use crate::{
    folder::Folder,
    report::{Topic, cache_problem, problem},
    worker::{Worker, open_problem},
};
use futures::{StreamExt as _, stream::FuturesUnordered};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Between looks.
const LOOK: Duration = Duration::from_secs(5);
/// Between attempts at a disk that could not be taken over, and at writing to the others.
const AGAIN: Duration = Duration::from_secs(10);
/// Attempts in vain after which the disk with what is not data is given up.
const ATTEMPTS: u32 = 3;

pub(crate) async fn run(worker: Arc<Worker>) {
    let (mut tended, mut begun) = (FuturesUnordered::new(), BTreeSet::new());
    let (mut missing, mut failures, mut tried) = (Vec::new(), 0, None::<Instant>);
    let several = worker.disks.len() > 1;
    let meanwhile =
        if several { "the other disks of this node are used" } else { "until it works, other nodes and the origin are read" };
    loop {
        for number in worker.cache.numbers() {
            if begun.insert(number) {
                let worker = Arc::clone(&worker);
                tended.push(async move { worker.cache.tend(number, worker.scrub.map(std::num::NonZero::get)).await });
            }
        }
        if tried.is_none_or(|at| at.elapsed() >= AGAIN) {
            tried = Some(Instant::now());
            missing = worker.take_missing().await.iter().map(open_problem).collect::<Vec<_>>();
            failures = if try_to_write(&worker).await { 0 } else { failures + 1 };
            if several && failures == ATTEMPTS {
                worker.homeless.cancel();
            }
        }
        let failing = worker.cache.failing().iter().map(cache_problem).collect::<Vec<_>>();
        let first = missing.first().or(failing.first());
        let told = first.map(|p| problem(&p.reason, format!("{}; {meanwhile}", p.message)));
        worker.report.set(Topic::Disk, told);
        let tend = async { while tended.next().await.is_some() {} };
        // What ended is not begun again: the cache is closed then.
        let _ = tokio::time::timeout(LOOK, async {
            tend.await;
            std::future::pending::<()>().await;
        })
        .await;
    }
}

/// Writes to each disk, if only a little; those that fail are told to the cache. False: the one that holds what is not data does.
async fn try_to_write(worker: &Arc<Worker>) -> bool {
    let worker = Arc::clone(worker);
    let tried = tokio::task::spawn_blocking(move || {
        let works = |folder: &Folder| match folder.try_to_write() {
            Err(e) if !e.is_full() => {
                worker.cache.fails(folder.path(), &e);
                false
            }
            _ => true,
        };
        for folder in worker.other_folders() {
            works(&folder);
        }
        works(&worker.folder)
    });
    tried.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
}
