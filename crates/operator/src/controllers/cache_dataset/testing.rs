//! Builders for tests.

use super::{pods::Worker, snapshot::Statuses};
use crate::settings::{Settings, Tier};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    ByteString,
    api::core::v1::{Node, Pod, Secret},
};
use larder_api::{CacheDataset, cache_dataset::SnapshotStatus};
use larder_core::placement::{Member, Members};
use larder_proto::control::v1::{Listing, Phase, Preload, StatusResponse};
use serde_json::{Value, json};

pub(super) const UID: &str = "0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f";

/// What the API server says when it does not do what it is asked.
pub(super) fn api_error(code: u16, message: &str) -> kube::Error {
    kube::Error::Api(kube::core::Status { code, message: message.into(), ..Default::default() }.boxed())
}

pub(super) fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

pub(super) fn settings() -> Settings {
    Settings {
        namespace: "larder-system".into(),
        image: "larder:test".into(),
        pull_policy: "Never".into(),
        pull_secrets: vec![],
        tiers: [("nvme".to_owned(), mk_tier())].into(),
        file_origins: vec!["/shared".into()],
        worker_service_account: "larder-worker".into(),
        worker_log: "info".into(),
        member_grace: SignedDuration::from_mins(10),
        startup_taint: false,
        authority: Some("larder-operator.larder-system.svc:7480".into()),
    }
}

pub(super) fn mk_tier() -> Tier {
    Tier { path: "/mnt/nvme0".into(), floor: None }
}

pub(super) fn mk_dataset() -> CacheDataset {
    mk_dataset_from(json!({
        "source": { "uri": "s3://datasets/imagenet/", "credentials": { "secretRef": { "name": "s3" } } },
        "cache": { "tiers": [{ "name": "nvme", "quota": "2Ti" }] },
    }))
}

pub(super) fn mk_dataset_from(spec: Value) -> CacheDataset {
    serde_json::from_value(json!({
        "apiVersion": "larder.dev/v1alpha1",
        "kind": "CacheDataset",
        "metadata": { "name": "imagenet", "namespace": "vision", "uid": UID, "generation": 1, "finalizers": ["larder.dev/cleanup"] },
        "spec": spec,
    }))
    .unwrap()
}

pub(super) fn mk_secret(data: &[(&str, &str)]) -> Secret {
    let mut secret = Secret::default();
    secret.metadata.resource_version = Some("5".into());
    secret.data = Some(data.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec()))).collect());
    secret
}

pub(super) fn mk_node(name: &str) -> Node {
    mk_node_from(json!({ "metadata": { "name": name, "labels": { "nvidia.com/gpu.present": "true" } } }))
}

pub(super) fn mk_node_from(node: Value) -> Node {
    serde_json::from_value(node).unwrap()
}

pub(super) fn mk_pod(node: &str, ready: bool) -> Pod {
    mk_pod_from(json!({
        "metadata": { "name": format!("worker-{node}") },
        "spec": { "nodeName": node, "containers": [] },
        "status": {
            "podIP": "10.0.0.1",
            "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }],
        },
    }))
}

pub(super) fn mk_pod_from(pod: Value) -> Pod {
    serde_json::from_value(pod).unwrap()
}

pub(super) fn mk_worker(node: &str, ready: bool) -> Worker {
    Worker {
        node: node.into(),
        pod: format!("worker-{node}"),
        address: Some("10.0.0.1".parse().unwrap()),
        ready,
        created: Some(now() - jiff::SignedDuration::from_hours(1)),
        trouble: None,
    }
}

pub(super) fn members(nodes: &[&str]) -> Members {
    let members = nodes.iter().map(|n| Member { node: (*n).into(), weight: 1, since: 1, leaving: false }).collect();
    Members { generation: 1, members, ..Members::default() }
}

pub(super) fn listing(id: &str, phase: Phase, snapshot: &str) -> Listing {
    Listing {
        id: id.into(),
        phase: phase.into(),
        files: 10,
        bytes: 1000,
        snapshot: snapshot.into(),
        time: 1_799_999_000,
        ..Listing::default()
    }
}

pub(super) fn status_of(listing: Listing, snapshots: &[&str]) -> StatusResponse {
    let listing = (!listing.id.is_empty()).then_some(listing);
    StatusResponse { listing, snapshots: snapshots.iter().map(|s| (*s).to_owned()).collect(), ..StatusResponse::default() }
}

pub(super) fn preload_of(snapshot: &str, phase: Phase, done: u64, total: u64) -> StatusResponse {
    StatusResponse {
        snapshots: vec![snapshot.into()],
        preload: Some(Preload {
            snapshot: snapshot.into(),
            phase: phase.into(),
            bytes_done: done,
            bytes_total: total,
            planned: total > 0,
            ..Preload::default()
        }),
        cached_bytes: done,
        ..StatusResponse::default()
    }
}

pub(super) fn snapshot_status(listing: &str, id: &str) -> SnapshotStatus {
    SnapshotStatus { id: id.into(), files: 10, bytes: 1000, listing: listing.into(), ..SnapshotStatus::default() }
}

pub(super) fn statuses(all: &[(&str, StatusResponse)]) -> Statuses {
    all.iter().map(|(node, s)| ((*node).to_owned(), Ok(s.clone()))).collect()
}
