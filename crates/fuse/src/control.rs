//! The kernel's control files of FUSE connections (fusectl) and of their read-ahead.
//!
//! Both are found by the minor number of the mount's device, which [`crate::mountinfo`] knows; asking the mount itself with
//! stat(2) could hang.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// How far the kernel should read ahead in a mount of ours. With less, a reader of a file that is not on this disk waits for one
/// round trip after the other; 4 MiB is what four of the kernel's longest reads fetch together.
pub const READ_AHEAD_KIB: u32 = 4096;

const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// Why a connection could not be controlled.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No such connection, or fusectl is not mounted and we may not mount it.
    #[error("abort FUSE connection {minor}: {source}")]
    Abort {
        /// Minor number of the mount's device.
        minor: u32,
        /// Why.
        source: io::Error,
    },
    /// The same.
    #[error("look at FUSE connection {minor}: {source}")]
    Look {
        /// Minor number of the mount's device.
        minor: u32,
        /// Why.
        source: io::Error,
    },
    /// /sys is read-only or the mount is gone.
    #[error("set read-ahead of FUSE mount 0:{minor}: {source}")]
    ReadAhead {
        /// Minor number of the mount's device.
        minor: u32,
        /// Why.
        source: io::Error,
    },
}

/// Ends a connection: requests that wait fail with ECONNABORTED, later ones with ENOTCONN. Tasks that hang come free.
///
/// # Errors
/// No such connection.
pub fn abort(minor: u32) -> Result<(), ControlError> {
    with_fusectl(|| fs::write(connection(minor).join("abort"), "1")).map_err(|source| ControlError::Abort { minor, source })
}

/// Requests that are not answered yet.
///
/// # Errors
/// No such connection.
pub fn waiting(minor: u32) -> Result<u64, ControlError> {
    let read = || fs::read_to_string(connection(minor).join("waiting"))?.trim().parse().map_err(io::Error::other);
    with_fusectl(read).map_err(|source| ControlError::Look { minor, source })
}

/// Sets how far the kernel reads ahead. To be called after the session has answered INIT, which sets it to at most 128 KiB.
///
/// # Errors
/// No such mount, or a read-only /sys.
pub fn set_read_ahead(minor: u32, kib: u32) -> Result<(), ControlError> {
    fs::write(format!("/sys/class/bdi/0:{minor}/read_ahead_kb"), kib.to_string())
        .map_err(|source| ControlError::ReadAhead { minor, source })
}

fn connection(minor: u32) -> PathBuf {
    Path::new(CONNECTIONS).join(minor.to_string())
}

/// Mounts fusectl if it is needed and missing.
fn with_fusectl<T>(run: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match run() {
        Err(e) if e.kind() == io::ErrorKind::NotFound && !has_fusectl() => {
            mount_fusectl()?;
            run()
        }
        result => result,
    }
}

/// The folder is empty as long as the file system is not mounted; with it there are at least its connections or none, so the
/// mount table is what tells.
fn has_fusectl() -> bool {
    crate::mountinfo::read().is_ok_and(|mounts| mounts.iter().any(|m| m.fs_type == "fusectl"))
}

fn mount_fusectl() -> io::Result<()> {
    nix::mount::mount(Some("none"), CONNECTIONS, Some("fusectl"), nix::mount::MsFlags::empty(), None::<&str>)
        .map_err(Into::into)
}
