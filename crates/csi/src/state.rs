//! State records: which target shows which snapshot, one file per mount identity.
//!
//! A record is written before the mount is made and shrinks after it is gone, so that after a crash it names at least what is
//! mounted. It pins the snapshot: a target that was published once shows the same data after a restart of anything.

use larder_core::names;
use larder_fuse::protocol::mounter::Mount;
use larder_io::replace::{PowerLoss, Readers, replace};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

/// Raised when an older plugin could misread a record.
const VERSION: u32 = 1;

/// Why a record could not be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("read state folder {}: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("write state record {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("remove state record {}: {source}", path.display())]
    Remove { path: PathBuf, source: io::Error },
}

/// What the superblock of one identity is, and where it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    version: u32,
    /// As the mounter is asked for it.
    pub(crate) mount: Mount,
    pub(crate) dataset_namespace: String,
    pub(crate) dataset_name: String,
    pub(crate) targets: BTreeSet<PathBuf>,
}

impl Record {
    pub(crate) fn new(mount: Mount, dataset_namespace: &str, dataset_name: &str) -> Self {
        Self {
            version: VERSION,
            mount,
            dataset_namespace: dataset_namespace.to_owned(),
            dataset_name: dataset_name.to_owned(),
            targets: BTreeSet::new(),
        }
    }

    pub(crate) fn identity(&self) -> &str {
        &self.mount.identity
    }

    fn is_sound(&self, file_stem: &str) -> bool {
        let m = &self.mount;
        self.version == VERSION
            && m.identity == file_stem
            && names::is_uid(&m.dataset_uid)
            && names::is_digest(&m.snapshot)
            && m.identity == names::mount_identity(&m.dataset_uid, &m.snapshot)
    }
}

/// All records. The files are read once; afterwards memory and files are changed together.
#[derive(Debug)]
pub(crate) struct State {
    folder: PathBuf,
    records: Mutex<BTreeMap<String, Record>>,
}

impl State {
    /// A record that cannot be read is left where it is and logged: its mounts stay, and are nobody's.
    pub(crate) fn open(folder: &Path) -> Result<Self, StateError> {
        let wrap = |source| StateError::Folder { path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(wrap)?;
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(wrap)? {
            let path = entry.map_err(wrap)?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_owned();
            let read = fs::read(&path).map_err(|e| e.to_string());
            match read.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).map_err(|e| e.to_string())) {
                Ok(record) if record.is_sound(&stem) => {
                    records.insert(stem, record);
                }
                Ok(_) => tracing::error!(path = %path.display(), "state record is not one of this version; ignoring it"),
                Err(error) => tracing::error!(path = %path.display(), error, "state record is not readable; ignoring it"),
            }
        }
        Ok(Self { folder: folder.to_owned(), records: Mutex::new(records) })
    }

    pub(crate) fn all(&self) -> Vec<Record> {
        self.records.lock().values().cloned().collect()
    }

    /// How many targets there are, of all records.
    pub(crate) fn targets(&self) -> i64 {
        self.records.lock().values().map(|record| record.targets.len() as i64).sum()
    }

    pub(crate) fn by_target(&self, target: &Path) -> Option<Record> {
        self.records.lock().values().find(|r| r.targets.contains(target)).cloned()
    }

    /// Notes that the record's snapshot is, or is about to be, shown at `target`. What is known of the identity already stays
    /// as it is: the superblock was made with it.
    pub(crate) fn add_target(&self, record: &Record, target: &Path) -> Result<Record, StateError> {
        let mut records = self.records.lock();
        let mut new = records.get(record.identity()).unwrap_or(record).clone();
        new.targets.insert(target.to_owned());
        self.write(&new)?;
        records.insert(new.identity().to_owned(), new.clone());
        Ok(new)
    }

    /// Takes a target out and gives what is left of the record.
    pub(crate) fn remove_target(&self, identity: &str, target: &Path) -> Result<Option<Record>, StateError> {
        let mut records = self.records.lock();
        let Some(mut record) = records.get(identity).cloned() else { return Ok(None) };
        if record.targets.remove(target) {
            self.write(&record)?;
            records.insert(identity.to_owned(), record.clone());
        }
        Ok(Some(record))
    }

    /// Forgets an identity that is shown nowhere and whose superblock is gone.
    pub(crate) fn remove(&self, identity: &str) -> Result<(), StateError> {
        let mut records = self.records.lock();
        let path = self.path(identity);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StateError::Remove { path, source }),
            _ => {
                records.remove(identity);
                Ok(())
            }
        }
    }

    fn path(&self, identity: &str) -> PathBuf {
        self.folder.join(format!("{identity}.json"))
    }

    /// All or nothing, also when the power fails.
    fn write(&self, record: &Record) -> Result<(), StateError> {
        let path = self.path(record.identity());
        let encoded = serde_json::to_vec(record).map_err(io::Error::from);
        let written = encoded.and_then(|bytes| replace(&path, &bytes, Readers::Usual, PowerLoss::KeepsNew));
        written.map_err(|source| StateError::Write { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_fuse::protocol::mounter::Mode;

    const UID: &str = "0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f";

    fn mk_record(digit: char) -> Record {
        let snapshot = digit.to_string().repeat(64);
        let mount = Mount {
            identity: names::mount_identity(UID, &snapshot),
            dataset_uid: UID.into(),
            snapshot,
            uid: 0,
            gid: 0,
            file_mode: 0o444,
            dir_mode: 0o555,
            mode: Mode::Auto,
        };
        Record::new(mount, "vision", "imagenet")
    }

    #[test]
    fn records_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (mk_record('a'), mk_record('b'));
        let state = State::open(dir.path()).unwrap();
        state.add_target(&a, Path::new("/t/1")).unwrap();
        state.add_target(&a, Path::new("/t/2")).unwrap();
        state.add_target(&b, Path::new("/t/3")).unwrap();
        let again = State::open(dir.path()).unwrap();
        assert_eq!(again.by_target(Path::new("/t/2")).unwrap().identity(), a.identity());
        assert_eq!(again.by_target(Path::new("/t/3")).unwrap().mount, b.mount);
        assert!(again.by_target(Path::new("/t")).is_none());
        assert_eq!(again.remove_target(a.identity(), Path::new("/t/1")).unwrap().unwrap().targets.len(), 1);
        assert!(again.remove_target(a.identity(), Path::new("/t/2")).unwrap().unwrap().targets.is_empty());
        again.remove(a.identity()).unwrap();
        again.remove(a.identity()).unwrap();
        assert_eq!(State::open(dir.path()).unwrap().all(), again.all());
        assert_eq!(again.all().len(), 1);
    }

    #[test]
    fn a_superblock_keeps_the_permissions_it_was_made_with() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        let first = mk_record('a');
        state.add_target(&first, Path::new("/t/1")).unwrap();
        let mut changed = first.clone();
        changed.mount.file_mode = 0o400;
        assert_eq!(state.add_target(&changed, Path::new("/t/2")).unwrap().mount.file_mode, 0o444);
    }

    #[test]
    fn broken_records_are_left_alone_and_hide_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let good = mk_record('a');
        State::open(dir.path()).unwrap().add_target(&good, Path::new("/t/1")).unwrap();
        let mut newer = mk_record('b');
        newer.version = 99;
        let mut renamed = mk_record('c');
        renamed.targets.insert("/t/9".into());
        for (name, bytes) in [
            ("half.json", b"{\"version\":1,".to_vec()),
            (&*format!("{}.json", newer.identity()), serde_json::to_vec(&newer).unwrap()),
            ("..other.json", serde_json::to_vec(&renamed).unwrap()),
            ("x.part", b"left behind".to_vec()),
        ] {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        let state = State::open(dir.path()).unwrap();
        assert_eq!(state.all().iter().map(Record::identity).collect::<Vec<_>>(), [good.identity()]);
        assert!(dir.path().join("half.json").exists());
    }
}
