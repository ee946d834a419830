//! What can fail in a reconcile.

use larder_core::format::LaterFormat;
use std::time::Duration;

/// The action that failed, and the object it failed on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("get {object}")]
    Get { object: String, source: kube::Error },
    #[error("list {what}")]
    List { what: String, source: kube::Error },
    #[error("apply {object}")]
    Apply { object: String, source: kube::Error },
    #[error("create {object}")]
    Create { object: String, source: kube::Error },
    #[error("patch {object}")]
    Patch { object: String, source: kube::Error },
    #[error("delete {object}")]
    Delete { object: String, source: kube::Error },
    #[error("write status of CacheDataset {dataset}")]
    Status { dataset: String, source: kube::Error },
    #[error("read CacheDataset: the API server sent it without a uid")]
    NoUid,
    #[error("the member list")]
    Members { source: LaterFormat },
    #[error("reconcile took longer than {0:?}")]
    TimedOut(Duration),
    /// Not a failure: deletion has to wait for something.
    #[error("{0}")]
    CleanupWaits(String),
}

impl Error {
    /// Will it be the same at the next attempt, if nobody changes anything?
    pub(super) fn stays(&self) -> bool {
        match self {
            Self::NoUid | Self::Members { .. } => true,
            Self::TimedOut(_) | Self::CleanupWaits(_) => false,
            _ => match self.api() {
                // 408, 409 and 429 are answers to this attempt alone.
                Some(kube::Error::Api(status)) => (400..500).contains(&status.code) && ![408, 409, 429].contains(&status.code),
                Some(kube::Error::BuildRequest(_) | kube::Error::HttpError(_)) => true,
                _ => false,
            },
        }
    }

    /// The API server's code, if it gave one.
    pub(super) fn code(&self) -> Option<u16> {
        match self.api()? {
            kube::Error::Api(status) => Some(status.code),
            _ => None,
        }
    }

    /// With all causes; of an answer of the API server only its message, not its structure.
    pub(super) fn told(&self) -> String {
        match self.api() {
            Some(kube::Error::Api(status)) => format!("{self}: {}", status.message),
            _ => larder_core::causes::chain(self),
        }
    }

    fn api(&self) -> Option<&kube::Error> {
        match self {
            Self::Get { source, .. }
            | Self::List { source, .. }
            | Self::Apply { source, .. }
            | Self::Create { source, .. }
            | Self::Patch { source, .. }
            | Self::Delete { source, .. }
            | Self::Status { source, .. } => Some(source),
            Self::NoUid | Self::Members { .. } | Self::TimedOut(_) | Self::CleanupWaits(_) => None,
        }
    }
}

/// Is it a 404?
pub(super) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}

/// Is it a 409?
pub(super) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}
