//! The data path between nodes: HTTP/1.1 range requests from a worker or a mounter to a worker.
//!
//! ```text
//! Client::read ─► order of the members (owner, then stand-ins) ─► GET /v1/<dataset uid>/objects/<object key>
//!                                                                     │
//!                                            router ─► ObjectSource (the worker): its disk, else the origin
//!
//! Client::copy ─► GET /v1/<dataset uid>/copies/<object key> ─► its disk, or 404 at once
//! ```
//!
//! Owns: the requests, the pool of connections, the memory of nodes that did not answer. Owns no data and no membership:
//! who the members are and where they live is a [`Roster`], given with every read. Who may ask is decided by `larder_trust`,
//! for each request.
//!
//! When the process at the other end dies, the read goes down the rendezvous order; when this one dies, nothing is lost.
#![forbid(unsafe_code)]

mod client;
mod roster;
mod server;

pub use client::{CatalogFetchError, Client, Copied, DENIED_PAUSE, Fetched, Options, ReadError};
pub use roster::{ObjectRef, Roster, RosterSource};
pub use server::{Body, CopyReply, ObjectReply, ObjectRequest, ObjectSource, Refusal, router, serve};

/// Longest range one request may ask for: bounds what a server and a client hold in memory for it.
pub const MAX_RANGE: u64 = 64 << 20;

/// Response header that says where the bytes came from.
pub const SOURCE_HEADER: &str = "larder-source";

/// Response header: CRC-32C of the bytes of the answer, eight hex digits; of a copy, as they were written.
pub const CRC_HEADER: &str = "larder-crc32c";

/// Where the bytes of an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The disk of the worker that answered.
    Disk,
    /// The origin, by way of the worker that answered.
    Origin,
}

impl Source {
    /// As in the header.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Origin => "origin",
        }
    }

    fn parse(text: &[u8]) -> Option<Self> {
        match text {
            b"disk" => Some(Self::Disk),
            b"origin" => Some(Self::Origin),
            _ => None,
        }
    }
}
