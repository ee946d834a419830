//! mount(2) and umount(2) beneath the kubelet's folder.
//!
//! Nothing here follows a symbolic link or looks into a mount: what is mounted is read from the mount table.

use crate::layout::Layout;
use larder_fuse::{
    device::{self, DeviceError, FS_TYPE},
    mountinfo::{self, Mount},
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, mkdirat},
};
use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

/// `source` of the shroud in the mount table.
pub(crate) const SHROUD: &str = "larder-shroud";
/// Layers that are taken off one target at most; two are normal. A kubelet that stacks mounts faster than we remove them is
/// told to try again.
const LAYERS_MAX: usize = 64;

/// Why the mount table is not as it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    #[error("read the mount table: {0}")]
    Table(io::Error),
    #[error("make folder {}: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("reach {}: {source} (no part of it may be a symbolic link)", path.display())]
    Path { path: PathBuf, source: io::Error },
    #[error("mount {} at {}: {source}", from.display(), to.display())]
    Bind { from: PathBuf, to: PathBuf, source: io::Error },
    #[error("keep mounts on {} to itself: {source}", path.display())]
    Private { path: PathBuf, source: io::Error },
    #[error("unmount {}: {source}", path.display())]
    Unmount { path: PathBuf, source: io::Error },
    #[error("unmount {}: still mounted after {LAYERS_MAX} layers were taken off", .0.display())]
    Layers(PathBuf),
    #[error("remove {}: {source}", path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// The topmost mount at a path.
pub(crate) fn top(path: &Path) -> Result<Option<Mount>, MountError> {
    let table = mountinfo::read().map_err(MountError::Table)?;
    Ok(mountinfo::at(&table, path).pop().cloned())
}

/// Is it the superblock of this identity, or a bind mount of it?
pub(crate) fn is_identity(mount: &Mount, identity: &str) -> bool {
    mount.fs_type == FS_TYPE && mount.source == identity
}

/// Mounts a new superblock and gives the descriptor to serve it with. A dead one that was there must have been unmounted.
pub(crate) fn new_superblock(layout: &Layout, identity: &str) -> Result<OwnedFd, MountError> {
    let path = layout.superblock(identity);
    make_folder(&path)?;
    let fuse = device::open()?;
    device::mount(fuse.as_fd(), &path, identity)?;
    Ok(fuse)
}

/// Makes sure that there is a shroud: a superblock whose only descriptor is closed at once, so that every access to it gives
/// ENOTCONN, and nobody can ever serve it.
pub(crate) fn ensure_shroud(layout: &Layout) -> Result<(), MountError> {
    let path = layout.shroud();
    if top(&path)?.is_some_and(|m| is_identity(&m, SHROUD)) {
        return Ok(());
    }
    make_folder(&path)?;
    let fuse = device::open()?;
    device::mount(fuse.as_fd(), &path, SHROUD)?;
    drop(fuse);
    Ok(())
}

/// Makes the target folder, that nobody but root can enter, and covers it: first with the shroud, then with the superblock.
/// Bind mounts take over `ro,nosuid,nodev` of what they show, also in the namespaces that they propagate to.
pub(crate) fn cover(layout: &Layout, identity: &str, target: &Path) -> Result<(), MountError> {
    make_target(layout, target)?;
    bind(&layout.shroud(), target)?;
    bind(&layout.superblock(identity), target)
}

/// Bind mounts of a shared mount are its peers: what covers one of them covers it and all the others. So it must be private;
/// each bind mount then has peers only where its target shows.
fn bind(from: &Path, to: &Path) -> Result<(), MountError> {
    mount(None::<&str>, from, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(|e| MountError::Private { path: from.to_owned(), source: e.into() })?;
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|e| MountError::Bind {
        from: from.to_owned(),
        to: to.to_owned(),
        source: e.into(),
    })
}

fn make_target(layout: &Layout, target: &Path) -> Result<(), MountError> {
    let wrap = |e: Errno| MountError::Path { path: target.to_owned(), source: e.into() };
    let (folder, name) = layout.split(target).ok_or(Errno::EINVAL).map_err(wrap)?;
    let kubelet = fs::File::open(layout.kubelet()).map_err(|source| MountError::Path { path: target.to_owned(), source })?;
    let how = |flags| {
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        OpenHow::new().flags(flags | OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).resolve(resolve)
    };
    let folder = openat2(&kubelet, folder, how(OFlag::empty())).map_err(wrap)?;
    match mkdirat(&folder, name, Mode::empty()) {
        // Left by an earlier attempt, or by a reboot. It must be a folder.
        Err(Errno::EEXIST) => openat2(&folder, name, how(OFlag::O_NOFOLLOW)).map(drop).map_err(wrap),
        made => made.map_err(wrap),
    }
}

/// Takes off everything that is mounted at a path, dead or not. Does nothing when nothing is.
pub(crate) fn unmount_all(path: &Path) -> Result<(), MountError> {
    for _ in 0..LAYERS_MAX {
        if top(path)?.is_none() {
            return Ok(());
        }
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // EINVAL: somebody else has just unmounted it.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(e) => return Err(MountError::Unmount { path: path.to_owned(), source: e.into() }),
        }
    }
    Err(MountError::Layers(path.to_owned()))
}

/// Removes what is at a path where nothing is mounted any more: an empty folder, a file, or a link; never what is in it.
pub(crate) fn remove(path: &Path) -> Result<(), MountError> {
    let wrap = |source| MountError::Remove { path: path.to_owned(), source };
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        result => result.map_err(wrap),
    }
}

pub(crate) fn make_folder(path: &Path) -> Result<(), MountError> {
    fs::create_dir_all(path).map_err(|source| MountError::Folder { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_through_a_symbolic_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        fs::create_dir_all(dir.path().join("pods/1")).unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("pods/1/link")).unwrap();
        assert!(matches!(make_target(&layout, &dir.path().join("pods/1/link")), Err(MountError::Path { .. })));
        assert!(matches!(make_target(&layout, &dir.path().join("pods/1/link/x")), Err(MountError::Path { .. })));
        fs::write(dir.path().join("pods/1/file"), "").unwrap();
        assert!(matches!(make_target(&layout, &dir.path().join("pods/1/file")), Err(MountError::Path { .. })));
        let good = dir.path().join("pods/1/mount");
        for _ in 0..2 {
            make_target(&layout, &good).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&good).unwrap().permissions());
            assert_eq!(mode & 0o7777, 0);
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn removing_takes_what_is_there_and_nothing_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        remove(&path).unwrap();
        fs::write(&path, "").unwrap();
        remove(&path).unwrap();
        std::os::unix::fs::symlink("/etc", &path).unwrap();
        remove(&path).unwrap();
        fs::create_dir(&path).unwrap();
        fs::write(path.join("data"), "keep").unwrap();
        assert!(matches!(remove(&path), Err(MountError::Remove { .. })));
        assert_eq!(fs::read(path.join("data")).unwrap(), b"keep");
        remove(&path.join("data")).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
    }
}
