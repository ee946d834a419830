//! Why bytes of an own file are not given on.

use crate::{CacheError, sidecar::Unusable};
use std::{
    io::{self, ErrorKind},
    path::Path,
};

#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("bytes {start}-{end} have the checksum {got:08x} instead of {want:08x}")]
    Rotten { start: u64, end: u64, got: u32, want: u32 },
    #[error("the file is not {want} bytes long, as its sidecar says")]
    Length { want: u64 },
    #[error("{0}")]
    Sidecar(Unusable),
    #[error("{0}")]
    Disk(#[from] io::Error),
}

impl Unreadable {
    /// Is the file itself bad? Else it is this process that lacks something (descriptors, memory), and the file may be good.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Rotten { .. } | Self::Length { .. } | Self::Sidecar(_) => true,
            Self::Disk(e) => {
                matches!(e.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof)
                    || e.raw_os_error() == Some(nix::errno::Errno::EIO as i32)
            }
        }
    }

    pub fn of(self, action: &'static str, path: &Path) -> CacheError {
        let source = match self {
            Self::Disk(e) => e,
            other => io::Error::other(other),
        };
        CacheError::disk(action, path)(source)
    }
}

/// Runs what reads the disk and computes checksums off the async threads.
pub(crate) async fn off<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, Unreadable> + Send + 'static,
) -> Result<T, Unreadable> {
    tokio::task::spawn_blocking(read).await.unwrap_or_else(|e| Err(io::Error::other(e).into()))
}
