//! What Larder needs of FUSE beyond the dataset filesystem itself, and the only crate with `unsafe` code.
//!
//! ```text
//! node plugin                                   mounter
//! device: open /dev/fuse, mount(2) ── fdpass ──► session: the event loop on that descriptor
//! mountinfo: what is mounted        (SCM_RIGHTS)
//! control: abort a connection by its minor
//! fusermount: the same mount for a user who is not root
//! ```
//!
//! It holds no state of its own. A connection lives as long as one process holds its descriptor; when the last one closes
//! it, every access to the mount gives ENOTCONN ([`device::is_dead`]).

pub mod control;
pub mod device;
pub mod fdpass;
pub mod fusermount;
pub mod limits;
pub mod map;
pub mod mountinfo;
pub mod protocol;
pub mod session;
