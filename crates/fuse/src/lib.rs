//! What Larder needs of FUSE beyond the dataset filesystem itself, and the only crate with `unsafe` code.
//!
//! ```text
//! node plugin                                   mounter
//! device: open /dev/fuse, mount(2) ── fdpass ──► session: the event loop on that descriptor
//! mountinfo: what is mounted        (SCM_RIGHTS)
//! control: abort a connection by its minor       backing: files that the kernel reads itself (registered by the plugin,
//!                                               used in the mounter's answers)
//! fusermount: the same mount for a user who is not root
//!                                               journal: what is in flight, for kernels that do not send it again
//! ```
//!
//! It holds no state of its own. A connection lives as long as one process holds its descriptor; when the last one closes
//! it, every access to the mount gives ENOTCONN ([`device::is_dead`]).

pub mod backing;
pub mod control;
pub mod device;
pub mod fdpass;
pub mod fusermount;
pub mod journal;
pub mod limits;
pub mod map;
pub mod mountinfo;
pub mod protocol;
mod relay;
pub mod session;
