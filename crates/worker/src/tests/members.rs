//! Workers that come and go.

use super::harness::{Cluster, dataset, eventually, orders, read_all, size};
use larder_origin::testing::FakeS3;
use larder_peer::Source;
use larder_proto::control::v1::{self as pb, Phase};
use std::{collections::BTreeMap, time::Duration};

#[tokio::test(flavor = "multi_thread")]
async fn a_share_grows_when_a_member_leaves() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let cluster = Cluster::start(2).await;
    let node = &cluster.nodes[0];
    let snapshot = node.list(&server).await;
    node.configure(pb::Config { snapshot, preload: true, ..orders(&server) }).await;
    let part = node.preloaded().await;
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
    let snapshot = cluster.take(server, pb::Config { preload: true, ..orders(server) }).await;
    if preloaded {
        futures::future::join(cluster.nodes[0].preloaded(), cluster.nodes[1].preloaded()).await;
    } else {
        eventually("the preload begins", async || server.seen().bytes > 0).await;
        let (a, b) = (cluster.nodes[0].status().await, cluster.nodes[1].status().await);
        let whole = |s: pb::StatusResponse| s.preload.is_some_and(|p| p.phase() == Phase::Succeeded);
        assert!(!whole(a) || !whole(b), "the preload was over before anyone joined");
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
        node.preloaded().await;
    }
    read_all(&cluster, &snapshot, &files).await;
    assert_eq!(server.seen().bytes, size(&files));
}
