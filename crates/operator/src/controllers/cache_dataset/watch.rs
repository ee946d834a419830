//! Follows what a dataset depends on: fills the stores that reconciles read, and queues the datasets that a change concerns.
//!
//! Each kind has its own task. They meet in a queue that is a set: it never holds more than there are datasets, so nobody waits
//! for anybody. A watch that breaks is begun again with back-off; until then its store stands still.

use futures::{Stream, StreamExt as _, stream};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service},
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    core::PartialObjectMeta,
    runtime::{
        Predicate as _, WatchStreamExt as _, predicates,
        reflector::{self, ObjectRef, Store, store::WriterDropped},
        watcher,
    },
};
use larder_api::{CacheDataset, labels};
use larder_core::causes;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use std::{
    collections::HashSet,
    convert::Infallible,
    fmt::Debug,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// What was seen last. In the operator's namespace only objects with our label; Secrets elsewhere are never listed.
pub(super) struct Stores {
    pub datasets: Store<CacheDataset>,
    pub nodes: Store<Node>,
    pub pods: Store<Pod>,
    pub daemon_sets: Store<DaemonSet>,
    pub services: Store<Service>,
    pub config_maps: Store<ConfigMap>,
    pub secrets: Store<Secret>,
}

impl Stores {
    /// Returns when every store was filled once; an error when one never will be, because who fills it is gone.
    pub(super) async fn synced(&self) -> Result<(), WriterDropped> {
        let all = async {
            tokio::try_join!(
                self.datasets.wait_until_ready(),
                self.nodes.wait_until_ready(),
                self.pods.wait_until_ready(),
                self.daemon_sets.wait_until_ready(),
                self.services.wait_until_ready(),
                self.config_maps.wait_until_ready(),
                self.secrets.wait_until_ready(),
            )
        };
        let mut all = std::pin::pin!(all);
        loop {
            match tokio::time::timeout(Duration::from_secs(30), &mut all).await {
                Ok(result) => return result.map(drop),
                Err(_) => {
                    tracing::warn!(
                        "waiting for the first list of all watched kinds; is the CRD installed, and may the operator list them?"
                    );
                }
            }
        }
    }
}

/// Datasets to reconcile.
#[derive(Default)]
struct Queue {
    pending: Mutex<HashSet<ObjectRef<CacheDataset>>>,
    filled: Notify,
}

impl Queue {
    fn push(&self, datasets: impl IntoIterator<Item = ObjectRef<CacheDataset>>) {
        self.pending.lock().extend(datasets);
        self.filled.notify_one();
    }

    async fn pop(&self) -> ObjectRef<CacheDataset> {
        loop {
            {
                let mut pending = self.pending.lock();
                if let Some(next) = pending.iter().next().cloned() {
                    pending.remove(&next);
                    return next;
                }
            }
            self.filled.notified().await;
        }
    }
}

/// Begins to follow all kinds. The tasks end when the set is dropped or at `shutdown`.
pub(super) fn start(
    client: &Client,
    namespace: &str,
    shutdown: &CancellationToken,
) -> (Stores, impl Stream<Item = Result<ObjectRef<CacheDataset>, Infallible>> + use<>, JoinSet<()>) {
    let queue = Arc::new(Queue::default());
    let mut tasks = JoinSet::new();
    let mut follow = Follow { queue: &queue, tasks: &mut tasks, shutdown };
    let ours = || watcher::Config::default().labels(&format!("{}={}", labels::MANAGED_BY, labels::MANAGED_BY_LARDER));

    let (datasets, writer) = reflector::store();
    // Status is ours: what we write there must not wake us.
    let spec_changed = predicates::generation.combine(predicates::finalizers).combine(predicates::annotations);
    let seen = watcher(Api::<CacheDataset>::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .applied_objects()
        .predicate_filter(spec_changed, Default::default());
    follow.spawn(seen, |d: &CacheDataset| vec![ObjectRef::from_obj(d)]);

    let (nodes, writer) = reflector::store();
    let seen = watcher(Api::<Node>::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .modify(slim_node)
        .reflect(writer)
        .applied_objects()
        // A Node that is gone is noticed at the next regular reconcile: nothing is urgent about it.
        .predicate_filter(node_matters, Default::default());
    let all = datasets.clone();
    follow.spawn(seen, move |_: &Node| all.state().iter().map(|d| ObjectRef::from_obj(&**d)).collect());

    let worker = format!("{},{}={}", labels::DATASET_UID, labels::COMPONENT, labels::COMPONENT_WORKER);
    let stores = Stores {
        datasets,
        nodes,
        pods: follow.labelled(Api::<Pod>::namespaced(client.clone(), namespace), watcher::Config::default().labels(&worker)),
        daemon_sets: follow.labelled(Api::<DaemonSet>::namespaced(client.clone(), namespace), ours()),
        services: follow.labelled(Api::<Service>::namespaced(client.clone(), namespace), ours()),
        config_maps: follow.labelled(Api::<ConfigMap>::namespaced(client.clone(), namespace), ours()),
        secrets: follow.labelled(Api::<Secret>::namespaced(client.clone(), namespace), ours()),
    };
    // Claims and volumes are read by name; their changes only wake.
    let claims = Api::<PartialObjectMeta<PersistentVolumeClaim>>::all(client.clone());
    let seen = watcher(claims, ours()).default_backoff().touched_objects();
    follow.spawn(seen, |c: &PartialObjectMeta<PersistentVolumeClaim>| dataset_of(c));
    let volumes = Api::<PartialObjectMeta<PersistentVolume>>::all(client.clone());
    let seen = watcher(volumes, ours()).default_backoff().touched_objects();
    follow.spawn(seen, |v: &PartialObjectMeta<PersistentVolume>| dataset_of(v));

    let queue = stream::unfold(queue, |queue| async move {
        let next = queue.pop().await;
        Some((Ok(next), queue))
    });
    (stores, queue, tasks)
}

struct Follow<'a> {
    queue: &'a Arc<Queue>,
    tasks: &'a mut JoinSet<()>,
    shutdown: &'a CancellationToken,
}

impl Follow<'_> {
    /// A kind whose objects carry our labels, kept whole.
    fn labelled<K>(&mut self, api: Api<K>, config: watcher::Config) -> Store<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let (store, writer) = reflector::store();
        let seen = watcher(api, config)
            .default_backoff()
            .modify(|object| object.meta_mut().managed_fields = None)
            .reflect(writer)
            .touched_objects();
        self.spawn(seen, dataset_of::<K>);
        store
    }

    fn spawn<K: Send + 'static>(
        &mut self,
        seen: impl Stream<Item = Result<K, watcher::Error>> + Send + 'static,
        datasets: impl Fn(&K) -> Vec<ObjectRef<CacheDataset>> + Send + 'static,
    ) {
        let (queue, shutdown) = (Arc::clone(self.queue), self.shutdown.clone());
        self.tasks.spawn(async move {
            let mut seen = std::pin::pin!(seen.take_until(shutdown.cancelled_owned()));
            while let Some(next) = seen.next().await {
                match next {
                    Ok(object) => queue.push(datasets(&object)),
                    Err(e) => {
                        let (kind, error) = (std::any::type_name::<K>(), causes::chain(&e));
                        tracing::warn!(kind, error, "watch broke; beginning it again");
                    }
                }
            }
        });
    }
}

/// The dataset that an object of ours belongs to, by its labels.
fn dataset_of<K: Resource>(object: &K) -> Vec<ObjectRef<CacheDataset>> {
    match (object.labels().get(labels::DATASET_NAME), object.labels().get(labels::DATASET_NAMESPACE)) {
        (Some(name), Some(namespace)) => vec![ObjectRef::new(name).within(namespace)],
        _ => vec![],
    }
}

/// Thousands of Nodes with their lists of images would fill the memory; labels, taints and conditions are all that is asked.
fn slim_node(node: &mut Node) {
    node.metadata.managed_fields = None;
    node.metadata.annotations = None;
    if let Some(status) = node.status.take() {
        node.status = Some(k8s_openapi::api::core::v1::NodeStatus { conditions: status.conditions, ..Default::default() });
    }
}

fn node_matters(node: &Node) -> Option<u64> {
    let mut hash = DefaultHasher::new();
    node.labels().hash(&mut hash);
    for taint in node.spec.iter().flat_map(|s| s.taints.iter().flatten()) {
        (&taint.key, &taint.value, &taint.effect).hash(&mut hash);
    }
    super::members::is_ready(node).hash(&mut hash);
    Some(hash.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[tokio::test]
    async fn a_dataset_that_is_queued_twice_comes_once() {
        let queue = Queue::default();
        let (a, b) = (ObjectRef::new("a").within("n"), ObjectRef::new("b").within("n"));
        queue.push([a.clone(), b.clone()]);
        queue.push([a.clone()]);
        let got = HashSet::from([queue.pop().await, queue.pop().await]);
        assert_eq!(got, HashSet::from([a.clone(), b]));
        assert!(queue.pop().now_or_never().is_none());
        queue.push([a.clone()]);
        assert_eq!(queue.pop().await, a);
    }

    #[test]
    fn an_object_without_labels_belongs_to_no_dataset() {
        assert!(dataset_of(&ConfigMap::default()).is_empty());
    }
}
