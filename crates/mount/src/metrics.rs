//! Counters of what reaches the mounter. What the page cache answers never gets here.

use larder_fuse::protocol::mounter::Reads;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::backend::Place;

/// Bytes asked for, cut at the end of the file. The exposed name has the suffix `_total`, as those of all counters.
pub const REQUESTED_BYTES: &str = "larder_mounter_requested_bytes";
/// Bytes answered, by `source`: `local`, `peer` or `origin`.
pub const READ_BYTES: &str = "larder_mounter_read_bytes";
/// Reads answered with an error.
pub const READ_FAILURES: &str = "larder_mounter_read_failures";
/// Superblocks that are served now.
pub const MOUNTS: &str = "larder_mounter_mounts";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByMount {
    dataset_uid: String,
    identity: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySource {
    dataset_uid: String,
    identity: String,
    source: &'static str,
}

/// Values of the label `source`.
const SOURCES: [&str; 3] = ["local", "peer", "origin"];

/// All series of the mounter.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    requested: Family<ByMount, Counter>,
    read: Family<BySource, Counter>,
    failures: Family<ByMount, Counter>,
    /// Superblocks that are served now.
    pub mounts: Gauge,
}

impl Metrics {
    /// Makes the series known to the admin server.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        registry.register(REQUESTED_BYTES, "Bytes asked of the mounter", m.requested.clone());
        registry.register(READ_BYTES, "Bytes answered by the mounter, by where they were", m.read.clone());
        registry.register(READ_FAILURES, "Reads answered with an error", m.failures.clone());
        registry.register(MOUNTS, "Superblocks served now", m.mounts.clone());
        m
    }

    /// Drops the series of a mount identity. Should it be mounted again, its counters begin at zero.
    pub fn forget(&self, dataset_uid: &str, identity: &str) {
        let mount = ByMount { dataset_uid: dataset_uid.to_owned(), identity: identity.to_owned() };
        self.requested.remove(&mount);
        self.failures.remove(&mount);
        for source in SOURCES {
            let labels = BySource { dataset_uid: dataset_uid.to_owned(), identity: identity.to_owned(), source };
            self.read.remove(&labels);
        }
    }

    /// The counters of one mount identity; the same ones each time it is asked for.
    #[must_use]
    pub fn reads(&self, dataset_uid: &str, identity: &str) -> ReadCounters {
        let mount = ByMount { dataset_uid: dataset_uid.to_owned(), identity: identity.to_owned() };
        let source = |source| {
            let labels = BySource { dataset_uid: dataset_uid.to_owned(), identity: identity.to_owned(), source };
            self.read.get_or_create_owned(&labels)
        };
        ReadCounters {
            requested: self.requested.get_or_create_owned(&mount),
            local: source(SOURCES[0]),
            peer: source(SOURCES[1]),
            origin: source(SOURCES[2]),
            failed: self.failures.get_or_create_owned(&mount),
        }
    }
}

/// Counters of one mount identity.
#[derive(Clone, Debug, Default)]
pub struct ReadCounters {
    requested: Counter,
    local: Counter,
    peer: Counter,
    origin: Counter,
    failed: Counter,
}

impl ReadCounters {
    pub(crate) fn requested(&self, bytes: u64) {
        self.requested.inc_by(bytes);
    }

    pub(crate) fn answered(&self, place: Place, bytes: u64) {
        match place {
            Place::Local => &self.local,
            Place::Peer => &self.peer,
            Place::Origin => &self.origin,
        }
        .inc_by(bytes);
    }

    pub(crate) fn failed(&self) {
        self.failed.inc();
    }

    /// What they show now.
    #[must_use]
    pub fn read(&self) -> Reads {
        Reads {
            requested_bytes: self.requested.get(),
            local_bytes: self.local.get(),
            peer_bytes: self.peer.get(),
            origin_bytes: self.origin.get(),
            failed: self.failed.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_that_comes_again_goes_on_counting() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.reads("u", "i").answered(Place::Origin, 5);
        metrics.reads("u", "i").answered(Place::Origin, 2);
        metrics.reads("u", "other").answered(Place::Origin, 1);
        assert_eq!(metrics.reads("u", "i").read().origin_bytes, 7);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains(r#"larder_mounter_read_bytes_total{dataset_uid="u",identity="i",source="origin"} 7"#), "{text}");

        metrics.forget("u", "i");
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(!text.contains(r#"identity="i""#) && text.contains(r#"identity="other""#), "{text}");
    }
}
