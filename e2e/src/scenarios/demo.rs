//! The main job, from an empty cluster to a training job that reads the right bytes on every node, and back to nothing.

mod daemons;
mod preload;
mod report;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::larder::{BUCKET, Named, install};
use super::samples::{self, DATASET, NAMESPACE};
use super::training::Training;
use crate::cluster::NodeKind;
use crate::dataset::{Dataset, Manifest};
use crate::lab::Lab;
use crate::report::{say, step};
use crate::s3::{Reads, Request};
use report::{Origin, Report, mib};

const EPOCHS: u32 = 3;

/// How much is shown.
struct Show {
    files: Dataset,
    /// How long daemons with nothing to do are watched.
    idle: Duration,
}

pub(super) fn first_light(lab: &Lab) -> Result<()> {
    let named = Named { lab, namespace: NAMESPACE, name: DATASET };
    let shown = show(&named, &Show { files: Dataset::small(1), idle: Duration::from_secs(1) });
    // Also after a failure: the next test uses the same names.
    let removed = remove(&named, Duration::from_secs(60));
    shown.and(removed)
}

/// What `larder-e2e demo` shows: the same with data that takes a while. With `keep` all of it stays.
///
/// # Errors
/// Something did not work, or a figure is not what it should be.
pub fn demo(lab: &Lab, keep: bool) -> Result<()> {
    let named = Named { lab, namespace: NAMESPACE, name: DATASET };
    show(&named, &Show { files: Dataset::demo(1), idle: Duration::from_secs(10) })?;
    if keep {
        say(format!(
            "try: kubectl -n {NAMESPACE} get cachedataset,pvc,pods; kubectl -n larder-system get pods; \
             larder describe dataset {DATASET} -n {NAMESPACE}"
        ));
        return Ok(());
    }
    remove(&named, Duration::from_secs(120))
}

fn remove(named: &Named<'_>, timeout: Duration) -> Result<()> {
    step("job and dataset deleted, nothing left", || samples::remove(named, timeout))
}

fn show(named: &Named<'_>, show: &Show) -> Result<()> {
    let lab = named.lab;
    let mut clock = Clock::default();
    let manifest =
        clock.step("data", "data generated in the bucket", || show.files.write(&lab.s3.bucket(BUCKET)?.join(named.name)))?;
    let bytes: u64 = manifest.values().map(|entry| entry.size).sum();
    say(format!("  s3://{BUCKET}/{}/ has {} files, {}", named.name, manifest.len(), mib(bytes)));
    clock.time("install", || install(lab))?;
    clock.step("image", "training image built and loaded", || Training::load_image(named))?;

    let preloaded = clock.time("preload", || {
        step("kubectl apply of manifests/samples/: Secret, CacheDataset", || samples::apply_dataset(named))?;
        preload::watch(named, Duration::from_secs(400))
    })?;
    let snapshot = &preloaded["status"]["snapshot"];
    let seen = (snapshot["files"].as_u64(), snapshot["bytes"].as_u64());
    ensure!(seen == (Some(manifest.len() as u64), Some(bytes)), "the snapshot says {snapshot}");
    the_command_line_tells_what_the_api_says(named, &preloaded)?;
    let preload_took = preload::took(named)?;

    let (epochs, endings) = clock.time("training", || {
        let training = step("kubectl apply of manifests/samples/: training Job", || Training::start(named, &manifest, EPOCHS))?;
        let epochs = (1..=EPOCHS)
            .map(|number| {
                let cold = number < EPOCHS;
                let what = format!("epoch {number}{}", if cold { ", page caches dropped" } else { ", warm" });
                step(&what, || training.epoch(number, cold, Duration::from_secs(240)))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok((epochs, training.finish()?))
    })?;
    let others = clock.time("CPU node", || read_elsewhere(named, &manifest))?;
    let origin = each_byte_left_the_origin_once(named, &manifest, bytes)?;
    let daemons = clock.step("idle", "daemons watched while idle", || daemons::measure(lab, show.idle))?;
    Report {
        nodes: lab.cluster.nodes(),
        manifest: &manifest,
        snapshot: snapshot["id"].as_str().context("no snapshot id")?,
        preload: preload_took,
        epochs: &epochs,
        endings: &endings,
        others: &others,
        origin: &origin,
        daemons: &daemons,
        clock: &clock.0,
    }
    .print();
    Ok(())
}

/// How long each part took.
#[derive(Default)]
struct Clock(Vec<(&'static str, Duration)>);

impl Clock {
    fn time<T>(&mut self, part: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let result = work();
        self.0.push((part, started.elapsed()));
        result
    }

    fn step<T>(&mut self, part: &'static str, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.time(part, || step(what, work))
    }
}

/// Nodes without GPUs have no training pod; a pod on each of them reads and compares every file too.
fn read_elsewhere(named: &Named<'_>, manifest: &Manifest) -> Result<Vec<(String, Duration)>> {
    let nodes: Vec<_> = named.lab.cluster.nodes().iter().filter(|node| node.kind() == NodeKind::Cpu).collect();
    nodes
        .iter()
        .map(|node| {
            let took = step(&format!("a pod on {} reads every file", node.name()), || {
                named.start_reader(node)?;
                named.check_reader(node, manifest, Duration::from_secs(300))
            })?;
            Ok((node.name().to_owned(), took))
        })
        .collect()
}

/// However many nodes read it.
fn each_byte_left_the_origin_once(named: &Named<'_>, manifest: &Manifest, bytes: u64) -> Result<Origin> {
    let log = named.lab.s3.requests()?;
    let folder = format!("{}/", named.name);
    let reads = Request::reads(&log, BUCKET);
    let read = |path: &str| reads.get(&format!("{folder}{path}")).copied().unwrap_or_default();
    let wrong: Vec<(&String, u64, Reads)> = manifest
        .iter()
        .map(|(path, entry)| (path, entry.size, read(path)))
        .filter(|(_, size, reads)| reads.bytes != *size)
        .collect();
    ensure!(wrong.is_empty(), "{} files did not leave the origin exactly once, for example {:?}", wrong.len(), wrong[0]);
    let ours = || reads.iter().filter(|(key, _)| key.starts_with(&folder)).map(|(_, reads)| reads);
    let origin = Origin { sent: ours().map(|reads| reads.bytes).sum(), requests: ours().map(|reads| reads.requests).sum() };
    ensure!(origin.sent == bytes, "the origin sent {} bytes of a dataset of {bytes}", origin.sent);
    Ok(origin)
}

/// `larder get` and `larder describe`, with what a person looks for.
fn the_command_line_tells_what_the_api_says(named: &Named<'_>, object: &Value) -> Result<()> {
    let table = named.lab.cluster.larder(&["get", "datasets", "--all-namespaces"])?;
    let files = object["status"]["snapshot"]["files"].to_string();
    let row = table.lines().find(|line| line.contains(named.namespace) && line.contains(named.name));
    let row = row.with_context(|| format!("`larder get datasets` does not show the dataset:\n{table}"))?;
    for part in ["True", "100%", files.as_str()] {
        ensure!(row.split_whitespace().any(|word| word == part), "`larder get datasets` has no {part} in: {row}");
    }
    let detail = named.lab.cluster.larder(&["describe", "dataset", named.name, "--namespace", named.namespace])?;
    let id = object["status"]["snapshot"]["id"].as_str().context("no snapshot id")?;
    for part in [id, "Preloaded", "Complete", "100%", "WorkersReady"] {
        ensure!(detail.contains(part), "`larder describe dataset` has no {part}:\n{detail}");
    }
    table.lines().for_each(|line| say(format!("    {}", line.trim_end())));
    let error = named.lab.cluster.larder(&["describe", "dataset", "not-there", "--namespace", named.namespace]);
    let error = error.err().context("`larder describe dataset not-there` did not fail")?;
    ensure!(format!("{error:#}").contains("not-there"), "the error does not name the dataset: {error:#}");
    Ok(())
}
