//! The backend of a real node: complete files from the local worker as descriptors, everything else from workers over HTTP.

mod open_files;
mod reports;

pub use open_files::OpenFiles;

use crate::{
    asker::Asker,
    backend::{Backend, Fetched, Place},
};
use larder_core::key::ObjectKey;
use larder_fuse::protocol::worker::{Reply, Request};
use larder_members::Watch;
use larder_peer::{Client, ObjectRef, ReadError, Source};
use larder_trust::Tokens;
use prometheus_client::metrics::counter::Counter;
use reports::Reports;
use std::{
    fs::File,
    ops::Range,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long "not here" is believed when this node owns the file: its worker fetches it at the first read.
const ABSENT_AT_OWNER: Duration = Duration::from_secs(1);
/// And when another node does: when a copy of it has come here, the worker tells.
const ABSENT: Duration = Duration::from_secs(60);

/// What all mounts of this node share.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) name: Arc<str>,
    pub(crate) peers: Client,
    /// What the mounter shows to workers; `peers` has the same.
    pub(crate) tokens: Tokens,
    pub(crate) members: Watch,
    pub(crate) files: Arc<OpenFiles>,
}

/// The worker of one dataset on this node.
pub(crate) type LocalWorker = Asker<Request, Reply>;

/// Bytes of one mounted snapshot.
pub(crate) struct NodeBackend {
    node: Node,
    /// Number of the session: two sessions of one identity share nothing.
    session: u64,
    dataset_uid: String,
    snapshot: String,
    worker: LocalWorker,
    reports: Reports,
    /// Bytes that two nodes were asked for.
    hedged: Counter,
}

impl NodeBackend {
    /// To be called on a runtime: reads are reported by a task.
    pub(crate) fn new(
        node: Node,
        session: u64,
        dataset_uid: &str,
        snapshot: &str,
        worker: LocalWorker,
        hedged: Counter,
    ) -> Self {
        let reports = Reports::start(worker.socket(), snapshot, session, Arc::clone(&node.files));
        Self { node, session, dataset_uid: dataset_uid.to_owned(), snapshot: snapshot.to_owned(), worker, reports, hedged }
    }
}

impl NodeBackend {
    fn request(&self, inode: u64) -> Request {
        Request::Open { snapshot: self.snapshot.clone(), inode }
    }

    /// What the worker said when it was asked for a file, remembered.
    fn found(&self, inode: u64, asked: Instant, reply: Reply, fd: Option<OwnedFd>) -> Option<Arc<File>> {
        let files = &self.node.files;
        match (reply, fd) {
            (Reply::File {}, Some(fd)) => {
                let file = Arc::new(File::from(fd));
                files.insert(self.session, inode, Arc::clone(&file));
                Some(file)
            }
            (Reply::Absent { owner }, _) => {
                files.set_absent(self.session, inode, asked, if owner { ABSENT_AT_OWNER } else { ABSENT });
                None
            }
            (reply, _) => {
                tracing::warn!(
                    dataset = self.dataset_uid,
                    inode,
                    ?reply,
                    "local worker did not give the file; reading over the network"
                );
                files.set_absent(self.session, inode, asked, ABSENT_AT_OWNER);
                None
            }
        }
    }
}

impl Drop for NodeBackend {
    fn drop(&mut self) {
        self.node.files.forget_session(self.session);
    }
}

impl Backend for NodeBackend {
    fn known_file(&self, inode: u64) -> Option<Arc<File>> {
        let files = &self.node.files;
        if let Some(file) = files.get(self.session, inode) {
            return Some(file);
        }
        if files.is_absent(self.session, inode) {
            return None;
        }
        let asked = Instant::now();
        let (reply, fd) = self.worker.ask_now(&self.request(inode))?;
        self.found(inode, asked, reply, fd)
    }

    async fn find_file(&self, inode: u64) -> Option<Arc<File>> {
        let files = &self.node.files;
        if let Some(file) = files.get(self.session, inode) {
            return Some(file); // another read has just found it
        }
        if files.is_absent(self.session, inode) {
            return None;
        }
        let asked = Instant::now();
        match self.worker.ask(&self.request(inode), None).await {
            Ok((reply, fd)) => self.found(inode, asked, reply, fd),
            // Not remembered by inode: the worker as a whole is away, and `ask` remembers that.
            Err(error) => {
                tracing::debug!(dataset = self.dataset_uid, inode, %error, "local worker does not answer");
                None
            }
        }
    }

    fn reject_file(&self, inode: u64) {
        self.node.files.set_absent(self.session, inode, Instant::now(), ABSENT);
    }

    async fn fetch(
        &self,
        inode: u64,
        key: ObjectKey,
        range: Range<u64>,
        until: tokio::time::Instant,
    ) -> Result<Fetched, ReadError> {
        let object = ObjectRef { dataset_uid: &self.dataset_uid, snapshot: &self.snapshot, inode, key };
        let rosters = || self.node.members.roster(&self.dataset_uid);
        let fetched = self.node.peers.read_until(&rosters, &object, range, until).await?;
        if fetched.hedged {
            self.hedged.inc_by(fetched.bytes.len() as u64);
        }
        let elsewhere = *fetched.node != *self.node.name;
        if elsewhere {
            self.reports.read(inode, fetched.bytes.len() as u64);
        }
        let place = match fetched.source {
            Source::Origin => Place::Origin,
            Source::Disk if elsewhere => Place::Peer,
            Source::Disk => Place::Local,
        };
        Ok(Fetched { bytes: fetched.bytes, place })
    }
}
