//! Makes room: complete files go that are worth less than what comes. Which ones is decided in `larder_core::eviction`.

use super::{Disk, Here, Inner, blocking};
use crate::{CacheError, Object, layout, scan};
use larder_core::{
    eviction::{Keep, Wanted},
    key::ObjectKey,
};
use std::{
    fs::{File, TryLockError},
    io,
    ops::Range,
    sync::{Arc, atomic::Ordering::Relaxed},
};

/// Files that are in use do not go; then others are looked for, so many times.
const ROUNDS: usize = 4;

/// What the room for an object is needed for.
pub(super) fn wanted(object: &Object, waited_for: bool) -> Wanted {
    match object.keep {
        Keep::Copy => Wanted::Copy,
        Keep::Own if waited_for => Wanted::Read,
        Keep::Own => Wanted::Share,
    }
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> Disk<E> {
    /// As `find`, after making room if the quota leaves none.
    pub(super) async fn claim(&self, object: &Object, part: &Range<u64>, wanted: Wanted) -> Result<Here<E>, CacheError> {
        let (need, free) = match self.find(object, part, wanted) {
            Err(CacheError::QuotaExceeded { need, free, .. }) => (need, free),
            found => return found,
        };
        let inner = Arc::clone(&self.inner);
        let made = blocking("make room in", &self.inner.dir, move || Ok(inner.make_room(need - free, wanted))).await;
        tracing::debug!(key = %object.key, need, freed = made?, "made room");
        self.find(object, part, wanted)
    }

    /// Removes complete files that `may_go` names, copies first, then what was not used for longest, until so many bytes are free or
    /// there are no more. Gives the bytes freed.
    ///
    /// # Errors
    /// None but a task that panics.
    pub async fn make_room(&self, need: u64, may_go: impl Fn(&ObjectKey) -> bool + Send + 'static) -> Result<u64, CacheError> {
        let inner = Arc::clone(&self.inner);
        blocking("make room in", &self.inner.dir, move || Ok(inner.make_room_of(need, Wanted::Neighbour, may_go))).await
    }
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> Inner<E> {
    /// Removes files until so many bytes are free, or none if that cannot be; for neighbours, as many as can be. Gives the bytes
    /// freed. Blocks.
    pub(super) fn make_room(&self, need: u64, wanted: Wanted) -> u64 {
        self.make_room_of(need, wanted, |_| true)
    }

    /// The same, of files that `may_go` names.
    fn make_room_of(&self, need: u64, wanted: Wanted, may_go: impl Fn(&ObjectKey) -> bool) -> u64 {
        let mut freed = 0;
        for _ in 0..ROUNDS {
            let left = need - freed;
            let chosen = self.index.lock().choose(left, wanted, &may_go);
            let enough = wanted == Wanted::Neighbour || chosen.iter().map(|c| c.1).sum::<u64>() >= left;
            if left == 0 || !enough {
                break;
            }
            for (key, bytes) in chosen {
                match self.evict(&key, bytes) {
                    Ok(true) => freed = need.min(freed + bytes),
                    Ok(false) => self.index.lock().used(&key),
                    Err(error) => tracing::warn!(%key, %error, "a file cannot be removed to make room"),
                }
            }
        }
        freed
    }

    /// Unlinks a file unless someone has a descriptor of it: each that was given away holds a shared lock on the file, which
    /// ends with the last copy of the descriptor, in whatever process or in the kernel.
    fn evict(&self, key: &ObjectKey, size: u64) -> io::Result<bool> {
        let file = File::open(layout::data(&self.dir, key))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(e)) => return Err(e),
        }
        if self.index.lock().forget(key).is_some() {
            self.sidecars.remove(key);
            scan::unlink(&self.dir, key, size)?;
            self.evicted.fetch_add(1, Relaxed);
        }
        Ok(true)
    }
}
