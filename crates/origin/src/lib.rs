//! The origin: where the data really lives.
//!
//! ```text
//! Source (uri, endpoint, globs) + Access ─► connect ─┬─ s3://   S3 ──────┬─ list()       ─► Item::File | Item::Skipped
//!                                                    └─ file:// Directory ┴─ read_range() ─► bytes of exactly the listed version
//! ```
//!
//! Read-only by type: there is nothing here that writes or deletes. Owns no state but connections and a counter; when the
//! process dies nothing is left behind. Requests are retried for a bounded time; what comes out of here as an [`Error`] has
//! been tried, has a [`Reason`] and names the object and the remedy.
#![forbid(unsafe_code)]

mod credentials;
mod directory;
mod error;
mod pace;
mod patience;
mod received;
mod s3;
mod source;
#[cfg(feature = "testing")]
pub mod testing;

pub use credentials::{Credentials, CredentialsError};
pub use directory::{Directory, Folders};
pub use error::{Error, Reason};
pub use pace::{Lane, Pace, Turn};
pub use patience::Patience;
pub use received::Received;
pub use s3::S3;
pub use source::Source;

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use larder_core::catalog::Listed;
use std::{ops::Range, sync::Arc};

/// What a listing brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// An object.
    File(Listed),
    /// An object that can never be fetched or versioned.
    Skipped {
        /// Relative to the source's prefix.
        key: String,
        /// Why, for people.
        reason: &'static str,
    },
}

/// Read access to the data of one dataset.
pub trait Origin: std::fmt::Debug + Send + Sync + 'static {
    /// The source's URI with its prefix; part of every object key.
    fn uri(&self) -> &str;

    /// All objects beneath the prefix that the globs let through, in no certain order. Ends after the first error.
    fn list(&self) -> BoxStream<'_, Result<Item, Error>>;

    /// The bytes of a range of an object, MUST be exactly as many as asked for and of exactly this version.
    /// An object that is not of this version any more is [`Reason::Changed`].
    fn read_range<'a>(&'a self, path: &'a str, version: &'a str, range: Range<u64>) -> BoxFuture<'a, Result<Bytes, Error>>;
}

/// What a source is reached with.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Keys of an object store.
    pub credentials: Option<Credentials>,
    /// PEM of the only certificates to trust; `None`: the system's.
    pub ca: Option<Vec<u8>>,
    /// Folders that a source may name.
    pub folders: Folders,
    /// How many requests go on at the same time; told what the origin says to that.
    pub pace: Pace,
    /// How long answers are waited for.
    pub patience: Patience,
}

/// The origin of a source, by the scheme of its URI. Bytes received are added to `received`.
///
/// # Errors
/// A source or access that cannot be used; nothing is asked from the origin yet.
pub fn connect(source: &Source, access: &Access, received: Arc<Received>) -> Result<Arc<dyn Origin>, Error> {
    if source.is_folder() {
        return Ok(Arc::new(Directory::new(source, access.folders.clone(), received)?));
    }
    Ok(Arc::new(S3::new(source, access, received)?))
}

#[cfg(test)]
mod conformance;
