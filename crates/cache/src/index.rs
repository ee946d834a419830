//! What is known in memory: complete files, fills, and how much of the quota they use.

use crate::{CacheError, Stay, chunk_range, fill::Fill};
use larder_core::{
    eviction::{self, FRESH, Keep, Wanted},
    key::ObjectKey,
};
use std::{
    collections::BTreeMap,
    ops::Bound,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

/// A complete file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub size: u64,
    pub keep: Keep,
    /// Filled or read against its checksums in this run of the process.
    pub verified: bool,
    /// Last use, in seconds since the process took the folder over; 0: by a process before this one.
    used: u32,
}

struct Filling<E: std::error::Error + Clone + Send + Sync + 'static> {
    fill: Arc<Fill<E>>,
    keep: Keep,
    /// Bytes that it has space for, or will have.
    reserved: u64,
    in_part: bool,
}

/// Complete files use what they are long, fills what they have space for.
pub(crate) struct Index<E: std::error::Error + Clone + Send + Sync + 'static> {
    /// Both ordered, so that the scrub can go on behind the key where it was.
    complete: BTreeMap<ObjectKey, Entry>,
    fills: BTreeMap<ObjectKey, Filling<E>>,
    complete_bytes: u64,
    fill_bytes: u64,
    quota: u64,
    began: Instant,
    /// Last use of any file, as that of an entry.
    used: u32,
    pub closed: bool,
}

/// A file that is here as a whole or in part.
pub(crate) enum Next<E: std::error::Error + Clone + Send + Sync + 'static> {
    Complete(ObjectKey, Entry),
    Fill(Arc<Fill<E>>),
}

/// What nobody wants or works on, to be given back to the disk.
pub(crate) struct Idle<E: std::error::Error + Clone + Send + Sync + 'static> {
    /// Fills that are marked as dropped.
    pub whole: Vec<Arc<Fill<E>>>,
    /// Chunks of others.
    pub chunks: Vec<(Arc<Fill<E>>, Vec<u64>)>,
}

fn is<E: std::error::Error + Clone + Send + Sync + 'static>(filling: &Filling<E>, fill: &Fill<E>) -> bool {
    std::ptr::eq(&raw const *filling.fill, fill)
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> Index<E> {
    /// Nobody knows yet whether the files are what they were.
    pub fn new(complete: impl IntoIterator<Item = (ObjectKey, u64)>, quota: u64) -> Self {
        let entry = |size| Entry { size, keep: Keep::Own, verified: false, used: 0 };
        let complete: BTreeMap<_, _> = complete.into_iter().map(|(key, size)| (key, entry(size))).collect();
        let complete_bytes = complete.values().map(|e| e.size).sum();
        Self {
            complete,
            fills: BTreeMap::new(),
            complete_bytes,
            fill_bytes: 0,
            quota,
            began: Instant::now(),
            used: 0,
            closed: false,
        }
    }

    pub fn set_quota(&mut self, quota: u64) {
        self.quota = quota;
    }

    pub fn quota(&self) -> u64 {
        self.quota
    }

    /// Bytes left of the quota.
    pub fn free(&self) -> u64 {
        if self.quota == 0 { u64::MAX } else { self.quota.saturating_sub(self.complete_bytes + self.fill_bytes) }
    }

    /// Does the quota leave room for so many bytes more?
    pub fn admit(&self, dir: &Path, need: u64) -> Result<(), CacheError> {
        let free = self.free();
        if need > free {
            return Err(CacheError::QuotaExceeded { path: dir.to_owned(), need, free, quota: self.quota });
        }
        Ok(())
    }

    pub fn files(&self) -> u64 {
        self.complete.len() as u64
    }

    pub fn bytes(&self) -> (u64, u64) {
        (self.complete_bytes, self.fill_bytes)
    }

    /// Bytes on the disk of objects that are kept in part.
    pub fn part_bytes(&self) -> u64 {
        self.fills.values().filter(|f| f.in_part).map(|f| f.fill.bytes_here()).sum()
    }

    pub fn complete(&self, key: &ObjectKey) -> Option<Entry> {
        self.complete.get(key).copied()
    }

    /// The next complete or unfinished file in the order of keys.
    pub fn next(&self, behind: Option<&ObjectKey>) -> Option<Next<E>> {
        let behind = (behind.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let complete = self.complete.range(behind).next().map(|(key, entry)| (key, Next::Complete(*key, *entry)));
        let fill = self.fills.range(behind).next().map(|(key, filling)| (key, Next::Fill(Arc::clone(&filling.fill))));
        complete.into_iter().chain(fill).min_by_key(|(key, _)| *key).map(|(_, next)| next)
    }

    /// Unfinished files and their sizes.
    pub fn unfinished(&self) -> impl Iterator<Item = (ObjectKey, u64)> {
        self.fills.iter().map(|(key, filling)| (*key, filling.fill.size))
    }

    fn now(&self) -> u32 {
        u32::try_from(self.began.elapsed().as_secs()).unwrap_or(u32::MAX - 1) + 1
    }

    /// Someone reads the file, or has its descriptor.
    pub fn used(&mut self, key: &ObjectKey) {
        let now = self.now();
        if let Some(entry) = self.complete.get_mut(key) {
            entry.used = now;
            self.used = now;
        }
    }

    /// Since when nobody used any of the files.
    pub fn idle(&self) -> Duration {
        self.since(self.now(), self.used)
    }

    fn since(&self, now: u32, used: u32) -> Duration {
        if used == 0 { FRESH + Duration::from_secs(now.into()) } else { Duration::from_secs(u64::from(now - used)) }
    }

    /// The files to remove so that `need` bytes become free, and what each of them frees; of those that `may_go` names.
    pub fn choose(&self, need: u64, wanted: Wanted, may_go: impl Fn(&ObjectKey) -> bool) -> Vec<(ObjectKey, u64)> {
        let now = self.now();
        let idle = |used| self.since(now, used);
        let file =
            |(key, e): (&ObjectKey, &Entry)| eviction::File { id: *key, bytes: e.size, keep: e.keep, idle: idle(e.used) };
        eviction::choose(self.complete.iter().filter(|(key, _)| may_go(key)).map(file), need, wanted)
    }

    pub fn verified(&mut self, key: &ObjectKey) {
        if let Some(entry) = self.complete.get_mut(key) {
            entry.verified = true;
        }
    }

    /// It is to be compared before it is given to anyone.
    pub fn doubt(&mut self, key: &ObjectKey) {
        if let Some(entry) = self.complete.get_mut(key) {
            entry.verified = false;
        }
    }

    pub fn fill(&self, key: &ObjectKey) -> Option<&Arc<Fill<E>>> {
        self.fills.get(key).map(|f| &f.fill)
    }

    /// Without space yet.
    pub fn begin(&mut self, fill: &Arc<Fill<E>>, keep: Keep, in_part: bool) {
        self.fills.insert(fill.key, Filling { fill: Arc::clone(fill), keep, reserved: 0, in_part });
    }

    /// It was begun as a whole, and is kept in part from now on.
    pub fn in_part(&mut self, key: &ObjectKey) {
        if let Some(filling) = self.fills.get_mut(key) {
            filling.in_part = true;
        }
    }

    /// Counts space for a fill, if it is still the one of its key.
    pub fn reserve(&mut self, fill: &Fill<E>, bytes: u64) {
        if let Some(filling) = self.fills.get_mut(&fill.key).filter(|f| is(f, fill)) {
            filling.reserved += bytes;
            self.fill_bytes += bytes;
        }
    }

    /// It has less, or will have.
    pub fn unreserve(&mut self, fill: &Fill<E>, bytes: u64) {
        if let Some(filling) = self.fills.get_mut(&fill.key).filter(|f| is(f, fill)) {
            filling.reserved -= bytes;
            self.fill_bytes -= bytes;
        }
    }

    /// A fill that has space for all of its object.
    pub fn has_all_space(&self, key: &ObjectKey) -> bool {
        self.fills.get(key).is_some_and(|f| f.reserved == f.fill.size)
    }

    /// Ends a fill, if it is still the one of its key.
    pub fn end(&mut self, fill: &Fill<E>, complete: bool) {
        if !self.fills.get(&fill.key).is_some_and(|f| is(f, fill)) {
            return;
        }
        let Some(Filling { keep, reserved, .. }) = self.fills.remove(&fill.key) else { return };
        self.fill_bytes -= reserved;
        if complete {
            self.complete_bytes += fill.size;
            // A chunk may have turned out to be bad while the file was put in its place.
            let verified = fill.is_whole();
            self.complete.insert(fill.key, Entry { size: fill.size, keep, verified, used: self.now() });
        }
    }

    /// What someone wants as the node's own is no mere copy any more.
    pub fn own(&mut self, key: &ObjectKey) {
        if let Some(entry) = self.complete.get_mut(key) {
            entry.keep = Keep::Own;
        } else if let Some(filling) = self.fills.get_mut(key) {
            filling.keep = Keep::Own;
        }
    }

    pub fn forget(&mut self, key: &ObjectKey) -> Option<Entry> {
        let entry = self.complete.remove(key)?;
        self.complete_bytes -= entry.size;
        Some(entry)
    }

    /// Forgets the complete files of which nothing is to stay.
    pub fn forget_unwanted(&mut self, stay: impl Fn(&ObjectKey) -> Stay) -> Vec<(ObjectKey, u64)> {
        let unwanted: Vec<_> = self.complete.keys().filter(|k| stay(k) == Stay::Nothing).copied().collect();
        unwanted.into_iter().filter_map(|key| Some((key, self.forget(&key)?.size))).collect()
    }

    /// Of the fills what is not to stay and nobody works on: marks those as dropped of which that is all, and forgets chunks of
    /// the others.
    pub fn drop_idle(&mut self, stay: impl Fn(&ObjectKey) -> Stay) -> Idle<E> {
        let mut idle = Idle { whole: Vec::new(), chunks: Vec::new() };
        for filling in self.fills.values_mut() {
            let fill = &filling.fill;
            match stay(&fill.key) {
                Stay::All => {}
                Stay::Nothing | Stay::Complete if fill.drop_if_idle() => idle.whole.push(Arc::clone(fill)),
                Stay::Nothing | Stay::Complete => {}
                Stay::Parts(ranges) => {
                    let forgotten = fill.forget_others(&ranges);
                    let bytes: u64 = forgotten.iter().map(|n| chunk_range(fill.size, *n)).map(|r| r.end - r.start).sum();
                    if bytes > 0 {
                        idle.chunks.push((Arc::clone(fill), forgotten));
                        filling.reserved -= bytes;
                        self.fill_bytes -= bytes;
                    }
                }
            }
        }
        idle
    }

    pub fn clear(&mut self) {
        self.complete.clear();
        self.fills.clear();
        (self.complete_bytes, self.fill_bytes) = (0, 0);
    }
}
