//! Complete files against their checksums.
//!
//! A file that was filled in this run of the process is good. One that was found at the start is read against its sidecar
//! before its descriptor is given away: at once if it is small, in the background if it is large. Until then, and whenever the
//! cache itself reads, every block is compared; so a check that takes long holds no read up.

use super::{Disk, blocking};
use crate::{
    CHUNK, CacheError, Checked, Unchecked, blocks,
    blocks::covering,
    chunk_range, chunks,
    index::Entry,
    layout, quarantine,
    sidecar::{self, Sidecar},
    unreadable::{Unreadable, off},
};
use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use larder_core::key::ObjectKey;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::sync::Semaphore;

/// One check of one file, shared by all who wait for it: is it good?
type Check = Shared<BoxFuture<'static, bool>>;

/// Checks under way.
pub(super) struct Checks {
    running: Mutex<HashMap<ObjectKey, Check>>,
    large: Semaphore,
}

/// Files of several chunks checked at the same time: two keep a disk busy, more only make each of them later.
const LARGE: usize = 2;

impl Default for Checks {
    fn default() -> Self {
        Self { running: Mutex::default(), large: Semaphore::new(LARGE) }
    }
}

/// How good the files are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Integrity {
    /// Files, and chunks of those that are not complete, that were found to be bad since the process started.
    pub damaged_files: u64,
    /// Bytes that were read only to compare them, since then.
    pub compared_bytes: u64,
    /// When the scrub last had read every file, in seconds since 1970.
    pub scrubbed: Option<u64>,
}

/// Longest wait for a check before a descriptor is given: a file of one chunk takes a few milliseconds, and whoever asks does
/// not wait much longer than this. The check goes on.
const SOON: Duration = Duration::from_millis(200);

/// Opens a file for someone. The lock is held by all copies of the descriptor: as long as there is one, the file is not removed to make
/// room. `None`: it is being removed at this moment. Blocks.
fn open_held(path: &Path) -> io::Result<Option<File>> {
    let file = File::open(path)?;
    let held = file.try_lock_shared().is_ok();
    Ok(held.then_some(file))
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> Disk<E> {
    /// As [`Self::open_complete`], if that needs no more than to open the file: it is known to be good already. Blocks for the
    /// disk only.
    #[must_use]
    pub fn open_now(&self, key: &ObjectKey) -> Option<File> {
        if !self.use_complete(key)? {
            return None;
        }
        // What is wrong with it is for `open_complete` to find.
        open_held(&layout::data(&self.inner.dir, key)).ok()?
    }

    /// Notes that someone wants a complete file. Is it known to be good?
    fn use_complete(&self, key: &ObjectKey) -> Option<bool> {
        let mut index = self.inner.index.lock();
        index.used(key);
        Some(index.complete(key)?.verified)
    }

    /// The complete file, read-only, when it is known to be good. It is never changed again; erasing unlinks it.
    pub async fn open_complete(&self, key: &ObjectKey) -> Option<File> {
        if !self.use_complete(key)? && !tokio::time::timeout(SOON, self.check(key)).await.unwrap_or(false) {
            return None;
        }
        let path = layout::data(&self.inner.dir, key);
        match off(move || Ok(open_held(&path)?)).await {
            Ok(file) => file,
            Err(e) => {
                self.unreadable(key, e, "open").await;
                None
            }
        }
    }

    /// Reads the whole file and compares it with its checksums, now. False: it is not here, or was not good and went to the
    /// quarantine.
    pub async fn verify(&self, key: &ObjectKey) -> bool {
        self.check(key).await
    }

    /// The CRC-32C of a range of a complete file, as it was written.
    pub async fn checksum(&self, key: &ObjectKey, range: &Range<u64>) -> Option<u32> {
        self.inner.index.lock().complete(key)?;
        let range = range.clone();
        self.with_file(key, move |file, sidecar| blocks::sum(file, sidecar, &range)).await.ok()
    }

    /// What was found so far.
    #[must_use]
    pub fn integrity(&self) -> Integrity {
        Integrity {
            damaged_files: *self.inner.common.damages.borrow(),
            compared_bytes: self.inner.compared.load(Relaxed),
            scrubbed: self.inner.scrubbed.lock().ended,
        }
    }

    /// Where bad files are put.
    #[must_use]
    pub fn quarantine(&self) -> PathBuf {
        layout::quarantine(&self.inner.dir)
    }

    /// A range of a complete file. Also begins the check of a file whose descriptor is not given away yet.
    pub(super) async fn read_complete(&self, key: &ObjectKey, range: &Range<u64>) -> Result<Checked, CacheError> {
        let verified = {
            let mut index = self.inner.index.lock();
            index.used(key);
            index.complete(key).is_none_or(|entry| entry.verified)
        };
        if !verified {
            drop(self.check(key));
        }
        self.read_file(key, range).await
    }

    /// Whole blocks of a complete file that is known to be good, compared with nothing. `None`: it is to be read in another way.
    pub async fn read_unchecked(&self, key: &ObjectKey, range: &Range<u64>) -> Option<Unchecked> {
        {
            let mut index = self.inner.index.lock();
            index.used(key);
            index.complete(key).filter(|entry| entry.verified && blocks::are_whole(entry.size, range))?;
        }
        let range = range.clone();
        self.with_file(key, move |file, sidecar| blocks::read_unchecked(file, sidecar, &range)).await.ok()
    }

    async fn read_file(&self, key: &ObjectKey, range: &Range<u64>) -> Result<Checked, CacheError> {
        let range = range.clone();
        self.with_file(key, move |file, sidecar| {
            blocks::read(file, sidecar.size, &range, &sidecar.crcs[covering(sidecar.size, &range)])
        })
        .await
    }

    /// The check of this file, begun now if none is under way.
    fn check(&self, key: &ObjectKey) -> Check {
        let mut running = self.inner.checks.running.lock();
        if let Some(check) = running.get(key) {
            return check.clone();
        }
        let (cache, of) = (self.clone(), *key);
        let task = self.inner.tasks.spawn(async move {
            let good = cache.compare(&of).await;
            cache.inner.checks.running.lock().remove(&of);
            good
        });
        let check = async move { task.await.unwrap_or(false) }.boxed().shared();
        running.insert(*key, check.clone());
        check
    }

    async fn compare(&self, key: &ObjectKey) -> bool {
        let Some(entry) = self.inner.index.lock().complete(key) else { return false };
        // An error means a closed semaphore, and this one is never closed.
        let _turn = if entry.size > CHUNK { self.inner.checks.large.acquire().await.ok() } else { None };
        for n in 0..chunks(entry.size).max(1) {
            if self.inner.closed.is_cancelled() {
                return false;
            }
            let range = chunk_range(entry.size, n);
            if self.read_file(key, &range).await.is_err() {
                return false;
            }
            self.inner.compared.fetch_add(range.end - range.start, Relaxed);
        }
        self.inner.index.lock().verified(key);
        true
    }

    /// Reads something of a complete file. What is found to be bad is not here any more afterwards.
    async fn with_file<T: Send + 'static>(
        &self,
        key: &ObjectKey,
        read: impl FnOnce(&File, &Sidecar) -> Result<T, Unreadable> + Send + 'static,
    ) -> Result<T, CacheError> {
        let (inner, of) = (Arc::clone(&self.inner), *key);
        let entry = inner.index.lock().complete(key);
        let done = off(move || {
            // Removed a moment ago, which is as good as never there.
            let Entry { size, .. } = entry.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            let load = || sidecar::load(&layout::sidecar(&inner.dir, &of, size)).map(Arc::new);
            let sidecar = inner.sidecars.get_or_insert_with(&of, load)?;
            let file = File::open(layout::data(&inner.dir, &of))?;
            if sidecar.size != size || file.metadata()?.len() != size {
                return Err(Unreadable::Length { want: size });
            }
            read(&file, &sidecar)
        });
        match done.await {
            Ok(done) => Ok(done),
            Err(e) => Err(self.unreadable(key, e, "read").await),
        }
    }

    /// A complete file could not be read: one that is damaged is put aside, to be fetched again.
    pub(super) async fn unreadable(&self, key: &ObjectKey, e: Unreadable, action: &'static str) -> CacheError {
        let (damaged, path) = (e.is_damage(), layout::data(&self.inner.dir, key));
        let error = e.of(action, &path);
        let Some(entry) = damaged.then(|| self.inner.index.lock().forget(key)).flatten() else { return error };
        self.inner.sidecars.remove(key);
        let (dir, of) = (self.inner.dir.clone(), *key);
        match blocking("put into quarantine", &path, move || quarantine::put(&dir, &of, entry.size)).await {
            Ok(kept) => {
                tracing::error!(%key, %error, kept, "a cached file is bad; it went to the quarantine and is fetched again")
            }
            Err(e) => tracing::error!(%key, %error, quarantine = %e, "a cached file is bad and cannot be moved away"),
        }
        self.inner.common.damages.send_modify(|n| *n += 1);
        error
    }
}
