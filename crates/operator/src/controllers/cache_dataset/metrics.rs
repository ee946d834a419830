//! Series of the operator.

use kube::{ResourceExt as _, runtime::reflector::Store};
use larder_api::{CacheDataset, conditions::types};
use larder_telemetry::{Durations, Exposition, labels, metrics::Labels as _};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::Counter, family::Family, gauge::ConstGauge},
};
use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

/// Reconciles of CacheDatasets, by result. The exposed name has the suffix `_total`.
const RECONCILES: &str = "larder_operator_reconciles";
/// How long they took.
const RECONCILE_DURATION: &str = "larder_operator_reconcile_duration_seconds";
/// Which dataset has which UID; always 1. The operator that does not act shows none.
const DATASET_INFO: &str = "larder_operator_dataset_info";
/// Whether the condition Ready of a dataset is True.
const DATASET_READY: &str = "larder_operator_dataset_ready";

labels! {
    struct Outcome { result: &'static str }
}

labels! {
    struct ByDataset { dataset_uid: String, dataset: String, dataset_namespace: String }
}

/// All series of the operator.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    reconciles: Family<Outcome, Counter>,
    took: Durations,
    datasets: Datasets,
}

impl Metrics {
    pub(crate) fn register(exposition: &mut Exposition) -> Self {
        let metrics = Self::default();
        exposition.family(RECONCILES, "Reconciles of CacheDatasets, by result", metrics.reconciles.clone());
        exposition.single(RECONCILE_DURATION, "How long reconciles took", metrics.took.clone());
        exposition.collector(metrics.datasets.clone());
        for (name, help, _) in GAUGES {
            exposition.describe(name, help, MetricType::Gauge, ByDataset::NAMES);
        }
        metrics
    }

    pub(super) fn count(&self, result: &'static str, took: Duration) {
        self.reconciles.get_or_create(&Outcome { result }).inc();
        self.took.observe(took);
    }

    /// From now on these are the datasets.
    pub(super) fn know(&self, datasets: &Store<CacheDataset>) {
        // An operator begins to act once.
        let _ = self.datasets.0.set(datasets.clone());
    }
}

/// Name, meaning, and value for a dataset.
type Gauge = (&'static str, &'static str, fn(&CacheDataset) -> bool);

const GAUGES: [Gauge; 2] = [
    (DATASET_INFO, "Name of each CacheDataset by its UID; always 1", |_| true),
    (DATASET_READY, "Whether the condition Ready of a CacheDataset is True", is_ready),
];

fn is_ready(dataset: &CacheDataset) -> bool {
    let conditions = dataset.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().any(|condition| condition.type_ == types::READY && condition.status == "True")
}

/// Read when somebody asks.
#[derive(Clone, Default)]
struct Datasets(Arc<OnceLock<Store<CacheDataset>>>);

impl fmt::Debug for Datasets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Datasets")
    }
}

impl Collector for Datasets {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let datasets = self.0.get().map(Store::state).unwrap_or_default();
        for (name, help, of) in GAUGES {
            let mut encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for dataset in &datasets {
                let labels = ByDataset {
                    dataset_uid: dataset.uid().unwrap_or_default(),
                    dataset: dataset.name_any(),
                    dataset_namespace: dataset.namespace().unwrap_or_default(),
                };
                ConstGauge::new(i64::from(of(dataset))).encode(encoder.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{UID, mk_dataset};
    use super::*;
    use kube::runtime::{reflector, watcher};

    #[test]
    fn every_dataset_is_named_and_ready_or_not() {
        let mut exposition = Exposition::default();
        let metrics = Metrics::register(&mut exposition);
        assert!(!exposition.text().unwrap().contains("dataset="));

        let (store, mut writer) = reflector::store();
        writer.apply_watcher_event(&watcher::Event::Apply(mk_dataset()));
        metrics.know(&store);
        let text = exposition.text().unwrap();
        let labels = format!(r#"{{dataset_uid="{UID}",dataset="imagenet",dataset_namespace="vision"}}"#);
        for (name, value) in [(DATASET_INFO, 1), (DATASET_READY, 0)] {
            assert!(text.contains(&format!("{name}{labels} {value}")), "{text}");
        }
    }
}
