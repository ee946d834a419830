//! What daemons read into and write with: buffers that are used again, files that are replaced whole.
//!
//! Apart from `larder-core`, which does no I/O; it knows nothing of Larder and no async runtime.
#![forbid(unsafe_code)]

pub mod buffers;
pub mod replace;
