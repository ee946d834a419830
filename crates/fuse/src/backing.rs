//! Backing files: a file that is opened with one is read by the kernel from the disk, and its reads never reach us
//! ("passthrough").
//!
//! ```text
//! register(connection, file) -> id ──► opened(reply, id) ... RELEASE ──► unregister(connection, id)
//! ```
//!
//! The kernel wants CAP_SYS_ADMIN of whoever registers, on any descriptor of the connection; who replies needs none. An id
//! belongs to its connection: it outlives the processes that made and used it, and ends with the connection. As long as an
//! inode is open with one id, any other id for it is refused with EIO, so whoever opens must keep the ids of what is open.

use fuser::{BackingId, FileHandle, FopenFlags, ReplyOpen};
use nix::sys::stat::{SFlag, fstat};
use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
};

/// Registers a regular file as a backing file; gives its id.
///
/// # Errors
/// EPERM without the right; ELOOP for a file on a stacked file system (overlayfs); ENOTTY, EINVAL or EOPNOTSUPP on kernels
/// before 6.9 and connections that did not agree on passthrough; EINVAL for what is no regular file.
pub fn register(connection: impl AsFd, file: impl AsFd) -> io::Result<u32> {
    let stat = fstat(&file)?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    BackingId::create_raw(connection, file)
}

/// Forgets an id. Files that are open with it go on being read.
///
/// # Errors
/// ENOENT: no such id.
pub fn unregister(connection: impl AsFd, id: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open for the call, and the ioctl reads one u32 from a pointer that outlives it.
    unsafe { ioctl::backing_close(connection.as_fd().as_raw_fd(), &raw const id) }.map(drop).map_err(Into::into)
}

mod ioctl {
    // FUSE_DEV_IOC_BACKING_CLOSE of linux/fuse.h.
    nix::ioctl_write_ptr!(backing_close, 229, 2, u32);
}

/// Will the kernel say the same of every other file of this connection? Its version, our rights and the disk are the same.
#[must_use]
pub fn is_lasting(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::ELOOP | libc::ENOTTY | libc::EINVAL | libc::EOPNOTSUPP))
}

/// Answers OPEN: the kernel reads the file from the backing file from now on, until this handle is released. The id stays
/// registered: it is the caller's.
pub fn opened(reply: ReplyOpen, handle: FileHandle, id: u32) {
    // SAFETY: the wrapper closes the id when it is dropped; it never is, because `into_raw` takes it apart right below. The id
    // is the caller's and stays registered during this call.
    let backing = unsafe { reply.wrap_backing(id) };
    reply.opened_passthrough(handle, FopenFlags::FOPEN_NOFLUSH, &backing);
    backing.into_raw();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn only_regular_files_are_registered_and_only_on_a_connection() {
        let null = File::open("/dev/null").unwrap();
        let file = tempfile::tempfile().unwrap();
        let directory = File::open("/").unwrap();
        assert_eq!(register(&null, &directory).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(register(&null, &file).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        assert_eq!(unregister(&null, 1).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
