//! Workers in this process, on addresses of the loopback, with an S3 server beside them.

mod bounds;
mod harness;
mod keep;
mod replicas;
mod strangers;

use crate::metrics::Metrics;
use bytes::Bytes;
use harness::{Cluster, UID, orders};
use larder_core::catalog::Catalog;
use larder_fuse::protocol::worker::{Reply, Request};
use larder_origin::testing::{FakeS3, Fault};
use larder_peer::{ReadError, Source};
use larder_proto::control::v1::{self as pb, Phase, worker_client::WorkerClient};
use larder_telemetry::Health;
use std::{collections::BTreeMap, fs::File, io::Read as _, os::unix::fs::FileExt as _, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

/// Small, empty, many, larger than a chunk, odd names.
fn dataset(server: &FakeS3) -> BTreeMap<String, Bytes> {
    let content = |n: usize, len: usize| (0..len).map(|i| (i * 31 + n + (i >> 12)) as u8).collect::<Bytes>();
    let mut files = BTreeMap::new();
    for n in 0..60 {
        files.insert(format!("train/{}/{n}.jpg", n % 7), content(n, 3000 + n));
    }
    files.insert("empty".to_owned(), Bytes::new());
    files.insert("big.bin".to_owned(), content(1, (9 << 20) + 5));
    files.insert("big 2 +%#é.bin".to_owned(), content(2, 4 << 20));
    for (path, bytes) in &files {
        server.put(&format!("demo/{path}"), bytes.clone());
    }
    server.put("demo2/stranger", "x");
    server.put("demo/a//b", "x");
    files
}

fn size(files: &BTreeMap<String, Bytes>) -> u64 {
    files.values().map(|b| b.len() as u64).sum()
}

/// Reads every file of the snapshot through the peers and compares it.
async fn read_all(cluster: &Cluster, snapshot: &str, files: &BTreeMap<String, Bytes>) -> BTreeMap<Source, usize> {
    let mut sources = BTreeMap::new();
    let catalog = cluster.catalog(snapshot);
    assert_eq!(catalog.files(), files.len() as u64);
    for index in catalog.file_indices().map(Result::unwrap) {
        let (path, size) = (catalog.path(index).unwrap(), catalog.entry(index).unwrap().size());
        let got = cluster.read(snapshot, index, 0..size).await.unwrap();
        assert!(got.bytes == files[&path], "{path}");
        *sources.entry(got.source).or_default() += 1;
    }
    sources
}

#[tokio::test(flavor = "multi_thread")]
async fn from_an_empty_disk_to_a_preloaded_share_each_byte_leaves_the_origin_once() {
    let server = FakeS3::with_pages_of(10).await;
    let files = dataset(&server);
    let cluster = Cluster::start(2).await;
    let [a, b] = &cluster.nodes[..] else { unreachable!() };

    assert_eq!(a.status().await.generation, "");
    a.configure(pb::Config { listing_id: "l1".into(), ..orders(&server) }).await;
    let listing = a.until(|s| s.listing.filter(|l| l.phase() == Phase::Succeeded)).await;
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
async fn a_worker_that_restarts_without_an_operator_goes_on_where_it_was() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let mut cluster = Cluster::start(1).await;
    let snapshot = cluster.nodes[0].list_and_preload(&server).await;
    let before = (server.seen(), cluster.nodes[0].status().await);
    cluster.restart(0).await;
    let node = &cluster.nodes[0];
    let preload = node.until(|s| s.preload.filter(|p| p.phase() == Phase::Succeeded)).await;
    assert_eq!(preload.files_done, files.len() as u64);
    let after = node.status().await;
    assert_eq!(after.generation, before.1.generation);
    assert_eq!(after.origin_bytes, before.1.origin_bytes);
    assert_eq!(after.listing, before.1.listing);
    read_all(&cluster, &snapshot, &files).await;
    assert_eq!(server.seen(), before.0, "nothing was asked of the origin again");
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
    cluster.nodes[0].until(|s| s.preload.filter(|p| p.phase() == Phase::Succeeded)).await;
    // What was in flight when the first worker ended may have been sent meanwhile; it is at most a chunk for each file.
    assert!(server.seen().bytes - fetched <= size(&files) - kept + (12 << 20));
    read_all(&cluster, &snapshot, &files).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_without_a_preload_fetch_each_chunk_once_and_stand_ins_read_for_the_dead() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let mut cluster = Cluster::start(2).await;
    let snapshot = cluster.nodes[0].list(&server).await;
    for node in &cluster.nodes {
        node.configure(pb::Config { snapshot: snapshot.clone(), ..orders(&server) }).await;
        node.until(|s| s.snapshots.contains(&snapshot).then_some(())).await;
    }
    let catalog = cluster.catalog(&snapshot);
    let big = catalog.lookup(0, "big.bin").unwrap().unwrap();
    let reads = (0..40).map(|i| cluster.read(&snapshot, big, i * 200_000..i * 200_000 + 900_000));
    for (i, got) in futures::future::join_all(reads).await.into_iter().enumerate() {
        assert!(got.unwrap().bytes == files["big.bin"][i * 200_000..i * 200_000 + 900_000]);
    }
    assert_eq!(server.seen().bytes, files["big.bin"].len() as u64);
    let sources = read_all(&cluster, &snapshot, &files).await;
    assert_eq!(sources.get(&Source::Disk), Some(&2), "big.bin was read before, and an empty file is nowhere: {sources:?}");
    assert_eq!(server.seen().bytes, size(&files));

    cluster.stop(1).await;
    let sources = read_all(&cluster, &snapshot, &files).await;
    assert!(sources[&Source::Origin] > 0 && sources[&Source::Disk] > 0, "{sources:?}");
    read_all(&cluster, &snapshot, &files).await;
    assert!(server.seen().bytes <= 2 * size(&files));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_grows_when_a_member_leaves() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let cluster = Cluster::start(2).await;
    let node = &cluster.nodes[0];
    let snapshot = node.list(&server).await;
    node.configure(pb::Config { snapshot, preload: true, ..orders(&server) }).await;
    let part = node.until(|s| s.preload.filter(|p| p.phase() == Phase::Succeeded)).await;
    assert!(part.files_total < files.len() as u64);
    cluster.members(1);
    let whole = node.until(|s| s.preload.filter(|p| p.phase() == Phase::Succeeded && p.files_total > part.files_total)).await;
    assert_eq!((whole.files_done, whole.bytes_done), (files.len() as u64, size(&files)));
    assert_eq!(server.seen().bytes, size(&files));
}

/// Two members hold everything; a third joins.
async fn a_third_member_joins(server: &FakeS3, preloaded: bool) -> (Cluster, String, pb::Preload) {
    let cluster = Cluster::start(3).await;
    cluster.members(2);
    let snapshot = cluster.nodes[0].list(server).await;
    let whole = |s: pb::StatusResponse| s.preload.filter(|p| p.phase() == Phase::Succeeded);
    for node in &cluster.nodes {
        node.configure(pb::Config { snapshot: snapshot.clone(), preload: true, ..orders(server) }).await;
        node.until(|s| s.snapshots.contains(&snapshot).then_some(())).await;
    }
    if preloaded {
        futures::future::join(cluster.nodes[0].until(whole), cluster.nodes[1].until(whole)).await;
    } else {
        while server.seen().bytes == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (a, b) = (cluster.nodes[0].status().await, cluster.nodes[1].status().await);
        assert!(whole(a).is_none() || whole(b).is_none(), "the preload was over before anyone joined");
    }
    cluster.members(3);
    let share = cluster.nodes[2].until(|s| s.preload.filter(|p| p.phase() == Phase::Succeeded && p.files_total > 5)).await;
    (cluster, snapshot, share)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_joins_gets_its_share_from_those_who_had_it() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let (mut cluster, snapshot, share) = a_third_member_joins(&server, true).await;
    assert_eq!((share.files_done, share.bytes_done, share.files_failed), (share.files_total, share.bytes_total, 0));
    assert_eq!(cluster.nodes[2].status().await.origin_bytes, 0);
    assert_eq!(server.seen().bytes, size(&files), "no byte left the origin again");
    assert_eq!(read_all(&cluster, &snapshot, &files).await, BTreeMap::from([(Source::Disk, files.len())]));
    // What it has is whole, also for a process that knows nothing but the disk.
    cluster.restart(2).await;
    assert_eq!(cluster.nodes[2].status().await.cached_bytes, share.bytes_total);
    assert_eq!(read_all(&cluster, &snapshot, &files).await, BTreeMap::from([(Source::Disk, files.len())]));
    assert_eq!(server.seen().bytes, size(&files));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_joins_in_the_middle_of_a_preload_fetches_no_byte_again() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    server.faults(|f| f.delay = Duration::from_millis(100));
    let (cluster, snapshot, _) = a_third_member_joins(&server, false).await;
    for node in &cluster.nodes {
        node.until(|s| s.preload.filter(|p| p.phase() == Phase::Succeeded)).await;
    }
    read_all(&cluster, &snapshot, &files).await;
    assert_eq!(server.seen().bytes, size(&files));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_rotted_on_its_disk_is_not_taken_over() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let cluster = Cluster::start(2).await;
    cluster.members(1);
    let snapshot = cluster.nodes[0].list_and_preload(&server).await;
    damage(&cluster.nodes[0]);
    cluster.nodes[1].configure(pb::Config { snapshot: snapshot.clone(), preload: true, ..orders(&server) }).await;
    cluster.members(2);
    let share = cluster.nodes[1].until(|s| s.preload.filter(|p| p.phase() == Phase::Succeeded && p.files_total > 5)).await;
    let last_chunks: u64 = cluster.nodes[1].status().await.origin_bytes;
    assert!(last_chunks > 0 && last_chunks <= share.bytes_total);
    // What the former owner kept it does not give on either.
    read_all(&cluster, &snapshot, &files).await;
}

/// Flips the last bit of every cached file.
fn damage(node: &harness::Node) {
    for path in walk(&node.dir.join("data")).iter().filter(|p| p.extension().is_none()) {
        let mut bytes = std::fs::read(path).unwrap();
        if let Some(last) = bytes.last_mut() {
            *last ^= 1;
            std::fs::write(path, bytes).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_changed_on_the_disk_are_found_told_and_fetched_again() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let mut cluster = Cluster::start(1).await;
    let snapshot = cluster.nodes[0].list_and_preload(&server).await;
    cluster.stop(0).await;
    damage(&cluster.nodes[0]);
    cluster.restart(0).await;
    let node = &cluster.nodes[0];
    // The mounter is never given a bad file: "not here", or one that was fetched again meanwhile.
    let catalog = cluster.catalog(&snapshot);
    for index in catalog.file_indices().map(Result::unwrap) {
        if let (Reply::File {}, Some(fd)) = node.ask(Request::Open { snapshot: snapshot.clone(), inode: index + 1 }).await {
            let mut bytes = Vec::new();
            File::from(fd).read_to_end(&mut bytes).unwrap();
            assert!(bytes == files[&catalog.path(index).unwrap()]);
        }
    }
    read_all(&cluster, &snapshot, &files).await;
    let damaged = files.values().filter(|b| !b.is_empty()).count();
    let text = node.until(|s| s.problems.into_iter().find(|p| p.message.starts_with(&format!("{damaged} cached")))).await;
    assert_eq!(text.reason, "DataCorrupted");
    assert!(text.message.contains(node.dir.join("quarantine").to_str().unwrap()), "{}", text.message);
    // The owner fetches all of them, not only what was read.
    node.until(|s| (s.cached_bytes == size(&files)).then_some(())).await;
    assert_eq!(node.status().await.cached_files, files.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_is_read_right_while_it_is_checked_after_a_restart() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let mut cluster = Cluster::start(1).await;
    let snapshot = cluster.nodes[0].list_and_preload(&server).await;
    let before = server.seen().bytes;
    cluster.restart(0).await;
    let index = cluster.catalog(&snapshot).lookup(0, "big.bin").unwrap().unwrap();
    let size = files["big.bin"].len() as u64;
    let got = cluster.read(&snapshot, index, 5..size).await.unwrap();
    assert!(got.source == Source::Disk && got.bytes == files["big.bin"][5..]);
    let open = Request::Open { snapshot, inode: index + 1 };
    while cluster.nodes[0].ask(open.clone()).await.1.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(server.seen().bytes, before);
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

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
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(server.seen().lists, asked, "not listed with the old credentials");
    node.mount_credentials(larder_origin::testing::ACCESS_KEY, "2");
    node.until(|s| s.listing.filter(|l| l.phase() == Phase::Succeeded)).await;
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
    node.until(|s| s.listing.filter(|l| l.phase() == Phase::Succeeded)).await;
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
    node.until(|s| s.preload.filter(|p| p.phase() == Phase::Succeeded)).await;
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
    assert_eq!((preload.files_failed, preload.files_done), (3, files.len() as u64 - 3));
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
    node.until(|s| s.preload.filter(|p| p.phase() == Phase::Succeeded)).await;
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
    server.faults(|f| f.refuse = None);
    let preload = node.until(|s| s.preload.filter(|p| p.phase() == Phase::Succeeded)).await;
    assert_eq!((preload.problem, preload.bytes_done), (None, size(&files)));
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
        let preload = node.until(|s| s.preload.filter(|p| p.phase() == Phase::Succeeded)).await;
        assert_eq!((preload.files_failed, preload.bytes_done), (0, preload.bytes_total));
    }
    let seen = server.seen();
    assert_eq!(seen.bytes, size(&files));
    // Four workers with 24 requests each, without a thought for the origin, would have more refused than answered.
    assert!(seen.throttled > 0 && seen.throttled < seen.gets / 3, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_readers_of_cold_files_share_the_memory_for_what_is_in_flight() {
    let server = FakeS3::start().await;
    let content = (0..4 << 20).map(|i: usize| (i ^ (i >> 8)) as u8).collect::<Bytes>();
    let files: BTreeMap<_, _> = (0..50).map(|n| (format!("{n}"), content.clone())).collect();
    files.iter().for_each(|(path, bytes)| server.put(&format!("demo/{path}"), bytes.clone()));
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    let snapshot = node.list(&server).await;
    node.configure(pb::Config { snapshot: snapshot.clone(), ..orders(&server) }).await;
    let indices: Vec<_> = cluster.catalog(&snapshot).file_indices().map(Result::unwrap).collect();
    let reads = (0..1000).map(|n| {
        let (from, index) = (n as u64 * 4093, indices[n % indices.len()]);
        let (cluster, snapshot, content) = (&cluster, &snapshot, &content);
        async move {
            let got = cluster.read(snapshot, index, from..from + 65536).await.unwrap();
            assert!(got.bytes == content[from as usize..from as usize + 65536]);
        }
    });
    futures::future::join_all(reads).await;
    let seen = server.seen();
    // 64 MiB are in flight at most, in chunks of 4.
    assert_eq!((seen.bytes, seen.parallel <= 16), (size(&files), true), "{seen:?}");
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
    node.until(|s| s.preload.filter(|p| p.phase() == Phase::Succeeded)).await;
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
    let preload = node.until(|s| s.preload.filter(|p| p.phase() == Phase::Succeeded)).await;
    let named =
        files.iter().filter(|(path, _)| path.starts_with("train/0/") || *path == "big.bin").map(|(_, b)| b.len() as u64);
    assert_eq!((preload.planned, preload.bytes_total), (true, named.clone().sum()));
    assert_eq!((preload.files_done, preload.gets), (named.count() as u64, 0));
    assert_eq!(server.seen().bytes, preload.bytes_total);
    read_all(&cluster, &snapshot, &files).await;
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
    node.until(|s| s.preload.filter(|p| p.phase() == Phase::Succeeded)).await;
    assert_eq!(server.seen().bytes, size(&files), "nothing was fetched twice");
    drop(cluster);

    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    let snapshot = node.list(&server).await;
    let config = pb::Config { snapshot, preload: true, preload_bandwidth: 8 << 20, ..orders(&server) };
    let began = std::time::Instant::now();
    node.configure(config).await;
    node.until(|s| s.preload.filter(|p| p.phase() == Phase::Succeeded)).await;
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
    node.until(|s| s.preload.filter(|p| p.phase() == Phase::Succeeded)).await;
    server.put("demo/f", vec![2; 3000]);
    node.configure(quota(pb::Config { listing_id: "l2".into(), ..orders(&server) })).await;
    let second = node.until(|s| s.listing.filter(|l| l.id == "l2" && l.phase() == Phase::Succeeded)).await.snapshot;
    node.configure(quota(pb::Config { snapshot: second.clone(), preload: true, ..orders(&server) })).await;
    node.until(|s| s.preload.filter(|p| p.phase() == Phase::Succeeded && p.snapshot == second)).await;
    assert_eq!(node.status().await.cached_files, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn erasing_leaves_nothing_and_takes_no_more_orders() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    node.list_and_preload(&server).await;
    let mut control = node.control().await;
    let other = control.erase(pb::EraseRequest { dataset_uid: UID.replace('0', "1") }).await.unwrap_err();
    assert_eq!(other.code(), tonic::Code::InvalidArgument);
    let erase = || pb::EraseRequest { dataset_uid: UID.into() };
    let freed = control.erase(erase()).await.unwrap().into_inner().freed_bytes;
    assert!(freed >= size(&files), "{freed}");
    assert!(!node.dir.exists());
    assert_eq!(control.erase(erase()).await.unwrap().into_inner().freed_bytes, 0);
    let status = node.status().await;
    assert_eq!((status.cached_files, status.snapshots.len(), status.generation.as_str()), (0, 0, ""));
    let refused = control.configure(pb::ConfigureRequest { config: Some(orders(&server)) }).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!node.dir.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_make_no_sense_are_refused_whole() {
    let server = FakeS3::start().await;
    let cluster = Cluster::start(1).await;
    let mut control = cluster.nodes[0].control().await;
    let escape = pb::Config { snapshot: "../../../etc/passwd".into(), ..orders(&server) };
    let nowhere = pb::Config { source: None, ..orders(&server) };
    for config in [Some(escape), Some(nowhere), None] {
        let e = control.configure(pb::ConfigureRequest { config }).await.unwrap_err();
        assert_eq!(e.code(), tonic::Code::InvalidArgument);
    }
    assert_eq!(cluster.nodes[0].status().await.generation, "");
    let config = pb::Config {
        listing_id: "l".into(),
        source: Some(pb::Source { uri: "file:///etc".into(), ..Default::default() }),
        ..orders(&server)
    };
    cluster.nodes[0].configure(config).await;
    let problem = cluster.nodes[0].until(|s| s.listing?.problem).await;
    assert_eq!(problem.reason, "FolderNotAllowed");
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
    let snapshot = node.until(|s| s.listing.filter(|l| l.phase() == Phase::Succeeded)).await.snapshot;
    node.configure(pb::Config { snapshot: snapshot.clone(), preload: true, ..config }).await;
    node.until(|s| s.preload.filter(|p| p.phase() == Phase::Succeeded)).await;
    read_all(&cluster, &snapshot, &[("sub/f".to_owned(), content.clone())].into()).await;
    assert_eq!(node.status().await.origin_bytes, content.len() as u64);
}

#[test]
fn the_flags_have_the_defaults_of_the_design() {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: crate::Args,
    }
    let args = |uid: &str| {
        let args = ["worker", "--node=n", "--namespace=ns", "--dir=/d", "--plain", "--dataset-uid", uid];
        <Cli as clap::Parser>::try_parse_from(args).map(|c| c.args)
    };
    let a = args(UID).unwrap();
    let addrs = [a.data_addr, a.control_addr, a.admin_addr].map(|a| a.to_string());
    assert_eq!(addrs, ["0.0.0.0:7470", "0.0.0.0:7471", "0.0.0.0:7472"]);
    assert_eq!(a.run_dir.to_str(), Some("/var/lib/larder/run"));
    assert!(args("../etc").is_err());
}

#[tokio::test]
async fn two_workers_never_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(UID);
    let first = crate::folder::Folder::open(&path, crate::LOCK_WAIT).unwrap();
    let second = std::thread::spawn(move || crate::folder::Folder::open(&path, crate::LOCK_WAIT).map(drop));
    std::thread::sleep(Duration::from_millis(300));
    assert!(!second.is_finished());
    drop(first);
    second.join().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_begin_says_why_and_begins_when_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let (tier, health, shutdown) = (dir.path().join("tier"), Health::default(), CancellationToken::new());
    let settings = harness::settings("gpu-0", &tier.join(UID), larder_peer::Options::default());
    let control = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", control.local_addr().unwrap());
    let opening = tokio::spawn({
        let (settings, health, shutdown) = (settings.clone(), health.clone(), shutdown.clone());
        async move {
            let roster = watch::Sender::new(Arc::default()).subscribe();
            crate::held_up::open(&settings, &roster, &Metrics::default(), control, &health, &shutdown).await
        }
    });
    let mut client = WorkerClient::connect(address).await.unwrap();
    let status = client.status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.problems[0].reason, "DiskFailed");
    assert!(status.problems[0].message.contains(tier.to_str().unwrap()), "{:?}", status.problems);
    let refused = client.configure(pb::ConfigureRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    assert!(health.is_ready(), "nobody asks a worker that is not");
    std::fs::create_dir(&tier).unwrap();
    assert!(opening.await.unwrap().unwrap().is_some());
    assert!(!health.is_ready());
}

/// Damages the last section of the first node's catalog, which the restarted worker reads only when somebody asks for it.
async fn with_damaged_catalog(cluster: &mut Cluster, snapshot: &str) {
    cluster.stop(0).await;
    let path = cluster.nodes[0].dir.join("catalogs").join(snapshot);
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let (at, mut byte) = (4096 + 200, [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    cluster.restart(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_catalog_is_fetched_again_from_another_worker() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let mut cluster = Cluster::start(2).await;
    let snapshot = cluster.nodes[0].list(&server).await;
    for node in &cluster.nodes {
        node.configure(pb::Config { snapshot: snapshot.clone(), ..orders(&server) }).await;
        node.until(|s| s.snapshots.contains(&snapshot).then_some(())).await;
    }
    with_damaged_catalog(&mut cluster, &snapshot).await;
    let lists = server.seen().lists;
    assert!(cluster.catalog(&snapshot).verify().is_err());
    // The first to need the section finds the damage.
    let ask = Request::Open { snapshot: snapshot.clone(), inode: 2 };
    assert!(matches!(cluster.nodes[0].ask(ask.clone()).await.0, Reply::Error(_)));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while matches!(cluster.nodes[0].ask(ask.clone()).await.0, Reply::Error(_)) {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cluster.catalog(&snapshot).verify().unwrap();
    read_all(&cluster, &snapshot, &files).await;
    assert_eq!(server.seen().lists, lists);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_catalog_that_nobody_else_has_is_listed_again() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let mut cluster = Cluster::start(1).await;
    let snapshot = cluster.nodes[0].list_and_preload(&server).await;
    let config = pb::Config { listing_id: "l1".into(), snapshot: snapshot.clone(), preload: true, ..orders(&server) };
    cluster.nodes[0].configure(config).await;
    with_damaged_catalog(&mut cluster, &snapshot).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while cluster.catalog(&snapshot).verify().is_err() {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let done = |s: pb::StatusResponse| s.preload.filter(|p| p.phase() == Phase::Succeeded);
    cluster.nodes[0].until(done).await;
    read_all(&cluster, &snapshot, &files).await;
    assert_eq!(server.seen().bytes, size(&files), "no object was fetched again");
}
