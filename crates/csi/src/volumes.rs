//! The volumes that [`Controller`](crate::controller::Controller) has made: names for datasets that exist.
//!
//! A volume is what its record says and no more: nothing of it is in the cluster, and no data is made or removed with it. The
//! record is needed to answer the next call for the same name. In a cluster volumes are the operator's, which knows all nodes; this
//! memory is of one node.

use crate::records::{RecordError, Records};
use larder_api::labels;
use larder_core::names;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

/// Raised when an older plugin could misread a record.
const VERSION: u32 = 1;

/// A dataset, as it is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Dataset {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Dataset {
    /// As parameters of a volume, and as its attributes.
    pub(crate) fn parameters(&self) -> HashMap<String, String> {
        [(labels::DATASET_NAMESPACE, &self.namespace), (labels::DATASET_NAME, &self.name)]
            .map(|(key, value)| (key.to_owned(), value.clone()))
            .into()
    }
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Volume {
    version: u32,
    pub(crate) name: String,
    pub(crate) dataset: Dataset,
    dataset_uid: String,
    /// What was asked for; nothing is allocated. 0 where nothing was.
    pub(crate) capacity: i64,
}

impl Volume {
    pub(crate) fn new(name: &str, dataset: &Dataset, dataset_uid: String, capacity: i64) -> Self {
        Self { version: VERSION, name: name.to_owned(), dataset: dataset.clone(), dataset_uid, capacity }
    }

    pub(crate) fn id(&self) -> String {
        format!("{}.{}", self.dataset_uid, names::uid_of_name(&self.name))
    }

    fn is_sound(&self, file_stem: &str) -> bool {
        self.version == VERSION && names::is_uid(&self.dataset_uid) && names::uid_of_name(&self.name) == file_stem
    }
}

/// All volumes, by the UID of their names.
#[derive(Debug)]
pub(crate) struct Volumes {
    files: Records,
    volumes: Mutex<BTreeMap<String, Volume>>,
}

impl Volumes {
    pub(crate) fn open(folder: &Path) -> Result<Self, RecordError> {
        let (files, volumes) = Records::open(folder, VERSION, Volume::is_sound)?;
        Ok(Self { files, volumes: Mutex::new(volumes) })
    }

    pub(crate) fn named(&self, name: &str) -> Option<Volume> {
        self.volumes.lock().get(&names::uid_of_name(name)).cloned()
    }

    pub(crate) fn by_id(&self, id: &str) -> Option<Volume> {
        let (_, uid) = id.split_once('.')?;
        self.volumes.lock().get(uid).filter(|volume| volume.id() == id).cloned()
    }

    /// Keeps a volume, unless there is one of its name already; gives the one that there is.
    pub(crate) fn keep(&self, volume: Volume) -> Result<Volume, RecordError> {
        let mut volumes = self.volumes.lock();
        let uid = names::uid_of_name(&volume.name);
        if let Some(known) = volumes.get(&uid) {
            return Ok(known.clone());
        }
        self.files.write(&uid, &volume)?;
        volumes.insert(uid, volume.clone());
        Ok(volume)
    }

    pub(crate) fn forget(&self, volume: &Volume) -> Result<(), RecordError> {
        let mut volumes = self.volumes.lock();
        let uid = names::uid_of_name(&volume.name);
        self.files.remove(&uid)?;
        volumes.remove(&uid);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f";

    fn mk_volume(name: &str, capacity: i64) -> Volume {
        let dataset = Dataset { namespace: "vision".into(), name: "imagenet".into() };
        Volume::new(name, &dataset, UID.into(), capacity)
    }

    #[test]
    fn the_first_volume_of_a_name_is_the_one_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second, other) = (mk_volume("../a\n", 1), mk_volume("../a\n", 2), mk_volume("b", 1));
        let volumes = Volumes::open(dir.path()).unwrap();
        assert_eq!(volumes.keep(first.clone()).unwrap(), first);
        assert_eq!(volumes.keep(second.clone()).unwrap(), first);
        volumes.keep(other.clone()).unwrap();
        let again = Volumes::open(dir.path()).unwrap();
        assert_eq!(again.named("../a\n").unwrap(), first);
        assert_eq!(again.by_id(&first.id()).unwrap(), first);
        assert_eq!(again.by_id(&first.id().replacen('0', "1", 1)), None, "of another dataset");
        again.forget(&first).unwrap();
        again.forget(&first).unwrap();
        assert_eq!(again.keep(second.clone()).unwrap(), second);
        assert_eq!(Volumes::open(dir.path()).unwrap().named("../a\n").unwrap(), second);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_volume_id_is_two_uids_whatever_the_name() {
        for name in ["a", "../../etc", "é\t", &"x".repeat(128)] {
            let id = mk_volume(name, 0).id();
            assert_eq!(crate::arguments::dataset_uid(&id).unwrap(), UID, "{id}");
        }
        assert_ne!(mk_volume("a", 0).id(), mk_volume("A", 0).id());
    }

    /// As this release writes it. One of a later release must read it.
    const VOLUME: &str = include_str!("../tests/formats/volume-1.json");

    #[test]
    fn a_volume_of_this_release_is_read_as_ever_and_one_of_a_later_format_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("{}.json", names::uid_of_name("a")));
        for known in [VOLUME.to_owned(), VOLUME.replacen('{', r#"{"colour":1,"#, 1)] {
            std::fs::write(&path, known).unwrap();
            assert_eq!(Volumes::open(dir.path()).unwrap().named("a").unwrap(), mk_volume("a", 7));
        }
        let later = VOLUME.replace(r#""version":1"#, r#""version":2"#);
        std::fs::write(&path, &later).unwrap();
        let told = Volumes::open(dir.path()).unwrap_err().to_string();
        assert!(told.contains("format 2") && told.contains("up to 1"), "{told}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), later);
    }
}
