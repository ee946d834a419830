//! The privileged half of a FUSE mount: open the device, mount(2).

use nix::{
    errno::Errno,
    fcntl::OFlag,
    mount::{MsFlags, mount as mount2},
    sys::stat::Mode,
};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

/// The file system type as mountinfo shows it.
pub const FS_TYPE: &str = "fuse.larder";
/// Device number of /dev/fuse, fixed in the kernel (MISC_MAJOR, FUSE_MINOR).
const FUSE_DEVICE: (u64, u64) = (10, 229);

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No device, or no right to it.
    #[error("open /dev/fuse: {0} (is the fuse module loaded on this node?)")]
    Open(io::Error),
    /// mount(2) refused.
    #[error("mount {FS_TYPE} at {}: {source}", target.display())]
    Mount {
        /// Where.
        target: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A peer sent something else.
    #[error("descriptor is not /dev/fuse")]
    NotFuse,
}

/// Opens the device. Each opening is one connection.
///
/// # Errors
/// No FUSE in this kernel or container.
pub fn open() -> Result<OwnedFd, DeviceError> {
    nix::fcntl::open("/dev/fuse", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(|e| DeviceError::Open(e.into()))
}

/// Mounts a new read-only connection of root at `target`; `source` shows in the mount table and must hold no comma.
///
/// Returns at once: the kernel queues INIT for whoever reads the descriptor first. With `default_permissions` the kernel
/// judges modes itself; `allow_other` lets every user in, as pods run as any.
///
/// # Errors
/// mount(2)'s.
pub fn mount(fuse: BorrowedFd<'_>, target: &Path, source: &str) -> Result<(), DeviceError> {
    mount_as(fuse, target, source, (0, 0))
}

/// The same for another owner (user and group), who must exist in the user namespace that both the descriptor and the mount
/// belong to.
///
/// # Errors
/// mount(2)'s.
pub fn mount_as(fuse: BorrowedFd<'_>, target: &Path, source: &str, (uid, gid): (u32, u32)) -> Result<(), DeviceError> {
    let options =
        format!("fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions,allow_other", fuse.as_raw_fd());
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    mount2(Some(source), target, Some(FS_TYPE), flags, Some(options.as_str()))
        .map_err(|e| DeviceError::Mount { target: target.to_owned(), source: e.into() })
}

/// Refuses a descriptor that is not the FUSE device, so that a mix-up ends in an error and not in odd reads.
///
/// # Errors
/// [`DeviceError::NotFuse`].
pub fn check(fd: impl AsFd) -> Result<(), DeviceError> {
    let stat = nix::sys::stat::fstat(fd).map_err(|e| DeviceError::Open(e.into()))?;
    let device = (nix::sys::stat::major(stat.st_rdev), nix::sys::stat::minor(stat.st_rdev));
    let is_char = stat.st_mode & libc::S_IFMT == libc::S_IFCHR;
    if is_char && device == FUSE_DEVICE { Ok(()) } else { Err(DeviceError::NotFuse) }
}

/// Does this error of a path mean that the connection beneath it has ended?
#[must_use]
pub fn is_dead(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENOTCONN | Errno::ECONNABORTED | Errno::ENODEV))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn only_the_fuse_device_is_served() {
        for other in ["/dev/null", "/proc/self/exe", "/"] {
            assert!(matches!(check(File::open(other).unwrap()), Err(DeviceError::NotFuse)), "{other}");
        }
        // Where it exists: opening it needs no mount.
        if let Ok(fuse) = open() {
            check(&fuse).unwrap();
        }
    }

    #[test]
    fn a_dead_connection_is_told_from_other_errors() {
        for (code, dead) in [(libc::ENOTCONN, true), (libc::ECONNABORTED, true), (libc::EIO, false), (libc::ENOENT, false)] {
            assert_eq!(is_dead(&io::Error::from_raw_os_error(code)), dead, "{code}");
        }
    }
}
