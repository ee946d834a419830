//! The origin: where the data really lives.
//!
//! ```text
//! Source (uri, endpoint, globs) + Credentials + CA ─► S3 ─┬─ list()       ─► Item::File | Item::Skipped
//!                                                         └─ read_range() ─► bytes of exactly the listed version
//! ```
//!
//! Read-only by type: there is nothing here that writes or deletes. Owns no state but connections and a counter; when the
//! process dies nothing is left behind. Requests are retried for a bounded time; what comes out of here as an [`Error`] has
//! been tried, has a [`Reason`] and names the object and the remedy.
#![forbid(unsafe_code)]

mod credentials;
mod error;
mod s3;
mod source;
#[cfg(feature = "testing")]
pub mod testing;

pub use credentials::{Credentials, CredentialsError};
pub use error::{Error, Reason};
pub use s3::{Received, S3};
pub use source::Source;

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use larder_core::catalog::Listed;
use std::ops::Range;

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
pub trait Origin: Send + Sync + 'static {
    /// The source's URI with its prefix; part of every object key.
    fn uri(&self) -> &str;

    /// All objects beneath the prefix that the globs let through, in no certain order. Ends after the first error.
    fn list(&self) -> BoxStream<'_, Result<Item, Error>>;

    /// The bytes of a range of an object, MUST be exactly as many as asked for and of exactly this version.
    /// An object that is not of this version any more is [`Reason::Changed`].
    fn read_range<'a>(&'a self, path: &'a str, version: &'a str, range: Range<u64>) -> BoxFuture<'a, Result<Bytes, Error>>;
}
