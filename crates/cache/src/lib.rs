//! The disk cache of one dataset on one node: a folder on each of its disks ([`Cache`]).
//!
//! ```text
//! <dir>/data/<aa>/<key>        a complete object: plain file, same bytes at the same offsets, never changed again
//! <dir>/data/<aa>/<key>.<size>.meta  its sidecar: CRC-32C of each block; written before the file is put there
//! <dir>/fill/<key>             an object on its way: all space reserved, chunks written as they come
//! <dir>/fill/<key>.map         its journal: the chunks that were written, with their checksums
//! <dir>/quarantine/<key>       a complete file that turned out to be bad, for people to look at
//! <dir>/scrub                  how far the background read of all files is
//!
//! read_range ─► complete file? ─► pread, each block compared
//!                    │ no
//!                    ▼
//!              fill (one per key) ─► chunk: missing ─► in flight (one fetch, all readers share it) ─► present
//!                                                                            last chunk: sync, sidecar, rename
//! ```
//!
//! Owns everything beneath `data/` and `fill/` of each; the ledger of the disk, `<dir>/../ledger`, is shared with the datasets beside it. State in memory: which keys are complete, which fills exist, their chunks; all
//! of it is rebuilt by the scan at start. So when the process dies or the power goes at any instant, at most the chunks that were
//! not on the disk are fetched again; no unfinished file is taken for a complete one, and no byte is given that is not
//! what was written.
//!
//! A fetch runs in a task of its own: a reader that goes away takes nothing from the others. No lock is held over I/O.
#![forbid(unsafe_code)]

mod blocks;
mod cache;
mod disk;
mod error;
mod fill;
#[doc(hidden)]
pub mod fuzzing;
mod index;
mod layout;
mod ledger;
mod object;
mod quarantine;
mod scan;
mod sidecar;
mod space;
#[cfg(test)]
mod testing;
mod unreadable;

pub use blocks::{Checked, Unchecked};
pub use cache::Cache;
pub use disk::{Integrity, Options, Usage};
pub use error::{CacheError, ReadError};
pub use larder_core::eviction::Keep;
pub use object::{Object, Stay};
pub use space::Floor;

/// Unit of fetch. 4 MiB: large enough that an origin's latency is small beside the transfer, small enough that
/// a random read does not wait long.
pub const CHUNK: u64 = 4 << 20;

/// Chunks of an object of this size.
fn chunks(size: u64) -> u64 {
    size.div_ceil(CHUNK)
}

/// Chunks that hold a range.
fn covering(size: u64, range: &std::ops::Range<u64>) -> std::ops::Range<u64> {
    if range.is_empty() { 0..0 } else { range.start / CHUNK..range.end.div_ceil(CHUNK).min(chunks(size)) }
}

/// Bytes of one chunk.
fn chunk_range(size: u64, chunk: u64) -> std::ops::Range<u64> {
    chunk * CHUNK..size.min((chunk + 1) * CHUNK)
}
