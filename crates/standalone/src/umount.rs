//! `larder umount`: takes a mount of `larder mount` away; its process then ends by itself.

use crate::mountpoint::Mountpoint;
use std::path::PathBuf;

/// Flags of `larder umount`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// Also while files are open there; they end when they are closed
    #[arg(long)]
    lazy: bool,
}

/// Unmounts, dead or alive.
///
/// # Errors
/// Nothing of ours there, or files are open.
pub fn run(args: &Args) -> anyhow::Result<()> {
    Ok(Mountpoint::mounted(&args.mountpoint)?.unmount(args.lazy)?)
}
