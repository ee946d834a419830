//! The scan at start: what the folder holds, told by names alone. A million files are listed in a second or two; opening each
//! sidecar would take minutes on a cold disk. Whether the files are what they were is seen when they are first wanted.

use crate::{
    CacheError,
    fill::Journal,
    layout::{self, Name},
};
use larder_core::key::ObjectKey;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
};

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Complete files and their sizes.
    pub complete: Vec<(ObjectKey, u64)>,
    /// Unfinished files that have a journal.
    pub unfinished: Vec<Unfinished>,
}

/// A file that can go on.
#[derive(Debug)]
pub(crate) struct Unfinished {
    pub key: ObjectKey,
    pub journal: Journal,
    /// It has space for all of the object, not only for what the journal tells.
    pub whole: bool,
}

/// Threads that list folders. On a cold disk they wait for it, so their number has nothing to do with that of the cores.
const THREADS: usize = 16;

/// Reads the folder, makes what is missing, removes what is not whole. Blocks.
pub(crate) fn scan(dir: &Path) -> Result<Found, CacheError> {
    let (data, fill) = (layout::data_folder(dir), layout::fill_folder(dir));
    for folder in [&fill, &data] {
        fs::create_dir_all(folder).map_err(CacheError::disk("make", folder))?;
    }
    let shards = Mutex::new(entries(&data)?);
    let list = || {
        let (mut complete, mut discarded) = (Vec::new(), 0);
        loop {
            let Some(shard) = shards.lock().pop() else { return Ok((complete, discarded)) };
            discarded += list_shard(dir, &shard, &mut complete)?;
        }
    };
    let listed = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(list)).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect::<Result<Vec<_>, _>>()
    })?;
    let (mut complete, mut discarded) = (Vec::new(), 0);
    for (files, bad) in listed {
        complete.extend(files);
        discarded += bad;
    }
    let unfinished = list_fills(dir)?;
    if discarded > 0 {
        tracing::warn!(folder = %data.display(), discarded, "files that were not whole are fetched again");
    }
    Ok(Found { complete, unfinished })
}

/// The files that have a sidecar; all else is removed and counted.
fn list_shard(dir: &Path, shard: &Path, complete: &mut Vec<(ObjectKey, u64)>) -> Result<u64, CacheError> {
    if !shard.is_dir() {
        return remove(shard);
    }
    // Whether the file is there, and the size that its sidecar tells.
    let mut found = HashMap::<ObjectKey, (bool, Option<u64>)>::new();
    let mut strange = Vec::new();
    for entry in fs::read_dir(shard).map_err(CacheError::disk("list", shard))? {
        let entry = entry.map_err(CacheError::disk("list", shard))?;
        let is_file = entry.file_type().map_err(CacheError::disk("list", shard))?.is_file();
        match entry.file_name().to_str().and_then(layout::parse).filter(|_| is_file) {
            Some(Name::Data(key)) if layout::data(dir, &key).parent() == Some(shard) => found.entry(key).or_default().0 = true,
            Some(Name::Sidecar(key, size)) => found.entry(key).or_default().1 = Some(size),
            _ => strange.push(entry.path()),
        }
    }
    for (key, parts) in found {
        match parts {
            (true, Some(size)) => complete.push((key, size)),
            (true, None) => strange.push(layout::data(dir, &key)),
            (false, size) => strange.extend(size.map(|size| layout::sidecar(dir, &key, size))),
        }
    }
    strange.iter().try_fold(0, |sum, path| Ok(sum + remove(path)?))
}

/// Unfinished files that can go on; all else is removed.
fn list_fills(dir: &Path) -> Result<Vec<Unfinished>, CacheError> {
    let mut unfinished = HashMap::new();
    let paths = entries(&layout::fill_folder(dir))?;
    for path in &paths {
        let Some(key) = path.file_name().and_then(|n| n.to_str()).and_then(layout::key_of_journal) else { continue };
        let (length, space) = fs::symlink_metadata(layout::fill(dir, &key)).map_or((0, 0), |m| (m.len(), m.blocks() * 512));
        let Some(journal) = crate::fill::load_journal(dir, &key).filter(|j| j.size == length) else { continue };
        let whole = space >= length;
        if !whole {
            // Space for chunks that did not come would be counted by nobody.
            let freed = crate::fill::punch(dir, &key, &crate::fill::missing(&journal));
            // A disk that can be read and not written to any more is still good for what is on it.
            if let Err(error) = freed {
                tracing::warn!(%key, folder = %dir.display(), %error, "space of an unfinished file stays taken; check this disk");
            }
        }
        if whole || !journal.chunks.is_empty() {
            unfinished.insert(key, Unfinished { key, journal, whole });
        }
    }
    for path in &paths {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let key = layout::key_of_journal(name).or_else(|| ObjectKey::from_hex(name));
        if key.is_none_or(|key| !unfinished.contains_key(&key)) {
            remove(path)?;
        }
    }
    Ok(unfinished.into_values().collect())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, CacheError> {
    let read = || fs::read_dir(folder)?.map(|e| Ok(e?.path())).collect::<io::Result<Vec<_>>>();
    read().map_err(CacheError::disk("list", folder))
}

fn remove(path: &Path) -> Result<u64, CacheError> {
    let removed =
        if fs::symlink_metadata(path).is_ok_and(|m| m.is_dir()) { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(CacheError::disk("remove", path)(e)),
        _ => Ok(1),
    }
}

/// Removes a complete file and its sidecar, if they are there. Blocks.
pub(crate) fn unlink(dir: &Path, key: &ObjectKey, size: u64) -> io::Result<()> {
    for path in [layout::data(dir, key), layout::sidecar(dir, key, size)] {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}
