//! Bytes that changed on the disk.

use super::harness::{Cluster, Node, dataset, eventually, orders, read_all, size};
use crate::objects::answer;
use larder_core::checksum::crc32c as crc32c_of;
use larder_fuse::protocol::worker::{Reply, Request};
use larder_origin::testing::FakeS3;
use larder_peer::{Body, ObjectReply, Source};
use larder_proto::control::v1::{self as pb, Phase};
use std::{fs::File, io::Read as _, os::unix::fs::FileExt as _};

/// Flips the last bit of every cached file.
fn damage(node: &Node) {
    for path in walk(&node.dir.join("data")).iter().filter(|p| p.extension().is_none()) {
        let mut bytes = std::fs::read(path).unwrap();
        if let Some(last) = bytes.last_mut() {
            *last ^= 1;
            std::fs::write(path, bytes).unwrap();
        }
    }
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
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
async fn bytes_that_change_beneath_a_worker_are_found_by_whoever_gets_them_and_mended_by_it() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let cluster = Cluster::start(1).await;
    let snapshot = cluster.nodes[0].list_and_preload(&server).await;
    let before = server.seen().bytes;
    // Files that this process has filled: it gives them without a look of its own.
    damage(&cluster.nodes[0]);
    let big = cluster.catalog(&snapshot).lookup(0, "big.bin").unwrap().unwrap();
    let request = cluster.request(&snapshot, big, 9 << 20..(9 << 20) + 5);
    let Ok(ObjectReply { body: Body::Bytes(given), crc32c, .. }) = answer(&cluster.nodes[0].worker(), request).await else {
        panic!("a piece of a file that is here")
    };
    let right = &files["big.bin"][9 << 20..];
    assert!(given != right && crc32c == Some(crc32c_of(right)));
    read_all(&cluster, &snapshot, &files).await;
    let damaged: Vec<_> = files.values().filter(|b| !b.is_empty()).collect();
    assert_eq!(server.seen().bytes - before, damaged.iter().map(|b| b.len() as u64).sum::<u64>());
    let node = &cluster.nodes[0];
    node.until(|s| s.problems.into_iter().find(|p| p.message.starts_with(&format!("{} cached", damaged.len())))).await;
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
    eventually("the file is given away", async || cluster.nodes[0].ask(open.clone()).await.1.is_some()).await;
    assert_eq!(server.seen().bytes, before);
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
    let (mut cluster, snapshot) = Cluster::with_snapshot(2, &server).await;
    with_damaged_catalog(&mut cluster, &snapshot).await;
    let lists = server.seen().lists;
    assert!(cluster.catalog(&snapshot).verify().is_err());
    // The first to need the section finds the damage.
    let ask = Request::Open { snapshot: snapshot.clone(), inode: 2 };
    assert!(matches!(cluster.nodes[0].ask(ask.clone()).await.0, Reply::Error(_)));
    let answers = async || !matches!(cluster.nodes[0].ask(ask.clone()).await.0, Reply::Error(_));
    eventually("the section is whole", answers).await;
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
    eventually("the catalog is whole", async || cluster.catalog(&snapshot).verify().is_ok()).await;
    cluster.nodes[0].preloaded().await;
    read_all(&cluster, &snapshot, &files).await;
    assert_eq!(server.seen().bytes, size(&files), "no object was fetched again");
}
