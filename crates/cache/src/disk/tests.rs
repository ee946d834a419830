mod crash;
mod neighbours;
mod parts;

use super::*;
use crate::testing::{Broken, Fetched, NO_FLOOR, content, counted, key, never, own};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use tokio::sync::Notify;

fn common() -> Common {
    Common::new(64 << 20)
}

impl Disk<Broken> {
    async fn fill<F, Fut>(&self, object: &Object, parallel: usize, fetch: F) -> Result<(), ReadError<Broken>>
    where
        F: Fn(Range<u64>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, Broken>> + Send + 'static,
    {
        self.fill_part(object, 0..object.size, parallel, fetch).await
    }
}

fn open(dir: &Path) -> Disk<Broken> {
    Disk::open(dir, Options { floor: NO_FLOOR, quota: 0 }, &common()).unwrap()
}

fn open_with(dir: &Path, quota: u64) -> Disk<Broken> {
    Disk::open(dir, Options { floor: NO_FLOOR, quota }, &common()).unwrap()
}

/// Changes a byte of a complete file, as a disk might.
fn flip(dir: &Path, n: u64, at: u64) {
    let file = File::options().read(true).write(true).open(layout::data(dir, &key(n))).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn quarantined(dir: &Path, n: u64) -> bool {
    layout::quarantine(dir).join(key(n).to_string()).exists()
}

/// Says that it was asked, and waits before it answers.
fn held_up(asked: &Arc<Notify>, answer: &Arc<Notify>) -> impl Fn(Range<u64>) -> Fetched + Clone + Send + Sync + 'static {
    let (asked, answer) = (Arc::clone(asked), Arc::clone(answer));
    move |range| {
        let (asked, answer) = (Arc::clone(&asked), Arc::clone(&answer));
        Box::pin(async move {
            asked.notify_one();
            answer.notified().await;
            Ok(content(range))
        })
    }
}

fn failing(_: Range<u64>) -> Fetched {
    Box::pin(async { Err(Broken("origin")) })
}

/// All files beneath, relative.
fn files(dir: &Path) -> Vec<String> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for e in fs::read_dir(dir).unwrap() {
            let p = e.unwrap().path();
            if p.is_dir() { walk(&p, out) } else { out.push(p) }
        }
    }
    let mut out = Vec::new();
    walk(dir, &mut out);
    let mut out: Vec<_> = out.iter().map(|p| p.strip_prefix(dir).unwrap().display().to_string()).collect();
    out.sort();
    out
}

#[tokio::test]
async fn many_readers_of_one_chunk_cause_one_fetch() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let (count, size) = (Arc::new(AtomicU64::new(0)), 3 * CHUNK + 17);
    let reads = (0..64u64).map(|i| {
        let (cache, fetch) = (cache.clone(), counted(&count));
        tokio::spawn(async move {
            let at = CHUNK - 1000 + i;
            let got = cache.read_range(&own(1, size), at..at + 2000, fetch).await.unwrap();
            assert_eq!(got, Checked::of(content(at..at + 2000)));
        })
    });
    for read in reads.collect::<Vec<_>>() {
        read.await.unwrap();
    }
    assert_eq!(count.load(SeqCst), 2 * CHUNK, "two chunks, each once");
    assert!(cache.has(&key(1), &(0..2 * CHUNK)) && !cache.has(&key(1), &(0..2 * CHUNK + 1)));
    assert!(!cache.contains(&key(1)));
    cache.fill(&own(1, size), 4, counted(&count)).await.unwrap();
    assert_eq!(count.load(SeqCst), size);
    assert!(cache.contains(&key(1)));
    assert_eq!(cache.read_range(&own(1, size), size - 1..size, never).await.unwrap().bytes, content(size - 1..size));
    assert_eq!(cache.usage(), Usage { files: 1, bytes: size, fill_bytes: 0, part_bytes: 0 });
    assert!(cache.verify(&key(1)).await);
}

#[tokio::test]
async fn an_object_that_the_quota_has_no_room_for_takes_no_memory_either() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open_with(dir.path(), 1 << 30);
    // A list of its chunks would be larger than any memory.
    let object = own(1, i64::MAX.cast_unsigned());
    let e = cache.read_range(&object, 0..10, never).await.unwrap_err();
    assert!(matches!(e, ReadError::Cache(CacheError::QuotaExceeded { need, .. }) if need == object.size), "{e}");
    assert!(!cache.is_filling(&key(1)));
}

#[tokio::test]
async fn complete_files_are_found_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = [0, 1, CHUNK, CHUNK + 1];
    {
        let cache = open(dir.path());
        for size in sizes {
            cache.fill(&own(size, size), 2, counted(&Arc::default())).await.unwrap();
        }
    }
    let cache = open(dir.path());
    assert_eq!(cache.usage().files, 4);
    for size in sizes {
        assert_eq!(cache.read_range(&own(size, size), 0..size, never).await.unwrap().bytes, content(0..size));
        assert_eq!(cache.open_complete(&key(size)).await.unwrap().metadata().unwrap().len(), size);
    }
}

#[tokio::test]
async fn files_with_bad_or_missing_sidecars_are_discarded() {
    let dir = tempfile::tempdir().unwrap();
    {
        let cache = open(dir.path());
        for n in 1..=5 {
            cache.fill(&own(n, 100), 1, counted(&Arc::default())).await.unwrap();
        }
    }
    let data = |n| layout::data(dir.path(), &key(n));
    let meta = |n| layout::sidecar(dir.path(), &key(n), 100);
    let mut sidecar = fs::read(meta(1)).unwrap();
    sidecar[33] ^= 1;
    fs::write(meta(1), sidecar).unwrap();
    fs::remove_file(meta(2)).unwrap();
    fs::remove_file(data(3)).unwrap();
    File::options().write(true).open(data(4)).unwrap().set_len(99).unwrap();
    fs::write(dir.path().join("data").join("stray"), "x").unwrap();
    let cache = open(dir.path());
    // What names do not tell is found when the file is wanted.
    assert_eq!(cache.usage(), Usage { files: 3, bytes: 300, fill_bytes: 0, part_bytes: 0 });
    for n in 1..=5 {
        assert_eq!(cache.open_complete(&key(n)).await.is_some(), n == 5, "{n}");
    }
    assert_eq!(cache.usage(), Usage { files: 1, bytes: 100, fill_bytes: 0, part_bytes: 0 });
    assert_eq!(files(&dir.path().join("data")).len(), 2, "{:?}", files(dir.path()));
}

#[tokio::test]
async fn a_read_finds_a_flipped_bit_puts_the_file_aside_and_gives_the_right_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let size = 2 * CHUNK + 9;
    cache.fill(&own(1, size), 1, counted(&Arc::default())).await.unwrap();
    let damages = cache.inner.common.damages();
    flip(dir.path(), 1, CHUNK + 3);
    let elsewhere = cache.read_range(&own(1, size), 2 * CHUNK..size, never).await.unwrap();
    assert_eq!(elsewhere, Checked::of(content(2 * CHUNK..size)), "another block");
    let count = Arc::new(AtomicU64::new(0));
    let read = cache.read_range(&own(1, size), CHUNK..CHUNK + 9, counted(&count)).await.unwrap();
    assert_eq!((read.bytes, count.load(SeqCst)), (content(CHUNK..CHUNK + 9), CHUNK));
    assert!(quarantined(dir.path(), 1) && !cache.contains(&key(1)));
    assert!(damages.has_changed().unwrap() && cache.integrity().damaged_files == 1);
    cache.fill(&own(1, size), 1, counted(&Arc::default())).await.unwrap();
    assert!(cache.verify(&key(1)).await);
}

#[tokio::test]
async fn a_bad_chunk_of_an_unfinished_file_is_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let (count, size) = (Arc::new(AtomicU64::new(0)), CHUNK + 9);
    cache.read_range(&own(1, size), 0..9, counted(&count)).await.unwrap();
    let file = File::options().write(true).open(layout::fill(dir.path(), &key(1))).unwrap();
    file.write_all_at(b"!!", 100).unwrap();
    assert!(cache.chunk_here(&key(1), &(0..CHUNK)).await.is_none());
    assert_eq!(cache.read_range(&own(1, size), 90..120, counted(&count)).await.unwrap().bytes, content(90..120));
    assert_eq!(count.load(SeqCst), 2 * CHUNK);
    cache.fill(&own(1, size), 1, counted(&count)).await.unwrap();
    assert!(cache.verify(&key(1)).await);
}

#[tokio::test]
async fn a_descriptor_is_given_away_only_of_a_file_that_this_process_knows_to_be_good() {
    let dir = tempfile::tempdir().unwrap();
    {
        let cache = open(dir.path());
        for n in [1, 2] {
            cache.fill(&own(n, 100), 1, counted(&Arc::default())).await.unwrap();
        }
        flip(dir.path(), 1, 50);
        assert!(cache.open_complete(&key(1)).await.is_some(), "filled by this process; nobody has looked since");
    }
    fs::write(layout::sidecar(dir.path(), &key(2), 100), "x").unwrap();
    let cache = open(dir.path());
    for n in [1, 2] {
        assert!(cache.open_complete(&key(n)).await.is_none());
        assert!(quarantined(dir.path(), n));
        cache.fill(&own(n, 100), 1, counted(&Arc::default())).await.unwrap();
        let file = cache.open_complete(&key(n)).await.unwrap();
        let mut bytes = vec![0; 100];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, content(0..100));
    }
}

#[tokio::test]
async fn a_file_of_another_length_is_bad() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    cache.fill(&own(1, 100), 1, counted(&Arc::default())).await.unwrap();
    let file = File::options().append(true).open(layout::data(dir.path(), &key(1))).unwrap();
    file.write_all_at(b"more", 100).unwrap();
    assert!(!cache.verify(&key(1)).await);
    assert!(quarantined(dir.path(), 1));
}

#[tokio::test]
async fn the_scrub_finds_what_nobody_reads_and_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = [CHUNK + 5, 100, 0, 3 << 20];
    {
        let cache = open(dir.path());
        for size in sizes {
            cache.fill(&own(size, size), 2, counted(&Arc::default())).await.unwrap();
        }
    }
    flip(dir.path(), CHUNK + 5, CHUNK + 1);
    let cache = open(dir.path());
    cache.pass(None, 1 << 40).await;
    assert!(quarantined(dir.path(), CHUNK + 5));
    assert_eq!((cache.usage().files, cache.integrity().damaged_files), (3, 1));
    assert!(cache.integrity().scrubbed.is_some() && cache.integrity().compared_bytes >= (3 << 20) + 100);
    for size in sizes.into_iter().filter(|s| *s != CHUNK + 5) {
        assert!(cache.inner.index.lock().complete(&key(size)).unwrap().verified);
    }
    let before = cache.integrity();
    let mut keys: Vec<_> = sizes.into_iter().map(key).filter(|k| cache.contains(k)).collect();
    keys.sort();
    cache.pass(Some(keys[2]), 1 << 40).await;
    assert_eq!(cache.integrity().compared_bytes, before.compared_bytes, "nothing lies behind the last key");
    assert_eq!(open(dir.path()).integrity().scrubbed, cache.integrity().scrubbed, "known after a restart");
}

#[tokio::test]
async fn the_scrub_keeps_to_its_rate() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    cache.fill(&own(1, 3 << 20), 2, counted(&Arc::default())).await.unwrap();
    let began = std::time::Instant::now();
    cache.pass(None, 10 << 20).await;
    assert!(began.elapsed() >= Duration::from_millis(290), "{:?}", began.elapsed());
}

#[tokio::test]
async fn checksums_of_ranges_are_those_of_their_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let size = 2 * CHUNK + 9;
    assert_eq!(cache.checksum(&key(1), &(0..9)).await, None);
    cache.fill(&own(1, size), 2, counted(&Arc::default())).await.unwrap();
    for range in [0..size, 0..CHUNK, 5..CHUNK + 7, size - 1..size] {
        assert_eq!(cache.checksum(&key(1), &range).await, Some(Checked::of(content(range)).crc32c));
    }
    let chunk = cache.chunk_here(&key(1), &(CHUNK..2 * CHUNK)).await.unwrap();
    assert_eq!(chunk, Checked::of(content(CHUNK..2 * CHUNK)));
    assert!(cache.chunk_here(&key(1), &(0..9)).await.is_none(), "no whole chunk");
}

#[tokio::test]
async fn a_file_that_vanished_is_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    cache.fill(&own(1, 10), 1, counted(&Arc::default())).await.unwrap();
    fs::remove_file(layout::data(dir.path(), &key(1))).unwrap();
    assert!(cache.open_complete(&key(1)).await.is_none());
    assert_eq!(cache.read_range(&own(1, 10), 0..10, counted(&Arc::default())).await.unwrap().bytes, content(0..10));
}

#[tokio::test]
async fn a_failed_fetch_fails_its_readers_and_no_later_one() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let e = cache.read_range(&own(1, 10), 0..10, failing).await.unwrap_err();
    assert!(matches!(e, ReadError::Fetch(Broken("origin"))), "{e}");
    let short = |_| async { Ok::<_, Broken>(Bytes::from_static(b"x")) };
    assert!(matches!(cache.read_range(&own(1, 10), 0..10, short).await, Err(ReadError::Length { want: 10, got: 1 })));
    let e = cache.read_range(&own(1, 10), 0..10, never).await.unwrap_err();
    assert!(e.to_string().contains("panic"), "{e}");
    assert_eq!(cache.read_range(&own(1, 10), 0..10, counted(&Arc::default())).await.unwrap().bytes, content(0..10));
}

#[tokio::test]
async fn a_reader_that_goes_away_takes_nothing_from_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let count = Arc::new(AtomicU64::new(0));
    let one = own(1, 10);
    let gone = tokio::time::timeout(Duration::from_millis(5), cache.read_range(&one, 0..10, counted(&count)));
    assert!(gone.await.is_err());
    assert_eq!(cache.read_range(&own(1, 10), 0..10, failing).await.unwrap().bytes, content(0..10));
    assert_eq!(count.load(SeqCst), 10);
}

#[tokio::test]
async fn the_quota_counts_what_is_on_its_way_too() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    cache.set_quota(25);
    cache.fill(&own(1, 10), 1, counted(&Arc::default())).await.unwrap();
    let (cache2, slow) = (cache.clone(), counted(&Arc::default()));
    let second = tokio::spawn(async move { cache2.fill(&own(2, 10), 1, slow).await });
    while cache.usage().fill_bytes == 0 {
        tokio::task::yield_now().await;
    }
    let e = cache.fill(&own(3, 6), 1, never).await.unwrap_err();
    let ReadError::Cache(CacheError::QuotaExceeded { need: 6, free: 5, quota: 25, .. }) = e else { panic!("{e}") };
    second.await.unwrap().unwrap();
    cache.set_quota(26);
    cache.fill(&own(3, 6), 1, counted(&Arc::default())).await.unwrap();
    assert_eq!(cache.usage().bytes, 26);
}

#[tokio::test]
async fn a_disk_at_its_floor_refuses_before_anything_is_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let floor = Floor { percent: 100, at_least: 0 };
    let cache: Disk<Broken> = Disk::open(dir.path(), Options { floor, quota: 0 }, &common()).unwrap();
    let e = cache.read_range(&own(1, 10), 0..10, never).await.unwrap_err();
    assert!(matches!(e, ReadError::Cache(CacheError::DiskFull { need: 10, .. })), "{e}");
    // 4 TiB, more than a test machine has: nothing stays reserved.
    let cache = open(dir.path());
    let e = cache.read_range(&own(2, 1 << 42), 0..10, never).await.unwrap_err();
    assert!(matches!(e, ReadError::Cache(CacheError::DiskFull { need, .. }) if need == 1 << 42), "{e}");
    // The end of the failed fills is noted by tasks of their own.
    while cache.usage().fill_bytes > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(files(dir.path()), Vec::<String>::new());
    cache.fill(&own(3, 10), 1, counted(&Arc::default())).await.unwrap();
}

#[tokio::test]
async fn fetches_in_flight_stay_within_their_budget() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { floor: NO_FLOOR, quota: 0 };
    let cache: Disk<Broken> = Disk::open(dir.path(), options, &Common::new(4 * CHUNK)).unwrap();
    let (now, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let most2 = Arc::clone(&most);
    let fetch = move |range: Range<u64>| {
        let (now, most) = (Arc::clone(&now), Arc::clone(&most2));
        async move {
            most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
            tokio::time::sleep(Duration::from_millis(10)).await;
            now.fetch_sub(1, SeqCst);
            Ok(Bytes::from(vec![0; (range.end - range.start) as usize]))
        }
    };
    cache.fill(&own(1, 12 * CHUNK), 12, fetch).await.unwrap();
    assert_eq!(most.load(SeqCst), 3, "three quarters of the budget are for what nobody waits for");
}

#[tokio::test]
async fn a_closed_cache_touches_the_folder_no_more_and_what_it_began_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, size) = (open(dir.path()), 3 * CHUNK);
    cache.read_range(&own(1, size), 0..9, counted(&Arc::default())).await.unwrap();
    let hanging = {
        let cache = cache.clone();
        tokio::spawn(async move { cache.fill(&own(1, size), 2, |_| std::future::pending()).await })
    };
    tokio::task::yield_now().await;
    cache.close().await;
    assert!(matches!(hanging.await.unwrap(), Err(ReadError::Cache(CacheError::Closed { .. }))));
    assert!(matches!(cache.fill(&own(2, 1), 1, never).await, Err(ReadError::Cache(CacheError::Closed { .. }))));
    let (next, count) = (open(dir.path()), Arc::new(AtomicU64::new(0)));
    next.fill(&own(1, size), 1, counted(&count)).await.unwrap();
    assert_eq!(count.load(SeqCst), 2 * CHUNK, "the first chunk was there");
}

#[tokio::test]
async fn erasing_frees_all_bytes_and_refuses_what_comes_later() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    cache.fill(&own(1, CHUNK), 1, counted(&Arc::default())).await.unwrap();
    let hanging = {
        let cache = cache.clone();
        tokio::spawn(async move { cache.fill(&own(2, CHUNK), 1, |_| std::future::pending()).await })
    };
    while cache.usage().fill_bytes == 0 {
        tokio::task::yield_now().await;
    }
    assert!(cache.erase().await.unwrap() >= CHUNK);
    assert!(matches!(hanging.await.unwrap(), Err(ReadError::Cache(CacheError::Closed { .. }))));
    assert_eq!(files(dir.path()), Vec::<String>::new());
    assert!(matches!(cache.fill(&own(1, 1), 1, never).await, Err(ReadError::Cache(CacheError::Closed { .. }))));
    assert_eq!(cache.erase().await.unwrap(), 0);
}

#[tokio::test]
async fn what_is_not_kept_is_unlinked_and_frees_its_quota() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    for n in [1, 2] {
        cache.fill(&own(n, 10), 1, counted(&Arc::default())).await.unwrap();
    }
    let held = cache.open_complete(&key(1)).await.unwrap();
    assert_eq!(cache.retain(|k| *k == key(2)).await.unwrap(), 1);
    assert_eq!(cache.evicted_files(), 1);
    assert_eq!(cache.usage(), Usage { files: 1, bytes: 10, fill_bytes: 0, part_bytes: 0 });
    assert_eq!(files(dir.path()).len(), 2);
    let mut bytes = [0; 10];
    held.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes[..], content(0..10));
}

#[tokio::test]
async fn an_unfinished_file_that_nobody_goes_on_filling_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let (count, size) = (Arc::new(AtomicU64::new(0)), 2 * CHUNK + 5);
    let cache = Disk::open(dir.path(), Options { floor: NO_FLOOR, quota: size }, &common()).unwrap();
    cache.read_range(&own(1, size), 0..9, counted(&count)).await.unwrap();
    let (asked, answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let held_up = held_up(&asked, &answer);
    let full = cache.fill(&own(2, size), 1, never).await.unwrap_err();
    assert!(matches!(full, ReadError::Cache(CacheError::QuotaExceeded { .. })), "{full}");
    // Not while someone waits for it.
    let reader = tokio::spawn({
        let cache = cache.clone();
        async move { cache.read_range(&own(1, size), CHUNK..CHUNK + 9, held_up).await }
    });
    asked.notified().await;
    assert_eq!(cache.retain(|_| false).await.unwrap(), 0);
    answer.notify_one();
    assert_eq!(reader.await.unwrap().unwrap().bytes, content(CHUNK..CHUNK + 9));
    // Nor when it is of use.
    assert_eq!(cache.retain(|k| *k == key(1)).await.unwrap(), 0);

    assert_eq!(cache.retain(|k| *k == key(2)).await.unwrap(), 1);
    assert_eq!((cache.usage(), files(dir.path())), (Usage::default(), vec![]));
    cache.fill(&own(2, size), 2, counted(&count)).await.unwrap();
    assert_eq!(cache.read_range(&own(2, size), 0..size, never).await.unwrap().bytes, content(0..size));
}

/// Another kind of room: a copy goes for the share, the share for nothing that nobody waits for.
#[tokio::test]
async fn copies_make_room_for_the_share_and_never_the_other_way_round() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open_with(dir.path(), 30);
    let copy = |n| Object { keep: Keep::Copy, ..own(n, 10) };
    for n in [1, 2] {
        cache.fill(&copy(n), 1, counted(&Arc::default())).await.unwrap();
    }
    cache.fill(&own(3, 10), 1, counted(&Arc::default())).await.unwrap();
    let full = cache.fill(&copy(4), 1, never).await.unwrap_err();
    assert!(matches!(full, ReadError::Cache(CacheError::QuotaExceeded { .. })), "a copy that was just made: {full}");
    // What someone wants as its own is no copy any more.
    cache.read_range(&own(1, 10), 0..10, never).await.unwrap();
    cache.fill(&own(5, 10), 1, counted(&Arc::default())).await.unwrap();
    let here = |n| cache.contains(&key(n));
    assert!(here(1) && !here(2) && here(3) && here(5));
    let full = cache.fill(&own(6, 10), 1, never).await.unwrap_err();
    assert!(matches!(full, ReadError::Cache(CacheError::QuotaExceeded { .. })), "{full}");
    assert_eq!(files(dir.path()).len(), 6);
}

#[tokio::test]
async fn of_the_files_that_are_named_as_many_go_as_make_enough_room_and_none_that_is_open() {
    let dir = tempfile::tempdir().unwrap();
    {
        let cache = open(dir.path());
        for n in 1..=5 {
            cache.fill(&own(n, 10), 1, counted(&Arc::default())).await.unwrap();
        }
    }
    let cache = open(dir.path());
    let open_one = cache.open_complete(&key(2)).await.unwrap();
    let here = |cache: &Disk<Broken>| (1..=5).filter(|n| cache.contains(&key(*n))).collect::<Vec<_>>();
    let may_go = |k: &ObjectKey| (2..=4).any(|n| *k == key(n));
    assert_eq!(cache.make_room(11, may_go).await.unwrap(), 11);
    assert_eq!(here(&cache), [1, 2, 5]);
    assert_eq!(cache.make_room(11, may_go).await.unwrap(), 0);
    drop(open_one);
    assert_eq!(cache.make_room(11, may_go).await.unwrap(), 10);
    assert_eq!((here(&cache), cache.evicted_files()), (vec![1, 5], 3));
}

#[tokio::test]
async fn of_files_that_are_to_stay_if_they_are_complete_unfinished_ones_go() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    cache.fill(&own(1, 10), 1, counted(&Arc::default())).await.unwrap();
    cache.read_range(&own(2, 2 * CHUNK), 0..1, counted(&Arc::default())).await.unwrap();
    assert_eq!(cache.retain(|_| Stay::Complete).await.unwrap(), 1);
    assert_eq!(cache.usage(), Usage { files: 1, bytes: 10, fill_bytes: 0, part_bytes: 0 });
}

#[tokio::test]
async fn files_of_an_earlier_process_make_room_for_reads_unless_they_are_open() {
    let checked = async |cache: Disk<Broken>| cache.open_complete(&key(1)).await;
    stays_while_it_is_open(checked).await;
    stays_while_it_is_open(async |cache| {
        assert!(cache.verify(&key(1)).await);
        cache.open_now(&key(1))
    })
    .await;
}

async fn stays_while_it_is_open(open_first: impl AsyncFn(Disk<Broken>) -> Option<File>) {
    let dir = tempfile::tempdir().unwrap();
    {
        let cache = open(dir.path());
        for n in [1, 2, 3] {
            cache.fill(&own(n, 10), 1, counted(&Arc::default())).await.unwrap();
        }
    }
    let cache = open_with(dir.path(), 30);
    let held = open_first(cache.clone()).await.unwrap();
    drop(cache);
    // The descriptor outlives the process that gave it away.
    let cache = open_with(dir.path(), 30);
    for n in [4, 5] {
        assert_eq!(cache.read_range(&own(n, 10), 0..10, counted(&Arc::default())).await.unwrap().bytes, content(0..10));
        while !cache.contains(&key(n)) {
            tokio::task::yield_now().await;
        }
    }
    assert!(cache.contains(&key(1)) && !cache.contains(&key(2)) && !cache.contains(&key(3)));
    assert_eq!(cache.evicted_files(), 2);
    let full = cache.read_range(&own(6, 10), 0..10, never).await.unwrap_err();
    assert!(matches!(full, ReadError::Cache(CacheError::QuotaExceeded { .. })), "all are fresh or open: {full}");
    drop(held);
    drop(cache);
    let cache = open_with(dir.path(), 30);
    cache.read_range(&own(6, 10), 0..10, counted(&Arc::default())).await.unwrap();
}

#[tokio::test]
async fn a_read_that_comes_while_the_file_is_put_in_its_place_needs_no_second_fetch() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    cache.read_range(&own(1, 2 * CHUNK), 0..9, counted(&Arc::default())).await.unwrap();
    // As at that moment: moved, and the index does not know.
    let data = layout::data(dir.path(), &key(1));
    fs::create_dir_all(data.parent().unwrap()).unwrap();
    fs::rename(layout::fill(dir.path(), &key(1)), data).unwrap();
    assert_eq!(cache.read_range(&own(1, 2 * CHUNK), 5..99, never).await.unwrap().bytes, content(5..99));
}

/// Run by hand, with `LARDER_FILES` to ask for another number: it makes two files each, which takes much longer than the test.
#[tokio::test]
#[ignore = "makes two million files"]
async fn a_million_files_are_found_within_five_seconds() {
    let dir = tempfile::tempdir_in(std::env::var_os("LARDER_TEST_DIR").unwrap_or_else(|| std::env::temp_dir().into())).unwrap();
    let count: u64 = std::env::var("LARDER_FILES").map_or(1_000_000, |n| n.parse().unwrap());
    let size = 114_660;
    for n in 0..count {
        let key = key(n);
        let data = layout::data(dir.path(), &key);
        fs::create_dir_all(data.parent().unwrap()).unwrap();
        File::create(&data).unwrap().set_len(size).unwrap();
        File::create(layout::sidecar(dir.path(), &key, size)).unwrap();
    }
    let resident = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap().trim().to_owned()
    };
    for caches in ["warm", "cold"] {
        if caches == "cold" && fs::write("/proc/sys/vm/drop_caches", "3").is_err() {
            continue;
        }
        let (before, began) = (resident(), std::time::Instant::now());
        let cache = open(dir.path());
        let took = began.elapsed();
        eprintln!("{count} files, caches {caches}: {took:?}, resident {before} -> {}", resident());
        assert_eq!(cache.usage().files, count);
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
}

/// A folder with what this release writes into it: a complete file, and one that is unfinished. A later release that reads another
/// format must go on with these.
fn folder_of_this_release(dir: &Path) -> [ObjectKey; 2] {
    let keys = ["ab", "cd"].map(|digits| ObjectKey::from_hex(&digits.repeat(32)).unwrap());
    let [complete, unfinished] = &keys;
    for folder in [layout::data(dir, complete), layout::fill(dir, unfinished)] {
        fs::create_dir_all(folder.parent().unwrap()).unwrap();
    }
    let formats = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats");
    fs::copy(formats.join("complete"), layout::data(dir, complete)).unwrap();
    fs::copy(formats.join("complete.meta"), layout::sidecar(dir, complete, 6)).unwrap();
    fs::copy(formats.join("unfinished.map"), layout::journal(dir, unfinished)).unwrap();
    let file = File::create(layout::fill(dir, unfinished)).unwrap();
    file.write_all_at(b"larder", CHUNK).unwrap();
    keys
}

#[tokio::test]
async fn what_this_release_has_cached_is_used_as_ever() {
    let dir = tempfile::tempdir().unwrap();
    let [complete, unfinished] = folder_of_this_release(dir.path());
    let cache = open(dir.path());
    let fetched = Arc::default();
    for (key, size, range) in [(complete, 6, 0..6), (unfinished, CHUNK + 6, CHUNK..CHUNK + 6)] {
        let object = Object { key, size, keep: Keep::Own, in_part: false };
        let read = cache.read_range(&object, range, counted(&fetched)).await.unwrap();
        assert_eq!(read.bytes, b"larder".as_slice());
    }
    assert_eq!(fetched.load(SeqCst), 0);
    assert!(cache.verify(&complete).await);
    // And it is written as ever.
    let sidecar = crate::sidecar::Sidecar { size: 6, crcs: crate::blocks::crcs(6, b"larder") };
    assert_eq!(sidecar.encode(), fs::read(layout::sidecar(dir.path(), &complete, 6)).unwrap());
    let [journal, copy] = [layout::journal(dir.path(), &unfinished), dir.path().join("copy")];
    fs::rename(&journal, &copy).unwrap();
    crate::fill::begin(dir.path(), &unfinished, CHUNK + 6).unwrap();
    crate::fill::append(dir.path(), &unfinished, 1, &sidecar.crcs).unwrap();
    assert_eq!(fs::read(journal).unwrap(), fs::read(copy).unwrap());
}
