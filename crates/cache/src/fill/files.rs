//! Files of a fill: made, put among the complete ones step by step, or given up.

use super::journal;
use crate::{CacheError, layout, sidecar::Sidecar};
use larder_core::key::ObjectKey;
use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

/// Makes the file, without space. Blocks.
pub(crate) fn create(dir: &Path, key: &ObjectKey) -> Result<File, CacheError> {
    let path = layout::fill(dir, key);
    File::options().write(true).create(true).truncate(true).open(&path).map_err(CacheError::disk("make", path))
}

/// Begins its journal, once its space is reserved. Blocks.
pub(crate) fn begin(dir: &Path, key: &ObjectKey, size: u64) -> Result<(), CacheError> {
    let made = if journal::is_kept(size) { journal::create(dir, key, size) } else { Ok(()) };
    made.map_err(CacheError::disk("make", layout::journal(dir, key)))
}

/// For writing; not held open, because there may be many unfinished files. Blocks.
pub(crate) fn open_to_write(dir: &Path, key: &ObjectKey) -> io::Result<File> {
    File::options().write(true).open(layout::fill(dir, key))
}

/// For reading; the file may have been put among the complete ones a moment ago. Blocks.
pub(crate) fn open_to_read(dir: &Path, key: &ObjectKey) -> io::Result<File> {
    match File::open(layout::fill(dir, key)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => File::open(layout::data(dir, key)),
        opened => opened,
    }
}

/// A file whose chunks are all there.
pub(crate) struct Whole<'a> {
    pub dir: &'a Path,
    pub key: &'a ObjectKey,
    pub sidecar: &'a Sidecar,
}

/// Makes the file durable and puts it among the complete ones. Blocks.
pub(crate) fn finish(dir: &Path, key: &ObjectKey, sidecar: &Sidecar) -> Result<(), CacheError> {
    let whole = Whole { dir, key, sidecar };
    STEPS.iter().try_for_each(|step| step(&whole))
}

type Step = fn(&Whole<'_>) -> Result<(), CacheError>;

/// In this order: after a crash between any two of them there is either the complete file with its sidecar, or an unfinished
/// one that goes on.
pub(crate) const STEPS: [Step; 6] = [sync_data, write_sidecar, make_folder, place_sidecar, place_file, end_journal];

fn sync_data(whole: &Whole<'_>) -> Result<(), CacheError> {
    let path = layout::fill(whole.dir, whole.key);
    File::open(&path).and_then(|f| f.sync_data()).map_err(CacheError::disk("sync", path))
}

fn write_sidecar(whole: &Whole<'_>) -> Result<(), CacheError> {
    let path = layout::fill_sidecar(whole.dir, whole.key);
    let write = || {
        let mut file = File::create(&path)?;
        file.write_all(&whole.sidecar.encode())?;
        file.sync_data()
    };
    write().map_err(CacheError::disk("write", &path))
}

fn make_folder(whole: &Whole<'_>) -> Result<(), CacheError> {
    let path = layout::data(whole.dir, whole.key);
    let Some(folder) = path.parent().filter(|folder| !folder.is_dir()) else { return Ok(()) };
    fs::create_dir_all(folder).map_err(CacheError::disk("make", folder))?;
    sync_folder(&layout::data_folder(whole.dir))
}

fn place_sidecar(whole: &Whole<'_>) -> Result<(), CacheError> {
    let to = layout::sidecar(whole.dir, whole.key, whole.sidecar.size);
    fs::rename(layout::fill_sidecar(whole.dir, whole.key), &to).map_err(CacheError::disk("rename to", &to))
}

fn place_file(whole: &Whole<'_>) -> Result<(), CacheError> {
    let to = layout::data(whole.dir, whole.key);
    fs::rename(layout::fill(whole.dir, whole.key), &to).map_err(CacheError::disk("rename to", &to))?;
    to.parent().map_or(Ok(()), sync_folder)
}

fn end_journal(whole: &Whole<'_>) -> Result<(), CacheError> {
    let path = layout::journal(whole.dir, whole.key);
    remove(&path).map_err(CacheError::disk("remove", path))
}

fn sync_folder(folder: &Path) -> Result<(), CacheError> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(CacheError::disk("sync", folder))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Removes what a fill left behind; the journal first, without which the rest counts for nothing. Blocks.
pub(crate) fn abandon(dir: &Path, key: &ObjectKey) {
    for path in [layout::journal(dir, key), layout::fill_sidecar(dir, key), layout::fill(dir, key)] {
        if let Err(e) = remove(&path) {
            tracing::warn!(path = %path.display(), error = %e, "remove unfinished file; the next start does it");
        }
    }
}
