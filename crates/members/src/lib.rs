//! Who owns (ConfigMap `<uid>-members`, written by the operator) and where they are (EndpointSlices of Service `worker-<uid>`);
//! and whose certificates count (ConfigMap `larder-authority`).
//!
//! ```text
//! ConfigMap ──┐
//!             ├─► Index ─► Roster per dataset (last known; never emptied by a lost watch)
//! EndpointSlice┘
//! ```
//!
//! A crate of its own because the daemons of a node need it and little else of Kubernetes. Only reads. When the API server is
//! away the last known list stands: losing the control plane must not stop a read.
#![forbid(unsafe_code)]

mod authority;
mod index;

pub use authority::bundle;

use futures::StreamExt as _;
use index::Index;
use k8s_openapi::api::{core::v1::ConfigMap, discovery::v1::EndpointSlice};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use larder_peer::Roster;
use parking_lot::RwLock;
use std::sync::Arc;
use tokio::sync::watch;

/// Label that all objects of a dataset carry.
const UID_LABEL: &str = "larder.dev/dataset-uid";

/// Follows the member lists of one dataset or of all datasets of a namespace. Clones share the watch; it ends with the last one.
#[derive(Clone, Debug)]
pub struct Watch {
    index: Arc<RwLock<Index>>,
    changed: watch::Receiver<u64>,
    _tasks: Arc<Tasks>,
}

#[derive(Debug)]
struct Tasks(Vec<tokio::task::JoinHandle<()>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Watch {
    /// Starts to follow; returns at once, the first rosters arrive with the first answers of the API server.
    #[must_use]
    pub fn start(client: Client, namespace: &str, dataset_uid: Option<&str>) -> Self {
        let index = Arc::new(RwLock::new(Index::default()));
        let (tx, changed) = watch::channel(0);
        let tx = Arc::new(tx);
        let selector = dataset_uid.map_or_else(|| UID_LABEL.to_owned(), |uid| format!("{UID_LABEL}={uid}"));
        let config = watcher::Config::default().labels(&selector);

        let maps = watcher(Api::<ConfigMap>::namespaced(client.clone(), namespace), config.clone()).default_backoff();
        let slices = watcher(Api::<EndpointSlice>::namespaced(client, namespace), config).default_backoff();
        let tasks = Tasks(vec![
            tokio::spawn(follow(maps, Arc::clone(&index), Arc::clone(&tx), Index::config_map)),
            tokio::spawn(follow(slices, Arc::clone(&index), tx, Index::endpoint_slice)),
        ]);
        Self { index, changed, _tasks: Arc::new(tasks) }
    }

    /// What is known of a dataset now; empty when nothing is.
    #[must_use]
    pub fn roster(&self, dataset_uid: &str) -> Arc<Roster> {
        self.index.read().roster(dataset_uid)
    }

    /// Waits until any roster is not what it was when this clone last waited.
    pub async fn changed(&mut self) {
        if self.changed.changed().await.is_err() {
            // The watch tasks are gone, which only happens on the way down.
            std::future::pending::<()>().await;
        }
    }
}

async fn follow<K>(
    stream: impl futures::Stream<Item = watcher::Result<watcher::Event<K>>>,
    index: Arc<RwLock<Index>>,
    changed: Arc<watch::Sender<u64>>,
    take: fn(&mut Index, index::Change<K>) -> bool,
) {
    let mut stream = std::pin::pin!(stream);
    while let Some(event) = stream.next().await {
        let change = match event {
            Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => index::Change::Set(object),
            Ok(watcher::Event::Delete(object)) => index::Change::Gone(object),
            // After a lost watch the list is told again. What vanished meanwhile stays known until its dataset is
            // asked for no more: a stale address costs a refused connection, a missing one costs the read.
            Ok(watcher::Event::Init | watcher::Event::InitDone) => continue,
            Err(error) => {
                tracing::warn!(%error, "watch of member lists interrupted; going on with the last known ones");
                continue;
            }
        };
        if take(&mut index.write(), change) {
            changed.send_modify(|n| *n += 1);
        }
    }
}
