//! The dataset filesystem, and the mounter daemon that serves it.
//!
//! ```text
//! kernel ──FUSE──► filesystem::DatasetFs ──► catalog (lookup, readdir, getattr: from the file alone)
//!                        │ read
//!                        ▼
//!                  backend::Backend ◄─ node::NodeBackend
//!                        │ 1. open local file (kept in an LRU), asked of the worker of this node
//!                        ▼ 2. peers, in rendezvous order
//! ```
//!
//! The state of a mount is a pure function of the snapshot: inode = position in the catalog + 1, directory offset = position,
//! FORGET does nothing. What this process adds is memory only: open local files, connections, counters. When it dies, readers
//! get ENOTCONN until the node plugin publishes a new superblock; nothing on disk needs repair, as the catalogs it keeps are
//! fetched again at the next start.
#![forbid(unsafe_code)]

pub mod backend;
mod catalogs;
mod error;
pub mod filesystem;
pub mod metrics;
pub mod mounter;
mod node;

pub use node::OpenFiles;
