//! Origins: their credentials, and what they do not give.

use super::harness::{Cluster, UID, dataset, eventually, orders, read_all, size};
use crate::embedded::{Embedded, Options};
use bytes::Bytes;
use larder_cache::Floor;
use larder_origin::{
    Access, Credentials,
    testing::{FakeS3, Fault},
};
use larder_peer::{ObjectRef, ReadError};
use larder_proto::control::v1::{self as pb, Phase};
use std::{collections::BTreeMap, time::Duration};

#[tokio::test(flavor = "multi_thread")]
async fn new_credentials_are_waited_for_and_then_used_at_once() {
    let server = FakeS3::start().await;
    dataset(&server);
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    node.mount_credentials("wrong", "1");
    let with = |generation: &str| {
        let mut c = pb::Config { listing_id: "l1".into(), generation: format!("g{generation}"), ..orders(&server) };
        c.source.as_mut().unwrap().credentials_generation = generation.into();
        c
    };
    node.configure(with("1")).await;
    let problem = node.until(|s| s.listing.filter(|l| l.phase() == Phase::Failed)?.problem).await;
    assert_eq!(problem.reason, "AccessDenied");
    assert!(problem.message.contains("s3://data/demo/") && problem.message.contains(&server.endpoint()), "{}", problem.message);

    node.configure(with("2")).await;
    node.until(|s| s.listing.filter(|l| l.phase() == Phase::Running)).await;
    let asked = server.seen().lists;
    // Longer than from one look at the mounted folders to the next.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(server.seen().lists, asked, "not listed with the old credentials");
    node.mount_credentials(larder_origin::testing::ACCESS_KEY, "2");
    node.listed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_credentials_and_an_empty_source_are_problems_that_go_away_by_themselves() {
    let server = FakeS3::start().await;
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    let mut config = pb::Config { listing_id: "l1".into(), ..orders(&server) };
    config.source.as_mut().unwrap().credentials_generation = String::new();
    std::fs::remove_dir_all(&node.credentials).unwrap();
    node.configure(config.clone()).await;
    let problem = node.until(|s| s.listing?.problem).await;
    assert_eq!(problem.reason, "CredentialsMissing");

    node.mount_credentials(larder_origin::testing::ACCESS_KEY, "1");
    node.configure(pb::Config { listing_id: "l1".into(), retry: 1, ..orders(&server) }).await;
    let problem = node.until(|s| s.listing?.problem.filter(|p| p.reason != "CredentialsMissing")).await;
    assert_eq!(problem.reason, "EmptySource");
    assert!(problem.message.contains("s3://data/demo/"), "{}", problem.message);
    dataset(&server);
    node.listed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_object_is_told_and_every_other_file_is_fetched() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    let snapshot = node.list(&server).await;
    server.put("demo/big.bin", "other");
    node.configure(pb::Config { snapshot: snapshot.clone(), preload: true, ..orders(&server) }).await;
    let preload = node.until(|s| s.preload.filter(|p| p.phase() == Phase::Failed)).await;
    assert_eq!((preload.files_failed, preload.files_done), (1, files.len() as u64 - 1));
    assert_eq!(preload.bytes_done, size(&files) - files["big.bin"].len() as u64);
    let problem = preload.problem.unwrap();
    assert_eq!(problem.reason, "Changed");
    assert!(problem.message.contains("demo/big.bin"), "{}", problem.message);
    let index = cluster.catalog(&snapshot).lookup(0, "big.bin").unwrap().unwrap();
    let e = cluster.read(&snapshot, index, 0..9).await.unwrap_err();
    assert!(matches!(e, ReadError::Changed { .. }), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_fetches_are_tried_again_until_the_share_is_complete() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    let snapshot = node.list(&server).await;
    server.faults(|f| f.refuse = Some((403, "AccessDenied")));
    node.configure(pb::Config { snapshot: snapshot.clone(), preload: true, ..orders(&server) }).await;
    let preload = node.until(|s| s.preload.filter(|p| p.phase() == Phase::Failed)).await;
    assert_eq!(preload.problem.unwrap().reason, "AccessDenied");
    // An object without content needs no fetch.
    assert_eq!((preload.files_done, preload.bytes_done), (1, 0));
    let faults = [Fault::Cut, Fault::Status(500, "InternalError")].into_iter().cycle().take(6);
    server.faults(|f| (f.refuse, f.gets) = (None, faults.collect()));
    node.preloaded().await;
    read_all(&cluster, &snapshot, &files).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_had_are_named_and_stop_no_other() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    let snapshot = node.list(&server).await;
    let faults = [("train/0/0.jpg", 403, "AccessDenied"), ("train/1/1.jpg", 404, "NoSuchKey"), ("big.bin", 400, "Strange")];
    let fault = |(path, status, code): (&str, u16, &'static str)| (format!("demo/{path}"), Fault::Status(status, code));
    server.faults(|f| f.keys = faults.map(fault).into());
    node.configure(pb::Config { snapshot: snapshot.clone(), preload: true, ..orders(&server) }).await;
    let preload = node.until(|s| s.preload.filter(|p| p.phase() == Phase::Failed)).await;
    assert_eq!((preload.files_failed, preload.files_done, preload.attempts), (3, files.len() as u64 - 3, 1));
    let problem = preload.problem.unwrap();
    assert!(["AccessDenied", "ObjectNotFound", "OriginFailed"].contains(&problem.reason.as_str()), "{problem:?}");
    for (path, ..) in faults {
        assert!(problem.message.contains(path), "{problem:?}");
    }
    let status = node.status().await;
    assert_eq!((status.origin_bytes, status.problems.len()), (server.seen().bytes, 0));
    // A reader gets the reason too, and so does the status.
    let index = cluster.catalog(&snapshot).lookup(0, "big.bin").unwrap().unwrap();
    let e = cluster.read(&snapshot, index, 0..9).await.unwrap_err();
    assert!(e.to_string().contains("400 Strange"), "{e}");
    assert_eq!(node.status().await.problems[0].reason, "OriginFailed");
    server.faults(|f| f.keys.clear());
    node.preloaded().await;
    read_all(&cluster, &snapshot, &files).await;
}

/// Of a read that nothing will help.
const SOON: Duration = Duration::from_secs(5);

fn denies(path: &str) -> BTreeMap<String, Fault> {
    [(format!("demo/{path}"), Fault::Status(403, "AccessDenied"))].into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_of_what_the_origin_denies_ends_soon_and_asks_it_seldom() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let (cluster, snapshot) = Cluster::with_snapshot(2, &server).await;
    let index = |path| cluster.catalog(&snapshot).lookup(0, path).unwrap().unwrap();
    server.faults(|f| f.keys = denies("big.bin"));
    let before = server.seen().gets;
    let began = std::time::Instant::now();
    let e = cluster.read(&snapshot, index("big.bin"), 0..9).await.unwrap_err();
    assert!(matches!(&e, ReadError::OriginDenied { detail, .. } if detail.contains("demo/big.bin")), "{e}");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    // Both nodes, twice; and a cache gives a chunk two fetches, as the first may be one that another reader began.
    assert!(server.seen().gets - before <= 8, "{:?}", server.seen());
    let beside = cluster.read(&snapshot, index("big 2 +%#é.bin"), 0..9).await.unwrap();
    assert_eq!(beside.bytes, files["big 2 +%#é.bin"][..9]);
    server.faults(|f| f.keys.clear());
    assert_eq!(cluster.read(&snapshot, index("big.bin"), 0..9).await.unwrap().bytes, files["big.bin"][..9]);
}

#[tokio::test(flavor = "multi_thread")]
async fn so_does_one_of_a_worker_in_the_own_process() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let dir = tempfile::tempdir().unwrap();
    let credentials = Some(Credentials::new(larder_origin::testing::ACCESS_KEY, "secret", None));
    let options = Options {
        dataset_uid: UID.into(),
        dirs: vec![dir.path().join(UID)],
        lock_wait: Duration::from_secs(3),
        access: Access { credentials, ..Access::default() },
        floor: Floor { percent: 0, at_least: 0 },
        in_flight: 64 << 20,
    };
    let mut worker = Embedded::open(options).await.unwrap();
    worker.configure(pb::Config { listing_id: "l1".into(), ..orders(&server) }).await.unwrap();
    worker.start();
    eventually("it is listed", async || worker.status().listing.is_some_and(|l| l.phase() == Phase::Succeeded)).await;
    let snapshot = worker.status().listing.unwrap().snapshot;
    worker.configure(pb::Config { snapshot: snapshot.clone(), ..orders(&server) }).await.unwrap();
    let data = worker.data();
    let catalog = data.catalog(&snapshot).unwrap();
    let read = |path: &'static str, range: std::ops::Range<u64>| {
        let (data, catalog, snapshot) = (&data, &catalog, &snapshot);
        async move {
            let index = catalog.lookup(0, path).unwrap().unwrap();
            let key = catalog.object_key(index).unwrap();
            let object = ObjectRef { dataset_uid: UID, snapshot, inode: index + 1, key };
            data.read(&object, range, tokio::time::Instant::now() + Duration::from_secs(30)).await
        }
    };
    // The first chunk is here before the rest is denied.
    read("big.bin", 0..9).await.unwrap();
    server.faults(|f| f.keys = denies("big.bin"));
    for range in [8 << 20..9 << 20, (4 << 20) - 9..(4 << 20) + 9] {
        let (began, before) = (std::time::Instant::now(), server.seen().gets);
        let e = read("big.bin", range).await.unwrap_err();
        assert!(matches!(&e, ReadError::OriginDenied { detail, .. } if detail.contains("demo/big.bin")), "{e}");
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        assert!(server.seen().gets - before <= 4, "{:?}", server.seen());
    }
    assert_eq!(read("big 2 +%#é.bin", 0..9).await.unwrap().1, files["big 2 +%#é.bin"][..9]);
    worker.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_waits_for_keys_that_are_on_their_way() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let (cluster, snapshot) = Cluster::with_snapshot(1, &server).await;
    let node = &cluster.nodes[0];
    server.faults(|f| f.keys = denies("big.bin"));
    let mut config = pb::Config { snapshot: snapshot.clone(), ..orders(&server) };
    config.source.as_mut().unwrap().credentials_generation = "2".into();
    node.configure(config).await;
    let index = cluster.catalog(&snapshot).lookup(0, "big.bin").unwrap().unwrap();
    let come = async {
        // What is denied for good has ended by then.
        tokio::time::sleep(larder_peer::DENIED_PAUSE * 3).await;
        server.faults(|f| f.keys.clear());
        node.mount_credentials(larder_origin::testing::ACCESS_KEY, "2");
    };
    let (read, ()) = tokio::join!(cluster.read(&snapshot, index, 0..9), come);
    assert_eq!(read.unwrap().bytes, files["big.bin"][..9]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_goes_away_is_told_at_once_and_waited_for() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    let snapshot = node.list(&server).await;
    server.faults(|f| f.refuse = Some((404, "NoSuchBucket")));
    node.configure(pb::Config { snapshot: snapshot.clone(), preload: true, ..orders(&server) }).await;
    let preload = node.until(|s| s.preload.filter(|p| p.phase() == Phase::Failed)).await;
    assert_eq!((preload.problem.unwrap().reason.as_str(), preload.files_failed), ("BucketNotFound", 0));
    assert_eq!(preload.attempts, 0, "it goes on");
    server.faults(|f| f.refuse = None);
    let preload = node.preloaded().await;
    assert_eq!((preload.problem, preload.bytes_done, preload.attempts), (None, size(&files), 0));
    assert_eq!(node.status().await.origin_bytes, size(&files));
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_share_an_origin_keep_to_what_it_gives_them() {
    let server = FakeS3::start().await;
    let content = Bytes::from(vec![1; 1000]);
    let files: BTreeMap<_, _> = (0..800).map(|n| (format!("{n}"), content.clone())).collect();
    files.iter().for_each(|(path, bytes)| server.put(&format!("demo/{path}"), bytes.clone()));
    let cluster = Cluster::start(4).await;
    let snapshot = cluster.nodes[0].list(&server).await;
    server.faults(|f| (f.delay, f.at_most) = (Duration::from_millis(20), Some((8, None))));
    for node in &cluster.nodes {
        node.configure(pb::Config { snapshot: snapshot.clone(), preload: true, ..orders(&server) }).await;
    }
    for node in &cluster.nodes {
        let preload = node.preloaded().await;
        assert_eq!((preload.files_failed, preload.bytes_done), (0, preload.bytes_total));
    }
    let seen = server.seen();
    assert_eq!(seen.bytes, size(&files));
    // Four workers with 24 requests each, without a thought for the origin, would have more refused than answered.
    assert!(seen.throttled > 0 && seen.throttled < seen.gets / 3, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_the_host_is_a_source_without_credentials() {
    let server = FakeS3::start().await;
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    std::fs::remove_dir_all(&node.credentials).unwrap();
    let folder = node.dir.with_file_name("origin").join("demo");
    let content = Bytes::from(vec![7; (5 << 20) + 1]);
    std::fs::create_dir_all(folder.join("sub")).unwrap();
    std::fs::write(folder.join("sub/f"), &content).unwrap();
    let source = Some(pb::Source { uri: format!("file://{}/", folder.display()), ..Default::default() });
    let config = pb::Config { listing_id: "l1".into(), source, ..orders(&server) };
    node.configure(config.clone()).await;
    let snapshot = node.listed().await.snapshot;
    node.configure(pb::Config { snapshot: snapshot.clone(), preload: true, ..config }).await;
    node.preloaded().await;
    read_all(&cluster, &snapshot, &[("sub/f".to_owned(), content.clone())].into()).await;
    assert_eq!(node.status().await.origin_bytes, content.len() as u64);
}
