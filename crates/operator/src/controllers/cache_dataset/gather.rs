//! Reads everything that a decision needs.
//!
//! What is watched comes from the stores; what the operator may not watch (users' Secrets and ConfigMaps) or must not see late
//! (member list, claim, volume) is read by name; the rest is asked of the workers.

use super::{
    Context,
    error::{Error, is_not_found},
    failures::Refusals,
    objects::{self, Owner},
    pods::{self, Worker},
    snapshot::Statuses,
    workers,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Event, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service},
};
use kube::{
    Api, Resource, ResourceExt as _,
    api::ListParams,
    runtime::reflector::{ObjectRef, Store},
};
use larder_api::{CacheDataset, labels};
use larder_core::{
    format::{LaterFormat, Versioned},
    names,
    placement::Members,
};
use serde::de::DeserializeOwned;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::Arc,
};

/// Pods whose Events are asked for in one reconcile; messages name no more than these.
const ASKED_FOR_EVENTS: usize = 5;
/// A younger pod is still on its normal way.
const START_TIME: SignedDuration = SignedDuration::from_secs(5);

/// What was seen.
#[derive(Debug)]
pub(super) struct Observed {
    pub owner: Owner,
    pub now: Timestamp,
    pub secret: Referenced<Secret>,
    pub ca: Referenced<ConfigMap>,
    pub secret_copy: Option<Arc<Secret>>,
    pub ca_copy: Option<Arc<ConfigMap>>,
    pub service: Option<Arc<Service>>,
    pub daemon_set: Option<Arc<DaemonSet>>,
    pub daemon_set_warning: Option<String>,
    pub members: Option<ConfigMap>,
    pub volume: Option<PersistentVolume>,
    pub claim: Option<PersistentVolumeClaim>,
    pub nodes: Vec<Arc<Node>>,
    pub workers: Vec<Worker>,
    /// What pods were last told of their inputs: name → annotation.
    pub told: BTreeMap<String, Option<String>>,
    pub statuses: Statuses,
    pub absent_since: BTreeMap<String, Timestamp>,
    /// What of the plan could not be brought about; known afterwards.
    pub refused: Refusals,
}

/// An object that a spec may refer to.
#[derive(Debug)]
pub(super) enum Referenced<K> {
    NotAsked,
    Missing,
    Found(Box<K>),
}

impl Observed {
    /// The member list as it stands; an unreadable one counts as none and is written again.
    pub(super) fn current_members(&self) -> Option<Members> {
        members_of(self.members.as_ref()?)
    }
}

/// The member list in its ConfigMap, if it can be read.
pub(super) fn members_of(map: &ConfigMap) -> Option<Members> {
    serde_json::from_str(members_text(map)?).ok()
}

fn members_text(map: &ConfigMap) -> Option<&str> {
    map.data.as_ref()?.get(names::MEMBERS_KEY).map(String::as_str)
}

/// One of a later format must not be written over: all shares would be dealt out anew.
fn expect_known(members: Option<&ConfigMap>) -> Result<(), Error> {
    let version = members.and_then(members_text).and_then(|text| serde_json::from_str(text).ok());
    let Versioned { version } = version.unwrap_or(Versioned { version: 0 });
    LaterFormat::refuse(version, Members::FORMAT).map_err(|source| Error::Members { source })
}

pub(super) async fn gather(dataset: &CacheDataset, context: &Context) -> Result<Observed, Error> {
    let owner = Owner::of(dataset).ok_or(Error::NoUid)?;
    let (client, ours) = (&context.client, context.settings.namespace.as_str());
    let source = &dataset.spec.source;

    let secrets: Api<Secret> = Api::namespaced(client.clone(), &owner.namespace);
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), &owner.namespace);
    let lists: Api<ConfigMap> = Api::namespaced(client.clone(), ours);
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &owner.namespace);
    let (members, volume) = (names::members_config_map(&owner.uid), objects::volume_name(&owner));
    // The volume before the claim: one that is reserved for another claim than that seen later is stale for sure.
    let volume_and_claim = async { Ok::<_, Error>((get(&volumes, &volume).await?, get(&claims, &owner.name).await?)) };
    let (secret, ca, members, (volume, claim)) = tokio::try_join!(
        referenced(&secrets, source.credentials.secret_ref.as_ref().map(|r| r.name.as_str())),
        referenced(&config_maps, source.ca.as_ref().map(|ca| ca.config_map_ref.name.as_str())),
        get(&lists, &members),
        volume_and_claim,
    )?;

    expect_known(members.as_ref())?;
    let stores = &context.stores;
    let pods = worker_pods(&stores.pods, &owner.uid);
    let daemon_set = stored(&stores.daemon_sets, &names::worker_name(&owner.uid), ours);
    let now = now();
    let warnings = warnings(&pods, context, now).await?;
    let daemon_set_warning = match &daemon_set {
        Some(set) if pods.is_empty() => last_warning(&set.uid().unwrap_or_default(), context).await?,
        _ => None,
    };
    let mut workers = pods::workers(&pods, &warnings);
    let of = context.workers(&owner.uid);
    let (statuses, mut troubles) = tokio::join!(workers::statuses(of, &workers), workers::troubles(of, &workers));
    for worker in &mut workers {
        worker.trouble = worker.trouble.take().or_else(|| troubles.remove(&worker.node));
    }

    Ok(Observed {
        now,
        secret,
        ca,
        secret_copy: stored(&stores.secrets, &owner.credentials_name(), ours),
        ca_copy: stored(&stores.config_maps, &owner.ca_name(), ours),
        service: stored(&stores.services, &names::worker_name(&owner.uid), ours),
        daemon_set,
        daemon_set_warning,
        members,
        volume,
        claim,
        nodes: stores.nodes.state(),
        workers,
        told: pods.iter().map(|p| (p.name_any(), p.annotations().get(super::apply::TOLD).cloned())).collect(),
        statuses,
        absent_since: context.absent.lock().get(&owner.uid).cloned().unwrap_or_default(),
        refused: Refusals::default(),
        owner,
    })
}

/// Status carries whole seconds.
pub(super) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

pub(super) fn worker_pods(store: &Store<Pod>, uid: &str) -> Vec<Arc<Pod>> {
    store.state_filter(|p| p.labels().get(labels::DATASET_UID).is_some_and(|u| u == uid))
}

fn stored<K>(store: &Store<K>, name: &str, namespace: &str) -> Option<Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store.get(&ObjectRef::new(name).within(namespace))
}

/// An object by name, or nothing.
pub(super) async fn get<K>(api: &Api<K>, name: &str) -> Result<Option<K>, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    api.get_opt(name).await.map_err(|source| Error::Get { object: format!("{} {name}", K::kind(&())), source })
}

async fn referenced<K>(api: &Api<K>, name: Option<&str>) -> Result<Referenced<K>, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let Some(name) = name else { return Ok(Referenced::NotAsked) };
    Ok(get(api, name).await?.map_or(Referenced::Missing, |k| Referenced::Found(Box::new(k))))
}

/// The last warning of each pod that should be ready by now: a volume that does not mount shows in Events only.
async fn warnings(pods: &[Arc<Pod>], context: &Context, now: Timestamp) -> Result<BTreeMap<String, String>, Error> {
    let not_ready: BTreeSet<String> =
        pods::workers(pods, &BTreeMap::new()).into_iter().filter(|w| !w.ready && w.trouble.is_none()).map(|w| w.pod).collect();
    let late = pods.iter().filter(|p| {
        let born = p.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
        not_ready.contains(&p.name_any()) && now.duration_since(born) > START_TIME
    });
    let mut found = BTreeMap::new();
    for pod in late.take(ASKED_FOR_EVENTS) {
        if let Some(warning) = last_warning(&pod.uid().unwrap_or_default(), context).await? {
            found.insert(pod.name_any(), warning);
        }
    }
    Ok(found)
}

async fn last_warning(uid: &str, context: &Context) -> Result<Option<String>, Error> {
    let api: Api<Event> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    let params = ListParams::default().fields(&format!("involvedObject.uid={uid},type=Warning")).limit(50);
    let events = match api.list(&params).await {
        Ok(events) => events,
        Err(source) if is_not_found(&source) => return Ok(None),
        Err(source) => return Err(Error::List { what: format!("Events of {uid}"), source }),
    };
    // A probe that fails while a worker starts is no news.
    let told = events.items.into_iter().filter(|e| e.reason.as_deref() != Some("Unhealthy"));
    let last = told.max_by_key(|e| {
        let series = e.series.as_ref().and_then(|s| s.last_observed_time.as_ref()).map(|t| t.0);
        series.or_else(|| e.last_timestamp.as_ref().map(|t| t.0)).or_else(|| e.event_time.as_ref().map(|t| t.0))
    });
    Ok(last.map(|e| format!("{}: {}", e.reason.unwrap_or_default(), e.message.unwrap_or_default())))
}
