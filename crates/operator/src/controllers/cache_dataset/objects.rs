//! What the objects of a dataset look like.
//!
//! Each carries the hash of its own text as an annotation. What is applied is compared with what is there: everything in it must
//! be there with the same value, the rest is the API server's. The hash catches what was *removed* from a text since.

mod daemon_set;
mod volume;

pub(super) use daemon_set::{daemon_set, file_origin};
pub(super) use volume::{CLAIM_REQUEST, claim, volume, volume_name};

use crate::settings::Settings;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret, Service},
};
use kube::{Resource, ResourceExt as _, api::ObjectMeta};
use larder_api::{CacheDataset, labels};
use larder_core::{names, placement::Members};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Annotation: hash of the text that was applied.
const APPLIED: &str = "larder.dev/applied";
/// Key in the copies of Secret and ConfigMap: `resourceVersion` of the original.
pub(super) const GENERATION_KEY: &str = "generation";
/// Key of the CA in its ConfigMap copy.
const CA_KEY: &str = "ca.crt";
/// Keys of a Secret that are copied, others stay where they are.
const CREDENTIAL_KEYS: [&str; 6] =
    ["accessKeyId", "secretAccessKey", "sessionToken", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];

/// Whose objects these are.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub uid: String,
    pub name: String,
    pub namespace: String,
}

impl Owner {
    /// Nothing if the API server sent no uid.
    pub(super) fn of(dataset: &CacheDataset) -> Option<Self> {
        Some(Self { uid: dataset.uid()?, name: dataset.name_any(), namespace: dataset.namespace()? })
    }

    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        [
            (labels::MANAGED_BY, labels::MANAGED_BY_LARDER),
            (labels::DATASET_UID, &self.uid),
            (labels::DATASET_NAME, &self.name),
            (labels::DATASET_NAMESPACE, &self.namespace),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into()
    }

    /// Labels that a worker's pods are selected by.
    pub(super) fn worker_selector(&self) -> BTreeMap<String, String> {
        [(labels::DATASET_UID, self.uid.as_str()), (labels::COMPONENT, labels::COMPONENT_WORKER)]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into()
    }

    fn worker_labels(&self) -> BTreeMap<String, String> {
        let mut all = self.labels();
        all.extend(self.worker_selector());
        all
    }

    fn meta(&self, name: String, namespace: Option<&str>, labels: BTreeMap<String, String>) -> ObjectMeta {
        ObjectMeta { name: Some(name), namespace: namespace.map(str::to_owned), labels: Some(labels), ..ObjectMeta::default() }
    }

    pub(super) fn credentials_name(&self) -> String {
        format!("{}-credentials", self.uid)
    }

    pub(super) fn ca_name(&self) -> String {
        format!("{}-ca", self.uid)
    }
}

/// Has the Secret a pair of keys that workers understand? The name of what is missing otherwise.
pub(super) fn missing_credential(secret: &Secret) -> Option<&'static str> {
    let has = |keys: [&str; 2]| keys.iter().any(|k| secret.data.iter().any(|d| d.get(*k).is_some_and(|v| !v.0.is_empty())));
    if !has(["accessKeyId", "AWS_ACCESS_KEY_ID"]) {
        Some("accessKeyId")
    } else if !has(["secretAccessKey", "AWS_SECRET_ACCESS_KEY"]) {
        Some("secretAccessKey")
    } else {
        None
    }
}

/// Copy of the user's Secret for the workers.
pub(super) fn credentials(owner: &Owner, settings: &Settings, source: &Secret) -> Secret {
    let mut data: BTreeMap<String, ByteString> =
        CREDENTIAL_KEYS.iter().filter_map(|key| Some(((*key).to_owned(), source.data.as_ref()?.get(*key)?.clone()))).collect();
    data.insert(GENERATION_KEY.into(), ByteString(source.resource_version().unwrap_or_default().into_bytes()));
    hashed(Secret {
        metadata: owner.meta(owner.credentials_name(), Some(&settings.namespace), owner.labels()),
        type_: Some("Opaque".into()),
        data: Some(data),
        ..Secret::default()
    })
}

/// Copy of the user's CA for the workers.
pub(super) fn ca(owner: &Owner, settings: &Settings, source: &ConfigMap, pem: &str) -> ConfigMap {
    let generation = source.resource_version().unwrap_or_default();
    hashed(ConfigMap {
        metadata: owner.meta(owner.ca_name(), Some(&settings.namespace), owner.labels()),
        data: Some([(CA_KEY.to_owned(), pem.to_owned()), (GENERATION_KEY.to_owned(), generation)].into()),
        ..ConfigMap::default()
    })
}

/// The member list.
pub(super) fn members(owner: &Owner, settings: &Settings, members: &Members) -> ConfigMap {
    let text = serde_json::to_string(members).expect("a list of names and numbers is JSON");
    hashed(ConfigMap {
        metadata: owner.meta(names::members_config_map(&owner.uid), Some(&settings.namespace), owner.labels()),
        data: Some([(names::MEMBERS_KEY.to_owned(), text)].into()),
        ..ConfigMap::default()
    })
}

/// The Service whose EndpointSlices tell everyone where the workers are, ready or not.
pub(super) fn service(owner: &Owner, settings: &Settings) -> Service {
    let ports: Vec<Value> =
        [("data", names::WORKER_DATA_PORT), ("control", names::WORKER_CONTROL_PORT), ("admin", names::WORKER_ADMIN_PORT)]
            .iter()
            .map(|(name, port)| json!({ "name": name, "port": port, "protocol": "TCP", "targetPort": name }))
            .collect();
    hashed(from_template(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owner.meta(names::worker_name(&owner.uid), Some(&settings.namespace), owner.worker_labels()),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": owner.worker_selector(),
            "ports": ports,
        },
    })))
}

fn from_template<K: DeserializeOwned>(template: Value) -> K {
    // Only names and numbers are filled in; the tests build every template.
    serde_json::from_value(template).expect("the template fits its kind")
}

fn hashed<K: Resource + Serialize>(mut object: K) -> K {
    let text = serde_json::to_vec(&object).expect("an API object is JSON");
    let hash = blake3::hash(&text).to_hex()[..16].to_owned();
    object.annotations_mut().insert(APPLIED.into(), hash);
    object
}

/// Is everything of `wanted` in `found`? What `found` has beyond is the API server's.
pub(super) fn is_applied<K: Serialize>(wanted: &K, found: Option<&K>) -> bool {
    let value = |k: &K| serde_json::to_value(k).expect("an API object is JSON");
    found.is_some_and(|found| contains(&value(found), &value(wanted)))
}

fn contains(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(f), Value::Object(w)) => w.iter().all(|(k, w)| match f.get(k) {
            Some(f) => contains(f, w),
            None => is_empty(w),
        }),
        (Value::Array(f), Value::Array(w)) => f.len() == w.len() && f.iter().zip(w).all(|(f, w)| contains(f, w)),
        (f, w) => f == w,
    }
}

/// The API server drops what is empty.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.values().all(is_empty),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{mk_dataset, mk_secret, settings};
    use super::*;

    #[test]
    fn only_keys_of_an_account_are_copied() {
        let mut source = mk_secret(&[("accessKeyId", "a"), ("secretAccessKey", "b"), ("kubeconfig", "c")]);
        source.metadata.resource_version = Some("77".into());
        let copy = credentials(&Owner::of(&mk_dataset()).unwrap(), &settings(), &source);
        let data = copy.data.unwrap();
        assert_eq!(data.keys().collect::<Vec<_>>(), ["accessKeyId", "generation", "secretAccessKey"]);
        assert_eq!(data["generation"].0, b"77");
    }

    #[test]
    fn a_secret_without_a_pair_of_keys_is_told_what_it_lacks() {
        assert_eq!(missing_credential(&mk_secret(&[("accessKeyId", "a"), ("secretAccessKey", "b")])), None);
        assert_eq!(missing_credential(&mk_secret(&[("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")])), None);
        assert_eq!(missing_credential(&mk_secret(&[("accessKeyId", "a")])), Some("secretAccessKey"));
        assert_eq!(missing_credential(&mk_secret(&[("accessKeyId", ""), ("secretAccessKey", "b")])), Some("accessKeyId"));
    }

    #[test]
    fn what_the_server_adds_is_no_difference_and_what_was_removed_is() {
        let owner = Owner::of(&mk_dataset()).unwrap();
        let wanted = service(&owner, &settings());
        let mut found = wanted.clone();
        found.metadata.uid = Some("x".into());
        found.spec.as_mut().unwrap().cluster_ips = Some(vec!["None".into()]);
        assert!(is_applied(&wanted, Some(&found)));
        assert!(!is_applied(&wanted, None));
        let mut changed = found.clone();
        changed.spec.as_mut().unwrap().publish_not_ready_addresses = Some(false);
        assert!(!is_applied(&wanted, Some(&changed)));
        let list = |nodes: &[&str]| members(&owner, &settings(), &super::super::testing::members(nodes));
        assert!(!is_applied(&list(&["a"]), Some(&list(&["a", "b"]))));
    }

    #[test]
    fn a_key_that_is_no_longer_wanted_makes_a_difference() {
        let (mut wanted, mut found) = (ConfigMap::default(), ConfigMap::default());
        found.data = Some([("a".into(), "1".into()), ("b".into(), "2".into())].into());
        wanted.data = Some([("a".into(), "1".into())].into());
        assert!(!is_applied(&hashed(wanted), Some(&hashed(found))));
    }

    #[test]
    fn everything_carries_the_labels() {
        let owner = Owner::of(&mk_dataset()).unwrap();
        let s = service(&owner, &settings());
        assert_eq!(s.labels()["larder.dev/dataset-uid"], owner.uid);
        assert_eq!(s.labels()["larder.dev/dataset-name"], "imagenet");
        assert_eq!(s.labels()["larder.dev/dataset-namespace"], "vision");
        assert_eq!(s.labels()["app.kubernetes.io/managed-by"], "larder");
    }
}
