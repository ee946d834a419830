//! What can go wrong on the own disk.

use std::{io, path::PathBuf, sync::Arc};

/// Why the cache cannot keep or give something. Cheap to clone: all readers of a fill get the same one.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CacheError {
    /// The dataset's quota on this node is used up.
    #[error("keep {need} bytes in {path}: quota of {quota} bytes has {free} left; raise spec.cache.tiers[].quota or add nodes")]
    QuotaExceeded {
        /// Folder of the cache.
        path: PathBuf,
        /// Bytes of the object.
        need: u64,
        /// Bytes left of the quota.
        free: u64,
        /// Bytes the dataset may use on this node.
        quota: u64,
    },
    /// The disk is full down to its floor.
    #[error("keep {need} bytes in {path}: the disk has {free} bytes free and {floor} of them are left alone; free space on it")]
    DiskFull {
        /// Folder of the cache.
        path: PathBuf,
        /// Bytes of the object.
        need: u64,
        /// Bytes free on the disk.
        free: u64,
        /// Bytes that stay free.
        floor: u64,
    },
    /// The disk does not work.
    #[error("{action} {path}: {source}; {}", if self.is_full() { "free space on this disk" } else { "check this disk" })]
    Disk {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The disk's answer.
        source: Arc<io::Error>,
    },
    /// The unfinished file was removed to make room; a moment before nobody wanted it.
    #[error("keep {path}: it was removed to make room; it is fetched again when it is wanted")]
    Removed {
        /// The file.
        path: PathBuf,
    },
    /// The cache was closed or erased.
    #[error("{path}: the cache of this node is closed")]
    Closed {
        /// Folder of the cache.
        path: PathBuf,
    },
}

impl CacheError {
    /// Would it go on if there were space on the disk?
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::DiskFull { .. } => true,
            Self::Disk { source, .. } => matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded),
            Self::QuotaExceeded { .. } | Self::Removed { .. } | Self::Closed { .. } => false,
        }
    }

    pub(crate) fn disk(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Disk { action, path, source: Arc::new(source) }
    }
}

/// Why a read or a fill failed. `E` is the fetcher's error.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError<E: std::error::Error + 'static> {
    /// The own disk: the bytes can still be had past the cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The fetcher's.
    #[error("{0}")]
    Fetch(E),
    /// The fetcher gave another number of bytes than asked for.
    #[error("fetched {got} bytes instead of {want}")]
    Length {
        /// Bytes asked for.
        want: u64,
        /// Bytes that came.
        got: u64,
    },
}
