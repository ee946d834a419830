//! Keeps copies of files that pods of this node read on other nodes.
//!
//! ```text
//! reports ─► worth it? ─► queue ─► room beyond the own share? ─► chunks from the owner's disk, checked ─► complete ─► arrivals
//! ```
//!
//! A copy never costs the origin a byte: what the owner does not have is not copied, and tried again when it is read again.
//! It never takes the place of the own share: room for all of that is left, and a preload that lacks room removes copies.
//! Few are made at a time, in the lane behind the reads that someone waits for.

mod room;
mod worth;

use crate::{
    copies,
    kept::{FileOf, Read},
    metrics::ByReason,
    worker::{Located, Worker, locate},
};
use bytes::Bytes;
use futures::{future::BoxFuture, poll};
use larder_cache::{CHUNK, Keep, ReadError, Stay};
use larder_core::key::ObjectKey;
use larder_origin::Error as OriginError;
use room::Room;
use std::{
    collections::{HashMap, HashSet, VecDeque},
    ops::Range,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};
use tokio::{
    sync::{Mutex, Semaphore},
    task::JoinSet,
    time::Instant,
};
use worth::Worth;

/// Files that wait to be copied; one that finds no place is wanted again when it is read again.
const QUEUE: usize = 262_144;
/// Files copied at the same time: small ones wait for the disk, not for bytes.
const FILES: usize = 32;
/// Chunks of one file at the same time.
const CHUNKS: usize = 2;
/// Bytes in flight, all copies together: a third of what preload and copies have, so that neither starves the other.
const IN_FLIGHT: u64 = 16 << 20;
/// How long a copy whose owner did not have all of it yet waits for the next attempt, before its space is given back.
const UNFINISHED: Duration = Duration::from_secs(600);
/// Such copies at a time.
const UNFINISHED_FILES: usize = 64;
/// Between looks for those that waited too long.
const SWEEP: Duration = Duration::from_secs(60);

/// Copies what is reported, for ever.
pub(crate) async fn run(worker: Arc<Worker>) {
    let copier = Arc::new(Copier { worker, room: Mutex::default(), in_flight: Semaphore::new((IN_FLIGHT >> 10) as usize) });
    let mut queue = Queue::default();
    let worth = Worth::default();
    let mut unfinished = Unfinished::new();
    let mut copies = JoinSet::new();
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        while copies.len() < FILES
            && let Some(file) = queue.files.pop_front()
        {
            copies.spawn(Arc::clone(&copier).copy(file));
        }
        tokio::select! {
            reads = copier.worker.kept.reads() => copier.judge(reads, &worth, &mut queue).await,
            Some(ended) = copies.join_next() => {
                let (file, outcome) = ended.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
                queue.known.remove(&file);
                copier.ended(file, outcome, &mut unfinished).await;
            }
            _ = sweep.tick() => copier.sweep(&mut unfinished).await,
        }
    }
}

/// Each file once, in the order in which they were read.
#[derive(Default)]
struct Queue {
    files: VecDeque<FileOf>,
    /// Those, and what is being copied.
    known: HashSet<FileOf>,
}

impl Queue {
    fn push(&mut self, file: FileOf) {
        if self.files.len() < QUEUE && self.known.insert(file.clone()) {
            self.files.push_back(file);
        }
    }
}

enum Outcome {
    /// It is complete on this node.
    Here { copied: u64 },
    /// It is not, and nothing of it stays.
    Not(&'static str),
    /// The owner did not have all of it; what came stays for a while.
    Unfinished { key: ObjectKey, size: u64, reason: &'static str },
    /// Nothing to copy: no such file, or this node's own.
    Nothing,
}

/// Copies that wait for the rest of them: their sizes, and since when.
type Unfinished = HashMap<ObjectKey, (u64, Instant)>;

struct Copier {
    worker: Arc<Worker>,
    room: Mutex<Room>,
    /// In KiB.
    in_flight: Semaphore,
}

impl Copier {
    /// Puts into the queue what is worth a copy.
    async fn judge(&self, reads: Vec<Read>, worth: &Worth, queue: &mut Queue) {
        for read in reads {
            if queue.known.contains(&read.file) {
                continue;
            }
            let Some(at) = find(&self.worker, &read.file).await else { continue };
            if self.worker.cache.contains(&at.key) {
                // Its mounter does not know yet.
                self.worker.kept.arrived(read.file);
                continue;
            }
            let whole = self.room.lock().await.for_all_of(&self.worker, &read.file.snapshot).await;
            if whole || worth.read_again(&at.key, at.size, read.bytes, std::time::Instant::now()) {
                queue.push(read.file);
            }
        }
    }

    async fn copy(self: Arc<Self>, file: FileOf) -> (FileOf, Outcome) {
        let outcome = self.try_copy(&file).await;
        (file, outcome)
    }

    async fn try_copy(&self, file: &FileOf) -> Outcome {
        let worker = &self.worker;
        let Some(at) = find(worker, file).await.filter(|at| !worker.holds_all(&at.key, at.size)) else {
            return Outcome::Nothing;
        };
        let kib = at.size.min(CHUNKS as u64 * CHUNK).div_ceil(1024) as u32;
        // Never closed.
        let Ok(_in_flight) = self.in_flight.acquire_many(kib).await else { return Outcome::Nothing };
        let object = worker.object(&at, Keep::Copy);
        let mut fill = pin!(worker.cache.fill(&object, CHUNKS, from_owner(worker, &at)));
        // Stripes of it may be this node's own.
        let held = worker.held(&at.key, at.size);
        let here: u64 = held.iter().filter(|own| worker.cache.has(&at.key, own)).map(|own| own.end - own.start).sum();
        let copied = at.size - here;
        let begun = {
            let mut room = self.room.lock().await;
            if worker.cache.contains(&at.key) {
                return Outcome::Here { copied: 0 };
            }
            if !room.beyond_the_share(worker, copied).await {
                return Outcome::Not("room");
            }
            // From its beginning on the cache counts it, so that the next one finds that much less room.
            poll!(fill.as_mut())
        };
        let filled = match begun {
            Poll::Ready(filled) => filled,
            Poll::Pending => fill.await,
        };
        match filled {
            Ok(()) => Outcome::Here { copied },
            Err(ReadError::Fetch(_) | ReadError::Length { .. }) => {
                Outcome::Unfinished { key: at.key, size: at.size, reason: "owner" }
            }
            Err(ReadError::Cache(error)) => {
                tracing::debug!(key = %at.key, path = at.path, %error, "no copy is kept");
                Outcome::Not("disk")
            }
        }
    }

    async fn ended(&self, file: FileOf, outcome: Outcome, unfinished: &mut Unfinished) {
        let metrics = &self.worker.metrics;
        if let Outcome::Not(reason) | Outcome::Unfinished { reason, .. } = &outcome {
            metrics.not_kept.get_or_create(&ByReason { reason }).inc();
        }
        match outcome {
            Outcome::Here { copied } => {
                if copied > 0 {
                    metrics.kept_files.inc();
                    metrics.kept_bytes.inc_by(copied);
                }
                self.worker.kept.arrived(file);
            }
            Outcome::Unfinished { key, size, .. } if unfinished.len() < UNFINISHED_FILES || unfinished.contains_key(&key) => {
                unfinished.insert(key, (size, Instant::now()));
            }
            Outcome::Unfinished { key, size, .. } => self.give_back(&key, size).await,
            Outcome::Not(_) | Outcome::Nothing => {}
        }
    }

    /// Gives the space of copies back that wait in vain for the rest of them.
    async fn sweep(&self, unfinished: &mut Unfinished) {
        for (key, (size, _)) in unfinished.extract_if(|_, (_, since)| since.elapsed() >= UNFINISHED) {
            self.give_back(&key, size).await;
        }
    }

    /// But for what is this node's own.
    async fn give_back(&self, key: &ObjectKey, size: u64) {
        let held = self.worker.held(key, size);
        let stay = if held.is_empty() { Stay::Nothing } else { Stay::Parts(held) };
        if let Err(error) = self.worker.cache.abandon(key, &stay).await {
            tracing::warn!(%key, %error, "an unfinished copy stays until the next start");
        }
    }
}

async fn find(worker: &Arc<Worker>, file: &FileOf) -> Option<Located> {
    let catalog = worker.catalogs.get(&file.snapshot)?;
    let index = file.inode.checked_sub(1)?;
    let located = tokio::task::spawn_blocking(move || locate(&catalog, index)).await;
    // A catalog that cannot be read is told by those who cannot do without it.
    located.ok()?.ok()?
}

/// Fetches chunks from the owner's disk, and from nowhere else.
fn from_owner(
    worker: &Arc<Worker>,
    at: &Located,
) -> impl Fn(Range<u64>) -> BoxFuture<'static, Result<Bytes, OriginError>> + Clone + Send + Sync + 'static {
    let (worker, at) = (Arc::clone(worker), Arc::new(at.clone()));
    move |range| {
        let (worker, at) = (Arc::clone(&worker), Arc::clone(&at));
        Box::pin(async move {
            let owner = {
                let members = &worker.roster.borrow().members;
                members.owner(&members.place(&at.key, range.start)).map_or_else(String::new, |m| m.node.clone())
            };
            copies::from(&worker, &owner, &at, &range, false).await.ok_or_else(|| copies::not_given(&owner, &at))
        })
    }
}
