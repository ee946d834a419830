//! The scan at start: complete files with a good sidecar are kept, everything else goes.

use crate::{CacheError, sidecar};
use larder_core::key::ObjectKey;
use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

/// Name of a complete file.
pub(crate) fn data(dir: &Path, key: &ObjectKey) -> PathBuf {
    let name = key.to_string();
    dir.join("data").join(&name[..2]).join(&name)
}

/// Reads the folder, makes what is missing, removes what is not whole. Blocks.
pub(crate) fn scan(dir: &Path) -> Result<HashMap<ObjectKey, u64>, CacheError> {
    let fill = dir.join("fill");
    match fs::remove_dir_all(&fill) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(CacheError::disk("empty", fill)(e)),
    }
    let data = dir.join("data");
    for folder in [&fill, &data] {
        fs::create_dir_all(folder).map_err(CacheError::disk("make", folder))?;
    }
    let mut complete = HashMap::new();
    let mut discarded = 0u64;
    for shard in entries(&data)? {
        if !shard.is_dir() {
            discarded += remove(&shard)?;
            continue;
        }
        let paths = entries(&shard)?;
        let found: HashMap<_, _> = paths.iter().filter_map(|path| whole(dir, path)).collect();
        for path in &paths {
            let file = path.with_extension("");
            let is_part = path.extension().is_none_or(|e| e == "meta");
            let key = file.file_name().and_then(|n| n.to_str()).and_then(ObjectKey::from_hex);
            if !(is_part && key.is_some_and(|key| found.contains_key(&key))) {
                discarded += remove(path)?;
            }
        }
        complete.extend(found);
    }
    if discarded > 0 {
        tracing::warn!(folder = %data.display(), discarded, "files that were not whole are fetched again");
    }
    Ok(complete)
}

/// The key and size of a complete file that lies where it should.
fn whole(dir: &Path, path: &Path) -> Option<(ObjectKey, u64)> {
    let key = ObjectKey::from_hex(path.file_name()?.to_str()?)?;
    if data(dir, &key) != path {
        return None;
    }
    let length = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?.len();
    let sidecar = sidecar::load(path).ok()?;
    (sidecar.size == length).then_some((key, length))
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, CacheError> {
    let read = || fs::read_dir(folder)?.map(|e| Ok(e?.path())).collect::<io::Result<Vec<_>>>();
    read().map_err(CacheError::disk("list", folder))
}

fn remove(path: &Path) -> Result<u64, CacheError> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map(|()| 1).map_err(CacheError::disk("remove", path))
}

/// Removes a file and its sidecar, if they are there. Blocks.
pub(crate) fn unlink(file: &Path) -> io::Result<()> {
    for path in [file.to_owned(), sidecar::path(file)] {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}
