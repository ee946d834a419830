//! What pods of this node read on other nodes, as the mounter reports it, and what has come here since.
//!
//! ```text
//! mounter ─ read elsewhere ─► told ─► jobs::keep ─► owner's disk ─► cache
//! mounter ◄──────────────── arrivals ◄─────┘
//! ```
//!
//! Memory only: after a restart the next reads are reported anew.

use parking_lot::Mutex;
use std::{collections::VecDeque, sync::Arc};
use tokio::sync::{Notify, broadcast};

/// Reports that wait; what is read while there are more is reported again when it is read again.
const WAITING: usize = 65_536;
/// Of them looked at in one go.
const AT_ONCE: usize = 1024;
/// Arrivals that a slow mounter may be behind.
const BEHIND: usize = 16_384;

/// A read on another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub file: FileOf,
    pub bytes: u64,
}

/// A file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileOf {
    pub snapshot: Arc<str>,
    pub inode: u64,
}

#[derive(Debug)]
pub(crate) struct Kept {
    reads: Mutex<VecDeque<Read>>,
    reported: Notify,
    arrived: broadcast::Sender<FileOf>,
}

impl Default for Kept {
    fn default() -> Self {
        Self { reads: Mutex::default(), reported: Notify::new(), arrived: broadcast::Sender::new(BEHIND) }
    }
}

impl Kept {
    /// Takes a report: inodes, and bytes of each.
    pub fn told(&self, snapshot: &Arc<str>, files: Vec<(u64, u64)>) {
        let mut reads = self.reads.lock();
        let room = WAITING - reads.len();
        let read = |(inode, bytes)| Read { file: FileOf { snapshot: Arc::clone(snapshot), inode }, bytes };
        reads.extend(files.into_iter().take(room).map(read));
        self.reported.notify_one();
    }

    /// Some of what was reported, the oldest first.
    pub async fn reads(&self) -> Vec<Read> {
        loop {
            {
                let mut reads = self.reads.lock();
                if !reads.is_empty() {
                    let some = reads.len().min(AT_ONCE);
                    return reads.drain(..some).collect();
                }
            }
            self.reported.notified().await;
        }
    }

    /// The file is complete on this node.
    pub fn arrived(&self, file: FileOf) {
        // An error says that no mounter listens.
        let _ = self.arrived.send(file);
    }

    /// What arrives from now on.
    pub fn arrivals(&self) -> broadcast::Receiver<FileOf> {
        self.arrived.subscribe()
    }
}
