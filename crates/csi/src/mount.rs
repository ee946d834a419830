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
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, SFlag, fstatat, mkdirat},
    unistd::{UnlinkatFlags, unlinkat},
};
use std::{
    ffi::OsStr,
    fs, io,
    os::fd::{AsFd, OwnedFd},
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
    Ok(top_in(&table()?, path).cloned())
}

/// All mounts of this process's namespace.
pub(crate) fn table() -> Result<Vec<Mount>, MountError> {
    mountinfo::read().map_err(MountError::Table)
}

/// As [`top`], for those who ask about many paths.
pub(crate) fn top_in<'a>(table: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mountinfo::at(table, path).pop()
}

/// Is it the superblock of this identity, or a bind mount of it?
pub(crate) fn is_identity(mount: &Mount, identity: &str) -> bool {
    mount.fs_type == FS_TYPE && mount.source == identity
}

/// Is a superblock seen elsewhere than at its own place, by a pod?
pub(crate) fn is_shown(layout: &Layout, identity: &str) -> Result<bool, MountError> {
    let by_pod = |m: &Mount| m.target.starts_with(layout.kubelet()) && m.target != layout.superblock(identity);
    Ok(table()?.iter().any(|m| is_identity(m, identity) && by_pod(m)))
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
    let (folder, name) = open_parent(layout, target).map_err(wrap)?;
    match mkdirat(&folder, name, Mode::empty()) {
        // Left by an earlier attempt, or by a reboot. It must be a folder.
        Err(Errno::EEXIST) => open_plain(&folder, Path::new(name)).map(drop).map_err(wrap),
        made => made.map_err(wrap),
    }
}

/// Why nothing can be mounted at a target, where nothing is yet.
pub(crate) fn obstacle(layout: &Layout, target: &Path) -> Result<Option<&'static str>, MountError> {
    let table = table()?;
    if top_in(&table, target).is_some() {
        return Ok(None);
    }
    if may_hang(&table, layout, target) {
        return Ok(Some("lies in a mount of FUSE; give one in a folder of the kubelet's own"));
    }
    let (folder, name) = match open_parent(layout, target) {
        Ok(parent) => parent,
        Err(Errno::ENOENT) => return Ok(Some("lies in a folder that does not exist; make that first")),
        Err(Errno::ENOTDIR | Errno::ELOOP) => return Ok(Some("leads through a file or a symbolic link; give a path without")),
        Err(e) => return Err(MountError::Path { path: target.to_owned(), source: e.into() }),
    };
    match fstatat(&folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR => Ok(None),
        Err(Errno::ENOENT) => Ok(None),
        Ok(_) => Ok(Some("is a file or a symbolic link; remove it")),
        Err(e) => Err(MountError::Path { path: target.to_owned(), source: e.into() }),
    }
}

/// Does the path lead into a mount of FUSE? What may hang is not looked into.
fn may_hang(table: &[Mount], layout: &Layout, path: &Path) -> bool {
    let within = |m: &Mount| m.target != layout.kubelet() && m.target != path && path.starts_with(&m.target);
    table.iter().any(|m| m.target.starts_with(layout.kubelet()) && within(m) && m.fs_type.starts_with("fuse"))
}

/// The folder of a target, reached from the kubelet's without links, and the target's name in it.
fn open_parent<'a>(layout: &Layout, target: &'a Path) -> nix::Result<(OwnedFd, &'a OsStr)> {
    let (folder, name) = layout.split(target).ok_or(Errno::EINVAL)?;
    let kubelet = open(layout.kubelet(), OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    Ok((open_plain(&kubelet, folder)?, name))
}

fn open_plain(at: &impl AsFd, path: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    openat2(at, path, OpenHow::new().flags(flags).resolve(resolve))
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

/// Takes off everything that is mounted at a target and removes what is there then: an empty folder, a file, or a link; never what is in
/// it. Does nothing where no target can be: through a link or a file, in a mount of FUSE, in a folder that is not there.
pub(crate) fn clear_target(layout: &Layout, target: &Path) -> Result<(), MountError> {
    if may_hang(&table()?, layout, target) {
        return Ok(());
    }
    let parent = open_parent(layout, target);
    if let Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) = parent {
        return Ok(());
    }
    unmount_all(target)?;
    let wrap = |e: Errno| MountError::Remove { path: target.to_owned(), source: e.into() };
    let (folder, name) = parent.map_err(wrap)?;
    let removed = match unlinkat(&folder, name, UnlinkatFlags::RemoveDir) {
        Err(Errno::ENOTDIR) => unlinkat(&folder, name, UnlinkatFlags::NoRemoveDir),
        removed => removed,
    };
    match removed {
        Err(Errno::ENOENT) => Ok(()),
        removed => removed.map_err(wrap),
    }
}

/// Removes what is at a path of the driver's own where nothing is mounted any more: an empty folder, a file, or a link.
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
        fs::write(dir.path().join("pods/1/file"), "").unwrap();
        for (bad, why) in [
            ("pods/1/link", "remove it"),
            ("pods/1/link/x", "symbolic link"),
            ("pods/1/file", "remove it"),
            ("pods/1/file/x", "through a file"),
            ("pods/2/x", "does not exist"),
        ] {
            let target = dir.path().join(bad);
            assert!(obstacle(&layout, &target).unwrap().unwrap().contains(why), "{bad}");
            assert!(matches!(make_target(&layout, &target), Err(MountError::Path { .. })), "{bad}");
        }
        let good = dir.path().join("pods/1/mount");
        assert_eq!(obstacle(&layout, &good).unwrap(), None);
        for _ in 0..2 {
            make_target(&layout, &good).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&good).unwrap().permissions());
            assert_eq!(mode & 0o7777, 0);
            assert_eq!(obstacle(&layout, &good).unwrap(), None);
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn removing_takes_what_is_there_and_nothing_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        fs::create_dir(dir.path().join("pods")).unwrap();
        let path = dir.path().join("pods/x");
        type Way<'a> = &'a dyn Fn(&Path) -> Result<(), MountError>;
        let ways: [Way<'_>; 2] = [&remove, &|path| clear_target(&layout, path)];
        for remove in ways {
            remove(&path).unwrap();
            remove(&path.join("y")).unwrap();
            fs::write(&path, "").unwrap();
            remove(&path.join("y")).unwrap();
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

    #[test]
    fn nothing_is_removed_through_a_link() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(dir.path().join("pods")).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("pods/link")).unwrap();
        fs::write(outside.path().join("file"), "keep").unwrap();
        fs::create_dir(outside.path().join("folder")).unwrap();
        for name in ["file", "folder", "folder/x"] {
            clear_target(&Layout::new(dir.path()), &dir.path().join("pods/link").join(name)).unwrap();
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 2);
    }
}
