//! `status`: what the operator saw last. Counts and summaries only; what changes by the second is in the metrics.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// What the operator saw last.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CacheDatasetStatus {
    /// `Ready` (pods can read), `SnapshotTaken`, `WorkersReady` and `Preloaded`, with the reason in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The newest snapshot; pods that start now get this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotStatus>,
    /// What is on the nodes' disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheStatus>,
    /// How far fetching ahead of use is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preload: Option<PreloadStatus>,
    /// Bytes received from the origin by all workers so far, retries included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int64"))]
    pub origin_bytes: Option<u64>,
}

/// An immutable listing of the origin.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotStatus {
    /// Digest of the listing.
    pub id: String,
    /// Files in it.
    #[schemars(extend("format" = "int64"))]
    pub files: u64,
    /// Their size together.
    #[schemars(extend("format" = "int64"))]
    pub bytes: u64,
    /// Objects left out because no file can be made of them: by their names, by a size that cannot be, or because they may not be looked
    /// into. The condition SnapshotTaken names some of them and says why.
    #[serde(default)]
    #[schemars(extend("format" = "int64"))]
    pub skipped: u64,
    /// Stands for the settings in spec.source that were listed. When they change, a new snapshot is taken.
    #[serde(default)]
    pub listing: String,
    /// When the listing ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}

/// What is on the nodes' disks.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CacheStatus {
    /// Bytes of complete files and of stripes on all nodes.
    #[serde(default)]
    #[schemars(extend("format" = "int64"))]
    pub bytes: u64,
    /// Files on all nodes: complete ones, and those in stripes where their first stripe is.
    #[serde(default)]
    #[schemars(extend("format" = "int64"))]
    pub files: u64,
    /// Part of the snapshot's bytes that is cached, rounded down: 100 means all of it.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100), extend("format" = "int32"))]
    pub percent: u32,
    /// Workers of this dataset.
    #[serde(default)]
    pub workers: WorkerCounts,
}

/// Workers of a dataset.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WorkerCounts {
    /// Nodes that are selected.
    #[serde(default)]
    #[schemars(extend("format" = "int32"))]
    pub desired: u32,
    /// Workers that are ready.
    #[serde(default)]
    #[schemars(extend("format" = "int32"))]
    pub ready: u32,
}

/// How far fetching ahead of use is.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PreloadStatus {
    /// Bytes that are cached.
    #[serde(default)]
    #[schemars(extend("format" = "int64"))]
    pub bytes_done: u64,
    /// Bytes to cache.
    #[serde(default)]
    #[schemars(extend("format" = "int64"))]
    pub bytes_total: u64,
    /// Files that could not be fetched. They are tried again at the first read.
    #[serde(default)]
    #[schemars(extend("format" = "int64"))]
    pub files_failed: u64,
    /// When it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When everything was cached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// When it will be complete at the speed so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta: Option<Time>,
}
