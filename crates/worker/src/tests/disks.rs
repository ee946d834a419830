//! Several disks on a node.

use super::harness::{eventually, settings};
use crate::{
    jobs,
    metrics::Metrics,
    report::Topic,
    worker::{Disk, Worker},
};
use larder_cache::{Floor, Keep, Object};
use larder_core::key::ObjectKey;
use larder_peer::{Options, Roster};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::watch;

const UID: &str = "0d1f3a52-7c0e-4d55-9f5a-000000000001";

fn on(dirs: &[PathBuf]) -> Arc<Worker> {
    let disk = |dir: &PathBuf| Disk { dir: dir.clone(), floor: Floor { percent: 0, at_least: 0 } };
    let mut settings = settings("gpu-0", &dirs[0], Options::default());
    settings.disks = dirs.iter().map(disk).collect();
    let (_, roster) = watch::channel(Arc::new(Roster::default()));
    Arc::new(Worker::open(settings, roster, Metrics::default()).unwrap())
}

async fn keep(worker: &Worker, n: u64) {
    let object = Object { key: ObjectKey::new("s3://b/", "p", "v", n), size: 10, keep: Keep::Own, in_part: false };
    worker.cache.fill(&object, 1, |_| async { Ok(bytes::Bytes::from_static(b"0123456789")) }).await.unwrap();
}

fn tiers(root: &Path) -> [PathBuf; 2] {
    ["one", "two"].map(|tier| {
        fs::create_dir(root.join(tier)).unwrap();
        root.join(tier).join(UID)
    })
}

#[tokio::test]
async fn a_disk_that_is_not_there_is_told_and_used_when_it_comes() {
    let root = tempfile::tempdir().unwrap();
    let dirs = tiers(root.path());
    fs::remove_dir(dirs[0].parent().unwrap()).unwrap();
    let worker = on(&dirs);
    assert_eq!(worker.folder.path(), dirs[1], "what is not data is on the disk that works");
    let jobs = jobs::start(&worker);
    eventually("the disk is told", async || worker.report.get(Topic::Disk).is_some()).await;
    let told = worker.report.get(Topic::Disk).unwrap().message;
    assert!(told.contains(dirs[0].to_str().unwrap()) && told.contains("the other disks of this node are used"), "{told}");
    fs::create_dir(dirs[0].parent().unwrap()).unwrap();
    assert!(worker.take_missing().await.is_empty());
    for n in 0..40 {
        keep(&worker, n).await;
    }
    assert_eq!(worker.cache.numbers().len(), 2);
    assert!(dirs.iter().all(|dir| fs::read_dir(dir.join("data")).unwrap().count() > 0), "files lie on both");
    drop(jobs);
}

#[tokio::test]
async fn nobody_else_takes_any_of_the_folders_over() {
    let root = tempfile::tempdir().unwrap();
    let dirs = tiers(root.path());
    let worker = on(&dirs);
    for dir in &dirs {
        let mut settings = settings("gpu-0", dir, Options::default());
        settings.lock_wait = std::time::Duration::ZERO;
        let (_, roster) = watch::channel(Arc::new(Roster::default()));
        assert!(Worker::open(settings, roster, Metrics::default()).is_err(), "{}", dir.display());
    }
    drop(worker);
}

#[tokio::test]
async fn a_worker_begins_on_another_disk_when_the_first_takes_nothing_more() {
    let root = tempfile::tempdir().unwrap();
    let dirs = tiers(root.path());
    let worker = on(&dirs);
    assert_eq!(worker.folder.path(), dirs[0]);
    keep(&worker, 1).await;
    worker.cache.close().await;
    drop(worker);
    // What a small file is written to before it gets its name; root may do anything but this.
    fs::create_dir(dirs[0].join("probe.part")).unwrap();
    let worker = on(&dirs);
    assert_eq!(worker.folder.path(), dirs[1]);
    assert_eq!(worker.cache.usage().files, 1, "what is on it is used all the same");
}
