//! Reads that failed a moment ago.
//!
//! The kernel asks once more, page by page, for what its read-ahead did not get. Without this memory the application would hear of
//! the failure after two or three times the longest wait.

use parking_lot::Mutex;
use std::{collections::HashMap, ops::Range, time::Duration};
use tokio::time::Instant;

/// How long: the kernel asks again at once, and a pod that tries again deserves a new try.
const MEMORY: Duration = Duration::from_millis(100);
/// Bytes that fail together: the kernel's longest read.
const PART: u64 = 1 << 20;

/// By inode and part of the file.
#[derive(Default)]
pub(super) struct Failures(Mutex<HashMap<(u64, u64), Instant>>);

impl Failures {
    pub fn add(&self, inode: u64, range: &Range<u64>, now: Instant) {
        let mut failures = self.0.lock();
        failures.retain(|_, at| now - *at < MEMORY);
        failures.extend((range.start / PART..range.end.div_ceil(PART)).map(|part| ((inode, part), now)));
    }

    pub fn has(&self, inode: u64, offset: u64, now: Instant) -> bool {
        self.0.lock().get(&(inode, offset / PART)).is_some_and(|at| now - *at < MEMORY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_part_of_the_same_file_fails_again_for_a_moment() {
        let (failures, now) = (Failures::default(), Instant::now());
        failures.add(7, &(PART - 1..PART + 1), now);
        for (inode, offset, failed) in [(7, 0, true), (7, 2 * PART - 1, true), (7, 2 * PART, false), (8, 0, false)] {
            assert_eq!(failures.has(inode, offset, now), failed, "{inode} {offset}");
        }
        let later = now + MEMORY;
        assert!(!failures.has(7, 0, later));
        failures.add(8, &(0..1), later);
        assert_eq!(failures.0.lock().len(), 1, "what is over is forgotten");
    }
}
