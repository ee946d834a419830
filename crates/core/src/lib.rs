//! The domain of Larder without I/O, Kubernetes or an async runtime.
//!
//! ```text
//! listing of the origin ──► catalog (sorted, immutable, named by its digest)
//!                              │ position + 1 = inode number
//!                              ▼
//!                    (origin, path, version, size) ──► object key ──► placement: which node owns it
//! ```
#![forbid(unsafe_code)]

pub mod catalog;
pub mod causes;
pub mod checksum;
pub mod eviction;
pub mod format;
pub mod key;
pub mod names;
pub mod placement;
pub mod shares;
