//! Deletion: each step waits for the one before, and each is idempotent, so that whoever comes next goes on.
//!
//! 1. The claim is deleted; it stays while pods use it.
//! 2. Workers erase what is on the disks, best effort: a node that does not answer is not waited for, and is named in an Event. Nodes
//!    that had workers under an earlier spec are not known any more, nor are the disks of tiers that were replaced.
//! 3. Workers, Service, copies, list and volume are deleted.
//! 4. The finalizer goes.

use super::{
    Context,
    apply::remove,
    conditions::{self, Cause, list},
    error::{Error, is_conflict, is_not_found},
    gather::{self, now},
    members,
    objects::{self, Owner},
    pods, status, workers,
};
use jiff::SignedDuration;
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Preconditions},
    runtime::controller::Action,
};
use larder_api::{
    CacheDataset,
    conditions::{reasons, types},
    labels,
};
use larder_core::names;
use std::collections::{BTreeMap, BTreeSet};

/// How long workers whose nodes answer are asked to erase; what is left then is left.
const ERASE_PATIENCE: SignedDuration = SignedDuration::from_mins(3);
/// Reason of the Event that names nodes on which data may be left.
const DATA_LEFT: &str = "DataLeft";

pub(super) async fn run(dataset: &CacheDataset, context: &Context) -> Result<Action, Error> {
    let owner = Owner::of(dataset).ok_or(Error::NoUid)?;
    claim(dataset, &owner, context).await?;
    erase(dataset, &owner, context).await?;
    objects(&owner, context).await?;
    context.absent.lock().remove(&owner.uid);
    context.erasing.lock().remove(&owner.uid);
    context.failing.forget(&owner.uid);
    tracing::info!(namespace = owner.namespace, dataset = owner.name, "deleted");
    Ok(Action::await_change())
}

/// Deletes our claim and waits until no pod uses it.
async fn claim(dataset: &CacheDataset, owner: &Owner, context: &Context) -> Result<(), Error> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &owner.namespace);
    let Some(claim) = gather::get(&api, &owner.name).await? else { return Ok(()) };
    if claim.labels().get(labels::DATASET_UID) != Some(&owner.uid) {
        return Ok(());
    }
    if claim.metadata.deletion_timestamp.is_none() {
        delete(&api, &claim).await?;
        if gather::get(&api, &owner.name).await?.is_none() {
            return Ok(());
        }
    }
    let users = users_of(&owner.namespace, &owner.name, context).await?;
    let cause = if users.is_empty() {
        Cause::new(reasons::ready::DELETING, format!("PersistentVolumeClaim {} is being deleted", owner.name))
    } else {
        let message = format!("deletion waits for pods that use the claim: {}; delete them", list(users));
        Cause::new(reasons::ready::IN_USE, message)
    };
    waits(dataset, cause, context).await
}

/// Pods that have not ended and mount the claim.
async fn users_of(namespace: &str, claim: &str, context: &Context) -> Result<Vec<String>, Error> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let pods = api
        .list(&ListParams::default())
        .await
        .map_err(|source| Error::List { what: format!("pods in namespace {namespace}"), source })?;
    Ok(pods.items.iter().filter(|p| uses(p, claim)).map(ResourceExt::name_any).collect())
}

/// Does this pod keep the claim in use?
pub(crate) fn uses(pod: &Pod, claim: &str) -> bool {
    let ended = pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(|p| p == "Succeeded" || p == "Failed");
    let mounts = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    !ended && mounts.filter_map(|v| v.persistent_volume_claim.as_ref()).any(|c| c.claim_name == claim)
}

/// Has the workers on nodes that answer remove their data.
async fn erase(dataset: &CacheDataset, owner: &Owner, context: &Context) -> Result<(), Error> {
    let pods = gather::worker_pods(&context.stores.pods, &owner.uid);
    let alive: Vec<String> =
        context.stores.nodes.state().iter().filter(|n| members::is_ready(n)).map(|n| n.name_any()).collect();
    let (asked, silent): (Vec<_>, Vec<_>) =
        pods::workers(&pods, &BTreeMap::new()).into_iter().partition(|w| alive.contains(&w.node) && w.address.is_some());
    let (freed, failed) = workers::erase(context.workers(&owner.uid), &asked).await;
    let failed: Vec<String> = failed.iter().map(|(node, error)| format!("{node} ({error})")).collect();
    if !failed.is_empty() {
        let since = *context.erasing.lock().entry(owner.uid.clone()).or_insert_with(now);
        if now().duration_since(since) <= ERASE_PATIENCE {
            let message = format!("waiting for workers to erase: {}", list(failed));
            return waits(dataset, Cause::new(reasons::ready::DELETING, message), context).await;
        }
    }
    tracing::info!(
        dataset = owner.name,
        workers = asked.len() - failed.len(),
        freed,
        "erased by the workers that could be asked"
    );
    // Members whose pods are gone have data too.
    let lists: Api<ConfigMap> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    let members = gather::get(&lists, &names::members_config_map(&owner.uid)).await?;
    let members = members.as_ref().and_then(gather::members_of).unwrap_or_default().members;
    let known = members.into_iter().map(|m| m.node).chain(silent.into_iter().map(|w| w.node));
    let unasked: BTreeSet<String> = known.filter(|node| asked.iter().all(|w| &w.node != node)).collect();
    let left: Vec<String> = failed.into_iter().chain(unasked).collect();
    if !left.is_empty() {
        let tiers = dataset.spec.cache.tiers.iter().filter_map(|tier| context.settings.tiers.get(&tier.name));
        let folders: Vec<String> = tiers.map(|tier| format!("{}/{}/{}", tier.path, names::TIER_DIR, owner.uid)).collect();
        let note = format!(
            "data may be left on nodes whose workers could not be asked to erase it, or could not: {}; remove {} there",
            left.join(", "),
            folders.join(" and ")
        );
        tracing::warn!(namespace = owner.namespace, dataset = owner.name, "{note}");
        status::warn(dataset, DATA_LEFT, &note, context).await;
    }
    Ok(())
}

/// Deletes everything that was made for the dataset.
async fn objects(owner: &Owner, context: &Context) -> Result<(), Error> {
    let (client, ours) = (&context.client, context.settings.namespace.as_str());
    let worker = names::worker_name(&owner.uid);
    remove::<DaemonSet>(&Api::namespaced(client.clone(), ours), &worker).await?;
    remove::<Service>(&Api::namespaced(client.clone(), ours), &worker).await?;
    remove::<Secret>(&Api::namespaced(client.clone(), ours), &owner.credentials_name()).await?;
    remove::<ConfigMap>(&Api::namespaced(client.clone(), ours), &owner.ca_name()).await?;
    remove::<ConfigMap>(&Api::namespaced(client.clone(), ours), &names::members_config_map(&owner.uid)).await?;
    remove::<PersistentVolume>(&Api::all(client.clone()), &objects::volume_name(owner)).await
}

/// Deletes exactly the claim that was looked at.
async fn delete(api: &Api<PersistentVolumeClaim>, claim: &PersistentVolumeClaim) -> Result<(), Error> {
    let name = claim.name_any();
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: claim.uid(), resource_version: None }),
        ..DeleteParams::background()
    };
    match api.delete(&name, &params).await {
        Err(source) if !is_not_found(&source) && !is_conflict(&source) => {
            Err(Error::Delete { object: format!("PersistentVolumeClaim {name}"), source })
        }
        _ => Ok(()),
    }
}

/// Says in `Ready` what deletion waits for, and comes back later.
async fn waits(dataset: &CacheDataset, cause: Cause, context: &Context) -> Result<(), Error> {
    let mut status = dataset.status.clone().unwrap_or_default();
    let message = cause.message.clone();
    let ready = conditions::condition(types::READY, "False", cause, dataset.metadata.generation, &status.conditions, now());
    status.conditions.retain(|c| c.type_ != types::READY);
    status.conditions.insert(0, ready);
    status::write(dataset, &status, context).await?;
    Err(Error::CleanupWaits(message))
}
