//! The two modes of a mount: what the kernel reads alone, and what happens to handles when a file is complete later.
#![expect(clippy::unwrap_used, reason = "what a test cannot go on without")]

use crate::harness::{Mounted, content};
use larder_fuse::{map::Map, protocol::mounter::Mode};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    sync::Arc,
    time::{Duration, Instant},
};

const SIZE: u64 = 3 * 1024 * 1024 + 5;

fn file(path: &str) -> (String, u64) {
    (path.to_owned(), SIZE)
}

/// None on kernels without passthrough, except in CI, where there must be one.
fn passthrough(files: &[(String, u64)]) -> Option<Mounted> {
    let mounted = Mounted::with_mode(files, Mode::Passthrough)?;
    // The kernel answers INIT when the first request comes.
    fs::metadata(mounted.root()).unwrap();
    match mounted.outcome.mode.get() {
        Some(Mode::Passthrough) => Some(mounted),
        _ if std::env::var("CI").is_ok_and(|v| v == "true") => panic!("this kernel has no passthrough"),
        _ => {
            eprintln!("SKIPPED, NOTHING WAS TESTED: this kernel has no passthrough");
            None
        }
    }
}

/// What a shared map of the whole file shows.
fn mapped(file: &File) -> Vec<u8> {
    Map::new(file, SIZE as usize).unwrap().to_vec()
}

#[test]
fn a_local_file_is_read_without_the_mounter() {
    let Some(mounted) = passthrough(&[file("local/a"), file("peer/a")]) else { return };
    for _ in 0..3 {
        assert!(fs::read(mounted.path("local/a")).unwrap() == content("local/a", 0..SIZE));
        let open = File::open(mounted.path("local/a")).unwrap();
        assert!(mapped(&open) == content("local/a", 0..SIZE));
    }
    assert_eq!(mounted.reads.read().requested_bytes, 0, "the kernel reads it");
    assert!(fs::read(mounted.path("peer/a")).unwrap() == content("peer/a", 0..SIZE));
    assert!(fs::read(mounted.path("peer/a")).unwrap() == content("peer/a", 0..SIZE));
    let reads = mounted.reads.read();
    assert_eq!((reads.requested_bytes, reads.peer_bytes), (SIZE, SIZE), "the second time comes from the page cache: {reads:?}");
}

#[test]
fn handles_and_maps_that_were_there_before_go_on_when_the_file_is_complete() {
    let Some(mounted) = passthrough(&[file("later/a")]) else { return };
    let path = mounted.path("later/a");
    let expected = content("later/a", 0..SIZE);
    let (early, early_mapped) = (File::open(&path).unwrap(), File::open(&path).unwrap());
    let map = Map::new(&early_mapped, SIZE as usize).unwrap();
    drop(early_mapped); // the map holds the file open
    let mut half = vec![0; SIZE as usize / 2];
    early.read_exact_at(&mut half, 0).unwrap();
    assert!(half == expected[..half.len()] && map[..4096] == expected[..4096]);

    mounted.backend.complete();
    // While it is open, everybody gets it as it is.
    let meanwhile = File::open(&path).unwrap();
    assert!(fs::read(&path).unwrap() == expected && mapped(&meanwhile) == expected);
    let mut rest = vec![0; SIZE as usize - half.len()];
    early.read_exact_at(&mut rest, half.len() as u64).unwrap();
    assert!(rest == expected[half.len()..]);
    assert!(map[..] == expected);
    drop((early, meanwhile));
    assert!(fs::read(&path).unwrap() == expected, "the map is still there");
    drop(map);

    // The kernel tells of the last close in its own time.
    let asked = |mounted: &Mounted| mounted.reads.read().requested_bytes;
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let late = File::open(&path).unwrap();
        // Of this file alone: other tests count what their page caches answer.
        posix_fadvise(&late, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        let before = asked(&mounted);
        assert!(mapped(&late) == expected && fs::read(&path).unwrap() == expected);
        if asked(&mounted) == before {
            break;
        }
        assert!(Instant::now() < deadline, "a closed file that is complete must be opened passthrough");
    }
}

#[test]
fn many_open_and_close_one_file_at_once_while_it_becomes_complete() {
    let Some(mounted) = passthrough(&[file("later/a"), file("local/b")]) else { return };
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let mounted = &mounted;
            scope.spawn(move || {
                for round in 0..60 {
                    if thread == 0 && round == 20 {
                        mounted.backend.complete();
                    }
                    for path in ["later/a", "local/b"] {
                        let file = File::open(mounted.path(path)).unwrap();
                        let at = (round * 50_021 + thread * 7919) % (SIZE - 5000);
                        let mut buffer = vec![0; 5000];
                        file.read_exact_at(&mut buffer, at).unwrap();
                        assert!(buffer == content(path, at..at + 5000), "{path} at {at}");
                    }
                }
            });
        }
    });
    assert_eq!(mounted.reads.read().failed, 0);
}

#[test]
fn a_file_that_the_worker_removed_is_not_kept_and_its_readers_go_on() {
    let Some(mounted) = passthrough(&[file("local/a")]) else { return };
    let path = mounted.path("local/a");
    let held = File::open(&path).unwrap();
    let given = mounted.backend.open_files();
    mounted.backend.remove_from_disk();
    let mut buffer = vec![0; SIZE as usize];
    held.read_exact_at(&mut buffer, 0).unwrap();
    assert!(buffer == content("local/a", 0..SIZE), "an open file is readable until it is closed");
    drop(held);
    // Opened anew it is another file on the disk; the first one is let go.
    let deadline = Instant::now() + Duration::from_secs(10);
    while Arc::strong_count(&given[0]) > 1 {
        assert!(fs::read(&path).unwrap() == content("local/a", 0..SIZE));
        assert!(Instant::now() < deadline, "a removed file is still registered");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_mount_without_opens_keeps_the_page_cache_over_them() {
    let Some(mounted) = Mounted::with_mode(&[file("local/a"), file("peer/a")], Mode::NoOpen) else { return };
    for path in ["local/a", "peer/a"] {
        for _ in 0..3 {
            assert!(fs::read(mounted.path(path)).unwrap() == content(path, 0..SIZE));
            assert!(mapped(&File::open(mounted.path(path)).unwrap()) == content(path, 0..SIZE));
        }
    }
    assert_eq!(mounted.outcome.mode.get(), Some(&Mode::NoOpen));
    assert_eq!(mounted.reads.read().requested_bytes, 2 * SIZE, "each page is asked for once");
}

#[test]
fn auto_looks_at_the_mean_size_of_files() {
    let chosen = |sizes: &[u64]| {
        let files: Vec<_> = sizes.iter().enumerate().map(|(i, size)| (format!("local/{i}"), *size)).collect();
        let mounted = Mounted::with_mode(&files, Mode::Auto)?;
        fs::metadata(mounted.root()).unwrap();
        mounted.outcome.mode.get().copied()
    };
    let Some(small) = chosen(&[100_000; 20]) else { return };
    assert_eq!(small, Mode::NoOpen);
    assert_eq!(chosen(&[]), Some(Mode::NoOpen));
    assert_eq!(chosen(&[10 << 20, 100, 100]), chosen(&[1 << 20]), "by the mean");
    assert_eq!(chosen(&[10 << 20, 100, 100]), passthrough(&[]).and_then(|m| m.outcome.mode.get().copied()));
}
