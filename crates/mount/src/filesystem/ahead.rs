//! Small files are read ahead of their first read: their disk works while whoever looked up the name wakes up to ask for the content.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Files up to this size are read ahead; larger ones take so long that the round trip saved does not count.
const LARGEST: u64 = 1 << 20;
/// Files that may be read ahead for nothing: what a program that only looks at a tree costs the disk.
const CREDIT: u32 = 32;
/// What a read of a file from its start is worth. Of looked-up files every other one need not be read.
const EARNS: u32 = 2;

/// Whether it pays just now.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    credit: AtomicU32,
}

impl Ahead {
    /// A name was looked up. Is the file behind it to be read ahead?
    pub(super) fn may(&self, size: u64) -> bool {
        (1..=LARGEST).contains(&size) && self.credit.fetch_update(Relaxed, Relaxed, |credit| credit.checked_sub(1)).is_ok()
    }

    /// A file was read.
    pub(super) fn read(&self, offset: u64, size: u64) {
        if offset == 0 && size <= LARGEST {
            // Closures that always give a value do not fail.
            let _ = self.credit.fetch_update(Relaxed, Relaxed, |credit| Some((credit + EARNS).min(CREDIT)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_done_for_who_reads_and_soon_not_for_who_only_looks() {
        let ahead = Ahead::default();
        assert!(!ahead.may(100), "nobody has read yet");
        for _ in 0..100 {
            ahead.read(0, 100);
        }
        assert!(!ahead.may(0) && !ahead.may(LARGEST + 1));
        assert_eq!((0..1000).filter(|_| ahead.may(LARGEST)).count(), CREDIT as usize);
        // Later parts and large files say nothing of small ones.
        ahead.read(4096, 8192);
        ahead.read(0, LARGEST + 1);
        assert!(!ahead.may(100));
        // Every other file is read.
        let tried = (0..1000).filter(|n| {
            if n % 2 == 0 {
                ahead.read(0, 100);
            }
            ahead.may(100)
        });
        assert_eq!(tried.count(), 1000);
    }
}
