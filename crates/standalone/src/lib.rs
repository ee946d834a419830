//! A dataset on one machine without a cluster: the worker and the mounter in one process.
//!
//! ```text
//! dataset.yaml ─► dataset ─┐
//! environment, files ─► access ─┴─► cache: an embedded worker ─► snapshot, preload (progress: what is shown of it)
//!                                      │ backend
//! mountpoint, namespace: mount(2) ─► larder_mount::DatasetFs
//!   or fusermount3 or a user namespace
//! ```
//!
//! The cache has the same form as on a node of a cluster: `<path>/larder/<dataset uid>`, locked as long as a process uses it.
//! When the process dies, the mount gives ENOTCONN, and the next `larder mount` there takes it away and goes on with what is
//! on the disk.
#![forbid(unsafe_code)]

mod access;
mod backend;
mod cache;
mod dataset;
mod detach;
pub mod mount;
mod mountpoint;
mod namespace;
mod overlap;
pub mod preload;
mod progress;
pub mod umount;

use std::path::PathBuf;

/// The dataset and how to get at its origin: flags of all commands that use it.
#[derive(Clone, Debug, clap::Args)]
pub struct Source {
    /// File with a CacheDataset whose tier has a `path`: the folder for the cache
    #[arg(value_name = "DATASET.yaml")]
    pub file: PathBuf,
    /// Folder with the files `accessKeyId` and `secretAccessKey`, and `sessionToken` if need be. Default: AWS_ACCESS_KEY_ID,
    /// AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN
    #[arg(long, value_name = "FOLDER")]
    pub credentials: Option<PathBuf>,
    /// PEM file with the certificate authority of the endpoint. Default: the system's
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// List the origin again. Default: the snapshot that was taken last is used, if there is one
    #[arg(long)]
    pub refresh: bool,
}
