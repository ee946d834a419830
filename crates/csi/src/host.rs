//! Folders on the host that the unprivileged daemons need and cannot make for themselves.
//!
//! Paths are resolved within the host's root, links included: what is a link on the host leads where it does on the host.

use anyhow::{Context as _, ensure};
use larder_core::names::{self, KEEPER_UID, MOUNTER_UID, WORKER_UID};
use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::{Mode, fchmod, mkdirat},
    unistd::{Gid, Uid, fchown},
};
use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// A disk that is mounted later is found within this time.
const PERIOD: Duration = Duration::from_secs(30);

/// Why a folder is not as it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    #[error("open the host's root {}: {source}", path.display())]
    Root { path: PathBuf, source: io::Error },
    #[error("open {} on the host: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("make folder {} in {} on the host: {source}", name.display(), parent.display())]
    Make { parent: PathBuf, name: PathBuf, source: io::Error },
}

/// Folders to prepare.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    root: PathBuf,
    run_dir: PathBuf,
    tiers: Vec<PathBuf>,
}

impl Host {
    /// `tiers` as the flags give them: `<name>=<folder on the host>`.
    pub(crate) fn new(root: &Path, run_dir: &Path, tiers: &[String]) -> anyhow::Result<Self> {
        let mut paths = Vec::new();
        for tier in tiers.iter().filter(|t| !t.is_empty()) {
            let (_, path) = tier.split_once('=').with_context(|| format!("--tier {tier}: want <name>=<folder on the host>"))?;
            ensure!(path.starts_with('/'), "--tier {tier}: the folder must be absolute");
            ensure!(!path.split('/').any(|part| part == ".."), "--tier {tier}: the folder must not contain '..'");
            paths.push(PathBuf::from(path));
        }
        Ok(Self { root: root.to_owned(), run_dir: run_dir.to_owned(), tiers: paths })
    }

    /// Where a host path is in this container.
    pub(crate) fn inside(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The sockets' folders, for the mounter, the workers, the keeper and this process.
    pub(crate) fn prepare_run_dir(&self) -> Result<(), HostError> {
        let root = self.open_root()?;
        let mut at = root;
        let mut path = PathBuf::from("/");
        for part in self.run_dir.strip_prefix("/").unwrap_or(&self.run_dir) {
            at = make(&at, &path, Path::new(part), None)?;
            path.push(part);
        }
        make(&at, &path, Path::new("node"), None)?;
        make(&at, &path, Path::new("mounter"), Some((MOUNTER_UID, 0o755)))?;
        make(&at, &path, Path::new("worker"), Some((WORKER_UID, 0o755)))?;
        make(&at, &path, Path::new("keeper"), Some((KEEPER_UID, 0o755)))?;
        Ok(())
    }

    /// The data folder on each tier that exists; never the tier's own folder, whose disk may not be mounted yet.
    pub(crate) fn prepare_tiers(&self) -> Result<(), HostError> {
        let root = self.open_root()?;
        for tier in &self.tiers {
            match open(&root, tier.strip_prefix("/").unwrap_or(tier)) {
                Ok(fd) => drop(make(&fd, tier, Path::new(names::TIER_DIR), Some((WORKER_UID, 0o750)))?),
                Err(Errno::ENOENT) => tracing::debug!(tier = %tier.display(), "this node has no such tier"),
                Err(e) => return Err(HostError::Open { path: tier.clone(), source: e.into() }),
            }
        }
        Ok(())
    }

    /// Prepares the tiers again and again.
    pub(crate) async fn keep_prepared(self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            let host = self.clone();
            match tokio::task::spawn_blocking(move || host.prepare_tiers()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "tier is not prepared; workers that use it cannot start"),
                Err(error) => tracing::error!(%error, "preparing tiers was interrupted"),
            }
        }
    }

    fn open_root(&self) -> Result<OwnedFd, HostError> {
        let wrap = |source| HostError::Root { path: self.root.clone(), source };
        File::open(&self.root).map(OwnedFd::from).map_err(wrap)
    }
}

/// Opens a folder as the host would.
fn open(root: &impl AsFd, path: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    openat2(root, if path.as_os_str().is_empty() { Path::new(".") } else { path }, OpenHow::new().flags(flags).resolve(resolve))
}

/// Makes a folder if it is missing; sets owner and mode if they are given and differ.
fn make(parent: &OwnedFd, parent_path: &Path, name: &Path, owner: Option<(u32, u32)>) -> Result<OwnedFd, HostError> {
    let run = || -> nix::Result<OwnedFd> {
        match mkdirat(parent, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(e),
        }
        // A link instead of the folder is refused: chown would hit what it leads to.
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = openat2(parent, name, OpenHow::new().flags(flags).resolve(resolve))?;
        if let Some((uid, mode)) = owner {
            fchown(&fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(uid)))?;
            fchmod(&fd, Mode::from_bits_truncate(mode))?;
        }
        Ok(fd)
    };
    run().map_err(|e| HostError::Make { parent: parent_path.to_owned(), name: name.to_owned(), source: e.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, symlink},
    };

    fn owner_and_mode(path: &Path) -> (u32, u32) {
        let meta = fs::metadata(path).unwrap();
        (meta.uid(), meta.mode() & 0o7777)
    }

    #[test]
    fn daemons_get_their_folders_and_absent_disks_are_left_alone() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED, NOTHING WAS TESTED: needs root");
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let at = |p: &str| root.path().join(p);
        fs::create_dir_all(at("mnt/nvme0")).unwrap();
        fs::create_dir_all(at("disks/1")).unwrap();
        // Absolute on the host: must not lead out of its root.
        symlink("/disks/1", at("mnt/linked")).unwrap();
        let tiers = ["nvme=/mnt/nvme0", "linked=/mnt/linked", "later=/mnt/later"].map(str::to_owned);
        let host = Host::new(root.path(), Path::new("/var/lib/larder/run"), &tiers).unwrap();
        for _ in 0..2 {
            host.prepare_run_dir().unwrap();
            host.prepare_tiers().unwrap();
        }
        assert_eq!(owner_and_mode(&at("var/lib/larder/run/mounter")), (MOUNTER_UID, 0o755));
        assert_eq!(owner_and_mode(&at("var/lib/larder/run/worker")), (WORKER_UID, 0o755));
        assert_eq!(owner_and_mode(&at("var/lib/larder/run/keeper")), (KEEPER_UID, 0o755));
        assert_eq!(owner_and_mode(&at("mnt/nvme0/larder")), (WORKER_UID, 0o750));
        assert_eq!(owner_and_mode(&at("disks/1/larder")), (WORKER_UID, 0o750));
        assert!(!at("mnt/later").exists());
        fs::create_dir(at("mnt/later")).unwrap();
        host.prepare_tiers().unwrap();
        assert!(at("mnt/later/larder").exists(), "a disk that came later");
    }

    #[test]
    fn a_link_in_place_of_a_folder_of_ours_is_refused() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("mnt/nvme0")).unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        symlink("/etc", root.path().join("mnt/nvme0/larder")).unwrap();
        let host = Host::new(root.path(), Path::new("/run"), &["nvme=/mnt/nvme0".to_owned()]).unwrap();
        assert!(matches!(host.prepare_tiers(), Err(HostError::Make { .. })));
    }

    #[test]
    fn tiers_are_names_with_absolute_folders() {
        let new = |tier: &str| Host::new(Path::new("/host"), Path::new("/run"), &[tier.to_owned()]);
        assert!(new("nvme=/mnt/nvme0").is_ok());
        assert!(new("").unwrap().tiers.is_empty());
        for bad in ["nvme", "nvme=mnt", "nvme=/mnt/../etc"] {
            assert!(new(bad).is_err(), "{bad}");
        }
    }
}
