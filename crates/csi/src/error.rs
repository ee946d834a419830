//! Everything a call can fail with, and its gRPC code.

use crate::{
    datasets::DatasetError, mount::MountError, mounter::MounterError, permits::PermitError, records::RecordError,
    state::TargetError,
};
use larder_fuse::device::DeviceError;
use std::{fmt::Display, io, path::PathBuf};
use tokio::task::JoinError;
use tonic::Code;

/// Why a call failed. The kubelet shows the text in an Event of the pod.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("{field}: {reason}")]
    Invalid { field: &'static str, reason: String },
    #[error("capacity_range: {0}")]
    OutOfRange(&'static str),
    #[error("name: there is a volume {name:?} already, of dataset {dataset} and {capacity} bytes")]
    OtherArguments { name: String, dataset: String, capacity: i64 },
    #[error("volume_id: no volume {0:?} was made on this node")]
    NoVolume(String),
    #[error("volume {volume} is published at {}", target.display())]
    InUse { volume: String, target: PathBuf },
    #[error("another call for {} is not over yet", .0.display())]
    Busy(PathBuf),
    #[error("other pods are waiting for the mount of {0} and did not get it either; their Events say why")]
    Queue(String),
    #[error("{field}: {} is published already, with {was}; unpublish it first", target.display())]
    Published { field: &'static str, target: PathBuf, was: String },
    #[error("target_path: {} {reason}", target.display())]
    Place { target: PathBuf, reason: &'static str },
    #[error("the pod is in namespace {pod}, the dataset in {dataset}; a dataset can be mounted in its own namespace only")]
    Namespace { pod: String, dataset: String },
    #[error("target_path: something that is not Larder's is mounted at {}: {fs_type}; unmount it", target.display())]
    Foreign { target: PathBuf, fs_type: String },
    #[error("volume {volume} is not published at {}", target.display())]
    NotPublished { volume: String, target: PathBuf },
    #[error("the mount at {} does not answer; does the mounter of this node hang?", .0.display())]
    Hung(PathBuf),
    #[error("the mounter that served {} is gone; pods that use it must be started again", .0.display())]
    Dead(PathBuf),
    #[error("ask the mount at {}: {source}", path.display())]
    Probe { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error(transparent)]
    Mounter(#[from] MounterError),
    #[error(transparent)]
    Permit(#[from] PermitError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("the call was interrupted by an internal error: {0}")]
    Task(#[from] JoinError),
}

impl CallError {
    pub(crate) fn invalid(field: &'static str, reason: impl Display) -> Self {
        Self::Invalid { field, reason: reason.to_string() }
    }

    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Invalid { .. } => Code::InvalidArgument,
            Self::Busy(_) => Code::Aborted,
            Self::OutOfRange(_) => Code::OutOfRange,
            Self::Published { .. } | Self::OtherArguments { .. } => Code::AlreadyExists,
            Self::Namespace { .. } => Code::PermissionDenied,
            Self::NotPublished { .. } | Self::NoVolume(_) => Code::NotFound,
            Self::Dataset(DatasetError::Missing(_) | DatasetError::OtherUid { .. }) => Code::NotFound,
            Self::Dataset(DatasetError::Get { .. } | DatasetError::Silent(_) | DatasetError::NotReady { .. })
            | Self::Queue(_)
            | Self::Hung(_)
            | Self::Dead(_) => Code::Unavailable,
            Self::Mounter(e) if e.retry() => Code::Unavailable,
            Self::Permit(_) => Code::Unavailable,
            Self::Foreign { .. }
            | Self::Place { .. }
            | Self::Target(TargetError::Elsewhere { .. })
            | Self::InUse { .. }
            | Self::Dataset(DatasetError::Deleting(_))
            | Self::Mount(MountError::Device(DeviceError::Open(_))) => Code::FailedPrecondition,
            Self::Probe { .. }
            | Self::Dataset(DatasetError::Status { .. })
            | Self::Mounter(_)
            | Self::Mount(_)
            | Self::Record(_)
            | Self::Target(TargetError::Record(_))
            | Self::Task(_) => Code::Internal,
        }
    }
}

/// Result of a task that gives a result.
pub(crate) fn joined<T>(result: Result<Result<T, CallError>, JoinError>) -> Result<T, CallError> {
    result.map_err(CallError::Task)?
}
