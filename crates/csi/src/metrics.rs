//! Series of the node plugin.

use larder_telemetry::{Durations, Exposition, labels};
use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};
use std::time::Duration;

/// CSI calls, by method and gRPC code. The exposed name has the suffix `_total`.
pub(crate) const CALLS: &str = "larder_node_csi_calls";

/// How long they took, by method.
pub(crate) const CALL_DURATION: &str = "larder_node_csi_call_duration_seconds";
/// Volumes of pods that are published on this node.
pub(crate) const PUBLISHED: &str = "larder_node_published_volumes";

/// Mounts that were ended because no mounter served them. The exposed name has the suffix `_total`.
pub(crate) const ABORTED: &str = "larder_node_aborted_mounts";

labels! {
    struct Call { method: &'static str, code: String }
}

labels! {
    struct Method { method: &'static str }
}

/// All series of the node plugin.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    calls: Family<Call, Counter>,
    took: Family<Method, Durations>,
    pub(crate) published: Gauge,
    pub(crate) aborted: Counter,
}

impl Metrics {
    pub(crate) fn register(exposition: &mut Exposition) -> Self {
        let metrics = Self::default();
        exposition.family(CALLS, "CSI calls, by method and gRPC code", metrics.calls.clone());
        exposition.family(CALL_DURATION, "How long CSI calls took", metrics.took.clone());
        exposition.single(PUBLISHED, "Volumes of pods that are published on this node", metrics.published.clone());
        exposition.single(ABORTED, "Mounts that were ended because no mounter served them", metrics.aborted.clone());
        metrics
    }

    pub(crate) fn call(&self, method: &'static str, code: tonic::Code, took: Duration) {
        self.calls.get_or_create(&Call { method, code: format!("{code:?}") }).inc();
        self.took.get_or_create(&Method { method }).observe(took);
    }
}
