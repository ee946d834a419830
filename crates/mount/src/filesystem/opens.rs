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

use super::Outcome;
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
    collections::HashMap,
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Below this mean size of a snapshot's files, `Auto` means no-open. An open that asks us costs about 100 µs more than one that
/// does not; a read through us costs about a tenth more than one that the kernel does alone, 60 µs per MiB at the speed of an NVMe
/// disk. Both are equal, over a whole pass, at one to two MiB per open.
const MEAN_SIZE: u64 = 1 << 20;
/// Backing files of closed inodes kept for the next open, per mount: an open of one of them asks nobody.
const IDLE: usize = 1024;
/// And for how long: a file that the worker removes keeps its space as long as it is registered.
const IDLE_TIME: Duration = Duration::from_secs(60);
const SHARDS: usize = 16;

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
    file: Arc<File>,
    backings: Arc<dyn Backings>,
    /// Milliseconds since the table was made.
    used: AtomicU64,
}

impl Backing {
    pub(super) fn new(id: u32, file: Arc<File>, backings: Arc<dyn Backings>) -> Self {
        Self { id, file, backings, used: AtomicU64::new(0) }
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        self.backings.unregister(self.id);
    }
}

/// How an inode is open.
#[derive(Clone)]
pub(super) enum Way {
    Passthrough(Arc<Backing>),
    Cached,
}

impl Way {
    pub(super) fn reply(&self, inode: u64, reply: ReplyOpen) {
        // The handle is the inode: it means the same in the next process.
        match self {
            Self::Passthrough(b) => backing::opened(reply, FileHandle(inode), b.id),
            Self::Cached => reply.opened(FileHandle(inode), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH),
        }
    }
}

struct Open {
    way: Way,
    count: u64,
}

/// What is open on one passthrough mount.
pub(super) struct OpenTable {
    backings: Arc<dyn Backings>,
    open: [Mutex<HashMap<u64, Open>>; SHARDS],
    idle: Cache<u64, Arc<Backing>>,
    since: Instant,
    outcome: Arc<Outcome>,
    /// The last file could not be registered; that was told.
    failing: AtomicBool,
}

impl OpenTable {
    pub(super) fn new(backings: Arc<dyn Backings>, outcome: Arc<Outcome>) -> Self {
        let open = std::array::from_fn(|_| Mutex::default());
        Self { backings, open, idle: Cache::new(IDLE), since: Instant::now(), outcome, failing: AtomicBool::new(false) }
    }

    fn shard(&self, inode: u64) -> &Mutex<HashMap<u64, Open>> {
        &self.open[(inode % SHARDS as u64) as usize]
    }

    /// Opens an inode once more as it is open, or as it was a moment ago.
    pub(super) fn again(&self, inode: u64, size: u64) -> Option<Way> {
        let mut open = self.shard(inode).lock();
        if let Some(open) = open.get_mut(&inode) {
            open.count += 1;
            return Some(open.way.clone());
        }
        let backing = self.idle.get(&inode)?;
        if check(&backing.file, size).is_err() {
            self.idle.remove(&inode);
            return None;
        }
        backing.used.store(self.now(), Relaxed);
        let way = Way::Passthrough(backing);
        open.insert(inode, Open { way: way.clone(), count: 1 });
        Some(way)
    }

    /// Opens an inode in this way, unless somebody has opened it in another meanwhile.
    pub(super) fn first(&self, inode: u64, way: Way) -> Way {
        let mut open = self.shard(inode).lock();
        let open = open.entry(inode).or_insert_with(|| {
            if let Way::Passthrough(backing) = &way {
                backing.used.store(self.now(), Relaxed);
                self.idle.insert(inode, Arc::clone(backing));
            }
            Open { way, count: 0 }
        });
        open.count += 1;
        open.way.clone()
    }

    /// A handle was closed.
    pub(super) fn release(&self, inode: u64) {
        let mut open = self.shard(inode).lock();
        let Some(entry) = open.get_mut(&inode) else { return };
        entry.count -= 1;
        if entry.count == 0 {
            let closed = open.remove(&inode);
            drop(open);
            if let Some(Open { way: Way::Passthrough(backing), .. }) = closed {
                backing.used.store(self.now(), Relaxed);
            }
        }
    }

    /// Registers a complete local file; cached when that is not possible.
    pub(super) async fn way(&self, file: Option<Arc<File>>, identity: &str) -> Way {
        let Some(file) = file.filter(|_| self.outcome.refused.get().is_none()) else { return Way::Cached };
        let registered = self.backings.register(Arc::clone(&file) as _).await;
        match registered {
            Ok(id) => {
                if self.failing.swap(false, Relaxed) {
                    tracing::info!(identity, "passthrough again");
                }
                Way::Passthrough(Arc::new(Backing::new(id, file, Arc::clone(&self.backings))))
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

    /// Forgets backing files that nobody has opened for a while.
    pub(super) fn forget_idle(&self) {
        let now = self.now();
        self.idle.retain(|_, b| now.saturating_sub(b.used.load(Relaxed)) < IDLE_TIME.as_millis() as u64);
    }

    fn now(&self) -> u64 {
        self.since.elapsed().as_millis() as u64
    }
}

/// Forgets idle backing files now and then, as long as the table is there.
pub(super) async fn keep_tidy(table: std::sync::Weak<OpenTable>) {
    let mut ticks = tokio::time::interval(IDLE_TIME / 2);
    loop {
        ticks.tick().await;
        let Some(table) = table.upgrade() else { return };
        table.forget_idle();
    }
}
