//! What a Prometheus sees of Larder, and what the dashboard of the chart shows of that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::larder::{BUCKET, Named, SYSTEM, install, upload};
use super::training::PageCache;
use crate::dataset::Manifest;
use crate::lab::Lab;
use crate::prometheus::{DOC, Prometheus, Sample};
use crate::report::step;
use crate::tools::repository;

const WAIT: Duration = Duration::from_secs(120);
/// A few scrapes.
const SCRAPED: Duration = Duration::from_secs(20);
const NAME: &str = "measured";
const GONE: &str = "samples/class-00/000000.pgm";

/// Labels that are not of Larder but of the scraping, or of histograms.
const NOT_OURS: [&str; 8] = ["__name__", "job", "instance", "namespace", "pod", "node", "component", "le"];

/// A dataset is read from the origin, from other nodes and from the own disk, and one of its files is not there at first. Prometheus
/// has seen all of that: every query of the dashboard has data, and no series is there that is not documented.
pub(super) fn prometheus_scrapes_all_daemons_and_every_panel_has_data(lab: &Lab) -> Result<()> {
    install(lab)?;
    let prometheus = step("Prometheus ready", || Prometheus::start(lab.cluster.run(), lab.cluster.tools()))?;
    let named = Named { lab, namespace: NAME, name: NAME };
    let manifest = upload(lab, BUCKET, NAME, 95)?;
    let outcome = step("a dataset read in all ways", || read_in_all_ways(&named, &manifest, &prometheus)).and_then(|()| {
        step("every daemon is scraped", || all_are_up(lab, &prometheus))?;
        step("every panel has data", || panels_have_data(lab, &prometheus))?;
        step("every series is documented", || series_are_documented(&prometheus))
    });
    // Other tests use the origin too.
    lab.s3.refuse(&[]).and(outcome)?;
    lab.cluster.delete_and_wait("pods", Some(named.namespace), "holder", WAIT)?;
    named.remove(WAIT)
}

fn read_in_all_ways(named: &Named<'_>, manifest: &Manifest, prometheus: &Prometheus) -> Result<()> {
    let lab = named.lab;
    // What a series begins with is no increase of it: it has to be there before something happens.
    prometheus.discover(&lab.cluster)?;
    let operator = "larder_operator_reconcile_duration_seconds_count";
    lab.cluster.wait_until(operator, SCRAPED, || samples(prometheus, operator))?;

    // Not there: what may get better is waited for by readers, for a minute.
    lab.s3.refuse(&[(&format!("{BUCKET}/{NAME}/{GONE}"), 404)])?;
    lab.cluster.create_namespace(named.namespace)?;
    // Nothing is fetched before it is read.
    lab.cluster.apply(&named.yaml()?.replace("policy: OnCreate", "policy: None"))?;
    let object = named.wait("Ready", WAIT)?;
    let uid = object["metadata"]["uid"].as_str().context("the dataset has no uid")?;
    named.start_holder(lab.cluster.node("gpu-1")?)?;
    let bytes = format!("sum by (source) (larder_mounter_read_bytes_total{{dataset_uid=\"{uid}\"}})");
    prometheus.discover(&lab.cluster)?;
    for query in [
        &format!("{bytes} == 0"),
        &format!("larder_worker_origin_read_duration_seconds_count{{dataset_uid=\"{uid}\"}} == 0"),
        "larder_node_csi_call_duration_seconds_count{method=\"NodePublishVolume\"}",
    ] {
        lab.cluster.wait_until(query, SCRAPED, || samples(prometheus, query))?;
    }

    let gone = lab.cluster.exec(named.namespace, "holder", None, &["cat", &format!("/data/{GONE}")]);
    ensure!(gone.is_err(), "a file that is not there was read");
    lab.s3.refuse(&[])?;
    named.check_holder(manifest)?;
    PageCache::hold(lab.cluster.tools())?.clear()?;
    named.check_holder(manifest)?;
    named.read_everywhere(manifest, WAIT)?;

    let size: u64 = manifest.values().map(|entry| entry.size).sum();
    lab.cluster.wait_until("the bytes of all reads", SCRAPED, || {
        let read = samples(prometheus, &bytes)?;
        let total: f64 = read.iter().map(|(_, value)| value).sum();
        ensure!(read.len() == 3 && read.iter().all(|(_, value)| *value > 0.0), "not from everywhere: {read:?}");
        ensure!(total >= 3.0 * size as f64, "{total} bytes of a dataset of {size} were read");
        Ok(())
    })
}

/// Each pod of Larder is a target that answers, each kind is there.
fn all_are_up(lab: &Lab, prometheus: &Prometheus) -> Result<()> {
    lab.cluster.wait_until("all daemons scraped", SCRAPED, || {
        let up = samples(prometheus, "min by (component) (up)")?;
        let found: BTreeSet<&str> = up.iter().filter_map(|(labels, _)| labels["component"].as_str()).collect();
        ensure!(found == BTreeSet::from(["keeper", "mounter", "node", "operator", "worker"]), "scraped are {up:?}");
        ensure!(up.iter().all(|(_, value)| *value == 1.0), "not all answer: {up:?}");
        Ok(())
    })
}

/// Asks every query of the dashboard that the chart has installed.
fn panels_have_data(lab: &Lab, prometheus: &Prometheus) -> Result<()> {
    let map = lab.cluster.get("configmaps", Some(SYSTEM), "larder-dashboard")?;
    ensure!(map["metadata"]["labels"]["grafana_dashboard"] == "1", "Grafana's sidecar would not find the dashboard");
    let dashboard: Value = serde_json::from_str(map["data"]["larder.json"].as_str().context("it has no larder.json")?)?;
    let panels = dashboard["panels"].as_array().filter(|panels| !panels.is_empty()).context("it has no panels")?;
    for panel in panels {
        let title = panel["title"].as_str().context("a panel without a title")?;
        let targets = panel["targets"].as_array().filter(|targets| !targets.is_empty()).context("a panel without queries")?;
        for target in targets {
            // As Grafana does, but for the whole test.
            let query = target["expr"].as_str().context("a query without an expression")?.replace("$__rate_interval", "10m");
            lab.cluster.wait_until(&format!("data of the panel `{title}`"), SCRAPED, || {
                let found = samples(prometheus, &query)?;
                ensure!(found.iter().any(|(_, value)| value.is_finite()), "`{query}` gives no number: {found:?}");
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Names and labels of all series are those of the document.
fn series_are_documented(prometheus: &Prometheus) -> Result<()> {
    let text = std::fs::read_to_string(repository().join(DOC)).with_context(|| format!("read {DOC}"))?;
    let documented = documented(&text);
    ensure!(!documented.is_empty(), "{DOC} lists no metrics");
    for series in prometheus.series("{__name__=~\"larder_.+\"}")? {
        let name = series["__name__"].as_str().context("a series without a name")?;
        let suffixes = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let metric = documented.get(name).or_else(|| documented.get(suffixes?));
        let labels = series.as_object().into_iter().flat_map(|labels| labels.keys().map(String::as_str));
        let labels: BTreeSet<&str> = labels.filter(|label| !NOT_OURS.contains(label)).collect();
        ensure!(metric.is_some_and(|all| all.contains(&labels)), "{name} has the labels {labels:?}, {DOC} says {metric:?}");
    }
    Ok(())
}

/// Metrics and their labels, from the tables of the document: those of different daemons may have different ones.
fn documented(text: &str) -> BTreeMap<&str, BTreeSet<BTreeSet<&str>>> {
    let mut all = BTreeMap::<_, BTreeSet<_>>::new();
    for line in text.lines().filter(|line| line.starts_with("| `larder_")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, name, _, _, labels, ..] = cells[..] else { continue };
        let labels = labels.split(", ").map(|label| label.trim_matches('`')).filter(|label| !label.is_empty());
        all.entry(name.trim_matches('`')).or_default().insert(labels.collect());
    }
    all
}

/// The series that an expression gives; none is an error.
fn samples(prometheus: &Prometheus, query: &str) -> Result<Vec<Sample>> {
    let found = prometheus.query(query)?;
    ensure!(!found.is_empty(), "`{query}` gives nothing");
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_and_labels_are_read_from_the_tables() {
        let text = "| metric | type |\n|---|---|\n| `larder_a` | gauge | bytes |  | All |\n| `larder_b` | gauge | bytes | `x`, `y` | All |\n\
                    | `larder_a` | gauge | bytes | `z` | All |\n";
        let a = BTreeSet::from([BTreeSet::new(), BTreeSet::from(["z"])]);
        let b = BTreeSet::from([BTreeSet::from(["x", "y"])]);
        assert_eq!(documented(text), BTreeMap::from([("larder_a", a), ("larder_b", b)]));
    }
}
