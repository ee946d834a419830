//! Two datasets on one small disk.

use super::*;

const FILE: u64 = 96 << 10;
const DISK: u64 = 1 << 20;

/// A disk of the tier's own: what is in its folders is what it is used for.
fn small_disk(dataset: &Path) -> io::Result<(u64, u64)> {
    fn used(path: &Path) -> u64 {
        // Files come and go meanwhile.
        let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
        let Ok(entries) = fs::read_dir(path) else { return if meta.is_file() { meta.len() } else { 0 } };
        entries.filter_map(Result::ok).map(|entry| used(&entry.path())).sum()
    }
    Ok((DISK, DISK - used(dataset.parent().unwrap())))
}

fn open_beside(tier: &Path, n: usize) -> Disk<Broken> {
    let dir = tier.join(format!("0d1f3a52-7c0e-4d55-9f5a-00000000000{n}"));
    Disk::open_on(&dir, Options { floor: NO_FLOOR, quota: 0 }, &common(), small_disk).unwrap()
}

async fn fill(cache: &Disk<Broken>, object: Object) -> Result<(), ReadError<Broken>> {
    cache.fill(&object, 1, counted(&Arc::default())).await
}

/// The disk with a dataset that has all of it, and another one that comes.
async fn full_disk() -> (tempfile::TempDir, Disk<Broken>, Disk<Broken>) {
    let tier = tempfile::tempdir().unwrap();
    let (first, second) = (open_beside(tier.path(), 1), open_beside(tier.path(), 2));
    let mut n = 0;
    while fill(&first, own(n, FILE)).await.is_ok() {
        n += 1;
    }
    assert_eq!(n, 10);
    assert_eq!(meet(&first), 0);
    (tier, first, second)
}

/// Gives how many files went.
fn meet(cache: &Disk<Broken>) -> u64 {
    let before = cache.evicted_files();
    cache.inner.meet_neighbours().unwrap();
    cache.evicted_files() - before
}

fn is_full(result: &Result<(), ReadError<Broken>>) -> bool {
    matches!(result, Err(ReadError::Cache(CacheError::DiskFull { .. })))
}

type Filling = tokio::task::JoinHandle<Result<(), ReadError<Broken>>>;

async fn wanting(cache: &Disk<Broken>, object: Object) -> Filling {
    wanting_from(cache, object, counted(&Arc::default())).await
}

/// Begins a fill that waits for its neighbour; nobody who reads the file waits with it.
async fn wanting_from(
    cache: &Disk<Broken>,
    object: Object,
    fetch: impl Fn(Range<u64>) -> Fetched + Clone + Send + Sync + 'static,
) -> Filling {
    let filling = tokio::spawn({
        let cache = cache.clone();
        async move { cache.fill(&object, 1, fetch).await }
    });
    while cache.usage().fill_bytes == 0 {
        tokio::task::yield_now().await;
    }
    let began = Instant::now();
    let read = cache.read_range(&object, 0..9, counted(&Arc::default())).await.map(drop);
    assert!(is_full(&read), "{read:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(!filling.is_finished());
    filling
}

#[tokio::test]
async fn a_dataset_gets_its_share_of_a_disk_that_another_one_has_filled() {
    let (_tier, first, second) = full_disk().await;
    let mut given = first.inner.common.given();
    let filling = wanting(&second, own(0, FILE)).await;
    assert!(!given.has_changed().unwrap());
    // One more if the disk is looked at while the other writes something small beside its files.
    let files = meet(&first);
    assert!((5..=6).contains(&files), "{files}");
    assert!(given.changed().now_or_never().is_some(), "who wants them back may look for room");
    filling.await.unwrap().unwrap();
    assert!(is_full(&fill(&first, own(20, FILE)).await), "what the other waits for is left to it");
    for n in 1..5 {
        fill(&second, own(n, FILE)).await.unwrap();
    }
    assert!(is_full(&fill(&second, own(5, FILE)).await), "it has its share");
    assert_eq!([meet(&first), meet(&second)], [0, 0]);
    assert_eq!([first.usage().files, second.usage().files], [10 - files, 5]);
}

#[tokio::test]
async fn a_read_is_not_kept_at_first_and_is_when_the_neighbour_has_made_room() {
    let (_tier, first, second) = full_disk().await;
    let read = async || second.read_range(&own(0, FILE), 0..9, counted(&Arc::default())).await.map(drop);
    assert!(is_full(&read().await));
    while second.usage().fill_bytes > 0 {
        tokio::task::yield_now().await;
    }
    assert!(meet(&first) > 0);
    read().await.unwrap();
}

#[tokio::test]
async fn who_reads_a_file_that_has_got_its_room_waits_for_its_bytes() {
    let (_tier, first, second) = full_disk().await;
    let (asked, answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let filling = wanting_from(&second, own(0, FILE), held_up(&asked, &answer)).await;
    meet(&first);
    asked.notified().await;
    let object = own(0, FILE);
    let mut read = std::pin::pin!(second.read_range(&object, 0..9, never));
    assert!(futures::poll!(read.as_mut()).is_pending());
    answer.notify_one();
    assert_eq!(read.await.unwrap().bytes, content(0..9));
    filling.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_file_that_is_larger_than_the_share_takes_no_room_from_a_neighbour() {
    let (_tier, first, second) = full_disk().await;
    let began = Instant::now();
    assert!(is_full(&fill(&second, own(0, DISK * 6 / 10)).await));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(meet(&first), 0);
}

#[tokio::test]
async fn a_neighbour_that_was_killed_gives_when_it_is_back() {
    let (tier, first, second) = full_disk().await;
    let filling = wanting(&second, own(0, FILE)).await;
    drop(first);
    let first = open_beside(tier.path(), 1);
    assert_eq!(meet(&first), 5);
    filling.await.unwrap().unwrap();
}

#[tokio::test]
async fn who_waited_and_was_killed_gets_its_share_when_it_is_back() {
    let (tier, first, second) = full_disk().await;
    wanting(&second, own(0, FILE)).await;
    second.close().await;
    let second = open_beside(tier.path(), 2);
    let filling = wanting(&second, own(0, FILE)).await;
    assert_eq!(meet(&first), 5);
    filling.await.unwrap().unwrap();
}

#[tokio::test]
async fn files_that_are_open_are_not_given_and_nobody_waits_for_them() {
    let (_tier, first, second) = full_disk().await;
    let mut held = Vec::new();
    for n in 0..10 {
        held.push(first.open_complete(&key(n)).await.unwrap());
    }
    let filling = wanting(&second, own(0, FILE)).await;
    assert_eq!(meet(&first), 0);
    assert!(is_full(&filling.await.unwrap()));
    assert_eq!(second.owed().unwrap(), 0);
    drop(held);
    assert_eq!(meet(&first), 0, "nobody waits any more");
}

#[tokio::test]
async fn a_neighbour_gives_the_files_that_it_has_also_if_it_owes_more() {
    let tier = tempfile::tempdir().unwrap();
    let (first, second) = (open_beside(tier.path(), 1), open_beside(tier.path(), 2));
    for n in 0..3 {
        fill(&first, own(n, FILE)).await.unwrap();
    }
    let (asked, answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let on_its_way = tokio::spawn({
        let (first, fetch) = (first.clone(), held_up(&asked, &answer));
        async move { first.fill(&own(9, 7 * FILE), 1, fetch).await }
    });
    asked.notified().await;
    assert_eq!(meet(&first), 0);
    let filling = wanting(&second, own(0, FILE)).await;
    assert_eq!(meet(&first), 3);
    filling.await.unwrap().unwrap();
    answer.notify_one();
    on_its_way.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_copy_takes_no_room_from_a_neighbour() {
    let (_tier, first, second) = full_disk().await;
    assert!(is_full(&fill(&second, Object { keep: Keep::Copy, ..own(0, FILE) }).await));
    assert_eq!(meet(&first), 0);
    assert!(second.owed().unwrap() > 4 * FILE);
}
