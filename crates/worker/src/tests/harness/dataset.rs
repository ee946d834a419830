//! The files that are served in most tests.

use super::Cluster;
use bytes::Bytes;
use larder_origin::testing::FakeS3;
use larder_peer::Source;
use std::collections::BTreeMap;

/// Small, empty, many, larger than a chunk, odd names.
pub(crate) fn dataset(server: &FakeS3) -> BTreeMap<String, Bytes> {
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

pub(crate) fn size(files: &BTreeMap<String, Bytes>) -> u64 {
    files.values().map(|b| b.len() as u64).sum()
}

/// Reads every file of the snapshot through the peers and compares it.
pub(crate) async fn read_all(cluster: &Cluster, snapshot: &str, files: &BTreeMap<String, Bytes>) -> BTreeMap<Source, usize> {
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
