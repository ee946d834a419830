//! The catalogs on this node.

use crate::folder::{FolderError, replace};
use larder_core::{
    catalog::{Catalog, CatalogError, digest},
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

/// Catalogs someone asked for that are not here; more are not remembered.
const WANTED: usize = 16;
/// An open catalog.
pub(crate) type Open = Arc<Catalog<File>>;

/// `catalogs/<digest>`, all open. Each was verified whole when it came, and is again section by section as it is read. Old ones
/// stay: mounts of older snapshots need them, and they are small.
#[derive(Debug)]
pub(crate) struct Catalogs {
    folder: PathBuf,
    open: watch::Sender<BTreeMap<String, Open>>,
    wanted: Mutex<BTreeSet<String>>,
    asked: tokio::sync::Notify,
}

impl Catalogs {
    /// Opens what is there; what is not a whole catalog goes. Blocks.
    pub fn load(folder: &Path) -> Result<Self, FolderError> {
        let disk = |action| move |source| FolderError::Disk { action, path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(disk("make folder"))?;
        let entries = fs::read_dir(folder).map_err(disk("list"))?;
        let mut open = BTreeMap::new();
        for entry in entries {
            let path = entry.map_err(disk("list"))?.path();
            match path.file_name().and_then(|n| n.to_str()).filter(|n| is_digest(n)).map(|name| (name, opened(&path, name))) {
                Some((name, Ok(catalog))) => {
                    open.insert(name.to_owned(), Arc::new(catalog));
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
            wanted: Mutex::default(),
            asked: tokio::sync::Notify::new(),
        })
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

    /// Writes a catalog that was made here; gives its digest. Blocks.
    pub fn write(&self, bytes: &[u8]) -> Result<String, FolderError> {
        let name = digest(bytes);
        replace(&self.path(&name), bytes)?;
        self.add(&name)?;
        Ok(name)
    }

    /// Takes in a catalog that lies verified at its path. Blocks.
    pub fn add(&self, digest: &str) -> Result<(), FolderError> {
        let path = self.path(digest);
        let disk = |source| FolderError::Disk { action: "open", path: path.clone(), source };
        let catalog = opened(&path, digest).map_err(|e| disk(io::Error::other(e)))?;
        self.open.send_modify(|open| drop(open.insert(digest.to_owned(), Arc::new(catalog))));
        Ok(())
    }

    /// Someone asked for a catalog that is not here: it is fetched when a worker has it.
    pub fn want(&self, digest: &str) {
        let mut wanted = self.wanted.lock();
        if is_digest(digest) && wanted.len() < WANTED && wanted.insert(digest.to_owned()) {
            self.asked.notify_one();
        }
    }

    /// The next that was asked for.
    pub async fn wanted(&self) -> String {
        loop {
            if let Some(digest) = self.wanted.lock().first() {
                return digest.clone();
            }
            self.asked.notified().await;
        }
    }

    /// It was tried; asking again is allowed again.
    pub fn tried(&self, digest: &str) {
        self.wanted.lock().remove(digest);
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
