//! Files larger than one node should hold.

use super::harness::{Cluster, Node, dataset, eventually, orders, read_all, size};
use crate::objects::answer;
use bytes::Bytes;
use futures::TryStreamExt as _;
use larder_cache::CHUNK;
use larder_fuse::protocol::worker::{Reply, Request};
use larder_origin::testing::FakeS3;
use larder_peer::{Body, Source};
use larder_proto::control::v1 as pb;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    os::unix::fs::{FileExt as _, MetadataExt as _},
};

const STRIPE: u64 = CHUNK;

/// The usual files, of which one is larger than a stripe now, and one of twelve stripes and a bit.
fn files(server: &FakeS3) -> BTreeMap<String, Bytes> {
    let mut files = dataset(server);
    let huge: Bytes = (0..12 * STRIPE + 5).map(|i| (i * 31 + (i >> 12) + (i >> 21)) as u8).collect();
    server.put("demo/huge.bin", huge.clone());
    files.insert("huge.bin".to_owned(), huge);
    files
}

/// So many of three workers are members and have their shares.
async fn preloaded(server: &FakeS3, members: usize, replicas: u32) -> (Cluster, String) {
    let cluster = Cluster::start(3).await;
    cluster.stripe(STRIPE);
    cluster.members(members);
    let snapshot = cluster.take(server, pb::Config { preload: true, replicas, ..orders(server) }).await;
    for node in &cluster.nodes[..members] {
        node.preloaded().await;
    }
    (cluster, snapshot)
}

fn huge(cluster: &Cluster, snapshot: &str) -> u64 {
    cluster.catalog(snapshot).lookup(0, "huge.bin").unwrap().unwrap()
}

/// Space that files of the dataset have on a node's disk.
fn allocated(node: &Node) -> u64 {
    let of = |folder: &str| fs::read_dir(node.dir.join(folder)).into_iter().flatten().map(|entry| entry.unwrap().path());
    let complete = of("data").flat_map(|shard| fs::read_dir(shard).unwrap().map(|entry| entry.unwrap().path()));
    complete.chain(of("fill")).map(|path| fs::metadata(path).unwrap().blocks() * 512).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_have_a_part_of_a_large_file_and_each_byte_leaves_the_origin_once() {
    let server = FakeS3::start().await;
    let files = files(&server);
    let (mut cluster, snapshot) = preloaded(&server, 3, 1).await;
    let (mut shares, mut counted) = (0, 0);
    for node in &cluster.nodes {
        let (share, status) = (node.has_share(cluster.share(&snapshot, node)).await, node.status().await);
        assert_eq!((share.bytes_done, share.files_done, share.files_failed), (share.bytes_total, share.files_total, 0));
        assert_eq!((status.cached_bytes, status.origin_bytes), (share.bytes_total, share.bytes_total));
        assert_eq!(status.cached_files, share.files_total, "it counts the files of which it has the first stripe");
        let third = size(&files) / 3;
        assert!((third / 2..third * 2).contains(&share.bytes_total), "{share:?} of {}", size(&files));
        // Sidecars, journals and what the file system rounds.
        let there = allocated(node);
        assert!((share.bytes_total..share.bytes_total + (3 << 20)).contains(&there), "{there} bytes for {share:?}");
        (shares, counted) = (shares + share.bytes_total, counted + share.files_total);
    }
    assert_eq!((shares, counted), (size(&files), files.len() as u64), "each byte and each file is one node's");
    assert_eq!(server.seen().bytes, size(&files));

    let all_from_disks = BTreeMap::from([(Source::Disk, files.len())]);
    assert_eq!(read_all(&cluster, &snapshot, &files).await, all_from_disks);
    let index = huge(&cluster, &snapshot);
    for range in [STRIPE - 1..STRIPE + 1, 12 * STRIPE - 3..12 * STRIPE + 5, 3 * STRIPE..3 * STRIPE + 7, 5..7 * STRIPE + 9] {
        let got = cluster.read(&snapshot, index, range.clone()).await.unwrap();
        assert!(got.bytes == files["huge.bin"].slice(range.start as usize..range.end as usize), "{range:?}");
    }
    // One who knows no stripes asks a single node, which has it from the others.
    let request = || cluster.request(&snapshot, index, 4 * STRIPE - 9..5 * STRIPE + 9);
    let mut answers = 0;
    for node in &cluster.nodes {
        let Ok(reply) = answer(&node.worker(), request()).await else { continue };
        let bytes = match reply.body {
            Body::Bytes(bytes) => bytes,
            Body::File(file) => panic!("{file:?} is of a complete file"),
            Body::Stream(stream) => stream.try_collect::<Vec<Bytes>>().await.unwrap().concat().into(),
        };
        assert!(bytes == files["huge.bin"].slice(4 * STRIPE as usize - 9..5 * STRIPE as usize + 9));
        answers += 1;
    }
    assert_eq!(answers, 1, "the owner of the first of these stripes, and no other");
    assert_eq!(server.seen().bytes, size(&files));

    for n in 0..3 {
        let before = cluster.nodes[n].status().await.cached_bytes;
        cluster.restart(n).await;
        assert_eq!(cluster.nodes[n].status().await.cached_bytes, before, "it finds what it had");
        cluster.nodes[n].preloaded().await;
    }
    assert_eq!(read_all(&cluster, &snapshot, &files).await, all_from_disks);
    assert_eq!(server.seen().bytes, size(&files));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_comes_or_goes_moves_only_its_stripes_and_no_byte_from_the_origin() {
    let server = FakeS3::start().await;
    let files = files(&server);
    let (cluster, snapshot) = preloaded(&server, 2, 1).await;
    let before = [cluster.nodes[0].preloaded().await.bytes_total, cluster.nodes[1].preloaded().await.bytes_total];
    cluster.members(3);
    let share = cluster.nodes[2].has_share(cluster.share(&snapshot, &cluster.nodes[2])).await;
    let third = size(&files) / 3;
    assert!((third / 2..third * 2).contains(&share.bytes_total), "{share:?} of {}", size(&files));
    let status = cluster.nodes[2].status().await;
    assert_eq!((status.origin_bytes, status.cached_bytes), (0, share.bytes_total));
    for (node, before) in cluster.nodes.iter().zip(before) {
        let now = node.has_share(cluster.share(&snapshot, node)).await;
        assert!(now.bytes_total < before, "{now:?}");
        assert_eq!(node.status().await.cached_bytes, before, "it has what it lost as well");
    }
    assert_eq!(read_all(&cluster, &snapshot, &files).await, BTreeMap::from([(Source::Disk, files.len())]));
    cluster.members(2);
    for (node, before) in cluster.nodes.iter().zip(before) {
        assert_eq!(node.has_share(cluster.share(&snapshot, node)).await.bytes_total, before);
    }
    assert_eq!(read_all(&cluster, &snapshot, &files).await, BTreeMap::from([(Source::Disk, files.len())]));
    assert_eq!(server.seen().bytes, size(&files));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_lay_whole_are_striped_without_asking_the_origin_again() {
    let server = FakeS3::start().await;
    let files = files(&server);
    let cluster = Cluster::start(3).await;
    let snapshot = cluster.take(&server, pb::Config { preload: true, ..orders(&server) }).await;
    for node in &cluster.nodes {
        node.preloaded().await;
    }
    let index = huge(&cluster, &snapshot);
    let owner = cluster.owner(&cluster.catalog(&snapshot).object_key(index).unwrap());
    cluster.stripe(STRIPE);
    for node in &cluster.nodes {
        node.has_share(cluster.share(&snapshot, node)).await;
        let (reply, _) = node.ask(Request::Open { snapshot: snapshot.clone(), inode: index + 1 }).await;
        assert_eq!(reply == Reply::File {}, node.name == owner, "{reply:?}");
    }
    assert_eq!(read_all(&cluster, &snapshot, &files).await, BTreeMap::from([(Source::Disk, files.len())]));
    assert_eq!(server.seen().bytes, size(&files));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_large_file_is_made_from_all_its_owners_and_is_whole() {
    let server = FakeS3::start().await;
    let files = files(&server);
    let (cluster, snapshot) = preloaded(&server, 3, 1).await;
    let (index, node) = (huge(&cluster, &snapshot), &cluster.nodes[0]);
    let open = || node.ask(Request::Open { snapshot: snapshot.clone(), inode: index + 1 });
    assert_eq!(open().await.0, Reply::Absent { owner: false }, "it has a part");
    let before = node.status().await.cached_bytes;
    let follower = node.follow(&snapshot).await;
    follower.tell([(index + 1, 1)]).await;
    assert_eq!(follower.arrived().await, [index + 1]);
    let (reply, fd) = open().await;
    assert_eq!(reply, Reply::File {});
    let mut bytes = Vec::new();
    File::from(fd.unwrap()).read_to_end(&mut bytes).unwrap();
    assert!(bytes == files["huge.bin"]);
    let (kept, now) = (files["huge.bin"].len() as u64, node.status().await.cached_bytes);
    assert!((before + 1..before + kept).contains(&now), "{before} and {kept} are {now}");
    node.until_metric("larder_worker_kept_bytes_total", now - before).await;
    assert_eq!(server.seen().bytes, size(&files), "each byte left the origin once");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_two_replicas_of_each_stripe_a_node_may_die() {
    let server = FakeS3::start().await;
    let files = files(&server);
    let (mut cluster, snapshot) = preloaded(&server, 3, 2).await;
    assert_eq!(server.seen().bytes, size(&files), "each byte left the origin once");
    let mut cached = 0;
    for node in &cluster.nodes {
        cached += node.status().await.cached_bytes;
    }
    assert_eq!(cached, 2 * size(&files));
    cluster.stop(1).await;
    assert_eq!(read_all(&cluster, &snapshot, &files).await, BTreeMap::from([(Source::Disk, files.len())]));
    assert_eq!(server.seen().bytes, size(&files));
}

#[tokio::test(flavor = "multi_thread")]
async fn stripes_of_others_make_room_for_those_of_the_share() {
    let server = FakeS3::start().await;
    let mut files = files(&server);
    let (cluster, snapshot) = preloaded(&server, 2, 1).await;
    let node = &cluster.nodes[0];
    let before = node.preloaded().await.bytes_total;
    cluster.members(3);
    let less = node.has_share(cluster.share(&snapshot, node)).await;
    cluster.nodes[2].has_share(cluster.share(&snapshot, &cluster.nodes[2])).await;
    // More data, and no more room than for what is here: what the third has now makes some.
    for n in 0..9 {
        let (path, bytes) = (format!("more-{n}"), Bytes::from(vec![n; 3 << 20]));
        server.put(&format!("demo/{path}"), bytes.clone());
        files.insert(path, bytes);
    }
    let orders = pb::Config { preload: true, ..orders(&server) };
    node.configure(pb::Config { listing_id: "l2".into(), snapshot, ..orders.clone() }).await;
    let second = node.until(|s| s.listing.filter(|l| l.id == "l2" && l.phase() == pb::Phase::Succeeded)).await.snapshot;
    for (node, quota_bytes) in cluster.nodes.iter().zip([before, 0, 0]) {
        node.configure(pb::Config { snapshot: second.clone(), quota_bytes, ..orders.clone() }).await;
    }
    for node in &cluster.nodes {
        node.until(|s| s.preload.filter(|p| p.phase() == pb::Phase::Succeeded && p.snapshot == second)).await;
    }
    let (share, status) = (node.preloaded().await, node.status().await);
    assert!(share.bytes_total > less.bytes_total, "it has got none of the new files: {share:?}");
    assert!((share.bytes_total..=before).contains(&status.cached_bytes), "{share:?} {status:?}");
    assert!(allocated(node) < before + (3 << 20), "{}", allocated(node));
    assert_eq!(read_all(&cluster, &second, &files).await, BTreeMap::from([(Source::Disk, files.len())]));
    assert_eq!(server.seen().bytes, size(&files));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_chunk_of_a_stripe_is_fetched_again_by_the_node_that_keeps_it() {
    let server = FakeS3::start().await;
    let files = files(&server);
    let (mut cluster, snapshot) = preloaded(&server, 3, 1).await;
    let index = huge(&cluster, &snapshot);
    let key = cluster.catalog(&snapshot).object_key(index).unwrap();
    let stripe = 5 * STRIPE..6 * STRIPE;
    let n = cluster.nodes.iter().position(|node| node.worker().cache.has(&key, &stripe)).unwrap();
    // Found while the worker runs, and after a restart, when it could also be that it never reached the disk.
    for (times, told) in [(1, true), (2, false)] {
        let node = &cluster.nodes[n];
        let file = File::options().write(true).open(node.dir.join("fill").join(key.to_string())).unwrap();
        file.write_all_at(b"!!", stripe.start + 9).unwrap();
        // Whoever asks only for what is there fetches nothing.
        let chunk = node.worker().cache.chunk_here(&key, &stripe).await;
        assert!(chunk.is_none());
        eventually("the chunk is here again", async || node.worker().cache.has(&key, &stripe)).await;
        node.preloaded().await;
        assert_eq!(server.seen().bytes, size(&files) + times * STRIPE);
        let problems = node.status().await.problems;
        assert_eq!(problems.iter().any(|p| p.reason == "DataCorrupted"), told, "{problems:?}");
        cluster.restart(n).await;
        cluster.nodes[n].preloaded().await;
    }
    assert_eq!(read_all(&cluster, &snapshot, &files).await, BTreeMap::from([(Source::Disk, files.len())]));
    assert_eq!(server.seen().bytes, size(&files) + 2 * STRIPE);
}
