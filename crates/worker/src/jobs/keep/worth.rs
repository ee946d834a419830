//! Which files are read often enough to be copied, when not all of them can be.

use larder_core::key::ObjectKey;
use quick_cache::sync::Cache;
use std::time::{Duration, Instant};

/// Files remembered; about 100 bytes each.
const FILES: usize = 131_072;
/// A file whose first read is longer ago begins anew: longer than most epochs.
const WINDOW: Duration = Duration::from_secs(6 * 3600);

/// Bytes of each file that were read elsewhere, since the first of these reads.
pub(super) struct Worth {
    read: Cache<ObjectKey, (u64, Instant)>,
}

impl Default for Worth {
    fn default() -> Self {
        Self { read: Cache::new(FILES) }
    }
}

impl Worth {
    /// Counts a read; has more than the whole file been read now, so that this is at least the second time?
    pub fn read_again(&self, key: &ObjectKey, size: u64, bytes: u64, now: Instant) -> bool {
        let known = self.read.get(key).filter(|(_, first)| now < *first + WINDOW);
        let (before, first) = known.unwrap_or((0, now));
        self.read.insert(*key, (before + bytes, first));
        before + bytes > size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> ObjectKey {
        ObjectKey::new("s3://b/", "p", "v", n)
    }

    #[test]
    fn the_second_time_is_when_more_than_the_whole_file_was_read() {
        let (worth, start) = (Worth::default(), Instant::now());
        let read = |n, bytes, now| worth.read_again(&key(n), 100, bytes, now);
        assert!(!read(1, 60, start) && !read(1, 40, start), "once, in two pieces");
        assert!(!read(2, 100, start), "another file");
        assert!(read(1, 1, start));
        let later = start + WINDOW;
        assert!(!read(1, 100, later), "too long ago");
        assert!(read(1, 100, later));
    }
}
