//! The process dies, or the power goes, at any instant.

use super::*;
use crate::{blocks, fill, sidecar::Sidecar};
use proptest::prelude::*;

/// Two whole chunks and a part of one.
const SIZE: u64 = 2 * CHUNK + 100_000;

/// Runs one life of a process: whatever it was doing, it stops at the next point where it waits.
fn live<T>(dir: &Path, life: impl AsyncFnOnce(Disk<Broken>) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { life(open(dir)).await })
}

/// A complete file always has its sidecar.
fn check_folder(dir: &Path) {
    let names = files(dir);
    for name in names.iter().filter(|n| n.starts_with("data/") && !n.ends_with(".meta")) {
        assert!(names.iter().any(|n| n.starts_with(&format!("{name}.")) && n.ends_with(".meta")), "{names:?}");
    }
}

#[test]
fn only_chunks_that_were_not_on_the_disk_are_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let count = Arc::new(AtomicU64::new(0));
    live(dir.path(), async |cache| {
        cache.read_range(&own(1, SIZE), 5..CHUNK + 5, counted(&count)).await.unwrap();
    });
    assert_eq!(count.load(SeqCst), 2 * CHUNK);
    // The second chunk did not reach the disk before the power went.
    File::options()
        .write(true)
        .open(layout::fill(dir.path(), &key(1)))
        .unwrap()
        .write_all_at(&[0; 4096], CHUNK + 4096)
        .unwrap();
    count.store(0, SeqCst);
    live(dir.path(), async |cache| {
        assert_eq!(cache.usage(), Usage { files: 0, bytes: 0, fill_bytes: SIZE, part_bytes: 0 });
        assert_eq!(cache.chunk_here(&key(1), &(0..CHUNK)).await.unwrap(), Checked::of(content(0..CHUNK)));
        let read = cache.read_range(&own(1, SIZE), 0..9, never).await.unwrap();
        assert_eq!(read, Checked::of(content(0..9)), "from the disk");
        cache.fill(&own(1, SIZE), 3, counted(&count)).await.unwrap();
        assert_eq!(count.load(SeqCst), SIZE - CHUNK);
        assert_eq!(cache.read_range(&own(1, SIZE), 0..SIZE, never).await.unwrap().bytes, content(0..SIZE));
        assert!(cache.verify(&key(1)).await);
    });
    assert!(files(dir.path()).iter().all(|f| f.starts_with("data/")));
}

#[test]
fn an_object_of_one_chunk_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    live(dir.path(), async |cache| {
        let object = own(9, 100);
        let hanging = cache.fill(&object, 1, |_| std::future::pending());
        assert!(tokio::time::timeout(Duration::from_millis(50), hanging).await.is_err());
    });
    assert_eq!(files(dir.path()), [format!("fill/{}", key(9))]);
    live(dir.path(), async |cache| assert_eq!(cache.usage(), Usage::default()));
    assert_eq!(files(dir.path()), Vec::<String>::new());
}

#[test]
fn whatever_step_of_the_end_was_the_last_the_file_is_whole_afterwards() {
    for (size, is_kept) in [(SIZE, true), (100, false)] {
        for steps in 0..=fill::STEPS.len() {
            let dir = tempfile::tempdir().unwrap();
            live(dir.path(), async |_| ());
            let (k, bytes) = (key(1), content(0..size));
            fill::create(dir.path(), &k).unwrap();
            fill::begin(dir.path(), &k, size).unwrap();
            fs::write(layout::fill(dir.path(), &k), &bytes).unwrap();
            for n in (0..chunks(size)).filter(|_| is_kept) {
                let range = chunk_range(size, n);
                let crcs = blocks::crcs(size, &bytes[range.start as usize..range.end as usize]);
                fill::append(dir.path(), &k, n, &crcs).unwrap();
            }
            let sidecar = Sidecar { size, crcs: blocks::crcs(size, &bytes) };
            let whole = fill::Whole { dir: dir.path(), key: &k, sidecar: &sidecar };
            fill::STEPS[..steps].iter().for_each(|step| step(&whole).unwrap());
            check_folder(dir.path());
            let count = Arc::new(AtomicU64::new(0));
            live(dir.path(), async |cache| {
                check_folder(dir.path());
                cache.fill(&own(1, size), 3, counted(&count)).await.unwrap();
                assert!(cache.verify(&k).await, "{steps} steps");
                assert_eq!(cache.read_range(&own(1, size), 0..size, never).await.unwrap().bytes, bytes);
            });
            let placed = steps >= 5;
            assert_eq!(count.load(SeqCst), if is_kept || placed { 0 } else { size }, "{steps} steps");
            assert_eq!(files(dir.path()).len(), 2, "{steps} steps: {:?}", files(dir.path()));
        }
    }
}

#[derive(Clone, Debug)]
enum Event {
    Read(u64, u64),
    /// Begins to fetch everything and dies after so many milliseconds.
    Fill(u64),
    /// Zeros of data that was not synced, and a journal that is so many bytes shorter.
    PowerLoss {
        blocks: Vec<u64>,
        cut: u64,
    },
    /// Of the complete or the unfinished file.
    Flip(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..SIZE, 1..300_000_u64).prop_map(|(at, len)| Event::Read(at, len.min(SIZE - at))),
        3 => (0..60_u64).prop_map(Event::Fill),
        2 => (prop::collection::vec(0..SIZE / 4096, 0..6), 0..600_u64).prop_map(|(blocks, cut)| Event::PowerLoss { blocks, cut }),
        1 => (0..SIZE).prop_map(Event::Flip),
    ]
}

/// The one file of the folder, wherever it is.
fn damage(dir: &Path, at: u64, bytes: impl Fn(u8) -> Vec<u8>) {
    let path = [layout::fill(dir, &key(1)), layout::data(dir, &key(1))].into_iter().find(|p| p.exists());
    let Some(file) = path.map(|p| File::options().read(true).write(true).open(p).unwrap()) else { return };
    let mut old = [0];
    if file.read_exact_at(&mut old, at).is_ok() {
        file.write_all_at(&bytes(old[0]), at).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn no_crash_and_no_flipped_bit_ever_gives_a_wrong_byte(events in prop::collection::vec(event(), 1..12)) {
        let dir = tempfile::tempdir().unwrap();
        let count = Arc::default();
        let fetch = || counted(&count);
        for event in events {
            match event {
                Event::Read(at, len) => live(dir.path(), async |cache| {
                    let read = cache.read_range(&own(1, SIZE), at..at + len, fetch()).await.unwrap();
                    assert!(read == Checked::of(content(at..at + len)));
                }),
                Event::Fill(time) => live(dir.path(), async |cache| {
                    drop(tokio::time::timeout(Duration::from_millis(time), cache.fill(&own(1, SIZE), 3, fetch())).await);
                }),
                // What is complete was synced.
                Event::PowerLoss { blocks, cut } => {
                    let journal = layout::journal(dir.path(), &key(1));
                    if layout::fill(dir.path(), &key(1)).exists() {
                        blocks.iter().for_each(|n| damage(dir.path(), n * 4096, |_| vec![0; 4096.min(SIZE - n * 4096) as usize]));
                    }
                    if let Ok(meta) = fs::metadata(&journal) {
                        let file = File::options().write(true).open(&journal).unwrap();
                        file.set_len(meta.len().saturating_sub(cut)).unwrap();
                    }
                }
                Event::Flip(at) => damage(dir.path(), at, |old| vec![old ^ 1]),
            }
            check_folder(dir.path());
        }
        live(dir.path(), async |cache| {
            assert!(cache.read_range(&own(1, SIZE), 0..SIZE, fetch()).await.unwrap().bytes == content(0..SIZE));
            cache.fill(&own(1, SIZE), 3, fetch()).await.unwrap();
            assert!(cache.verify(&key(1)).await);
            assert!(cache.open_complete(&key(1)).await.is_some());
        });
    }
}
