//! How fast, as ratios of two things measured one after the other in the same run, on the same disk, server and cores.
//!
//! - *preload*: what workers bring from the origin to their disks, over what a plain parallel S3 client (s5cmd) brings to
//!   the same disk with the same parallelism and TLS. Larder's files are synced and checksummed when they count; the other's
//!   are not.
//! - *read*: what a pod reads through its claim, over what the same program in the same pod reads from a plain copy of the
//!   same files on the node's disk; page caches are dropped before each. The claim's files that another node owns come from
//!   there.
//!
//! Machines are noisy, so all is repeated, in turns; `larder-bench` compares.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::larder::{BUCKET, Named, install};
use super::training::PageCache;
use crate::cluster::Node;
use crate::dataset::Dataset;
use crate::lab::Lab;
use crate::process::Run as _;
use crate::report::{say, step, with_heartbeat};
use crate::s3::{ACCESS_KEY, NAME, REGION, SECRET_KEY};
use crate::tools::repository;

const ROUNDS: usize = 5;
const MIB: f64 = 1_048_576.0;
const LONG: Duration = Duration::from_secs(600);

/// Files a worker fetches at once (`crates/worker/src/jobs/preload.rs`).
const FILES_PER_WORKER: usize = 32;
/// Chunks of a file at once, and their size in MiB (the same place; `crates/cache`).
const CHUNKS_PER_FILE: usize = 8;
const CHUNK_MIB: usize = 4;

/// Four readers; as many as the nodes of the test cluster can keep busy.
const READ: &str = "find \"$0\" -type f -print0 | xargs -0 -n 32 -P 4 cat > /dev/null";

/// Measures and writes `target/bench/cluster.json`.
///
/// # Errors
/// Something did not work; that something is slow is no error.
pub fn bench(lab: &Lab) -> Result<()> {
    let named = Named { lab, namespace: "bench", name: "bench" };
    let node = lab.cluster.gpu_nodes().next().context("the cluster has no GPU node")?;
    let mut files = Dataset::demo(1);
    files.shards.truncate(5);
    let manifest = step("data generated in the bucket", || files.write(&lab.s3.bucket(BUCKET)?.join(named.name)))?;
    let mib = manifest.values().map(|entry| entry.size).sum::<u64>() as f64 / MIB;
    say(format!("  {} files, {mib:.0} MiB", manifest.len()));
    install(lab)?;

    let (mut plain, mut preload) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        plain.push(mib / plain_client(lab, node, named.name)?);
        preload.push(mib / preload_once(&named, manifest.len())?);
        say(format!("  round {round}: plain client {:.0} MiB/s, preload {:.0} MiB/s", plain[round - 1], preload[round - 1]));
        if round < ROUNDS {
            named.remove(LONG)?;
        }
    }
    start_reader(&named, node)?;
    let (mut local, mut mounted) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        local.push(mib / read_once(&named, "/plain")?);
        mounted.push(mib / read_once(&named, "/data")?);
        say(format!("  round {round}: local disk {:.0} MiB/s, claim {:.0} MiB/s", local[round - 1], mounted[round - 1]));
    }
    lab.cluster.delete_and_wait("pods", Some(named.namespace), "bench", LONG)?;
    named.remove(LONG)?;
    write(&preload, &plain, &mounted, &local)
}

/// Copies the whole dataset to the node's disk; returns the seconds it took.
fn plain_client(lab: &Lab, node: &Node, prefix: &str) -> Result<f64> {
    let target = node.nvme().join("plain");
    let _ = fs::remove_dir_all(&target);
    let authority = lab.cluster.run().path("bench-ca.crt");
    fs::write(&authority, lab.s3.authority()?).context("write the authority's certificate")?;
    let workers = FILES_PER_WORKER * lab.cluster.gpu_nodes().count();
    PageCache::hold(lab.cluster.tools())?.clear()?;
    let started = Instant::now();
    with_heartbeat("plain S3 client", String::new, || {
        node.command(lab.cluster.tools().s5cmd()?)?
            .args(["--endpoint-url", &lab.s3.endpoint(), "--numworkers", &workers.to_string(), "--log", "error", "cp"])
            .args(["--concurrency", &CHUNKS_PER_FILE.to_string(), "--part-size", &CHUNK_MIB.to_string()])
            .arg(format!("s3://{BUCKET}/{prefix}/*"))
            // As the node sees it.
            .arg("/mnt/nvme0/plain/")
            .envs([("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY), ("AWS_REGION", REGION)])
            .env("AWS_CA_BUNDLE", &authority)
            .run()
            .with_context(|| format!("copy from {NAME} with s5cmd"))
    })?;
    Ok(started.elapsed().as_secs_f64())
}

/// Creates the dataset; returns the seconds from the snapshot to the last byte on disk.
fn preload_once(named: &Named<'_>, files: usize) -> Result<f64> {
    PageCache::hold(named.lab.cluster.tools())?.clear()?;
    named.create()?;
    let uid = named.object()?["metadata"]["uid"].as_str().context("the dataset has no uid")?.to_owned();
    let nodes: Vec<&Node> = named.lab.cluster.gpu_nodes().collect();
    // From the first file that is being fetched to the last that is in place, as the disks show it: status is rounded to
    // seconds and later than the event.
    let count = |folder: &str, depth: &str| -> Result<usize> {
        let mut found = 0;
        for node in &nodes {
            let folder = node.nvme().join("larder").join(&uid).join(folder);
            if folder.exists() {
                let list = std::process::Command::new("find").arg(folder).args(["-mindepth", depth, "-type", "f"]).run()?;
                found += list.lines().filter(|line| !line.ends_with(".meta")).count();
            }
        }
        Ok(found)
    };
    named.lab.cluster.wait_until("a file that is being fetched", LONG, || {
        ensure!(count("fill", "1")? + count("data", "2")? > 0, "none yet");
        Ok(())
    })?;
    let started = Instant::now();
    named.lab.cluster.wait_until("all files on disk", LONG, || {
        let there = count("data", "2")?;
        ensure!(there >= files, "{there} of {files} files are");
        Ok(())
    })?;
    let took = started.elapsed().as_secs_f64();
    named.wait("Preloaded", LONG)?;
    Ok(took)
}

/// A pod that sees the claim at `/data` and the plain copy at `/plain`.
fn start_reader(named: &Named<'_>, node: &Node) -> Result<()> {
    let mut pod = named.pod("bench", node, &["sleep", "86400"]);
    let container = &mut pod["spec"]["containers"][0];
    container["volumeMounts"]
        .as_array_mut()
        .context("volume mounts of a reader")?
        .push(json!({ "name": "plain", "mountPath": "/plain", "readOnly": true }));
    pod["spec"]["volumes"]
        .as_array_mut()
        .context("volumes of a reader")?
        .push(json!({ "name": "plain", "hostPath": { "path": "/mnt/nvme0/plain", "type": "Directory" } }));
    named.lab.cluster.apply(&pod.to_string())?;
    named.lab.cluster.wait_ready(named.namespace, "bench", LONG).map(drop)
}

fn read_once(named: &Named<'_>, folder: &str) -> Result<f64> {
    PageCache::hold(named.lab.cluster.tools())?.clear()?;
    let started = Instant::now();
    with_heartbeat("reading", String::new, || {
        named.lab.cluster.exec(named.namespace, "bench", None, &["sh", "-c", READ, folder])
    })?;
    Ok(started.elapsed().as_secs_f64())
}

/// Writes the samples for `larder-bench`, which knows the targets and what they mean.
fn write(preload: &[f64], plain: &[f64], mounted: &[f64], local: &[f64]) -> Result<()> {
    let row = |id: &str, ours: &[f64], theirs: &[f64]| json!({ "id": id, "samples": { "local": theirs, "mount": ours } });
    let rows = [row("cluster-preload", preload, plain), row("cluster-read", mounted, local)];
    let folder = repository().join("target/bench");
    fs::create_dir_all(&folder).context("make target/bench")?;
    fs::write(folder.join("cluster.json"), serde_json::to_vec_pretty(&rows)?).context("write target/bench/cluster.json")
}
