//! How files are opened: the mode of a mount, and the table of what is open.
//!
//! ```text
//! no-open       OPEN is answered ENOSYS once; no open or close reaches us again, and the page cache is kept over them
//! passthrough   OPEN ─► open already, or closed a moment ago: the same answer again
//!                   └─► the complete local file, registered as a backing file: the kernel reads it, we never see a read
//!                   └─► anything else: cached; the kernel asks for pages, and keeps them
//! ```
//!
//! The kernel allows one of the two per mount. Within passthrough an inode is open in one way at a time: while any handle is
//! open, every open repeats what the first was told, the backing id included; anything else would end in EIO. Incomplete files
//! are opened cached, not direct-io: their pages are shared by all readers and read ahead, and since the way an inode is open
//! changes only while it is closed, the kernel never sees a cached and a passthrough handle together.
//!
//! A handle is named by the `unique` of its OPEN. Before OPEN is answered the handle is in [`Slots`], and before RELEASE is it is
//! no more: a process that comes after a kill finds what is open, and gives a request that the kernel sends again the same answer.

use super::{
    Outcome,
    slots::{Entry, Slot, Slots},
};
use crate::{
    backend::check,
    passthrough::{Backings, RegisterError},
};
use fuser::{FileHandle, FopenFlags, ReplyOpen};
use larder_core::catalog::Catalog;
use larder_fuse::{backing, protocol::mounter::Mode};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};

/// Below this mean size of a snapshot's files, `Auto` means no-open. An open that asks us costs about 100 µs more than one that
/// does not; a read through us costs about a tenth more than one that the kernel does alone, 60 µs per MiB at the speed of an NVMe
/// disk. Both are equal, over a whole pass, at one to two MiB per open.
const MEAN_SIZE: u64 = 1 << 20;
/// Backing files of closed inodes kept for the next open, per mount: an open of one of them asks nobody.
const IDLE: usize = 1024;
/// And for how long: a file that the worker removes keeps its space as long as it is registered.
const IDLE_TIME: Duration = Duration::from_secs(60);
const SHARDS: usize = 16;
/// Between two attempts to have an id forgotten.
const RETRY: Duration = Duration::from_secs(5);
/// Ids are given in order. So many may have been given to a process that was killed before it could note them: each stands for
/// an OPEN that was being answered.
const UNNOTED: u32 = 256;

/// The mode that the files ask for, where the kernel can do both.
pub(super) fn resolve(wanted: Mode, catalog: &Catalog<File>) -> Mode {
    match wanted {
        Mode::Auto if catalog.bytes() / catalog.files().max(1) < MEAN_SIZE => Mode::NoOpen,
        Mode::Auto => Mode::Passthrough,
        chosen => chosen,
    }
}

/// One registered file; forgotten when the last one that may open it is gone.
pub(super) struct Backing {
    id: u32,
    /// None: opened by a process before this one.
    file: Option<Arc<File>>,
    unused: mpsc::UnboundedSender<Unused>,
    slot: Option<Slot>,
    /// Milliseconds since the table was made.
    used: AtomicU64,
}

/// A backing file that nobody can open any more.
#[derive(Clone, Copy, Debug)]
struct Unused {
    id: u32,
    slot: Option<Slot>,
}

impl Drop for Backing {
    fn drop(&mut self) {
        // Fails when the mount is over: the connection takes its ids along.
        let _ = self.unused.send(Unused { id: self.id, slot: self.slot });
    }
}

/// How an inode is open.
#[derive(Clone)]
pub(super) enum Way {
    Passthrough(Arc<Backing>),
    Cached,
}

impl Way {
    pub(super) fn reply(&self, handle: u64, reply: ReplyOpen) {
        match self {
            Self::Passthrough(b) => backing::opened(reply, FileHandle(handle), b.id),
            Self::Cached => reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH),
        }
    }

    fn entry(&self, handle: u64, inode: u64) -> Entry {
        match self {
            Self::Passthrough(b) => Entry::Passthrough { handle, inode, id: b.id },
            Self::Cached => Entry::Cached { handle, inode },
        }
    }
}

struct Open {
    way: Way,
    handles: HashMap<u64, Option<Slot>>,
}

impl Open {
    fn new(way: Way) -> Self {
        Self { way, handles: HashMap::new() }
    }
}

/// What is open on one passthrough mount.
pub(super) struct OpenTable {
    backings: Arc<dyn Backings>,
    open: [Mutex<HashMap<u64, Open>>; SHARDS],
    slots: Slots,
    /// The highest number of a backing file so far, and where that is noted.
    highest: Mutex<(u32, Option<Slot>)>,
    idle: Cache<u64, Arc<Backing>>,
    unused: mpsc::UnboundedSender<Unused>,
    /// What the process before this one had and no handle needs. Nothing is registered before it is forgotten, so that none of
    /// these numbers means anything new.
    stale: tokio::sync::Mutex<Vec<Unused>>,
    since: Instant,
    outcome: Arc<Outcome>,
    /// The last file could not be registered; that was told.
    failing: AtomicBool,
}

impl OpenTable {
    /// Goes on with what is in `file`, which is empty at first. To be called on a runtime: tasks forget what is not used, as long
    /// as the table is there.
    pub(super) fn start(backings: Arc<dyn Backings>, outcome: Arc<Outcome>, file: File) -> io::Result<Arc<Self>> {
        let (slots, found) = Slots::load(file)?;
        let (unused, waiting) = mpsc::unbounded_channel();
        let mut ids: BTreeMap<u32, Option<Slot>> = BTreeMap::new();
        let mut highest = (0, None);
        for (slot, entry) in &found {
            match entry {
                Entry::Highest { id } => highest = (*id, Some(*slot)),
                Entry::Backing { id } => drop(ids.insert(*id, Some(*slot))),
                Entry::Passthrough { id, .. } => drop(ids.entry(*id).or_default()),
                Entry::Cached { .. } => {}
            }
        }
        let table = Self {
            backings,
            open: std::array::from_fn(|_| Mutex::default()),
            slots,
            highest: Mutex::new(highest),
            idle: Cache::new(IDLE),
            unused,
            stale: tokio::sync::Mutex::default(),
            since: Instant::now(),
            outcome,
            failing: AtomicBool::new(false),
        };
        let mut used: HashMap<u32, Arc<Backing>> = HashMap::new();
        for (slot, entry) in found {
            let (handle, inode, way) = match entry {
                Entry::Backing { .. } | Entry::Highest { .. } => continue,
                Entry::Cached { handle, inode } => (handle, inode, Way::Cached),
                Entry::Passthrough { handle, inode, id } => {
                    let backing = used.entry(id).or_insert_with(|| table.backing(id, None, ids.get(&id).copied().flatten()));
                    (handle, inode, Way::Passthrough(Arc::clone(backing)))
                }
            };
            let mut open = table.shard(inode).lock();
            open.entry(inode).or_insert_with(|| Open::new(way)).handles.insert(handle, Some(slot));
        }
        let highest = highest.0.max(ids.keys().next_back().copied().unwrap_or_default());
        // Also lower ones: who was answered later may have been the first to note it.
        let around = highest.saturating_sub(UNNOTED)..=highest.saturating_add(UNNOTED);
        let unnoted: Vec<u32> = around.filter(|id| *id > 0 && !ids.contains_key(id)).collect();
        let unnoted = unnoted.into_iter().map(|id| Unused { id, slot: None });
        let noted = ids.into_iter().filter(|(id, _)| !used.contains_key(id)).map(|(id, slot)| Unused { id, slot });
        let stale = noted.chain(unnoted).collect();
        let table = Arc::new(Self { stale: tokio::sync::Mutex::new(stale), ..table });
        tokio::spawn(keep_tidy(Arc::downgrade(&table)));
        tokio::spawn(forget(Arc::downgrade(&table), waiting));
        Ok(table)
    }

    fn backing(&self, id: u32, file: Option<Arc<File>>, slot: Option<Slot>) -> Arc<Backing> {
        Arc::new(Backing { id, file, unused: self.unused.clone(), slot, used: AtomicU64::new(0) })
    }

    fn shard(&self, inode: u64) -> &Mutex<HashMap<u64, Open>> {
        &self.open[(inode % SHARDS as u64) as usize]
    }

    /// Opens an inode once more as it is open, or as it was a moment ago.
    pub(super) fn again(&self, inode: u64, size: u64, handle: u64) -> Option<Way> {
        let mut open = self.shard(inode).lock();
        if let Some(open) = open.get_mut(&inode) {
            return Some(self.add(open, inode, handle));
        }
        let backing = self.idle.get(&inode)?;
        if backing.file.as_ref().is_none_or(|file| check(file, size).is_err()) {
            self.idle.remove(&inode);
            return None;
        }
        backing.used.store(self.now(), Relaxed);
        let open = open.entry(inode).or_insert_with(|| Open::new(Way::Passthrough(backing)));
        Some(self.add(open, inode, handle))
    }

    /// Opens an inode by its local file when it is known whether there is one.
    pub(super) async fn open(
        &self,
        inode: u64,
        handle: u64,
        file: impl Future<Output = Option<Arc<File>>>,
        identity: &str,
    ) -> Way {
        let way = self.way(file.await, identity).await;
        self.first(inode, way, handle)
    }

    /// Opens an inode in this way, unless somebody has opened it in another meanwhile.
    fn first(&self, inode: u64, way: Way, handle: u64) -> Way {
        let mut open = self.shard(inode).lock();
        let open = open.entry(inode).or_insert_with(|| {
            if let Way::Passthrough(backing) = &way {
                backing.used.store(self.now(), Relaxed);
                self.idle.insert(inode, Arc::clone(backing));
            }
            Open::new(way)
        });
        self.add(open, inode, handle)
    }

    /// A handle that is there already is that of an OPEN which is answered once more.
    fn add(&self, open: &mut Open, inode: u64, handle: u64) -> Way {
        let way = open.way.clone();
        open.handles.entry(handle).or_insert_with(|| self.note(way.entry(handle, inode)));
        way
    }

    /// A handle was closed, perhaps by the process before this one.
    pub(super) fn release(&self, inode: u64, handle: u64) {
        let mut open = self.shard(inode).lock();
        let Some(entry) = open.get_mut(&inode) else { return };
        let Some(slot) = entry.handles.remove(&handle) else { return };
        self.erase(slot);
        if entry.handles.is_empty() {
            let closed = open.remove(&inode);
            drop(open);
            if let Some(Open { way: Way::Passthrough(backing), .. }) = closed {
                backing.used.store(self.now(), Relaxed);
            }
        }
    }

    fn note(&self, entry: Entry) -> Option<Slot> {
        // It costs memory, and there is always a little for 32 bytes; without, the mount works until its mounter dies.
        self.slots.write(entry).inspect_err(|error| tracing::error!(%error, "note what is open")).ok()
    }

    fn note_highest(&self, id: u32) {
        let mut highest = self.highest.lock();
        if id > highest.0 {
            let entry = Entry::Highest { id };
            let slot = match highest.1 {
                Some(slot) => self.slots.replace(slot, entry).map(|()| slot).ok(),
                None => self.note(entry),
            };
            *highest = (id, slot);
        }
    }

    fn erase(&self, slot: Option<Slot>) {
        if let Some(Err(error)) = slot.map(|slot| self.slots.clear(slot)) {
            tracing::error!(%error, "note what is not open any more");
        }
    }

    /// Registers a complete local file; cached when that is not possible.
    async fn way(&self, file: Option<Arc<File>>, identity: &str) -> Way {
        let Some(file) = file.filter(|_| self.outcome.refused.get().is_none()) else { return Way::Cached };
        let registered = async {
            self.forget_stale().await?;
            self.backings.register(Arc::clone(&file) as _).await
        };
        match registered.await {
            Ok(id) => {
                if self.failing.swap(false, Relaxed) {
                    tracing::info!(identity, "passthrough again");
                }
                self.note_highest(id);
                Way::Passthrough(self.backing(id, Some(file), self.note(Entry::Backing { id })))
            }
            Err(error) => {
                if matches!(&error, RegisterError::Refused(e) if backing::is_lasting(e)) {
                    // Set at most once.
                    let _ = self.outcome.refused.set(error.to_string());
                }
                // The node plugin may be away for long, and files are opened all the time.
                if self.failing.swap(true, Relaxed) {
                    tracing::debug!(identity, %error, "still no passthrough");
                } else {
                    tracing::warn!(identity, %error, "no passthrough; reads of local files go through the mounter");
                }
                Way::Cached
            }
        }
    }

    async fn forget_stale(&self) -> Result<(), RegisterError> {
        let mut stale = self.stale.lock().await;
        while let Some(unused) = stale.last() {
            self.forget(*unused).await?;
            stale.pop();
        }
        Ok(())
    }

    async fn forget(&self, unused: Unused) -> Result<(), RegisterError> {
        match self.backings.unregister(unused.id).await {
            // The kernel will say so again.
            Ok(()) | Err(RegisterError::Refused(_)) => self.erase(unused.slot),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Forgets backing files that nobody has opened for a while.
    pub(super) fn forget_idle(&self) {
        let now = self.now();
        self.idle.retain(|_, b| now.saturating_sub(b.used.load(Relaxed)) < IDLE_TIME.as_millis() as u64);
    }

    fn now(&self) -> u64 {
        self.since.elapsed().as_millis() as u64
    }
}

/// Forgets what the process before this one did not need, and idle backing files now and then, as long as the table is there.
async fn keep_tidy(table: Weak<OpenTable>) {
    loop {
        let Some(strong) = table.upgrade() else { return };
        strong.forget_idle();
        let forgotten = strong.forget_stale().await;
        drop(strong);
        tokio::time::sleep(if forgotten.is_ok() { IDLE_TIME / 2 } else { RETRY }).await;
    }
}

/// Has ids forgotten, so that nobody else waits for it. An id that is not keeps its file's space on the disk. There are never
/// more of them than files were open.
async fn forget(table: Weak<OpenTable>, mut waiting: mpsc::UnboundedReceiver<Unused>) {
    while let Some(unused) = waiting.recv().await {
        loop {
            // The mount is over: the connection takes its ids along.
            let Some(table) = table.upgrade() else { return };
            match table.forget(unused).await {
                Ok(()) => break,
                Err(error) => tracing::debug!(id = unused.id, %error, "forget backing file; trying again"),
            }
            drop(table);
            tokio::time::sleep(RETRY).await;
        }
    }
}

#[cfg(test)]
mod simulation;
