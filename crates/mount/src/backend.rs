//! Where the bytes of files come from.

use bytes::Bytes;
use larder_core::key::ObjectKey;
use std::{fs::File, io, ops::Range, os::unix::fs::MetadataExt as _, sync::Arc};
use tokio::time::Instant;

/// Whose bytes they are; the metrics tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A disk of this node.
    Local,
    /// A disk of another node.
    Peer,
    /// The origin, by way of a worker.
    Origin,
}

/// An answer from elsewhere.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Exactly the range that was asked for.
    pub bytes: Bytes,
    /// Where they were.
    pub place: Place,
}

/// Is the file what it was given out as? The worker takes a file back by removing it, to make room, or by taking all permissions
/// off it, because its bytes turned out to be wrong. A file of another size is another file.
pub(crate) fn check(file: &File, size: u64) -> io::Result<()> {
    let meta = file.metadata()?;
    match meta.len() {
        _ if meta.nlink() == 0 || meta.mode() & 0o444 == 0 => Err(io::Error::other("the worker has taken it back")),
        len if len == size => Ok(()),
        len => Err(io::Error::other(format!("it has {len} bytes, the snapshot says {size}"))),
    }
}

/// Bytes of the files of one snapshot.
///
/// Inodes are those of files that exist; ranges are not empty and end within the file.
pub trait Backend: Send + Sync + 'static {
    /// The complete local file, if it is open already or can be had in a moment. Called in a FUSE thread: MUST NOT wait for more
    /// than some milliseconds.
    fn known_file(&self, inode: u64) -> Option<Arc<File>>;

    /// The complete local file, the one that is open already, or else looked for. MUST end within about a second, whatever the worker does.
    /// One of the wrong size is rejected by the caller.
    fn find_file(&self, inode: u64) -> impl Future<Output = Option<Arc<File>>> + Send;

    /// Reading the local file failed: MUST NOT be given out again for a while.
    fn reject_file(&self, inode: u64);

    /// Fetches a range from wherever it is. MUST end soon after the given time and MUST give the whole range or an error.
    fn fetch(
        &self,
        inode: u64,
        key: ObjectKey,
        range: Range<u64>,
        until: Instant,
    ) -> impl Future<Output = Result<Fetched, larder_peer::ReadError>> + Send;
}
