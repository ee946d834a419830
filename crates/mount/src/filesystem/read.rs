//! Reads: from an open local file at once, from elsewhere in a task.

use super::failures::Failures;
use crate::{
    backend::{Backend, Fetched, Place, check},
    error::FsError,
    metrics::ReadCounters,
};
use bytes::Bytes;
use larder_core::{catalog::Catalog, key::ObjectKey};
use larder_fuse::journal::Data;
use parking_lot::Mutex;
use std::{cell::RefCell, fs::File, io, ops::Range, os::unix::fs::FileExt as _, sync::Arc, time::Duration};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, SemaphorePermit},
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

/// Reads of one mount that wait for the network at a time: each holds up to 1 MiB (the kernel's longest read). Per mount, so
/// that a dataset whose origin is down cannot take the places of others.
const IN_FLIGHT: usize = 64;
/// Longest time for a read from its arrival on, all waits together.
const WHOLE: Duration = Duration::from_secs(60);
/// After a warning that a local file could not be read, what else fails in this time is only for who debugs.
const TELL: Duration = Duration::from_secs(60);

thread_local! {
    /// FUSE threads read local files into this; it grows to the kernel's longest read.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub(super) struct Reader<B> {
    shared: Arc<Shared<B>>,
    runtime: Handle,
}

struct Shared<B> {
    identity: Arc<str>,
    backend: B,
    reads: ReadCounters,
    /// For reads from elsewhere, and for those from local files: these never wait behind a network or an origin.
    places: Semaphore,
    local_places: Semaphore,
    failures: Failures,
    told: Mutex<Option<Instant>>,
}

impl<B: Backend> Reader<B> {
    pub(super) fn new(identity: Arc<str>, backend: B, reads: ReadCounters, runtime: Handle) -> Self {
        Self { shared: Arc::new(Shared::new(identity, backend, reads)), runtime }
    }

    /// The complete local file, if it is here and what it should be.
    pub(super) async fn local_file(&self, inode: u64, size: u64) -> Option<Arc<File>> {
        let shared = &self.shared;
        let file = shared.backend.find_file(inode).await?;
        match check(&file, size) {
            Ok(()) => Some(file),
            Err(e) => {
                shared.local_failed(inode, &e);
                None
            }
        }
    }

    /// Answers a read of the file at `index`; `file_size` is the catalog's.
    pub(super) fn read(&self, catalog: &Catalog<File>, index: u64, file_size: u64, offset: u64, size: u32, reply: Data) {
        let (began, inode) = (Instant::now(), index + 1);
        let range = offset.min(file_size)..offset.saturating_add(size.into()).min(file_size);
        if range.is_empty() {
            return reply.data(&[]);
        }
        let shared = &self.shared;
        shared.reads.requested(range.end - range.start);
        let reply = match shared.backend.known_file(inode) {
            None => reply,
            Some(file) => {
                match BUFFER.with_borrow_mut(|buffer| read_into(buffer, &file, file_size, &range).map(|()| buffer.len())) {
                    Ok(len) => {
                        shared.reads.answered(Place::Local, len, began.elapsed());
                        return BUFFER.with_borrow(|buffer| reply.data(buffer));
                    }
                    Err(e) => {
                        shared.local_failed(inode, &e);
                        reply
                    }
                }
            }
        };
        let key = match catalog.object_key(index) {
            Ok(key) => key,
            Err(e) => {
                shared.reads.failed();
                return reply.error(FsError::from(e).handled(&shared.identity, "read", inode));
            }
        };
        let (shared, until) = (Arc::clone(shared), began + WHOLE);
        self.runtime.spawn(async move {
            match shared.load(inode, file_size, key, range, until).await {
                Ok(Fetched { bytes, place }) => {
                    shared.reads.answered(place, bytes.len(), began.elapsed());
                    reply.data(&bytes);
                }
                Err(e) => {
                    shared.reads.failed();
                    reply.error(e.handled(&shared.identity, "read", inode));
                }
            }
        });
    }
}

impl<B: Backend> Shared<B> {
    fn new(identity: Arc<str>, backend: B, reads: ReadCounters) -> Self {
        let (places, local_places) = (Semaphore::new(IN_FLIGHT), Semaphore::new(IN_FLIGHT));
        Self { identity, backend, reads, places, local_places, failures: Failures::default(), told: Mutex::default() }
    }

    async fn load(
        &self,
        inode: u64,
        file_size: u64,
        key: ObjectKey,
        range: Range<u64>,
        until: Instant,
    ) -> Result<Fetched, FsError> {
        if let Some(file) = self.backend.find_file(inode).await {
            let _place = place(&self.local_places, until).await?;
            let wanted = range.clone();
            let read = spawn_blocking(move || {
                let mut buffer = Vec::new();
                read_into(&mut buffer, &file, file_size, &wanted)?;
                Ok(Bytes::from(buffer))
            });
            match read.await? {
                Ok(bytes) => return Ok(Fetched { bytes, place: Place::Local }),
                Err(e) => self.local_failed(inode, &e),
            }
        }
        if self.failures.has(inode, range.start, Instant::now()) {
            return Err(FsError::Again);
        }
        let fetch = async {
            let _place = place(&self.places, until).await?;
            Ok(self.backend.fetch(inode, key, range.clone(), until).await?)
        };
        fetch.await.inspect_err(|_| self.failures.add(inode, &range, Instant::now()))
    }

    /// A disk that fails must not fail reads: others have the bytes too.
    fn local_failed(&self, inode: u64, error: &io::Error) {
        self.backend.reject_file(inode);
        let (mut told, now) = (self.told.lock(), Instant::now());
        if told.is_none_or(|at| at + TELL < now) {
            *told = Some(now);
            tracing::warn!(identity = &*self.identity, inode, %error, "read of the local file failed; reading from other nodes");
        } else {
            tracing::debug!(identity = &*self.identity, inode, %error, "read of the local file failed");
        }
    }
}

async fn place(places: &Semaphore, until: Instant) -> Result<SemaphorePermit<'_>, FsError> {
    // Never closed, so the only failure is that it took too long.
    let Ok(Ok(place)) = timeout_at(until, places.acquire()).await else { return Err(FsError::Queue(WHOLE)) };
    Ok(place)
}

/// Fills the buffer with exactly the range.
fn read_into(buffer: &mut Vec<u8>, file: &File, size: u64, range: &Range<u64>) -> io::Result<()> {
    check(file, size)?;
    let len = usize::try_from(range.end - range.start).map_err(|_| io::ErrorKind::InvalidInput)?;
    buffer.resize(len, 0);
    file.read_exact_at(buffer, range.start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Fetched;
    use larder_peer::ReadError;

    /// Has one file; of the others it says until when they would be fetched.
    struct OneFile(Arc<File>);

    impl Backend for OneFile {
        fn known_file(&self, _: u64) -> Option<Arc<File>> {
            unreachable!("not asked in a task: it may block")
        }
        async fn find_file(&self, inode: u64) -> Option<Arc<File>> {
            (inode == 1).then(|| Arc::clone(&self.0))
        }
        fn reject_file(&self, _: u64) {}
        async fn fetch(&self, _: u64, _: ObjectKey, _: Range<u64>, until: Instant) -> Result<Fetched, ReadError> {
            Err(ReadError::Exhausted { key: String::new(), waited: until - Instant::now(), last: String::new() })
        }
    }

    #[tokio::test]
    async fn a_read_has_one_deadline_and_a_local_one_waits_behind_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"abc").unwrap();
        let backend = OneFile(Arc::new(File::open(path).unwrap()));
        let runtime = Handle::current();
        let reader = Reader::new("test".into(), backend, ReadCounters::default(), runtime);
        assert!(reader.local_file(1, 3).await.is_some());
        let shared = &reader.shared;
        let load = |inode| {
            let key = ObjectKey::new("s3://b/", "f", "v", 3);
            shared.load(inode, 3, key, 0..2, Instant::now() + Duration::from_millis(100))
        };
        let Err(FsError::Read(ReadError::Exhausted { waited, .. })) = load(2).await else { panic!("there is no such file") };
        assert!(waited <= Duration::from_millis(100), "{waited:?}");
        assert!(matches!(load(2).await, Err(FsError::Again)), "the kernel asks once more");
        let _all = shared.places.acquire_many(IN_FLIGHT as u32).await.unwrap();
        assert_eq!(load(1).await.unwrap().bytes, "ab");
        let started = Instant::now();
        assert!(matches!(load(3).await, Err(FsError::Queue(_))));
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}
