//! Why the origin did not answer as hoped.

use std::sync::Arc;

/// Reasons as they appear in conditions. The text is part of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The source in the spec cannot be used.
    InvalidSource,
    /// No credentials are given and `anonymous` is not set.
    CredentialsMissing,
    /// No connection, or no answer in time.
    OriginUnreachable,
    /// The endpoint's name has no address.
    DnsFailed,
    /// The endpoint's certificate is not trusted.
    TlsUntrusted,
    /// The endpoint's certificate is not valid any more, or not yet.
    TlsExpired,
    /// The credentials are refused, or do not permit this.
    AccessDenied,
    /// There is no such bucket.
    BucketNotFound,
    /// There is no such folder.
    FolderNotFound,
    /// The administrator does not allow this folder as a source.
    FolderNotAllowed,
    /// The bucket lives in another region.
    WrongRegion,
    /// An object of the snapshot is not there any more.
    ObjectNotFound,
    /// An object is not the one of the snapshot any more.
    Changed,
    /// The origin wants fewer requests.
    Throttled,
    /// Anything else the origin said.
    OriginFailed,
}

impl Reason {
    /// Does it hit every object, so that asking for another one is of no use?
    #[must_use]
    pub fn is_of_the_origin(self) -> bool {
        !matches!(self, Self::AccessDenied | Self::ObjectNotFound | Self::Changed | Self::OriginFailed)
    }

    /// CamelCase, for a condition.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidSource => "InvalidSource",
            Self::CredentialsMissing => "CredentialsMissing",
            Self::OriginUnreachable => "OriginUnreachable",
            Self::DnsFailed => "DnsFailed",
            Self::TlsUntrusted => "TlsUntrusted",
            Self::TlsExpired => "TlsExpired",
            Self::AccessDenied => "AccessDenied",
            Self::BucketNotFound => "BucketNotFound",
            Self::FolderNotFound => "FolderNotFound",
            Self::FolderNotAllowed => "FolderNotAllowed",
            Self::WrongRegion => "WrongRegion",
            Self::ObjectNotFound => "ObjectNotFound",
            Self::Changed => "Changed",
            Self::Throttled => "Throttled",
            Self::OriginFailed => "OriginFailed",
        }
    }
}

/// What went wrong at the origin; cheap to clone, because all readers of a chunk get the same one.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    reason: Reason,
    message: Arc<str>,
}

impl Error {
    /// `message` names endpoint, bucket or object, and the remedy; never a secret.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<Arc<str>>) -> Self {
        Self { reason, message: message.into() }
    }

    /// For the condition.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }
}
