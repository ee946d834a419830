//! State records: which target shows which snapshot, one file per mount identity.
//!
//! A record is written before the mount is made and shrinks after it is gone, so that after a crash it names at least what is
//! mounted. It pins the snapshot: a target that was published once shows the same data after a restart of anything. That a file names
//! too much does no harm, so no pod waits for one to shrink: what a full disk does not take is written later.

use crate::records::{RecordError, Records};
use larder_core::names;
use larder_fuse::protocol::mounter::Mount;
use larder_proto::csi::v1::volume_capability::access_mode::Mode;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Raised when an older plugin could misread a record.
const VERSION: u32 = 1;

/// Why a volume is not noted at a target.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("volume_capability: volume {volume} is published at {} already, and its access mode allows one target only", target.display())]
    Elsewhere { volume: String, target: PathBuf },
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// What a target was published with. A call that repeats it must say the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Terms {
    pub(crate) readonly: bool,
    /// By its number in the specification.
    pub(crate) access_mode: i32,
    pub(crate) mount_flags: BTreeSet<String>,
}

impl Terms {
    /// May the volume be at several targets of a node?
    fn is_shared(&self) -> bool {
        use Mode::{MultiNodeMultiWriter, MultiNodeReaderOnly, MultiNodeSingleWriter, SingleNodeMultiWriter};
        let shared = [MultiNodeReaderOnly, MultiNodeSingleWriter, MultiNodeMultiWriter, SingleNodeMultiWriter];
        shared.into_iter().any(|mode| mode as i32 == self.access_mode)
    }
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
    /// The volume that is published at a target; not known of targets of releases before this field.
    #[serde(default)]
    volumes: BTreeMap<PathBuf, String>,
    /// As above.
    #[serde(default)]
    terms: BTreeMap<PathBuf, Terms>,
    /// The pod that a target is of, in the dataset's namespace; the same.
    #[serde(default)]
    pods: BTreeMap<PathBuf, Pod>,
}

/// As the kubelet names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl Record {
    pub(crate) fn new(mount: Mount, dataset_namespace: &str, dataset_name: &str) -> Self {
        Self {
            version: VERSION,
            mount,
            dataset_namespace: dataset_namespace.to_owned(),
            dataset_name: dataset_name.to_owned(),
            targets: BTreeSet::new(),
            volumes: BTreeMap::new(),
            terms: BTreeMap::new(),
            pods: BTreeMap::new(),
        }
    }

    pub(crate) fn identity(&self) -> &str {
        &self.mount.identity
    }

    /// The volume at a target, if it is known.
    pub(crate) fn volume_at(&self, target: &Path) -> Option<&str> {
        self.volumes.get(target).map(String::as_str)
    }

    /// What it was published with, if it is known.
    pub(crate) fn terms_at(&self, target: &Path) -> Option<&Terms> {
        self.terms.get(target)
    }

    pub(crate) fn pod_at(&self, target: &Path) -> Option<&Pod> {
        self.pods.get(target)
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
    files: Records,
    records: Mutex<BTreeMap<String, Record>>,
    /// Identities whose files name more than memory does. Locked after `records`.
    behind: Mutex<BTreeSet<String>>,
}

impl State {
    /// Mounts of a record that cannot be read stay, and are nobody's. One of a later format is an error.
    pub(crate) fn open(folder: &Path) -> Result<Self, RecordError> {
        let (files, records) = Records::open(folder, VERSION, Record::is_sound)?;
        Ok(Self { files, records: Mutex::new(records), behind: Mutex::default() })
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

    /// A target that a volume is published at.
    pub(crate) fn target_of(&self, volume: &str) -> Option<PathBuf> {
        let records = self.records.lock();
        let published = records.values().flat_map(|record| &record.volumes).find(|(_, published)| *published == volume);
        published.map(|(target, _)| target.clone())
    }

    /// Notes that the record's snapshot is, or is about to be, shown at `target` by a volume to a pod. What is known of the identity
    /// already stays as it is: the superblock was made with it. Refused if the volume is elsewhere and may be in one place only.
    pub(crate) fn add_target(
        &self,
        record: &Record,
        target: &Path,
        volume: &str,
        terms: &Terms,
        pod: Option<&Pod>,
    ) -> Result<Record, TargetError> {
        let mut records = self.records.lock();
        if let Some(other) = elsewhere(&records, target, volume, terms) {
            return Err(TargetError::Elsewhere { volume: volume.to_owned(), target: other });
        }
        let mut new = records.get(record.identity()).unwrap_or(record).clone();
        new.targets.insert(target.to_owned());
        new.volumes.insert(target.to_owned(), volume.to_owned());
        new.terms.insert(target.to_owned(), terms.clone());
        new.pods.extend(pod.map(|pod| (target.to_owned(), pod.clone())));
        self.files.write(new.identity(), &new)?;
        self.behind.lock().remove(new.identity());
        records.insert(new.identity().to_owned(), new.clone());
        Ok(new)
    }

    /// Takes a target out and gives what is left of the record. The file of the last one stays until [`State::remove`].
    pub(crate) fn remove_target(&self, identity: &str, target: &Path) -> Option<Record> {
        let mut records = self.records.lock();
        let record = records.get_mut(identity)?;
        if record.targets.remove(target) {
            record.volumes.remove(target);
            record.terms.remove(target);
            record.pods.remove(target);
            if !record.targets.is_empty() {
                self.shrink(identity, Some(record));
            }
        }
        Some(record.clone())
    }

    /// Forgets an identity that is shown nowhere and whose superblock is gone.
    pub(crate) fn remove(&self, identity: &str) {
        let mut records = self.records.lock();
        records.remove(identity);
        self.shrink(identity, None);
    }

    /// Has another try at files that could not be changed.
    pub(crate) fn catch_up(&self) {
        let records = self.records.lock();
        let behind = self.behind.lock().clone();
        for identity in behind {
            self.shrink(&identity, records.get(&identity).filter(|record| !record.targets.is_empty()));
        }
    }

    /// Makes the file of an identity what is left of its record.
    fn shrink(&self, identity: &str, left: Option<&Record>) {
        let done = match left {
            Some(record) => self.files.write(identity, record),
            None => self.files.remove(identity),
        };
        let mut behind = self.behind.lock();
        match done {
            Ok(()) => drop(behind.remove(identity)),
            Err(error) => {
                if behind.insert(identity.to_owned()) {
                    tracing::error!(identity, %error, "a record names targets that are gone; changing it later");
                }
            }
        }
    }
}

/// Another target of a volume that may be at one only.
fn elsewhere(records: &BTreeMap<String, Record>, target: &Path, volume: &str, terms: &Terms) -> Option<PathBuf> {
    records.values().find_map(|record| {
        let others = record.volumes.iter().filter(|(at, published)| *published == volume && *at != target);
        let is_shared = |at| terms.is_shared() && record.terms_at(at).is_none_or(Terms::is_shared);
        others.map(|(at, _)| at).find(|at| !is_shared(at)).cloned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_fuse::protocol::mounter;
    use std::fs;

    const UID: &str = "0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f";
    const VOLUME: &str = "v";

    fn mk_terms(mode: Mode) -> Terms {
        Terms { readonly: true, access_mode: mode.into(), mount_flags: BTreeSet::new() }
    }

    fn shared() -> Terms {
        mk_terms(Mode::MultiNodeReaderOnly)
    }

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
            mode: mounter::Mode::Auto,
        };
        Record::new(mount, "vision", "imagenet")
    }

    #[test]
    fn records_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (mk_record('a'), mk_record('b'));
        let state = State::open(dir.path()).unwrap();
        state.add_target(&a, Path::new("/t/1"), VOLUME, &shared(), None).unwrap();
        state.add_target(&a, Path::new("/t/2"), VOLUME, &shared(), None).unwrap();
        state.add_target(&b, Path::new("/t/3"), VOLUME, &shared(), None).unwrap();
        let again = State::open(dir.path()).unwrap();
        assert_eq!(again.by_target(Path::new("/t/2")).unwrap().identity(), a.identity());
        assert_eq!(again.by_target(Path::new("/t/3")).unwrap().mount, b.mount);
        assert!(again.by_target(Path::new("/t")).is_none());
        assert_eq!(again.remove_target(a.identity(), Path::new("/t/1")).unwrap().targets.len(), 1);
        assert!(again.remove_target(a.identity(), Path::new("/t/2")).unwrap().targets.is_empty());
        again.remove(a.identity());
        again.remove(a.identity());
        assert_eq!(State::open(dir.path()).unwrap().all(), again.all());
        assert_eq!(again.all().len(), 1);
    }

    #[test]
    fn a_record_that_cannot_be_written_shrinks_all_the_same_and_its_file_later() {
        let dir = tempfile::tempdir().unwrap();
        let record = mk_record('a');
        let state = State::open(dir.path()).unwrap();
        for target in ["/t/1", "/t/2", "/t/3"] {
            state.add_target(&record, Path::new(target), VOLUME, &shared(), None).unwrap();
        }
        // In the way of the next file, as a full disk is.
        let part = dir.path().join(format!("{}.part", record.identity()));
        fs::create_dir(&part).unwrap();
        let in_file = || State::open(dir.path()).unwrap().all().first().map_or(0, |record| record.targets.len());
        assert_eq!(state.remove_target(record.identity(), Path::new("/t/1")).unwrap().targets.len(), 2);
        assert!(state.by_target(Path::new("/t/1")).is_none());
        state.catch_up();
        assert_eq!(in_file(), 3);
        fs::remove_dir(&part).unwrap();
        state.catch_up();
        assert_eq!(in_file(), 2);
        // The last one needs no room.
        fs::create_dir(&part).unwrap();
        state.remove_target(record.identity(), Path::new("/t/2")).unwrap();
        assert!(state.remove_target(record.identity(), Path::new("/t/3")).unwrap().targets.is_empty());
        state.catch_up();
        state.remove(record.identity());
        assert_eq!(in_file(), 0);
    }

    #[test]
    fn a_volume_is_published_as_long_as_one_target_shows_it() {
        let dir = tempfile::tempdir().unwrap();
        let record = mk_record('a');
        let state = State::open(dir.path()).unwrap();
        for (target, volume) in [("/t/1", VOLUME), ("/t/2", VOLUME), ("/t/3", "other")] {
            state.add_target(&record, Path::new(target), volume, &shared(), None).unwrap();
        }
        state.remove_target(record.identity(), Path::new("/t/1")).unwrap();
        let again = State::open(dir.path()).unwrap();
        assert_eq!(again.target_of(VOLUME).unwrap(), Path::new("/t/2"));
        again.remove_target(record.identity(), Path::new("/t/2")).unwrap();
        assert_eq!(again.target_of(VOLUME), None);
        assert_eq!(again.target_of("other").unwrap(), Path::new("/t/3"));
    }

    #[test]
    fn a_volume_for_one_target_is_at_one_target() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        // Snapshots differ: the second pod may be shown a newer one.
        let (first, second) = (mk_record('a'), mk_record('b'));
        let single = [Mode::SingleNodeWriter, Mode::SingleNodeReaderOnly, Mode::SingleNodeSingleWriter];
        for (is, wanted) in
            single.iter().flat_map(|one| [(*one, *one), (*one, Mode::MultiNodeReaderOnly), (Mode::MultiNodeReaderOnly, *one)])
        {
            let (here, there) = (Path::new("/t/1"), Path::new("/t/2"));
            state.add_target(&first, here, VOLUME, &mk_terms(is), None).unwrap();
            let refused = state.add_target(&second, there, VOLUME, &mk_terms(wanted), None).unwrap_err();
            assert!(matches!(refused, TargetError::Elsewhere { target, .. } if target == here), "{is:?}, {wanted:?}");
            assert!(state.by_target(there).is_none());
            state.add_target(&second, there, "other", &mk_terms(wanted), None).unwrap();
            state.add_target(&first, here, VOLUME, &mk_terms(is), None).unwrap();
            state.remove_target(second.identity(), there).unwrap();
            state.remove_target(first.identity(), here).unwrap();
        }
        for mode in [Mode::SingleNodeMultiWriter, Mode::MultiNodeSingleWriter, Mode::MultiNodeMultiWriter] {
            for target in ["/t/1", "/t/2"] {
                state.add_target(&first, Path::new(target), VOLUME, &mk_terms(mode), None).unwrap();
            }
        }
    }

    #[test]
    fn a_record_without_volumes_is_one_of_an_earlier_release() {
        let dir = tempfile::tempdir().unwrap();
        let record = mk_record('a');
        State::open(dir.path()).unwrap().add_target(&record, Path::new("/t/1"), VOLUME, &shared(), None).unwrap();
        let path = dir.path().join(format!("{}.json", record.identity()));
        let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for later in ["volumes", "terms", "pods"] {
            json.as_object_mut().unwrap().remove(later).unwrap();
        }
        fs::write(&path, json.to_string()).unwrap();
        let state = State::open(dir.path()).unwrap();
        assert!(state.by_target(Path::new("/t/1")).is_some());
        assert_eq!(state.target_of(VOLUME), None);
    }

    #[test]
    fn a_superblock_keeps_the_permissions_it_was_made_with() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        let first = mk_record('a');
        state.add_target(&first, Path::new("/t/1"), VOLUME, &shared(), None).unwrap();
        let mut changed = first.clone();
        changed.mount.file_mode = 0o400;
        assert_eq!(state.add_target(&changed, Path::new("/t/2"), VOLUME, &shared(), None).unwrap().mount.file_mode, 0o444);
    }

    #[test]
    fn broken_records_are_left_alone_and_hide_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let good = mk_record('a');
        State::open(dir.path()).unwrap().add_target(&good, Path::new("/t/1"), VOLUME, &shared(), None).unwrap();
        let mut renamed = mk_record('c');
        renamed.targets.insert("/t/9".into());
        for (name, bytes) in [
            ("half.json", b"{\"version\":1,".to_vec()),
            ("..other.json", serde_json::to_vec(&renamed).unwrap()),
            ("x.part", b"left behind".to_vec()),
        ] {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        let state = State::open(dir.path()).unwrap();
        assert_eq!(state.all().iter().map(Record::identity).collect::<Vec<_>>(), [good.identity()]);
        assert!(dir.path().join("half.json").exists());
    }

    /// As this release writes it. One of a later release must read it.
    const RECORD: &str = include_str!("../tests/formats/record-1.json");
    const TARGET: &str = "/var/lib/kubelet/pods/6b1c/volumes/kubernetes.io~csi/larder-x/mount";

    fn kept(record: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("{}.json", mk_record('a').identity()));
        fs::write(&path, record).unwrap();
        (dir, path)
    }

    #[test]
    fn a_record_of_this_release_is_read_and_written_as_ever() {
        let (dir, path) = kept(RECORD);
        let state = State::open(dir.path()).unwrap();
        let record = state.by_target(Path::new(TARGET)).unwrap();
        assert_eq!((record.mount.mode, record.dataset_name.as_str()), (mounter::Mode::Passthrough, "imagenet"));
        assert_eq!(record.pod_at(Path::new(TARGET)).unwrap().name, "train-0");
        let (volume, terms) = (record.volume_at(Path::new(TARGET)).unwrap(), record.terms_at(Path::new(TARGET)).unwrap());
        state.add_target(&record, Path::new(TARGET), volume, terms, record.pod_at(Path::new(TARGET))).unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), RECORD);
    }

    #[test]
    fn fields_of_a_later_release_are_passed_over() {
        let later = RECORD
            .replacen('{', r#"{"colour":{"red":1},"#, 1)
            .replace(r#""gid":0"#, r#""gid":0,"quota":9"#)
            .replace(r#""readonly":true"#, r#""readonly":true,"why":null"#);
        let (dir, _) = kept(&later);
        let record = State::open(dir.path()).unwrap().by_target(Path::new(TARGET)).unwrap();
        assert!(record.terms_at(Path::new(TARGET)).unwrap().readonly && record.mount.file_mode == 0o444);
    }

    #[test]
    fn a_record_of_a_later_format_is_refused_by_name_and_left_as_it_is() {
        // The second cannot be read in any other way.
        for later in [RECORD.replace(r#""version":1"#, r#""version":2"#), r#"{"mounts":[1],"version":2}"#.to_owned()] {
            let (dir, path) = kept(&later);
            let told = State::open(dir.path()).unwrap_err().to_string();
            for part in [path.to_str().unwrap(), "format 2", "up to 1", "go back to the release"] {
                assert!(told.contains(part), "{part} in {told}");
            }
            assert_eq!(fs::read_to_string(path).unwrap(), later);
        }
    }
}
