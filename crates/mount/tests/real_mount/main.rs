//! The dataset filesystem behind a real FUSE mount. Needs root and /dev/fuse; without them the tests say so and pass, except
//! in CI, where they fail.

mod harness;
mod modes;
mod takeover;

use harness::{Mounted, content, errno};
use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    time::Duration,
};

const SIZES: [u64; 6] = [0, 1, 4095, 4096, 131_073, 3 * 1024 * 1024 + 5];

/// Files of every size in every kind of place; the kind is the folder's name, see the harness.
fn every_kind() -> Vec<(String, u64)> {
    let kinds = ["local", "peer", "origin", "short"];
    kinds.iter().flat_map(|kind| SIZES.iter().map(move |size| (format!("{kind}/deep er/{size}.bin"), *size))).collect()
}

#[test]
fn reads_of_every_kind_of_file_are_equal_byte_for_byte() {
    let Some(mounted) = Mounted::new(&every_kind()) else { return };
    let mut bytes = 0;
    for (path, size) in every_kind() {
        let expected = content(&path, 0..size);
        // The second time comes from the page cache, or from the file that is open by then.
        for _ in 0..2 {
            assert!(fs::read(mounted.path(&path)).unwrap() == expected, "{path}");
        }
        bytes += size;
        let file = File::open(mounted.path(&path)).unwrap();
        for (at, len) in [(0, 1), (size / 2, 5000), (size.saturating_sub(3), 10), (size, 10), (size + 100_000, 10)] {
            let mut buffer = vec![0; len];
            let n = file.read_at(&mut buffer, at).unwrap();
            assert_eq!(buffer[..n], content(&path, at.min(size)..(at + len as u64).min(size)), "{path} at {at}");
        }
    }
    let reads = mounted.reads.read();
    let per_kind = bytes / 4;
    assert_eq!(reads.origin_bytes, per_kind, "{reads:?}");
    // Some of a short file may be read before it is found out.
    assert!(reads.peer_bytes > per_kind && reads.local_bytes >= per_kind, "{reads:?}");
    assert_eq!(reads.local_bytes + reads.peer_bytes + reads.origin_bytes, bytes, "{reads:?}");
    assert_eq!(reads.requested_bytes, bytes, "each page is asked for once: {reads:?}");
    assert_eq!(reads.failed, 0);
}

#[test]
fn many_readers_at_once_all_get_the_right_bytes() {
    let files: Vec<(String, u64)> = (0..64).map(|i| (format!("peer/{i}"), 300_000 + i)).collect();
    let Some(mounted) = Mounted::new(&files) else { return };
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let (mounted, files) = (&mounted, &files);
            scope.spawn(move || {
                for (path, size) in files.iter().cycle().skip(thread * 7).take(files.len()) {
                    assert!(fs::read(mounted.path(path)).unwrap() == content(path, 0..*size), "{path}");
                }
            });
        }
    });
}

#[test]
fn a_folder_of_ten_thousand_files_is_listed_completely() {
    let mut files: Vec<(String, u64)> = (0..10_000).map(|i| (format!("many/file-{i}"), i)).collect();
    files.push(("other".into(), 1));
    let Some(mounted) = Mounted::new(&files) else { return };
    for _ in 0..2 {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(mounted.path("many")).unwrap() {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            let name = entry.file_name().into_string().unwrap();
            assert_eq!(name, format!("file-{}", meta.len()));
            assert!(names.insert(name));
        }
        assert_eq!(names.len(), 10_000);
    }
    let top: BTreeSet<_> =
        fs::read_dir(mounted.root()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(top, ["many".to_owned(), "other".to_owned()].into());
}

#[test]
fn files_look_as_the_mount_says() {
    let Some(mounted) = Mounted::new(&[("local/a".into(), 5000), ("local/b/c".into(), 1)]) else { return };
    let file = fs::metadata(mounted.path("local/a")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.permissions().mode(), file.len()), (1234, 4321, 0o100_440, 5000));
    assert_eq!((file.blocks(), file.mtime(), file.mtime_nsec()), (10, 1_700_000_000, 7));
    let folder = fs::metadata(mounted.path("local")).unwrap();
    assert_eq!((folder.uid(), folder.permissions().mode()), (1234, 0o40_550));
    let above = fs::metadata(mounted.path("local/b/..")).unwrap();
    assert_eq!(above.ino(), folder.ino());
    let all = nix::sys::statvfs::statvfs(&mounted.root()).unwrap();
    assert_eq!((all.files(), all.blocks(), all.blocks_free()), (5, 2, 0), "root, two folders, two files");
    for (path, error) in [
        ("nothing", libc::ENOENT),
        ("local/nothing", libc::ENOENT),
        ("local/a/x", libc::ENOTDIR),
        (&*"n".repeat(256), libc::ENAMETOOLONG),
    ] {
        // Twice: the kernel remembers what is not there.
        for _ in 0..2 {
            assert_eq!(errno(fs::metadata(mounted.path(path))), error, "{path}");
        }
    }
    assert_eq!(errno(fs::read(mounted.path("local"))), libc::EISDIR);
}

#[test]
fn whatever_would_change_the_dataset_is_refused() {
    let Some(mounted) = Mounted::new(&[("local/a".into(), 10), ("local/b".into(), 10)]) else { return };
    let (a, b, new) = (mounted.path("local/a"), mounted.path("local/b"), mounted.path("local/new"));
    let refused = |lock: &str| {
        let open = |options: &mut OpenOptions, path| errno(options.custom_flags(libc::O_CLOEXEC).open(path));
        let results = [
            ("create", open(OpenOptions::new().write(true).create_new(true), &new)),
            ("open to write", open(OpenOptions::new().write(true), &a)),
            ("open to read and write", open(OpenOptions::new().read(true).write(true), &a)),
            ("truncate", open(OpenOptions::new().write(true).truncate(true), &a)),
            ("mkdir", errno(fs::DirBuilder::new().mode(0o755).create(&new))),
            ("unlink", errno(fs::remove_file(&a))),
            ("rmdir", errno(fs::remove_dir(mounted.path("local")))),
            ("rename", errno(fs::rename(&a, &new))),
            ("rename over", errno(fs::rename(&a, &b))),
            ("link", errno(fs::hard_link(&a, &new))),
            ("symlink", errno(std::os::unix::fs::symlink("x", &new))),
            ("chmod", errno(fs::set_permissions(&a, fs::Permissions::from_mode(0o777)))),
            ("chown", errno(std::os::unix::fs::chown(&a, Some(0), Some(0)))),
        ];
        for (what, error) in results {
            assert_eq!(error, libc::EROFS, "{what}, {lock}");
        }
    };
    refused("mounted read-only");
    // Even when somebody takes the kernel's lock away.
    mounted.remount_writable();
    refused("mounted writable");
    assert_eq!(fs::read(&a).unwrap(), content("local/a", 0..10));
}

#[test]
fn a_failed_read_fails_alone() {
    let files = [("gone/a".into(), 100), ("changed/a".into(), 100), ("peer/a".into(), 100)];
    let Some(mounted) = Mounted::new(&files) else { return };
    assert_eq!(errno(fs::read(mounted.path("gone/a"))), libc::EIO);
    assert_eq!(errno(fs::read(mounted.path("changed/a"))), libc::EIO);
    assert_eq!(fs::read(mounted.path("peer/a")).unwrap(), content("peer/a", 0..100));
    assert!(mounted.reads.read().failed >= 2);
    // And it is not remembered: the next read asks again.
    assert_eq!(errno(fs::read(mounted.path("gone/a"))), libc::EIO);
    assert!(mounted.reads.read().failed >= 3);
}

#[test]
fn slow_reads_do_not_hold_up_the_others() {
    let mut files: Vec<(String, u64)> = (0..8).map(|i| (format!("slow/{i}"), 10)).collect();
    files.push(("peer/a".into(), 10));
    let Some(mounted) = Mounted::new(&files) else { return };
    std::thread::scope(|scope| {
        // More of them than there are FUSE threads.
        for i in 0..8 {
            let path = mounted.path(&format!("slow/{i}"));
            scope.spawn(move || fs::read(path).unwrap());
        }
        mounted.backend.wait_for_slow_reads(8);
        assert_eq!(fs::read(mounted.path("peer/a")).unwrap(), content("peer/a", 0..10));
        assert_eq!(fs::read_dir(mounted.path("slow")).unwrap().count(), 8);
        mounted.backend.let_slow_reads_go();
    });
}

#[test]
fn unmounting_ends_the_session() {
    let Some(mut mounted) = Mounted::new(&[("local/a".into(), 10)]) else { return };
    assert!(mounted.session_result(Duration::from_millis(50)).is_none(), "still mounted");
    mounted.unmount();
    assert!(matches!(mounted.session_result(Duration::from_secs(10)), Some(Ok(()))));
}
