//! Lists a folder with all that is beneath it.

use super::{
    Inner,
    beneath::{Root, leads_nowhere},
    mtime_ns, version,
};
use crate::{Error, Item};
use larder_core::catalog::Listed;
use rustix::fs::{DirEntry, FileType};
use std::{io, os::unix::fs::MetadataExt as _};

/// One name in a folder.
enum Seen {
    /// With a slash at its end.
    Folder(String),
    Item(Item),
    /// Filtered out, or removed in this moment.
    Nothing,
}

const DENIED: &str = "may not be looked into by the user that Larder runs as";

/// Gives everything to `take`, until that has enough. Blocks.
pub(super) fn walk(inner: &Inner, mut take: impl FnMut(Item) -> bool) -> Result<(), Error> {
    let root = inner.root()?;
    let mut pending = vec![String::new()];
    while let Some(folder) = pending.pop() {
        let failed = |e: io::Error| inner.failed("list", &folder, &e);
        let entries = match root.folder(&folder) {
            Err(e) if is_gone(&e) && !folder.is_empty() => continue,
            // What is beneath the source may belong to others, such as lost+found of the disk. The source itself may not.
            Err(e) if is_denied(&e) && !folder.is_empty() => {
                if !take(Item::Skipped { key: folder, reason: DENIED }) {
                    return Ok(());
                }
                continue;
            }
            entries => entries.map_err(failed)?,
        };
        let mut empty = true;
        for entry in entries {
            let entry = entry.map_err(|e| failed(e.into()))?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            empty = false;
            match see(inner, &root, &folder, &entry)? {
                Seen::Folder(path) => pending.push(path),
                Seen::Item(item) => {
                    if !take(item) {
                        return Ok(());
                    }
                }
                Seen::Nothing => {}
            }
        }
        let marked = empty && !folder.is_empty() && inner.globs.admit(folder.trim_end_matches('/'));
        if marked && !take(Item::File(Listed { path: folder, size: 0, mtime_ns: 0, version: "folder".to_owned() })) {
            return Ok(());
        }
    }
    Ok(())
}

fn see(inner: &Inner, root: &Root, folder: &str, entry: &DirEntry) -> Result<Seen, Error> {
    let name = entry.file_name().to_string_lossy();
    let path = format!("{folder}{name}");
    let skipped = |key, reason| Ok(Seen::Item(Item::Skipped { key, reason }));
    if name.as_bytes() != entry.file_name().to_bytes() {
        return skipped(path, "its name is not UTF-8");
    }
    let link = entry.file_type() == FileType::Symlink;
    let meta = match root.any(&path).and_then(|file| file.metadata()) {
        Ok(meta) => meta,
        Err(e) if link && (is_gone(&e) || leads_nowhere(&e)) => {
            return skipped(path, "is a link that is absolute, or leads out of the folder or nowhere");
        }
        Err(e) if is_gone(&e) => return Ok(Seen::Nothing),
        Err(e) if is_denied(&e) => return skipped(path, DENIED),
        Err(e) if e.kind() == io::ErrorKind::InvalidFilename => return skipped(path, "its path is too long"),
        Err(e) => return Err(inner.failed("list", &path, &e)),
    };
    if meta.is_dir() {
        return if link {
            skipped(path, "is a link to a folder, which is not followed")
        } else if inner.globs.exclude_folder(&path) {
            Ok(Seen::Nothing)
        } else {
            Ok(Seen::Folder(format!("{path}/")))
        };
    }
    if !meta.is_file() {
        return skipped(path, "is a device, a pipe or a socket");
    }
    if !inner.globs.admit(&path) {
        return Ok(Seen::Nothing);
    }
    let (size, mtime_ns, version) = (meta.size(), mtime_ns(&meta), version(&meta));
    Ok(Seen::Item(Item::File(Listed { path, size, mtime_ns, version })))
}

fn is_denied(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::PermissionDenied
}

fn is_gone(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
