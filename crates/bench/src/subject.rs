//! What is read: the files themselves, `larder mount` of them, a bind mount of them.

use crate::{cpu, daemon::Daemon, data::Set, reader::Took};
use anyhow::Context as _;
use larder_fuse::mountinfo;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// Longest wait for a mount with everything on disk.
const PATIENCE: Duration = Duration::from_secs(600);

/// A set, mounted by `larder mount` in the foreground.
pub(crate) struct Larder {
    pub daemon: Daemon,
    at: PathBuf,
    /// From the start of the program to the mount.
    pub took: Duration,
}

impl Larder {
    /// Mounts the set with these flags; its cache lies beneath `data`.
    pub fn mount(program: &Path, data: &Path, set: &Set, flags: &[&str]) -> anyhow::Result<Self> {
        let at = data.join("mnt").join(set.name);
        fs::create_dir_all(&at).with_context(|| format!("make {}", at.display()))?;
        let file = describe(data, set, flags.contains(&"--preload"))?;
        let log = data.join(format!("{}.log", set.name));
        let started = Instant::now();
        let mut command = Command::new(program);
        let command = command.arg("mount").arg(&file).arg(&at).args(flags);
        let daemon = Daemon::start(command, &log, "is mounted at", PATIENCE)?;
        Ok(Self { daemon, at, took: started.elapsed() })
    }

    /// Fetches the set into the cache; what the whole command took.
    pub fn preload(program: &Path, data: &Path, set: &Set) -> anyhow::Result<Took> {
        let file = describe(data, set, true)?;
        let (started, before) = (Instant::now(), cpu::of_children());
        let output = Command::new(program).arg("preload").arg(&file).output();
        let output = output.with_context(|| format!("run {}", program.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "larder preload {}: {}", set.name, said.trim());
        let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu::of_children() - before);
        Ok(Took { seconds, bytes: set.bytes(), count: set.files() as u64, cpu, tails: None })
    }

    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Unmounts and waits until the process has ended.
    pub fn unmount(mut self) -> anyhow::Result<()> {
        self.daemon.stop().context("stop larder mount")
    }
}

/// Writes the file that describes the set as a dataset.
fn describe(data: &Path, set: &Set, preload: bool) -> anyhow::Result<PathBuf> {
    let file = data.join(format!("{}.yaml", set.name));
    let text = serde_json::json!({
        "apiVersion": "larder.dev/v1alpha1",
        "kind": "CacheDataset",
        "metadata": { "name": set.name },
        "spec": {
            "source": { "uri": format!("file://{}/", set.root.display()) },
            "cache": { "tiers": [{ "path": data.join("cache"), "quota": "20Gi" }] },
            "preload": { "policy": if preload { "OnCreate" } else { "None" } },
        },
    });
    fs::write(&file, text.to_string()).with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}

/// A bind mount: the null control, which must be as fast as what it shows.
pub(crate) struct Bind(PathBuf);

impl Bind {
    pub fn mount(data: &Path, set: &Set) -> anyhow::Result<Self> {
        let at = data.join("bind").join(set.name);
        fs::create_dir_all(&at).with_context(|| format!("make {}", at.display()))?;
        mount(Some(&set.root), &at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("bind {}", at.display()))?;
        Ok(Self(at))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Takes away what a run that was killed left mounted beneath `data`.
pub(crate) fn clean(data: &Path) -> anyhow::Result<()> {
    for mount in mountinfo::read().context("read the mount table")?.iter().rev().filter(|m| m.target.starts_with(data)) {
        umount2(&mount.target, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", mount.target.display()))?;
    }
    Ok(())
}
