//! The event loop of one FUSE connection, on a descriptor that somebody else has opened and mounted.
//!
//! ```text
//! first process    begin(filesystem, fuse) ─► exchange() is kept by others ─► start(): INIT is answered
//! the next one     resume(filesystem, fuse, exchange) ──────────────────────► start(): what was not answered is sent again
//! ```
//!
//! The kernel asks INIT once in a connection's life. So fuser is always shown INIT on a socket pair, the first time as the kernel
//! has just sent it, later as it was kept; when it has answered, the connection takes the place of the socket. The kernel gets
//! the answer that the first process gave, and no other. With a [`Journal`] fuser stays on the socket, and a [`crate::relay`] is at the
//! other end.

use crate::{
    device::{self, DeviceError},
    journal::Journal,
    relay::{Relay, write},
};
use fuser::{Config, Filesystem, Session as Loop, SessionACL};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde::{Deserialize, Serialize};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    thread,
    time::Duration,
};
use tokio::sync::oneshot;

/// INIT waits in the queue since mount(2); when nothing is there after this time, somebody else has read it.
const INIT_PATIENCE: Duration = Duration::from_secs(5);
/// More than any INIT and its answer, and no less than the kernel wants a reader to have room for.
const MESSAGE: usize = 64 * 1024;
/// FUSE_NOTIFY_RESEND of linux/fuse.h, since Linux 6.9.
const RESEND: i32 = 7;
/// Set by the kernel in the `unique` of a request that it sends again (FUSE_UNIQUE_RESEND).
const SENT_AGAIN: u64 = 1 << 63;

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
    /// This program would have answered INIT in another way than the one that did.
    #[error("this version of the program cannot go on with a mount that another version has made; let that one serve it")]
    OtherAnswer,
    /// A request that was read and not answered would wait for ever.
    #[error("this kernel (before 6.9) does not send requests again, and there is no journal of them")]
    NoResend,
    /// No thread.
    #[error("start thread of FUSE session: {0}")]
    Thread(io::Error),
}

/// Resolves when the session ends: the mount was unmounted everywhere, or the connection aborted.
pub type Ended = oneshot::Receiver<io::Result<()>>;

/// INIT and its answer, as bytes. Whoever goes on with a connection must have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    request: Vec<u8>,
    answer: Vec<u8>,
}

/// A session that serves.
pub struct Started {
    /// When it ends.
    pub ended: Ended,
    /// How many requests of another process were in the journal, where that was the means.
    pub replayed: Option<usize>,
}

/// A session that has not started: nothing is answered yet.
pub struct Session<F: Filesystem> {
    session: Loop<F>,
    /// The other end of the session's socket.
    kernel: OwnedFd,
    fuse: OwnedFd,
    threads: usize,
    exchange: Exchange,
    resumed: bool,
}

impl<F: Filesystem> Session<F> {
    /// Reads INIT. Blocks for at most about [`INIT_PATIENCE`].
    ///
    /// All threads read one descriptor, not clones of it: a request that was read through a clone is lost with it, and a process
    /// that takes the connection over could not answer it.
    ///
    /// # Errors
    /// A descriptor that cannot be served.
    pub fn begin(filesystem: F, fuse: OwnedFd, threads: usize) -> Result<Self, SessionError> {
        device::check(&fuse)?;
        wait_readable(&fuse)?;
        let request = read(&fuse).map_err(SessionError::Handshake)?;
        let (session, kernel, answer) = negotiate(filesystem, &request, threads)?;
        Ok(Self { session, kernel, fuse, threads, exchange: Exchange { request, answer }, resumed: false })
    }

    /// Goes on with a connection whose last process is dead, or has stopped to read from it.
    ///
    /// # Errors
    /// A descriptor that is not FUSE; [`SessionError::OtherAnswer`].
    pub fn resume(filesystem: F, fuse: OwnedFd, exchange: &Exchange, threads: usize) -> Result<Self, SessionError> {
        device::check(&fuse)?;
        let (session, kernel, answer) = negotiate(filesystem, &exchange.request, threads)?;
        if !is_same(&answer, &exchange.answer) {
            return Err(SessionError::OtherAnswer);
        }
        Ok(Self { session, kernel, fuse, threads, exchange: exchange.clone(), resumed: true })
    }

    /// Would [`Self::resume`] go on with it? Needs no connection, so that a process can ask before it is its turn.
    ///
    /// # Errors
    /// [`SessionError::OtherAnswer`]; a request that cannot be answered at all.
    pub fn check(filesystem: F, exchange: &Exchange, threads: usize) -> Result<(), SessionError> {
        let (_session, _kernel, answer) = negotiate(filesystem, &exchange.request, threads)?;
        if is_same(&answer, &exchange.answer) { Ok(()) } else { Err(SessionError::OtherAnswer) }
    }

    /// For the next process.
    #[must_use]
    pub fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// Answers INIT, or sees to what was not answered, and serves the connection in threads of its own. Never unmounts: that is
    /// the node plugin's. The journal is the filesystem's.
    ///
    /// # Errors
    /// The connection has ended; a kernel that does not send again, without a journal; no thread.
    pub fn start(self, name: &str, journal: Option<&Journal>) -> Result<Started, SessionError> {
        let Self { session, kernel, fuse, threads, exchange, resumed } = self;
        let failed = SessionError::Handshake;
        let written = journal.filter(|journal| journal.is_written());
        let replays = written.is_some_and(|journal| resumed && journal.is_to_be_replayed());
        if resumed && !replays {
            resend(&fuse).map_err(|error| match error.raw_os_error() {
                Some(libc::EINVAL) => SessionError::NoResend,
                _ => failed(error),
            })?;
        }
        let relay = match written {
            Some(journal) => {
                let duplicates = (fuse.try_clone().map_err(failed)?, fuse.try_clone().map_err(failed)?);
                let file = journal.open(duplicates.0);
                Some(Relay::start(file, duplicates.1, kernel, threads).map_err(failed)?)
            }
            None => {
                journal.map_or(Ok(()), Journal::close).map_err(failed)?;
                connect(&session, &fuse).map_err(failed)?;
                None
            }
        };
        if !resumed {
            write(&fuse, &exchange.answer).map_err(failed)?;
        }
        let replayed = relay.as_ref().filter(|_| replays).map(|relay| relay.found);
        let (done, ended) = oneshot::channel();
        let run = move || {
            let served = session.run().and_then(|()| relay.map_or(Ok(()), Relay::ended));
            // Nobody listening means that the daemon is going down.
            let _ = done.send(served);
        };
        let name = format!("fuse-{}", name.get(..8).unwrap_or(name));
        thread::Builder::new().name(name).spawn(run).map_err(SessionError::Thread)?;
        Ok(Started { ended, replayed })
    }
}

/// Ends this process at once: nothing is dropped, so that no request is answered with an error because its answer was. What is not
/// answered is the next process's.
pub fn leave(code: i32) -> ! {
    // SAFETY: ends the process; nothing of it is used after that.
    unsafe { libc::_exit(code) }
}

/// The name of a request in its connection, the same when it is sent again.
#[must_use]
pub fn unique(request: &fuser::Request) -> u64 {
    request.unique().0 & !SENT_AGAIN
}

/// Answers INIT and serves the connection, for a process whose mounts end with it.
///
/// # Errors
/// A descriptor that cannot be served.
pub fn serve<F: Filesystem>(filesystem: F, fuse: OwnedFd, name: &str, threads: usize) -> Result<Ended, SessionError> {
    Ok(Session::begin(filesystem, fuse, threads)?.start(name, None)?.ended)
}

/// Shows INIT to fuser; gives the other end of its socket, and its answer.
fn negotiate<F: Filesystem>(
    filesystem: F,
    request: &[u8],
    threads: usize,
) -> Result<(Loop<F>, OwnedFd, Vec<u8>), SessionError> {
    let run = || -> io::Result<(Loop<F>, OwnedFd, Vec<u8>)> {
        let (kernel, ours) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        write(&kernel, request)?;
        let mut config = Config::default();
        config.n_threads = Some(threads.max(1));
        config.clone_fd = false;
        let session = Loop::from_fd(filesystem, ours, SessionACL::All, config)?;
        let answer = read(&kernel)?;
        Ok((session, kernel, answer))
    };
    run().map_err(SessionError::Handshake)
}

/// Flags of an answer that say what the kernel is to ask when, and nothing that who serves must know: FUSE_DO_READDIRPLUS,
/// FUSE_READDIRPLUS_AUTO, FUSE_PARALLEL_DIROPS. They may change from release to release; a mount keeps those it began with.
const HINTS: u32 = 1 << 13 | 1 << 14 | 1 << 18;
/// Where the lower flags lie in it: after fuse_out_header, and three words of fuse_init_out.
const FLAGS: std::ops::Range<usize> = 28..32;

/// Can who would give one answer go on where the other was given?
fn is_same(answer: &[u8], other: &[u8]) -> bool {
    let without_hints = |answer: &[u8]| {
        let mut answer = answer.to_vec();
        if let Some(flags) = answer.get_mut(FLAGS) {
            for (flags, hints) in flags.iter_mut().zip(HINTS.to_ne_bytes()) {
                *flags &= !hints;
            }
        }
        answer
    };
    without_hints(answer) == without_hints(other)
}

/// Puts the connection in the place of the session's socket.
fn connect(session: impl AsFd, fuse: &OwnedFd) -> io::Result<()> {
    // SAFETY: both are open descriptors of this process; the number that is given a new meaning is the session's, which goes on
    // using it by number.
    let to = unsafe { libc::dup3(fuse.as_raw_fd(), session.as_fd().as_raw_fd(), libc::O_CLOEXEC) };
    if to < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Kernels before 6.9 refuse it with EINVAL.
fn resend(fuse: &OwnedFd) -> io::Result<()> {
    // fuse_out_header: length, code, unique 0 for a notification.
    let mut message = [0; 16];
    message[..4].copy_from_slice(&16u32.to_ne_bytes());
    message[4..8].copy_from_slice(&RESEND.to_ne_bytes());
    write(fuse, &message)
}

fn read(fd: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; MESSAGE];
    let n = nix::unistd::read(fd, &mut bytes)?;
    bytes.truncate(n);
    Ok(bytes)
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
    fn a_mount_is_gone_on_with_by_who_would_have_given_the_kernel_other_hints_and_by_nobody_who_differs_in_more() {
        let with = |flags: u32| {
            let mut answer = vec![7; 80];
            answer[FLAGS].copy_from_slice(&flags.to_ne_bytes());
            answer
        };
        let (hints, parallel, async_read) = (1 << 13 | 1 << 14, 1 << 18, 1);
        assert!(is_same(&with(async_read), &with(async_read | hints)));
        assert!(is_same(&with(async_read | parallel), &with(async_read)));
        assert!(!is_same(&with(async_read), &with(0)));
        assert!(!is_same(&with(hints), &with(hints)[..79]));
        let mut other = with(hints);
        other[32] ^= 1;
        assert!(!is_same(&with(hints), &other));
    }

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
