//! Counters of what reaches the mounter. What the page cache answers never gets here.

use larder_fuse::protocol::mounter::Reads;
use larder_telemetry::{Durations, Exposition, labels};
use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};
use std::time::Duration;

use crate::backend::Place;

/// Bytes asked for, cut at the end of the file. The exposed name has the suffix `_total`, as those of all counters.
pub const REQUESTED_BYTES: &str = "larder_mounter_requested_bytes";
/// Bytes answered, by `source`: `local`, `peer` or `origin`.
pub const READ_BYTES: &str = "larder_mounter_read_bytes";
/// How long that took, by `source`.
pub const READ_DURATION: &str = "larder_mounter_read_duration_seconds";
/// Reads answered with an error.
pub const READ_FAILURES: &str = "larder_mounter_read_failures";
/// Bytes that a second node was asked for too, because the first was late or silent: as many may have been sent in vain.
pub const HEDGED_BYTES: &str = "larder_mounter_hedged_bytes";
/// Superblocks that are served now.
pub const MOUNTS: &str = "larder_mounter_mounts";
/// Requests that an earlier mounter had read, and that this one found in its journal.
pub const REPLAYED_REQUESTS: &str = "larder_mounter_replayed_requests";

labels! {
    struct ByMount { dataset_uid: String, identity: String }
}

labels! {
    struct BySource { dataset_uid: String, identity: String, source: &'static str }
}

/// Values of the label `source`.
const SOURCES: [&str; 3] = ["local", "peer", "origin"];

/// All series of the mounter.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    requested: Family<ByMount, Counter>,
    read: Family<BySource, Counter>,
    took: Family<BySource, Durations>,
    failures: Family<ByMount, Counter>,
    hedged: Family<ByMount, Counter>,
    /// Superblocks that are served now.
    pub mounts: Gauge,
    replayed: Counter,
}

impl Metrics {
    /// Makes the series known to the admin server.
    #[must_use]
    pub fn register(exposition: &mut Exposition) -> Self {
        let m = Self::default();
        exposition.family(REQUESTED_BYTES, "Bytes asked of the mounter", m.requested.clone());
        exposition.family(READ_BYTES, "Bytes answered by the mounter, by where they were", m.read.clone());
        exposition.family(READ_DURATION, "From a read's arrival at the mounter to its answer", m.took.clone());
        exposition.family(READ_FAILURES, "Reads answered with an error", m.failures.clone());
        exposition.family(HEDGED_BYTES, "Bytes asked of a second node too, as the first was late", m.hedged.clone());
        exposition.single(MOUNTS, "Superblocks served now", m.mounts.clone());
        exposition.single(REPLAYED_REQUESTS, "Requests of an earlier mounter that were in its journal", m.replayed.clone());
        m
    }

    /// Counts what a journal was good for.
    pub fn replayed(&self, requests: usize) {
        self.replayed.inc_by(requests as u64);
    }

    /// Drops the series of a mount identity. Should it be mounted again, its counters begin at zero.
    pub fn forget(&self, dataset_uid: &str, identity: &str) {
        let mount = ByMount { dataset_uid: dataset_uid.to_owned(), identity: identity.to_owned() };
        self.requested.remove(&mount);
        self.failures.remove(&mount);
        self.hedged.remove(&mount);
        for source in SOURCES {
            let labels = BySource { dataset_uid: dataset_uid.to_owned(), identity: identity.to_owned(), source };
            self.read.remove(&labels);
            self.took.remove(&labels);
        }
    }

    /// The counters of one mount identity; the same ones each time it is asked for.
    #[must_use]
    pub fn reads(&self, dataset_uid: &str, identity: &str) -> ReadCounters {
        let mount = ByMount { dataset_uid: dataset_uid.to_owned(), identity: identity.to_owned() };
        let source = |source| {
            let labels = BySource { dataset_uid: dataset_uid.to_owned(), identity: identity.to_owned(), source };
            Answers { bytes: self.read.get_or_create_owned(&labels), took: self.took.get_or_create_owned(&labels) }
        };
        ReadCounters {
            requested: self.requested.get_or_create_owned(&mount),
            local: source(SOURCES[0]),
            peer: source(SOURCES[1]),
            origin: source(SOURCES[2]),
            failed: self.failures.get_or_create_owned(&mount),
            hedged: self.hedged.get_or_create_owned(&mount),
        }
    }
}

/// What the mounter shows at `/metrics`, for its documentation.
#[must_use]
pub fn exposition() -> Exposition {
    Exposition::default().with(Metrics::register)
}

/// Counters of one mount identity.
#[derive(Clone, Debug, Default)]
pub struct ReadCounters {
    requested: Counter,
    local: Answers,
    peer: Answers,
    origin: Answers,
    failed: Counter,
    pub(crate) hedged: Counter,
}

/// Those from one place.
#[derive(Clone, Debug, Default)]
struct Answers {
    bytes: Counter,
    took: Durations,
}

impl ReadCounters {
    pub(crate) fn requested(&self, bytes: u64) {
        self.requested.inc_by(bytes);
    }

    pub(crate) fn answered(&self, place: Place, bytes: usize, took: Duration) {
        let answers = match place {
            Place::Local => &self.local,
            Place::Peer => &self.peer,
            Place::Origin => &self.origin,
        };
        answers.bytes.inc_by(bytes as u64);
        answers.took.observe(took);
    }

    pub(crate) fn failed(&self) {
        self.failed.inc();
    }

    /// What they show now.
    #[must_use]
    pub fn read(&self) -> Reads {
        Reads {
            requested_bytes: self.requested.get(),
            local_bytes: self.local.bytes.get(),
            peer_bytes: self.peer.bytes.get(),
            origin_bytes: self.origin.bytes.get(),
            failed: self.failed.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_that_comes_again_goes_on_counting() {
        let mut exposition = Exposition::default();
        let metrics = Metrics::register(&mut exposition);
        let took = Duration::from_millis(1);
        metrics.reads("u", "i").answered(Place::Origin, 5, took);
        metrics.reads("u", "i").answered(Place::Origin, 2, took);
        metrics.reads("u", "other").answered(Place::Origin, 1, took);
        assert_eq!(metrics.reads("u", "i").read().origin_bytes, 7);
        let text = exposition.text().unwrap();
        let count = r#"larder_mounter_read_duration_seconds_count{dataset_uid="u",identity="i",source="origin"} 2"#;
        assert!(text.contains(count), "{text}");
        assert!(text.contains(r#"larder_mounter_read_bytes_total{dataset_uid="u",identity="i",source="origin"} 7"#), "{text}");

        metrics.forget("u", "i");
        let text = exposition.text().unwrap();
        assert!(!text.contains(r#"identity="i""#) && text.contains(r#"identity="other""#), "{text}");
    }
}
