//! The main job, from an empty cluster to the right bytes in pods on every node, and back to nothing.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::larder::{BUCKET, Named, install};
use crate::dataset::{Dataset, Manifest};
use crate::lab::Lab;
use crate::report::{say, seconds, step};
use crate::s3::{Reads, Request};

const MIB: u64 = 1 << 20;

pub(super) fn first_light(lab: &Lab) -> Result<()> {
    let named = Named { lab, namespace: "vision", name: "demo" };
    let shown = show(&named, &Dataset::small(1));
    shown.and_then(|()| step("dataset deleted, nothing left", || named.remove(Duration::from_secs(60))))
}

/// What `larder-e2e demo` shows: the same with data that takes a while. With `keep` all of it stays.
///
/// # Errors
/// Something did not work.
pub fn demo(lab: &Lab, keep: bool) -> Result<()> {
    let named = Named { lab, namespace: "vision", name: "demo" };
    show(&named, &Dataset::demo(1))?;
    if keep {
        say(
            "try: kubectl -n vision get cachedataset,pvc,pods; kubectl -n larder-system get pods; larder describe dataset demo -n vision",
        );
        return Ok(());
    }
    step("dataset deleted, nothing left", || named.remove(Duration::from_secs(120)))
}

fn show(named: &Named<'_>, files: &Dataset) -> Result<()> {
    let lab = named.lab;
    let manifest = step("data generated in the bucket", || files.write(&lab.s3.bucket(BUCKET)?.join(named.name)))?;
    let bytes: u64 = manifest.values().map(|entry| entry.size).sum();
    say(format!("  s3://{BUCKET}/{}/ has {} files, {} MiB", named.name, manifest.len(), bytes / MIB));
    install(lab)?;
    say("  kubectl apply of:");
    named.yaml()?.lines().skip_while(|line| !line.contains("larder.dev")).for_each(|line| say(format!("    {line}")));
    step("CacheDataset Ready", || {
        named.create()?;
        named.wait("Ready", Duration::from_secs(120))
    })?;
    let preloaded = step("CacheDataset Preloaded", || named.wait("Preloaded", Duration::from_secs(400)))?;
    let snapshot = &preloaded["status"]["snapshot"];
    let seen = (snapshot["files"].as_u64(), snapshot["bytes"].as_u64());
    ensure!(seen == (Some(manifest.len() as u64), Some(bytes)), "the snapshot says {snapshot}");
    the_command_line_tells_what_the_api_says(named, &preloaded)?;
    let took = named.read_everywhere(&manifest, Duration::from_secs(300))?;
    let pods = lab.cluster.nodes().len();
    say(format!("  {pods} pods, one per node, read and verified all {} files: {}", manifest.len(), seconds(took)));
    each_byte_left_the_origin_once(named, &manifest, bytes)
}

/// However many nodes read it.
fn each_byte_left_the_origin_once(named: &Named<'_>, manifest: &Manifest, bytes: u64) -> Result<()> {
    let log = named.lab.s3.requests()?;
    let reads = Request::reads(&log, BUCKET);
    let read = |path: &str| reads.get(&format!("{}/{path}", named.name)).copied().unwrap_or_default();
    let wrong: Vec<(&String, u64, Reads)> = manifest
        .iter()
        .map(|(path, entry)| (path, entry.size, read(path)))
        .filter(|(_, size, reads)| reads.bytes != *size)
        .collect();
    let sent: u64 = reads.values().map(|reads| reads.bytes).sum();
    let requests: u64 = reads.values().map(|reads| reads.requests).sum();
    say(format!("  the origin sent {} MiB of {} MiB in {requests} requests", sent / MIB, bytes / MIB));
    ensure!(wrong.is_empty(), "{} files did not leave the origin exactly once, for example {:?}", wrong.len(), wrong[0]);
    Ok(())
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
