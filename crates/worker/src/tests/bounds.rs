//! What a worker takes on at most.

use super::harness::{Cluster, dataset, orders};
use crate::objects::{FIRST_BYTE, answer};
use larder_fuse::protocol::worker::{Reply, Request};
use larder_origin::testing::FakeS3;
use larder_proto::control::v1 as pb;
use std::{sync::Arc, time::Duration};

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_counts_as_memory_until_it_is_sent_also_one_in_one_piece() {
    let server = FakeS3::start().await;
    dataset(&server);
    let cluster = Cluster::start(1).await;
    let snapshot = cluster.nodes[0].list_and_preload(&server).await;
    let index = cluster.catalog(&snapshot).lookup(0, "big.bin").unwrap().unwrap();
    let worker = cluster.nodes[0].worker();
    for (range, taken) in [(0..1 << 20, 1 << 20), (5..9 << 20, 8 << 20)] {
        let reply = answer(&worker, cluster.request(&snapshot, index, range)).await.unwrap();
        assert_eq!(worker.serving.taken(), taken);
        drop(reply);
        assert_eq!(worker.serving.taken(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_slower_than_a_first_byte_may_be_is_asked_for_it_once() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let (cluster, snapshot) = Cluster::with_snapshot(2, &server).await;
    let index = cluster.catalog(&snapshot).lookup(0, "big 2 +%#é.bin").unwrap().unwrap();
    let before = server.seen().gets;
    server.faults(|f| f.delay = FIRST_BYTE + Duration::from_secs(1));
    let got = cluster.read(&snapshot, index, 0..4 << 20).await.unwrap();
    assert!(got.bytes == files["big 2 +%#é.bin"]);
    assert_eq!(got.node, cluster.owner(&cluster.request(&snapshot, index, 0..1).key));
    assert_eq!(server.seen().gets, before + 1);
}

/// No disk keeps what is fetched: a fetch goes on all the same while who waits for it asks again, and is of all who ask.
#[tokio::test(flavor = "multi_thread")]
async fn such_an_origin_is_asked_once_also_for_what_goes_past_the_cache() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let cluster = Cluster::start(1).await;
    let snapshot = cluster.take(&server, pb::Config { quota_bytes: 1, ..orders(&server) }).await;
    let index = cluster.catalog(&snapshot).lookup(0, "big 2 +%#é.bin").unwrap().unwrap();
    let before = server.seen().gets;
    server.faults(|f| f.delay = FIRST_BYTE + Duration::from_secs(1));
    let read = || cluster.read(&snapshot, index, 0..4 << 20);
    let (one, other) = tokio::join!(read(), read());
    assert!([one, other].iter().all(|got| got.as_ref().unwrap().bytes == files["big 2 +%#é.bin"]));
    assert_eq!((server.seen().gets, cluster.nodes[0].status().await.cached_files), (before + 1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_that_keep_connections_do_not_take_them_from_others() {
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    let mut kept = Vec::new();
    for _ in 0..500 {
        kept.push(node.connect().await);
    }
    let asked = node.ask(Request::Catalog { digest: "ab".repeat(32) });
    let (reply, _) = tokio::time::timeout(Duration::from_secs(10), asked).await.expect("no answer");
    assert_eq!(reply, Reply::Absent { owner: false });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_that_does_not_fit_is_tried_again_when_there_is_more_room_and_not_before() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    let snapshot = node.list(&server).await;
    node.configure(pb::Config { snapshot, preload: true, quota_bytes: 6 << 20, ..orders(&server) }).await;
    let all_but_one = files.len() as u64 - 1;
    let settled = |s: pb::StatusResponse| s.preload.filter(|p| (p.files_failed, p.files_done) == (1, all_but_one));
    assert_eq!(node.until(settled).await.problem.unwrap().reason, "DoesNotFit");
    let worker = node.worker();
    let attempt = worker.report.progress().unwrap();
    // Without that, a second attempt begins after 1 s.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(Arc::ptr_eq(&attempt, &worker.report.progress().unwrap()));
    let before = server.seen().gets;
    worker.cache.retain(|_| false).await.unwrap();
    node.until(|_| (server.seen().gets > before).then_some(())).await;
    node.until(settled).await;
}
