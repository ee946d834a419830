//! Tells the worker of this node what pods read on other nodes, and hears which of these files it has copied since.
//!
//! One task and one connection per mount, from the first such read on. A read never waits for it: what the task cannot take is
//! not told. While there is no connection nothing is heard, so after it everything may be here.

use super::OpenFiles;
use larder_fuse::{
    fdpass::{Conn, FdPassError},
    protocol::worker::{Reply, Request},
};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc;

/// Reads that wait to be told. Who reads on is told of with its next read.
const WAITING: usize = 4096;
/// Reads are gathered for so long: a report per read would cost more than some reads.
const GATHER: Duration = Duration::from_millis(100);
/// Files in one report, so that it is no longer than a message may be.
const FILES: usize = 1000;
/// Between attempts to connect to a worker that is away.
const AWAY: Duration = Duration::from_secs(1);

/// Inode and bytes.
type Read = (u64, u64);

#[derive(Debug)]
pub(super) struct Reports {
    reads: mpsc::Sender<Read>,
}

impl Reports {
    /// Reports until it is dropped.
    pub(super) fn start(socket: &Path, snapshot: &str, session: u64, files: Arc<OpenFiles>) -> Self {
        let (reads, waiting) = mpsc::channel(WAITING);
        let reporter = Reporter { socket: socket.to_owned(), snapshot: snapshot.to_owned(), session, files, waiting };
        tokio::spawn(reporter.run());
        Self { reads }
    }

    /// So many bytes of the file were read on another node.
    pub(super) fn read(&self, inode: u64, bytes: u64) {
        // Full or not, the read is over.
        let _ = self.reads.try_send((inode, bytes));
    }
}

struct Reporter {
    socket: PathBuf,
    snapshot: String,
    session: u64,
    files: Arc<OpenFiles>,
    waiting: mpsc::Receiver<Read>,
}

impl Reporter {
    async fn run(mut self) {
        while let Some(first) = self.waiting.recv().await {
            if let Err(error) = self.talk(first).await {
                tracing::debug!(socket = %self.socket.display(), %error, "reads are not reported");
                tokio::time::sleep(AWAY).await;
            }
            self.files.forget_absent(self.session);
        }
    }

    /// Until the worker hangs up, or nobody reads any more.
    async fn talk(&mut self, first: Read) -> Result<(), FdPassError> {
        let conn = Conn::connect(&self.socket).await?;
        self.tell(&conn, first).await?;
        loop {
            tokio::select! {
                read = self.waiting.recv() => match read {
                    Some(read) => self.tell(&conn, read).await?,
                    None => return Ok(()),
                },
                heard = conn.recv() => match heard? {
                    Some((Reply::Arrived { inodes }, _)) => {
                        inodes.into_iter().for_each(|inode| self.files.arrived(self.session, inode));
                    }
                    _ => return Ok(()),
                },
            }
        }
    }

    /// Tells this read and those after it.
    async fn tell(&mut self, conn: &Conn, (inode, bytes): Read) -> Result<(), FdPassError> {
        tokio::time::sleep(GATHER).await;
        let mut files = HashMap::from([(inode, bytes)]);
        while files.len() < FILES
            && let Ok((inode, bytes)) = self.waiting.try_recv()
        {
            *files.entry(inode).or_default() += bytes;
        }
        let report = Request::Reads { snapshot: self.snapshot.clone(), files: files.into_iter().collect() };
        conn.send(&report, None).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_fuse::fdpass::Listener;
    use std::time::Instant;

    async fn reported(conn: &Conn) -> Vec<Read> {
        match conn.recv().await.unwrap().unwrap().0 {
            Request::Reads { snapshot, mut files } => {
                assert_eq!(snapshot, "s");
                files.sort_unstable();
                files
            }
            other => panic!("{other:?}"),
        }
    }

    async fn until(what: impl Fn() -> bool) {
        tokio::time::timeout(Duration::from_secs(10), async {
            while !what() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn reads_are_told_together_and_what_came_is_looked_for_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("w.sock");
        let listener = Listener::bind(&socket, &[nix::unistd::geteuid().as_raw()], 0o600).unwrap();
        let files = Arc::new(OpenFiles::new(8));
        let absent = |inode| files.set_absent(1, inode, Instant::now(), Duration::from_secs(60));
        let reports = Reports::start(&socket, "s", 1, Arc::clone(&files));
        [(7, 10), (8, 5), (7, 10)].into_iter().for_each(|(inode, bytes)| reports.read(inode, bytes));
        let conn = listener.accept().await;
        assert_eq!(reported(&conn).await, [(7, 20), (8, 5)]);
        [7, 8].into_iter().for_each(absent);
        conn.send(&Reply::Arrived { inodes: vec![7] }, None).await.unwrap();
        until(|| !files.is_absent(1, 7)).await;
        assert!(files.is_absent(1, 8));

        // Nobody tells what came while there was no connection.
        drop(conn);
        until(|| !files.is_absent(1, 8)).await;
        reports.read(9, 1);
        assert_eq!(reported(&listener.accept().await).await, [(9, 1)]);
    }

    #[tokio::test]
    async fn a_read_never_waits_for_a_worker_that_is_away() {
        let files = Arc::new(OpenFiles::new(8));
        let reports = Reports::start(Path::new("/nowhere/w.sock"), "s", 1, files);
        let started = Instant::now();
        (0..100_000).for_each(|inode| reports.read(inode, 1));
        assert!(started.elapsed() < Duration::from_secs(1));
    }
}
