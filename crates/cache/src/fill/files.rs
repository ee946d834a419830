//! Files of a fill: made, put among the complete ones step by step, or given up.

use super::journal;
use crate::{CacheError, layout, sidecar::Sidecar};
use larder_core::key::ObjectKey;
use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
};
use std::{
    fs::{self, File},
    io::{self, Write as _},
    ops::Range,
    os::fd::AsFd as _,
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

/// Makes what has landed of an unfinished file durable, and its journal; one that was finished meanwhile is. Blocks.
pub(super) fn settle(dir: &Path, key: &ObjectKey) -> io::Result<()> {
    open_to_read(dir, key)?.sync_data()?;
    match File::open(layout::journal(dir, key)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && layout::data(dir, key).exists() => return Ok(()),
        opened => opened?.sync_data()?,
    }
    File::open(layout::fill_folder(dir))?.sync_all()
}

/// Gives the space of ranges back to the disk; one that cannot take it back keeps it. Blocks.
pub(crate) fn punch(dir: &Path, key: &ObjectKey, ranges: &[Range<u64>]) -> io::Result<()> {
    let file = open_to_write(dir, key)?;
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    for range in ranges {
        // Both lie within a file that is there.
        let (start, len) = (range.start.cast_signed(), (range.end - range.start).cast_signed());
        match fallocate(file.as_fd(), flags, start, len) {
            Ok(()) | Err(Errno::EOPNOTSUPP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// A file whose chunks are all there.
pub(crate) struct Whole<'a> {
    pub dir: &'a Path,
    pub key: &'a ObjectKey,
    pub sidecar: &'a Sidecar,
}

/// Makes the file durable and puts it among the complete ones. Blocks.
pub(super) fn finish(dir: &Path, key: &ObjectKey, sidecar: &Sidecar) -> Result<(), CacheError> {
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
pub(super) fn abandon(dir: &Path, key: &ObjectKey) {
    for path in [layout::journal(dir, key), layout::fill_sidecar(dir, key), layout::fill(dir, key)] {
        if let Err(e) = remove(&path) {
            tracing::warn!(path = %path.display(), error = %e, "remove unfinished file; the next start does it");
        }
    }
}
