//! Takes snapshots: lists an origin and writes the catalog, in bounded memory.
//!
//! ```text
//! origin ─list()─► records ─► sorter ─┬─ fits: sorted where it is ──────────┐
//!                                     └─ runs, each sorted, on the disk ─► merge ─► tree ─► <folder>/<digest>
//!                                                                                    └─ spool: folders to come
//! ```
//!
//! Owns nothing but one file with a name that begins with a dot, as long as the catalog is written; everything else it puts on
//! the disk has no name at all. So a process that is killed leaves at most that one, and whoever opens the folder next
//! removes it. The catalog appears under its digest when it is whole and on the disk. The order of the listing never changes
//! the digest.
#![forbid(unsafe_code)]

mod collect;
mod merge;
mod progress;
mod run;
mod skips;
mod sorter;
mod spool;
mod take;

pub use progress::Progress;
pub use skips::Skips;
pub use take::{TakeError, Taken, take};
