//! Says at once, in one line, why this machine cannot run a cluster.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::sys::statvfs::statvfs;
use nix::unistd::geteuid;

use crate::tools::repository;

/// The demo's data three times (bucket and two nodes), images, etcd, and the tools if they are on the same disk.
const LEAST_DISK: u64 = 15_000_000_000;

pub(super) fn check() -> Result<()> {
    if !geteuid().is_root() {
        bail!("a local cluster needs root (namespaces, mounts, cgroups): run this as root");
    }
    if !Path::new("/dev/fuse").exists() {
        bail!("a local cluster needs /dev/fuse, which this machine does not have");
    }
    let disk = statvfs(repository()).context("look at the disk of the checkout")?;
    let free = disk.blocks_available() * disk.fragment_size();
    if free < LEAST_DISK {
        bail!("a local cluster needs 15 GB of free disk at {}; there are {} GB", repository().display(), free / 1_000_000_000);
    }
    Ok(())
}
