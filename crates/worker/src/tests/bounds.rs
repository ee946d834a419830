//! What a worker takes on at most.

use super::{dataset, harness::Cluster};
use crate::objects::answer;
use larder_origin::testing::FakeS3;

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
