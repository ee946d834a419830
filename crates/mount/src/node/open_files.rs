//! Complete local files that are open, and which files are known not to be here. Bounded; shared by all mounts of the node.

use quick_cache::sync::Cache;
use std::{
    fs::File,
    sync::Arc,
    time::{Duration, Instant},
};

/// "Not here" is 50 bytes or so of memory; forgetting it costs one more question to the local worker.
const ABSENT_CAPACITY: usize = 65_536;

type Key = (u64, u64);

/// By session and inode.
#[derive(Debug)]
pub(crate) struct OpenFiles {
    files: Cache<Key, Arc<File>>,
    absent: Cache<Key, Instant>,
}

impl OpenFiles {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { files: Cache::new(capacity), absent: Cache::new(ABSENT_CAPACITY) }
    }

    pub(crate) fn get(&self, session: u64, inode: u64) -> Option<Arc<File>> {
        self.files.get(&(session, inode))
    }

    pub(crate) fn insert(&self, session: u64, inode: u64, file: Arc<File>) {
        self.files.insert((session, inode), file);
    }

    pub(crate) fn is_absent(&self, session: u64, inode: u64) -> bool {
        self.absent.get(&(session, inode)).is_some_and(|until| Instant::now() < until)
    }

    pub(crate) fn set_absent(&self, session: u64, inode: u64, time: Duration) {
        self.files.remove(&(session, inode));
        self.absent.insert((session, inode), Instant::now() + time);
    }

    /// Closes what the session had open. To be called when its backend is dropped: its reads are over then, and none can put
    /// a file in afterwards.
    pub(crate) fn forget_session(&self, session: u64) {
        self.files.retain(|key, _| key.0 != session);
        self.absent.retain(|key, _| key.0 != session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_file() -> Arc<File> {
        Arc::new(tempfile::tempfile().unwrap())
    }

    #[test]
    fn a_rejected_file_is_not_given_out_again() {
        let files = OpenFiles::new(8);
        files.insert(1, 7, mk_file());
        assert!(files.get(1, 7).is_some());
        assert!(files.get(2, 7).is_none(), "another session's");
        files.set_absent(1, 7, Duration::from_secs(60));
        assert!(files.get(1, 7).is_none());
        assert!(files.is_absent(1, 7));
        files.set_absent(1, 8, Duration::ZERO);
        assert!(!files.is_absent(1, 8), "over at once");
    }

    #[test]
    fn no_more_files_stay_open_than_allowed_and_none_of_an_ended_session() {
        let files = OpenFiles::new(8);
        let all: Vec<_> = (0..100).map(|_| mk_file()).collect();
        for (inode, file) in all.iter().enumerate() {
            files.insert(1, inode as u64, Arc::clone(file));
        }
        let open = |all: &[Arc<File>]| all.iter().filter(|f| Arc::strong_count(f) > 1).count();
        assert!((1..=8).contains(&open(&all)), "{}", open(&all));
        files.forget_session(1);
        assert_eq!(open(&all), 0);
    }
}
