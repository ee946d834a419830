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

/// Is it a 404?
pub(super) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}

/// Is it a 409?
pub(super) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}
