//! Where the mount gets its bytes from: the worker in this process.

use larder_core::key::ObjectKey;
use larder_mount::{
    OpenFiles,
    backend::{Backend, Fetched, Place},
};
use larder_peer::{ObjectRef, ReadError, Source};
use larder_worker::embedded::Data;
use std::{
    fs::File,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long "not on the disk" is believed: the worker fetches a file at its first read.
const ABSENT: Duration = Duration::from_secs(1);
/// How long a local file is passed over that could not be read.
const REJECTED: Duration = Duration::from_secs(60);
/// There is one mount in this process.
const SESSION: u64 = 0;

/// Bytes of one snapshot.
pub(crate) struct LocalBackend {
    data: Data,
    dataset_uid: String,
    snapshot: String,
    files: OpenFiles,
}

impl LocalBackend {
    /// `open_files`: complete files that are kept open.
    pub fn new(data: Data, dataset_uid: &str, snapshot: &str, open_files: usize) -> Self {
        let (dataset_uid, snapshot) = (dataset_uid.to_owned(), snapshot.to_owned());
        Self { data, dataset_uid, snapshot, files: OpenFiles::new(open_files) }
    }
}

impl Backend for LocalBackend {
    fn known_file(&self, inode: u64) -> Option<Arc<File>> {
        if let Some(file) = self.files.get(SESSION, inode) {
            return Some(file);
        }
        if self.files.is_absent(SESSION, inode) {
            return None;
        }
        let file = Arc::new(self.data.file_now(&self.snapshot, inode)?);
        self.files.insert(SESSION, inode, Arc::clone(&file));
        Some(file)
    }

    async fn find_file(&self, inode: u64) -> Option<Arc<File>> {
        if let Some(file) = self.files.get(SESSION, inode) {
            return Some(file); // another read has just found it
        }
        if self.files.is_absent(SESSION, inode) {
            return None;
        }
        let asked = Instant::now();
        let Some(file) = self.data.file(&self.snapshot, inode).await.map(Arc::new) else {
            self.files.set_absent(SESSION, inode, asked, ABSENT);
            return None;
        };
        self.files.insert(SESSION, inode, Arc::clone(&file));
        Some(file)
    }

    fn reject_file(&self, inode: u64) {
        self.files.set_absent(SESSION, inode, Instant::now(), REJECTED);
    }

    async fn fetch(
        &self,
        inode: u64,
        key: ObjectKey,
        range: Range<u64>,
        until: tokio::time::Instant,
    ) -> Result<Fetched, ReadError> {
        let object = ObjectRef { dataset_uid: &self.dataset_uid, snapshot: &self.snapshot, inode, key };
        let (source, bytes) = self.data.read(&object, range, until).await?;
        let place = match source {
            Source::Disk => Place::Local,
            Source::Origin => Place::Origin,
        };
        Ok(Fetched { bytes, place })
    }
}
