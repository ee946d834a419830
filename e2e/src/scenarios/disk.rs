//! Disks and quotas that cannot take the data: said in a condition, read all the same, healed by themselves.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::larder::{BUCKET, Named, SPARE_TIER, SYSTEM, install, upload};
use crate::dataset::{Dataset, Manifest};
use crate::lab::Lab;
use crate::process::Run as _;
use crate::report::say;

const WAIT: Duration = Duration::from_secs(120);

/// A disk without a free byte, then one with a little less than what stays free, then one with enough.
pub(super) fn a_full_disk_is_named_and_heals(lab: &Lab) -> Result<()> {
    install(lab)?;
    let disk = |command: &str| on_gpu_nodes(lab, command);
    // The size of a tmpfs is a promise that costs nothing; it may be changed while it is used.
    disk(&format!(
        "mkdir -p {SPARE_TIER}; mount -t tmpfs -o size=1m spare {SPARE_TIER}; head -c 1M /dev/zero > {SPARE_TIER}/full"
    ))?;
    let named = Named { lab, namespace: "full", name: "full" };
    let manifest = upload(lab, BUCKET, named.name, 511)?;
    lab.cluster.create_namespace(named.namespace)?;
    lab.cluster.apply(&named.yaml()?.replace("name: nvme, quota", "name: spare, quota"))?;
    named.wait_reason("SnapshotTaken", "DiskFull", SPARE_TIER, WAIT)?;
    named.wait_reason("Ready", "DiskFull", "free space", WAIT)?;

    disk(&format!("mount -o remount,size=10g {SPARE_TIER}"))?;
    named.wait_reason("Preloaded", "DoesNotFit", SPARE_TIER, WAIT)?;
    named.wait("Ready", WAIT)?;
    named.wait_reason("Preloaded", "DoesNotFit", "free space", WAIT)?;
    named.read_everywhere(&manifest, WAIT)?;
    named.remove_readers(WAIT)?;
    no_worker_has_crashed(&named)?;

    disk(&format!("mount -o remount,size=100g {SPARE_TIER}"))?;
    heals(&named, &manifest)?;
    named.remove(WAIT)?;
    unmount_spare(lab)
}

/// Two disks; one of them gives and takes nothing any more. Nobody who opens a file then notices, and all of it is cached again on
/// the other one.
pub(super) fn a_disk_of_several_that_fails_leaves_the_others(lab: &Lab) -> Result<()> {
    install(lab)?;
    plug_in_spare(lab)?;
    let named = Named { lab, namespace: "two-disks", name: "two-disks" };
    let manifest = upload(lab, BUCKET, named.name, 551)?;
    lab.cluster.create_namespace(named.namespace)?;
    let tiers = "tiers: [{ name: nvme, quota: 5Gi }, { name: spare, quota: 5Gi }]";
    lab.cluster.apply(&named.yaml()?.replace("tiers: [{ name: nvme, quota: 5Gi }]", tiers))?;
    named.wait("Preloaded", WAIT)?;
    let data = format!("larder/{}/data", named.uid()?);
    for tier in ["/mnt/nvme0", SPARE_TIER] {
        on_gpu_nodes(lab, &format!("test -n \"$(find {tier}/{data} -type f)\""))?;
    }
    named.read_everywhere(&manifest, WAIT)?;
    named.remove_readers(WAIT)?;

    pull_out_spare(lab)?;
    named.wait_reason("WorkersReady", "DiskFailed", SPARE_TIER, WAIT)?;
    // No page of it is left in memory either.
    on_gpu_nodes(lab, &format!("find {SPARE_TIER}/{data} -type f -exec dd if={{}} iflag=nocache count=0 status=none ';'"))?;
    named.read_everywhere(&manifest, WAIT)?;
    heals(&named, &manifest)?;
    named.remove_readers(WAIT)?;
    no_worker_has_crashed(&named)?;

    unmount_spare(lab)?;
    plug_in_spare(lab)?;
    // A pod sees the disks that were there when it started.
    let workers = format!("larder.dev/dataset-uid={}", named.uid()?);
    lab.cluster.kubectl(&["delete", "pods", "--namespace", SYSTEM, "--selector", &workers])?;
    named.wait("WorkersReady", WAIT)?;
    named.remove(WAIT)?;
    unmount_spare(lab)
}

/// A disk that promises 100 GiB and takes no room.
fn plug_in_spare(lab: &Lab) -> Result<()> {
    for node in lab.cluster.gpu_nodes() {
        let disk = node.var_lib("spare.img").display().to_string();
        let make = format!("rm -f {disk}; truncate -s 100G {disk}; mke2fs -q -F -t ext4 -N 20000 -O ^has_journal {disk}");
        node.command("sh")?
            .args(["-ec", &format!("{make}; mkdir -p {SPARE_TIER}; mount -o loop {disk} {SPARE_TIER}")])
            .run()?;
    }
    Ok(())
}

/// Whatever is read from it or written to it from now on is an I/O error.
fn pull_out_spare(lab: &Lab) -> Result<()> {
    for node in lab.cluster.gpu_nodes() {
        let disk = node.var_lib("spare.img").display().to_string();
        let pull =
            format!("truncate -s 0 {disk}; losetup --set-capacity $(losetup --noheadings --output NAME --associated {disk})");
        node.command("sh")?.args(["-ec", &pull]).run()?;
    }
    Ok(())
}

/// 40 MiB for two datasets: one that takes two thirds of it, and one that comes later and has not enough in what is left.
pub(super) fn a_dataset_gets_its_share_of_a_disk_that_another_one_has_filled(lab: &Lab) -> Result<()> {
    install(lab)?;
    // 10 GiB stay free; the last MiB is for what is not data.
    on_gpu_nodes(lab, &format!("mkdir -p {SPARE_TIER}; mount -t tmpfs -o size=10281m spare {SPARE_TIER}"))?;
    let create = |name, files| -> Result<(Named<'_>, Manifest)> {
        let named = Named { lab, namespace: name, name };
        let dataset = Dataset { shards: vec![1 << 20; files], small: 0, odd_names: false, ..Dataset::small(541) };
        let manifest = dataset.write(&lab.s3.bucket(BUCKET)?.join(name))?;
        lab.cluster.create_namespace(name)?;
        lab.cluster.apply(&named.yaml()?.replace("name: nvme, quota", "name: spare, quota"))?;
        Ok((named, manifest))
    };
    let (first, all) = create("first", 60)?;
    first.wait("Preloaded", WAIT)?;
    let (second, few) = create("second", 28)?;
    heals(&second, &few)?;
    first.wait_reason("Preloaded", "DoesNotFit", SPARE_TIER, WAIT)?;
    first.read_everywhere(&all, WAIT)?;
    for named in [&first, &second] {
        named.remove_readers(WAIT)?;
        no_worker_has_crashed(named)?;
        named.remove(WAIT)?;
    }
    unmount_spare(lab)
}

fn on_gpu_nodes(lab: &Lab, command: &str) -> Result<()> {
    for node in lab.cluster.gpu_nodes() {
        node.command("sh")?.args(["-ec", command]).run()?;
    }
    Ok(())
}

fn unmount_spare(lab: &Lab) -> Result<()> {
    // Beneath it may be what the node plugin and workers made there when it was not mounted.
    on_gpu_nodes(lab, &format!("umount {SPARE_TIER}; rm -rf {SPARE_TIER}"))
}

/// The share is larger than the quota, until that is raised.
pub(super) fn a_quota_that_is_too_small_is_named_and_heals(lab: &Lab) -> Result<()> {
    install(lab)?;
    let named = Named { lab, namespace: "quota", name: "quota" };
    let manifest = upload(lab, BUCKET, named.name, 521)?;
    let right = named.yaml()?;
    lab.cluster.create_namespace(named.namespace)?;
    lab.cluster.apply(&right.replace("quota: 5Gi", "quota: 100Ki"))?;
    named.wait_reason("Preloaded", "DoesNotFit", "spec.cache.tiers[].quota", WAIT)?;
    named.wait("Ready", WAIT)?;
    named.read_everywhere(&manifest, WAIT)?;
    named.remove_readers(WAIT)?;
    no_worker_has_crashed(&named)?;
    lab.cluster.apply(&right)?;
    heals(&named, &manifest)?;
    named.remove(WAIT)
}

/// Everything is cached, and read without the origin.
fn heals(named: &Named<'_>, manifest: &Manifest) -> Result<()> {
    let started = std::time::Instant::now();
    named.wait("Preloaded", WAIT)?;
    say(format!("  {}: preloaded {:.0} s after the cause was gone", named.name, started.elapsed().as_secs_f64()));
    let sent = named.origin_bytes()?;
    named.read_everywhere(manifest, WAIT)?;
    ensure!(named.origin_bytes()? == sent, "bytes left the origin although everything is cached");
    Ok(())
}

fn no_worker_has_crashed(named: &Named<'_>) -> Result<()> {
    let object = named.object()?;
    let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
    let pods = named.lab.cluster.pods(SYSTEM, &format!("larder.dev/dataset-uid={uid}"))?;
    ensure!(!pods.is_empty(), "there are no workers");
    for pod in pods {
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        ensure!(*restarts == 0, "worker {} was started {restarts} times again", pod["metadata"]["name"]);
    }
    Ok(())
}
