//! What the cache is asked for.

use larder_core::{eviction::Keep, key::ObjectKey};
use std::ops::Range;

/// One object, as whoever wants it knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// Name of the content.
    pub key: ObjectKey,
    /// Its bytes.
    pub size: u64,
    /// Why it is kept; [`Keep::Own`] also makes an own file of a copy that is here.
    pub keep: Keep,
    /// Space is taken for those chunks of it that are asked for, not for all of it.
    pub in_part: bool,
}

/// What of an object is to stay, when the rest makes room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stay {
    /// Nothing.
    Nothing,
    /// All of it.
    All,
    /// A file that is complete.
    Complete,
    /// What lies in these ranges, and a file that is complete.
    Parts(Vec<Range<u64>>),
}

impl From<bool> for Stay {
    fn from(all: bool) -> Self {
        if all { Self::All } else { Self::Nothing }
    }
}
