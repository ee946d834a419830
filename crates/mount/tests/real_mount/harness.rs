//! A mounted snapshot with a source of data in this process, and a watchdog.
//!
//! Where a file is depends on the first part of its path: `local` (complete here), `short` (here, but too short: broken),
//! `peer`, `origin`, `slow` (a peer that answers when told to), `gone`, `changed`, `later` (a peer's until the test says that it
//! is complete here).
#![expect(clippy::unwrap_used, reason = "what a test cannot go on without")]

use bytes::Bytes;
use larder_core::{
    catalog::{Builder, Catalog, Listed},
    key::ObjectKey,
};
use larder_fuse::{control, device, mountinfo, protocol::mounter::Mode, session};
use larder_mount::{
    backend::{Backend, Fetched, Place},
    filesystem::{DatasetFs, Look, Opening, Outcome},
    metrics::{Metrics, ReadCounters},
    passthrough::{Backings, Direct},
};
use larder_peer::ReadError;
use nix::mount::{MntFlags, MsFlags, umount2};
use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, Write as _},
    ops::Range,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};
use tokio::{runtime::Runtime, sync::watch, time::Instant};

/// A test that takes longer hangs.
const WATCHDOG: Duration = Duration::from_secs(60);

/// Bytes of a file: any range can be told from any other, and from those of other files.
pub fn content(path: &str, range: Range<u64>) -> Vec<u8> {
    let seed = path.bytes().fold(17u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
    let byte = |at: u64| {
        let word = (at / 8).wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (word >> (8 * (at % 8))) as u8
    };
    range.map(byte).collect()
}

/// The error number of what must fail.
pub fn errno<T>(result: io::Result<T>) -> i32 {
    result.err().expect("succeeded, but must not").raw_os_error().expect("an error of the kernel")
}

pub struct FakeBackend {
    paths: HashMap<u64, (String, u64)>,
    open: Mutex<HashMap<u64, Arc<File>>>,
    rejected: Mutex<HashSet<u64>>,
    slow: watch::Sender<usize>,
    go: watch::Sender<bool>,
    complete: AtomicBool,
    disk: PathBuf,
}

impl FakeBackend {
    /// `disk` is an empty folder, or one of a backend with the same files.
    pub fn new(catalog: &Catalog<File>, disk: PathBuf) -> Self {
        let paths = catalog.file_indices().map(|index| {
            let index = index.unwrap();
            (index + 1, (catalog.path(index).unwrap(), catalog.entry(index).unwrap().size()))
        });
        Self {
            paths: paths.collect(),
            open: Mutex::default(),
            rejected: Mutex::default(),
            slow: watch::Sender::new(0),
            go: watch::Sender::new(false),
            complete: AtomicBool::new(false),
            disk,
        }
    }

    pub fn wait_for_slow_reads(&self, count: usize) {
        let mut slow = self.slow.subscribe();
        futures_wait(async move { slow.wait_for(|n| *n >= count).await.map(drop).unwrap() });
    }

    pub fn let_slow_reads_go(&self) {
        self.go.send_replace(true);
    }

    /// Files of the kind `later` are complete on this disk now.
    pub fn complete(&self) {
        self.complete.store(true, SeqCst);
    }

    /// Files that were given out so far.
    pub fn open_files(&self) -> Vec<Arc<File>> {
        self.open.lock().unwrap().values().cloned().collect()
    }

    /// As a worker does to make room.
    pub fn remove_from_disk(&self) {
        for entry in fs::read_dir(&self.disk).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        self.open.lock().unwrap().clear();
    }

    fn kind(&self, inode: u64) -> &str {
        self.paths[&inode].0.split('/').next().unwrap()
    }
}

fn futures_wait(future: impl Future<Output = ()> + Send) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(WATCHDOG, future).await.unwrap() });
}

/// The backend is shared with the test.
pub struct Shared(pub Arc<FakeBackend>);

impl Backend for Shared {
    fn known_file(&self, inode: u64) -> Option<Arc<File>> {
        self.0.open.lock().unwrap().get(&inode).cloned()
    }

    async fn find_file(&self, inode: u64) -> Option<Arc<File>> {
        let (path, size) = &self.0.paths[&inode];
        let bytes = match self.0.kind(inode) {
            "local" => content(path, 0..*size),
            "later" if self.0.complete.load(SeqCst) => content(path, 0..*size),
            "short" => content(path, 0..*size / 2),
            _ => return None,
        };
        if self.0.rejected.lock().unwrap().contains(&inode) {
            return None;
        }
        let mut open = self.0.open.lock().unwrap();
        let file = open.entry(inode).or_insert_with(|| {
            let on_disk = self.0.disk.join(inode.to_string());
            if !on_disk.exists() {
                fs::write(&on_disk, &bytes).unwrap();
            }
            Arc::new(File::open(on_disk).unwrap())
        });
        Some(Arc::clone(file))
    }

    fn reject_file(&self, inode: u64) {
        self.0.open.lock().unwrap().remove(&inode);
        self.0.rejected.lock().unwrap().insert(inode);
    }

    async fn fetch(&self, inode: u64, key: ObjectKey, range: Range<u64>, _: Instant) -> Result<Fetched, ReadError> {
        let (path, size) = &self.0.paths[&inode];
        assert_eq!(key, ObjectKey::new("s3://bucket/", path, &format!("v-{path}"), *size));
        assert!(range.start < range.end && range.end <= *size, "{range:?} of {size}");
        let place = match self.0.kind(inode) {
            "origin" => Place::Origin,
            "gone" => {
                return Err(ReadError::Exhausted { key: key.to_string(), waited: Duration::ZERO, last: "test".into() });
            }
            "changed" => return Err(ReadError::Changed { key: key.to_string(), detail: "test".into() }),
            "slow" => {
                self.0.slow.send_modify(|n| *n += 1);
                self.0.go.subscribe().wait_for(|go| *go).await.map(drop).unwrap();
                Place::Peer
            }
            _ => Place::Peer,
        };
        Ok(Fetched { bytes: Bytes::from(content(path, range)), place })
    }
}

/// A mount that nobody serves yet.
pub struct Superblock {
    pub target: tempfile::TempDir,
    pub minor: u32,
    pub fuse: OwnedFd,
    /// Dropping it calls the watchdog off.
    pub watchdog: mpsc::Sender<()>,
}

impl Superblock {
    /// None where FUSE cannot be mounted.
    pub fn new() -> Option<Self> {
        let target = tempfile::tempdir().unwrap();
        let mounted = device::open().and_then(|fuse| device::mount(fuse.as_fd(), target.path(), "test").map(|()| fuse));
        let fuse = match mounted {
            Ok(fuse) => fuse,
            Err(e) if std::env::var("CI").is_ok_and(|v| v == "true") => panic!("FUSE does not work here: {e}"),
            Err(e) => {
                eprintln!("SKIPPED, NOTHING WAS TESTED: FUSE does not work here: {e}");
                return None;
            }
        };
        let table = mountinfo::read().unwrap();
        let minor = mountinfo::at(&table, target.path())[0].device.1;
        Some(Self { target, minor, fuse, watchdog: start_watchdog(minor) })
    }
}

pub struct Mounted {
    target: tempfile::TempDir,
    minor: u32,
    pub backend: Arc<FakeBackend>,
    pub reads: ReadCounters,
    pub outcome: Arc<Outcome>,
    ended: session::Ended,
    runtime: Option<Runtime>,
    _disk: tempfile::TempDir,
    /// Dropping it calls the watchdog off.
    _watchdog: mpsc::Sender<()>,
}

impl Mounted {
    /// None where FUSE cannot be mounted.
    pub fn new(files: &[(String, u64)]) -> Option<Self> {
        Self::with_mode(files, Mode::NoOpen)
    }

    pub fn with_mode(files: &[(String, u64)], wanted: Mode) -> Option<Self> {
        let Superblock { target, minor, fuse, watchdog } = Superblock::new()?;
        let catalog = Arc::new(mk_catalog(files));
        let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let backend = Arc::new(FakeBackend::new(&catalog, disk.path().to_owned()));
        let reads = Metrics::default().reads("uid", "test");
        let runtime = Runtime::new().unwrap();
        let look = Look { uid: 1234, gid: 4321, file_mode: 0o440, dir_mode: 0o550 };
        let shared = Shared(Arc::clone(&backend));
        let backings: Arc<dyn Backings> = Arc::new(Direct::new(fuse.try_clone().unwrap()));
        let opening = Opening { wanted, backings: Some(backings), ..Opening::default() };
        let outcome = Arc::clone(&opening.outcome);
        let filesystem = DatasetFs::new("test", catalog, look, shared, reads.clone(), opening, runtime.handle().clone());
        let ended = session::serve(filesystem, fuse, "test", 2).unwrap();
        Some(Self { target, minor, backend, reads, outcome, ended, runtime: Some(runtime), _disk: disk, _watchdog: watchdog })
    }

    pub fn root(&self) -> PathBuf {
        self.target.path().to_owned()
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.target.path().join(path)
    }

    pub fn remount_writable(&self) {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        nix::mount::mount(None::<&str>, self.target.path(), None::<&str>, flags, None::<&str>).unwrap();
    }

    pub fn unmount(&self) {
        umount2(self.target.path(), MntFlags::MNT_DETACH).unwrap();
    }

    /// How the session ended, if it does within that time.
    pub fn session_result(&mut self, wait: Duration) -> Option<io::Result<()>> {
        let runtime = self.runtime.as_ref().unwrap();
        let ended = &mut self.ended;
        runtime.block_on(async move { tokio::time::timeout(wait, ended).await.ok().map(|r| r.unwrap()) })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(self.target.path(), MntFlags::MNT_DETACH);
        // If something is still open there, this ends it all the same.
        let _ = control::abort(self.minor);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn start_watchdog(minor: u32) -> mpsc::Sender<()> {
    let (off, wait) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        // Each message is a sign of life.
        let end = std::iter::repeat_with(|| wait.recv_timeout(WATCHDOG)).find_map(Result::err);
        if end == Some(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("watchdog: the test hangs; aborting FUSE connection {minor}");
            let _ = control::abort(minor);
        }
    });
    off
}

pub fn mk_catalog(files: &[(String, u64)]) -> Catalog<File> {
    let mut builder = Builder::new("s3://bucket/");
    for (path, size) in files {
        let mtime_ns = 1_700_000_000_000_000_007;
        builder.push(Listed { path: path.clone(), size: *size, mtime_ns, version: format!("v-{path}") });
    }
    let (bytes, skipped) = builder.finish();
    assert!(skipped.is_empty(), "{skipped:?}");
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let catalog = Catalog::open(file).unwrap();
    catalog.verify().unwrap();
    catalog
}
