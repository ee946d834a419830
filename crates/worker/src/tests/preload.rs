//! What a worker fetches ahead of use.

use super::harness::{Cluster, dataset, orders, read_all, size};
use bytes::Bytes;
use larder_core::catalog::Catalog;
use larder_fuse::protocol::worker::{Reply, Request};
use larder_origin::testing::FakeS3;
use larder_peer::Source;
use larder_proto::control::v1::{self as pb, Phase};
use std::{collections::BTreeMap, fs::File, io::Read as _, time::Duration};

#[tokio::test(flavor = "multi_thread")]
async fn from_an_empty_disk_to_a_preloaded_share_each_byte_leaves_the_origin_once() {
    let server = FakeS3::with_pages_of(10).await;
    let files = dataset(&server);
    let cluster = Cluster::start(2).await;
    let [a, b] = &cluster.nodes[..] else { unreachable!() };

    assert_eq!(a.status().await.generation, "");
    a.configure(pb::Config { listing_id: "l1".into(), ..orders(&server) }).await;
    let listing = a.listed().await;
    assert_eq!((listing.id.as_str(), listing.files, listing.bytes), ("l1", files.len() as u64, size(&files)));
    assert_eq!(listing.skipped, 1);
    assert!(listing.skipped_examples[0].contains("a//b"), "{:?}", listing.skipped_examples);
    assert!(listing.time > 1_700_000_000);

    let snapshot = listing.snapshot;
    for node in [a, b] {
        node.configure(pb::Config { snapshot: snapshot.clone(), preload: true, ..orders(&server) }).await;
    }
    let share = |s: pb::StatusResponse| s.preload.filter(|p| p.phase() == Phase::Succeeded && p.snapshot == snapshot);
    let (of_a, of_b) = (a.until(share).await, b.until(share).await);
    assert_eq!(of_a.bytes_total + of_b.bytes_total, size(&files));
    assert_eq!(of_a.files_total + of_b.files_total, files.len() as u64);
    for p in [&of_a, &of_b] {
        assert!(p.files_total > 10, "{p:?}");
        assert_eq!((p.bytes_done, p.files_done, p.files_failed), (p.bytes_total, p.files_total, 0));
    }

    let sources = read_all(&cluster, &snapshot, &files).await;
    assert_eq!(sources, BTreeMap::from([(Source::Disk, files.len())]));
    let (sa, sb) = (a.status().await, b.status().await);
    assert_eq!(sa.origin_bytes + sb.origin_bytes, size(&files));
    assert_eq!(sa.cached_bytes + sb.cached_bytes, size(&files));
    assert_eq!(server.seen().bytes, size(&files));
    assert!(sa.problems.is_empty() && sb.problems.is_empty());
    assert_eq!(sb.snapshots, std::slice::from_ref(&snapshot));

    // The mounter of a node gets descriptors of what is on its disk, and the catalog.
    let catalog = cluster.catalog(&snapshot);
    let mut here = 0;
    for index in catalog.file_indices().map(Result::unwrap) {
        match a.ask(Request::Open { snapshot: snapshot.clone(), inode: index + 1 }).await {
            (Reply::File {}, Some(fd)) => {
                let mut bytes = Vec::new();
                File::from(fd).read_to_end(&mut bytes).unwrap();
                assert!(bytes == files[&catalog.path(index).unwrap()]);
                here += 1;
            }
            (reply, fd) => assert!(fd.is_none() && reply == Reply::Absent { owner: false }, "{reply:?}"),
        }
    }
    assert_eq!(here, of_a.files_total);
    let (reply, fd) = b.ask(Request::Catalog { digest: snapshot.clone() }).await;
    assert_eq!(reply, Reply::File {});
    assert_eq!(Catalog::open(File::from(fd.unwrap())).unwrap().files(), files.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_preload_fetches_only_what_was_not_complete() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let mut cluster = Cluster::start(1).await;
    server.faults(|f| f.delay = Duration::from_millis(50));
    let node = &cluster.nodes[0];
    let snapshot = node.list(&server).await;
    node.configure(pb::Config { snapshot: snapshot.clone(), preload: true, ..orders(&server) }).await;
    node.until(|s| s.preload.filter(|p| p.files_done > 5)).await;
    cluster.restart(0).await;
    let kept = cluster.nodes[0].status().await.cached_bytes;
    let fetched = server.seen().bytes;
    cluster.nodes[0].preloaded().await;
    // What was in flight when the first worker ended may have been sent meanwhile; it is at most a chunk for each file.
    assert!(server.seen().bytes - fetched <= size(&files) - kept + (12 << 20));
    read_all(&cluster, &snapshot, &files).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_quota_holds_the_preload_up_and_fails_no_read() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    let snapshot = node.list(&server).await;
    let config = pb::Config { snapshot: snapshot.clone(), preload: true, quota_bytes: 6 << 20, ..orders(&server) };
    node.configure(config.clone()).await;
    let preload = node.until(|s| s.preload.filter(|p| p.phase() == Phase::Failed)).await;
    let problem = preload.problem.unwrap();
    assert_eq!(problem.reason, "DoesNotFit");
    for said in [size(&files).to_string().as_str(), "6291456", "spec.cache.tiers[].quota", node.dir.to_str().unwrap()] {
        assert!(problem.message.contains(said), "{}", problem.message);
    }
    // What fits comes all the same.
    node.until(|s| s.preload.filter(|p| p.files_failed == 1 && p.files_done + 1 == files.len() as u64)).await;
    read_all(&cluster, &snapshot, &files).await;
    let status = node.status().await;
    assert!(status.cached_bytes <= 6 << 20);
    assert_eq!(status.problems[0].reason, "QuotaExceeded");
    node.configure(pb::Config { quota_bytes: 0, ..config }).await;
    node.preloaded().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_paths_that_are_named_are_preloaded_and_the_rest_is_read_on_demand() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    let snapshot = node.list(&server).await;
    let config = |paths: &[&str]| {
        let preload_paths = paths.iter().map(|p| (*p).to_owned()).collect();
        pb::Config { snapshot: snapshot.clone(), preload: true, preload_paths, ..orders(&server) }
    };
    node.configure(config(&["train/["])).await;
    let problem = node.until(|s| s.preload?.problem).await;
    assert!(problem.message.contains("spec.preload.paths"), "{problem:?}");
    node.configure(config(&["train/0/", "big.*"])).await;
    let preload = node.preloaded().await;
    let named =
        files.iter().filter(|(path, _)| path.starts_with("train/0/") || *path == "big.bin").map(|(_, b)| b.len() as u64);
    assert_eq!((preload.planned, preload.bytes_total), (true, named.clone().sum()));
    assert_eq!((preload.files_done, preload.gets), (named.count() as u64, 0));
    assert_eq!(server.seen().bytes, preload.bytes_total);
    read_all(&cluster, &snapshot, &files).await;
}

/// Lacking a byte, a preload of some paths takes no more from what is only read on demand than it needs; nothing, while files of an
/// older snapshot will do.
#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_not_named_make_room_for_those_that_are_as_much_as_is_lacking() {
    for older in [0, 2000] {
        let server = FakeS3::start().await;
        let files = dataset(&server);
        let cluster = Cluster::start(1).await;
        let node = &cluster.nodes[0];
        if older > 0 {
            server.put("demo/older", vec![1; older]);
            let snapshot = node.list(&server).await;
            node.configure(pb::Config { snapshot: snapshot.clone(), ..orders(&server) }).await;
            let index = cluster.catalog(&snapshot).lookup(0, "older").unwrap().unwrap();
            cluster.read(&snapshot, index, 0..9).await.unwrap();
            server.delete("demo/older");
        }
        let config = pb::Config { listing_id: "l2".into(), ..orders(&server) };
        node.configure(config.clone()).await;
        let snapshot = node.until(|s| s.listing.filter(|l| l.id == "l2" && l.phase() == Phase::Succeeded)).await.snapshot;
        let config = pb::Config { snapshot: snapshot.clone(), ..config };
        node.configure(config.clone()).await;
        let catalog = cluster.catalog(&snapshot);
        let (mut warm, mut count) = (0, 0);
        for index in catalog.file_indices().map(Result::unwrap) {
            let path = catalog.path(index).unwrap();
            if path.starts_with("train/") {
                cluster.read(&snapshot, index, 0..9).await.unwrap();
                (warm, count) = (warm + files[&path].len() as u64, count + 1);
            }
        }
        let named = "big 2 +%#é.bin";
        let here = warm + older as u64;
        node.until(|s| (s.cached_bytes == here).then_some(())).await;
        let (quota_bytes, preload_paths) = (here + files[named].len() as u64 - 1, vec![named.to_owned()]);
        node.configure(pb::Config { preload: true, preload_paths, quota_bytes, ..config }).await;
        node.preloaded().await;
        let here = node.status().await.cached_files;
        assert_eq!(here, if older > 0 { count + 1 } else { count }, "{older}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preload_keeps_to_its_bandwidth_says_when_it_ends_and_makes_no_reader_wait() {
    let server = FakeS3::start().await;
    let content = Bytes::from(vec![3; 2 << 20]);
    let files: BTreeMap<_, _> = (0..8).map(|n| (format!("{n}"), content.clone())).collect();
    files.iter().for_each(|(path, bytes)| server.put(&format!("demo/{path}"), bytes.clone()));
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    let snapshot = node.list(&server).await;
    // The first goes at once, the other seven take half a second each.
    let config = pb::Config { snapshot: snapshot.clone(), preload: true, preload_bandwidth: 4 << 20, ..orders(&server) };
    node.configure(config).await;
    let eta = node.until(|s| s.preload.filter(|p| p.phase() == Phase::Running)?.eta_seconds).await;
    assert!((1..=5).contains(&eta), "{eta}");
    let reading = std::time::Instant::now();
    read_all(&cluster, &snapshot, &files).await;
    assert!(reading.elapsed() < Duration::from_millis(1200), "readers waited with the preload: {:?}", reading.elapsed());
    node.preloaded().await;
    assert_eq!(server.seen().bytes, size(&files), "nothing was fetched twice");
    drop(cluster);

    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    let snapshot = node.list(&server).await;
    let config = pb::Config { snapshot, preload: true, preload_bandwidth: 8 << 20, ..orders(&server) };
    let began = std::time::Instant::now();
    node.configure(config).await;
    node.preloaded().await;
    assert!(began.elapsed() >= Duration::from_millis(1700), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_an_older_snapshot_make_room_for_the_share() {
    let server = FakeS3::start().await;
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    server.put("demo/f", vec![1; 3000]);
    let quota = |c| pb::Config { quota_bytes: 4000, ..c };
    let first = node.list(&server).await;
    node.configure(quota(pb::Config { snapshot: first, preload: true, ..orders(&server) })).await;
    node.preloaded().await;
    server.put("demo/f", vec![2; 3000]);
    node.configure(quota(pb::Config { listing_id: "l2".into(), ..orders(&server) })).await;
    let second = node.until(|s| s.listing.filter(|l| l.id == "l2" && l.phase() == Phase::Succeeded)).await.snapshot;
    node.configure(quota(pb::Config { snapshot: second.clone(), preload: true, ..orders(&server) })).await;
    node.until(|s| s.preload.filter(|p| p.phase() == Phase::Succeeded && p.snapshot == second)).await;
    assert_eq!(node.status().await.cached_files, 1);
}
