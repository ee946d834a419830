//! A connection for threads that may wait a moment, and no longer: without a runtime between a question and its answer.

use super::{FdPassError, message};
use nix::sys::socket::{self, UnixAddr};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

/// One connection, one question at a time.
#[derive(Debug)]
pub struct QuickConn(OwnedFd);

impl QuickConn {
    /// Connects, or fails at once.
    ///
    /// # Errors
    /// Nobody listens, or its backlog is full.
    pub fn connect(path: &Path) -> Result<Self, FdPassError> {
        let connect = || -> nix::Result<OwnedFd> {
            let fd = super::seqpacket()?;
            socket::connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
            Ok(fd)
        };
        connect().map(Self).map_err(|e| FdPassError::Connect { path: path.to_owned(), source: e.into() })
    }

    /// Asks, and waits that long for the answer; none: there is none yet, and the connection is of no more use.
    ///
    /// # Errors
    /// A peer that is gone, a message that makes no sense.
    pub fn ask<Q: Serialize, A: DeserializeOwned>(
        self,
        question: &Q,
        patience: Duration,
    ) -> Result<Option<(A, Option<OwnedFd>, Self)>, FdPassError> {
        let bytes = serde_json::to_vec(question).map_err(FdPassError::Encode)?;
        message::send(self.0.as_raw_fd(), &bytes, None).map_err(FdPassError::Send)?;
        if !self.readable(patience).map_err(FdPassError::Receive)? {
            return Ok(None);
        }
        let received = message::receive(self.0.as_raw_fd()).map_err(FdPassError::Receive)?;
        let hung_up = || FdPassError::Receive(io::ErrorKind::UnexpectedEof.into());
        let (bytes, fd) = message::check(received)?.ok_or_else(hung_up)?;
        Ok(Some((serde_json::from_slice(&bytes).map_err(FdPassError::Decode)?, fd, self)))
    }

    fn readable(&self, patience: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = libc::timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd and one timespec that live on this stack, a count of one, and no signal mask.
            match unsafe { libc::ppoll(&raw mut poll, 1, &raw const left, std::ptr::null()) } {
                0 => return Ok(false),
                1 => return Ok(true),
                _ => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => {}
                    e => return Err(e),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fdpass::Listener;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn an_answer_that_does_not_come_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.sock");
        assert!(matches!(QuickConn::connect(&path), Err(FdPassError::Connect { .. })));
        let me = nix::unistd::geteuid().as_raw();
        let listener = Listener::bind(&path, &[me], 0o600).unwrap();
        let answering = tokio::spawn(async move {
            let conn = listener.accept().await;
            let (question, _): (u32, _) = conn.recv().await.unwrap().unwrap();
            let file = tempfile::tempfile().unwrap();
            conn.send(&(question + 1), Some(std::os::fd::AsFd::as_fd(&file))).await.unwrap();
            let asked: Option<(u32, _)> = conn.recv().await.unwrap();
            assert_eq!(asked.map(|(q, _)| q), Some(7));
            // No answer; then the end.
            assert!(conn.recv::<u32>().await.unwrap().is_none());
        });
        let asking = tokio::task::spawn_blocking(move || {
            let conn = QuickConn::connect(&path).unwrap();
            let (answer, fd, conn): (u32, _, _) = conn.ask(&1u32, Duration::from_secs(10)).unwrap().unwrap();
            assert_eq!((answer, fd.is_some()), (2, true));
            let started = Instant::now();
            assert!(conn.ask::<_, u32>(&7u32, Duration::from_millis(20)).unwrap().is_none());
            assert!((Duration::from_millis(20)..Duration::from_secs(5)).contains(&started.elapsed()));
        });
        asking.await.unwrap();
        answering.await.unwrap();
    }
}
