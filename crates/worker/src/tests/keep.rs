//! Copies of what is read on other nodes.

use super::harness::{Cluster, Follower, dataset, orders, read_all, size};
use bytes::Bytes;
use larder_core::catalog::Catalog;
use larder_fuse::protocol::worker::{Reply, Request};
use larder_origin::testing::FakeS3;
use larder_peer::Source;
use larder_proto::control::v1::{self as pb, Phase};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read as _,
};

/// Two workers with their shares, and the inodes that are on the second one only.
async fn two_with_their_shares(server: &FakeS3, quota: u64) -> (Cluster, String, Vec<u64>) {
    let cluster = Cluster::start(2).await;
    let snapshot = cluster.take(server, pb::Config { preload: true, quota_bytes: quota, ..orders(server) }).await;
    for node in &cluster.nodes {
        node.preloaded().await;
    }
    let mut elsewhere = Vec::new();
    for inode in inodes(&cluster.catalog(&snapshot)) {
        if !is_here(&cluster, 0, &snapshot, inode).await {
            elsewhere.push(inode);
        }
    }
    (cluster, snapshot, elsewhere)
}

fn inodes(catalog: &Catalog<File>) -> Vec<u64> {
    catalog.file_indices().map(|index| index.unwrap() + 1).collect()
}

async fn is_here(cluster: &Cluster, node: usize, snapshot: &str, inode: u64) -> bool {
    let (reply, fd) = cluster.nodes[node].ask(Request::Open { snapshot: snapshot.into(), inode }).await;
    assert_eq!(reply == Reply::File {}, fd.is_some());
    fd.is_some()
}

fn size_of(cluster: &Cluster, snapshot: &str, inode: u64) -> u64 {
    cluster.catalog(snapshot).entry(inode - 1).unwrap().size()
}

async fn arrive(follower: &Follower, wanted: impl IntoIterator<Item = u64>) {
    let mut wanted: BTreeSet<u64> = wanted.into_iter().collect();
    while !wanted.is_empty() {
        let arrived = follower.arrived().await;
        wanted.retain(|inode| !arrived.contains(inode));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_reads_elsewhere_is_on_its_own_disk_the_next_time() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let (mut cluster, snapshot, elsewhere) = two_with_their_shares(&server, 0).await;
    assert!((10..50).contains(&elsewhere.len()), "{}", elsewhere.len());

    let follower = cluster.nodes[0].follow(&snapshot).await;
    follower.tell(elsewhere.iter().map(|inode| (*inode, 1))).await;
    arrive(&follower, elsewhere.clone()).await;
    let catalog = cluster.catalog(&snapshot);
    for inode in inodes(&catalog) {
        let (reply, fd) = cluster.nodes[0].ask(Request::Open { snapshot: snapshot.clone(), inode }).await;
        assert_eq!(reply, Reply::File {});
        let mut bytes = Vec::new();
        File::from(fd.unwrap()).read_to_end(&mut bytes).unwrap();
        assert!(bytes == files[&catalog.path(inode - 1).unwrap()]);
    }
    assert_eq!(cluster.nodes[0].status().await.cached_bytes, size(&files));
    assert_eq!(server.seen().bytes, size(&files), "each byte left the origin once");

    // What is known already is told at once, also by a worker that has just started.
    cluster.restart(0).await;
    let follower = cluster.nodes[0].follow(&snapshot).await;
    follower.tell([(elsewhere[0], 1)]).await;
    arrive(&follower, [elsewhere[0]]).await;
    assert_eq!(read_all(&cluster, &snapshot, &files).await, BTreeMap::from([(Source::Disk, files.len())]));
    assert_eq!(server.seen().bytes, size(&files));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_costs_the_origin_nothing_and_comes_when_the_owner_has_the_file() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let (cluster, snapshot) = Cluster::with_snapshot(2, &server).await;
    let catalog = cluster.catalog(&snapshot);
    let owner = |inode: u64| cluster.owner(&catalog.object_key(inode - 1).unwrap());
    let on_b = |inode: &u64| owner(*inode) == "gpu-1" && size_of(&cluster, &snapshot, *inode) > 0;
    let of_b: Vec<u64> = inodes(&catalog).into_iter().filter(on_b).collect();

    // The owner has nothing yet. What follows behind it in the queue shows that it was tried.
    let follower = cluster.nodes[0].follow(&snapshot).await;
    let (first, rest) = of_b.split_first().unwrap();
    follower.tell([(*first, 1)]).await;
    cluster.nodes[0].until_metric("larder_worker_not_kept_files_total{reason=\"owner\"}", 1).await;
    assert_eq!(server.seen().bytes, 0);
    assert!(!is_here(&cluster, 0, &snapshot, *first).await);

    for inode in &of_b {
        cluster.read(&snapshot, inode - 1, 0..size_of(&cluster, &snapshot, *inode)).await.unwrap();
    }
    let left = server.seen().bytes;
    follower.tell([*first].iter().chain(rest).map(|inode| (*inode, 1))).await;
    arrive(&follower, of_b.clone()).await;
    assert_eq!(server.seen().bytes, left);
    assert!(left < size(&files));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_not_all_fits_a_file_is_kept_at_the_second_read_and_only_beyond_the_own_share() {
    let server = FakeS3::start().await;
    let mut files = BTreeMap::new();
    for n in 0..200_usize {
        let path = format!("{n}");
        let content: Bytes = vec![n as u8; 4096].into();
        server.put(&format!("demo/{path}"), content.clone());
        files.insert(path, content);
    }
    // Three quarters of it: the own share, and half as much again.
    let quota = 150 * 4096;
    let (cluster, snapshot, elsewhere) = two_with_their_shares(&server, quota).await;
    let share = 200 - elsewhere.len() as u64;
    let room = 150 - share as usize;
    assert!(room > 5 && elsewhere.len() > room, "{room}");

    let follower = cluster.nodes[0].follow(&snapshot).await;
    let (once, twice) = (elsewhere[0], elsewhere[1]);
    follower.tell([(once, 4096), (twice, 4096), (twice, 4096)]).await;
    arrive(&follower, [twice]).await;
    assert!(!is_here(&cluster, 0, &snapshot, once).await, "read once");

    // More than there is room for: some stay where they are, and the own share is whole.
    follower.tell(elsewhere.iter().map(|inode| (*inode, 2 * 4096))).await;
    let metric = "larder_worker_not_kept_files_total{reason=\"room\"}";
    cluster.nodes[0].until_metric(metric, (elsewhere.len() - room) as u64).await;
    let status = cluster.nodes[0].until(|s| (s.cached_files == 150).then_some(s)).await;
    assert_eq!((status.cached_bytes, status.problems.len()), (quota, 0));
    assert_eq!(status.preload.unwrap().files_done, share);
    assert_eq!(server.seen().bytes, size(&files));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_becomes_the_own_share_is_not_fetched_again() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let (cluster, snapshot, elsewhere) = two_with_their_shares(&server, size(&files)).await;
    let follower = cluster.nodes[0].follow(&snapshot).await;
    follower.tell(elsewhere.iter().map(|inode| (*inode, 1))).await;
    arrive(&follower, elsewhere).await;
    assert_eq!(cluster.nodes[0].status().await.cached_bytes, size(&files));
    // All of the next snapshot, which has one file more, is this node's share.
    server.put("demo/new", vec![7; 5000]);
    cluster.members(1);
    let config = |c| pb::Config { quota_bytes: size(&files) + 5000, ..c };
    cluster.nodes[0].configure(config(pb::Config { listing_id: "l2".into(), ..orders(&server) })).await;
    let taken = |s: pb::StatusResponse| s.listing.filter(|l| l.id == "l2" && l.phase() == Phase::Succeeded);
    let second = cluster.nodes[0].until(taken).await.snapshot;
    cluster.nodes[0].configure(config(pb::Config { snapshot: second.clone(), preload: true, ..orders(&server) })).await;
    cluster.nodes[0].until(|s| s.preload.filter(|p| p.snapshot == second && p.phase() == Phase::Succeeded)).await;
    assert_eq!(server.seen().bytes, size(&files) + 5000, "copies count as the own share when they become it");
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_make_room_for_the_own_share() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let cluster = Cluster::start(2).await;
    let snapshot = cluster.nodes[0].list(&server).await;
    let config = |preload, quota_bytes| pb::Config { snapshot: snapshot.clone(), preload, quota_bytes, ..orders(&server) };
    let [a, b] = &cluster.nodes[..] else { unreachable!() };
    a.configure(config(false, size(&files))).await;
    b.configure(config(true, 0)).await;
    let share_of_b = b.preloaded().await;
    let catalog = cluster.catalog(&snapshot);
    let of_b: Vec<u64> =
        inodes(&catalog).into_iter().filter(|i| cluster.owner(&catalog.object_key(i - 1).unwrap()) == b.name).collect();
    let follower = a.follow(&snapshot).await;
    follower.tell(of_b.iter().map(|inode| (*inode, 1))).await;
    arrive(&follower, of_b).await;
    assert_eq!(a.status().await.cached_bytes, share_of_b.bytes_total);

    let share_of_a = size(&files) - share_of_b.bytes_total;
    a.configure(config(true, share_of_a)).await;
    a.preloaded().await;
    assert_eq!(a.status().await.cached_bytes, share_of_a);
    assert_eq!(server.seen().bytes, size(&files));
}
