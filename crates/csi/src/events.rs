//! Events of mounts that have ended, which nobody else can tell: on the dataset, and on each pod that has such a mount.

use crate::state::{Pod, Record};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Resource as _,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use larder_api::CacheDataset;
use larder_core::names;
use std::time::Duration;

/// Reason of these Events.
const REASON: &str = "MountEnded";
/// Longest wait for the API server. An Event that it does not take is lost; what it says is in the log too.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tells.
#[derive(Clone)]
pub(crate) struct Events {
    recorder: Recorder,
    node: String,
}

impl Events {
    pub(crate) fn new(client: Client, node: &str) -> Self {
        let reporter = Reporter { controller: names::DRIVER.to_owned(), instance: Some(node.to_owned()) };
        Self { recorder: Recorder::new(client, reporter), node: node.to_owned() }
    }

    /// The mount of a record has ended, and these pods have it.
    pub(crate) async fn mount_ended(&self, record: &Record, pods: &[Pod], why: &str) {
        let note = format!(
            "the mount of dataset {}/{} on node {} has ended: {why}. Pods that have it get \"Transport endpoint is not connected\" until they are deleted and made again",
            record.dataset_namespace, record.dataset_name, self.node
        );
        let event = Event {
            type_: EventType::Warning,
            reason: REASON.to_owned(),
            note: Some(note),
            action: "Mount".to_owned(),
            secondary: None,
        };
        for regarding in regarding(record, pods) {
            let name = regarding.name.clone();
            match tokio::time::timeout(PATIENCE, self.recorder.publish(&event, &regarding)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(name, %error, "tell that a mount has ended"),
                Err(_) => tracing::warn!(name, "tell that a mount has ended: the API server does not answer"),
            }
        }
    }
}

/// The dataset and the pods.
fn regarding(record: &Record, pods: &[Pod]) -> Vec<ObjectReference> {
    let of = |api_version: &str, kind: &str, name: &str, uid: &str| ObjectReference {
        api_version: Some(api_version.to_owned()),
        kind: Some(kind.to_owned()),
        namespace: Some(record.dataset_namespace.clone()),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    };
    let (version, kind) = (CacheDataset::api_version(&()), CacheDataset::kind(&()));
    let mut all = vec![of(&version, &kind, &record.dataset_name, &record.mount.dataset_uid)];
    all.extend(pods.iter().map(|pod| of("v1", "Pod", &pod.name, &pod.uid)));
    all
}
