//! Files that turned out to be bad, kept for whoever looks for the reason: a failing disk, memory, or someone who wrote into
//! the folder. Nothing is ever served from here.

use crate::{scan, sidecar};
use larder_core::key::ObjectKey;
use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// Most files kept, and most bytes of them together: evidence, not storage.
const FILES: usize = 8;
const BYTES: u64 = 1 << 30;

pub(crate) fn folder(dir: &Path) -> PathBuf {
    dir.join("quarantine")
}

/// Moves a complete file and its sidecar, as far as they are there; false: there was no file. Blocks.
///
/// All permissions are taken off it: that is how whoever has it open sees that it was taken back.
pub(crate) fn put(dir: &Path, key: &ObjectKey) -> io::Result<bool> {
    let (folder, data) = (folder(dir), scan::data(dir, key));
    match fs::set_permissions(&data, fs::Permissions::from_mode(0o000)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs::create_dir_all(&folder)?;
    let to = folder.join(key.to_string());
    let moved = rename(&data, &to)?;
    rename(&sidecar::path(&data), &sidecar::path(&to))?;
    prune(&folder)?;
    Ok(moved)
}

fn rename(from: &Path, to: &Path) -> io::Result<bool> {
    match fs::rename(from, to) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// The newest stay; a file's change time is that of its move.
fn prune(folder: &Path) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none() {
            let meta = fs::symlink_metadata(&path)?;
            files.push(((meta.ctime(), meta.ctime_nsec()), meta.len(), path));
        }
    }
    files.sort_by(|a, b| b.cmp(a));
    let mut bytes = 0;
    for (n, (_, len, path)) in files.iter().enumerate() {
        bytes += len;
        if n >= FILES || bytes > BYTES {
            scan::unlink(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_files_are_kept_than_allowed_and_the_newest_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let keys: Vec<_> = (0..FILES as u64 + 3).map(|n| ObjectKey::new("o", "p", "v", n)).collect();
        for key in &keys {
            let data = scan::data(dir.path(), key);
            fs::create_dir_all(data.parent().unwrap()).unwrap();
            fs::write(&data, "x").unwrap();
            fs::write(sidecar::path(&data), "y").unwrap();
            assert!(put(dir.path(), key).unwrap());
            assert!(!data.exists());
            let taken_back = fs::metadata(folder(dir.path()).join(key.to_string())).unwrap();
            assert_eq!(taken_back.permissions().mode() & 0o777, 0);
            // Change times have the grain of the kernel's clock.
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(!put(dir.path(), &ObjectKey::new("o", "p", "v", 99)).unwrap(), "was never there");
        let kept: Vec<_> = keys.iter().filter(|k| folder(dir.path()).join(k.to_string()).exists()).collect();
        assert_eq!(kept, keys[3..].iter().collect::<Vec<_>>());
        assert_eq!(fs::read_dir(folder(dir.path())).unwrap().count(), 2 * FILES);
    }

    #[test]
    fn a_file_that_is_larger_than_all_evidence_may_be_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let key = ObjectKey::new("o", "p", "v", 1);
        let data = scan::data(dir.path(), &key);
        fs::create_dir_all(data.parent().unwrap()).unwrap();
        fs::File::create(&data).unwrap().set_len(BYTES + 1).unwrap();
        assert!(put(dir.path(), &key).unwrap());
        assert_eq!(fs::read_dir(folder(dir.path())).unwrap().count(), 0);
    }
}
