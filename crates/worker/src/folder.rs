//! The dataset's folder on this node: its lock, and the small files in it.

use larder_cache::CacheError;
use larder_core::names;
use larder_io::replace::{PowerLoss, Readers, replace};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// What can go wrong with the folder.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    #[error("{action} {path}: {source}; {}", if self.is_full() { "free space on this disk" } else { "check the tier's folder and its owner" })]
    Disk { action: &'static str, path: PathBuf, source: io::Error },
    #[error("lock {path}: another worker of this dataset still runs on this node; it was waited for {waited:?}")]
    Locked { path: PathBuf, waited: Duration },
    #[error("no folder for the dataset was given")]
    None,
}

impl FolderError {
    /// Does another process have the folder?
    pub fn is_locked(&self) -> bool {
        matches!(self, Self::Locked { .. })
    }

    /// Would it go on if there were space on the disk?
    pub fn is_full(&self) -> bool {
        let full = |e: &io::Error| matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        matches!(self, Self::Disk { source, .. } if full(source))
    }
}

/// What survives the process beside orders and data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct State {
    pub listing: Option<Listing>,
    pub origin_bytes: u64,
}

/// The last listing that succeeded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Listing {
    pub id: String,
    pub snapshot: String,
    pub files: u64,
    pub bytes: u64,
    pub skipped: u64,
    pub skipped_examples: Vec<String>,
    /// Seconds since 1970.
    pub time: i64,
}

/// The locked folder.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// Held as long as the process lives.
    _lock: File,
}

impl Folder {
    /// Makes the folder if need be, and waits until no other worker uses it. Blocks.
    pub fn open(path: &Path, lock_wait: Duration) -> Result<Self, FolderError> {
        let disk = |action| move |source| FolderError::Disk { action, path: path.to_owned(), source };
        // Not create_dir_all: the tier's folder must be there, or the disk is not mounted.
        match fs::create_dir(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(disk("make folder")(e)),
            _ => {}
        }
        let lock_path = path.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path).map_err(disk("open lock in"))?;
        let step = Duration::from_millis(100);
        let mut waited = Duration::ZERO;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Self { path: path.to_owned(), _lock: lock }),
                Err(TryLockError::Error(e)) => return Err(disk("lock")(e)),
                Err(TryLockError::WouldBlock) if waited < lock_wait => {
                    if waited.is_zero() {
                        tracing::info!(folder = %path.display(), "waiting for the worker before this one to end");
                    }
                    std::thread::sleep(step);
                    waited += step;
                }
                Err(TryLockError::WouldBlock) => return Err(FolderError::Locked { path: lock_path, waited }),
            }
        }
    }

    /// Writes to the disk, and waits until it has it. Blocks.
    pub fn try_to_write(&self) -> Result<(), CacheError> {
        let path = self.path.join("probe");
        let written = replace(&path, b"", Readers::Owner, PowerLoss::KeepsNew).and_then(|()| fs::remove_file(&path));
        written.map_err(|e| CacheError::Disk { action: "write", path, source: Arc::new(e) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn orders_file(&self) -> PathBuf {
        self.path.join("config.json")
    }

    pub fn state_file(&self) -> PathBuf {
        self.path.join("state.json")
    }

    /// Key and certificate, kept by `larder_trust::store`.
    pub fn identity_file(&self) -> PathBuf {
        self.path.join(names::WORKER_IDENTITY)
    }

    pub fn catalogs(&self) -> PathBuf {
        self.path.join("catalogs")
    }

    /// Removes the small files, then the folder itself if nothing else is in it. Blocks.
    pub fn remove(&self) -> Result<(), FolderError> {
        for path in [self.orders_file(), self.state_file(), self.identity_file(), self.path.join("lock")] {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(FolderError::Disk { action: "remove", path, source: e });
                }
                _ => {}
            }
        }
        if let Err(e) = fs::remove_dir(&self.path) {
            // Empty, so it holds none of the dataset's bytes.
            tracing::info!(folder = %self.path.display(), error = %e, "the empty folder stays");
        }
        Ok(())
    }
}

/// The folders of all disks, by number, those that can be opened, and which of them is to hold what is not data: the first that can
/// be written to, or the first, if none can. Blocks.
pub(crate) fn open_all<'a>(
    dirs: impl Iterator<Item = &'a Path>,
    lock_wait: Duration,
) -> Result<(usize, BTreeMap<usize, Folder>), FolderError> {
    let (mut folders, mut first_error) = (BTreeMap::new(), None);
    for (number, dir) in dirs.enumerate() {
        match Folder::open(dir, lock_wait) {
            Ok(folder) => drop(folders.insert(number, folder)),
            Err(e) if e.is_locked() => return Err(e),
            Err(error) => {
                tracing::error!(%error, "this disk cannot be used");
                first_error = first_error.or(Some(error));
            }
        }
    }
    let works = |folder: &Folder| folder.try_to_write().is_ok();
    let home = folders.iter().find(|(_, folder)| folders.len() == 1 || works(folder)).or_else(|| folders.iter().next());
    match home.map(|(number, _)| *number) {
        Some(home) => Ok((home, folders)),
        None => Err(first_error.unwrap_or(FolderError::None)),
    }
}

/// Reads a small file; one that is not there or not whole counts as none, because all of them can be had anew. Blocks.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
        Err(e) => {
            tracing::warn!(path = %path.display(), error = %e, "cannot be read; going on without");
            return None;
        }
    };
    serde_json::from_slice(&text)
        .inspect_err(|e| tracing::warn!(path = %path.display(), error = %e, "is not whole; going on without"))
        .ok()
}

/// Replaces a small file: after a crash there is the old one or the new one. Blocks.
pub(crate) fn save<T: Serialize>(path: &Path, value: &T) -> Result<(), FolderError> {
    let disk = |action| move |source| FolderError::Disk { action, path: path.to_owned(), source };
    let text = serde_json::to_vec_pretty(value).map_err(|e| disk("encode")(io::Error::other(e)))?;
    replace(path, &text, Readers::Usual, PowerLoss::KeepsNew).map_err(disk("write"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded_and_half_a_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        assert_eq!(load::<State>(&path), None);
        let state = State { listing: Some(Listing { id: "a".into(), ..Listing::default() }), origin_bytes: 7 };
        save(&path, &state).unwrap();
        assert_eq!(load::<State>(&path), Some(state));
        let text = fs::read(&path).unwrap();
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert_eq!(load::<State>(&path), None);
    }

    #[test]
    fn a_disk_that_is_not_mounted_is_an_error_and_not_a_new_folder() {
        let dir = tempfile::tempdir().unwrap();
        let e = Folder::open(&dir.path().join("larder").join("uid"), Duration::ZERO).unwrap_err();
        assert!(matches!(e, FolderError::Disk { action: "make folder", .. }), "{e}");
    }
}
