//! A Prometheus on a host of its own, which scrapes Larder as docs/metrics.md says.
//!
//! Debian builds it without the discovery of Kubernetes' pods. So the pods' ports are handed to it in a file, each with the labels
//! that this discovery gives; what is scraped, and under which labels, is decided by the `relabel_configs` of the document.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::cluster::{Cluster, Component, Host};
use crate::http::{encoded, exchange};
use crate::readme;
use crate::run_dir::RunDir;
use crate::tools::Tools;

/// Its address on the bridge.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 202);
const PORT: u16 = 9090;

/// The document that says how to scrape.
pub const DOC: &str = "docs/metrics.md";

/// The namespace of the document.
const NAMESPACE: &str = "larder-system";

const START_TIMEOUT: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);

/// A Prometheus; it ends with this value.
pub struct Prometheus {
    server: Component,
    targets: PathBuf,
}

/// One series of an answer: its labels, as an object, and its value.
pub type Sample = (Value, f64);

impl Prometheus {
    /// Starts one that knows nothing yet.
    ///
    /// # Errors
    /// It did not come up.
    pub fn start(run: &RunDir, tools: &Tools) -> Result<Self> {
        let folder = run.path("prometheus");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let file = folder.join("prometheus.yml");
        let targets = folder.join("targets.json");
        fs::write(&file, configuration(&targets)?).context("write Prometheus' configuration")?;
        let mut command = Host::add("prometheus", ADDRESS, "")?.command(tools.prometheus());
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
        let mut prometheus = Self { server: Component::start(run, "prometheus", &mut command)?, targets };
        let deadline = Instant::now() + START_TIMEOUT;
        while let Err(error) = prometheus.get("/-/ready") {
            prometheus.server.check()?;
            ensure!(Instant::now() < deadline, "Prometheus does not answer: {error:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(prometheus)
    }

    /// Tells it which pods there are now in the namespace of the document.
    ///
    /// # Errors
    /// The API server could not be asked.
    pub fn discover(&self, cluster: &Cluster) -> Result<()> {
        let targets: Vec<Value> = cluster.list("pods", Some(NAMESPACE))?.iter().flat_map(targets_of).collect();
        // By rename, so that it is read whole.
        let new = self.targets.with_extension("new");
        fs::write(&new, serde_json::to_vec(&targets)?).context("write Prometheus' targets")?;
        fs::rename(&new, &self.targets).context("put Prometheus' targets in place")
    }

    /// What an expression gives now.
    ///
    /// # Errors
    /// It is no expression, or gives no series but something else.
    pub fn query(&self, expression: &str) -> Result<Vec<Sample>> {
        let data = self.data(&format!("/api/v1/query?query={}", encoded(expression, false)))?;
        let series = data["result"].as_array().filter(|_| data["resultType"] == "vector");
        let sample = |series: &Value| {
            let value = series["value"][1].as_str().and_then(|value| value.parse().ok()).context("a series without a value")?;
            Ok((series["metric"].clone(), value))
        };
        series.with_context(|| format!("`{expression}` gives no series: {data}"))?.iter().map(sample).collect()
    }

    /// The labels of all series that a selector matches.
    ///
    /// # Errors
    /// It is no selector.
    pub fn series(&self, selector: &str) -> Result<Vec<Value>> {
        let data = self.data(&format!("/api/v1/series?match[]={}", encoded(selector, false)))?;
        Ok(data.as_array().context("the list of series is none")?.clone())
    }

    fn data(&self, target: &str) -> Result<Value> {
        let answer: Value =
            serde_json::from_str(&self.get(target)?).with_context(|| format!("parse the answer to {target}"))?;
        Ok(answer["data"].clone())
    }

    fn get(&self, target: &str) -> Result<String> {
        let stream = TcpStream::connect_timeout(&(ADDRESS, PORT).into(), TIMEOUT).context("connect to Prometheus")?;
        stream.set_read_timeout(Some(TIMEOUT)).context("set a time limit")?;
        match exchange(stream, "GET", target, "", "")? {
            (200, body) => Ok(body),
            (status, body) => bail!("Prometheus answers {target} with {status}: {body}"),
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.server.stop();
    }
}

/// The one of the document, with the file of targets in place of the discovery, and less patience.
fn configuration(targets: &Path) -> Result<String> {
    let discovery = format!("    kubernetes_sd_configs:\n      - role: pod\n        namespaces: {{ names: [{NAMESPACE}] }}\n");
    let blocks = readme::blocks_of(DOC)?;
    let block = blocks.iter().find(|block| block.language == "yaml" && block.text.starts_with("scrape_configs:"));
    let text = &block.with_context(|| format!("{DOC} has no scrape_configs"))?.text;
    ensure!(text.matches(&discovery).count() == 1, "{DOC} does not find pods by\n{discovery}");
    let file = format!("    file_sd_configs:\n      - files: [{}]\n", targets.display());
    Ok(format!("global: {{ scrape_interval: 2s }}\n{}", text.replace(&discovery, &file)))
}

/// A target for each port of a pod, as the discovery of Kubernetes makes them; of its labels those that are of use.
fn targets_of(pod: &Value) -> Vec<Value> {
    let Some(ip) = pod["status"]["podIP"].as_str() else { return Vec::new() };
    let mut labels = Map::new();
    labels.insert("__meta_kubernetes_namespace".into(), pod["metadata"]["namespace"].clone());
    labels.insert("__meta_kubernetes_pod_name".into(), pod["metadata"]["name"].clone());
    labels.insert("__meta_kubernetes_pod_node_name".into(), pod["spec"]["nodeName"].clone());
    for (name, value) in pod["metadata"]["labels"].as_object().into_iter().flatten() {
        let name = name.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        labels.insert(format!("__meta_kubernetes_pod_label_{name}"), value.clone());
    }
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
    let target = |port: &Value| {
        let mut labels = labels.clone();
        labels.insert("__meta_kubernetes_pod_container_port_name".into(), port["name"].clone());
        json!({ "targets": [format!("{ip}:{}", port["containerPort"])], "labels": labels })
    };
    ports.map(target).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_of_a_pod_is_a_target_with_the_pods_labels() {
        let ports = json!([{ "name": "data", "containerPort": 7470 }, { "name": "admin", "containerPort": 7472 }]);
        let pod = json!({
            "metadata": { "namespace": "s", "name": "w", "labels": { "app.kubernetes.io/component": "worker" } },
            "spec": { "nodeName": "gpu-1", "containers": [{ "ports": ports }] },
            "status": { "podIP": "10.0.0.9" },
        });
        let targets = targets_of(&pod);
        assert_eq!(targets.len(), 2);
        assert_eq!(targets[1]["targets"], json!(["10.0.0.9:7472"]));
        assert_eq!(targets[1]["labels"]["__meta_kubernetes_pod_container_port_name"], "admin");
        assert_eq!(targets[1]["labels"]["__meta_kubernetes_pod_label_app_kubernetes_io_component"], "worker");
    }

    #[test]
    fn the_document_says_how_to_scrape() {
        let text = configuration(Path::new("/t.json")).unwrap();
        assert!(text.contains("files: [/t.json]") && text.contains("regex: admin, action: keep"), "{text}");
    }
}
