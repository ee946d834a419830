//! What the cache is asked for.

use larder_core::{eviction::Keep, key::ObjectKey};

/// One object, as whoever wants it knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// Name of the content.
    pub key: ObjectKey,
    /// Its bytes.
    pub size: u64,
    /// Why it is kept; [`Keep::Own`] also makes an own file of a copy that is here.
    pub keep: Keep,
}
