//! Files that turned out to be bad, kept for whoever looks for the reason: a failing disk, memory, or someone who wrote into
//! the folder. Nothing is ever served from here.

use crate::layout;
use larder_core::key::ObjectKey;
use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
};

/// Most files kept, sidecars among them, and most bytes of them together: evidence, not storage.
const FILES: usize = 16;
const BYTES: u64 = 1 << 30;

/// Moves a complete file and its sidecar, as far as they are there; false: there was no file. Blocks.
///
/// All permissions are taken off it: that is how whoever has it open sees that it was taken back.
pub(crate) fn put(dir: &Path, key: &ObjectKey, size: u64) -> io::Result<bool> {
    let (folder, data) = (layout::quarantine(dir), layout::data(dir, key));
    match fs::set_permissions(&data, fs::Permissions::from_mode(0o000)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs::create_dir_all(&folder)?;
    let moved = rename(&data, &folder)?;
    rename(&layout::sidecar(dir, key, size), &folder)?;
    prune(&folder)?;
    Ok(moved)
}

fn rename(from: &Path, folder: &Path) -> io::Result<bool> {
    match fs::rename(from, folder.join(from.file_name().unwrap_or_default())) {
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
        let meta = fs::symlink_metadata(&path)?;
        files.push(((meta.ctime(), meta.ctime_nsec()), meta.len(), path));
    }
    files.sort_by(|a, b| b.cmp(a));
    let mut bytes = 0;
    for (n, (_, len, path)) in files.iter().enumerate() {
        bytes += len;
        if n >= FILES || bytes > BYTES {
            fs::remove_file(path)?;
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
        let keys: Vec<_> = (0..FILES as u64 / 2 + 3).map(|n| ObjectKey::new("o", "p", "v", n)).collect();
        for key in &keys {
            let data = layout::data(dir.path(), key);
            fs::create_dir_all(data.parent().unwrap()).unwrap();
            fs::write(&data, "x").unwrap();
            fs::write(layout::sidecar(dir.path(), key, 1), "y").unwrap();
            assert!(put(dir.path(), key, 1).unwrap());
            assert!(!data.exists());
            let taken_back = fs::metadata(layout::quarantine(dir.path()).join(key.to_string())).unwrap();
            assert_eq!(taken_back.permissions().mode() & 0o777, 0);
            // Change times have the grain of the kernel's clock.
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(!put(dir.path(), &ObjectKey::new("o", "p", "v", 99), 1).unwrap(), "was never there");
        let kept: Vec<_> = keys.iter().filter(|k| layout::quarantine(dir.path()).join(k.to_string()).exists()).collect();
        assert_eq!(kept, keys[3..].iter().collect::<Vec<_>>());
        assert_eq!(fs::read_dir(layout::quarantine(dir.path())).unwrap().count(), FILES);
    }

    #[test]
    fn a_file_that_is_larger_than_all_evidence_may_be_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let key = ObjectKey::new("o", "p", "v", 1);
        let data = layout::data(dir.path(), &key);
        fs::create_dir_all(data.parent().unwrap()).unwrap();
        fs::File::create(&data).unwrap().set_len(BYTES + 1).unwrap();
        assert!(put(dir.path(), &key, BYTES + 1).unwrap());
        assert_eq!(fs::read_dir(layout::quarantine(dir.path())).unwrap().count(), 0);
    }
}
