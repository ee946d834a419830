//! The event loop of one FUSE connection, on a descriptor that somebody else has opened and mounted.

use crate::device::{self, DeviceError};
use fuser::{Config, Filesystem, Session, SessionACL};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};
use tokio::sync::oneshot;

/// INIT waits in the queue since mount(2); when nothing is there after this time, somebody else has read it.
const INIT_PATIENCE: Duration = Duration::from_secs(5);

/// Why a session did not start.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Not the FUSE device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Not mounted, already served, or ended.
    #[error("no INIT request within {INIT_PATIENCE:?}: is the descriptor mounted, and not served by another process?")]
    NoInit,
    /// The kernel and we do not agree.
    #[error("FUSE handshake: {0}")]
    Handshake(io::Error),
    /// No thread.
    #[error("start thread of FUSE session: {0}")]
    Thread(io::Error),
}

/// Resolves when the session ends: the mount was unmounted everywhere, or the connection aborted.
pub type Ended = oneshot::Receiver<io::Result<()>>;

/// Answers INIT and then serves the connection in `threads` threads of its own. Blocks for the handshake, at most about
/// [`INIT_PATIENCE`]. Never unmounts: that is the node plugin's.
///
/// All threads read one descriptor, not clones of it: a request that was read through a clone is lost with it, and a process
/// that takes the connection over could not answer it.
///
/// # Errors
/// A descriptor that cannot be served.
pub fn serve<F: Filesystem>(filesystem: F, fuse: OwnedFd, name: &str, threads: usize) -> Result<Ended, SessionError> {
    device::check(&fuse)?;
    wait_readable(&fuse)?;
    let mut config = Config::default();
    config.n_threads = Some(threads.max(1));
    config.clone_fd = false;
    let session = Session::from_fd(filesystem, fuse, SessionACL::All, config).map_err(SessionError::Handshake)?;
    let (done, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name(format!("fuse-{}", name.get(..8).unwrap_or(name)))
        .spawn(move || {
            // Nobody listening means that the daemon is going down.
            let _ = done.send(session.run());
        })
        .map_err(SessionError::Thread)?;
    Ok(ended)
}

fn wait_readable(fuse: &OwnedFd) -> Result<(), SessionError> {
    let deadline = std::time::Instant::now() + INIT_PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let mut poll = libc::pollfd { fd: fuse.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd that lives on this stack, and a count of one.
        let n = unsafe { libc::poll(&raw mut poll, 1, left.as_millis() as libc::c_int) };
        match n {
            // POLLERR: not mounted, or ended.
            1 if poll.revents & libc::POLLIN != 0 => return Ok(()),
            0 | 1 => return Err(SessionError::NoInit),
            _ => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(SessionError::Handshake(e)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    struct Nothing;
    impl Filesystem for Nothing {}

    #[test]
    fn a_descriptor_that_is_not_mounted_is_refused_and_not_waited_for() {
        let null = File::open("/dev/null").unwrap().into();
        assert!(matches!(serve(Nothing, null, "n", 1), Err(SessionError::Device(DeviceError::NotFuse))));
        let Ok(fuse) = device::open() else {
            eprintln!("SKIPPED, NOTHING WAS TESTED: no /dev/fuse");
            return;
        };
        let started = std::time::Instant::now();
        assert!(matches!(serve(Nothing, fuse, "n", 1), Err(SessionError::NoInit)));
        assert!(started.elapsed() < INIT_PATIENCE / 2);
    }
}
