//! What the API server knows of a dataset: its newest snapshot and how files should look.
//!
//! Only that is read. During an upgrade the objects may be of a newer CRD than this plugin; what it does not know of them must not
//! keep a pod from its data.

use crate::state::Record;
use kube::{Api, Resource as _, core::ObjectMeta};
use larder_api::{
    CacheDataset,
    cache_dataset::{Mount as Look, MountMode},
    conditions::types,
};
use larder_core::names;
use larder_fuse::protocol::mounter::{Mode, Mount};
use serde::{Deserialize, Deserializer, de::Error as _};
use std::{borrow::Cow, time::Duration};
use tokio::time::Instant;

/// Longest wait for one answer of the API server.
const API_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at a dataset that is not ready.
const PAUSE: Duration = Duration::from_secs(1);

/// Why there is nothing to mount.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DatasetError {
    #[error("get CacheDataset {dataset}: {source}")]
    Get { dataset: String, source: kube::Error },
    #[error("get CacheDataset {0}: no answer of the API server within {API_PATIENCE:?}")]
    Silent(String),
    #[error("CacheDataset {0} does not exist")]
    Missing(String),
    #[error(
        "CacheDataset {dataset} was deleted and made again: it has UID {found}, the volume is of {wanted}; delete the claim's pods and the PersistentVolume, the operator makes a new one"
    )]
    OtherUid { dataset: String, found: String, wanted: String },
    #[error("CacheDataset {0} is being deleted")]
    Deleting(String),
    #[error("CacheDataset {dataset} is not ready: {reason}: {message}")]
    NotReady { dataset: String, reason: String, message: String },
    #[error("CacheDataset {dataset} has a status that is not Larder's: {detail}")]
    Status { dataset: String, detail: &'static str },
}

impl DatasetError {
    /// Is it worth waiting for, within one call?
    fn passes(&self) -> bool {
        matches!(self, Self::NotReady { .. } | Self::Get { .. } | Self::Silent(_))
    }
}

/// The part of a CacheDataset that mounting needs.
#[derive(Clone, Debug, Deserialize)]
struct Seen {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: SeenSpec,
    #[serde(default)]
    status: Option<SeenStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct SeenSpec {
    #[serde(deserialize_with = "look")]
    mount: Look,
}

/// A mode of a newer release means no more than the default.
fn look<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Look, D::Error> {
    let mut look = serde_json::Value::deserialize(deserializer)?;
    if let Some(fields) = look.as_object_mut()
        && fields.get("mode").is_some_and(|mode| MountMode::deserialize(mode).is_err())
    {
        fields.remove("mode");
    }
    serde_json::from_value(look).map_err(D::Error::custom)
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct SeenStatus {
    snapshot: Option<SeenSnapshot>,
    conditions: Vec<SeenCondition>,
}

#[derive(Clone, Debug, Deserialize)]
struct SeenSnapshot {
    id: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct SeenCondition {
    #[serde(rename = "type")]
    type_: String,
    reason: String,
    message: String,
}

impl kube::Resource for Seen {
    type DynamicType = ();
    type Scope = kube::core::NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        CacheDataset::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        CacheDataset::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        CacheDataset::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        CacheDataset::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Reads CacheDatasets.
#[derive(Clone)]
pub(crate) struct Datasets {
    client: kube::Client,
}

impl Datasets {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self { client }
    }

    /// The newest snapshot; waits until `deadline` for one.
    pub(crate) async fn newest(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        deadline: Instant,
    ) -> Result<Record, DatasetError> {
        loop {
            match self.look(namespace, name, uid).await {
                Err(e) if e.passes() && Instant::now() + PAUSE < deadline => tokio::time::sleep(PAUSE).await,
                result => return result,
            }
        }
    }

    /// The UID of a dataset that is there to stay.
    pub(crate) async fn uid(&self, namespace: &str, name: &str) -> Result<String, DatasetError> {
        let metadata = self.get(namespace, name).await?.metadata;
        let dataset = format!("{namespace}/{name}");
        if metadata.deletion_timestamp.is_some() {
            return Err(DatasetError::Deleting(dataset));
        }
        let uid = metadata.uid.filter(|uid| names::is_uid(uid));
        uid.ok_or(DatasetError::Status { dataset, detail: "metadata.uid is no UID" })
    }

    async fn look(&self, namespace: &str, name: &str, uid: &str) -> Result<Record, DatasetError> {
        choose(&self.get(namespace, name).await?, namespace, name, uid)
    }

    async fn get(&self, namespace: &str, name: &str) -> Result<Seen, DatasetError> {
        let dataset = format!("{namespace}/{name}");
        let api = Api::<Seen>::namespaced(self.client.clone(), namespace);
        match tokio::time::timeout(API_PATIENCE, api.get_opt(name)).await {
            Ok(Ok(Some(object))) => Ok(object),
            Ok(Ok(None)) => Err(DatasetError::Missing(dataset)),
            Ok(Err(source)) => Err(DatasetError::Get { dataset, source }),
            Err(_) => Err(DatasetError::Silent(dataset)),
        }
    }
}

/// What to mount of this object, if it is the one that the volume was made for.
fn choose(object: &Seen, namespace: &str, name: &str, uid: &str) -> Result<Record, DatasetError> {
    let dataset = format!("{namespace}/{name}");
    let found = object.meta().uid.clone().unwrap_or_default();
    if found != uid {
        return Err(DatasetError::OtherUid { dataset, found, wanted: uid.to_owned() });
    }
    if object.metadata.deletion_timestamp.is_some() {
        return Err(DatasetError::Deleting(dataset));
    }
    let status = object.status.as_ref();
    let Some(snapshot) = status.and_then(|s| s.snapshot.as_ref()) else {
        let ready = status.and_then(|s| s.conditions.iter().find(|c| c.type_ == types::READY));
        let (reason, message) = match ready {
            Some(c) => (c.reason.clone(), c.message.clone()),
            None => ("NoStatus".to_owned(), "the operator has not looked at it yet; is it running?".to_owned()),
        };
        return Err(DatasetError::NotReady { dataset, reason, message });
    };
    if !names::is_digest(&snapshot.id) {
        return Err(DatasetError::Status { dataset, detail: "status.snapshot.id is no digest" });
    }
    let look = &object.spec.mount;
    let mount = Mount {
        identity: names::mount_identity(uid, &snapshot.id),
        dataset_uid: uid.to_owned(),
        snapshot: snapshot.id.clone(),
        uid: look.uid,
        gid: look.gid,
        file_mode: look.file_mode,
        dir_mode: look.dir_mode,
        mode: match look.mode {
            MountMode::Auto => Mode::Auto,
            MountMode::Passthrough => Mode::Passthrough,
            MountMode::NoOpen => Mode::NoOpen,
        },
    };
    Ok(Record::new(mount, namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const UID: &str = "0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f";

    fn mk_dataset(status: serde_json::Value) -> Seen {
        serde_json::from_value(json!({
            "apiVersion": "larder.dev/v1alpha1", "kind": "CacheDataset",
            "metadata": {"name": "imagenet", "namespace": "vision", "uid": UID},
            "spec": {
                "source": {"uri": "s3://datasets/imagenet/", "credentials": {"anonymous": {}}},
                "cache": {"tiers": [{"name": "nvme", "quota": "1Ti"}]},
                "mount": {"uid": 1000, "fileMode": 0o440, "mode": "NoOpen"},
            },
            "status": status,
        }))
        .unwrap()
    }

    fn choose_of(object: &Seen) -> Result<Record, DatasetError> {
        choose(object, "vision", "imagenet", UID)
    }

    #[test]
    fn the_newest_snapshot_is_mounted_as_the_spec_says() {
        let id = "ab".repeat(32);
        let record = choose_of(&mk_dataset(json!({"snapshot": {"id": id, "files": 1, "bytes": 2}}))).unwrap();
        assert_eq!(record.mount.snapshot, id);
        assert_eq!(
            (record.mount.uid, record.mount.gid, record.mount.file_mode, record.mount.dir_mode),
            (1000, 0, 0o440, 0o555)
        );
        assert_eq!(record.mount.mode, Mode::NoOpen);
    }

    #[test]
    fn a_dataset_of_a_newer_release_is_mounted_all_the_same() {
        let id = "ab".repeat(32);
        let object: Seen = serde_json::from_value(json!({
            "apiVersion": "larder.dev/v1alpha1", "kind": "CacheDataset",
            "metadata": {"name": "imagenet", "namespace": "vision", "uid": UID, "newField": 1},
            "spec": {
                // Another kind of source, a policy and fields that this release does not know, required ones missing.
                "source": {"git": {"url": 1}},
                "preload": {"policy": "WhenTheMoonIsFull"},
                "mount": {"uid": 7, "mode": "Telepathy", "quirks": ["a"]},
            },
            "status": {
                "snapshot": {"id": id, "files": "many", "shards": [1]},
                "preload": {"bytesDone": "1Gi"},
                "conditions": [{"type": "Frozen", "status": "Perhaps", "severity": 3}],
            },
        }))
        .unwrap();
        let record = choose_of(&object).unwrap();
        assert_eq!((record.mount.snapshot, record.mount.uid, record.mount.file_mode), (id, 7, 0o444));
        assert_eq!(record.mount.mode, Mode::Auto);
    }

    #[test]
    fn a_dataset_without_snapshot_says_why() {
        let condition = json!({"type": "Ready", "status": "False", "reason": "AccessDenied", "message": "s3: 403", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let error = choose_of(&mk_dataset(json!({"conditions": [condition]}))).unwrap_err();
        assert!(error.to_string().contains("vision/imagenet is not ready: AccessDenied: s3: 403"), "{error}");
        assert!(error.passes());
        assert!(matches!(choose_of(&mk_dataset(json!(null))), Err(DatasetError::NotReady { .. })));
    }

    #[test]
    fn a_dataset_of_the_same_name_is_not_the_same_dataset() {
        let object = mk_dataset(json!({"snapshot": {"id": "ab".repeat(32), "files": 1, "bytes": 2}}));
        let other = UID.replace('0', "1");
        assert!(matches!(choose(&object, "vision", "imagenet", &other), Err(DatasetError::OtherUid { .. })));
    }

    #[test]
    fn what_is_no_digest_never_becomes_a_path() {
        let object = mk_dataset(json!({"snapshot": {"id": "../../etc", "files": 1, "bytes": 2}}));
        assert!(matches!(choose_of(&object), Err(DatasetError::Status { .. })));
    }
}
