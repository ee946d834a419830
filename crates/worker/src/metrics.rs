//! Series of the worker.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Bytes of complete files on this node.
pub const CACHED_BYTES: &str = "larder_worker_cached_bytes";
/// Complete files on this node.
pub const CACHED_FILES: &str = "larder_worker_cached_files";
/// Bytes of objects received from the origin, retries included. The exposed name of counters has the suffix `_total`.
pub const ORIGIN_BYTES: &str = "larder_worker_origin_bytes";
/// Bytes given to peers, by `source`: `disk` or `origin`.
pub const SERVED_BYTES: &str = "larder_worker_served_bytes";
/// Bytes copied from the disks of former owners instead of the origin.
pub const COPIED_BYTES: &str = "larder_worker_copied_bytes";
/// Bytes given to other workers from the own disk: to new owners, and for copies that they keep.
pub const GIVEN_BYTES: &str = "larder_worker_given_bytes";
/// Complete files that were found to be bad and went to the quarantine.
pub const DAMAGED_FILES: &str = "larder_worker_damaged_files";
/// Bytes that were read only to compare them with their checksums.
pub const COMPARED_BYTES: &str = "larder_worker_compared_bytes";
/// When the scrub last had read every file, in seconds since 1970; 0: not yet.
pub const SCRUBBED_TIME: &str = "larder_worker_scrubbed_timestamp_seconds";
/// Files of other nodes copied to this one because pods here read them.
pub const KEPT_FILES: &str = "larder_worker_kept_files";
/// Their bytes.
pub const KEPT_BYTES: &str = "larder_worker_kept_bytes";
/// Copies that were wanted and not made, by `reason`: `room` (none beyond the own share), `owner` (does not have it whole yet),
/// `disk` (of this node).
pub const NOT_KEPT: &str = "larder_worker_not_kept_files";
/// Requests of peers that were refused, by `status`.
pub const REFUSED: &str = "larder_worker_refused_requests";

/// Label of [`SERVED_BYTES`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct BySource {
    pub source: &'static str,
}

/// Label of [`NOT_KEPT`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByReason {
    pub reason: &'static str,
}

/// Label of [`REFUSED`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByStatus {
    pub status: u32,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    pub cached_bytes: Gauge,
    pub cached_files: Gauge,
    pub origin_bytes: Counter,
    pub served: Family<BySource, Counter>,
    pub copied_bytes: Counter,
    pub given_bytes: Counter,
    pub damaged_files: Counter,
    pub compared_bytes: Counter,
    pub scrubbed: Gauge,
    pub kept_files: Counter,
    pub kept_bytes: Counter,
    pub not_kept: Family<ByReason, Counter>,
    pub refused: Family<ByStatus, Counter>,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        registry.register(CACHED_BYTES, "Bytes of complete files on this node", m.cached_bytes.clone());
        registry.register(CACHED_FILES, "Complete files on this node", m.cached_files.clone());
        registry.register(ORIGIN_BYTES, "Bytes of objects received from the origin, retries included", m.origin_bytes.clone());
        registry.register(SERVED_BYTES, "Bytes given to peers, by where they were", m.served.clone());
        registry.register(COPIED_BYTES, "Bytes copied from former owners instead of the origin", m.copied_bytes.clone());
        registry.register(DAMAGED_FILES, "Complete files that were found to be bad", m.damaged_files.clone());
        registry.register(COMPARED_BYTES, "Bytes read only to compare them with their checksums", m.compared_bytes.clone());
        registry.register(SCRUBBED_TIME, "When the scrub last had read every file", m.scrubbed.clone());
        registry.register(GIVEN_BYTES, "Bytes given to other workers from the own disk", m.given_bytes.clone());
        registry.register(KEPT_FILES, "Files of other nodes copied because pods here read them", m.kept_files.clone());
        registry.register(KEPT_BYTES, "Bytes of such files", m.kept_bytes.clone());
        registry.register(NOT_KEPT, "Such copies that were wanted and not made", m.not_kept.clone());
        registry.register(REFUSED, "Requests of peers that were refused", m.refused.clone());
        m
    }
}
