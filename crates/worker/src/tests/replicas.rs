//! Files that are kept on more nodes than their owner.

use super::harness::{Cluster, dataset, orders, read_all, size};
use larder_origin::testing::FakeS3;
use larder_peer::Source;
use larder_proto::control::v1::{self as pb, Phase};
use std::collections::BTreeMap;

async fn preloaded(server: &FakeS3, nodes: usize, replicas: u32) -> (Cluster, String) {
    let cluster = Cluster::start(nodes).await;
    let snapshot = cluster.nodes[0].list(server).await;
    // The last first: replicas are wanted before their owners have orders.
    for node in cluster.nodes.iter().rev() {
        node.configure(pb::Config { snapshot: snapshot.clone(), preload: true, replicas, ..orders(server) }).await;
        node.until(|s| s.snapshots.contains(&snapshot).then_some(())).await;
    }
    for node in &cluster.nodes {
        node.until(|s| s.preload.filter(|p| p.phase() == Phase::Succeeded && p.files_total > 5)).await;
    }
    (cluster, snapshot)
}

async fn cached(cluster: &Cluster) -> u64 {
    let mut sum = 0;
    for node in &cluster.nodes {
        sum += node.status().await.cached_bytes;
    }
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn with_two_replicas_a_node_may_die_and_no_byte_leaves_the_origin_again() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let (mut cluster, snapshot) = preloaded(&server, 3, 2).await;
    assert_eq!(server.seen().bytes, size(&files), "each byte left the origin once");
    assert_eq!(cached(&cluster).await, 2 * size(&files));
    cluster.stop(1).await;
    assert_eq!(read_all(&cluster, &snapshot, &files).await, BTreeMap::from([(Source::Disk, files.len())]));
    assert_eq!(server.seen().bytes, size(&files));
}

#[tokio::test(flavor = "multi_thread")]
async fn everywhere_is_a_replica_on_each_node() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let (cluster, _) = preloaded(&server, 2, u32::MAX).await;
    assert_eq!(server.seen().bytes, size(&files));
    for node in &cluster.nodes {
        assert_eq!(node.status().await.cached_bytes, size(&files));
    }
}
