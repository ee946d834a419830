//! Origins: their credentials, and what they do not give.

use super::harness::{Cluster, dataset, orders, read_all, size};
use bytes::Bytes;
use larder_origin::testing::{FakeS3, Fault};
use larder_peer::ReadError;
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
