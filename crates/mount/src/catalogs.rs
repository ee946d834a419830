//! The catalogs of mounted snapshots.
//!
//! The worker of this node gives its own file: a descriptor stays readable when the file is replaced, unlinked or erased, so
//! nothing is copied and a mount is ready at once, whatever the size. Only without such a worker the catalog comes over the
//! network; it is verified whole while it comes, and kept in a file without a name.
//!
//! Sections are verified as they are read. A damaged one fails its request; then another copy is fetched, and the open mount
//! goes on with that one: positions in it are the same.

use crate::node::{LocalWorker, Node};
use larder_core::{
    catalog::{Catalog, CatalogError},
    names,
};
use larder_fuse::protocol::worker::{Reply, Request};
use larder_peer::CatalogFetchError;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    task::{JoinError, spawn_blocking},
};

/// Why there is no catalog.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CatalogsError {
    #[error("make folder of catalogs {} usable: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("open catalog {digest}: {source}")]
    Open { digest: String, source: CatalogError },
    #[error(transparent)]
    Fetch(#[from] CatalogFetchError),
    #[error("opening catalog {digest} was interrupted: {source}")]
    Task { digest: String, source: JoinError },
}

/// Between copies fetched in place of a damaged one: bounds what a disk that damages all of them can cost.
const HEAL_PAUSE: Duration = Duration::from_secs(5);

type Slot = Arc<tokio::sync::Mutex<Weak<Catalog<File>>>>;

/// All catalogs of this mounter.
pub(crate) struct Catalogs {
    copies: Copies,
    /// One slot per digest; its lock makes everyone who wants the same catalog wait for one fetch.
    slots: Mutex<HashMap<String, Slot>>,
}

impl Catalogs {
    /// Empties the folder: what is in there was never finished.
    pub(crate) fn open(folder: &Path, run_dir: &Path, node: Node) -> Result<Self, CatalogsError> {
        let empty = || -> io::Result<()> {
            fs::create_dir_all(folder)?;
            fs::read_dir(folder)?.try_for_each(|entry| fs::remove_file(entry?.path()))
        };
        empty().map_err(|source| CatalogsError::Folder { path: folder.to_owned(), source })?;
        Ok(Self { copies: Copies { folder: folder.into(), run_dir: run_dir.into(), node }, slots: Mutex::default() })
    }

    /// The catalog. `digest` and `dataset_uid` have been checked to be what they are called.
    pub(crate) async fn get(&self, dataset_uid: &str, digest: &str) -> Result<Arc<Catalog<File>>, CatalogsError> {
        let slot = Arc::clone(self.slots.lock().entry(digest.to_owned()).or_default());
        let mut held = slot.lock().await;
        if let Some(catalog) = held.upgrade() {
            return Ok(catalog);
        }
        let catalog = match self.copies.of_local_worker(dataset_uid, digest).await {
            Some(catalog) => catalog,
            None => {
                let file = self.copies.fetch(dataset_uid, digest).await?;
                blocking(digest, |digest| Catalog::open_as(file, digest)).await?
            }
        };
        Ok(self.share(catalog, dataset_uid, &mut held))
    }

    /// The catalog, of a file that another mounter has left; nobody is asked for it.
    pub(crate) async fn adopt(&self, dataset_uid: &str, digest: &str, file: File) -> Result<Arc<Catalog<File>>, CatalogsError> {
        let slot = Arc::clone(self.slots.lock().entry(digest.to_owned()).or_default());
        let mut held = slot.lock().await;
        if let Some(catalog) = held.upgrade() {
            return Ok(catalog);
        }
        let catalog = blocking(digest, |digest| Catalog::open_as(file, digest)).await?;
        Ok(self.share(catalog, dataset_uid, &mut held))
    }

    fn share(&self, catalog: Catalog<File>, dataset_uid: &str, held: &mut Weak<Catalog<File>>) -> Arc<Catalog<File>> {
        let catalog = Arc::new(catalog);
        let digest = catalog.digest();
        let (copies, uid, name) = (self.copies.clone(), dataset_uid.to_owned(), digest.to_owned());
        keep_whole(&catalog, HEAL_PAUSE, move || {
            let (copies, uid, name) = (copies.clone(), uid.clone(), name.clone());
            async move { copies.fetch(&uid, &name).await }
        });
        *held = Arc::downgrade(&catalog);
        catalog
    }

    /// Forgets a catalog that nobody has any more.
    pub(crate) fn release(&self, digest: &str) {
        let mut slots = self.slots.lock();
        // A slot that is locked is about to be used.
        if slots.get(digest).is_some_and(|s| s.try_lock().is_ok_and(|weak| weak.strong_count() == 0)) {
            slots.remove(digest);
        }
    }
}

/// Replaces the file of the catalog whenever it turns out to be damaged, as long as somebody has it open.
fn keep_whole<F>(catalog: &Arc<Catalog<File>>, pause: Duration, another: impl Fn() -> F + Send + 'static)
where
    F: Future<Output = Result<File, CatalogsError>> + Send,
{
    let (damaged, mut told) = mpsc::channel(1);
    catalog.on_damage(move |error| {
        // Full: told already, and not dealt with yet.
        if damaged.try_send(()) != Err(TrySendError::Full(())) {
            tracing::error!(%error, "the catalog of a mount is damaged; fetching another copy");
        }
    });
    let catalog = Arc::downgrade(catalog);
    tokio::spawn(async move {
        // Ends with the catalog, which has the sender.
        while told.recv().await.is_some() {
            let Some(catalog) = catalog.upgrade() else { return };
            let digest = catalog.digest().to_owned();
            let healed = match another().await {
                Ok(file) => blocking(&digest, move |_| catalog.replace(file)).await,
                Err(e) => Err(e),
            };
            match healed {
                Ok(()) => tracing::info!(digest, "the mount goes on with another copy of its catalog"),
                Err(error) => {
                    tracing::warn!(digest, %error, "no other copy of a damaged catalog yet; its next read asks again")
                }
            }
            tokio::time::sleep(pause).await;
        }
    });
}

/// Where catalogs come from.
#[derive(Clone)]
struct Copies {
    folder: Arc<Path>,
    run_dir: Arc<Path>,
    node: Node,
}

impl Copies {
    /// The one of this node's worker, if it has it.
    async fn of_local_worker(&self, dataset_uid: &str, digest: &str) -> Option<Catalog<File>> {
        let worker = LocalWorker::new(names::worker_socket(&self.run_dir, dataset_uid));
        let file = match worker.ask(&Request::Catalog { digest: digest.to_owned() }, None).await {
            Ok((Reply::File {}, Some(fd))) => File::from(fd),
            Ok((reply, _)) => {
                tracing::debug!(digest, ?reply, "local worker has no such catalog");
                return None;
            }
            Err(error) => {
                tracing::debug!(digest, %error, "local worker does not answer");
                return None;
            }
        };
        let opened = blocking(digest, |digest| Catalog::open_as(file, digest)).await;
        opened
            .inspect_err(|error| {
                tracing::warn!(digest, %error, "local worker's catalog is not usable; fetching it over the network");
            })
            .ok()
    }

    /// A copy of this process's own, verified whole. It has no name and goes with its descriptor.
    async fn fetch(&self, dataset_uid: &str, digest: &str) -> Result<File, CatalogsError> {
        let (roster, path) = (self.node.members.roster(dataset_uid), self.folder.join(digest));
        self.node.peers.catalog(&roster, dataset_uid, digest, &path).await?;
        blocking(digest, move |_| {
            let file = File::open(&path)?;
            fs::remove_file(&path)?;
            Ok(file)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    digest: &str,
    run: impl FnOnce(&str) -> Result<T, CatalogError> + Send + 'static,
) -> Result<T, CatalogsError> {
    let name = digest.to_owned();
    let done = spawn_blocking(move || run(&name)).await;
    let done = done.map_err(|source| CatalogsError::Task { digest: digest.to_owned(), source })?;
    done.map_err(|source| CatalogsError::Open { digest: digest.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_core::catalog::{Builder, Listed};
    use std::{
        io::Write as _,
        sync::atomic::{AtomicU32, Ordering::Relaxed},
        time::Instant,
    };

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[tokio::test]
    async fn an_open_catalog_heals_when_another_copy_can_be_had() {
        let mut builder = Builder::new("s3://b/");
        for i in 0..1000 {
            builder.push(Listed { path: format!("d/{i:04}"), size: i, mtime_ns: 0, version: "v".into() });
        }
        let (good, _) = builder.finish();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        let catalog = Arc::new(Catalog::open(file(&bad)).unwrap());
        let asked = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&asked);
        // The first answer is another catalog, the second one is right.
        keep_whole(&catalog, Duration::from_millis(1), move || {
            let other = Builder::new("s3://other/").finish().0;
            let copy = file(if count.fetch_add(1, Relaxed) == 0 { &other } else { &good });
            async { Ok(copy) }
        });
        let damaged = (0..catalog.entries()).find(|i| catalog.entry(*i).is_err()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while catalog.entry(damaged).is_err() {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!((asked.load(Relaxed), catalog.entry(damaged).unwrap().size()), (2, damaged - 2));
        catalog.verify().unwrap();
    }
}
