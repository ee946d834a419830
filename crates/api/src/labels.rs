//! Labels, annotations and other keys on objects.

/// Label: who manages the object; [`MANAGED_BY_LARDER`] on everything the operator makes.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`].
pub const MANAGED_BY_LARDER: &str = "larder";
/// Label: which daemon a pod is.
pub const COMPONENT: &str = "app.kubernetes.io/component";
/// Value of [`COMPONENT`] on workers.
pub const COMPONENT_WORKER: &str = "worker";
/// Label: UID of the CacheDataset that the object belongs to.
pub const DATASET_UID: &str = "larder.dev/dataset-uid";
/// Label and volume attribute: name of the CacheDataset.
pub const DATASET_NAME: &str = "larder.dev/dataset-name";
/// Label and volume attribute: namespace of the CacheDataset.
pub const DATASET_NAMESPACE: &str = "larder.dev/dataset-namespace";

/// Taint on a Node on which no dataset can be mounted yet.
pub const NOT_READY_TAINT: &str = "larder.dev/not-ready";

/// Annotation on a CacheDataset: a number; a failed listing or preload is tried again at once when it changes.
pub const RETRY: &str = "larder.dev/retry";

/// Finalizer on a CacheDataset: the operator removes what it made first.
pub const FINALIZER: &str = "larder.dev/cleanup";
