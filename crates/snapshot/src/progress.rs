//! How far a snapshot is.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// Counts that whoever waits may look at.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    files: AtomicU64,
    bytes: AtomicU64,
    written: AtomicU64,
}

impl Default for Progress {
    fn default() -> Self {
        Self { started: Instant::now(), files: AtomicU64::new(0), bytes: AtomicU64::new(0), written: AtomicU64::new(0) }
    }
}

impl Progress {
    /// Files listed so far.
    #[must_use]
    pub fn files(&self) -> u64 {
        self.files.load(Relaxed)
    }

    /// Sum of their sizes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Files and folders written to the catalog; 0 as long as the listing goes on.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    /// Files listed per second, since the beginning.
    #[must_use]
    pub fn rate(&self) -> u64 {
        per_second(self.files(), self.started.elapsed())
    }

    pub(crate) fn listed(&self, files: u64, bytes: u64) {
        self.files.fetch_add(files, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn wrote(&self, entries: u64) {
        self.written.store(entries, Relaxed);
    }
}

pub(crate) fn per_second(count: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(count) * 1_000_000 / time.as_micros().max(1)).unwrap_or(u64::MAX)
}
