//! Reads: from an open local file at once, from elsewhere in a task.

use crate::{
    backend::{Backend, Fetched, Place, check},
    error::FsError,
    metrics::ReadCounters,
};
use bytes::Bytes;
use fuser::ReplyData;
use larder_core::{catalog::Catalog, key::ObjectKey};
use std::{
    cell::RefCell,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{runtime::Handle, sync::Semaphore, task::spawn_blocking};

/// Reads of one mount that wait for the network at a time: each holds up to 1 MiB (the kernel's longest read). Per mount, so
/// that a dataset whose origin is down cannot take the places of others.
const IN_FLIGHT: usize = 64;
/// Longest wait for such a place. As long as a whole read may take.
const QUEUE: Duration = Duration::from_secs(60);

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
    places: Semaphore,
}

impl<B: Backend> Reader<B> {
    pub(super) fn new(identity: Arc<str>, backend: B, reads: ReadCounters, runtime: Handle) -> Self {
        Self { shared: Arc::new(Shared { identity, backend, reads, places: Semaphore::new(IN_FLIGHT) }), runtime }
    }

    /// The complete local file, if it is here and what it should be.
    pub(super) async fn local_file(&self, inode: u64, size: u64) -> Option<Arc<File>> {
        let shared = &self.shared;
        let file = match shared.backend.known_file(inode) {
            Some(file) => file,
            None => shared.backend.find_file(inode).await?,
        };
        match check(&file, size) {
            Ok(()) => Some(file),
            Err(e) => {
                shared.local_failed(inode, &e);
                None
            }
        }
    }

    /// Answers a read of the file at `index`; `file_size` is the catalog's.
    pub(super) fn read(&self, catalog: &Catalog<File>, index: u64, file_size: u64, offset: u64, size: u32, reply: ReplyData) {
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
        let shared = Arc::clone(shared);
        self.runtime.spawn(async move {
            match shared.load(inode, file_size, key, range).await {
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
    async fn load(&self, inode: u64, file_size: u64, key: ObjectKey, range: Range<u64>) -> Result<Fetched, FsError> {
        // Never closed, so the only failure is that it took too long.
        let Ok(Ok(_place)) = tokio::time::timeout(QUEUE, self.places.acquire()).await else {
            return Err(FsError::Queue(QUEUE));
        };
        if let Some(file) = self.backend.find_file(inode).await {
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
        Ok(self.backend.fetch(inode, key, range).await?)
    }

    /// A disk that fails must not fail reads: others have the bytes too.
    fn local_failed(&self, inode: u64, error: &io::Error) {
        tracing::warn!(identity = &*self.identity, inode, %error, "read of the local file failed; reading from other nodes");
        self.backend.reject_file(inode);
    }
}

/// Fills the buffer with exactly the range.
fn read_into(buffer: &mut Vec<u8>, file: &File, size: u64, range: &Range<u64>) -> io::Result<()> {
    check(file, size)?;
    let len = usize::try_from(range.end - range.start).map_err(|_| io::ErrorKind::InvalidInput)?;
    buffer.resize(len, 0);
    file.read_exact_at(buffer, range.start)
}
