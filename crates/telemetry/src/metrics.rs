//! What a daemon shows at `/metrics`. Whatever is registered is also described, so that docs/metrics.md can be made from it and
//! never says anything else.
//!
//! Names are constants. The last word of a name is its unit; the exposed name of a counter has `_total` behind it.

use prometheus_client::{
    collector::Collector,
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric, family::Family, family::MetricConstructor, gauge::Gauge},
    registry::{Metric, Registry},
};
use std::{
    fmt,
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// One metric, for people.
#[derive(Clone, Debug)]
pub struct Described {
    /// As it is registered.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: MetricType,
    /// Names of all its labels.
    pub labels: Vec<&'static str>,
    /// What it means.
    pub help: &'static str,
}

impl Described {
    /// As it is exposed.
    #[must_use]
    pub fn exposed(&self) -> String {
        let suffix = if matches!(self.kind, MetricType::Counter) { "_total" } else { "" };
        format!("{}{suffix}", self.name)
    }

    /// What it counts.
    #[must_use]
    pub fn unit(&self) -> &'static str {
        match self.name.rsplit('_').next() {
            Some("info" | "ready") | None => "0 or 1",
            Some(unit) => unit,
        }
    }
}

/// Which release the daemon is.
pub const BUILD_INFO: &str = "larder_build_info";

/// Everything that a daemon shows.
#[derive(Debug)]
pub struct Exposition {
    pub(crate) registry: Registry,
    label: Option<&'static str>,
    described: Vec<Described>,
}

impl Default for Exposition {
    fn default() -> Self {
        Self::of(Registry::default(), None)
    }
}

impl Exposition {
    /// One whose series all have a label.
    #[must_use]
    pub fn labelled(name: &'static str, value: &str) -> Self {
        let label = (name.into(), value.to_owned().into());
        Self::of(Registry::with_labels(std::iter::once(label)), Some(name))
    }

    fn of(registry: Registry, label: Option<&'static str>) -> Self {
        let mut exposition = Self { registry, label, described: Vec::new() };
        let build = Family::<OfBuild, Gauge>::default();
        build.get_or_create(&OfBuild { version: crate::version() }).set(1);
        exposition.family(BUILD_INFO, "1; the label says which release of Larder this daemon is", build);
        exposition
    }

    /// With what a function registers, for those who want to see it described.
    #[must_use]
    pub fn with<M>(mut self, register: impl FnOnce(&mut Self) -> M) -> Self {
        register(&mut self);
        self
    }

    /// Adds a metric without labels of its own.
    pub fn single<M: Metric + TypedMetric>(&mut self, name: &'static str, help: &'static str, metric: M) {
        self.describe(name, help, M::TYPE, &[]);
        self.registry.register(name, help, metric);
    }

    /// Adds a metric with labels.
    pub fn family<S: Labels, M, C>(&mut self, name: &'static str, help: &'static str, family: Family<S, M, C>)
    where
        M: EncodeMetric + TypedMetric + fmt::Debug + Send + Sync + 'static,
        C: MetricConstructor<M> + Send + Sync + 'static,
    {
        self.describe(name, help, M::TYPE, S::NAMES);
        self.registry.register(name, help, family);
    }

    /// Adds what encodes metrics itself; each of them must be described too.
    pub fn collector(&mut self, collector: impl Collector) {
        self.registry.register_collector(Box::new(collector));
    }

    /// Describes a metric of a collector.
    pub fn describe(&mut self, name: &'static str, help: &'static str, kind: MetricType, labels: &[&'static str]) {
        let labels = self.label.iter().chain(labels).copied().collect();
        self.described.push(Described { name, kind, labels, help });
    }

    /// All metrics, in the order in which they were added.
    #[must_use]
    pub fn described(&self) -> &[Described] {
        &self.described
    }

    /// All series as OpenMetrics text.
    ///
    /// # Errors
    /// A collector failed.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).map(|()| text)
    }
}

/// Labels of a family; see [`labels!`](crate::labels).
pub trait Labels: EncodeLabelSet + Clone + fmt::Debug + Eq + Hash + Send + Sync + 'static {
    /// Their names.
    const NAMES: &'static [&'static str];
}

/// Declares a set of labels. As a macro, so that their names are known without a series that has them.
#[macro_export]
macro_rules! labels {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($field_vis:vis $field:ident: $type:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, prometheus_client::encoding::EncodeLabelSet)]
        $vis struct $name {
            $($field_vis $field: $type),*
        }

        impl $crate::metrics::Labels for $name {
            const NAMES: &'static [&'static str] = &[$(stringify!($field)),*];
        }
    };
}

labels! {
    struct OfBuild { version: &'static str }
}

/// Upper bounds of the buckets of [`Durations`], in microseconds: from a read of the page cache to the longest wait for an origin.
const BOUNDS: [u64; 14] =
    [30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000, 60_000_000];

/// A histogram of how long things took. Two additions of atomics for each: unlike prometheus-client's it takes no lock, for it
/// is used in every read.
#[derive(Clone, Debug, Default)]
pub struct Durations(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Durations {
    /// Counts one.
    pub fn observe(&self, took: Duration) {
        let bucket = BOUNDS.partition_point(|bound| Duration::from_micros(*bound) < took);
        self.0.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl TypedMetric for Durations {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let bounds = BOUNDS.iter().map(|bound| *bound as f64 / 1e6).chain([f64::INFINITY]);
        let counts = self.0.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let sum = Duration::from_nanos(self.0.nanoseconds.load(Ordering::Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, buckets.iter().map(|(_, count)| count).sum(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    labels! {
        struct BySource { source: &'static str, code: u32 }
    }

    #[test]
    fn what_is_registered_is_described_with_its_labels() {
        let mut exposition = Exposition::labelled("dataset_uid", "u");
        let reads = Family::<BySource, Counter>::default();
        exposition.family("larder_test_read_bytes", "Bytes", reads.clone());
        exposition.single("larder_test_read_duration_seconds", "How long", Durations::default());
        reads.get_or_create(&BySource { source: "disk", code: 1 }).inc_by(3);

        let [build, read, took] = exposition.described() else { panic!("{:?}", exposition.described()) };
        assert_eq!((build.name, build.labels.as_slice()), (BUILD_INFO, ["dataset_uid", "version"].as_slice()));
        assert_eq!(
            (read.exposed().as_str(), read.unit(), read.kind.as_str()),
            ("larder_test_read_bytes_total", "bytes", "counter")
        );
        assert_eq!(read.labels, ["dataset_uid", "source", "code"]);
        assert_eq!((took.exposed().as_str(), took.unit(), took.kind.as_str()), (took.name, "seconds", "histogram"));
        let text = exposition.text().unwrap();
        assert!(text.contains(&format!(r#"{BUILD_INFO}{{dataset_uid="u",version="{}"}} 1"#, crate::version())), "{text}");
        assert!(text.contains(r#"larder_test_read_bytes_total{dataset_uid="u",source="disk",code="1"} 3"#), "{text}");
    }

    #[test]
    fn durations_are_counted_in_the_first_bucket_that_is_not_shorter() {
        let (mut exposition, took) = (Exposition::default(), Durations::default());
        exposition.single("t_seconds", "How long", took.clone());
        for micros in [0, 30, 31, 1_500_000, 600_000_000] {
            took.observe(Duration::from_micros(micros));
        }
        let text = exposition.text().unwrap();
        for line in [
            r#"t_seconds_bucket{le="0.00003"} 2"#,
            r#"t_seconds_bucket{le="0.0001"} 3"#,
            r#"t_seconds_bucket{le="1.0"} 3"#,
            r#"t_seconds_bucket{le="3.0"} 4"#,
            r#"t_seconds_bucket{le="+Inf"} 5"#,
            "t_seconds_count 5",
            "t_seconds_sum 601.500061",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
        }
    }
}
