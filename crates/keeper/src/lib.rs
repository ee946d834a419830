//! The keeper: holds descriptors, and the little that belongs to them, so that the processes which use them may die.
//!
//! ```text
//! mounter ───► client::Held ──╮   {key, stamp, value, descriptor}
//!                             ├──► keeper.sock ─► store
//! node plugin ► client::Held ─╯
//! ```
//!
//! It does so little that there is no reason to restart it: it knows nothing of what it holds, reads no descriptor, talks to
//! nobody else, and keeps nothing on a disk. When it does end, its clients deposit everything again with the next one.
#![forbid(unsafe_code)]

pub mod client;
pub mod metrics;
mod socket;
mod store;

pub use socket::Keeper;
pub use store::{ITEMS_MAX, VALUES_MAX};

use larder_core::names;
use larder_telemetry::{Exposition, Health, serve_admin};
use metrics::Metrics;
use std::{net::SocketAddr, path::PathBuf};
use tokio_util::sync::CancellationToken;

/// The node plugin's user.
const ROOT: u32 = 0;

/// Flags of `larder keeper`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Folder of the sockets; the one of the keeper is `keeper/keeper.sock` in it
    #[arg(long, env = "LARDER_RUN_DIR", default_value = names::RUN_DIR)]
    pub run_dir: PathBuf,
    /// Health and metrics
    #[arg(long, default_value_t = larder_telemetry::listen::any(names::KEEPER_ADMIN_PORT))]
    pub admin_addr: SocketAddr,
}

/// Runs until `shutdown`, and ends at once then: there is nothing to save.
///
/// # Errors
/// No socket, no port.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    if let Err(error) = larder_fuse::limits::raise_open_files() {
        tracing::warn!(%error, "raise the limit of open files; fewer descriptors can be held");
    }
    let mut exposition = Exposition::default();
    let metrics = Metrics::register(&mut exposition);
    let keeper = Keeper::bind(&names::keeper_socket(&args.run_dir), &[ROOT, names::MOUNTER_UID], metrics)?;
    let health = Health::default();
    health.set_ready(true);
    tracing::info!("keeper is ready");
    tokio::select! {
        () = keeper.serve() => {}
        served = serve_admin(args.admin_addr, health, exposition, CancellationToken::new()) => served?,
        () = shutdown.cancelled() => {}
    }
    Ok(())
}
