//! The operator: turns each `CacheDataset` into workers, a volume and a status.
//!
//! ```text
//! CacheDataset, Nodes, worker pods, own objects ──watch──► queue ──► gather ──► plan() ──► apply ──► requeue
//! user's Secret and CA ConfigMap, claim, volume ──get──────────────────┘          │          ├─ server-side apply
//! workers' Status ──gRPC─────────────────────────────────────────────────────────┘          ├─ Configure (gRPC)
//!                                                                                            └─ status, Events
//! ```
//!
//! The operator owns the member list (ConfigMap `<uid>-members`) and `status`, and nothing that only lives in its memory: all it
//! does is level-triggered and idempotent. When it dies, nothing on the data path changes and status stands still; the next one
//! lists, compares and goes on. The one thing lost is since when a member is without a ready worker: its grace period starts again.
#![forbid(unsafe_code)]

mod controllers;
mod settings;
pub mod uninstall;

pub use settings::Args;

use anyhow::Context as _;
use larder_telemetry::Health;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

/// Runs the operator until `shutdown`.
///
/// # Errors
/// When the flags are wrong, the API server cannot be reached at start, or the admin port is taken.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let settings = args.resolve()?;
    let client = kube::Client::try_default().await.context("make a Kubernetes client")?;
    let health = Health::default();
    let mut registry = Registry::default();
    let metrics = controllers::cache_dataset::Metrics::register(&mut registry);
    tracing::info!(namespace = settings.namespace, image = settings.image, tiers = ?settings.tiers, "operator starts");

    // Whoever ends first takes the other along.
    let admin = larder_telemetry::serve_admin(args.admin_addr, health.clone(), registry, shutdown.clone());
    let controller = controllers::cache_dataset::run(client, settings, metrics, health, shutdown.clone());
    let (mut admin, mut controller) = (std::pin::pin!(admin), std::pin::pin!(controller));
    tokio::select! {
        result = &mut admin => {
            shutdown.cancel();
            controller.await;
            result.context("serve the admin port")
        }
        () = &mut controller => {
            shutdown.cancel();
            admin.await.context("serve the admin port")
        }
    }
}
