//! Questions to another daemon of this node over its unix socket: one message, one answer, over connections that are kept.

use larder_fuse::fdpass::{Conn, FdPassError, QuickConn};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    marker::PhantomData,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Longest wait for an answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// A daemon that did not answer is not asked again for this long.
const AWAY: Duration = Duration::from_secs(1);
/// Longest wait of a thread that has other things to do.
const MOMENT: Duration = Duration::from_millis(5);
/// Idle connections kept. Answers take well under a millisecond, so few are in use at a time.
const IDLE: usize = 8;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error(transparent)]
    Conn(#[from] FdPassError),
    #[error("{} hung up", .0.display())]
    HungUp(PathBuf),
    #[error("{} did not answer within {PATIENCE:?}", .0.display())]
    Silent(PathBuf),
    #[error("{} did not answer a moment ago", .0.display())]
    Away(PathBuf),
}

/// A daemon that may be missing or come back at any time.
#[derive(Debug)]
pub(crate) struct Asker<Q, A> {
    socket: PathBuf,
    /// Asked first on each connection, and whatever it answers is dropped.
    greeting: Option<(Q, OwnedFd)>,
    idle: Mutex<Vec<Conn>>,
    quick: Mutex<Vec<QuickConn>>,
    away_until: Mutex<Option<Instant>>,
    answers: PhantomData<fn() -> A>,
}

impl<Q: Serialize + Sync, A: DeserializeOwned> Asker<Q, A> {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            greeting: None,
            idle: Mutex::default(),
            quick: Mutex::default(),
            away_until: Mutex::default(),
            answers: PhantomData,
        }
    }

    /// Every connection begins with this message and descriptor.
    pub(crate) fn with_greeting(socket: PathBuf, message: Q, fd: OwnedFd) -> Self {
        Self { greeting: Some((message, fd)), ..Self::new(socket) }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks from a thread that may wait for [`MOMENT`] only; none: ask in another way. What costs two wake-ups and no more is
    /// worth it even so: a small file takes less time to read than a task takes to be run.
    pub(crate) fn ask_now(&self, request: &Q) -> Option<(A, Option<OwnedFd>)> {
        debug_assert!(self.greeting.is_none(), "quick connections greet nobody");
        if self.away_until.lock().is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let idle = self.quick.lock().pop();
        let conn = match idle {
            Some(conn) => conn,
            None => QuickConn::connect(&self.socket).ok()?,
        };
        let (answer, fd, conn) = conn.ask(request, MOMENT).ok()??;
        let mut quick = self.quick.lock();
        if quick.len() < IDLE {
            quick.push(conn);
        }
        Some((answer, fd))
    }

    /// Asks and waits for the answer, at most a second.
    pub(crate) async fn ask(&self, request: &Q, fd: Option<BorrowedFd<'_>>) -> Result<(A, Option<OwnedFd>), AskError> {
        if self.away_until.lock().is_some_and(|until| Instant::now() < until) {
            return Err(AskError::Away(self.socket.clone()));
        }
        let answer = tokio::time::timeout(PATIENCE, self.ask_once_or_twice(request, fd)).await;
        let answer = answer.unwrap_or_else(|_| Err(AskError::Silent(self.socket.clone())));
        *self.away_until.lock() = answer.is_err().then(|| Instant::now() + AWAY);
        answer
    }

    async fn ask_once_or_twice(&self, request: &Q, fd: Option<BorrowedFd<'_>>) -> Result<(A, Option<OwnedFd>), AskError> {
        let idle = self.idle.lock().pop();
        if let Some(conn) = idle {
            if let Ok(answer) = self.ask_on(conn, request, fd).await {
                return Ok(answer);
            }
            // The daemon has restarted since; the other idle connections are as dead as this one.
            self.idle.lock().clear();
        }
        self.ask_on(self.connect().await?, request, fd).await
    }

    async fn connect(&self) -> Result<Conn, AskError> {
        let conn = Conn::connect(&self.socket).await?;
        if let Some((message, fd)) = &self.greeting {
            conn.send(message, Some(fd.as_fd())).await?;
            conn.recv::<A>().await?.ok_or_else(|| AskError::HungUp(self.socket.clone()))?;
        }
        Ok(conn)
    }

    async fn ask_on(&self, conn: Conn, request: &Q, fd: Option<BorrowedFd<'_>>) -> Result<(A, Option<OwnedFd>), AskError> {
        conn.send(request, fd).await?;
        let answer = conn.recv().await?.ok_or_else(|| AskError::HungUp(self.socket.clone()))?;
        let mut idle = self.idle.lock();
        if idle.len() < IDLE {
            idle.push(conn);
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_fuse::{
        fdpass::Listener,
        protocol::worker::{Reply, Request},
    };

    type Worker = Asker<Request, Reply>;

    fn me() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    fn open(inode: u64) -> Request {
        Request::Open { snapshot: "s".into(), inode }
    }

    async fn answer_one(listener: &Listener, reply: Reply) {
        let conn = listener.accept().await;
        conn.recv::<Request>().await.unwrap().unwrap();
        conn.send(&reply, None).await.unwrap();
    }

    #[tokio::test]
    async fn a_daemon_that_restarted_is_asked_again_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("w.sock");
        let worker = Worker::new(socket.clone());
        for owner in [true, false, true] {
            let listener = Listener::bind(&socket, &[me()], 0o600).unwrap();
            let request = open(1);
            let (answer, ()) = tokio::join!(worker.ask(&request, None), answer_one(&listener, Reply::Absent { owner }));
            assert_eq!(answer.unwrap().0, Reply::Absent { owner });
            assert_eq!(worker.idle.lock().len(), 1);
        }
    }

    #[tokio::test]
    async fn a_daemon_that_hangs_costs_one_second_and_not_one_per_question() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("w.sock");
        let _listener = Listener::bind(&socket, &[me()], 0o600).unwrap();
        let worker = Worker::new(socket);
        assert!(matches!(worker.ask(&open(1), None).await, Err(AskError::Silent(_))));
        let before = Instant::now();
        assert!(matches!(worker.ask(&open(2), None).await, Err(AskError::Away(_))));
        assert!(before.elapsed() < Duration::from_millis(200));
    }

    #[tokio::test]
    async fn every_new_connection_is_greeted_with_the_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("w.sock");
        let file = tempfile::tempfile().unwrap();
        let worker = Worker::with_greeting(socket.clone(), open(0), file.into());
        for _ in 0..2 {
            let listener = Listener::bind(&socket, &[me()], 0o600).unwrap();
            let request = open(1);
            let answering = async {
                let conn = listener.accept().await;
                for (expected, greeting) in [(open(0), true), (open(1), false)] {
                    let (asked, fd) = conn.recv::<Request>().await.unwrap().unwrap();
                    assert_eq!((asked, fd.is_some()), (expected, greeting));
                    conn.send(&Reply::Absent { owner: greeting }, None).await.unwrap();
                }
            };
            let (answer, ()) = tokio::join!(worker.ask(&request, None), answering);
            assert_eq!(answer.unwrap().0, Reply::Absent { owner: false });
        }
    }
}
