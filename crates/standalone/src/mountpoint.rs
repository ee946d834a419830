//! The folder that the dataset is mounted at, and the ways to mount there.
//!
//! ```text
//! root, or inside of a namespace of its own    mount(2)
//! any other user                               fusermount3
//! ```

use larder_fuse::{
    device::{self, DeviceError, FS_TYPE},
    fusermount::{self, FusermountError},
    mountinfo::{self, Mount},
};
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    unistd::{getegid, geteuid},
};
use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::task::spawn_blocking;

/// What the source of a mount of ours begins with in the mount table. The node plugin's mounts have others.
const SOURCE: &str = "local-";
/// Longest wait for a mount to say whether it lives.
const PROBE: Duration = Duration::from_secs(5);

/// Why nothing is mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountpointError {
    #[error("mount at {}: {source}; the folder must be there", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("mount at {}: it is no folder", .0.display())]
    NoFolder(PathBuf),
    #[error("mount at {}: {mounted} is mounted there already; unmount it with: larder umount {}", path.display(), path.display())]
    Mounted { path: PathBuf, mounted: String },
    #[error("mount at {}: what is mounted there does not answer within {PROBE:?}; unmount it first", .0.display())]
    Silent(PathBuf),
    #[error("mount at {}: {mounted} is dead there, and it is not of `larder mount`; unmount it first", path.display())]
    Dead { path: PathBuf, mounted: String },
    #[error("nothing of `larder mount` is mounted at {}", .0.display())]
    NotOurs(PathBuf),
    #[error("unmount {}: {source}{}", path.display(), if matches!(source, Errno::EBUSY) { "; files are open there: close them, or use --lazy" } else { "" })]
    Unmount { path: PathBuf, source: Errno },
    #[error("read the mount table: {0}")]
    Table(io::Error),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("{0}; without it, run a command that alone sees the mount: larder mount DATASET.yaml MOUNTPOINT -- COMMAND")]
    NoFusermount(FusermountError),
    #[error(transparent)]
    Fusermount(#[from] FusermountError),
}

impl MountpointError {
    pub fn is_busy(&self) -> bool {
        match self {
            Self::Unmount { source, .. } => *source == Errno::EBUSY,
            Self::Fusermount(FusermountError::Refused { message, .. }) => message.contains("busy"),
            _ => false,
        }
    }
}

/// A folder to mount at.
#[derive(Clone, Debug)]
pub(crate) struct Mountpoint {
    path: PathBuf,
    /// Nobody else sees it.
    private: bool,
}

impl Mountpoint {
    /// Looks at the folder. A mount of ours whose process is gone is taken away; one that lives is an error. In a namespace of
    /// its own the new mount just covers what is there.
    pub async fn prepare(path: &Path, private: bool) -> Result<Self, MountpointError> {
        let this = Self::find(path, private)?;
        let probed = this.path.clone();
        let probe = spawn_blocking(move || fs::symlink_metadata(&probed));
        let probe = tokio::time::timeout(PROBE, probe).await;
        let Ok(meta) = probe else { return Err(MountpointError::Silent(this.path)) };
        let meta = meta.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
        match (this.top()?, meta) {
            _ if private => {}
            (Some(mount), Err(e)) if device::is_dead(&e) => {
                if !is_ours(&mount) {
                    return Err(MountpointError::Dead { path: this.path, mounted: mount.source });
                }
                tracing::info!(path = %this.path.display(), "taking away a mount whose process is gone");
                let dead = this.clone();
                let unmounted = spawn_blocking(move || dead.unmount(true)).await;
                unmounted.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))?;
            }
            (Some(mount), Ok(_)) if is_ours(&mount) => {
                return Err(MountpointError::Mounted { path: this.path, mounted: mount.source });
            }
            (_, Ok(meta)) if !meta.is_dir() => return Err(MountpointError::NoFolder(this.path)),
            (_, Ok(_)) => {}
            (_, Err(source)) => return Err(MountpointError::Folder { path: this.path, source }),
        }
        Ok(this)
    }

    /// Where something of ours is mounted.
    pub fn mounted(path: &Path) -> Result<Self, MountpointError> {
        let this = Self::find(path, false)?;
        match this.top()? {
            Some(mount) if is_ours(&mount) => Ok(this),
            _ => Err(MountpointError::NotOurs(this.path)),
        }
    }

    /// Without a look at the folder itself, which may be a dead mount.
    fn find(path: &Path, private: bool) -> Result<Self, MountpointError> {
        let wrap = |source| MountpointError::Folder { path: path.to_owned(), source };
        let absolute = std::path::absolute(path).map_err(wrap)?;
        let path = match (absolute.parent(), absolute.file_name()) {
            (Some(parent), Some(name)) => parent.canonicalize().map_err(wrap)?.join(name),
            _ => absolute,
        };
        Ok(Self { path, private })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts; gives the descriptor to serve.
    pub fn mount(&self, identity: &str) -> Result<OwnedFd, MountpointError> {
        let source = format!("{SOURCE}{identity}");
        if !self.is_direct() {
            return fusermount::mount(&self.path, &source).map_err(|e| match e {
                FusermountError::Missing => MountpointError::NoFusermount(e),
                e => e.into(),
            });
        }
        let fuse = device::open()?;
        device::mount_as(fuse.as_fd(), &self.path, &source, (geteuid().as_raw(), getegid().as_raw()))?;
        Ok(fuse)
    }

    /// `lazy`: also while files are open there.
    pub fn unmount(&self, lazy: bool) -> Result<(), MountpointError> {
        if !self.is_direct() {
            return Ok(fusermount::unmount(&self.path, lazy)?);
        }
        let flags = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
        umount2(&self.path, flags | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|source| MountpointError::Unmount { path: self.path.clone(), source })
    }

    /// Minor number of the topmost mount's device.
    pub fn minor(&self) -> Result<Option<u32>, MountpointError> {
        Ok(self.top()?.map(|m| m.device.1))
    }

    fn is_direct(&self) -> bool {
        self.private || geteuid().is_root()
    }

    fn top(&self) -> Result<Option<Mount>, MountpointError> {
        let table = mountinfo::read().map_err(MountpointError::Table)?;
        Ok(mountinfo::at(&table, &self.path).pop().cloned())
    }
}

fn is_ours(mount: &Mount) -> bool {
    mount.fs_type == FS_TYPE && mount.source.starts_with(SOURCE)
}
