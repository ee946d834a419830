//! Catalog entry → what stat(2) shows.

use super::BLOCK;
use fuser::{FileAttr, FileType, INodeNo};
use larder_core::catalog::{Entry, Kind};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Owner and permissions, the same for all files and for all folders of a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permissions of files.
    pub file_mode: u16,
    /// Permissions of folders.
    pub dir_mode: u16,
}

impl Look {
    pub(super) fn attributes(self, index: u64, entry: &Entry) -> FileAttr {
        let time = time(entry.mtime_ns());
        FileAttr {
            ino: INodeNo(index + 1),
            size: entry.size(),
            blocks: entry.size().div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: file_type(entry.kind),
            perm: match entry.kind {
                Kind::Dir => self.dir_mode,
                Kind::File => self.file_mode,
            },
            // 1 also for folders: "number of sub-folders not counted", as programs that walk trees know it.
            nlink: 1,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: BLOCK,
            flags: 0,
        }
    }

    /// Answer to a lookup of a name that is not there; only the inode number counts.
    pub(super) fn nothing() -> FileAttr {
        FileAttr {
            ino: INodeNo(0),
            size: 0,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: FileType::RegularFile,
            perm: 0,
            nlink: 0,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK,
            flags: 0,
        }
    }
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Dir => FileType::Directory,
        Kind::File => FileType::RegularFile,
    }
}

fn time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    if ns < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) }.unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_are_times_too() {
        assert_eq!(time(-1_500_000_000), UNIX_EPOCH - Duration::from_millis(1500));
        assert_eq!(time(1_500_000_000), UNIX_EPOCH + Duration::from_millis(1500));
        let _ = (time(i64::MIN), time(i64::MAX));
    }
}
