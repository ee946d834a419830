//! Everything a FUSE request can fail with: errno and log level of each, in one place.

use fuser::Errno;
use larder_core::catalog::CatalogError;
use larder_peer::ReadError;
use std::time::Duration;
use tracing::Level;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FsError {
    #[error("no such file or folder")]
    NotFound,
    #[error("name is longer than any in a snapshot can be")]
    NameTooLong,
    #[error("not a folder")]
    NotAFolder,
    #[error("not a file")]
    NotAFile,
    #[error("datasets are read-only")]
    ReadOnly,
    #[error("no such attribute")]
    NoAttribute,
    #[error("attributes of this kind do not exist here")]
    AttributeKind,
    #[error("buffer too small for the attribute")]
    AttributeSize,
    #[error("not supported by this file system")]
    Unsupported,
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the same bytes could not be read a moment ago")]
    Again,
    #[error("waited {0:?} behind other reads of this mount; the workers are slow or too few")]
    Queue(Duration),
    #[error("reading was interrupted by an internal error: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl FsError {
    /// What the application gets.
    pub(crate) fn errno(&self) -> Errno {
        match self {
            Self::NotFound => Errno::ENOENT,
            Self::NameTooLong => Errno::ENAMETOOLONG,
            Self::NotAFolder => Errno::ENOTDIR,
            Self::NotAFile => Errno::EISDIR,
            Self::ReadOnly => Errno::EROFS,
            Self::NoAttribute => Errno::ENODATA,
            Self::AttributeKind => Errno::EOPNOTSUPP,
            Self::AttributeSize => Errno::ERANGE,
            Self::Unsupported => Errno::ENOSYS,
            Self::Catalog(_) | Self::Read(_) | Self::Again | Self::Queue(_) | Self::Task(_) => Errno::EIO,
        }
    }

    /// Errors that applications make for themselves are no news; those that an administrator should see are.
    fn level(&self) -> Level {
        match self {
            Self::NotFound
            | Self::NameTooLong
            | Self::NotAFolder
            | Self::NotAFile
            | Self::ReadOnly
            | Self::NoAttribute
            | Self::AttributeKind
            | Self::AttributeSize
            | Self::Unsupported
            | Self::Again => Level::TRACE,
            Self::Read(_) | Self::Queue(_) => Level::WARN,
            Self::Catalog(_) | Self::Task(_) => Level::ERROR,
        }
    }

    /// Logs the error, as it goes no further than the reply, and gives what to reply.
    pub(crate) fn handled(&self, identity: &str, operation: &'static str, inode: u64) -> Errno {
        let level = self.level();
        if level == Level::ERROR {
            tracing::error!(identity, operation, inode, error = %self, "request failed");
        } else if level == Level::WARN {
            tracing::warn!(identity, operation, inode, error = %self, "request failed");
        } else {
            tracing::trace!(identity, operation, inode, error = %self, "request refused");
        }
        self.errno()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_nobody_has_are_an_io_error_that_is_logged() {
        let changed = ReadError::Changed { key: "k".into(), detail: String::new() };
        let exhausted = ReadError::Exhausted { key: "k".into(), waited: Duration::ZERO, last: String::new() };
        for error in [FsError::from(changed), FsError::from(exhausted)] {
            assert_eq!(error.errno().code(), Errno::EIO.code());
            assert_eq!(error.level(), Level::WARN);
        }
    }

    #[test]
    fn refusals_do_not_fill_the_log() {
        assert_eq!(FsError::ReadOnly.level(), Level::TRACE);
        assert_eq!(FsError::Queue(Duration::ZERO).level(), Level::WARN);
    }
}
