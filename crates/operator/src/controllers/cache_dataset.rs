//! The controller of `CacheDataset`.
//!
//! | module | what it does | pure |
//! |---|---|---|
//! | [`watch`] | follows what a dataset depends on, and queues the dataset | |
//! | [`gather`] | reads everything that a decision needs | |
//! | [`plan`] | decides; with [`members`], [`snapshot`], [`preload`], [`conditions`] for its parts | yes |
//! | [`objects`] | what the objects of a dataset look like | yes |
//! | [`pods`] | what a worker's pod tells: node, address, readiness, what is wrong | yes |
//! | [`apply`] | server-side apply of what differs | |
//! | [`failures`] | what of it could not be done, and when that is told | yes |
//! | [`workers`] | gRPC to the workers | |
//! | [`metrics`] | what is counted, and the datasets' names by their UIDs | |
//! | [`status`] | writes status, and an Event for each condition that changed | |
//! | [`cleanup`] | deletion, one step after the other, before the finalizer goes | |

#[cfg(test)]
mod api_tests;
mod apply;
mod cleanup;
mod conditions;
mod error;
mod failures;
mod gather;
mod members;
mod metrics;
mod objects;
mod plan;
mod pods;
mod preload;
mod snapshot;
mod status;
#[cfg(test)]
mod testing;
mod watch;
mod workers;

pub(crate) use cleanup::uses;
pub(crate) use metrics::Metrics;

use crate::settings::Settings;
use error::Error;
use failures::Purpose;
use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{
        applier,
        controller::{Action, Config},
        events::{Recorder, Reporter},
        finalizer,
    },
};
use larder_api::{CacheDataset, labels};
use larder_telemetry::Health;
use larder_trust::Security;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Field manager of everything the operator writes.
pub(crate) const MANAGER: &str = "larder-operator";
/// Reconciles at once; more than the API server answers in parallel for one client helps nobody.
const CONCURRENCY: u16 = 16;
/// Triggers within this time are one.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// A reconcile that takes longer hangs; the longest legal one is an Erase.
const RECONCILE_TIMEOUT: Duration = Duration::from_secs(180);
/// After an error, and between looks at a deletion that waits.
const RETRY: Duration = Duration::from_secs(5);

/// What every reconcile shares.
struct Context {
    client: Client,
    settings: Settings,
    security: Security,
    stores: watch::Stores,
    recorder: Recorder,
    metrics: Metrics,
    /// Per dataset UID: since when members are without a ready worker. Lost with the process, which only prolongs a grace period.
    absent: Mutex<HashMap<String, BTreeMap<String, Timestamp>>>,
    /// Per dataset UID: since when its workers are asked to erase.
    erasing: Mutex<HashMap<String, Timestamp>>,
    failing: failures::Since,
}

impl Context {
    fn workers<'a>(&'a self, dataset_uid: &'a str) -> workers::Workers<'a> {
        workers::Workers { dataset_uid, security: &self.security }
    }
}

/// Runs the controller until `shutdown`, then lets running reconciles end.
pub(crate) async fn run(
    client: Client,
    settings: Settings,
    security: Security,
    metrics: Metrics,
    health: Health,
    shutdown: CancellationToken,
) {
    let (stores, queue, mut followers) = watch::start(&client, &settings.namespace, &shutdown);
    tokio::select! {
        biased;
        () = shutdown.cancelled() => return,
        // An empty store would look like a cluster without nodes.
        result = stores.synced() => if let Err(error) = result {
            tracing::error!(%error, "a watch ended before its first list");
            return;
        },
    }
    metrics.know(&stores.datasets);
    health.set_ready(true);
    tracing::info!(datasets = stores.datasets.len(), nodes = stores.nodes.len(), "in step with the API server");

    let reporter = Reporter { controller: MANAGER.into(), instance: std::env::var("POD_NAME").ok() };
    let datasets = stores.datasets.clone();
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        settings,
        security,
        stores,
        metrics,
        absent: Mutex::default(),
        erasing: Mutex::default(),
        failing: failures::Since::default(),
    });
    // A watch that ended leaves a store that never changes again: better to begin anew.
    let stopped = shutdown.child_token();
    let one_ended = async {
        followers.join_next().await;
        if !shutdown.is_cancelled() {
            tracing::error!("a watch ended; stopping");
        }
        stopped.cancel();
    };
    let reconciles = applier(
        |dataset, context| reconcile(dataset, context).boxed(),
        on_error,
        context,
        datasets,
        queue.take_until(stopped.clone().cancelled_owned()),
        Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE),
    )
    .for_each(|result| async move {
        // Errors of reconciles were logged by `on_error`; what is left is a dataset that went away meanwhile.
        if let Err(error) = result {
            tracing::debug!(%error, "queue");
        }
    });
    tokio::join!(one_ended, reconciles);
    health.set_ready(false);
}

async fn reconcile(dataset: Arc<CacheDataset>, context: Arc<Context>) -> Result<Action, finalizer::Error<Error>> {
    let namespace = dataset.namespace().unwrap_or_default();
    let api: Api<CacheDataset> = Api::namespaced(context.client.clone(), &namespace);
    let work = finalizer(&api, labels::FINALIZER, dataset, |event| async {
        let work = async {
            match event {
                finalizer::Event::Apply(dataset) => converge(&dataset, &context).await,
                finalizer::Event::Cleanup(dataset) => cleanup::run(&dataset, &context).await,
            }
        };
        tokio::time::timeout(RECONCILE_TIMEOUT, work).await.unwrap_or(Err(Error::TimedOut(RECONCILE_TIMEOUT)))
    });
    let began = Instant::now();
    let result = work.await;
    let outcome = match &result {
        Ok(_) => "ok",
        Err(finalizer::Error::CleanupFailed(Error::CleanupWaits(_))) => "waiting",
        Err(_) => "error",
    };
    context.metrics.count(outcome, began.elapsed());
    result
}

/// Gather, plan, apply.
async fn converge(dataset: &CacheDataset, context: &Context) -> Result<Action, Error> {
    let uid = dataset.uid().ok_or(Error::NoUid)?;
    // Status is written whatever happens: it is how a user learns what is wrong.
    let gathered = gather::gather(dataset, context).await;
    let now = gather::now();
    let lasts = context.failing.lasts(&uid, Purpose::Sight, gathered.is_err(), now);
    let mut observed = match gathered {
        Ok(observed) => observed,
        Err(error) => {
            if lasts || error.stays() {
                status::write(dataset, &conditions::unseen(dataset, &failures::text(&error), now), context).await?;
            }
            return Err(error);
        }
    };
    let mut plan = plan::plan(dataset, &observed, &context.settings)?;
    context.absent.lock().insert(uid.clone(), plan.absent_since.clone());
    let failures = apply::apply(dataset, &plan, &observed, context).await;
    let failed = |of: Purpose| failures.iter().any(|f| f.of == of);
    let [workers, claim] = [Purpose::Workers, Purpose::Claim].map(|of| context.failing.lasts(&uid, of, failed(of), now));
    if !failures.is_empty() {
        let lasts = |of: Purpose| if of == Purpose::Claim { claim } else { workers };
        observed.refused = failures::refusals(&failures, lasts, &observed.owner.namespace, &context.settings.namespace);
        // What it says was meant for a cluster in which all is done.
        plan.status = plan::plan(dataset, &observed, &context.settings)?.status;
    }
    status::write(dataset, &plan.status, context).await?;
    let mut failures = failures.into_iter();
    let first = failures.next();
    for other in failures {
        tracing::warn!(dataset = dataset.name_any(), error = failures::text(&other.error), "reconcile failed at this too");
    }
    first.map_or(Ok(Action::requeue(plan.requeue)), |first| Err(first.error))
}

#[expect(clippy::needless_pass_by_value, reason = "the signature is kube's")]
fn on_error(dataset: Arc<CacheDataset>, error: &finalizer::Error<Error>, _: Arc<Context>) -> Action {
    let (namespace, name) = (dataset.namespace().unwrap_or_default(), dataset.name_any());
    match error {
        finalizer::Error::CleanupFailed(Error::CleanupWaits(step)) => {
            tracing::info!(namespace, name, "deletion waits: {step}");
        }
        error => {
            let error = larder_core::causes::chain(error);
            tracing::warn!(namespace, name, error, "reconcile failed; trying again");
        }
    }
    Action::requeue(RETRY)
}
