//! Chunks that someone reads while they are fetched ahead of use: such a fetch stops being patient.
//!
//! A reader of a chunk joins the fetch that is under way. Were that one waiting for its share of the bandwidth, or for its turn
//! behind other fetches ahead of use, the reader would wait with it.

use larder_core::key::ObjectKey;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};
use tokio::sync::Notify;

/// Object and first byte of the chunk.
type Chunk = (ObjectKey, u64);

/// Who meets at which chunk.
#[derive(Debug, Default)]
pub(crate) struct Wanted(Mutex<HashMap<Chunk, Meeting>>);

#[derive(Debug, Default)]
struct Meeting {
    /// Readers and fetches that are here.
    guests: usize,
    readers: usize,
    reader_came: Arc<Notify>,
}

/// Leaves when dropped.
pub(crate) struct Guest<'a> {
    wanted: &'a Wanted,
    chunk: Chunk,
    reader: bool,
    reader_came: Arc<Notify>,
}

impl Wanted {
    /// Someone waits for this chunk.
    pub fn read(&self, key: ObjectKey, start: u64) -> Guest<'_> {
        let guest = self.enter((key, start), true);
        guest.reader_came.notify_one();
        guest
    }

    /// This chunk is fetched ahead of use. One fetch of a chunk at a time.
    pub fn ahead(&self, key: ObjectKey, start: u64) -> Guest<'_> {
        self.enter((key, start), false)
    }

    fn enter(&self, chunk: Chunk, reader: bool) -> Guest<'_> {
        let mut meetings = self.0.lock();
        let meeting = meetings.entry(chunk).or_default();
        meeting.guests += 1;
        meeting.readers += usize::from(reader);
        Guest { wanted: self, chunk, reader, reader_came: Arc::clone(&meeting.reader_came) }
    }

    fn has_readers(&self, chunk: &Chunk) -> bool {
        self.0.lock().get(chunk).is_some_and(|m| m.readers > 0)
    }
}

impl Guest<'_> {
    /// Waits until someone reads the chunk.
    pub async fn reader(&self) {
        while !self.wanted.has_readers(&self.chunk) {
            self.reader_came.notified().await;
        }
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let mut meetings = self.wanted.0.lock();
        if let Some(meeting) = meetings.get_mut(&self.chunk) {
            meeting.guests -= 1;
            meeting.readers -= usize::from(self.reader);
            if meeting.guests == 0 {
                meetings.remove(&self.chunk);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[tokio::test]
    async fn a_fetch_hears_of_a_reader_whoever_came_first_and_nothing_is_left_behind() {
        let wanted = Wanted::default();
        let (key, other) = (ObjectKey::new("o", "p", "v", 1), ObjectKey::new("o", "q", "v", 1));
        let ahead = wanted.ahead(key, 0);
        let elsewhere = (wanted.read(other, 0), wanted.read(key, 4 << 20));
        let mut reader = Box::pin(ahead.reader());
        assert!((&mut reader).now_or_never().is_none());
        let read = wanted.read(key, 0);
        assert!((&mut reader).now_or_never().is_some());
        drop(reader);
        drop(ahead);
        assert!(wanted.ahead(key, 0).reader().now_or_never().is_some(), "one that comes later");
        drop((read, elsewhere));
        assert!(wanted.0.lock().is_empty());
    }
}
