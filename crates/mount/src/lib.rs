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
//! FORGET does nothing. What is open is noted in memory that outlives this process, and with the connection it is held by others
//! too (`docs/design/takeover.md`): when this process dies, the next one goes on, and readers wait for a moment.
#![forbid(unsafe_code)]

mod asker;
pub mod backend;
mod catalogs;
mod error;
pub mod filesystem;
pub mod metrics;
pub mod mounter;
mod node;
pub mod passthrough;
mod supervisor;

pub use node::OpenFiles;
