//! What the origin costs: bytes that came from it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Body bytes received from the origin, retries included.
#[derive(Debug, Default)]
pub struct Received {
    objects: AtomicU64,
    listings: AtomicU64,
}

impl Received {
    /// Bytes of objects.
    #[must_use]
    pub fn objects(&self) -> u64 {
        self.objects.load(Ordering::Relaxed)
    }

    /// Bytes of listings.
    #[must_use]
    pub fn listings(&self) -> u64 {
        self.listings.load(Ordering::Relaxed)
    }

    /// Counts what has come; also goes on from what was counted before a restart.
    pub fn add_objects(&self, bytes: u64) {
        self.objects.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_listings(&self, bytes: u64) {
        self.listings.fetch_add(bytes, Ordering::Relaxed);
    }
}
