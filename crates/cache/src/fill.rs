//! One object on its way to the disk.

mod files;
mod journal;

#[cfg(test)]
pub(crate) use files::{STEPS, Whole};
pub(crate) use files::{begin, create, open_to_read, open_to_write, punch};
#[cfg(test)]
pub(crate) use journal::append;
pub(crate) use journal::{Journal, decode as read_journal, load as load_journal, with_checksums as journal_with_checksums};

use crate::{
    CHUNK, CacheError, ReadError,
    blocks::{block_size, covering},
    chunk_range, chunks,
    sidecar::Sidecar,
};
use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use larder_core::key::ObjectKey;
use parking_lot::Mutex;
use std::{
    collections::HashSet,
    io,
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::watch;

/// Done when the file is there and space reserved. Made once, shared by all.
pub(crate) type Start = Shared<BoxFuture<'static, Result<(), CacheError>>>;
/// One fetch of one chunk, shared by all its readers.
pub(crate) type Flight<E> = Shared<BoxFuture<'static, Result<(), ReadError<E>>>>;

pub(crate) enum Chunk<E: std::error::Error + Clone + Send + Sync + 'static> {
    Missing,
    /// Written by a process before this one, says the journal.
    Found,
    Flying(Flight<E>),
    /// On the disk.
    Present,
}

/// Space for chunks of a fill: for all of them, or, of an object that is kept in part, for those that are asked for.
pub(crate) struct Room {
    pub start: Start,
    /// Why it waits for neighbours to make it, while it does.
    pub short: watch::Sender<Option<CacheError>>,
}

impl Room {
    /// Reserved by a process before this one.
    fn found() -> Arc<Self> {
        let start: Start = std::future::ready(Ok(())).boxed().shared();
        // Only what was looked at once can be peeked at.
        let _ = start.clone().now_or_never();
        Arc::new(Self { start, short: watch::Sender::new(None) })
    }

    fn is_there(&self) -> bool {
        self.start.peek().is_some_and(Result::is_ok)
    }

    /// Waits until it waits for neighbours to make room.
    pub async fn is_short(&self) -> CacheError {
        let mut short = self.short.subscribe();
        match short.wait_for(Option::is_some).await.map(|short| short.clone()) {
            Ok(Some(error)) => error,
            _ => std::future::pending().await,
        }
    }
}

/// Which chunks are on the disk, and the checksums they were written with.
pub(crate) struct Map<E: std::error::Error + Clone + Send + Sync + 'static> {
    pub chunks: Vec<Chunk<E>>,
    /// Space of each chunk, if it has any; an object without bytes has one place here.
    pub rooms: Vec<Option<Arc<Room>>>,
    /// Chunks that are present.
    present: u64,
    /// Those, and what was found.
    pub here: u64,
    /// Of each block; meaningless for a chunk that is missing.
    crcs: Vec<u32>,
    /// Chunks that the journal is to tell of, with these checksums.
    told: Vec<bool>,
    /// Grows whenever bytes of a chunk that is here may change from now on. What was read before that says nothing about it any more.
    changes: u64,
}

/// What a chunk was that turned out to be bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// Someone else was there first: it is not here, or not what was read.
    Before,
    /// Not known to be good by this process: it may never have reached the disk.
    Found,
    /// Good until now.
    Good,
}

/// What a fill has on the disk.
#[derive(Default)]
pub(crate) struct Files {
    pub are_there: bool,
    /// The journal lacks a line, and may end in half of one; what is added there is read by nobody.
    torn: bool,
    /// Put among the complete ones, or removed: what has these names now is not this fill's.
    over: bool,
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> Map<E> {
    fn put(&mut self, n: u64, size: u64, crcs: &[u32]) {
        let first = (n * CHUNK / block_size(size)) as usize;
        self.crcs[first..first + crcs.len()].copy_from_slice(crcs);
    }

    /// What is to be in the journal.
    fn journal(&self, size: u64) -> Journal {
        let told = (0..).zip(&self.told).filter(|(_, told)| **told);
        let line = |(n, _)| (n, self.crcs[covering(size, &chunk_range(size, n))].to_vec());
        Journal { size, chunks: told.map(line).collect() }
    }
}

/// Chunks of an object, and one place for an object that has none.
pub(crate) fn places(size: u64) -> u64 {
    chunks(size).max(1)
}

/// Ranges in order, those that touch made into one.
fn joined(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut().filter(|last| last.end == range.start) {
            Some(last) => last.end = range.end,
            None => joined.push(range),
        }
    }
    joined
}

/// Ranges of the chunks that a journal does not tell of.
pub(crate) fn missing(journal: &Journal) -> Vec<Range<u64>> {
    let told: HashSet<u64> = journal.chunks.iter().map(|(n, _)| *n).collect();
    joined((0..chunks(journal.size)).filter(|n| !told.contains(n)).map(|n| chunk_range(journal.size, n)))
}

pub(crate) struct Fill<E: std::error::Error + Clone + Send + Sync + 'static> {
    pub key: ObjectKey,
    pub size: u64,
    pub map: Mutex<Map<E>>,
    /// Held while space is taken and given back, while the journal is written, and while the files are put elsewhere or removed.
    pub files: Mutex<Files>,
    /// Its file was unlinked to make room. Who reads from it goes on; it never becomes a complete file.
    pub dropped: AtomicBool,
    /// How it ended.
    pub ended: watch::Sender<Option<Result<(), CacheError>>>,
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> Fill<E> {
    pub fn new(key: ObjectKey, size: u64) -> Self {
        let chunks: Vec<_> = (0..chunks(size)).map(|_| Chunk::Missing).collect();
        let rooms = (0..places(size)).map(|_| None).collect();
        let (crcs, told) = (vec![0; size.div_ceil(block_size(size)) as usize], vec![false; chunks.len()]);
        Self {
            key,
            size,
            map: Mutex::new(Map { chunks, rooms, present: 0, here: 0, crcs, told, changes: 0 }),
            files: Mutex::default(),
            dropped: AtomicBool::new(false),
            ended: watch::Sender::new(None),
        }
    }

    /// One that a process before this one had begun, with space for the whole object or for the chunks that are there.
    pub fn found(key: ObjectKey, journal: &Journal, whole: bool) -> Self {
        let (fill, room) = (Self::new(key, journal.size), Room::found());
        {
            let mut map = fill.map.lock();
            for (n, crcs) in &journal.chunks {
                map.put(*n, fill.size, crcs);
                map.chunks[*n as usize] = Chunk::Found;
                map.told[*n as usize] = true;
                map.rooms[*n as usize] = Some(Arc::clone(&room));
            }
            map.here = map.chunks.iter().filter(|c| matches!(c, Chunk::Found)).count() as u64;
            if whole {
                map.rooms.fill(Some(room));
            }
            fill.files.lock().are_there = true;
        }
        fill
    }

    /// What has no space yet of some chunks, as ranges of bytes.
    pub fn lacking(&self, of: Range<u64>) -> Vec<Range<u64>> {
        let map = self.map.lock();
        let lacking = of.filter(|n| map.rooms[*n as usize].is_none()).map(|n| chunk_range(self.size, n));
        joined(lacking)
    }

    /// They have, or will have, this space.
    pub fn give(&self, lacking: &[Range<u64>], room: &Arc<Room>) {
        let mut map = self.map.lock();
        for range in lacking {
            // Also the one place of an object without bytes.
            let places = (range.start / CHUNK) as usize..(range.end.div_ceil(CHUNK) as usize).max(1);
            map.rooms[places].fill(Some(Arc::clone(room)));
        }
    }

    /// The space of a chunk.
    pub fn room(&self, n: u64) -> Option<Arc<Room>> {
        self.map.lock().rooms.get(n as usize)?.clone()
    }

    /// There is no space of this kind. False: there is none at all, and the fill is over.
    pub fn goes_on_without(&self, room: &Arc<Room>) -> bool {
        let mut map = self.map.lock();
        let goes_on = map.rooms.iter().flatten().any(|other| !Arc::ptr_eq(other, room));
        if goes_on {
            map.rooms.iter_mut().filter(|r| r.as_ref().is_some_and(|r| Arc::ptr_eq(r, room))).for_each(|r| *r = None);
        }
        goes_on
    }

    /// Forgets what lies outside of these ranges and nobody works on; gives the chunks that had space. They are to be forgotten on
    /// the disk as well.
    pub fn forget_others(&self, ranges: &[Range<u64>]) -> Vec<u64> {
        let mut map = self.map.lock();
        let map = &mut *map;
        let mut forgotten = Vec::new();
        for (n, chunk) in (0..).zip(&mut map.chunks) {
            let at = chunk_range(self.size, n);
            let wanted = ranges.iter().any(|r| r.start < at.end && at.start < r.end);
            let room = &mut map.rooms[n as usize];
            if wanted || matches!(chunk, Chunk::Flying(_)) || !room.as_ref().is_some_and(|room| room.is_there()) {
                continue;
            }
            *room = None;
            map.present -= u64::from(matches!(chunk, Chunk::Present));
            map.here -= u64::from(!matches!(chunk, Chunk::Missing));
            *chunk = Chunk::Missing;
            map.told[n as usize] = false;
            forgotten.push(n);
        }
        map.changes += u64::from(!forgotten.is_empty());
        forgotten
    }

    /// Gives the space of forgotten chunks back to the disk, but of those that are wanted again. The journal says so first. Blocks.
    pub fn give_back(&self, dir: &Path, forgotten: &[u64]) -> io::Result<()> {
        let mut files = self.files.lock();
        if files.over {
            return Ok(());
        }
        let forgotten = forgotten.iter().copied().filter(|n| self.room(*n).is_none());
        let ranges = joined(forgotten.map(|n| chunk_range(self.size, n)));
        self.write_journal(dir, &mut files)?;
        punch(dir, &self.key, &ranges)
    }

    /// Writes the journal anew. Blocks.
    fn write_journal(&self, dir: &Path, files: &mut Files) -> io::Result<()> {
        if files.over {
            return Ok(());
        }
        let journal = self.map.lock().journal(self.size);
        journal::write(dir, &self.key, &journal)?;
        files.torn = false;
        Ok(())
    }

    /// Takes out of the journal what was lost. Blocks.
    pub fn tell_lost(&self, dir: &Path) -> io::Result<()> {
        let mut files = self.files.lock();
        if journal::is_kept(self.size) { self.write_journal(dir, &mut files) } else { Ok(()) }
    }

    /// Puts a chunk that was written into the journal. Blocks.
    pub fn record(&self, dir: &Path, n: u64, crcs: &[u32]) {
        let mut files = self.files.lock();
        {
            let mut map = self.map.lock();
            map.put(n, self.size, crcs);
            map.told[n as usize] = true;
        }
        if files.torn || files.over {
            return;
        }
        if let Err(error) = journal::append(dir, &self.key, n, crcs) {
            files.torn = true;
            tracing::debug!(key = %self.key, %error, "a chunk is not in the journal, which is written anew when it is to be durable");
        }
    }

    /// Makes durable what has landed. Blocks.
    pub fn settle(&self, dir: &Path) -> io::Result<()> {
        {
            let mut files = self.files.lock();
            if files.torn {
                self.write_journal(dir, &mut files)?;
            }
        }
        files::settle(dir, &self.key)
    }

    /// Makes the file durable and puts it among the complete ones. Blocks.
    pub fn finish(&self, dir: &Path, sidecar: &Sidecar) -> Result<(), CacheError> {
        let mut files = self.files.lock();
        files::finish(dir, &self.key, sidecar)?;
        files.over = true;
        Ok(())
    }

    /// Removes what is on the disk. Blocks.
    pub fn abandon(&self, dir: &Path) {
        let mut files = self.files.lock();
        files::abandon(dir, &self.key);
        files.over = true;
    }

    /// Bytes that are on the disk.
    pub fn bytes_here(&self) -> u64 {
        let map = self.map.lock();
        let last_is_here = map.chunks.last().is_some_and(|c| matches!(c, Chunk::Present | Chunk::Found));
        map.here * CHUNK - if last_is_here { map.chunks.len() as u64 * CHUNK - self.size } else { 0 }
    }

    /// Is every chunk on the disk?
    pub fn is_whole(&self) -> bool {
        let map = self.map.lock();
        map.present == map.chunks.len() as u64
    }

    /// All on the disk already?
    pub fn has(&self, wanted: Range<u64>) -> bool {
        let map = self.map.lock();
        wanted.into_iter().all(|n| matches!(map.chunks[n as usize], Chunk::Present | Chunk::Found))
    }

    /// A chunk is on the disk; was it the last one?
    pub fn landed(&self, n: u64, crcs: &[u32]) -> bool {
        let mut map = self.map.lock();
        map.put(n, self.size, crcs);
        map.chunks[n as usize] = Chunk::Present;
        (map.present, map.here) = (map.present + 1, map.here + 1);
        map.present == map.chunks.len() as u64
    }

    /// A chunk on the disk turned out to be bad when so many changes had been made. It is to be taken out of the journal.
    pub fn lost(&self, n: u64, changes: u64) -> Lost {
        let mut map = self.map.lock();
        let lost = match map.chunks[n as usize] {
            _ if map.changes != changes => Lost::Before,
            Chunk::Present => Lost::Good,
            Chunk::Found => Lost::Found,
            Chunk::Missing | Chunk::Flying(_) => Lost::Before,
        };
        if lost != Lost::Before {
            map.present -= u64::from(lost == Lost::Good);
            map.here -= 1;
            map.chunks[n as usize] = Chunk::Missing;
            map.told[n as usize] = false;
            map.changes += 1;
        }
        lost
    }

    /// A chunk that was found is not what the journal says; whoever has it in flight writes it anew.
    pub fn is_rewritten(&self, n: u64) {
        let mut map = self.map.lock();
        map.told[n as usize] = false;
        map.changes += 1;
    }

    /// A chunk that was found is what the journal says; is it the last one?
    pub fn is_good(&self, n: u64, changes: u64) -> bool {
        let mut map = self.map.lock();
        if map.changes != changes || !matches!(map.chunks[n as usize], Chunk::Found) {
            return false;
        }
        map.chunks[n as usize] = Chunk::Present;
        map.present += 1;
        map.present == map.chunks.len() as u64
    }

    /// If the chunks that hold a range are on the disk: checksums of its blocks, and the changes made so far.
    pub fn at_rest(&self, range: &Range<u64>) -> Option<(Vec<u32>, u64)> {
        let map = self.map.lock();
        let is_here = |n| matches!(map.chunks[n as usize], Chunk::Present | Chunk::Found);
        let at_rest = || (map.crcs[covering(self.size, range)].to_vec(), map.changes);
        crate::covering(self.size, range).all(is_here).then(at_rest)
    }

    /// Checksums of the blocks that hold a range, as far as they were written.
    pub fn crcs(&self, range: &Range<u64>) -> Vec<u32> {
        self.map.lock().crcs[covering(self.size, range)].to_vec()
    }

    /// Marks it as dropped, if it is not whole and nobody works on it.
    pub fn drop_if_idle(&self) -> bool {
        let map = self.map.lock();
        let idle =
            map.chunks.iter().any(|c| matches!(c, Chunk::Missing)) && !map.chunks.iter().any(|c| matches!(c, Chunk::Flying(_)));
        if idle {
            self.dropped.store(true, Ordering::Release);
        }
        idle
    }

    /// The sidecar, if every chunk is on the disk.
    pub fn sidecar(&self) -> Option<Sidecar> {
        let map = self.map.lock();
        (map.present == map.chunks.len() as u64).then(|| Sidecar { size: self.size, crcs: map.crcs.clone() })
    }
}
