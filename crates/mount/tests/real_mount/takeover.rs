//! A mount whose process is killed, and the next one that goes on with it.
//!
//! This program starts itself for the processes that serve: each stands by until it is its turn. The connection is their
//! standard input.
#![expect(clippy::unwrap_used, reason = "what a test cannot go on without")]

use crate::harness::{FakeBackend, Shared, Superblock, content, mk_catalog};
use larder_fuse::{
    backing, control,
    journal::{InFlight, Journal},
    map::Map,
    protocol::mounter::Mode,
    session::Session,
};
use larder_mount::{
    filesystem::{DatasetFs, Look, Opening},
    metrics::Metrics,
    passthrough::Direct,
};
use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    mount::{MntFlags, umount2},
};
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
/// Instead of what a test kills by itself.
const KILLS: &str = "LARDER_TEST_KILLS";

/// Every way to open files, with every way to answer what was in flight.
const WAYS: [(Mode, InFlight); 4] = [
    (Mode::NoOpen, InFlight::Resend),
    (Mode::NoOpen, InFlight::Journal),
    (Mode::Passthrough, InFlight::Resend),
    (Mode::Passthrough, InFlight::Journal),
];

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
    let file = |name| File::options().read(true).write(true).open(env::var(name).unwrap()).unwrap();
    let in_flight = env::var("LARDER_TEST_IN_FLIGHT").unwrap().to_lowercase().parse().unwrap();
    let journal = Journal::load(file("LARDER_TEST_JOURNAL"), in_flight).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let opening = Opening {
        wanted: mode,
        backings: Some(Arc::new(Direct::new(fuse.try_clone().unwrap()))),
        table: Some(Arc::new(file("LARDER_TEST_TABLE"))),
        journal: Some(Arc::clone(&journal)),
        outcome: Arc::default(),
    };
    let look = Look { uid: 0, gid: 0, file_mode: 0o444, dir_mode: 0o555 };
    let reads = Metrics::default().reads("uid", "test");
    let shared = Shared(Arc::new(backend));
    let (asked, of) = (dir.join("asked"), Arc::clone(&shared.0));
    thread::spawn(move || {
        of.wait_for_slow_reads(8);
        fs::write(asked, "").unwrap();
    });
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
    let started = session.start("test", Some(&journal)).unwrap();
    let (said, serving) = (dir.join("said"), dir.join(format!("serving-{number}")));
    fs::write(&said, serde_json::to_vec(&started.replayed).unwrap()).unwrap();
    fs::rename(said, serving).unwrap();
    started.ended.blocking_recv().unwrap().unwrap();
}

/// A mount, the process that serves it, and the next one.
struct Served {
    target: tempfile::TempDir,
    dir: tempfile::TempDir,
    minor: u32,
    way: (Mode, InFlight),
    fuse: OwnedFd,
    table: File,
    journal: File,
    number: u32,
    serving: Child,
    next: Child,
    watchdog: mpsc::Sender<()>,
}

impl Served {
    /// None where FUSE cannot be mounted.
    fn new(way: (Mode, InFlight)) -> Option<Self> {
        let Superblock { target, minor, fuse, watchdog } = Superblock::new()?;
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::create_dir(dir.path().join("disk")).unwrap();
        let (table, journal) = (Opening::table().unwrap(), Opening::journal().unwrap());
        let [serving, next] = [1, 2].map(|number| start(&dir, number, way, &fuse, [&table, &journal]));
        let served = Self { target, dir, minor, way, fuse, table, journal, number: 1, serving, next, watchdog };
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

    /// The next process goes on; what it found in the journal, if it looked there.
    fn go_on(&mut self) -> Option<usize> {
        self.number += 1;
        self.give_turn();
        let said = fs::read(self.dir.path().join(format!("serving-{}", self.number))).unwrap();
        let after = start(&self.dir, self.number + 1, self.way, &self.fuse, [&self.table, &self.journal]);
        self.serving = std::mem::replace(&mut self.next, after);
        self.watchdog.send(()).unwrap();
        serde_json::from_slice(&said).unwrap()
    }

    fn path(&self, path: &str) -> PathBuf {
        self.target.path().join(path)
    }

    /// When no file is open any more, nothing in the table and no backing file in the kernel is left.
    fn nothing_is_left(&self) {
        let deadline = Instant::now() + WAIT;
        // One slot says which numbers were given.
        while self.noted() > 1 {
            assert!(Instant::now() < deadline, "{:?}: {} slots are taken", self.way, self.noted());
            thread::sleep(Duration::from_millis(5));
        }
        // An id that is not there cannot be taken away.
        let left: Vec<u32> = (1..1 << 18).filter(|id| backing::unregister(&self.fuse, *id).is_ok()).collect();
        assert_eq!(left, [0; 0], "{:?}: backing files are left", self.way);
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

fn start(
    dir: &tempfile::TempDir,
    number: u32,
    (mode, in_flight): (Mode, InFlight),
    fuse: &OwnedFd,
    files: [&File; 2],
) -> Child {
    let [table, journal] = files.map(|file| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
    Command::new(env::current_exe().unwrap())
        .args(["--ignored", "--exact", "takeover::a_process_that_serves", "--nocapture"])
        .env(ORDER, dir.path())
        .env("LARDER_TEST_NUMBER", number.to_string())
        .env("LARDER_TEST_MODE", format!("{mode:?}"))
        .env("LARDER_TEST_IN_FLIGHT", format!("{in_flight:?}"))
        .env("LARDER_TEST_TABLE", table)
        .env("LARDER_TEST_JOURNAL", journal)
        .stdin(fuse.try_clone().unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_read_that_was_being_answered_when_the_process_was_killed_ends_well() {
    for way in WAYS {
        let Some(mut served) = Served::new(way) else { return };
        let paths: Vec<PathBuf> = (0..8).map(|n| served.path(&format!("slow/{n}"))).collect();
        let reading: Vec<_> = paths.into_iter().map(|path| thread::spawn(move || fs::read(path))).collect();
        wait_for(&served.dir.path().join("asked"));
        served.kill();
        assert!(reading.iter().all(|r| !r.is_finished()), "{way:?}: a slow read has ended before it was answered");
        let replayed = served.go_on();
        assert_eq!(replayed.is_some_and(|requests| requests >= 8), way.1 == InFlight::Journal, "{way:?}: {replayed:?}");
        for (n, read) in reading.into_iter().enumerate() {
            assert!(read.join().unwrap().unwrap() == content(&format!("slow/{n}"), 0..SIZE), "{way:?} {n}");
        }
    }
}

#[test]
fn open_files_of_a_passthrough_mount_live_on_without_a_process_and_with_the_next() {
    for in_flight in [InFlight::Resend, InFlight::Journal] {
        open_files_live_on(in_flight);
    }
}

fn open_files_live_on(in_flight: InFlight) {
    let Some(mut served) = Served::new((Mode::Passthrough, in_flight)) else { return };
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
    served.nothing_is_left();
}

#[test]
fn readers_of_all_kinds_notice_no_kill() {
    let kills: usize = env::var(KILLS).map_or(10, |kills| kills.parse().unwrap());
    for way in WAYS {
        let Some(mut served) = Served::new(way) else { return };
        let (stop, passes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let readers: Vec<_> = (0..READERS)
            .map(|n| {
                let (root, stop, passes) = (served.target.path().to_owned(), Arc::clone(&stop), Arc::clone(&passes));
                thread::spawn(move || {
                    let (mut reader, mut waits) = (Reader::new(root, n % 8), Vec::new());
                    while !stop.load(Relaxed) {
                        let began = Instant::now();
                        reader.pass();
                        waits.push((Instant::now(), began.elapsed()));
                        passes.fetch_add(1, Relaxed);
                    }
                    waits
                })
            })
            .collect();
        let (mut found, mut killed) = (0, Vec::new());
        for _ in 0..kills {
            let seen = passes.load(Relaxed);
            killed.push(Instant::now());
            served.kill();
            found += served.go_on().unwrap_or_default();
            let deadline = Instant::now() + WAIT;
            while passes.load(Relaxed) < seen + READERS {
                assert!(Instant::now() < deadline, "{way:?}: readers stand still");
                thread::sleep(Duration::from_millis(1));
            }
        }
        stop.store(true, Relaxed);
        killed.push(Instant::now());
        // The longest pass of each reader that ended between one kill and the next.
        let mut stalls = Vec::new();
        for waits in readers.into_iter().map(|reader| reader.join().unwrap()) {
            let longest =
                |span: &[Instant]| waits.iter().filter(|(end, _)| (span[0]..span[1]).contains(end)).map(|wait| wait.1).max();
            stalls.extend(killed.windows(2).filter_map(longest));
        }
        served.nothing_is_left();
        stalls.sort_unstable();
        let (half, most) = (stalls[stalls.len() / 2], stalls[stalls.len() * 99 / 100]);
        eprintln!("{way:?}: {kills} kills, {} passes, {found} requests in the journal", passes.load(Relaxed));
        eprintln!("  longest passes: median {half:?}, p99 {most:?}, all {:?}", stalls.last());
    }
}

const READERS: u64 = 16;

/// Has a file of each kind open, and reads them in all ways.
struct Reader {
    root: PathBuf,
    held: [(String, File); 2],
    passes: u64,
}

impl Reader {
    fn new(root: PathBuf, n: u64) -> Self {
        let held = ["local", "peer"].map(|kind| {
            let path = format!("{kind}/{n}");
            let file = File::open(root.join(&path)).unwrap();
            (path, file)
        });
        Self { root, held, passes: 0 }
    }

    fn pass(&mut self) {
        // Pages that are not there are asked for, also those of a listing.
        let forget = |file: &File| posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        self.passes += 1;
        for (path, held) in &self.held {
            let opened = File::open(self.root.join(path)).unwrap();
            for file in [held, &opened] {
                forget(file);
                let mut bytes = vec![0; SIZE as usize];
                file.read_exact_at(&mut bytes, 0).unwrap();
                assert!(bytes == content(path, 0..SIZE), "{path}");
            }
            forget(&opened);
            assert!(*Map::new(&opened, SIZE as usize).unwrap() == *content(path, 0..SIZE), "map of {path}");
            let folder = self.root.join(path).parent().unwrap().to_owned();
            forget(&File::open(&folder).unwrap());
            assert_eq!(fs::read_dir(folder).unwrap().map(Result::unwrap).count(), 8);
            // A name that the kernel does not know yet.
            let nothing = fs::metadata(self.root.join(format!("{path}-{}", self.passes))).unwrap_err();
            assert_eq!(nothing.raw_os_error(), Some(libc::ENOENT));
        }
        assert_eq!(nix::sys::statvfs::statvfs(&self.root).unwrap().files(), 28);
    }
}
