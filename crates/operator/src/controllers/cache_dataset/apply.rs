//! Brings about what the plan says: server-side apply of what differs, then orders to workers.

use super::{
    Context, MANAGER,
    error::{Error, is_not_found},
    failures::{Failure, Purpose},
    gather::Observed,
    objects,
    plan::Plan,
    workers,
};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use larder_api::CacheDataset;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use std::fmt::Debug;

/// Annotation on worker pods: which copies of Secret and CA their kubelet was told of. A change of the pod makes the kubelet
/// look at its volumes at once; otherwise new credentials take up to two minutes.
pub(super) const TOLD: &str = "larder.dev/inputs";

/// Returns what failed. One object that is refused stops no other, and workers that run get their orders all the same.
pub(super) async fn apply(dataset: &CacheDataset, plan: &Plan, observed: &Observed, context: &Context) -> Vec<Failure> {
    let (client, ours) = (&context.client, context.settings.namespace.as_str());
    let mut failures = vec![];
    let mut is_done = |of: Purpose, result: Result<(), Error>| match result {
        Ok(()) => true,
        Err(error) => {
            failures.push(Failure { of, error });
            false
        }
    };
    // Secret and CA before the workers that mount them; the list before those who read it.
    let mut has_copies = true;
    if let Some(secret) = &plan.secret {
        let result = ensure(&Api::namespaced(client.clone(), ours), secret, observed.secret_copy.as_deref()).await;
        has_copies &= is_done(Purpose::Workers, result);
    }
    if let Some(ca) = &plan.ca {
        let result = ensure(&Api::namespaced(client.clone(), ours), ca, observed.ca_copy.as_deref()).await;
        has_copies &= is_done(Purpose::Workers, result);
    }
    let result = ensure(&Api::namespaced(client.clone(), ours), &plan.members, observed.members.as_ref()).await;
    is_done(Purpose::Workers, result);
    let result = ensure(&Api::namespaced(client.clone(), ours), &plan.service, observed.service.as_deref()).await;
    is_done(Purpose::Workers, result);
    // Workers that are new wait for their copies: those that come later take up to two minutes.
    if let Some(daemon_set) = plan.daemon_set.as_ref().filter(|_| has_copies || observed.daemon_set.is_some()) {
        let result = ensure(&Api::namespaced(client.clone(), ours), daemon_set, observed.daemon_set.as_deref()).await;
        is_done(Purpose::Workers, result);
    }
    let result = volume(dataset, plan, observed, context).await;
    is_done(Purpose::Claim, result);
    let result = claim(plan, observed, context).await;
    is_done(Purpose::Claim, result);

    if plan.drop_secret {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), ours);
        is_done(Purpose::Copies, remove(&secrets, &observed.owner.credentials_name()).await);
    }
    if plan.drop_ca {
        let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), ours);
        is_done(Purpose::Copies, remove(&config_maps, &observed.owner.ca_name()).await);
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), ours);
    for pod in &plan.tell {
        let patch = json!({ "metadata": { "annotations": { TOLD: plan.told } } });
        // Only to be faster: a pod that is gone meanwhile needs nothing.
        if let Err(error) = pods.patch(pod, &PatchParams::default(), &Patch::Merge(patch)).await {
            tracing::debug!(pod, %error, "pod was not told of new inputs");
        }
    }
    for (node, error) in workers::configure(context.workers(&observed.owner.uid), &plan.orders).await {
        // The next look at its status shows that it still has other orders.
        tracing::warn!(dataset = dataset.name_any(), node, error, "worker did not take its orders");
    }
    failures
}

async fn volume(dataset: &CacheDataset, plan: &Plan, observed: &Observed, context: &Context) -> Result<(), Error> {
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    if let Some(volume) = &plan.volume {
        ensure(&volumes, volume, observed.volume.as_ref()).await?;
    }
    if let Some(volume) = observed.volume.as_ref().filter(|_| plan.release_volume) {
        let patch = json!({
            // Only the volume that was looked at.
            "metadata": { "resourceVersion": volume.resource_version() },
            "spec": { "claimRef": { "uid": null, "resourceVersion": null } },
        });
        let name = volume.name_any();
        volumes
            .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map_err(|source| Error::Patch { object: format!("PersistentVolume {name}"), source })?;
        tracing::info!(dataset = dataset.name_any(), volume = name, "released from a claim that no longer exists");
    }
    Ok(())
}

async fn claim(plan: &Plan, observed: &Observed, context: &Context) -> Result<(), Error> {
    if let Some(claim) = &plan.claim {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &observed.owner.namespace);
        let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        claims
            .create(&params, claim)
            .await
            .map_err(|source| Error::Create { object: format!("PersistentVolumeClaim {}", claim.name_any()), source })?;
    }
    Ok(())
}

/// Applies the object unless it is already there as it should be.
async fn ensure<K>(api: &Api<K>, wanted: &K, found: Option<&K>) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + Serialize + DeserializeOwned + Debug,
{
    if objects::is_applied(wanted, found) {
        return Ok(());
    }
    let name = wanted.name_any();
    api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(wanted))
        .await
        .map_err(|source| Error::Apply { object: format!("{} {name}", K::kind(&())), source })?;
    tracing::debug!(kind = %K::kind(&()), name, "applied");
    Ok(())
}

/// Deletes it, if it is there.
pub(super) async fn remove<K>(api: &Api<K>, name: &str) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    match api.delete(name, &DeleteParams::background()).await {
        Err(source) if !is_not_found(&source) => Err(Error::Delete { object: format!("{} {name}", K::kind(&())), source }),
        _ => Ok(()),
    }
}
