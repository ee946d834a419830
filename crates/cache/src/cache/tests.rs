use super::*;
use crate::{
    CHUNK, layout,
    testing::{Broken, NO_FLOOR, content, counted, key, never, own},
};
use std::{fs, sync::atomic::AtomicU64};

const MIB: u64 = 1 << 20;

/// On folders of these names beneath this one, each with its quota.
pub(super) fn open(root: &Path, disks: &[(&str, u64)]) -> Cache<Broken> {
    let cache = Cache::new(64 * MIB);
    for (number, (name, quota)) in disks.iter().enumerate() {
        cache.add(number, &root.join(name), Options { quota: *quota, floor: NO_FLOOR }).unwrap();
    }
    cache
}

async fn fill(cache: &Cache<Broken>, objects: Range<u64>, size: u64) -> Result<u64, ReadError<Broken>> {
    let fetched = Arc::new(AtomicU64::new(0));
    for n in objects {
        cache.fill(&own(n, size), 1, counted(&fetched)).await?;
    }
    Ok(fetched.load(Relaxed))
}

fn files(cache: &Cache<Broken>) -> Vec<u64> {
    cache.all().iter().map(|place| place.disk.usage().files).collect()
}

/// Nothing new can be written to a disk from now on.
pub(super) fn break_writes(dir: &Path) {
    fs::remove_dir_all(layout::fill_folder(dir)).unwrap();
    fs::write(layout::fill_folder(dir), "").unwrap();
}

#[tokio::test]
async fn files_are_spread_by_the_quotas_and_found_again_in_whatever_order_the_disks_come() {
    let root = tempfile::tempdir().unwrap();
    let cache = open(root.path(), &[("a", 1024 * MIB), ("b", 1024 * MIB), ("c", 2048 * MIB)]);
    fill(&cache, 0..400, 100).await.unwrap();
    let files = files(&cache);
    assert!(files[0].abs_diff(100) < 40 && files[1].abs_diff(100) < 40 && files[2].abs_diff(200) < 50, "{files:?}");
    assert_eq!(cache.usage(), Usage { files: 400, bytes: 40_000, fill_bytes: 0, part_bytes: 0 });
    cache.close().await;
    let cache = open(root.path(), &[("c", 1024 * MIB), ("a", 4096 * MIB), ("b", 1)]);
    for n in 0..400 {
        let read = cache.read_range(&own(n, 100), 10..90, never).await.unwrap();
        assert_eq!(read.bytes, content(10..90));
        assert!(cache.contains(&key(n)) && cache.open_complete(&key(n)).await.is_some());
    }
    assert!(cache.erase().await.unwrap() > 0);
    assert_eq!(cache.usage(), Usage::default());
}

#[tokio::test]
async fn what_one_disk_has_no_room_for_goes_to_another_and_only_then_to_none() {
    let root = tempfile::tempdir().unwrap();
    let cache = open(root.path(), &[("small", 1000), ("large", 3000)]);
    fill(&cache, 0..40, 100).await.unwrap();
    assert_eq!(files(&cache), [10, 30]);
    assert!(matches!(fill(&cache, 40..41, 100).await, Err(ReadError::Cache(CacheError::QuotaExceeded { .. }))));
    let small = root.path().join("small");
    cache.fails(&small, &CacheError::Removed { path: layout::fill(&small, &key(1)) });
    assert!(cache.failing().is_empty(), "a full disk has not failed, nor one where room was made");
    cache.set_quotas(&[1100, 3000]);
    fill(&cache, 40..41, 100).await.unwrap();
    assert_eq!(files(&cache), [11, 30]);
}

#[tokio::test]
async fn a_file_goes_on_on_the_disk_where_it_began() {
    let root = tempfile::tempdir().unwrap();
    let cache = open(root.path(), &[("a", 0), ("b", 0), ("c", 0)]);
    let (object, fetched) = (own(1, 3 * CHUNK), Arc::new(AtomicU64::new(0)));
    cache.read_range(&object, 0..10, counted(&fetched)).await.unwrap();
    let filling: Vec<bool> = cache.all().iter().map(|place| place.disk.is_filling(&object.key)).collect();
    // Whatever disk would be chosen now.
    cache.set_quotas(&filling.iter().map(|here| if *here { 64 * MIB } else { u64::MAX / 2 }).collect::<Vec<_>>());
    cache.fill(&object, 2, counted(&fetched)).await.unwrap();
    assert_eq!(fetched.load(Relaxed), 3 * CHUNK, "each chunk once");
    let complete: Vec<bool> = cache.all().iter().map(|place| place.disk.contains(&object.key)).collect();
    assert_eq!(complete, filling);
}

#[tokio::test]
async fn a_disk_that_fails_is_done_without_and_what_it_loses_is_fetched_to_another() {
    let root = tempfile::tempdir().unwrap();
    let cache = open(root.path(), &[("bad", 0), ("good", 0)]);
    fill(&cache, 0..40, 100).await.unwrap();
    let on_bad = files(&cache)[0];
    assert!(on_bad > 5, "{on_bad}");
    break_writes(&root.path().join("bad"));
    fill(&cache, 40..80, 100).await.unwrap();
    assert_eq!(files(&cache), [on_bad, 80 - on_bad], "everything new is on the good one");
    let failing = cache.failing();
    assert!(failing.len() == 1 && failing[0].to_string().contains("bad"), "{failing:?}");
    for n in 0..80 {
        cache.read_range(&own(n, 100), 0..100, never).await.unwrap();
    }
    let mut opened = 0;
    for n in 0..80 {
        opened += u64::from(cache.open_complete(&key(n)).await.is_some());
    }
    assert_eq!(opened, 80 - on_bad, "nobody reads past the cache what a failing disk may not give");
    let mut damages = cache.damages();
    damages.mark_unchanged();
    fs::remove_dir_all(layout::data_folder(&root.path().join("bad"))).unwrap();
    for n in 0..80 {
        let read = cache.read_range(&own(n, 100), 0..100, counted(&Arc::default())).await.unwrap();
        assert_eq!(read.bytes, content(0..100));
    }
    // A read is answered before its file is complete: a fill waits for that.
    assert_eq!(fill(&cache, 0..80, 100).await.unwrap(), 0, "the reads have fetched everything");
    assert_eq!(files(&cache), [0, 80]);
    assert_eq!(cache.integrity().damaged_files, on_bad);
    assert!(damages.has_changed().unwrap());
}

#[tokio::test]
async fn the_only_disk_of_a_node_is_read_on_and_opened_by_nobody_while_it_fails() {
    let root = tempfile::tempdir().unwrap();
    let cache = open(root.path(), &[("only", 0)]);
    fill(&cache, 0..1, 100).await.unwrap();
    assert!(cache.open_now(&key(0)).is_some() || cache.open_complete(&key(0)).await.is_some());
    let path = root.path().join("only");
    let error =
        CacheError::Disk { action: "write", path: path.clone(), source: Arc::new(std::io::Error::from_raw_os_error(5)) };
    cache.fails(&path, &error);
    assert!(cache.open_now(&key(0)).is_none() && cache.open_complete(&key(0)).await.is_none());
    assert_eq!(cache.read_range(&own(0, 100), 0..100, never).await.unwrap().bytes, content(0..100));
    assert_eq!(cache.failing().len(), 1);
}

#[tokio::test]
async fn a_fill_that_breaks_off_on_one_disk_begins_anew_on_another() {
    let root = tempfile::tempdir().unwrap();
    let cache = open(root.path(), &[("a", 0), ("b", 0)]);
    let (object, fetched) = (own(1, 2 * CHUNK), Arc::new(AtomicU64::new(0)));
    cache.read_range(&object, 0..10, counted(&fetched)).await.unwrap();
    let place = cache.all().iter().find(|place| place.disk.is_filling(&object.key)).cloned().unwrap();
    break_writes(Path::new(&place.name));
    let read = cache.read_range(&object, CHUNK..CHUNK + 10, counted(&fetched)).await.unwrap();
    assert_eq!(read.bytes, content(CHUNK..CHUNK + 10));
    cache.fill(&object, 2, counted(&fetched)).await.unwrap();
    assert!(!place.disk.contains(&object.key) && !place.disk.is_filling(&object.key));
    assert!(cache.contains(&object.key));
    assert_eq!(cache.usage(), Usage { files: 1, bytes: 2 * CHUNK, fill_bytes: 0, part_bytes: 0 });
}
