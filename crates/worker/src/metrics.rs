//! Series of the worker.

use crate::worker::Worker;
use larder_origin::Error as OriginError;
use larder_telemetry::{Durations, Exposition, labels};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
    },
};
use std::{
    fmt,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

/// Bytes of complete files on this node, and of the stripes of files that are kept in part.
pub const CACHED_BYTES: &str = "larder_worker_cached_bytes";
/// Complete files on this node, and those in stripes of which it is to have the first, and has it.
pub const CACHED_FILES: &str = "larder_worker_cached_files";
/// Bytes reserved for what is not on the disk yet.
pub const FILLING_BYTES: &str = "larder_worker_filling_bytes";
/// Bytes that the dataset may take on this node.
pub const QUOTA_BYTES: &str = "larder_worker_quota_bytes";
/// Complete files removed to make room for those of the own share.
pub const EVICTED_FILES: &str = "larder_worker_evicted_files";
/// Bytes of objects received from the origin, retries included. The exposed name of counters has the suffix `_total`.
pub const ORIGIN_BYTES: &str = "larder_worker_origin_bytes";
/// How long chunks took that came from there.
pub const ORIGIN_READ_DURATION: &str = "larder_worker_origin_read_duration_seconds";
/// What it did not give in spite of all tries, by `operation` (`read`, `list`) and `reason` (as in conditions).
pub const ORIGIN_ERRORS: &str = "larder_worker_origin_errors";
/// Bytes given to peers, by `source`: `disk` or `origin`.
pub const SERVED_BYTES: &str = "larder_worker_served_bytes";
/// Bytes copied from the disks of other workers instead of the origin: of former owners, for replicas, for copies that are kept.
pub const COPIED_BYTES: &str = "larder_worker_copied_bytes";
/// Bytes given to other workers from the own disk: to new owners, and for copies that they keep.
pub const GIVEN_BYTES: &str = "larder_worker_given_bytes";
/// Complete files that were found to be bad and went to the quarantine, and chunks of others.
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

labels! {
    /// Of [`SERVED_BYTES`].
    pub(crate) struct BySource { pub source: &'static str }
}

labels! {
    /// Of [`NOT_KEPT`].
    pub(crate) struct ByReason { pub reason: &'static str }
}

labels! {
    /// Of [`REFUSED`].
    pub(crate) struct ByStatus { pub status: u32 }
}

labels! {
    /// Of [`ORIGIN_ERRORS`].
    pub(crate) struct OriginFailure { pub operation: &'static str, pub reason: &'static str }
}

#[derive(Clone, Default)]
pub(crate) struct Metrics {
    /// Set when the worker is there; what it knows itself is read from it when somebody asks.
    pub worker: Arc<OnceLock<Weak<Worker>>>,
    origin_took: Durations,
    origin_errors: Family<OriginFailure, Counter>,
    pub served: Family<BySource, Counter>,
    pub copied_bytes: Counter,
    pub given_bytes: Counter,
    pub damaged_files: Counter,
    pub kept_files: Counter,
    pub kept_bytes: Counter,
    pub not_kept: Family<ByReason, Counter>,
    pub refused: Family<ByStatus, Counter>,
}

impl Metrics {
    pub fn register(exposition: &mut Exposition) -> Self {
        let m = Self::default();
        exposition.collector(Live(Arc::clone(&m.worker)));
        for Figure { name, help, kind, .. } in FIGURES {
            exposition.describe(name, help, kind, &[]);
        }
        exposition.single(
            ORIGIN_READ_DURATION,
            "From asking the origin for a chunk until it is here, tries included",
            m.origin_took.clone(),
        );
        exposition.family(ORIGIN_ERRORS, "What the origin did not give, after all tries", m.origin_errors.clone());
        exposition.family(SERVED_BYTES, "Bytes given to peers, by where they were", m.served.clone());
        exposition.single(COPIED_BYTES, "Bytes copied from the disks of other workers", m.copied_bytes.clone());
        exposition.single(
            DAMAGED_FILES,
            "Complete files and chunks of others that were found to be bad",
            m.damaged_files.clone(),
        );
        exposition.single(GIVEN_BYTES, "Bytes given to other workers from the own disk", m.given_bytes.clone());
        exposition.single(KEPT_FILES, "Files of other nodes copied because pods here read them", m.kept_files.clone());
        exposition.single(KEPT_BYTES, "Bytes of such files", m.kept_bytes.clone());
        exposition.family(NOT_KEPT, "Such copies that were wanted and not made", m.not_kept.clone());
        exposition.family(REFUSED, "Requests of peers that were refused, by HTTP status", m.refused.clone());
        m
    }

    /// A chunk has come from the origin.
    pub fn origin_read(&self, took: Duration) {
        self.origin_took.observe(took);
    }

    /// The origin did not do what was asked of it: `read` or `list`.
    pub fn origin_failed(&self, operation: &'static str, error: &OriginError) {
        self.origin_errors.get_or_create(&OriginFailure { operation, reason: error.reason().as_str() }).inc();
    }
}

/// Without metrics yet; the dataset is a label of all of them.
pub(crate) fn of_dataset(uid: &str) -> Exposition {
    Exposition::labelled("dataset_uid", uid)
}

/// What the worker shows at `/metrics`, for its documentation.
#[must_use]
pub fn exposition() -> Exposition {
    of_dataset("").with(Metrics::register)
}

/// A figure that the worker keeps anyway.
struct Figure {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    of: fn(&Worker) -> u64,
}

const FIGURES: [Figure; 8] = [
    Figure {
        name: CACHED_BYTES,
        help: "Bytes of complete files on this node, and of stripes of files that are kept in part",
        kind: MetricType::Gauge,
        of: |worker| worker.cache.usage().on_disk(),
    },
    Figure {
        name: CACHED_FILES,
        help: "Complete files on this node, and those in stripes of which it is to have the first, and has it",
        kind: MetricType::Gauge,
        of: Worker::files,
    },
    Figure {
        name: FILLING_BYTES,
        help: "Bytes reserved for what is not on the disk yet",
        kind: MetricType::Gauge,
        of: |worker| worker.cache.usage().on_its_way(),
    },
    Figure {
        name: QUOTA_BYTES,
        help: "Bytes that the dataset may take on this node",
        kind: MetricType::Gauge,
        of: |worker| worker.orders.borrow().as_ref().map_or(0, |orders| orders.quota_bytes),
    },
    Figure {
        name: EVICTED_FILES,
        help: "Files removed to make room",
        kind: MetricType::Counter,
        of: |worker| worker.cache.evicted_files(),
    },
    Figure {
        name: SCRUBBED_TIME,
        help: "When the scrub last had read every file, in seconds since 1970; 0: not yet",
        kind: MetricType::Gauge,
        of: |worker| worker.cache.integrity().scrubbed.unwrap_or(0),
    },
    Figure {
        name: ORIGIN_BYTES,
        help: "Bytes of objects received from the origin, retries included",
        kind: MetricType::Counter,
        of: |worker| worker.received.objects(),
    },
    Figure {
        name: COMPARED_BYTES,
        help: "Bytes read only to compare them with their checksums",
        kind: MetricType::Counter,
        of: |worker| worker.cache.integrity().compared_bytes,
    },
];

/// Reads the figures when somebody asks.
struct Live(Arc<OnceLock<Weak<Worker>>>);

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Live")
    }
}

impl Collector for Live {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(worker) = self.0.get().and_then(Weak::upgrade) else { return Ok(()) };
        for Figure { name, help, kind, of } in FIGURES {
            let encoder = encoder.encode_descriptor(name, help, None, kind)?;
            match kind {
                MetricType::Counter => ConstCounter::new(of(&worker)).encode(encoder)?,
                _ => ConstGauge::new(of(&worker).cast_signed()).encode(encoder)?,
            }
        }
        Ok(())
    }
}
