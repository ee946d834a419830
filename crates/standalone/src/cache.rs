//! The cache of a dataset on this machine: an embedded worker with its orders.

use crate::dataset::Dataset;
use larder_cache::Floor;
use larder_origin::Access;
use larder_proto::control::v1::{self as pb, Phase};
use larder_worker::embedded::{ConfigureError, Data, Embedded, OpenError, Options};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Bytes in flight from the origin.
const IN_FLIGHT: u64 = 64 << 20;
/// A process that was just told to unmount gets so long to end.
const LOCK_WAIT: Duration = Duration::from_secs(3);
/// Between looks at what the worker does.
const LOOK: Duration = Duration::from_millis(10);

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CacheError {
    #[error("make cache folder {}: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error(
        "cache {} is in use by another larder process of this machine: this dataset is mounted or being preloaded already",
        .0.display()
    )]
    InUse(PathBuf),
    #[error("open cache: {0}")]
    Open(String),
    #[error(transparent)]
    Configure(#[from] ConfigureError),
    #[error("list the origin: {message} ({reason})")]
    Listing { reason: String, message: String },
    #[error("preload: {message} ({reason}; {files} files failed; what is on disk stays)")]
    Preload { reason: String, message: String, files: u64 },
    #[error("no file of the snapshot matches spec.preload.paths ({}); folders end in a slash, paths begin without one", .0.join(", "))]
    NothingToPreload(Vec<String>),
}

/// The snapshot that is used.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub digest: String,
    pub files: u64,
    pub bytes: u64,
    pub skipped: u64,
    /// Some of them, with the reason.
    pub examples: Vec<String>,
    /// Seconds since 1970.
    pub time: i64,
    /// Was it taken just now?
    pub fresh: bool,
}

/// An open cache. Nobody else can open it until it is closed.
pub(crate) struct Cache {
    worker: Embedded,
    config: pb::Config,
    listing: String,
}

impl Cache {
    pub async fn open(dataset: &Dataset, access: Access) -> Result<Self, CacheError> {
        let dirs: Vec<_> = dataset.dirs().collect();
        for (disk, dir) in dataset.disks.iter().zip(&dirs) {
            make_folders(&disk.tier, dir)?;
        }
        let options = Options {
            dataset_uid: dataset.uid.clone(),
            dirs,
            lock_wait: LOCK_WAIT,
            access,
            floor: Floor::default(),
            in_flight: IN_FLIGHT,
        };
        let worker = Embedded::open(options).await.map_err(|e| match e {
            OpenError::InUse(dir) => CacheError::InUse(dir),
            OpenError::Disk(text) => CacheError::Open(text),
        })?;
        let config = pb::Config {
            generation: "local".to_owned(),
            source: Some(dataset.source()),
            quota_bytes: dataset.disks.iter().map(|disk| disk.quota).fold(0, u64::saturating_add),
            disk_quota_bytes: dataset.disks.iter().map(|disk| disk.quota).collect(),
            preload_paths: dataset.spec.preload.paths.clone(),
            preload_bandwidth: dataset.bandwidth,
            ..pb::Config::default()
        };
        Ok(Self { worker, config, listing: dataset.listing() })
    }

    /// The snapshot taken last of this very source; a new one if there is none, or if it is to be refreshed. From then on it is
    /// preloaded if that is wanted.
    pub async fn snapshot(&mut self, refresh: bool, preload: bool) -> Result<Snapshot, CacheError> {
        // A refreshed listing has another id each time.
        let same =
            |id: &str| id.strip_prefix(self.listing.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        let prior = self.worker.status().listing.filter(|l| !refresh && l.phase() == Phase::Succeeded && same(&l.id));
        let fresh = prior.is_none();
        let listing = match prior {
            Some(listing) => listing,
            None => self.list(refresh).await?,
        };
        self.config.listing_id = listing.id;
        self.config.snapshot.clone_from(&listing.snapshot);
        self.config.preload = preload;
        self.worker.configure(self.config.clone()).await?;
        self.worker.start();
        let pb::Listing { snapshot: digest, files, bytes, skipped, skipped_examples: examples, time, .. } = listing;
        Ok(Snapshot { digest, files, bytes, skipped, examples, time, fresh })
    }

    async fn list(&mut self, refresh: bool) -> Result<pb::Listing, CacheError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
        let id = if refresh { format!("{}.{now}", self.listing) } else { self.listing.clone() };
        self.worker.configure(pb::Config { listing_id: id.clone(), ..self.config.clone() }).await?;
        self.worker.start();
        loop {
            let Some(listing) = self.worker.status().listing.filter(|l| l.id == id) else {
                tokio::time::sleep(LOOK).await;
                continue;
            };
            match listing.phase() {
                Phase::Succeeded => return Ok(listing),
                Phase::Failed => {
                    let pb::Problem { reason, message } = listing.problem.unwrap_or_default();
                    return Err(CacheError::Listing { reason, message });
                }
                Phase::Running | Phase::Unspecified => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Waits until every file is on the disk; `tell` hears how far it is, again and again. What an attempt goes on in spite of (an origin
    /// that is away for a while) is for it to tell; the first attempt that has ended without everything is an error. Gives what there is then.
    pub async fn preloaded(&self, mut tell: impl FnMut(&pb::Preload)) -> Result<pb::Preload, CacheError> {
        loop {
            if let Some(preload) = self.worker.status().preload.filter(|p| p.snapshot == self.config.snapshot) {
                tell(&preload);
                match preload.phase() {
                    // Paths that name nothing are a mistake, not a preload that is done.
                    Phase::Succeeded if preload.files_total == 0 && !self.config.preload_paths.is_empty() => {
                        return Err(CacheError::NothingToPreload(self.config.preload_paths.clone()));
                    }
                    Phase::Succeeded => return Ok(preload),
                    Phase::Failed if preload.attempts > 0 => {
                        let pb::Problem { reason, message } = preload.problem.unwrap_or_default();
                        return Err(CacheError::Preload { reason, message, files: preload.files_failed });
                    }
                    Phase::Failed | Phase::Running | Phase::Unspecified => {}
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub fn data(&self) -> Data {
        self.worker.data()
    }

    pub fn origin_bytes(&self) -> u64 {
        self.worker.status().origin_bytes
    }

    pub async fn close(self) {
        self.worker.close().await;
    }
}

/// The folder of the cache, if the one above it is there, and the one of all datasets in it.
fn make_folders(tier: &Path, dir: &Path) -> Result<(), CacheError> {
    for path in [Some(tier), dir.parent()].into_iter().flatten() {
        match fs::create_dir(path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(CacheError::Folder { path: path.to_owned(), source });
            }
            _ => {}
        }
    }
    Ok(())
}
