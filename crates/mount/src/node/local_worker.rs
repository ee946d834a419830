//! Questions to the worker of this node, over its unix socket.

use larder_fuse::{
    fdpass::{Conn, FdPassError},
    protocol::worker::{Reply, Request},
};
use parking_lot::Mutex;
use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Longest wait for an answer: then peers are asked.
const PATIENCE: Duration = Duration::from_secs(1);
/// A worker that did not answer is not asked again for this long.
const AWAY: Duration = Duration::from_secs(1);
/// Idle connections kept. The worker answers in well under a millisecond, so few are in use at a time.
const IDLE: usize = 8;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error(transparent)]
    Conn(#[from] FdPassError),
    #[error("worker at {} hung up", .0.display())]
    HungUp(PathBuf),
    #[error("worker at {} did not answer within {PATIENCE:?}", .0.display())]
    Silent(PathBuf),
    #[error("worker at {} did not answer a moment ago", .0.display())]
    Away(PathBuf),
}

/// The worker of one dataset on this node, which may be missing or come back at any time.
#[derive(Debug)]
pub(crate) struct LocalWorker {
    socket: PathBuf,
    idle: Mutex<Vec<Conn>>,
    away_until: Mutex<Option<Instant>>,
}

impl LocalWorker {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket, idle: Mutex::default(), away_until: Mutex::default() }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks and waits for the answer, at most a second.
    pub(crate) async fn ask(&self, request: &Request) -> Result<(Reply, Option<OwnedFd>), AskError> {
        if self.away_until.lock().is_some_and(|until| Instant::now() < until) {
            return Err(AskError::Away(self.socket.clone()));
        }
        let answer = tokio::time::timeout(PATIENCE, self.ask_once_or_twice(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(AskError::Silent(self.socket.clone())));
        *self.away_until.lock() = answer.is_err().then(|| Instant::now() + AWAY);
        answer
    }

    async fn ask_once_or_twice(&self, request: &Request) -> Result<(Reply, Option<OwnedFd>), AskError> {
        let idle = self.idle.lock().pop();
        if let Some(conn) = idle {
            if let Ok(answer) = self.ask_on(conn, request).await {
                return Ok(answer);
            }
            // The worker has restarted since; the other idle connections are as dead as this one.
            self.idle.lock().clear();
        }
        self.ask_on(Conn::connect(&self.socket).await?, request).await
    }

    async fn ask_on(&self, conn: Conn, request: &Request) -> Result<(Reply, Option<OwnedFd>), AskError> {
        conn.send(request, None).await?;
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
    use larder_fuse::fdpass::Listener;

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
    async fn a_worker_that_restarted_is_asked_again_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("w.sock");
        let worker = LocalWorker::new(socket.clone());
        for owner in [true, false, true] {
            let listener = Listener::bind(&socket, &[me()], 0o600).unwrap();
            let request = open(1);
            let (answer, ()) = tokio::join!(worker.ask(&request), answer_one(&listener, Reply::Absent { owner }));
            assert_eq!(answer.unwrap().0, Reply::Absent { owner });
            assert_eq!(worker.idle.lock().len(), 1);
        }
    }

    #[tokio::test]
    async fn a_worker_that_hangs_costs_one_second_and_not_one_per_read() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("w.sock");
        let _listener = Listener::bind(&socket, &[me()], 0o600).unwrap();
        let worker = LocalWorker::new(socket);
        assert!(matches!(worker.ask(&open(1)).await, Err(AskError::Silent(_))));
        let before = Instant::now();
        assert!(matches!(worker.ask(&open(2)).await, Err(AskError::Away(_))));
        assert!(before.elapsed() < Duration::from_millis(200));
    }
}
