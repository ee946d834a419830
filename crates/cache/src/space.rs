//! Free space: asked from the disk, less what the other datasets of the disk wait for.

use crate::{
    CacheError,
    ledger::{Disk, Ledger, Page},
};
use larder_core::shares::{FLOOR_BYTES, FLOOR_PERCENT, Tenant};
use nix::{errno::Errno, fcntl, sys::statvfs::statvfs};
use parking_lot::Mutex;
use std::{
    fs::File,
    io,
    ops::Range,
    os::fd::AsFd as _,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// Others leave alone what this dataset asked for, for so long after it asked last.
const ASKED: Duration = Duration::from_secs(20);
/// What is asked for at least, if the share allows it: so that many small files are not kept waiting for each other.
const STEP: u64 = 1 << 30;

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
        Self { percent: FLOOR_PERCENT, at_least: FLOOR_BYTES }
    }
}

impl Floor {
    fn of(self, size: u64) -> u64 {
        (size / 100 * u64::from(self.percent)).max(self.at_least)
    }
}

/// A disk says how large it is, and how much of that is free.
pub(crate) type Look = fn(&Path) -> io::Result<(u64, u64)>;

pub(crate) fn of_disk(folder: &Path) -> io::Result<(u64, u64)> {
    let disk = statvfs(folder)?;
    let unit = disk.fragment_size();
    Ok((disk.blocks() * unit, disk.blocks_available() * unit))
}

/// Makes the file that long, if it is shorter. Blocks.
pub(crate) fn lengthen(file: &File, len: u64) -> io::Result<()> {
    if file.metadata()?.len() < len { file.set_len(len) } else { Ok(()) }
}

#[derive(Debug)]
pub(crate) struct Space {
    floor: Floor,
    look: Look,
    ledger: Option<Ledger>,
    /// One look at the disk and reservation on it at a time, and when room was asked for last.
    turn: Mutex<Option<Instant>>,
    /// This dataset is told no more. Set and looked at in turn.
    gone: AtomicBool,
    /// Bytes of fills that have begun and have no space yet.
    waiting: AtomicU64,
}

impl Space {
    pub fn new(folder: &Path, floor: Floor, look: Look) -> Self {
        let (turn, waiting) = (Mutex::new(None), AtomicU64::new(0));
        Self { floor, look, ledger: Ledger::beside(folder), turn, gone: AtomicBool::new(false), waiting }
    }

    /// A fill of so many bytes begins to look for space.
    pub fn begin(&self, len: u64) {
        self.waiting.fetch_add(len, Relaxed);
    }

    /// It has found it, or not.
    pub fn end(&self, len: u64) {
        self.waiting.fetch_sub(len, Relaxed);
    }

    pub fn waiting(&self) -> u64 {
        self.waiting.load(Relaxed)
    }

    /// Gives ranges of the file space, and the file the length that it has with them. Blocks.
    pub fn reserve(&self, folder: &Path, path: &Path, file: &File, ranges: &[Range<u64>]) -> Result<(), CacheError> {
        let len: u64 = ranges.iter().map(|r| r.end - r.start).sum();
        if len == 0 {
            return Ok(());
        }
        // Another worker must not look at the disk between this look at it and the reservation.
        let _turn = self.turn.lock();
        let page = self.page();
        let Disk { free, floor } = self.disk(folder)?;
        let others = page.as_ref().map_or(0, Page::reserved_by_others);
        let full = || CacheError::DiskFull { path: folder.to_owned(), need: len, free, floor };
        // Also with a floor of 0: a reservation that fails half-way has filled the disk of everyone else for a moment.
        if free < len.saturating_add(floor).saturating_add(others) {
            return Err(full());
        }
        for Range { start, end } in ranges {
            let signed = |n: u64| i64::try_from(n).map_err(|_| full());
            match fcntl::fallocate(file.as_fd(), fcntl::FallocateFlags::empty(), signed(*start)?, signed(end - start)?) {
                Ok(()) => {}
                Err(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) => return Err(full()),
                // A file system that cannot reserve: the floor alone must do.
                Err(Errno::EOPNOTSUPP) => lengthen(file, *end).map_err(CacheError::disk("resize", path))?,
                Err(e) => return Err(CacheError::disk("reserve space for", path)(io::Error::from(e))),
            }
        }
        if let Some(mut page) = page {
            page.reserve(|asked| asked.saturating_sub(len));
            page.store();
        }
        Ok(())
    }

    /// Bytes above the floor that nobody waits for. Blocks.
    pub fn room(&self, folder: &Path) -> Result<u64, CacheError> {
        let _turn = self.turn.lock();
        let others = self.page().map_or(0, |page| page.reserved_by_others());
        let Disk { free, floor } = self.disk(folder)?;
        Ok(free.saturating_sub(floor).saturating_sub(others).saturating_sub(self.waiting()))
    }

    /// Bytes beyond that, which the other datasets of the disk would give if they were asked. Blocks.
    pub fn owed(&self, folder: &Path, mine: Tenant) -> Result<u64, CacheError> {
        let _turn = self.turn.lock();
        let Some(mut page) = self.page() else { return Ok(0) };
        page.tell(mine);
        Ok(page.owed(self.disk(folder)?, u64::MAX))
    }

    /// Asks the other datasets for room for a file. Are they going to give it? Blocks.
    pub fn ask(&self, folder: &Path, mine: Tenant, len: u64) -> Result<bool, CacheError> {
        let mut turn = self.turn.lock();
        let Some(mut page) = self.page() else { return Ok(false) };
        let disk = self.disk(folder)?;
        page.tell(mine);
        let left = page.left(disk);
        if len > left {
            return Ok(false);
        }
        let want = self.waiting().max(STEP).min(left);
        let owed = page.owed(disk, want);
        let comes = disk.free.saturating_sub(disk.floor).saturating_sub(page.reserved_by_others()).saturating_add(owed) >= len;
        if owed > 0 {
            *turn = Some(Instant::now());
            page.reserve(|asked| asked.max(want));
            page.claim(disk, want);
        }
        page.store();
        Ok(comes)
    }

    /// Tells the other datasets of the disk what this one has. Gives what it has to give them. Blocks.
    pub fn tell(&self, folder: &Path, mine: Tenant) -> Result<u64, CacheError> {
        let turn = self.turn.lock();
        let Some(mut page) = self.page() else { return Ok(0) };
        page.tell(mine);
        if turn.is_none_or(|asked| asked.elapsed() >= ASKED) {
            page.reserve(|_| 0);
        }
        let claim = page.take_claim(self.disk(folder)?);
        page.store();
        Ok(claim)
    }

    /// The dataset leaves the disk. Blocks.
    pub fn leave(&self) {
        let _turn = self.turn.lock();
        if let Some(page) = self.page() {
            page.leave();
        }
        self.gone.store(true, Relaxed);
    }

    fn page(&self) -> Option<Page<'_>> {
        self.ledger.as_ref().filter(|_| !self.gone.load(Relaxed))?.open()
    }

    fn disk(&self, folder: &Path) -> Result<Disk, CacheError> {
        let (size, free) = (self.look)(folder).map_err(CacheError::disk("ask for free space of", folder))?;
        Ok(Disk { free, floor: self.floor.of(size) })
    }
}
