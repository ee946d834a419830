//! Fetches this worker's share of a snapshot: the files that this node owns, and those that it keeps a replica of.

mod bandwidth;
mod speed;
mod stays;

pub(crate) use bandwidth::Bandwidth;
pub(crate) use speed::Speed;

use super::{Pause, goal_changed};
use crate::{
    catalogs::Open,
    jobs::failures::Failures,
    objects::fetcher,
    orders::{Orders, Source},
    report::{Progress, cache_problem, folder_problem, origin_problem, problem, reasons},
    worker::{Located, Worker, locate},
};
use futures::StreamExt as _;
use larder_cache::{CHUNK, CacheError, Keep, Object, ReadError};
use larder_core::{catalog::CatalogError, placement::Members};
use larder_origin::{Error as OriginError, Globs, Lane};
use larder_proto::control::v1::{Phase, Problem};
use stays::Stays;
use std::{
    ops::{ControlFlow, Range},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::{SemaphorePermit, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// Files fetched at the same time. Small ones wait for the origin, not for bytes, and need many; how many requests go at once is
/// the pace's to say.
const FILES: usize = 128;
/// Files looked up ahead.
const AHEAD: usize = 256;
/// Times that a file is tried while the origin is away, each a minute or so. Then others are, which may fare better.
const ROUNDS: u32 = 3;
/// After a file that failed while nothing came from the origin.
const NOTHING_COMES: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Goal {
    snapshot: String,
    source: Source,
    quota: u64,
    retry: u64,
    replicas: u32,
    paths: Vec<String>,
}

fn goal(orders: &Orders) -> Option<Goal> {
    let Orders { snapshot, source, retry, quota_bytes, preload, replicas, preload_paths, .. } = orders;
    (*preload && !snapshot.is_empty()).then(|| Goal {
        snapshot: snapshot.clone(),
        source: source.clone(),
        quota: *quota_bytes,
        retry: *retry,
        replicas: (*replicas).max(1),
        paths: preload_paths.clone(),
    })
}

/// Fetches the share of the orders' snapshot; anew when the orders or the members change.
pub(crate) async fn run(worker: Arc<Worker>) {
    let mut orders = worker.orders.subscribe();
    let mut roster = worker.roster.clone();
    loop {
        let wanted = orders.borrow_and_update().as_deref().and_then(goal);
        let members = roster.borrow_and_update().members.clone();
        let members_changed = async {
            if roster.wait_for(|r| !r.members.places_like(&members)).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = goal_changed(&mut orders, goal, &wanted) => {}
            () = members_changed => {}
            () = pursue(&worker, wanted.as_ref(), &members) => {}
        }
    }
}

/// Never ends.
async fn pursue(worker: &Arc<Worker>, goal: Option<&Goal>, members: &Members) {
    let Some(goal) = goal else {
        worker.report.set_preload(None);
        return std::future::pending().await;
    };
    let progress = Progress::new(&goal.snapshot);
    worker.report.set_preload(Some(Arc::clone(&progress)));
    let catalog = worker.catalogs.wait(&goal.snapshot).await;
    if members.members.is_empty() {
        // Nobody owns anything yet.
        return std::future::pending().await;
    }
    let paths = match Globs::of_paths("spec.preload.paths", &goal.paths) {
        Ok(paths) => paths,
        Err(e) => {
            progress.failed(origin_problem(&e));
            return std::future::pending().await;
        }
    };
    let share = Share {
        worker: Arc::clone(worker),
        catalog,
        members: members.clone(),
        replicas: goal.replicas,
        paths,
        quota: goal.quota,
    };
    let mut first = true;
    let mut pause = Pause::new();
    // What is counted is replaced whole; fetches of an earlier count go on and count in vain.
    let mut progress = progress;
    let (mut damages, mut given) = (worker.cache.damages(), worker.cache.given());
    loop {
        damages.mark_unchanged();
        given.mark_unchanged();
        match attempt(&share, &progress, &goal.source, std::mem::take(&mut first)).await {
            Ok(()) => {
                progress.end(Phase::Succeeded, None);
                let (damages, given) = (damages.changed(), given.changed());
                let lost = tokio::select! {
                    lost = damages => lost,
                    lost = given => lost,
                };
                if lost.is_err() {
                    return std::future::pending().await;
                }
                progress = share.count_again(&progress);
                continue;
            }
            Err(HeldUp::By(p)) => {
                progress.failed(p);
                pause.wait().await;
            }
            Err(HeldUp::NoRoom(p)) => {
                progress.failed(p);
                share.more_room(&progress, &mut damages, &mut pause).await;
            }
        }
        progress = share.count_again(&progress);
    }
}

/// Why a share is not complete.
enum HeldUp {
    /// Another attempt may fare better.
    By(Problem),
    /// Another attempt is of no use before there is more room: each file that is missing was too large for what there was.
    NoRoom(Problem),
}

impl From<Problem> for HeldUp {
    fn from(problem: Problem) -> Self {
        Self::By(problem)
    }
}

/// All files once, or until the disk is full; those that failed, if any is still missing afterwards.
async fn attempt(share: &Share, progress: &Arc<Progress>, source: &Source, first: bool) -> Result<(), HeldUp> {
    share.measure(progress).await?;
    let all = |done: &AtomicU64, total: &AtomicU64| done.load(Relaxed) == total.load(Relaxed);
    if all(&progress.files_done, &progress.files_total) && all(&progress.bytes_done, &progress.bytes_total) {
        return Ok(());
    }
    let too_large = share.fit(progress).await?;
    if let Some(p) = &too_large {
        // Before the first byte is asked for. What fits comes all the same.
        progress.end(Phase::Failed, Some(p.clone()));
    }
    let held_up = |p| progress.end(Phase::Failed, Some(p));
    share.worker.connections.exactly_or(source, &share.worker.report, held_up).await;
    let (send, missing) = mpsc::channel(AHEAD);
    let scan = share.each_missing(send);
    let failures = Failures::default();
    let (only_room, full) = (AtomicBool::new(true), CancellationToken::new());
    ReceiverStream::new(missing)
        .take_until(full.clone().cancelled_owned())
        .for_each_concurrent(FILES, |part| {
            let (failures, too_large, only_room, full) = (&failures, &too_large, &only_room, &full);
            async move {
                if let Err(p) = pursue_part(&share.worker, &part, progress).await {
                    match p.reason.as_str() {
                        reasons::QUOTA_EXCEEDED => {}
                        reasons::DISK_FULL => match share.free().await {
                            // Other datasets of the disk have not made it yet.
                            free if free >= part.len() => only_room.store(false, Relaxed),
                            free if free < CHUNK => full.cancel(),
                            // A large file may fail for what smaller ones still have room in.
                            _ => {}
                        },
                        _ => only_room.store(false, Relaxed),
                    }
                    let count = failures.add(part.at.inode, &part.at.path, p, first && too_large.is_none());
                    progress.files_failed.fetch_max(count, Relaxed);
                }
            }
        })
        .await;
    let scanned = scan.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
    scanned.map_err(|e| unusable(share, &e))?;
    let (count, problem) = failures.told();
    progress.files_failed.store(count, Relaxed);
    match too_large.filter(|_| count > 0).or(problem) {
        Some(p) if only_room.into_inner() => Err(HeldUp::NoRoom(p)),
        Some(p) => Err(HeldUp::By(p)),
        None => Ok(()),
    }
}

/// Fetches one file or stripe. An origin that is away is waited for; what cannot be had is left to the next attempt.
async fn pursue_part(worker: &Arc<Worker>, part: &Part, progress: &Arc<Progress>) -> Result<(), Problem> {
    let at = &part.at;
    let mut pause = Pause::new();
    let mut rounds = 0;
    loop {
        rounds += 1;
        let before = progress.fetches.load(Relaxed);
        let (problem, reason) = match fetch(worker, part, progress).await {
            Ok(()) => return Ok(()),
            Err(ReadError::Fetch(e)) => (origin_problem(&e), e.reason()),
            Err(ReadError::Cache(e)) => return Err(cache_problem(&e)),
            Err(e @ ReadError::Length { .. }) => {
                return Err(problem("OriginFailed", format!("read {}{}: {e}", at.origin, at.path)));
            }
        };
        // If others get on, it is this file.
        let nothing_comes = progress.fetches.load(Relaxed) == before;
        if !nothing_comes || !reason.is_of_the_origin() || rounds == ROUNDS {
            if nothing_comes {
                // The next one fares no better, perhaps: do not run through all of them.
                tokio::time::sleep(NOTHING_COMES).await;
            }
            return Err(problem);
        }
        progress.stuck(problem);
        pause.wait().await;
    }
}

async fn fetch(worker: &Arc<Worker>, part: &Part, progress: &Arc<Progress>) -> Result<(), ReadError<OriginError>> {
    let at = &part.at;
    let counted = Arc::new(AtomicU64::new(0));
    let inner = fetcher(worker, at, false, Lane::Background);
    let (progress_of_chunks, counted_chunks) = (Arc::clone(progress), Arc::clone(&counted));
    let counting = move |range: Range<u64>| {
        let (fetch, progress, counted) = (inner(range), Arc::clone(&progress_of_chunks), Arc::clone(&counted_chunks));
        async move {
            let bytes = fetch.await?;
            progress.goes_on();
            progress.bytes_done.fetch_add(bytes.len() as u64, Relaxed);
            counted.fetch_add(bytes.len() as u64, Relaxed);
            Ok(bytes)
        }
    };
    let object = Object { key: at.key, size: at.size, keep: Keep::Own, in_part: part.is_stripe };
    let (_in_flight, parallel) = in_flight(worker, part.len()).await;
    let filled = worker.cache.fill_part(&object, part.range.clone(), parallel, counting).await;
    // Chunks that readers had fetched count as well; those of a file that failed do not.
    let counted = counted.load(Relaxed);
    if filled.is_ok() {
        progress.bytes_done.fetch_add(part.len().saturating_sub(counted), Relaxed);
        progress.files_done.fetch_add(part.files(), Relaxed);
    } else {
        progress.bytes_done.fetch_sub(counted, Relaxed);
    }
    filled
}

/// Room in memory for as many chunks of a file as there is, at least for one. Whoever reads one of them does not have to wait
/// behind others then.
async fn in_flight(worker: &Worker, size: u64) -> (Option<SemaphorePermit<'_>>, usize) {
    let kib = |bytes: u64| bytes.div_ceil(1024) as u32;
    let mut sizes = (0..size.div_ceil(CHUNK)).map(|n| kib(CHUNK.min(size - n * CHUNK)));
    let Some(first) = sizes.next() else { return (None, 1) };
    // An error means a closed semaphore, and this one never is.
    let Ok(mut held) = worker.ahead.acquire_many(first).await else { return (None, 1) };
    let mut chunks = 1;
    for size in sizes {
        let Ok(more) = worker.ahead.try_acquire_many(size) else { break };
        held.merge(more);
        chunks += 1;
    }
    (Some(held), chunks)
}

fn unusable(share: &Share, e: &CatalogError) -> Problem {
    folder_problem(&crate::folder::FolderError::Disk {
        action: "read catalog in",
        path: share.worker.folder.catalogs(),
        source: std::io::Error::other(e.to_string()),
    })
}

/// A file, or a stripe of a large one.
#[derive(Clone, Debug)]
struct Part {
    at: Arc<Located>,
    range: Range<u64>,
    is_stripe: bool,
}

impl Part {
    fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// A file is counted by the node that has its first byte.
    fn files(&self) -> u64 {
        u64::from(self.range.start == 0)
    }
}

/// The files and stripes of a snapshot that this node owns or keeps a replica of.
#[derive(Clone)]
struct Share {
    worker: Arc<Worker>,
    catalog: Open,
    members: Members,
    replicas: u32,
    paths: Globs,
    quota: u64,
}

impl Share {
    /// Walks what of the share is to be preloaded until told to stop. Blocks.
    fn walk(&self, mut each: impl FnMut(Part) -> ControlFlow<()>) -> Result<(), CatalogError> {
        self.walk_all(|part, named| if named { each(part) } else { ControlFlow::Continue(()) })
    }

    /// Walks all of the share, and says what of it is to be preloaded. Blocks.
    fn walk_all(&self, mut each: impl FnMut(Part, bool) -> ControlFlow<()>) -> Result<(), CatalogError> {
        for index in self.catalog.file_indices() {
            let Some(at) = locate(&self.catalog, index?)?.map(Arc::new) else { continue };
            let is_stripe = self.members.is_striped(at.size);
            let place = |range: &Range<u64>| self.members.place(&at.key, range.start);
            let held = |range: &Range<u64>| self.members.holds(&place(range), &self.worker.node, self.replicas);
            for range in self.members.stripes(at.size).filter(held) {
                if each(Part { at: Arc::clone(&at), range, is_stripe }, self.paths.admit(&at.path)).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn has(&self, part: &Part) -> bool {
        self.worker.has(&self.members, &part.at, &part.range)
    }

    /// Counts the share, and what of it is here.
    async fn measure(&self, progress: &Arc<Progress>) -> Result<(), Problem> {
        let (share, counted) = (self.clone(), Arc::clone(progress));
        let measured = tokio::task::spawn_blocking(move || {
            let (mut files, mut bytes, mut files_here, mut bytes_here, mut gets) = (0, 0, 0, 0, 0);
            let walked = share.walk(|part| {
                files += part.files();
                bytes += part.len();
                if share.has(&part) {
                    files_here += part.files();
                    bytes_here += part.len();
                } else {
                    gets += part.len().div_ceil(CHUNK);
                }
                ControlFlow::Continue(())
            });
            counted.files_total.store(files, Relaxed);
            counted.bytes_total.store(bytes, Relaxed);
            counted.files_done.store(files_here, Relaxed);
            counted.bytes_done.store(bytes_here, Relaxed);
            counted.gets.store(gets, Relaxed);
            counted.planned.store(walked.is_ok(), Relaxed);
            walked
        });
        measured.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic())).map_err(|e| unusable(self, &e))
    }

    /// Is there room for what is missing, once others have made some: files and stripes that are not in the share, which are of older
    /// snapshots or copies; then, as much as is still lacking, the share's own that are not named? Else what is lacking.
    async fn fit(&self, progress: &Progress) -> Result<Option<Problem>, Problem> {
        let total = progress.bytes_total.load(Relaxed);
        let missing = total.saturating_sub(progress.bytes_done.load(Relaxed));
        let mut room = self.room().await?;
        if missing <= room {
            return Ok(None);
        }
        let (cache, stays) = (&self.worker.cache, Arc::new(self.stays().await?));
        let failed = |e: CacheError| cache_problem(&e);
        let files = cache.retain(|key| stays.of_the_share(key)).await.map_err(failed)?;
        if files > 0 {
            tracing::info!(files, "removed files that are not in this node's share of the snapshot, for those that are");
        }
        room = self.room().await?;
        if missing > room && stays.some_are_not_named() {
            let of = Arc::clone(&stays);
            let mut bytes = cache.make_room(missing - room, move |key| !of.is_named(key)).await.map_err(failed)?;
            room = self.room().await?;
            if missing > room {
                // Of large files it is not known which of their stripes were used when.
                cache.retain(|key| stays.named(key)).await.map_err(failed)?;
                let before = std::mem::replace(&mut room, self.room().await?);
                bytes += room.saturating_sub(before);
            }
            tracing::info!(bytes, "removed files that spec.preload.paths does not name, for those that it names");
        }
        Ok((missing > room).then(|| {
            let text = format!(
                "the share to preload is {total} bytes, {missing} of them are missing and {room} have room in {} (quota {}); raise spec.cache.tiers[].quota, free space on this disk, add nodes, or name less in spec.preload.paths; what does not fit is read on demand",
                self.worker.folder.path().display(),
                self.quota
            );
            problem(reasons::DOES_NOT_FIT, text)
        }))
    }

    /// Bytes that the disk and the quota can take, those that files on their way have already included.
    async fn room(&self) -> Result<u64, Problem> {
        let free = self.ask_disk().await.map_err(|e| cache_problem(&e))?;
        Ok(free.saturating_add(self.worker.cache.usage().on_its_way()))
    }

    /// Bytes that the disk and the quota can still take; none if the disk does not say.
    async fn free(&self) -> u64 {
        self.ask_disk().await.unwrap_or(0)
    }

    /// What there is room for, also with other datasets of the disk making some.
    async fn ask_disk(&self) -> Result<u64, CacheError> {
        let cache = self.worker.cache.clone();
        let room = tokio::task::spawn_blocking(move || Ok(cache.room()?.saturating_add(cache.owed()?)));
        room.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
    }

    /// Waits until there is room for another chunk, or for all that is missing, or a file that was here is not any more.
    async fn more_room(&self, progress: &Progress, damages: &mut watch::Receiver<u64>, pause: &mut Pause) {
        let before = self.free().await;
        let missing = progress.bytes_total.load(Relaxed).saturating_sub(progress.bytes_done.load(Relaxed));
        let enough = (before + CHUNK).min(missing.max(before + 1));
        loop {
            tokio::select! {
                Ok(()) = damages.changed() => return,
                () = pause.wait() => if self.free().await >= enough {
                    return;
                }
            }
        }
    }

    /// Sends what is not here yet, as fast as it is taken; stops when nobody takes it any more.
    fn each_missing(&self, send: mpsc::Sender<Part>) -> tokio::task::JoinHandle<Result<(), CatalogError>> {
        let share = self.clone();
        tokio::task::spawn_blocking(move || {
            share.walk(|part| {
                if share.has(&part) || send.blocking_send(part).is_ok() {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })
        })
    }

    async fn stays(&self) -> Result<Stays, Problem> {
        let share = self.clone();
        let walked = tokio::task::spawn_blocking(move || {
            let mut stays = Stays::default();
            share.walk_all(|part, named| {
                stays.add(part, named);
                ControlFlow::Continue(())
            })?;
            Ok(stays)
        });
        walked.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic())).map_err(|e| unusable(self, &e))
    }

    /// A fresh count that keeps saying what the last one ended with, until it ends itself.
    fn count_again(&self, last: &Progress) -> Arc<Progress> {
        let progress = last.again();
        self.worker.report.set_preload(Some(Arc::clone(&progress)));
        progress
    }
}
