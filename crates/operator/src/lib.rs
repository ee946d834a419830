//! The operator: turns each `CacheDataset` into workers, a volume and a status.
//!
//! ```text
//! CacheDataset, Nodes, worker pods, own objects ──watch──► queue ──► gather ──► plan() ──► apply ──► requeue
//! user's Secret and CA ConfigMap, claim, volume ──get──────────────────┘          │          ├─ server-side apply
//! workers' Status ──gRPC─────────────────────────────────────────────────────────┘          ├─ Configure (gRPC)
//!                                                                                            └─ status, Events
//! ```
//!
//! Of several operators one acts: the holder of a Lease ([`leader`]). All of them are the CA of the daemons ([`authority`]).
//!
//! The operator owns the member list (ConfigMap `<uid>-members`) and `status`, and nothing that only lives in its memory: all it
//! does is level-triggered and idempotent. When it dies, nothing on the data path changes and status stands still; the next one
//! lists, compares and goes on. The one thing lost is since when a member is without a ready worker: its grace period starts again.
#![forbid(unsafe_code)]

mod authority;
mod controllers;
mod leader;
mod settings;
pub mod uninstall;

pub use settings::Args;

use anyhow::{Context as _, bail};
use authority::Keeper;
use larder_telemetry::{Exposition, Health};
use larder_trust::Security;
use tokio_util::sync::CancellationToken;

/// What the operator shows at `/metrics`, for its documentation.
#[must_use]
pub fn exposition() -> Exposition {
    Exposition::default().with(controllers::cache_dataset::Metrics::register)
}

/// Runs the operator until `shutdown`.
///
/// # Errors
/// When the flags are wrong, the API server cannot be reached at start, the admin port is taken, or the Lease is lost.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let settings = args.resolve()?;
    let client = kube::Client::try_default().await.context("make a Kubernetes client")?;
    let health = Health::default();
    let mut exposition = Exposition::default();
    let metrics = controllers::cache_dataset::Metrics::register(&mut exposition);
    tracing::info!(namespace = settings.namespace, image = settings.image, tiers = ?settings.tiers, "operator starts");

    let keeper = (!args.plain).then(|| Keeper::start(&client, &settings));
    // Whoever ends first takes the others along.
    let admin = larder_telemetry::serve_admin(args.admin_addr, health.clone(), exposition, shutdown.clone());
    let issuing = async {
        match &keeper {
            Some(keeper) => keeper.serve(args.authority_addr, shutdown.clone()).await,
            None => std::future::pending().await,
        }
    };
    let acting = act(client.clone(), settings.clone(), keeper.as_ref(), metrics, health, shutdown.clone());
    let (mut admin, mut acting) = (std::pin::pin!(admin), std::pin::pin!(acting));
    tokio::select! {
        result = issuing, if !shutdown.is_cancelled() => {
            shutdown.cancel();
            acting.await?;
            admin.await.context("serve the admin port")?;
            result.context("serve the port for certificates")
        }
        result = &mut admin => {
            shutdown.cancel();
            acting.await?;
            result.context("serve the admin port")
        }
        result = &mut acting => {
            shutdown.cancel();
            admin.await.context("serve the admin port")?;
            result
        }
    }
}

/// Runs the controller while this operator leads.
async fn act(
    client: kube::Client,
    settings: settings::Settings,
    keeper: Option<&Keeper>,
    metrics: controllers::cache_dataset::Metrics,
    health: Health,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let me = std::env::var("POD_NAME").unwrap_or_else(|_| format!("process-{}", std::process::id()));
    let candidate = leader::Candidate::new(client.clone(), &settings.namespace, me);
    // One that stands by is as ready as it can be.
    let leader = shutdown.run_until_cancelled(candidate.lead(|| health.set_ready(true))).await;
    let Some(mut leader) = leader else { return Ok(()) };
    health.set_ready(false);
    let security = keeper.map_or(Security::Plain, Keeper::leads);
    let untainting = {
        let (client, settings) = (client.clone(), settings.clone());
        async move {
            if settings.startup_taint {
                controllers::startup_taint::run(client, &settings.namespace).await
            } else {
                std::future::pending().await
            }
        }
    };
    let controller = async {
        // Without a certificate of its own it reaches no worker, and would say that all are away.
        if shutdown.run_until_cancelled(security.ready()).await.is_some() {
            controllers::cache_dataset::run(client, settings, security.clone(), metrics, health, shutdown.clone()).await;
        }
    };
    let lost = tokio::select! {
        // Not a moment longer: what is under way is dropped.
        lost = leader.lost() => lost,
        never = untainting => match never {},
        () = controller => {
            leader.step_down().await;
            return Ok(());
        }
    };
    bail!("stopping: {lost}")
}
