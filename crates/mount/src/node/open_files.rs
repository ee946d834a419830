//! Complete local files that are open, and what is known about files that are not. Bounded; shared by all mounts of the node.

use quick_cache::sync::Cache;
use std::{
    fs::File,
    sync::Arc,
    time::{Duration, Instant},
};

/// "Not here" is 50 bytes or so of memory; forgetting it costs one more question to the local worker.
const HEARD_CAPACITY: usize = 65_536;

type Key = (u64, u64);

/// By session and inode.
#[derive(Debug)]
pub struct OpenFiles {
    files: Cache<Key, Arc<File>>,
    heard: Cache<Key, Heard>,
}

/// What the worker said last of a file that is not open.
#[derive(Clone, Copy, Debug)]
enum Heard {
    /// It is not here; to be believed until then.
    Absent(Instant),
    /// It came at that time.
    Arrived(Instant),
}

impl OpenFiles {
    /// At most `capacity` files stay open.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { files: Cache::new(capacity), heard: Cache::new(HEARD_CAPACITY) }
    }

    /// The file, if it is open.
    #[must_use]
    pub fn get(&self, session: u64, inode: u64) -> Option<Arc<File>> {
        self.files.get(&(session, inode))
    }

    /// Keeps it open.
    pub fn insert(&self, session: u64, inode: u64, file: Arc<File>) {
        self.files.insert((session, inode), file);
    }

    /// Is it known not to be here?
    #[must_use]
    pub fn is_absent(&self, session: u64, inode: u64) -> bool {
        matches!(self.heard.get(&(session, inode)), Some(Heard::Absent(until)) if Instant::now() < until)
    }

    /// Remembers an answer to what was asked at `asked`, unless the file has arrived since.
    pub fn set_absent(&self, session: u64, inode: u64, asked: Instant, time: Duration) {
        let key = (session, inode);
        self.files.remove(&key);
        if !matches!(self.heard.get(&key), Some(Heard::Arrived(at)) if asked <= at) {
            self.heard.insert(key, Heard::Absent(Instant::now() + time));
        }
    }

    /// The file is here now.
    pub(crate) fn arrived(&self, session: u64, inode: u64) {
        self.heard.insert((session, inode), Heard::Arrived(Instant::now()));
    }

    /// Any file may be here now.
    pub(crate) fn forget_absent(&self, session: u64) {
        self.heard.retain(|key, _| key.0 != session);
    }

    /// Closes what the session had open. To be called when its backend is dropped: its reads are over then, and none can put
    /// a file in afterwards.
    pub(crate) fn forget_session(&self, session: u64) {
        self.files.retain(|key, _| key.0 != session);
        self.forget_absent(session);
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
        files.set_absent(1, 7, Instant::now(), Duration::from_secs(60));
        assert!(files.get(1, 7).is_none());
        assert!(files.is_absent(1, 7));
        files.set_absent(1, 8, Instant::now(), Duration::ZERO);
        assert!(!files.is_absent(1, 8), "over at once");
    }

    #[test]
    fn an_answer_that_an_arrival_overtook_is_not_believed() {
        let files = OpenFiles::new(8);
        let minute = Duration::from_secs(60);
        let asked = Instant::now();
        files.arrived(1, 7);
        files.set_absent(1, 7, asked, minute);
        assert!(!files.is_absent(1, 7));
        files.set_absent(1, 7, Instant::now() + Duration::from_millis(1), minute);
        assert!(files.is_absent(1, 7), "it is gone again");
        files.set_absent(2, 7, asked, minute);
        files.forget_absent(1);
        assert!(!files.is_absent(1, 7) && files.is_absent(2, 7));
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
