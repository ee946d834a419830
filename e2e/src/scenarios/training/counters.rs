//! What Larder's daemons and the origin count, asked from outside.

use anyhow::{Context as _, Result, ensure};

use crate::s3::Request;
use crate::scenarios::larder::{BUCKET, Named, SYSTEM};

/// Bytes of one dataset, over all nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Asked of the mounters: what the kernel's page cache could not answer.
    pub(crate) requested: u64,
    /// Answered by the mounters from files of their own node.
    pub(crate) local: u64,
    /// From another node's files.
    pub(crate) peer: u64,
    /// From the origin.
    pub(crate) origin: u64,
    /// That mounters asked a second node for too, because the first was late.
    pub(crate) hedged: u64,
    /// Given by workers to mounters and other workers.
    pub(crate) served: u64,
    /// Of files of other nodes that workers have copied because they were read there.
    pub(crate) kept: u64,
    /// Received by workers from the origin.
    pub(crate) fetched: u64,
    /// Sent by the origin, says its own log.
    pub(crate) sent: u64,
}

impl Counters {
    /// As they are now.
    pub(crate) fn read(named: &Named<'_>, uid: &str) -> Result<Self> {
        let of_dataset = format!("dataset_uid=\"{uid}\"");
        let mut all = Self::default();
        for text in metrics(named, "app.kubernetes.io/component=mounter", 7483)? {
            all.requested += sum(&text, "larder_mounter_requested_bytes_total", &[&of_dataset]);
            all.hedged += sum(&text, "larder_mounter_hedged_bytes_total", &[&of_dataset]);
            for (source, count) in [("local", &mut all.local), ("peer", &mut all.peer), ("origin", &mut all.origin)] {
                let source = format!("source=\"{source}\"");
                *count += sum(&text, "larder_mounter_read_bytes_total", &[&of_dataset, &source]);
            }
        }
        for text in metrics(named, &format!("larder.dev/dataset-uid={uid}"), 7472)? {
            all.served += sum(&text, "larder_worker_served_bytes_total", &[]);
            all.kept += sum(&text, "larder_worker_kept_bytes_total", &[]);
            all.fetched += sum(&text, "larder_worker_origin_bytes_total", &[]);
        }
        let folder = format!("{}/", named.name);
        let reads = Request::reads(&named.lab.s3.requests()?, BUCKET);
        all.sent = reads.iter().filter(|(key, _)| key.starts_with(&folder)).map(|(_, reads)| reads.bytes).sum();
        Ok(all)
    }

    /// What came since then.
    pub(crate) fn since(&self, before: &Self) -> Self {
        self.with(before, u64::saturating_sub)
    }

    /// Both together.
    pub(crate) fn plus(&self, other: &Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    fn with(&self, other: &Self, join: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            requested: join(self.requested, other.requested),
            local: join(self.local, other.local),
            peer: join(self.peer, other.peer),
            origin: join(self.origin, other.origin),
            hedged: join(self.hedged, other.hedged),
            served: join(self.served, other.served),
            kept: join(self.kept, other.kept),
            fetched: join(self.fetched, other.fetched),
            sent: join(self.sent, other.sent),
        }
    }
}

/// What the admin servers of some pods expose.
fn metrics(named: &Named<'_>, selector: &str, port: u16) -> Result<Vec<String>> {
    let cluster = &named.lab.cluster;
    let pods = cluster.pods(SYSTEM, selector)?;
    ensure!(!pods.is_empty(), "no pod has the label {selector}");
    let get = |pod: &serde_json::Value| {
        let name = pod["metadata"]["name"].as_str().context("a pod without a name")?;
        cluster.kubectl(&["get", "--raw", &format!("/api/v1/namespaces/{SYSTEM}/pods/{name}:{port}/proxy/metrics")])
    };
    pods.iter().map(get).collect()
}

/// The sum of a counter's series that have all these labels.
fn sum(text: &str, name: &str, labels: &[&str]) -> u64 {
    text.lines()
        .filter(|line| line.split(['{', ' ']).next() == Some(name) && labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_by_name_and_labels() {
        let text =
            "# TYPE a counter\na_total{x=\"1\",y=\"2\"} 5\na_total{x=\"1\",y=\"3\"} 7\na_total_more{x=\"1\"} 9\nb_total 4\n";
        assert_eq!(sum(text, "a_total", &["x=\"1\""]), 12);
        assert_eq!(sum(text, "a_total", &["x=\"1\"", "y=\"3\""]), 7);
        assert_eq!(sum(text, "b_total", &[]), 4);
    }
}
