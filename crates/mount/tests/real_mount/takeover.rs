//! A mount whose process is killed, and the next one that goes on with it.
//!
//! This program starts itself for the processes that serve: each stands by until it is its turn. The connection is their
//! standard input.
#![expect(clippy::unwrap_used, reason = "what a test cannot go on without")]

use crate::harness::{FakeBackend, Shared, Superblock, content, mk_catalog};
use larder_fuse::{backing, control, map::Map, protocol::mounter::Mode, session::Session};
use larder_mount::{
    filesystem::{DatasetFs, Look, Opening},
    metrics::Metrics,
    passthrough::Direct,
};
use nix::mount::{MntFlags, umount2};
use std::{
    env,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

const ORDER: &str = "LARDER_TEST_SERVE";
const SIZE: u64 = 300_007;
/// Longest wait for a process.
const WAIT: Duration = Duration::from_secs(20);

fn files() -> Vec<(String, u64)> {
    let kinds = ["local", "peer", "slow"];
    kinds.iter().flat_map(|kind| (0..8).map(move |n| (format!("{kind}/{n}"), SIZE))).collect()
}

fn wait_for(path: &Path) {
    let deadline = Instant::now() + WAIT;
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} does not come", path.display());
        thread::sleep(Duration::from_millis(1));
    }
}

/// A process of [`Served`].
#[test]
#[ignore = "serves for the other tests"]
fn a_process_that_serves() {
    let Some(dir) = env::var_os(ORDER).map(PathBuf::from) else { return };
    let number = env::var("LARDER_TEST_NUMBER").unwrap();
    let mode = if env::var("LARDER_TEST_MODE").unwrap() == "Passthrough" { Mode::Passthrough } else { Mode::NoOpen };
    wait_for(&dir.join(format!("turn-{number}")));
    let fuse: OwnedFd = io::stdin().as_fd().try_clone_to_owned().unwrap();
    let catalog = mk_catalog(&files());
    let backend = FakeBackend::new(&catalog, dir.join("disk"));
    // What is slow is answered by the next process.
    if number != "1" {
        backend.let_slow_reads_go();
    }
    let table = File::options().read(true).write(true).open(env::var("LARDER_TEST_TABLE").unwrap()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let opening = Opening {
        wanted: mode,
        backings: Some(Arc::new(Direct::new(fuse.try_clone().unwrap()))),
        table: Some(Arc::new(table)),
        outcome: Arc::default(),
    };
    let look = Look { uid: 0, gid: 0, file_mode: 0o444, dir_mode: 0o555 };
    let reads = Metrics::default().reads("uid", "test");
    let shared = Shared(Arc::new(backend));
    let filesystem = DatasetFs::new("test", Arc::new(catalog), look, shared, reads, opening, runtime.handle().clone());
    let exchange = dir.join("exchange");
    let session = match fs::read(&exchange) {
        Ok(bytes) => Session::resume(filesystem, fuse, &serde_json::from_slice(&bytes).unwrap(), 2).unwrap(),
        Err(_) => {
            let session = Session::begin(filesystem, fuse, 2).unwrap();
            fs::write(&exchange, serde_json::to_vec(session.exchange()).unwrap()).unwrap();
            session
        }
    };
    let ended = session.start("test").unwrap();
    fs::write(dir.join(format!("serving-{number}")), "").unwrap();
    ended.blocking_recv().unwrap().unwrap();
}

/// A mount, the process that serves it, and the next one.
struct Served {
    target: tempfile::TempDir,
    dir: tempfile::TempDir,
    minor: u32,
    mode: Mode,
    fuse: OwnedFd,
    table: File,
    number: u32,
    serving: Child,
    next: Child,
    _watchdog: mpsc::Sender<()>,
}

impl Served {
    /// None where FUSE cannot be mounted.
    fn new(mode: Mode) -> Option<Self> {
        let Superblock { target, minor, fuse, watchdog } = Superblock::new()?;
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::create_dir(dir.path().join("disk")).unwrap();
        let table = Opening::table().unwrap();
        let (serving, next) = (start(&dir, 1, mode, &fuse, &table), start(&dir, 2, mode, &fuse, &table));
        let served = Self { target, dir, minor, mode, fuse, table, number: 1, serving, next, _watchdog: watchdog };
        served.give_turn();
        Some(served)
    }

    fn give_turn(&self) {
        let path = |what| self.dir.path().join(format!("{what}-{}", self.number));
        fs::write(path("turn"), "").unwrap();
        wait_for(&path("serving"));
    }

    fn kill(&mut self) {
        self.serving.kill().unwrap();
        self.serving.wait().unwrap();
    }

    /// The next process goes on; how long it took it.
    fn go_on(&mut self) -> Duration {
        let began = Instant::now();
        self.number += 1;
        self.give_turn();
        let took = began.elapsed();
        let after = start(&self.dir, self.number + 1, self.mode, &self.fuse, &self.table);
        self.serving = std::mem::replace(&mut self.next, after);
        took
    }

    fn path(&self, path: &str) -> PathBuf {
        self.target.path().join(path)
    }

    fn backing_ids(&self) -> Vec<u32> {
        // An id that is not there cannot be taken away.
        (1..2000).filter(|id| backing::unregister(&self.fuse, *id).is_ok()).collect()
    }

    /// Slots of the table that say something.
    fn noted(&self) -> usize {
        let mut bytes = vec![0; self.table.metadata().unwrap().len() as usize];
        self.table.read_exact_at(&mut bytes, 0).unwrap();
        bytes.chunks(32).filter(|slot| slot.iter().any(|byte| *byte != 0)).count()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = umount2(self.target.path(), MntFlags::MNT_DETACH);
        let _ = control::abort(self.minor);
        for child in [&mut self.serving, &mut self.next] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start(dir: &tempfile::TempDir, number: u32, mode: Mode, fuse: &OwnedFd, table: &File) -> Child {
    let table = format!("/proc/{}/fd/{}", std::process::id(), table.as_raw_fd());
    Command::new(env::current_exe().unwrap())
        .args(["--ignored", "--exact", "takeover::a_process_that_serves", "--nocapture"])
        .env(ORDER, dir.path())
        .env("LARDER_TEST_NUMBER", number.to_string())
        .env("LARDER_TEST_MODE", format!("{mode:?}"))
        .env("LARDER_TEST_TABLE", table)
        .stdin(fuse.try_clone().unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_read_that_was_being_answered_when_the_process_was_killed_ends_well() {
    for mode in [Mode::NoOpen, Mode::Passthrough] {
        let Some(mut served) = Served::new(mode) else { return };
        let paths: Vec<PathBuf> = (0..8).map(|n| served.path(&format!("slow/{n}"))).collect();
        let reading: Vec<_> = paths.into_iter().map(|path| thread::spawn(move || fs::read(path))).collect();
        // They wait in the process as soon as the kernel counts them as sent.
        let waiting = PathBuf::from(format!("/sys/fs/fuse/connections/{}/waiting", served.minor));
        let deadline = Instant::now() + WAIT;
        while fs::read_to_string(&waiting).map_or(8, |n| n.trim().parse().unwrap()) < 8 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
        served.kill();
        assert!(reading.iter().all(|r| !r.is_finished()), "{mode:?}: a slow read has ended before it was answered");
        served.go_on();
        for (n, read) in reading.into_iter().enumerate() {
            assert!(read.join().unwrap().unwrap() == content(&format!("slow/{n}"), 0..SIZE), "{mode:?} {n}");
        }
    }
}

#[test]
fn open_files_of_a_passthrough_mount_live_on_without_a_process_and_with_the_next() {
    let Some(mut served) = Served::new(Mode::Passthrough) else { return };
    let expected = content("local/0", 0..SIZE);
    let open = File::open(served.path("local/0")).unwrap();
    let map = Map::new(&open, SIZE as usize).unwrap();
    let cached = File::open(served.path("peer/0")).unwrap();
    served.kill();
    let mut bytes = vec![0; SIZE as usize];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == expected && *map == *expected, "the kernel reads it alone");
    for _ in 0..3 {
        served.go_on();
        // The same id while it is open: any other is EIO.
        assert!(fs::read(served.path("local/0")).unwrap() == expected);
        cached.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == content("peer/0", 0..SIZE));
        served.kill();
    }
    drop((open, map, cached));
    served.go_on();
    assert!(fs::read(served.path("local/1")).unwrap() == content("local/1", 0..SIZE));
    // The next one finds nothing open, and forgets what is not needed.
    served.kill();
    served.go_on();
    let deadline = Instant::now() + WAIT;
    // One says which numbers were given.
    while served.noted() > 1 {
        assert!(Instant::now() < deadline, "{} slots are taken", served.noted());
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(served.backing_ids(), [0; 0], "no backing file is left");
}

#[test]
fn readers_of_all_kinds_notice_no_kill() {
    for mode in [Mode::NoOpen, Mode::Passthrough] {
        let Some(mut served) = Served::new(mode) else { return };
        let (stop, passes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let root = served.target.path().to_owned();
        let readers: Vec<_> = (0..6u64)
            .map(|n| {
                let (root, stop, passes) = (root.clone(), Arc::clone(&stop), Arc::clone(&passes));
                thread::spawn(move || {
                    let mut worst = Duration::ZERO;
                    while !stop.load(Relaxed) {
                        for kind in ["local", "peer"] {
                            let (began, path) = (Instant::now(), format!("{kind}/{n}"));
                            let file = File::open(root.join(&path)).unwrap();
                            // Pages that are not there are asked for.
                            nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)
                                .unwrap();
                            let mut bytes = vec![0; SIZE as usize];
                            file.read_exact_at(&mut bytes, 0).unwrap();
                            assert!(bytes == content(&path, 0..SIZE), "{path}");
                            assert_eq!(fs::read_dir(root.join(kind)).unwrap().count(), 8);
                            worst = worst.max(began.elapsed());
                        }
                        passes.fetch_add(1, Relaxed);
                    }
                    worst
                })
            })
            .collect();
        for _ in 0..10 {
            let seen = passes.load(Relaxed);
            served.kill();
            served.go_on();
            let deadline = Instant::now() + WAIT;
            while passes.load(Relaxed) < seen + 6 {
                assert!(Instant::now() < deadline, "{mode:?}: readers stand still");
                thread::sleep(Duration::from_millis(1));
            }
        }
        stop.store(true, Relaxed);
        let worst = readers.into_iter().map(|reader| reader.join().unwrap()).max();
        eprintln!("{mode:?}: 10 kills, {} passes, longest {worst:?}", passes.load(Relaxed));
    }
}
