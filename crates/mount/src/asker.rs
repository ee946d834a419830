//! Questions to another daemon of this node over its unix socket: one message, one answer, over connections that are kept.

use larder_fuse::fdpass::{Conn, FdPassError, QuickConn};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    marker::PhantomData,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Weak},
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
/// And for how long: a node has hundreds of mounts, and the daemon at the other end has to hold what each of them keeps.
const IDLE_TIME: Duration = Duration::from_secs(30);

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
    idle: Arc<Kept>,
    away_until: Mutex<Option<Instant>>,
    answers: PhantomData<fn() -> A>,
}

/// Connections that wait for the next question.
#[derive(Debug, Default)]
struct Kept {
    conns: Idle<Conn>,
    quick: Idle<QuickConn>,
}

/// Each since when; the last one is taken first, so that those that are not needed grow old.
#[derive(Debug)]
struct Idle<C>(Mutex<Vec<(Instant, C)>>);

impl<C> Default for Idle<C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<C> Idle<C> {
    fn take(&self) -> Option<C> {
        self.0.lock().pop().map(|(_, conn)| conn)
    }

    fn keep(&self, conn: C) {
        let mut kept = self.0.lock();
        if kept.len() < IDLE {
            kept.push((Instant::now(), conn));
        }
    }

    fn close_older(&self, time: Duration) {
        self.0.lock().retain(|(since, _)| since.elapsed() < time);
    }
}

/// Closes idle connections, as long as there is somebody to ask on them.
async fn close_idle(kept: Weak<Kept>, time: Duration) {
    loop {
        tokio::time::sleep(time / 2).await;
        let Some(kept) = kept.upgrade() else { return };
        kept.conns.close_older(time);
        kept.quick.close_older(time);
    }
}

impl<Q: Serialize + Sync, A: DeserializeOwned> Asker<Q, A> {
    /// To be called on a runtime: idle connections are closed by a task.
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self::keeping(socket, IDLE_TIME)
    }

    fn keeping(socket: PathBuf, time: Duration) -> Self {
        let idle = Arc::default();
        tokio::spawn(close_idle(Arc::downgrade(&idle), time));
        Self { socket, greeting: None, idle, away_until: Mutex::default(), answers: PhantomData }
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
        let conn = match self.idle.quick.take() {
            Some(conn) => conn,
            None => QuickConn::connect(&self.socket).ok()?,
        };
        let (answer, fd, conn) = conn.ask(request, MOMENT).ok()??;
        self.idle.quick.keep(conn);
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
        if let Some(conn) = self.idle.conns.take() {
            if let Ok(answer) = self.ask_on(conn, request, fd).await {
                return Ok(answer);
            }
            // The daemon has restarted since; the other idle connections are as dead as this one.
            self.idle.conns.0.lock().clear();
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
        self.idle.conns.keep(conn);
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
            assert_eq!(worker.idle.conns.0.lock().len(), 1);
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

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn connections_that_are_not_used_are_closed() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("w.sock");
        let listener = Listener::bind(&socket, &[me()], 0o600).unwrap();
        let worker = Worker::keeping(socket, Duration::from_millis(100));
        let serving = tokio::spawn(async move {
            let mut ended = tokio::task::JoinSet::new();
            for _ in 0..2 {
                let conn = listener.accept().await;
                conn.recv::<Request>().await.unwrap().unwrap();
                let _ = conn.send(&Reply::Absent { owner: true }, None).await;
                ended.spawn(async move { !matches!(conn.recv::<Request>().await, Ok(Some(_))) });
            }
            ended.join_all().await
        });
        worker.ask(&open(1), None).await.unwrap();
        // May be too slow on a busy machine; its connection is closed then as well.
        let _ = tokio::task::block_in_place(|| worker.ask_now(&open(2)));
        let ended = tokio::time::timeout(Duration::from_secs(20), serving).await;
        assert_eq!(ended.expect("a connection stays open").unwrap(), [true, true]);
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
