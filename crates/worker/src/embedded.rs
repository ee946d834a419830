//! A worker inside another process: the only member, on no network, given its orders by calls.
//!
//! ```text
//! open ─► configure ─► start ─┬─ status:   listing and preload, as the operator would see them
//!                             ├─ file:     complete local files
//!                             └─ read:     any range, fetched from the origin if need be
//! ```
//!
//! It keeps the same folder in the same form as a worker of a cluster. When the process dies, the next one goes on where the
//! disk says.

use crate::{
    connection::Keys,
    control,
    folder::FolderError,
    jobs, local,
    metrics::Metrics,
    objects,
    orders::{Orders, OrdersError},
    worker::{Disk, OpenError as Inner, Settings, Worker},
};
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt as _;
use larder_cache::Floor;
use larder_core::{
    catalog::Catalog,
    placement::{Member, Members},
};
use larder_fuse::protocol::worker::Reply;
use larder_origin::Access;
use larder_peer::{Body, DENIED_PAUSE, ObjectRef, ObjectRequest, ReadError, Refusal, Roster, Source};
use larder_proto::control::v1 as pb;
use std::{fs::File, io, num::NonZeroU64, ops::Range, os::unix::fs::FileExt as _, path::PathBuf, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinSet, time::Instant};

/// Name of the only member.
const NODE: &str = "local";
/// Pause between attempts at a read, doubled from the first to the second value.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// What an embedded worker is made from.
#[derive(Clone, Debug)]
pub struct Options {
    /// UID of the dataset.
    pub dataset_uid: String,
    /// Folder of the dataset on each disk; the folders above them must be there.
    pub dirs: Vec<PathBuf>,
    /// Longest wait for another process that uses the folder.
    pub lock_wait: Duration,
    /// What the origin is reached with.
    pub access: Access,
    /// Space on each disk that stays free.
    pub floor: Floor,
    /// Bytes in flight from the origin at the same time.
    pub in_flight: u64,
}

/// Why there is no worker.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the folder.
    #[error("folder {} is in use by another process of this dataset", .0.display())]
    InUse(PathBuf),
    /// The disk.
    #[error("{0}")]
    Disk(String),
}

/// Orders that make no sense.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ConfigureError(#[from] OrdersError);

/// The worker.
pub struct Embedded {
    worker: Arc<Worker>,
    jobs: JoinSet<()>,
    /// The member list never changes; who watches it must not find its sender gone.
    _roster: watch::Sender<Arc<Roster>>,
}

impl Embedded {
    /// Takes the folder over. Nothing is done yet: orders of an earlier process wait for [`Self::start`] too.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        let member = Member { node: NODE.to_owned(), weight: 1, since: 1, leaving: false };
        let members = Members { generation: 1, members: vec![member], ..Members::default() };
        let (roster, watch) = watch::channel(Arc::new(Roster { members, ..Roster::default() }));
        let disk = |dir: &PathBuf| Disk { dir: dir.clone(), floor: options.floor };
        let settings = Settings {
            node: NODE.to_owned(),
            dataset_uid: options.dataset_uid,
            disks: options.dirs.iter().map(disk).collect(),
            keys: Keys::Given(options.access),
            lock_wait: options.lock_wait,
            in_flight: options.in_flight,
            scrub: NonZeroU64::new(crate::SCRUB),
            peer: larder_peer::Options::default(),
        };
        let opened = tokio::task::spawn_blocking(move || Worker::open(settings, watch, Metrics::default())).await;
        let opened = opened.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
        let worker = opened.map_err(|e| match e {
            Inner::Folder(FolderError::Locked { path, .. }) => OpenError::InUse(path.parent().unwrap_or(&path).to_owned()),
            e => OpenError::Disk(e.to_string()),
        })?;
        Ok(Self { worker: Arc::new(worker), jobs: JoinSet::new(), _roster: roster })
    }

    /// Replaces the orders.
    ///
    /// # Errors
    /// Orders that no operator would give.
    pub async fn configure(&self, config: pb::Config) -> Result<(), ConfigureError> {
        let orders = Orders::try_from(pb::ConfigureRequest { config: Some(config) })?;
        self.worker.configure(orders).await;
        Ok(())
    }

    /// Begins to do what is ordered.
    pub fn start(&mut self) {
        if self.jobs.is_empty() {
            self.jobs = jobs::start(&self.worker);
        }
    }

    /// What it has and does.
    #[must_use]
    pub fn status(&self) -> pb::StatusResponse {
        control::status(&self.worker)
    }

    /// Where bytes are read.
    #[must_use]
    pub fn data(&self) -> Data {
        Data(Arc::clone(&self.worker))
    }

    /// Ends all jobs and writes what survives the process.
    pub async fn close(mut self) {
        self.jobs.shutdown().await;
        self.worker.cache.close().await;
        if let Err(error) = self.worker.save_state().await {
            tracing::warn!(%error, "counters are not saved");
        }
    }
}

/// The bytes that an embedded worker gives.
#[derive(Clone)]
pub struct Data(Arc<Worker>);

impl Data {
    /// The catalog of a snapshot, if it is here.
    #[must_use]
    pub fn catalog(&self, snapshot: &str) -> Option<Arc<Catalog<File>>> {
        self.0.catalogs.get(snapshot)
    }

    /// The complete local file, if it is here and needs no more than to be opened. Blocks for the disk only.
    #[must_use]
    pub fn file_now(&self, snapshot: &str, inode: u64) -> Option<File> {
        let catalog = self.0.catalogs.get(snapshot)?;
        local::open_now(&self.0, &catalog, inode).ok()??.1
    }

    /// The complete local file, if it is here.
    pub async fn file(&self, snapshot: &str, inode: u64) -> Option<File> {
        match local::open(&self.0, snapshot, inode).await {
            (Reply::File {}, file) => file,
            (Reply::Absent { .. }, _) => None,
            (reply, _) => {
                tracing::warn!(snapshot, inode, ?reply, "the worker does not give the file");
                None
            }
        }
    }

    /// A range of a file: from the disk, else from the origin, tried again and again until then.
    ///
    /// # Errors
    /// Those of a read between nodes.
    pub async fn read(&self, object: &ObjectRef<'_>, range: Range<u64>, until: Instant) -> Result<(Source, Bytes), ReadError> {
        let (started, mut pause, mut denied) = (Instant::now(), PAUSE.0, false);
        loop {
            let last = match tokio::time::timeout_at(until, self.attempt(object, range.clone())).await {
                Ok(Ok(read)) => return Ok(read),
                Ok(Err(refusal)) => refusal,
                Err(_) => Refusal::Unavailable("no answer of the origin".to_owned()),
            };
            let key = object.key.to_string();
            match last {
                Refusal::Changed(detail) => return Err(ReadError::Changed { key, detail }),
                Refusal::OriginDenied(detail) if denied || Instant::now() + DENIED_PAUSE >= until => {
                    return Err(ReadError::OriginDenied { key, detail });
                }
                Refusal::OriginDenied(_) => {
                    denied = true;
                    tokio::time::sleep(DENIED_PAUSE).await;
                    continue;
                }
                e @ Refusal::Range { .. } => {
                    return Err(ReadError::Range { key, start: range.start, end: range.end, detail: e.to_string() });
                }
                last if Instant::now() + pause >= until => {
                    return Err(ReadError::Exhausted { key, waited: started.elapsed(), last: last.to_string() });
                }
                _ => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    async fn attempt(&self, object: &ObjectRef<'_>, range: Range<u64>) -> Result<(Source, Bytes), Refusal> {
        let request = ObjectRequest {
            dataset_uid: object.dataset_uid.to_owned(),
            snapshot: object.snapshot.to_owned(),
            inode: object.inode,
            key: object.key,
            range: range.clone(),
            stand_in: false,
            on_disk: false,
            // Nobody looks at them afterwards.
            check: true,
        };
        let reply = objects::answer(&self.0, request).await?;
        // A later piece may be refused too.
        let failed = |e: io::Error| Refusal::Unavailable(format!("read {}: {e}", object.key));
        let bytes = whole(reply.body, range).await.map_err(|e| e.downcast().unwrap_or_else(failed))?;
        Ok((reply.source, bytes))
    }
}

async fn whole(body: Body, range: Range<u64>) -> io::Result<Bytes> {
    let len = usize::try_from(range.end - range.start).map_err(|_| io::ErrorKind::InvalidInput)?;
    let bytes = match body {
        Body::Bytes(bytes) => bytes,
        Body::File(file) => {
            let read = move || {
                let mut buffer = vec![0; len];
                file.read_exact_at(&mut buffer, range.start).map(|()| Bytes::from(buffer))
            };
            tokio::task::spawn_blocking(read).await.unwrap_or_else(|e| Err(io::Error::other(e)))?
        }
        Body::Stream(mut pieces) => {
            let mut all = BytesMut::with_capacity(len);
            while let Some(piece) = pieces.try_next().await? {
                all.extend_from_slice(&piece);
            }
            all.freeze()
        }
    };
    if bytes.len() == len { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
