//! The catalogs of mounted snapshots: fetched, verified, kept in a folder of the mounter's own while they are in use.
//!
//! A copy of its own, although the worker of this node has the same file: workers of a dataset come and go with it and with
//! their disks, and what a mount shows must not change under it.

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
    io::{self, Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};
use tokio::task::spawn_blocking;

/// Why there is no catalog.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CatalogsError {
    #[error("make folder of catalogs {} usable: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("copy catalog to {}: {source}; is the mounter's disk full?", path.display())]
    Copy { path: PathBuf, source: io::Error },
    #[error("catalog {digest} is not what its name says; it will be fetched again")]
    Digest { digest: String },
    #[error("open catalog {digest}: {source}")]
    Open { digest: String, source: CatalogError },
    #[error(transparent)]
    Fetch(#[from] CatalogFetchError),
    #[error("verifying catalog {digest} was interrupted: {source}")]
    Task { digest: String, source: tokio::task::JoinError },
}

/// Read and hashed at a time.
const PIECE: usize = 1 << 20;

type Slot = Arc<tokio::sync::Mutex<Weak<Catalog<File>>>>;

/// All catalogs of this mounter.
pub(crate) struct Catalogs {
    folder: PathBuf,
    run_dir: PathBuf,
    node: Node,
    /// One slot per digest; its lock makes everyone who wants the same catalog wait for one fetch.
    slots: Mutex<HashMap<String, Slot>>,
}

impl Catalogs {
    /// Empties the folder: no mount survives its mounter, so nothing in there is in use.
    pub(crate) fn open(folder: &Path, run_dir: &Path, node: Node) -> Result<Self, CatalogsError> {
        let empty = || -> io::Result<()> {
            fs::create_dir_all(folder)?;
            fs::read_dir(folder)?.try_for_each(|entry| fs::remove_file(entry?.path()))
        };
        empty().map_err(|source| CatalogsError::Folder { path: folder.to_owned(), source })?;
        Ok(Self { folder: folder.to_owned(), run_dir: run_dir.to_owned(), node, slots: Mutex::default() })
    }

    /// The catalog, verified whole. `digest` and `dataset_uid` have been checked to be what they are called.
    pub(crate) async fn get(&self, dataset_uid: &str, digest: &str) -> Result<Arc<Catalog<File>>, CatalogsError> {
        let slot = Arc::clone(self.slots.lock().entry(digest.to_owned()).or_default());
        let mut held = slot.lock().await;
        if let Some(catalog) = held.upgrade() {
            return Ok(catalog);
        }
        let path = self.folder.join(digest);
        let catalog = match self.local_copy(dataset_uid, digest, &path).await {
            Some(catalog) => catalog,
            None => {
                let roster = self.node.members.roster(dataset_uid);
                self.node.peers.catalog(&roster, dataset_uid, digest, &path).await?;
                verified(path, digest).await?
            }
        };
        let catalog = Arc::new(catalog);
        *held = Arc::downgrade(&catalog);
        Ok(catalog)
    }

    /// Removes the file when nobody has the catalog any more.
    pub(crate) fn release(&self, digest: &str) {
        let mut slots = self.slots.lock();
        // A slot that is locked is about to be used.
        let unused = slots.get(digest).is_some_and(|s| s.try_lock().is_ok_and(|weak| weak.strong_count() == 0));
        if unused {
            slots.remove(digest);
            let path = self.folder.join(digest);
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "unused catalog stays until the next start");
            }
        }
    }

    async fn local_copy(&self, dataset_uid: &str, digest: &str, path: &Path) -> Option<Catalog<File>> {
        let worker = LocalWorker::new(names::worker_socket(&self.run_dir, dataset_uid));
        let fd = match worker.ask(&Request::Catalog { digest: digest.to_owned() }).await {
            Ok((Reply::File {}, Some(fd))) => fd,
            Ok((reply, _)) => {
                tracing::debug!(digest, ?reply, "local worker has no such catalog");
                return None;
            }
            Err(error) => {
                tracing::debug!(digest, %error, "local worker does not answer");
                return None;
            }
        };
        let (from, to) = (File::from(fd), path.to_owned());
        let copied = spawn_blocking(move || copy(&from, &to)).await;
        match copied {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(digest, %error, "copy of the local worker's catalog failed; fetching it over the network");
                return None;
            }
            Err(error) => {
                tracing::error!(digest, %error, "copy of the local worker's catalog was interrupted");
                return None;
            }
        }
        match verified(path.to_owned(), digest).await {
            Ok(catalog) => Some(catalog),
            Err(error) => {
                tracing::warn!(digest, %error, "local worker's catalog is not usable; fetching it over the network");
                None
            }
        }
    }
}

/// By pread: the offset of the worker's descriptor belongs to everyone whom the worker gave it.
fn copy(from: &File, to: &Path) -> Result<(), CatalogsError> {
    let part = to.with_extension("part");
    let run = || -> io::Result<()> {
        let mut file = File::create(&part)?;
        let (mut buffer, mut at) = (vec![0u8; PIECE], 0);
        loop {
            match from.read_at(&mut buffer, at)? {
                0 => break fs::rename(&part, to),
                n => {
                    file.write_all(&buffer[..n])?;
                    at += n as u64;
                }
            }
        }
    };
    run().map_err(|source| CatalogsError::Copy { path: to.to_owned(), source })
}

/// Opens the file if it is the catalog that its name says, every section; removes it otherwise.
async fn verified(path: PathBuf, digest: &str) -> Result<Catalog<File>, CatalogsError> {
    let wanted = digest.to_owned();
    let outcome = spawn_blocking(move || {
        let result = verify(&path, &wanted);
        if result.is_err() {
            // Nothing more can be done about it; the next start empties the folder.
            let _ = fs::remove_file(&path);
        }
        result
    });
    outcome.await.map_err(|source| CatalogsError::Task { digest: digest.to_owned(), source })?
}

fn verify(path: &Path, digest: &str) -> Result<Catalog<File>, CatalogsError> {
    let open_error = |source| CatalogsError::Open { digest: digest.to_owned(), source };
    let mut file = File::open(path).map_err(|e| open_error(e.into()))?;
    let mut hash = blake3::Hasher::new();
    let mut buffer = vec![0u8; PIECE];
    loop {
        match file.read(&mut buffer).map_err(|e| open_error(e.into()))? {
            0 => break,
            n => hash.update(&buffer[..n]),
        };
    }
    if hash.finalize().to_hex().as_str() != digest {
        return Err(CatalogsError::Digest { digest: digest.to_owned() });
    }
    let catalog = Catalog::open(file).map_err(open_error)?;
    catalog.verify().map_err(open_error)?;
    Ok(catalog)
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_core::catalog::{Builder, Listed};

    #[test]
    fn a_catalog_is_taken_only_under_its_own_name() {
        let mut builder = Builder::new("s3://b/");
        builder.push(Listed { path: "a".into(), size: 1, mtime_ns: 0, version: "v".into() });
        let (bytes, _) = builder.finish();
        let digest = larder_core::catalog::digest(&bytes);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(&digest);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(verify(&path, &digest).unwrap().files(), 1);
        let other = "0".repeat(64);
        assert!(matches!(verify(&path, &other), Err(CatalogsError::Digest { .. })));
        let nonsense = b"no catalog at all";
        fs::write(&path, nonsense).unwrap();
        let digest = larder_core::catalog::digest(nonsense);
        assert!(matches!(verify(&path, &digest), Err(CatalogsError::Open { .. })));
    }
}
