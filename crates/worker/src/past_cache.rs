//! Reads that go past the cache, because no disk keeps their bytes.
//!
//! ```text
//! read ─► under way? ─┬─ no ─► a task: its turn ─► fetch ─► the bytes, until someone has taken them
//!                     └─ yes ─► joined
//! ```
//!
//! Who waits goes away before the first byte is overdue, and asks again. The fetch goes on meanwhile, as one into the cache does: the next
//! attempt joins it, or finds its bytes.

use bytes::Bytes;
use larder_cache::Checked;
use larder_core::key::ObjectKey;
use larder_origin::Error as OriginError;
use parking_lot::Mutex;
use std::{collections::HashMap, future::Future, ops::Range, sync::Arc, time::Duration};
use tokio::sync::{Notify, Semaphore, watch};

/// Pieces in memory, 4 MiB each: those that are being fetched, and those that wait to be taken.
const PIECES: usize = 16;
/// How long a piece waits for the next attempt of who asked for it, and how long a fetch that nobody waits for any more keeps its place in
/// the queue: longer than the longest pause between two attempts.
const PATIENCE: Duration = Duration::from_secs(5);

type Piece = (ObjectKey, Range<u64>);
type Fetched = Result<Checked, OriginError>;

/// Fetches that are under way, and what they brought until it is taken.
pub(crate) struct PastCache {
    places: Semaphore,
    patience: Duration,
    fetches: Mutex<HashMap<Piece, Arc<Fetch>>>,
}

struct Fetch {
    /// Its receivers are those who wait.
    fetched: watch::Sender<Option<Fetched>>,
    taken: Notify,
}

impl Default for PastCache {
    fn default() -> Self {
        Self::new(PIECES, PATIENCE)
    }
}

impl PastCache {
    fn new(pieces: usize, patience: Duration) -> Self {
        Self { places: Semaphore::new(pieces), patience, fetches: Mutex::default() }
    }

    /// The piece, from the fetch that is under way, else from a new one.
    pub async fn read(
        self: &Arc<Self>,
        key: ObjectKey,
        range: Range<u64>,
        fetch: impl Future<Output = Result<Bytes, OriginError>> + Send + 'static,
    ) -> Fetched {
        let (this, mut waits) = {
            let mut fetches = self.fetches.lock();
            let this = Arc::clone(fetches.entry((key, range.clone())).or_insert_with(|| {
                let this = Arc::new(Fetch { fetched: watch::Sender::new(None), taken: Notify::new() });
                let entry = Entry { all: Arc::clone(self), piece: (key, range), this: Arc::clone(&this) };
                tokio::spawn(entry.run(fetch));
                this
            }));
            // Under the lock: a fetch that somebody waits for is not given up.
            let waits = this.fetched.subscribe();
            (this, waits)
        };
        loop {
            if let Some(fetched) = waits.borrow_and_update().clone() {
                this.taken.notify_one();
                return fetched;
            }
            // Its sender is held here. One that panicked wakes nobody, and is not found by the next attempt.
            let _ = waits.changed().await;
        }
    }
}

/// The task's hold on its entry.
struct Entry {
    all: Arc<PastCache>,
    piece: Piece,
    this: Arc<Fetch>,
}

impl Entry {
    async fn run(self, fetch: impl Future<Output = Result<Bytes, OriginError>> + Send + 'static) {
        let PastCache { places, patience, .. } = &*self.all;
        let _place = tokio::select! {
            place = places.acquire() => place,
            () = self.unwanted() => return,
        };
        let fetched = fetch.await.map(Checked::of);
        self.this.fetched.send_replace(Some(fetched));
        // Who takes it has its own memory for it.
        let _ = tokio::time::timeout(*patience, self.this.taken.notified()).await;
    }

    /// Ends when nobody has waited for a while; no later attempt finds this one then.
    async fn unwanted(&self) {
        loop {
            self.this.fetched.closed().await;
            tokio::time::sleep(self.all.patience).await;
            let mut fetches = self.all.fetches.lock();
            if self.this.fetched.is_closed() {
                fetches.remove(&self.piece);
                return;
            }
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut fetches = self.all.fetches.lock();
        if fetches.get(&self.piece).is_some_and(|now| Arc::ptr_eq(now, &self.this)) {
            fetches.remove(&self.piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use tokio::time::timeout;

    const LONG: Duration = Duration::from_secs(3600);

    fn key(n: u64) -> ObjectKey {
        ObjectKey::new("s3://b/", "p", "v", n)
    }

    /// Waits, counts itself, and gives a byte.
    fn fetch(
        count: &Arc<AtomicU64>,
        go: &Arc<Semaphore>,
    ) -> impl Future<Output = Result<Bytes, OriginError>> + Send + use<> + 'static {
        let (count, go) = (Arc::clone(count), Arc::clone(go));
        async move {
            go.acquire().await.unwrap().forget();
            count.fetch_add(1, SeqCst);
            Ok(Bytes::from_static(b"x"))
        }
    }

    fn moment() -> Duration {
        Duration::from_millis(20)
    }

    async fn until(what: impl Fn() -> bool) {
        let waited = async {
            while !what() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(10), waited).await.unwrap();
    }

    #[tokio::test]
    async fn who_goes_away_and_comes_back_gets_what_was_fetched_meanwhile() {
        let past = Arc::new(PastCache::new(1, LONG));
        let (count, go) = (Arc::default(), Arc::new(Semaphore::new(0)));
        let read = || past.read(key(1), 0..1, fetch(&count, &go));
        assert!(timeout(moment(), read()).await.is_err());
        // Joined by two, who both get it.
        let joined = async {
            until(|| past.fetches.lock().values().any(|f| f.fetched.receiver_count() == 2)).await;
            go.add_permits(1);
        };
        let (a, b, ()) = tokio::join!(read(), read(), joined);
        assert_eq!((&*a.unwrap().bytes, &*b.unwrap().bytes, count.load(SeqCst)), (&b"x"[..], &b"x"[..], 1));
        until(|| past.places.available_permits() == 1 && past.fetches.lock().is_empty()).await;

        assert!(timeout(moment(), read()).await.is_err());
        go.add_permits(1);
        until(|| count.load(SeqCst) == 2).await;
        assert_eq!(past.places.available_permits(), 0, "what is kept counts");
        assert_eq!((read().await.unwrap().bytes.len(), count.load(SeqCst)), (1, 2));
        until(|| past.places.available_permits() == 1 && past.fetches.lock().is_empty()).await;
    }

    #[tokio::test]
    async fn what_nobody_comes_back_for_is_forgotten_and_takes_no_turn() {
        let past = Arc::new(PastCache::new(1, moment()));
        let (count, go) = (Arc::default(), Arc::new(Semaphore::new(0)));
        // The first is under way, the other waits behind it.
        for n in [1, 2] {
            let read = past.read(key(n), 0..1, fetch(&count, &go));
            assert!(timeout(Duration::from_millis(1), read).await.is_err());
        }
        until(|| past.fetches.lock().len() == 1).await;
        go.add_permits(1);
        until(|| past.places.available_permits() == 1 && past.fetches.lock().is_empty()).await;
        assert_eq!(count.load(SeqCst), 1);
    }

    #[tokio::test]
    async fn a_fetch_that_somebody_waits_for_keeps_its_place_in_the_queue() {
        let past = Arc::new(PastCache::new(1, moment()));
        let (count, go) = (Arc::default(), Arc::new(Semaphore::new(0)));
        let read = |n| past.read(key(n), 0..1, fetch(&count, &go));
        let freed = async {
            tokio::time::sleep(moment() * 5).await;
            go.add_permits(2);
        };
        let (a, b, ()) = tokio::join!(read(1), read(2), freed);
        assert!(a.is_ok() && b.is_ok());
    }

    #[tokio::test]
    async fn a_fetch_that_panics_does_not_stop_those_after_it() {
        let past = Arc::new(PastCache::new(1, LONG));
        let bad = past.read(key(1), 0..1, async { panic!("on purpose") });
        assert!(timeout(moment(), bad).await.is_err());
        until(|| past.fetches.lock().is_empty()).await;
        let good = past.read(key(1), 0..1, async { Ok(Bytes::new()) });
        assert!(timeout(Duration::from_secs(10), good).await.unwrap().is_ok());
    }
}
