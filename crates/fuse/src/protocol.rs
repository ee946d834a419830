//! What the daemons of one node say to each other over [`crate::fdpass`]. Both ends of a socket take the types from here.

pub mod backing;
pub mod keeper;
pub mod mounter;
pub mod worker;
