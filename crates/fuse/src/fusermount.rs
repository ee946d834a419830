//! Mounts for a user who is not root, by the setuid program `fusermount3` of libfuse.
//!
//! It opens the device, mounts it and sends the descriptor over the socket whose number is in `_FUSE_COMMFD`. What it mounts is
//! open to that user alone.

use crate::{
    device::FS_TYPE,
    fdpass::{FdPassError, check, receive},
};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::socket::{AddressFamily, SockFlag, SockType, socketpair},
};
use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const PROGRAM: &str = "fusermount3";

/// Why it did not mount or unmount.
#[derive(Debug, thiserror::Error)]
pub enum FusermountError {
    /// Not installed, or not for this user.
    #[error("run {PROGRAM}: it is not installed (package fuse3), or this user may not run it")]
    Missing,
    /// It cannot be run.
    #[error("run {PROGRAM}: {0}")]
    Run(io::Error),
    /// It said no.
    #[error("{PROGRAM} at {}: {message}", target.display())]
    Refused {
        /// Where.
        target: PathBuf,
        /// In its own words.
        message: String,
    },
    /// It said yes and sent nothing.
    #[error("{PROGRAM} sent no descriptor")]
    NoDescriptor,
    /// It sent something else.
    #[error("descriptor of {PROGRAM}: {0}")]
    Descriptor(#[from] FdPassError),
}

/// Mounts a new read-only connection at `target`, as [`crate::device::mount`] does. Blocks.
///
/// # Errors
/// See [`FusermountError`].
pub fn mount(target: &Path, source: &str) -> Result<OwnedFd, FusermountError> {
    let subtype = FS_TYPE.trim_start_matches("fuse.");
    let options = format!("ro,nosuid,nodev,noatime,default_permissions,fsname={source},subtype={subtype}");
    let pair = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC);
    let (ours, theirs) = pair.map_err(|e| FusermountError::Run(e.into()))?;
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|e| FusermountError::Run(e.into()))?;
    let mut command = Command::new(PROGRAM);
    command.env("_FUSE_COMMFD", theirs.as_raw_fd().to_string()).args(["-o", &options, "--"]).arg(target);
    run(command, target)?;
    // What it sent waits in the socket, or there is the end of the stream.
    drop(theirs);
    let received = receive(ours.as_raw_fd()).map_err(FdPassError::Receive)?;
    check(received)?.and_then(|(_, fd)| fd).ok_or(FusermountError::NoDescriptor)
}

/// Unmounts; `lazy`: also while files are open there, which then end with the connection. Blocks.
///
/// # Errors
/// See [`FusermountError`].
pub fn unmount(target: &Path, lazy: bool) -> Result<(), FusermountError> {
    let mut command = Command::new(PROGRAM);
    command.args(["-u", "-q"]).args(lazy.then_some("-z")).arg("--").arg(target);
    run(command, target)
}

fn run(mut command: Command, target: &Path) -> Result<(), FusermountError> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| match e.kind() {
        // Denied is also a folder of PATH that this user may not look into.
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => FusermountError::Missing,
        _ => FusermountError::Run(e),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches(PROGRAM).trim_start_matches(": ");
    let message = if said.is_empty() { output.status.to_string() } else { said.replace('\n', "; ") };
    Err(FusermountError::Refused { target: target.to_owned(), message })
}
