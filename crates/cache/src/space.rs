//! Free space: asked from the disk, less what is being reserved at this moment.

use crate::CacheError;
use nix::{errno::Errno, fcntl, sys::statvfs::statvfs};
use std::{
    fs::File,
    io,
    os::fd::AsFd as _,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

/// Space of a disk that is left alone, because a full disk hurts more than this dataset (logs, images, the kubelet).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floor {
    /// Of the disk's size.
    pub percent: u8,
    /// Never less than this.
    pub at_least: u64,
}

impl Default for Floor {
    /// 5 %, at least 10 GiB.
    fn default() -> Self {
        Self { percent: 5, at_least: 10 << 30 }
    }
}

impl Floor {
    fn of(self, size: u64) -> u64 {
        (size / 100 * u64::from(self.percent)).max(self.at_least)
    }
}

#[derive(Debug)]
pub(crate) struct Space {
    floor: Floor,
    /// Between the look at the disk and the reservation on it.
    reserving: AtomicU64,
}

impl Space {
    pub fn new(floor: Floor) -> Self {
        Self { floor, reserving: AtomicU64::new(0) }
    }

    /// Gives the file its full length, with space for all of it. Blocks.
    pub fn reserve(&self, folder: &Path, path: &Path, file: &File, len: u64) -> Result<(), CacheError> {
        if len == 0 {
            return Ok(());
        }
        let reserving = self.reserving.fetch_add(len, Ordering::AcqRel) + len;
        let result = self.reserve_now(folder, path, file, len, reserving);
        self.reserving.fetch_sub(len, Ordering::AcqRel);
        result
    }

    /// Bytes above the floor that nobody is reserving. Blocks.
    pub fn room(&self, folder: &Path) -> Result<u64, CacheError> {
        let (free, floor) = self.look(folder)?;
        Ok(free.saturating_sub(floor).saturating_sub(self.reserving.load(Ordering::Acquire)))
    }

    /// Bytes that are free, and bytes of them to leave alone.
    fn look(&self, folder: &Path) -> Result<(u64, u64), CacheError> {
        let disk = statvfs(folder).map_err(|e| CacheError::disk("ask for free space of", folder)(e.into()))?;
        let unit = disk.fragment_size();
        Ok((disk.blocks_available() * unit, self.floor.of(disk.blocks() * unit)))
    }

    fn reserve_now(&self, folder: &Path, path: &Path, file: &File, len: u64, reserving: u64) -> Result<(), CacheError> {
        let (free, floor) = self.look(folder)?;
        let full = || CacheError::DiskFull { path: folder.to_owned(), need: len, free, floor };
        // Also with a floor of 0: a reservation that fails half-way has filled the disk of everyone else for a moment.
        if free < reserving.saturating_add(floor) {
            return Err(full());
        }
        let signed = i64::try_from(len).map_err(|_| full())?;
        match fcntl::fallocate(file.as_fd(), fcntl::FallocateFlags::empty(), 0, signed) {
            Ok(()) => Ok(()),
            Err(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) => Err(full()),
            // A file system that cannot reserve: the floor alone must do.
            Err(Errno::EOPNOTSUPP) => file.set_len(len).map_err(CacheError::disk("resize", path)),
            Err(e) => Err(CacheError::disk("reserve space for", path)(io::Error::from(e))),
        }
    }
}
