//! The catalogs on this node.

use crate::folder::FolderError;
use larder_core::{
    catalog::{Catalog, CatalogError},
    names::is_digest,
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::watch;

/// Catalogs waited for at a time; more are not remembered.
const ASKED: usize = 16;

/// An open catalog.
pub(crate) type Open = Arc<Catalog<File>>;

/// `catalogs/<digest>`, all open. Each was verified whole when it came, and is again section by section as it is read. Old ones
/// stay: mounts of older snapshots need them, and they are small.
#[derive(Debug)]
pub(crate) struct Catalogs {
    folder: PathBuf,
    open: watch::Sender<BTreeMap<String, Open>>,
    /// Of those, the damaged ones of which nobody has another copy.
    lost: watch::Sender<BTreeSet<String>>,
    /// Someone asked for a catalog that is not here: it is fetched when a worker has it.
    pub wanted: Arc<Asked>,
    /// Open, and some section of it cannot be read.
    pub damaged: Arc<Asked>,
}

/// Catalogs that something has to be done about.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    digests: Mutex<BTreeSet<String>>,
    told: tokio::sync::Notify,
}

impl Asked {
    pub fn ask(&self, digest: &str) {
        let mut digests = self.digests.lock();
        if is_digest(digest) && digests.len() < ASKED && digests.insert(digest.to_owned()) {
            self.told.notify_one();
        }
    }

    /// The next one.
    pub async fn next(&self) -> String {
        loop {
            if let Some(digest) = self.digests.lock().first() {
                return digest.clone();
            }
            self.told.notified().await;
        }
    }

    /// It was tried; asking again is allowed again.
    pub fn tried(&self, digest: &str) {
        self.digests.lock().remove(digest);
    }
}

impl Catalogs {
    /// Opens what is there; what is not a whole catalog goes, but for those of another release, which may come back. Blocks.
    pub fn load(folder: &Path) -> Result<Self, FolderError> {
        let disk = |action| move |source| FolderError::Disk { action, path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(disk("make folder"))?;
        let entries = fs::read_dir(folder).map_err(disk("list"))?;
        let (mut open, damaged) = (BTreeMap::new(), Arc::default());
        for entry in entries {
            let path = entry.map_err(disk("list"))?.path();
            match path.file_name().and_then(|n| n.to_str()).filter(|n| is_digest(n)).map(|name| (name, opened(&path, name))) {
                Some((name, Ok(catalog))) => {
                    open.insert(name.to_owned(), watched(catalog, &damaged));
                }
                Some((_, Err(error @ CatalogError::Version(_)))) => {
                    tracing::warn!(path = %path.display(), %error, "catalog left as it is");
                }
                unusable => {
                    let why =
                        unusable.and_then(|(_, r)| r.err()).map_or_else(|| "was never finished".to_owned(), |e| e.to_string());
                    tracing::warn!(path = %path.display(), why, "catalog thrown away; it is fetched again");
                    fs::remove_file(&path).map_err(disk("remove unusable catalog in"))?;
                }
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            open: watch::Sender::new(open),
            lost: watch::Sender::default(),
            wanted: Arc::default(),
            damaged,
        })
    }

    /// Where catalogs lie.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn get(&self, digest: &str) -> Option<Open> {
        self.open.borrow().get(digest).cloned()
    }

    pub fn digests(&self) -> Vec<String> {
        self.open.borrow().keys().cloned().collect()
    }

    /// Where the catalog lies or will lie.
    pub fn path(&self, digest: &str) -> PathBuf {
        self.folder.join(digest)
    }

    /// Waits until the catalog is here.
    pub async fn wait(&self, digest: &str) -> Open {
        let mut open = self.open.subscribe();
        loop {
            if let Ok(open) = open.wait_for(|o| o.contains_key(digest)).await
                && let Some(catalog) = open.get(digest)
            {
                return Arc::clone(catalog);
            }
        }
    }

    /// Takes in a catalog that lies verified at its path; one that is open already goes on with it. Blocks.
    pub fn add(&self, digest: &str) -> Result<(), FolderError> {
        let path = self.path(digest);
        let disk = |e: CatalogError| FolderError::Disk { action: "open", path: path.clone(), source: io::Error::other(e) };
        let file = || File::open(&path).map_err(|e| disk(e.into()));
        match self.get(digest) {
            Some(catalog) => catalog.replace(file()?).map_err(disk)?,
            None => {
                let catalog = watched(Catalog::open_as(file()?, digest).map_err(disk)?, &self.damaged);
                self.open.send_modify(|open| drop(open.insert(digest.to_owned(), catalog)));
            }
        }
        self.lost.send_if_modified(|lost| lost.remove(digest));
        Ok(())
    }

    /// The catalog is damaged, and nobody has another copy.
    pub fn lose(&self, digest: &str) {
        self.lost.send_if_modified(|lost| lost.insert(digest.to_owned()));
    }

    /// Is it here, whole as far as anybody knows?
    pub fn is_whole(&self, digest: &str) -> bool {
        self.get(digest).is_some() && !self.lost.borrow().contains(digest)
    }

    /// Waits until a catalog that is here is lost.
    pub async fn lost(&self, digest: &str) {
        if self.lost.subscribe().wait_for(|lost| lost.contains(digest)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Closes and removes all; gives the bytes freed. Blocks.
    pub fn erase(&self) -> Result<u64, FolderError> {
        self.open.send_modify(BTreeMap::clear);
        let erase = || {
            let mut freed = 0;
            for entry in fs::read_dir(&self.folder)? {
                freed += entry?.metadata()?.len();
            }
            fs::remove_dir_all(&self.folder).map(|()| freed)
        };
        match erase() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
            other => other.map_err(|source| FolderError::Disk { action: "erase", path: self.folder.clone(), source }),
        }
    }
}

/// Opens a catalog if it is the one that its name says; takes no longer for a large one.
fn opened(path: &Path, name: &str) -> Result<Catalog<File>, CatalogError> {
    Catalog::open_as(File::open(path)?, name)
}

fn watched(catalog: Catalog<File>, damaged: &Arc<Asked>) -> Open {
    let (digest, damaged) = (catalog.digest().to_owned(), Arc::clone(damaged));
    catalog.on_damage(move |_| damaged.ask(&digest));
    Arc::new(catalog)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_listing_left_is_removed_and_a_catalog_of_another_release_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut old = larder_core::catalog::Builder::new("s3://b/").finish().0;
        let whole = larder_core::catalog::digest(&old);
        fs::write(dir.path().join(&whole), &old).unwrap();
        let other = "a".repeat(64);
        old[8] += 1;
        for (name, bytes) in [
            (other.clone(), old.as_slice()),
            ("b".repeat(64), &old[..8]),
            (".listing-Ab1".into(), b"half"),
            (".x.1.part".into(), b""),
        ] {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        let catalogs = Catalogs::load(dir.path()).unwrap();
        assert_eq!(catalogs.digests(), std::slice::from_ref(&whole));
        assert_eq!(fs::read(dir.path().join(&other)).unwrap(), old);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
