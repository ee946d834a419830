//! The node plugin: mounts snapshots for the pods of one node.
//!
//! ```text
//! kubelet ──CSI──► node: validate → lock → record or newest snapshot → superblock → shroud → bind mount at the target
//!                    │                        │                           │
//!                    │                        ▼                           ▼
//!                    │                  datasets (kube: get)      mounter (unix socket): prepare, serve
//!                    ▼
//!        state/<identity>.json   which target shows which snapshot
//!        permits                 mount tokens, got of the operator, given to the mounter
//!        host                    folders of sockets and tiers, with their owners
//!        controller, volumes/<uid>.json   names for datasets, for those who speak CSI alone
//!        backing ◄─unix socket── mounter: files that the kernel is to read itself
//! ```
//!
//! The only privileged daemon. It holds no data and no cloud credentials. It and the keeper hold the FUSE descriptors that the
//! mounter serves, and never read from them.
//! Owner of the kernel's mounts beneath the kubelet's folder and of the state records. When it dies, mounts live on and no pod
//! starts or ends; at the next start it compares its records with the mount table and goes on. Every call may be repeated.
//! No path that may lead into FUSE is touched without a deadline; mounts that no mounter serves are ended after a while
//! (`watchdog`), and of mounts that have ended it tells in Events.
#![forbid(unsafe_code)]

mod arguments;
mod backing;
mod controller;
mod datasets;
mod error;
mod events;
#[doc(hidden)]
pub mod fuzzing;
mod host;
mod identity;
mod layout;
mod metrics;
mod mount;
mod mounter;
mod node;
mod permits;
mod probe;
mod reconcile;
mod records;
mod registration;
mod server;
mod state;
mod volumes;
mod watchdog;

pub use server::{Args, run, run_with};

/// What the node plugin shows at `/metrics`, for its documentation.
#[must_use]
pub fn exposition() -> larder_telemetry::Exposition {
    larder_telemetry::Exposition::default().with(metrics::Metrics::register)
}
