//! Data that is not what it should be: Larder mends what it can, and what it cannot know the training job must notice.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use super::datasets::kill;
use super::larder::{BUCKET, Named, SYSTEM, install, upload};
use super::samples::{self, DATASET, NAMESPACE};
use super::training::{self, Training};
use crate::cluster::Node;
use crate::dataset::Manifest;
use crate::lab::Lab;

const WAIT: Duration = Duration::from_secs(120);

/// The worker that comes back does not trust the disk: no pod reads the byte, the file is put aside, told, and fetched again.
pub(super) fn a_byte_that_changed_on_a_disk_reaches_no_pod_after_the_worker_restarted(lab: &Lab) -> Result<()> {
    with_dataset(lab, |named, manifest, uid| {
        let (node, path) = damage_a_cached_file(lab, manifest, uid)?;
        // Nothing but the disk tells the next one what is there.
        let workers = lab.cluster.pods(SYSTEM, &format!("larder.dev/dataset-uid={uid}"))?;
        let worker = workers.iter().find(|pod| pod["spec"]["nodeName"] == node.name()).context("the node has no worker")?;
        kill(lab, worker, "worker")?;
        training::PageCache::hold(lab.cluster.tools())?.clear()?;
        // The file is fetched again, so this is not an epoch that costs the origin nothing.
        named.read_everywhere(manifest, WAIT)?;
        named.remove_readers(WAIT)?;
        named.wait_reason("WorkersReady", "DataCorrupted", "quarantine", WAIT)?;
        let quarantine = node.nvme().join("larder").join(uid).join("quarantine");
        let kept = fs::read_dir(&quarantine).with_context(|| format!("list {}", quarantine.display()))?.count();
        ensure!(kept == 2, "{path} and its sidecar were to be put aside, there are {kept} files in {}", quarantine.display());
        Ok(())
    })
}

pub(super) fn a_training_job_notices_a_file_that_is_not_there(lab: &Lab) -> Result<()> {
    with_dataset(lab, |named, manifest, _| {
        let mut more = manifest.clone();
        let (_, entry) = manifest.first_key_value().context("an empty dataset")?;
        more.insert("samples/class-00/lost.pgm".to_owned(), entry.clone());
        let error = train(named, &more).err().context("the job succeeded although a file is missing")?;
        let error = format!("{error:#}");
        ensure!(error.contains("1 of the files are missing") && error.contains("samples/class-00/lost.pgm"), "{error}");
        Ok(())
    })
}

fn with_dataset(lab: &Lab, test: impl FnOnce(&Named<'_>, &Manifest, &str) -> Result<()>) -> Result<()> {
    install(lab)?;
    let named = Named { lab, namespace: NAMESPACE, name: DATASET };
    let manifest = upload(lab, BUCKET, named.name, 81)?;
    Training::load_image(&named)?;
    samples::apply_dataset(&named)?;
    let object = named.wait("Preloaded", WAIT)?;
    let uid = object["metadata"]["uid"].as_str().context("the dataset has no uid")?;
    let outcome = test(&named, &manifest, uid);
    // Also after a failure: the next test uses the same names.
    let removed = samples::remove(&named, WAIT);
    outcome.and(removed)
}

/// The way the demo goes, for one epoch.
fn train(named: &Named<'_>, manifest: &Manifest) -> Result<()> {
    let training = Training::start(named, manifest, 1)?;
    training.epoch(1, true, WAIT)?;
    training.finish().map(drop)
}

/// Changes one byte in the middle of a file in a worker's cache; returns the node, and the path that pods see the file at.
fn damage_a_cached_file<'a>(lab: &'a Lab, manifest: &Manifest, uid: &str) -> Result<(&'a Node, String)> {
    let node = lab.cluster.gpu_nodes().next().context("no GPU node")?;
    let mut folders = vec![node.nvme().join("larder").join(uid).join("data")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let path: PathBuf = entry.context("list cached files")?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let mut content = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            let sum: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
            // Sidecars are there too, and have no entry.
            let Some((name, _)) = manifest.iter().find(|(_, entry)| entry.size > 0 && entry.sha256 == sum) else { continue };
            let middle = content.len() / 2;
            content[middle] ^= 1;
            let file = fs::OpenOptions::new().write(true).open(&path).context("open a cached file")?;
            file.write_all_at(&content[middle..=middle], middle as u64).context("change a cached file")?;
            file.sync_all().context("write a cached file to the disk")?;
            return Ok((node, name.clone()));
        }
    }
    bail!("{} has no cached file of this dataset", node.name())
}
