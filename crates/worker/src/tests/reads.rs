//! Reads of what nobody fetched before.

use super::harness::{Cluster, dataset, orders, read_all, size};
use bytes::Bytes;
use larder_origin::testing::FakeS3;
use larder_peer::Source;
use larder_proto::control::v1 as pb;
use std::collections::BTreeMap;

#[tokio::test(flavor = "multi_thread")]
async fn reads_without_a_preload_fetch_each_chunk_once_and_stand_ins_read_for_the_dead() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let (mut cluster, snapshot) = Cluster::with_snapshot(2, &server).await;
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
