//! Where the bytes of files come from.

use bytes::Bytes;
use larder_core::key::ObjectKey;
use std::{fs::File, ops::Range, sync::Arc};

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

/// Bytes of the files of one snapshot.
///
/// Inodes are those of files that exist; ranges are not empty and end within the file.
pub trait Backend: Send + Sync + 'static {
    /// The complete local file, if it is open already. Called in a FUSE thread: MUST NOT wait for anything.
    fn known_file(&self, inode: u64) -> Option<Arc<File>>;

    /// Looks for the complete local file. MUST end within about a second, whatever the worker does.
    /// One of the wrong size is rejected by the caller.
    fn find_file(&self, inode: u64) -> impl Future<Output = Option<Arc<File>>> + Send;

    /// Reading the local file failed: MUST NOT be given out again for a while.
    fn reject_file(&self, inode: u64);

    /// Fetches a range from wherever it is. MUST end within about a minute and MUST give the whole range or an error.
    fn fetch(
        &self,
        inode: u64,
        key: ObjectKey,
        range: Range<u64>,
    ) -> impl Future<Output = Result<Fetched, larder_peer::ReadError>> + Send;
}
