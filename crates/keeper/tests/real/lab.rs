//! A socket in a folder of its own, and keepers on it, one after the other.

use larder_fuse::{
    fdpass::Conn,
    protocol::keeper::{Reply, Request, Value},
};
use larder_keeper::{Keeper, client::Held, metrics::Metrics};
use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

/// Longest wait for what must come.
pub const WAIT: Duration = Duration::from_secs(20);

pub struct Lab {
    _dir: tempfile::TempDir,
    pub socket: PathBuf,
    keeper: Option<JoinHandle<()>>,
}

impl Lab {
    /// Without a keeper.
    pub fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { socket: dir.path().join("keeper.sock"), _dir: dir, keeper: None }
    }

    pub fn new() -> Self {
        let mut lab = Self::empty();
        lab.start();
        lab
    }

    pub fn start(&mut self) {
        let me = nix::unistd::geteuid().as_raw();
        let keeper = Keeper::bind(&self.socket, &[me], Metrics::default()).unwrap();
        self.keeper = Some(tokio::spawn(keeper.serve()));
    }

    pub async fn kill(&mut self) {
        let keeper = self.keeper.take().unwrap();
        keeper.abort();
        assert!(keeper.await.unwrap_err().is_cancelled());
    }

    pub fn held(&self) -> Held {
        Held::start(self.socket.clone())
    }

    /// What the keeper itself says that it holds.
    pub async fn keys(&self) -> Vec<String> {
        match self.ask(Request::Keys { after: String::new() }).await.0 {
            Reply::Keys { keys, .. } => keys.into_iter().map(|(key, _)| key).collect(),
            reply => panic!("{reply:?}"),
        }
    }

    pub async fn value(&self, key: &str) -> Option<String> {
        match self.ask(Request::Get { key: key.into() }).await.0 {
            Reply::Item { value: Value(value), .. } => Some(value),
            _ => None,
        }
    }

    pub async fn until_keys(&self, expected: &[&str]) {
        let deadline = Instant::now() + WAIT;
        loop {
            let keys = self.keys().await;
            if keys == expected {
                return;
            }
            assert!(Instant::now() < deadline, "the keeper has {keys:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn ask(&self, request: Request) -> (Reply, Option<OwnedFd>) {
        ask(&self.socket, request).await.unwrap()
    }
}

/// None: hung up.
pub async fn ask(socket: &Path, request: Request) -> Option<(Reply, Option<OwnedFd>)> {
    let conn = Conn::connect(socket).await.unwrap();
    conn.send(&request, None).await.ok()?;
    conn.recv().await.ok()?
}

pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
