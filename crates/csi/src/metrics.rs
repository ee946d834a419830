//! Counters of the node plugin.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Calls of the kubelet, by method and gRPC code. The exposed name has the suffix `_total`.
pub(crate) const CALLS: &str = "larder_node_csi_calls";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    method: &'static str,
    code: String,
}

/// All series of the node plugin.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    calls: Family<Call, Counter>,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(CALLS, "Calls of the kubelet by method and gRPC code", metrics.calls.clone());
        metrics
    }

    pub(crate) fn call(&self, method: &'static str, code: tonic::Code) {
        self.calls.get_or_create(&Call { method, code: format!("{code:?}") }).inc();
    }
}
