//! The kind `CacheDataset`.

mod source;
mod status;
#[cfg(test)]
mod validation_tests;
mod workers;

pub use source::{Anonymous, CaRef, ConfigMapKeyRef, Credentials, SecretRef, Source};
pub use status::{CacheDatasetStatus, CacheStatus, PreloadStatus, SnapshotStatus, WorkerCounts};
pub use workers::{Resources, Workers};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Data at an object store that Larder caches on the local disks of the GPU nodes and gives to pods as a claim.
///
/// Larder lists the source once (the snapshot), spreads the files over the selected nodes, fetches them ahead of use, and
/// makes a PersistentVolumeClaim with the dataset's own name in the dataset's own namespace. Pods that mount the claim read
/// from the local disk or from another node; each byte leaves the object store once per cluster. The claim is read-only.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "larder.dev",
    version = "v1alpha1",
    kind = "CacheDataset",
    namespaced,
    shortname = "cds",
    category = "larder",
    status = "CacheDatasetStatus",
    derive = "PartialEq",
    doc = "Data at an object store that Larder caches on the local disks of the GPU nodes and gives to pods as a read-only claim of the same name",
    printcolumn(json_path = ".status.conditions[?(@.type==\"Ready\")].status", name = "Ready", type_ = "string"),
    printcolumn(json_path = ".status.snapshot.files", name = "Files", type_ = "integer", description = "Files in the snapshot"),
    printcolumn(json_path = ".status.snapshot.bytes", name = "Bytes", type_ = "integer", description = "Size of the snapshot"),
    printcolumn(
        json_path = ".status.cache.percent",
        name = "Cached %",
        type_ = "integer",
        description = "How much of the snapshot is on the nodes' disks"
    ),
    printcolumn(json_path = ".status.cache.workers.ready", name = "Workers", type_ = "integer", description = "Workers that are ready"),
    printcolumn(json_path = ".metadata.creationTimestamp", name = "Age", type_ = "date"),
    printcolumn(
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        name = "Reason",
        type_ = "string",
        priority = 1,
        description = "Why it is ready or not"
    ),
    printcolumn(json_path = ".spec.source.uri", name = "Source", type_ = "string", priority = 1),
    // The name is also a label value.
    validation = Rule::new("size(self.metadata.name) <= 63").message("metadata.name must have at most 63 characters"),
    validation = Rule::new("!has(self.spec.preload) || !has(self.spec.preload.policy) || self.spec.preload.policy != 'None' || \
        ((!has(self.spec.cache.replicas) || self.spec.cache.replicas == 1) && \
        (!has(self.spec.cache.placement) || self.spec.cache.placement == 'Sharded'))")
        .message("replicas and placement Everywhere need preload.policy OnCreate, which makes them")
)]
#[serde(rename_all = "camelCase")]
pub struct CacheDatasetSpec {
    /// Where the data is.
    pub source: Source,
    /// Where and how much of it is kept.
    pub cache: Cache,
    /// On which nodes the data is kept. Default: all nodes with the label `nvidia.com/gpu.present: "true"`.
    #[serde(default)]
    pub workers: Workers,
    /// What is fetched ahead of use.
    #[serde(default)]
    pub preload: Preload,
    /// How files look in pods.
    #[serde(default)]
    pub mount: Mount,
}

/// Where and how much of a dataset is kept.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.placement) || self.placement != 'Everywhere' || !has(self.replicas) || self.replicas == 1")
    .message("replicas is for placement Sharded: with Everywhere each node keeps everything"))]
pub struct Cache {
    /// The disks to use, 1 to 8. Each file lies on one of them, on each as much as its quota is of all quotas. The first one that works
    /// also holds what is not data. A disk that fails is done without: what was on it is fetched again, to the others.
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(validation = Rule::new("self.all(a, self.exists_one(b, a.name == b.name))").message("each tier may be named once"))]
    pub tiers: Vec<Tier>,
    /// On how many nodes each file is kept, 1 to 3, if there are so many. Default 1. With more, files of a node that is lost or slow
    /// are read from the disk of another one, and not from the object store again. The first copy is fetched from the object
    /// store, the others from the first.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 1, max = 3), extend("format" = "int32"))]
    pub replicas: u32,
    /// Files larger than this are kept in stripes of this size, each on a node of its own, so that one file uses the disks and the
    /// links of all nodes. A multiple of 4Mi, without a decimal point, or 0: every file lies whole on one node. Default 1Gi; a dataset that is older than this
    /// field keeps its files whole until it is set. A change moves large files: what lies elsewhere then may leave the object store
    /// again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::quantity::schema")]
    #[x_kube(validation = Rule::new("quantity(string(self)).isInteger() && quantity(string(self)).asInteger() >= 0 && \
        quantity(string(self)).asInteger() % 4194304 == 0").message("stripeSize must be a multiple of 4Mi such as 1Gi, or 0"))]
    pub stripe_size: Option<Quantity>,
    /// Which nodes keep what. `Sharded` (default): each node its share. `Everywhere`: each node everything, so that all reads are
    /// local; each byte still leaves the object store once.
    #[serde(default)]
    pub placement: Placement,
}

impl Cache {
    /// On how many nodes each file is kept; more than there are nodes means on all of them.
    #[must_use]
    pub fn copies(&self) -> u32 {
        match self.placement {
            Placement::Sharded => self.replicas,
            Placement::Everywhere => u32::MAX,
        }
    }
}

fn default_replicas() -> u32 {
    1
}

/// Which nodes keep what.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// Each node its share.
    #[default]
    Sharded,
    /// Each node everything.
    Everywhere,
}

/// Of a dataset that does not say another stripe size.
pub const STRIPE_BYTES: u64 = 1 << 30;

/// Most disks of a dataset on one node.
pub const MAX_TIERS: usize = 8;

/// Space on one kind of disk.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Tier {
    /// Name of a tier that the administrator defined (chart value `tiers`), such as `nvme`.
    #[schemars(length(max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// How many bytes of that disk this dataset may use on each node, such as `2Ti`.
    /// What does not fit is read from the object store each time.
    #[schemars(schema_with = "crate::quantity::schema")]
    #[x_kube(validation = Rule::new("quantity(string(self)).isGreaterThan(quantity('0'))")
        .message("quota must be more than 0"))]
    pub quota: Quantity,
}

/// What is fetched ahead of use.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Preload {
    /// When. `OnCreate` (default): everything, as soon as the snapshot is taken. `None`: nothing, files are cached at their
    /// first read.
    #[serde(default)]
    pub policy: PreloadPolicy,
    /// Only these are fetched ahead of use; the rest is cached at its first read. Paths in the dataset: globs such as
    /// `train/*.tar`, or folders that end in a slash such as `train/`. Default: everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 1024)))]
    pub paths: Vec<String>,
    /// How many bytes a second all nodes together may ask from the source ahead of use, such as `500Mi`. Reads of pods are not
    /// slowed down by it. Default: as fast as the source gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::quantity::schema")]
    #[x_kube(validation = Rule::new("quantity(string(self)).isGreaterThan(quantity('0'))")
        .message("bandwidth must be more than 0"))]
    pub bandwidth: Option<Quantity>,
}

/// When data is fetched ahead of use.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PreloadPolicy {
    /// Everything, as soon as the snapshot is taken.
    #[default]
    OnCreate,
    /// Nothing.
    None,
}

/// How files look in pods. All files of a dataset have the same owner and the same permissions; writing is refused whatever
/// they say. In JSON and where your YAML tool does not know octal numbers, modes are decimal (292 for 0444).
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Owner of files and folders. Default 0. Mounted pods keep what they were mounted with.
    #[serde(default)]
    #[schemars(range(min = 0, max = 4_294_967_294u32), extend("format" = "int64"))]
    pub uid: u32,
    /// Group of files and folders. Default 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = 4_294_967_294u32), extend("format" = "int64"))]
    pub gid: u32,
    /// Permissions of files. Default 0444.
    #[serde(default = "default_file_mode")]
    #[schemars(range(min = 0, max = 511), extend("format" = "int32"))]
    pub file_mode: u32,
    /// Permissions of folders. Default 0555.
    #[serde(default = "default_dir_mode")]
    #[schemars(range(min = 0, max = 511), extend("format" = "int32"))]
    pub dir_mode: u32,
    /// How the kernel opens and reads files. `Auto` (default): `NoOpen` if the files of the snapshot have less than 1 MiB on
    /// average, else `Passthrough`. Pods that are mounted keep the mode that they were mounted with.
    #[serde(default)]
    pub mode: MountMode,
}

/// How the kernel opens and reads the files of a mount.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MountMode {
    /// By the sizes of the snapshot's files.
    #[default]
    Auto,
    /// For large files: reads of files on the node's own disk never leave the kernel, but each open takes about 100 µs. Needs
    /// Linux 6.9; with older kernels it is `NoOpen`.
    Passthrough,
    /// For small files: opening costs nothing, and what is in the page cache is read at memory speed.
    NoOpen,
}

impl Default for Mount {
    fn default() -> Self {
        Self { uid: 0, gid: 0, file_mode: default_file_mode(), dir_mode: default_dir_mode(), mode: MountMode::default() }
    }
}

fn default_file_mode() -> u32 {
    0o444
}

fn default_dir_mode() -> u32 {
    0o555
}
