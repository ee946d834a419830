//! From what is and what is wanted to what to do. Pure.

use super::{
    conditions::{self, Cause, Claim, Facts},
    error::Error,
    gather::{Observed, Referenced},
    members, objects, preload, snapshot,
};
use crate::settings::{Settings, Tier};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret, Service},
};
use kube::ResourceExt as _;
use larder_api::{
    CacheDataset, CacheDatasetStatus,
    cache_dataset::{PreloadPolicy, WorkerCounts},
    conditions::{reasons, types},
    labels, quantity,
};
use larder_core::placement::{Member, Members};
use larder_proto::control::v1::{Config, Source};
use prost::Message as _;
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// While something moves.
const POLL: Duration = Duration::from_secs(2);
/// While something is missing that the operator does not watch.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// When all is as it should be.
const SETTLED: Duration = Duration::from_secs(30);

/// What to do.
#[derive(Debug)]
pub(super) struct Plan {
    pub secret: Option<Secret>,
    pub ca: Option<ConfigMap>,
    /// Copies that the spec does not ask for any more.
    pub drop_secret: bool,
    pub drop_ca: bool,
    pub members: ConfigMap,
    pub service: Service,
    pub daemon_set: Option<DaemonSet>,
    pub volume: Option<PersistentVolume>,
    /// Make the volume forget a claim that no longer exists.
    pub release_volume: bool,
    /// To create; never applied over another one.
    pub claim: Option<PersistentVolumeClaim>,
    /// Orders for workers that have others: node, address, orders.
    pub orders: Vec<(String, IpAddr, Config)>,
    /// Pods to touch, so that their kubelets look at the copies of Secret and CA at once.
    pub tell: Vec<String>,
    /// What to write on them.
    pub told: String,
    pub absent_since: BTreeMap<String, Timestamp>,
    pub status: CacheDatasetStatus,
    pub requeue: Duration,
}

/// What the spec refers to, looked up.
struct Inputs<'a> {
    /// None if one of them is unknown.
    tiers: Vec<&'a Tier>,
    secret: Option<Secret>,
    ca: Option<ConfigMap>,
    /// Generations of the copies that workers must see.
    credentials_generation: String,
    ca_generation: String,
    cause: Option<Cause>,
    block: bool,
}

pub(super) fn plan(dataset: &CacheDataset, observed: &Observed, settings: &Settings) -> Result<Plan, Error> {
    let owner = &observed.owner;
    let prior = dataset.status.clone().unwrap_or_default();
    let inputs = inputs(dataset, observed, settings);

    let selection = members::select(&observed.nodes, &dataset.spec.workers);
    let (members, absent_since) = members::next(
        observed.current_members().as_ref(),
        dataset.spec.cache.stripe_size.as_ref().and_then(quantity::bytes),
        &selection,
        &observed.workers,
        &observed.absent_since,
        observed.now,
        settings.member_grace,
    );

    let listing_id = snapshot::listing_id(&dataset.spec.source);
    let ready_nodes = observed.workers.iter().filter(|w| w.ready && selection.nodes.contains(&w.node)).count();
    let all_here = ready_nodes == selection.nodes.len();
    // Nothing is listed or published before there is a member: without one nobody could serve it.
    let nobody = members.members.is_empty();
    let (workers, statuses) =
        if nobody { (&[][..], &snapshot::Statuses::default()) } else { (&observed.workers[..], &observed.statuses) };
    let progress = snapshot::progress(&listing_id, prior.snapshot.as_ref(), workers, statuses, all_here);
    let published = progress.published.as_ref();

    let wants_preload = dataset.spec.preload.policy == PreloadPolicy::OnCreate;
    let preload = published.filter(|_| wants_preload).map(|s| preload::progress(&s.id, &members, &observed.statuses));

    let claim = claim(dataset, observed);
    let not_ours = matches!(claim, Claim::NotOurs(_));
    let conditions = conditions::conditions(&Facts {
        dataset,
        now: observed.now,
        inputs: inputs.cause.clone(),
        inputs_block: inputs.block,
        selection: &selection,
        workers: &observed.workers,
        daemon_set_warning: observed.daemon_set_warning.as_deref(),
        statuses: &observed.statuses,
        snapshot: &progress,
        published,
        preload: preload.as_ref(),
        claim,
        refused: &observed.refused,
        has_workers: observed.daemon_set.is_some(),
    });

    let counts = WorkerCounts { desired: count(selection.nodes.len()), ready: count(ready_nodes) };
    let same_snapshot = prior.snapshot.as_ref().map(|s| &s.id) == published.map(|s| &s.id);
    let status = CacheDatasetStatus {
        conditions,
        cache: Some(cache(&prior, &progress, preload.as_ref(), observed, counts)),
        preload: preload.as_ref().zip(published).map(|(sum, snapshot)| {
            let prior = prior.preload.as_ref().filter(|_| same_snapshot);
            if progress.answered == 0 {
                // Nobody answers: what was known stands.
                prior.cloned().unwrap_or_default()
            } else {
                preload::status(sum, prior, snapshot, observed.now)
            }
        }),
        origin_bytes: origin_bytes(&prior, observed, selection.nodes.len()),
        snapshot: progress.published.clone(),
    };

    let orders = if inputs.block { vec![] } else { orders(dataset, observed, &inputs, &listing_id, &progress, &members) };
    let told = format!("{}.{}", inputs.credentials_generation, inputs.ca_generation);
    let requeue = requeue(&status, &progress, !orders.is_empty(), inputs.cause.is_some());
    let has_workers = observed.daemon_set.is_some();
    Ok(Plan {
        members: objects::members(owner, settings, &members),
        service: objects::service(owner, settings),
        // Workers that run go on while an input is missing; new ones wait, so that they start with their credentials.
        daemon_set: (!inputs.tiers.is_empty() && (has_workers || !inputs.block))
            .then(|| objects::daemon_set(owner, dataset, settings, &inputs.tiers)),
        volume: (!not_ours || observed.volume.is_some()).then(|| {
            let capacity = capacity(dataset, observed, &status);
            objects::volume(owner, &capacity)
        }),
        release_volume: !not_ours && has_stale_claim(observed),
        // Not before the volume can be found: the claim would be looked at again only after a while.
        claim: (observed.claim.is_none() && is_available(observed.volume.as_ref())).then(|| objects::claim(owner)),
        tell: to_tell(observed, &inputs, &told),
        told,
        orders,
        absent_since,
        status,
        requeue,
        drop_secret: is_unasked(&observed.secret, observed.secret_copy.as_ref()),
        drop_ca: is_unasked(&observed.ca, observed.ca_copy.as_ref()),
        secret: inputs.secret,
        ca: inputs.ca,
    })
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn inputs<'a>(dataset: &CacheDataset, observed: &Observed, settings: &'a Settings) -> Inputs<'a> {
    let owner = &observed.owner;
    let mut causes: Vec<(Cause, bool)> = vec![];

    let mut tiers = vec![];
    for (n, tier) in dataset.spec.cache.tiers.iter().enumerate() {
        tiers.extend(settings.tiers.get(&tier.name));
        if tiers.len() == n {
            let known: Vec<&str> = settings.tiers.keys().map(String::as_str).collect();
            let message =
                format!("spec.cache.tiers[{n}].name is {:?}; the administrator defined: {}", tier.name, known.join(", "));
            causes.push((Cause::new(reasons::workers::TIER_UNKNOWN, message), true));
            tiers.clear();
            break;
        }
    }

    let (namespace, source) = (&owner.namespace, &dataset.spec.source);
    if source.host_folder().is_some() && objects::file_origin(source, settings).is_none() {
        let allowed = if settings.file_origins.is_empty() { "none".to_owned() } else { settings.file_origins.join(", ") };
        let message = format!(
            "spec.source.uri {} does not lie beneath a folder that the administrator allows (chart value fileOrigins: {allowed})",
            source.uri
        );
        causes.push((Cause::new(reasons::workers::FOLDER_NOT_ALLOWED, message), true));
    }
    let kept = |copied: bool| if copied { "; workers go on with the last copy" } else { "" };
    let mut secret = None;
    let name = source.credentials.secret_ref.as_ref().map_or("", |r| &r.name);
    let copied = observed.secret_copy.is_some();
    match &observed.secret {
        Referenced::NotAsked => {}
        Referenced::Missing => {
            let message = format!("Secret {namespace}/{name} does not exist; create it{}", kept(copied));
            causes.push((Cause::new(reasons::workers::SECRET_NOT_FOUND, message), !copied));
        }
        Referenced::Found(found) => match objects::missing_credential(found) {
            None => secret = Some(objects::credentials(owner, settings, found)),
            Some(key) => {
                let message = format!(
                    "Secret {namespace}/{name} has no key {key}; it needs accessKeyId and secretAccessKey{}",
                    kept(copied)
                );
                causes.push((Cause::new(reasons::workers::SECRET_KEY_MISSING, message), !copied));
            }
        },
    }

    let mut ca = None;
    let copied = observed.ca_copy.is_some();
    let (name, key) = source.ca.as_ref().map_or(("", ""), |c| (&c.config_map_ref.name, &c.config_map_ref.key));
    match &observed.ca {
        Referenced::NotAsked => {}
        Referenced::Missing => {
            let message = format!("ConfigMap {namespace}/{name} does not exist; create it{}", kept(copied));
            causes.push((Cause::new(reasons::workers::CA_NOT_FOUND, message), !copied));
        }
        Referenced::Found(found) => match found.data.as_ref().and_then(|d| d.get(key)).filter(|pem| !pem.trim().is_empty()) {
            Some(pem) => ca = Some(objects::ca(owner, settings, found, pem)),
            None => {
                let message = format!("ConfigMap {namespace}/{name} has no key {key}{}", kept(copied));
                causes.push((Cause::new(reasons::workers::CA_NOT_FOUND, message), !copied));
            }
        },
    }

    let secret_generation = secret.as_ref().or(observed.secret_copy.as_deref()).and_then(|s| {
        let bytes = &s.data.as_ref()?.get(objects::GENERATION_KEY)?.0;
        Some(String::from_utf8_lossy(bytes).into_owned())
    });
    let ca_generation =
        ca.as_ref().or(observed.ca_copy.as_deref()).and_then(|c| c.data.as_ref()?.get(objects::GENERATION_KEY).cloned());
    let asked = |generation: Option<String>, asked: bool| generation.filter(|_| asked).unwrap_or_default();
    // The first that blocks is what a user has to mend first.
    causes.sort_by_key(|(_, block)| !block);
    let block = causes.iter().any(|(_, block)| *block);
    Inputs {
        tiers,
        credentials_generation: asked(secret_generation, source.credentials.secret_ref.is_some()),
        ca_generation: asked(ca_generation, source.ca.is_some()),
        secret,
        ca,
        cause: causes.into_iter().next().map(|(c, _)| c),
        block,
    }
}

fn claim(dataset: &CacheDataset, observed: &Observed) -> Claim {
    let (namespace, name) = (&observed.owner.namespace, dataset.name_any());
    let Some(claim) = &observed.claim else {
        return Claim::Pending(format!("PersistentVolumeClaim {namespace}/{name} is being made"));
    };
    if claim.labels().get(labels::DATASET_UID) != Some(&observed.owner.uid) {
        let message = format!(
            "PersistentVolumeClaim {namespace}/{name} exists and was not made for this CacheDataset; delete it, or give the CacheDataset another name"
        );
        return Claim::NotOurs(message);
    }
    if claim.metadata.deletion_timestamp.is_some() {
        let message = format!(
            "PersistentVolumeClaim {namespace}/{name} was deleted and waits for the pods that use it; it is made again after that"
        );
        return Claim::Pending(message);
    }
    match claim.status.as_ref().and_then(|s| s.phase.as_deref()) {
        Some("Bound") => Claim::Bound,
        phase => Claim::Pending(format!(
            "PersistentVolumeClaim {namespace}/{name} is {}; waiting for it to be bound",
            phase.unwrap_or("new")
        )),
    }
}

/// Does Kubernetes' own controller know the volume, and is it free?
fn is_available(volume: Option<&PersistentVolume>) -> bool {
    volume.and_then(|v| v.status.as_ref()?.phase.as_deref()) == Some("Available")
}

/// The claim was deleted and made again: the volume is reserved for one that is gone.
fn has_stale_claim(observed: &Observed) -> bool {
    let reserved = observed.volume.as_ref().and_then(|v| v.spec.as_ref()?.claim_ref.as_ref()?.uid.as_ref());
    let claim = observed.claim.as_ref().and_then(|c| c.metadata.uid.as_ref());
    reserved.is_some_and(|uid| Some(uid) != claim)
}

/// Shown with the volume; set once.
fn capacity(dataset: &CacheDataset, observed: &Observed, status: &CacheDatasetStatus) -> String {
    let existing = observed.volume.as_ref().and_then(|v| v.spec.as_ref()?.capacity.as_ref()?.get("storage").cloned());
    let snapshot = status.snapshot.as_ref().map(|s| s.bytes.max(1).to_string());
    let quota = dataset.spec.cache.tiers.first().map(|t| t.quota.0.clone());
    existing.map(|q| q.0).or(snapshot).or(quota).unwrap_or_else(|| objects::CLAIM_REQUEST.to_owned())
}

fn cache(
    prior: &CacheDatasetStatus,
    progress: &snapshot::Progress,
    preload: Option<&preload::Progress>,
    observed: &Observed,
    workers: WorkerCounts,
) -> larder_api::cache_dataset::CacheStatus {
    match &prior.cache {
        Some(known) if progress.answered == 0 => larder_api::cache_dataset::CacheStatus { workers, ..known.clone() },
        _ => preload::cache_status(progress.published.as_ref(), preload, &observed.statuses, workers),
    }
}

fn origin_bytes(prior: &CacheDatasetStatus, observed: &Observed, desired: usize) -> Option<u64> {
    let answers = || observed.statuses.values().filter_map(|s| s.as_ref().ok());
    let sum: u64 = answers().map(|s| s.origin_bytes).sum();
    // A worker that is away takes its count along.
    if answers().count() < desired { Some(sum.max(prior.origin_bytes.unwrap_or(0))) } else { Some(sum) }
}

/// Orders for each worker that answers and has others.
fn orders(
    dataset: &CacheDataset,
    observed: &Observed,
    inputs: &Inputs<'_>,
    listing_id: &str,
    progress: &snapshot::Progress,
    members: &Members,
) -> Vec<(String, IpAddr, Config)> {
    let source = &dataset.spec.source;
    let quotas: Vec<_> = dataset.spec.cache.tiers.iter().map(|t| quantity::bytes(&t.quota).unwrap_or(u64::MAX)).collect();
    let common = Config {
        generation: String::new(),
        source: Some(Source {
            uri: source.folder_uri(),
            endpoint: source.endpoint.clone().unwrap_or_default(),
            region: source.region.clone().unwrap_or_default(),
            path_style: source.path_style,
            include: source.include.clone(),
            exclude: source.exclude.clone(),
            anonymous: source.credentials.anonymous.is_some(),
            credentials_generation: inputs.credentials_generation.clone(),
            ca_generation: inputs.ca_generation.clone(),
        }),
        quota_bytes: quotas.iter().copied().fold(0, u64::saturating_add),
        disk_quota_bytes: quotas,
        listing_id: String::new(),
        snapshot: progress.digest.clone().unwrap_or_default(),
        preload: dataset.spec.preload.policy == PreloadPolicy::OnCreate,
        retry: dataset.annotations().get(labels::RETRY).and_then(|r| r.parse().ok()).unwrap_or(0),
        replicas: dataset.spec.cache.copies(),
        preload_bandwidth: 0,
        preload_paths: dataset.spec.preload.paths.clone(),
    };
    let bandwidth = dataset.spec.preload.bandwidth.as_ref().and_then(quantity::bytes);
    let mut orders = vec![];
    for worker in observed.workers.iter().filter(|w| w.ready) {
        let (Some(address), Some(Ok(status))) = (worker.address, observed.statuses.get(&worker.node)) else { continue };
        let mut config = common.clone();
        let lists =
            progress.lister.as_ref() == Some(&worker.node) || status.listing.as_ref().is_some_and(|l| l.id == listing_id);
        if lists {
            config.listing_id = listing_id.to_owned();
        }
        config.preload_bandwidth = bandwidth.map_or(0, |all| bandwidth_of(&worker.node, all, members));
        config.generation = blake3::hash(&config.encode_to_vec()).to_hex()[..16].to_owned();
        if status.generation != config.generation {
            orders.push((worker.node.clone(), address, config));
        }
    }
    orders
}

/// A member's part of the bandwidth: as much of it as of the data. Never 0, which means no limit.
fn bandwidth_of(node: &str, all: u64, members: &Members) -> u64 {
    let weight = |m: &Member| u128::from(m.weight);
    let sum: u128 = members.members.iter().map(weight).sum();
    let own = members.members.iter().find(|m| m.node == node).map_or(0, weight);
    u64::try_from(u128::from(all) * own / sum.max(1)).unwrap_or(u64::MAX).max(1)
}

/// Is there a copy, and the spec names no original?
fn is_unasked<K, C>(original: &Referenced<K>, copy: Option<&C>) -> bool {
    matches!(original, Referenced::NotAsked) && copy.is_some()
}

/// Pods that were not told yet of the copies that are in place now, or gone.
fn to_tell(observed: &Observed, inputs: &Inputs<'_>, told: &str) -> Vec<String> {
    let in_place = inputs.secret.as_ref().is_none_or(|s| objects::is_applied(s, observed.secret_copy.as_deref()))
        && inputs.ca.as_ref().is_none_or(|c| objects::is_applied(c, observed.ca_copy.as_deref()))
        && !is_unasked(&observed.secret, observed.secret_copy.as_ref())
        && !is_unasked(&observed.ca, observed.ca_copy.as_ref());
    if !in_place {
        return vec![];
    }
    // A pod that never had a copy need not be told that there is none.
    let before = |pod: &str| Some(observed.told.get(pod)?.as_deref().unwrap_or("."));
    let untold = |w: &&super::pods::Worker| w.ready && before(&w.pod).is_some_and(|before| before != told);
    observed.workers.iter().filter(untold).map(|w| w.pod.clone()).collect()
}

fn requeue(status: &CacheDatasetStatus, progress: &snapshot::Progress, ordered: bool, input_missing: bool) -> Duration {
    let condition = |type_: &str| status.conditions.iter().find(|c| c.type_ == type_);
    let is = |type_: &str, reason: &str| condition(type_).is_some_and(|c| c.reason == reason);
    let moves = ordered
        || (progress.answered > 0 && !progress.is_complete())
        || is(types::PRELOADED, reasons::preload::RUNNING)
        || is(types::READY, reasons::ready::CLAIM_PENDING);
    let settled = condition(types::READY).is_some_and(|c| c.status == "True");
    match (moves, settled && !input_missing) {
        (true, _) => POLL,
        (false, false) => LOOK_AGAIN,
        (false, true) => SETTLED,
    }
}

#[cfg(test)]
mod tests;
