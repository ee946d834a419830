//! Names of the files of one dataset on one node.

use larder_core::key::ObjectKey;
use std::path::{Path, PathBuf};

/// Folder of the complete files.
pub(crate) fn data_folder(dir: &Path) -> PathBuf {
    dir.join("data")
}

/// A complete file.
pub(crate) fn data(dir: &Path, key: &ObjectKey) -> PathBuf {
    let name = key.to_string();
    data_folder(dir).join(&name[..2]).join(&name)
}

/// The sidecar beside it. The size is in its name, so that a list of names is all that the start of a worker reads.
pub(crate) fn sidecar(dir: &Path, key: &ObjectKey, size: u64) -> PathBuf {
    data(dir, key).with_extension(format!("{size}.meta"))
}

/// What a name in a folder of complete files stands for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Data(ObjectKey),
    Sidecar(ObjectKey, u64),
}

/// The meaning of a name, if it is one of ours.
pub(crate) fn parse(name: &str) -> Option<Name> {
    let Some((key, rest)) = name.split_once('.') else { return ObjectKey::from_hex(name).map(Name::Data) };
    let size = rest.strip_suffix(".meta")?;
    let number: u64 = size.parse().ok()?;
    (number.to_string() == size).then_some(Name::Sidecar(ObjectKey::from_hex(key)?, number))
}

/// Folder of the files on their way.
pub(crate) fn fill_folder(dir: &Path) -> PathBuf {
    dir.join("fill")
}

/// A file on its way.
pub(crate) fn fill(dir: &Path, key: &ObjectKey) -> PathBuf {
    fill_folder(dir).join(key.to_string())
}

/// Its sidecar, before it is put in place.
pub(crate) fn fill_sidecar(dir: &Path, key: &ObjectKey) -> PathBuf {
    fill(dir, key).with_extension("meta")
}

/// Which of its chunks are there.
pub(crate) fn journal(dir: &Path, key: &ObjectKey) -> PathBuf {
    fill(dir, key).with_extension("map")
}

/// The object of a journal's name.
pub(crate) fn key_of_journal(name: &str) -> Option<ObjectKey> {
    ObjectKey::from_hex(name.strip_suffix(".map")?)
}

/// Folder of bad files.
pub(crate) fn quarantine(dir: &Path) -> PathBuf {
    dir.join("quarantine")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written_and_no_others() {
        let (dir, key) = (Path::new("/d"), ObjectKey::new("o", "p", "v", 7));
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(parse(&name(data(dir, &key))), Some(Name::Data(key)));
        assert_eq!(parse(&name(sidecar(dir, &key, 1 << 40))), Some(Name::Sidecar(key, 1 << 40)));
        assert_eq!(key_of_journal(&name(journal(dir, &key))), Some(key));
        for other in ["x", "lost+found", &format!("{key}.meta"), &format!("{key}.+1.meta"), &format!("{key}.01.meta")] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
