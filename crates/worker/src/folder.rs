//! The dataset's folder on this node: its lock, and the small files in it.

use larder_cache::CacheError;
use larder_core::{format::LaterFormat, names};
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

/// The format of everything in the folder: what the files are called, what is in them, and what may be removed because it makes no
/// sense. Raised when a worker of an older release could misread or remove what is there. It is in a file of its own, which is looked
/// at before all others.
const FORMAT: u32 = 1;

/// What can go wrong with the folder.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    #[error("{action} {path}: {source}; {}", if self.is_full() { "free space on this disk" } else { "check the tier's folder and its owner" })]
    Disk { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the folder {path} {source}; what is in it is fetched anew if you remove it")]
    Later { path: PathBuf, source: LaterFormat },
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

    /// Has a later release been here?
    pub fn is_later(&self) -> bool {
        matches!(self, Self::Later { .. })
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
                Ok(()) => {
                    expect_format(path)?;
                    return Ok(Self { path: path.to_owned(), _lock: lock });
                }
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
        let lock = self.path.join("lock");
        for path in [self.orders_file(), self.state_file(), self.identity_file(), format_file(&self.path), lock] {
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
            Err(e) if e.is_locked() || e.is_later() => return Err(e),
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

fn format_file(folder: &Path) -> PathBuf {
    folder.join("format")
}

/// Reads which format the folder has, and says so in one that does not. Blocks.
fn expect_format(folder: &Path) -> Result<(), FolderError> {
    let path = format_file(folder);
    let disk = |action| move |path, source| FolderError::Disk { action, path, source };
    match fs::read_to_string(&path) {
        Ok(text) => {
            let number = text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no number"));
            let found = number.map_err(|e| disk("read the format in")(path, e))?;
            LaterFormat::refuse(found, FORMAT).map_err(|source| FolderError::Later { path: folder.to_owned(), source })
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // Without the file it is the first format. A disk that has no room for it is told of by others.
            if let Err(error) = replace(&path, format!("{FORMAT}\n").as_bytes(), Readers::Usual, PowerLoss::KeepsNew) {
                tracing::warn!(path = %path.display(), %error, "the format of the folder is not noted");
            }
            Ok(())
        }
        Err(e) => Err(disk("read the format in")(path, e)),
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

    /// As this release writes them. One of a later release must read them.
    const ORDERS: &str = include_str!("../tests/formats/config.json");
    const STATE: &str = include_str!("../tests/formats/state.json");

    #[test]
    fn orders_and_state_of_this_release_are_read_and_written_as_ever_and_may_have_fields_that_are_not_known() {
        use crate::orders::Orders;
        let dir = tempfile::tempdir().unwrap();
        let (orders, state) = (dir.path().join("config.json"), dir.path().join("state.json"));
        for later in ["{", r#"{"ofALaterRelease":{"a":[1]},"#] {
            fs::write(&orders, ORDERS.replacen('{', later, 1)).unwrap();
            fs::write(&state, STATE.replacen('{', later, 1)).unwrap();
            let (read, known) = (load::<Orders>(&orders).unwrap(), load::<State>(&state).unwrap());
            assert_eq!((read.preload_paths.len(), read.source.include.len(), known.origin_bytes), (1, 1, 7));
            save(&orders, &read).unwrap();
            save(&state, &known).unwrap();
            assert_eq!(
                (fs::read_to_string(&orders).unwrap(), fs::read_to_string(&state).unwrap()),
                (ORDERS.into(), STATE.into())
            );
        }
    }

    #[test]
    fn a_folder_says_its_format_and_one_of_a_later_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (path, wait) = (dir.path().join("uid"), Duration::ZERO);
        let format = format_file(&path);
        Folder::open(&path, wait).unwrap();
        assert_eq!(fs::read_to_string(&format).unwrap(), "1\n");
        Folder::open(&path, wait).unwrap();
        fs::write(&format, "2\n").unwrap();
        let told = Folder::open(&path, wait).unwrap_err().to_string();
        for part in [path.to_str().unwrap(), "format 2", "up to 1", "go back to the release"] {
            assert!(told.contains(part), "{part} in {told}");
        }
        fs::write(&format, "two").unwrap();
        assert!(matches!(Folder::open(&path, wait), Err(FolderError::Disk { .. })));
        fs::write(&format, "1\n").unwrap();
        Folder::open(&path, wait).unwrap().remove().unwrap();
        assert!(!path.exists());
    }
}
