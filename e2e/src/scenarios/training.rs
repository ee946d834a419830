//! The training job of `manifests/samples/`, and what can be seen of it from outside.
//!
//! ```text
//! pods     {"waiting": 1}            {"epoch": 1, "bytes": …}   {"waiting": 2}  …  {"accuracy": …}
//! harness        └ caches dropped, counters read, gate opened ┘ └ counters read again
//! ```

mod counters;
mod epoch;
mod page_cache;

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

pub(super) use counters::Counters;
pub(super) use epoch::Epoch;
pub(super) use page_cache::PageCache;

use super::larder::Named;
use super::samples::{self, NAMESPACE};
use crate::cluster::phase;
use crate::dataset::Manifest;
use crate::images;
use crate::process::end_of;

const JOB: &str = "train";
const SUMS: &str = "imagenet-sums";
const START: Duration = Duration::from_secs(150);

/// A job that runs.
pub(super) struct Training<'a> {
    named: &'a Named<'a>,
    manifest: &'a Manifest,
    uid: String,
    /// Pods and their nodes.
    pods: Vec<(String, String)>,
}

/// A pod's last line.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Ending {
    /// Share of the held-out samples that the model names rightly.
    pub(super) accuracy: f64,
    /// The same of its twin, which learned from shuffled labels.
    pub(super) shuffled: f64,
    /// Of no model at all.
    pub(super) chance: f64,
    /// Files whose SHA-256 is that of the list.
    pub(super) checked: Option<u64>,
    /// Most memory the pod had, in bytes.
    pub(super) peak_rss: u64,
}

impl<'a> Training<'a> {
    /// Brings the image to the nodes; the job itself starts at once then.
    pub(super) fn load_image(named: &Named<'_>) -> Result<()> {
        let cluster = &named.lab.cluster;
        let archive = images::training_image(cluster.run(), cluster.tools())?;
        cluster.load_image(cluster.gpu_nodes(), &archive)
    }

    /// Applies the job with a list of sums, and waits till its pods run.
    pub(super) fn start(named: &'a Named<'a>, manifest: &'a Manifest, epochs: u32) -> Result<Self> {
        let cluster = &named.lab.cluster;
        samples::create_config_map(named, SUMS, "SHA256SUMS", &samples::sums(manifest))?;
        let pods = cluster.gpu_nodes().count().min(2);
        let replacements = [
            ("image: pytorch/pytorch:2.5.1-cuda12.4-cudnn9-runtime", format!("image: {}", images::TRAINING)),
            ("completions: 2", format!("completions: {pods}")),
            ("parallelism: 2", format!("parallelism: {pods}")),
            (r#"- { name: EPOCHS, value: "3" }"#, format!(r#"- {{ name: EPOCHS, value: "{epochs}" }}"#)),
            // How the harness stops the job between epochs, to drop caches and to read counters.
            (r#"- { name: GATE, value: "" }"#, "- { name: GATE, value: /tmp }".to_owned()),
        ];
        samples::apply(named, "training-job.yaml", &replacements)?;
        let pods = cluster.wait_until("the pods of the training job", START, || {
            let found = cluster.pods(NAMESPACE, &format!("batch.kubernetes.io/job-name={JOB}"))?;
            ensure!(found.len() == pods, "{} of {pods} are there", found.len());
            found
                .iter()
                .map(|pod| {
                    let text = |value: &Value| value.as_str().map(str::to_owned).context("it has no node yet");
                    Ok((text(&pod["metadata"]["name"])?, text(&pod["spec"]["nodeName"])?))
                })
                .collect::<Result<Vec<_>>>()
        })?;
        let object = named.object()?;
        let uid = object["metadata"]["uid"].as_str().context("the dataset has no uid")?.to_owned();
        let training = Self { named, manifest, uid, pods };
        training.wait_for("the training pods to start", START, |line| line["waiting"] == 1)?;
        Ok(training)
    }

    /// Lets one epoch pass, and checks that all figures fit together.
    pub(super) fn epoch(&self, number: u32, cold: bool, timeout: Duration) -> Result<Epoch> {
        let cluster = &self.named.lab.cluster;
        self.wait_for(&format!("epoch {number} to begin"), timeout, |line| line["waiting"] == number)?;
        if cold && number > 1 {
            self.wait_for_copies(timeout)?;
        }
        let caches = PageCache::hold(cluster.tools())?;
        if cold {
            caches.clear()?;
        }
        let before = Counters::read(self.named, &self.uid)?;
        let open = format!("open('/tmp/epoch-{number}', 'x')");
        for (pod, _) in &self.pods {
            cluster.exec(NAMESPACE, pod, None, &["python3", "-c", &open])?;
        }
        let lines = self.wait_for(&format!("epoch {number}"), timeout, |line| line["epoch"] == number)?;
        let after = Counters::read(self.named, &self.uid)?;
        let pods = lines.into_iter().map(|line| serde_json::from_value(line).context("understand a training pod"));
        let epoch = Epoch { number, cold, pods: pods.collect::<Result<_>>()?, counted: after.since(&before) };
        epoch.check(self.manifest, cluster.gpu_nodes().count()).with_context(|| format!("epoch {number}"))?;
        Ok(epoch)
    }

    /// Waits till each node has kept what its pod read on another one.
    fn wait_for_copies(&self, timeout: Duration) -> Result<()> {
        let bytes: u64 = self.manifest.values().map(|entry| entry.size).sum();
        let others = self.pods.len() as u64 - 1;
        self.named.lab.cluster.wait_until("copies of what the pods read", timeout, || {
            let kept = Counters::read(self.named, &self.uid)?.kept;
            ensure!(kept >= bytes * others, "{kept} of {} bytes are kept", bytes * others);
            Ok(())
        })
    }

    /// Waits till the job has succeeded: its pods have judged themselves.
    pub(super) fn finish(&self) -> Result<Vec<Ending>> {
        let lines = self.wait_for("the end of the training", START, |line| line["accuracy"].is_number())?;
        for (pod, _) in &self.pods {
            self.named.lab.cluster.wait_succeeded(NAMESPACE, pod, START)?;
        }
        lines.into_iter().map(|line| serde_json::from_value(line).context("understand a training pod")).collect()
    }

    /// Waits for a line of each pod; a pod that fails is an error at once.
    fn wait_for(&self, what: &str, timeout: Duration, wanted: impl Fn(&Value) -> bool) -> Result<Vec<Value>> {
        let cluster = &self.named.lab.cluster;
        cluster.wait_until(what, timeout, || {
            let mut found = Vec::new();
            for (pod, node) in &self.pods {
                let failed = phase(&cluster.get("pods", Some(NAMESPACE), pod)?) == "Failed";
                let log = cluster.logs(NAMESPACE, pod, None).unwrap_or_default();
                let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
                if let Some(error) = lines.iter().find_map(|line| line["error"].as_str()) {
                    return Ok(Err(anyhow!("the training on {node} failed: {error}")));
                }
                match lines.into_iter().find(&wanted) {
                    Some(line) => found.push(line),
                    None if failed => return Ok(Err(anyhow!("the training on {node} failed:\n{}", end_of(&log, 15)))),
                    None => bail!("{pod} on {node} is not there yet"),
                }
            }
            Ok(Ok(found))
        })?
    }

    /// Takes the job and what belongs to it away, so that the dataset can go.
    pub(super) fn remove(named: &Named<'_>, timeout: Duration) -> Result<()> {
        let cluster = &named.lab.cluster;
        cluster.delete_and_wait("jobs", Some(NAMESPACE), JOB, timeout)?;
        cluster.wait_until("no training pods", timeout, || {
            let left = cluster.pods(NAMESPACE, &format!("batch.kubernetes.io/job-name={JOB}"))?.len();
            ensure!(left == 0, "{left} are left");
            Ok(())
        })?;
        [SUMS, JOB].iter().try_for_each(|name| cluster.delete("configmaps", Some(NAMESPACE), name))
    }
}
