//! What the cache is asked for.

use larder_core::key::ObjectKey;

/// Why this node keeps a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Keep {
    /// A copy of what another node owns: kept as long as nothing else needs the room.
    Copy,
    /// It belongs to this node's share.
    Own,
}

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
