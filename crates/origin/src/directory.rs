//! A folder of this machine as an origin: `file:///folder`, also one on a network file system.
//!
//! What a source names is opened with openat2 beneath a folder that it may use, and every file beneath the source's folder: a
//! link that leads out of it is as good as not there. The version of a file is its time of modification, its size and its inode.

mod beneath;
mod walk;

use crate::{Error, Item, Origin, Reason, Received, Source, source::Globs};
use beneath::{Root, is_timeout, leads_nowhere};
use bytes::Bytes;
use futures::{future::BoxFuture, stream, stream::BoxStream};
use std::{
    fs::Metadata,
    io,
    ops::Range,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Semaphore, mpsc};

pub use beneath::Folders;

/// Longest wait for one read. A network file system that is away answers never.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Reads at the same time. Each keeps a thread, also when nobody waits for it any more.
const READS: usize = 16;
/// Objects listed ahead of who takes them.
const AHEAD: usize = 1024;

/// A folder.
#[derive(Debug)]
pub struct Directory {
    inner: Arc<Inner>,
    reading: Arc<Semaphore>,
    received: Arc<Received>,
}

#[derive(Debug)]
struct Inner {
    /// `file:///folder/`
    uri: String,
    path: PathBuf,
    folders: Folders,
    globs: Globs,
}

impl Directory {
    /// Bytes read are added to `received`.
    ///
    /// # Errors
    /// A source that cannot be used; nothing is opened yet.
    pub fn new(source: &Source, folders: Folders, received: Arc<Received>) -> Result<Self, Error> {
        let invalid =
            |text: &str| Error::new(Reason::InvalidSource, format!("source.uri {}: {text}; correct the uri", source.uri));
        let path = source.uri.strip_prefix("file://").ok_or_else(|| invalid("must begin with file:///"))?;
        let parts = path.strip_prefix('/').ok_or_else(|| invalid("must be file:///<folder>/, without a host"))?;
        let parts = parts.strip_suffix('/').unwrap_or(parts);
        if parts.split('/').any(|p| matches!(p, "" | "." | "..")) || parts.bytes().any(|b| b.is_ascii_control()) {
            return Err(invalid("the folder is empty, or has an empty, '.', '..' or unprintable part"));
        }
        if !source.endpoint.is_empty() || !source.region.is_empty() || source.path_style {
            return Err(invalid("a folder has no endpoint, region or path style"));
        }
        let inner = Inner {
            uri: format!("file:///{parts}/"),
            path: Path::new("/").join(parts),
            folders,
            globs: Globs::new(&source.include, &source.exclude)?,
        };
        Ok(Self { inner: Arc::new(inner), reading: Arc::new(Semaphore::new(READS)), received })
    }
}

impl Origin for Directory {
    fn uri(&self) -> &str {
        &self.inner.uri
    }

    fn list(&self) -> BoxStream<'_, Result<Item, Error>> {
        let (send, items) = mpsc::channel(AHEAD);
        let inner = Arc::clone(&self.inner);
        let walk = tokio::task::spawn_blocking(move || {
            if let Err(e) = walk::walk(&inner, |item| send.blocking_send(Ok(item)).is_ok()) {
                // Nobody listens any more: nobody wants to know.
                let _ = send.blocking_send(Err(e));
            }
        });
        let state = Some((items, walk));
        Box::pin(stream::unfold(state, move |state| async move {
            let (mut items, walk) = state?;
            match items.recv().await {
                Some(item) => Some((item, Some((items, walk)))),
                // A walk that broke off has not seen everything.
                None => walk.await.err().map(|e| (Err(self.inner.failed("list", "", &io::Error::other(e))), None)),
            }
        }))
    }

    fn read_range<'a>(&'a self, path: &'a str, version: &'a str, range: Range<u64>) -> BoxFuture<'a, Result<Bytes, Error>> {
        let (inner, of, expected) = (Arc::clone(&self.inner), path.to_owned(), version.to_owned());
        Box::pin(async move {
            let permit = Arc::clone(&self.reading).acquire_owned();
            let read = async {
                let permit = permit.await.map_err(|e| self.inner.failed("read", path, &io::Error::other(e)))?;
                let read = tokio::task::spawn_blocking(move || {
                    let _permit = permit;
                    inner.read(&of, &expected, &range)
                });
                read.await.unwrap_or_else(|e| Err(self.inner.failed("read", path, &io::Error::other(e))))
            };
            let late = |_| Err(self.inner.failed("read", path, &io::ErrorKind::TimedOut.into()));
            let bytes = tokio::time::timeout(READ_TIMEOUT, read).await.unwrap_or_else(late)?;
            self.received.add_objects(bytes.len() as u64);
            Ok(bytes)
        })
    }
}

impl Inner {
    /// Blocks.
    fn root(&self) -> Result<Root, Error> {
        self.folders.open(&self.path)?.map_err(|e| self.failed("open", "", &e))
    }

    /// Blocks.
    fn read(&self, path: &str, expected: &str, range: &Range<u64>) -> Result<Bytes, Error> {
        let file = self.root()?.file(path).map_err(|e| self.failed("read", path, &e))?;
        let same = || {
            let meta = file.metadata().map_err(|e| self.failed("read", path, &e))?;
            if meta.is_file() && version(&meta) == expected { Ok(()) } else { Err(self.changed(path)) }
        };
        same()?;
        let mut bytes = vec![0; (range.end - range.start) as usize];
        match file.read_exact_at(&mut bytes, range.start) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(self.changed(path)),
            read => read.map_err(|e| self.failed("read", path, &e))?,
        }
        // Nothing that was written in between is taken for the file of the snapshot.
        same()?;
        Ok(bytes.into())
    }

    fn changed(&self, path: &str) -> Error {
        let text = format!("read {}{path}: the file changed since the snapshot was taken; take a new snapshot", self.uri);
        Error::new(Reason::Changed, text)
    }

    /// The disk's answer → reason, with a text that says what to do. An empty path means the folder itself.
    fn failed(&self, action: &str, path: &str, e: &io::Error) -> Error {
        use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied, StaleNetworkFileHandle};
        let what = format!("{action} {}{path}", self.uri);
        let (reason, remedy) = match e.kind() {
            NotFound | NotADirectory if path.is_empty() => {
                (Reason::FolderNotFound, "check that the folder is there and mounted on this node")
            }
            _ if leads_nowhere(e) && path.is_empty() => {
                (Reason::FolderNotAllowed, "it leads out of the folders that the administrator allows; name one beneath them")
            }
            NotFound | NotADirectory => {
                (Reason::ObjectNotFound, "the file is gone since the snapshot was taken; take a new snapshot")
            }
            PermissionDenied => (Reason::AccessDenied, "let the user that Larder runs as read it"),
            StaleNetworkFileHandle => (Reason::OriginUnreachable, "mount the network file system again"),
            _ if leads_nowhere(e) => (Reason::ObjectNotFound, "it has become a link out of the folder; take a new snapshot"),
            _ if is_timeout(e) => (Reason::OriginUnreachable, "check the network file system"),
            _ => (Reason::OriginFailed, "check the disk"),
        };
        Error::new(reason, format!("{what}: {e}; {remedy}"))
    }
}

/// What tells a file from the one that had its name before.
fn version(meta: &Metadata) -> String {
    format!("{:x}-{:x}-{:x}", mtime_ns(meta), meta.size(), meta.ino())
}

fn mtime_ns(meta: &Metadata) -> i64 {
    meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec())
}

#[cfg(test)]
mod tests;
