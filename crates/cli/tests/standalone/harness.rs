//! A folder with an origin, a cache and a mountpoint in it, and a watchdog.
#![expect(clippy::unwrap_used, reason = "what a test cannot go on without")]

use larder_fuse::{control, device, mountinfo};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A test that takes longer hangs.
const WATCHDOG: Duration = Duration::from_secs(120);
/// Longest wait for a mount, or for its end.
const PATIENCE: Duration = Duration::from_secs(30);

pub const LARDER: &str = env!("CARGO_BIN_EXE_larder");

/// Relative path → content.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Small ones, empty ones, deep ones, and some of more than a chunk.
pub fn files() -> Files {
    let mut files: Files = (0..60).map(|i| (format!("train/{:02}/{i}.jpg", i % 7), bytes(i, 700 * i as usize))).collect();
    files.insert("empty".into(), Vec::new());
    files.insert("shards/one.tar".into(), bytes(100, (5 << 20) + 17));
    files.insert("shards/two.tar".into(), bytes(101, 9 << 20));
    files
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let word = |at: u64| (at + (seed << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17).to_le_bytes();
    (0..).flat_map(word).take(len).collect()
}

/// Where FUSE cannot be mounted there is nothing to test, which is said, and is an error where tests count.
pub fn fuse_works() -> bool {
    let works = nix::unistd::geteuid().is_root() && device::open().is_ok();
    if !works {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "this needs root and /dev/fuse");
        eprintln!("SKIPPED, NOTHING WAS TESTED: no root or no /dev/fuse");
    }
    works
}

pub struct Place {
    dir: TempDir,
    /// Dropping it calls the watchdog off.
    _watchdog: mpsc::Sender<()>,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Others than root are to find their way in.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for folder in ["mnt", "tier"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let place = Self { _watchdog: start_watchdog(dir.path().to_owned()), dir };
        place.describe(&format!("uri: file://{}/", place.path("origin").display()), "");
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn mountpoint(&self) -> PathBuf {
        self.path("mnt")
    }

    /// Writes the file of the dataset.
    pub fn describe(&self, source: &str, more: &str) {
        let text = format!(
            "apiVersion: larder.dev/v1alpha1\nkind: CacheDataset\nmetadata: {{ name: demo }}\nspec:\n  source: {{ {source} }}\n  cache: {{ tiers: [{{ path: tier/cache, quota: 1Gi }}] }}\n{more}"
        );
        fs::write(self.path("ds.yaml"), text).unwrap();
    }

    pub fn write_origin(&self, files: &Files) {
        for (path, content) in files {
            let path = self.path("origin").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    /// `larder`, in the folder, with no credentials.
    pub fn larder(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(LARDER);
        command.args(arguments).current_dir(self.dir.path()).stdin(Stdio::null());
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "LARDER_LOG"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs it; what it wrote, if it succeeded.
    pub fn must(&self, arguments: &[&str]) -> String {
        let output = self.larder(arguments).output().unwrap();
        assert!(output.status.success(), "larder {arguments:?}: {}", said(&output));
        said(&output)
    }

    /// Runs it; what it wrote when it failed.
    pub fn must_fail(&self, arguments: &[&str]) -> String {
        let output = self.larder(arguments).output().unwrap();
        assert!(!output.status.success(), "larder {arguments:?} succeeded: {}", said(&output));
        said(&output)
    }

    /// Mounts in the foreground, and waits until it is mounted.
    pub fn mount(&self, mut command: Command) -> Child {
        let child = command.spawn().unwrap();
        self.wait("the mount", || self.is_mounted());
        child
    }

    pub fn is_mounted(&self) -> bool {
        !mountinfo::at(&mountinfo::read().unwrap(), &self.mountpoint().canonicalize().unwrap_or(self.mountpoint())).is_empty()
    }

    pub fn wait(&self, what: &str, is: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is() {
            assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Every file of the mount against what it should be.
    pub fn assert_mounted(&self, files: &Files) {
        let expected: BTreeMap<String, String> = files.iter().map(|(path, content)| (path.clone(), sha256(content))).collect();
        assert_eq!(digests(&self.mountpoint()), expected);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        while umount2(&self.mountpoint(), MntFlags::MNT_DETACH).is_ok() {}
    }
}

/// Ends as the signal makes it end; its code.
pub fn signal(mut child: Child, signal: Signal) -> Option<i32> {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
    child.wait().unwrap().code()
}

pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect()
}

/// Relative path → SHA-256 of each file beneath a folder.
fn digests(root: &Path) -> BTreeMap<String, String> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, sha256(&fs::read(&path).unwrap()));
            }
        }
    }
    found
}

fn start_watchdog(dir: PathBuf) -> mpsc::Sender<()> {
    let (off, wait) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        if wait.recv_timeout(WATCHDOG) == Err(mpsc::RecvTimeoutError::Timeout) {
            for mount in mountinfo::read().unwrap_or_default().iter().filter(|m| m.target.starts_with(&dir)) {
                eprintln!(
                    "watchdog: the test hangs; aborting FUSE connection {} at {}",
                    mount.device.1,
                    mount.target.display()
                );
                let _ = control::abort(mount.device.1);
            }
        }
    });
    off
}
