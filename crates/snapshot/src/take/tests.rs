use super::*;
use bytes::Bytes;
use futures::{
    future::BoxFuture,
    stream::{self, BoxStream},
};
use larder_core::catalog::{Builder, Catalog, Listed, digest};
use larder_origin::{Error, Reason, testing::synthetic::Synthetic};
use proptest::prelude::*;
use std::{fs, ops::Range};

/// Lists what it is told to, in that order.
#[derive(Debug)]
struct Told(Vec<Result<Item, Error>>);

impl Origin for Told {
    fn uri(&self) -> &str {
        "s3://told/"
    }
    fn list(&self) -> BoxStream<'_, Result<Item, Error>> {
        stream::iter(self.0.clone()).boxed()
    }
    fn read_range<'a>(&'a self, _: &'a str, _: &'a str, _: Range<u64>) -> BoxFuture<'a, Result<Bytes, Error>> {
        unreachable!("nothing is read")
    }
}

fn file(path: &str, size: u64) -> Listed {
    Listed { path: path.into(), size, mtime_ns: 1, version: "\"v\"".into() }
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

async fn taken(origin: &dyn Origin, memory: usize) -> (Result<Taken, TakeError>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (take_within(memory, origin, dir.path(), &Arc::default()).await, dir)
}

#[tokio::test]
async fn neither_the_order_of_the_listing_nor_the_memory_change_the_digest() {
    let mut digests = Vec::new();
    for (streams, memory) in [(1, MEMORY), (1, 20_000), (7, 50_000), (16, 300_000)] {
        let origin = Synthetic { files: 30_000, per_folder: 100, streams };
        let (taken, dir) = taken(&origin, memory).await;
        let taken = taken.unwrap();
        assert_eq!(taken.sorted_bytes > 0, memory < MEMORY);
        assert_eq!(names(dir.path()), std::slice::from_ref(&taken.digest));
        digests.push(taken.digest);
    }
    digests.dedup();
    assert_eq!(digests.len(), 1);
}

#[tokio::test]
async fn three_hundred_thousand_files_are_all_found_with_little_memory() {
    let origin = Synthetic { files: 300_000, per_folder: 50_000, streams: 4 };
    let progress = Arc::new(Progress::default());
    let dir = tempfile::tempdir().unwrap();
    let taken = take_within(1 << 20, &origin, dir.path(), &progress).await.unwrap();
    assert_eq!((progress.files(), taken.files, taken.entries), (300_000, 300_000, 300_008));
    assert_eq!(progress.bytes(), taken.bytes);
    let catalog = Catalog::open_as(fs::File::open(dir.path().join(&taken.digest)).unwrap(), &taken.digest).unwrap();
    catalog.verify().unwrap();
    for number in (0..300_000).step_by(997) {
        let expected = origin.object(number);
        let mut at = 0;
        for part in expected.path.split('/') {
            at = catalog.lookup(at, part).unwrap().unwrap();
        }
        assert_eq!(catalog.entry(at).unwrap().size(), expected.size);
        assert_eq!(catalog.version(at).unwrap(), expected.version);
    }
}

#[tokio::test]
async fn what_is_left_out_is_counted_and_named() {
    let skipped = Item::Skipped { key: "odd".into(), reason: "is odd" };
    let items = [Item::File(file("a//b", 1)), skipped, Item::File(file("f", 1)), Item::File(file("f/g", 1))];
    let (taken, _dir) = taken(&Told(items.map(Ok).to_vec()), MEMORY).await;
    let skips = taken.unwrap().skips;
    let keys: Vec<_> = skips.examples.iter().map(|s| (s.key.as_str(), s.reason)).collect();
    assert_eq!(
        (skips.count, keys),
        (3, vec![("a//b", "has an empty part (//)"), ("f", "is also a folder"), ("odd", "is odd")])
    );
}

#[tokio::test]
async fn a_listing_that_fails_or_is_empty_leaves_nothing() {
    let failed = Error::new(Reason::OriginUnreachable, "away");
    let (result, dir) = taken(&Told(vec![Ok(Item::File(file("a", 1))), Err(failed)]), MEMORY).await;
    assert!(matches!(result, Err(TakeError::Origin(e)) if e.reason() == Reason::OriginUnreachable));
    assert_eq!(names(dir.path()), Vec::<String>::new());
    let (result, dir) = taken(&Told(vec![Ok(Item::File(file("marker/", 0))), Ok(Item::File(file("x//y", 0)))]), MEMORY).await;
    assert!(matches!(result, Err(TakeError::Empty(skips)) if skips.count == 1));
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_disk_that_fails_ends_the_listing_with_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    let gone = dir.path().join("gone");
    let origin = Synthetic { files: 100_000, per_folder: 10, streams: 1 };
    for (memory, what) in [(10_000, "sort the listing in"), (MEMORY, "write the catalog in")] {
        let e = take_within(memory, &origin, &gone, &Arc::default()).await.unwrap_err();
        assert!(matches!(&e, TakeError::Disk { action, .. } if *action == what), "{e}");
        assert!(e.to_string().contains("gone"), "{e}");
    }
}

#[tokio::test]
async fn whoever_gives_up_leaves_nothing_whenever_it_is() {
    let origin = Synthetic { files: 200_000, per_folder: 10, streams: 1 };
    for millis in [1, 30, 100, 200, 400] {
        let dir = tempfile::tempdir().unwrap();
        let progress = Arc::default();
        let taking = take_within(1 << 20, &origin, dir.path(), &progress);
        let early = tokio::time::timeout(Duration::from_millis(millis), taking).await.is_err();
        // The thread sees it at its next step.
        let end = Instant::now() + Duration::from_secs(20);
        while names(dir.path()).iter().any(|n| n.starts_with('.')) && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(names(dir.path()).iter().all(|n| !n.starts_with('.')), "{millis} ms: {:?}", names(dir.path()));
        assert!(early || names(dir.path()).len() == 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn the_file_is_the_one_that_is_built_in_memory(
        paths in proptest::collection::vec(("[a-c](/[a-c ]{1,2}){0,3}/?", 0u64..3), 1..80),
        memory in 1usize..2000,
    ) {
        let mut builder = Builder::new("s3://told/");
        paths.iter().for_each(|(path, size)| builder.push(file(path, *size)));
        let (expected, skipped) = builder.finish();
        let items = paths.iter().map(|(path, size)| Ok(Item::File(file(path, *size)))).collect();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (result, dir) = runtime.block_on(taken(&Told(items), memory));
        match result {
            Ok(taken) => {
                prop_assert_eq!(&taken.digest, &digest(&expected));
                prop_assert_eq!(fs::read(dir.path().join(&taken.digest)).unwrap(), expected);
                prop_assert!(taken.skips.count <= skipped.len() as u64);
            }
            Err(TakeError::Empty(_)) => prop_assert_eq!(Catalog::open(expected).unwrap().files(), 0),
            Err(e) => prop_assert!(false, "{}", e),
        }
    }
}
