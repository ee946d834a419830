//! Memory for answers: what is taken for one counts until its last byte is sent.

use bytes::Bytes;
use larder_peer::Refusal;
use std::sync::Arc;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

/// Bytes of answers in memory, all peers together: with what is in flight from the origin well below 256 MiB, and as much as
/// 750 readers of 128 KiB ask for at once.
const SERVING: usize = 96 << 20;

/// KiB of answers that may still come into memory.
pub(crate) struct Serving(Arc<Semaphore>);

/// The right to have so many bytes in memory.
pub(crate) struct Memory {
    _permit: OwnedSemaphorePermit,
}

impl Default for Serving {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(SERVING >> 10)))
    }
}

impl Serving {
    /// Waits for memory.
    pub async fn take(&self, bytes: u64, until: Instant) -> Result<Memory, Refusal> {
        let kib = bytes.div_ceil(1024).min((SERVING >> 10) as u64) as u32;
        // Never closed, so the only failure is that it took too long.
        let Ok(Ok(permit)) = timeout_at(until, Arc::clone(&self.0).acquire_many_owned(kib)).await else {
            return Err(Refusal::Later("the memory of this worker is full of answers that are being sent".to_owned()));
        };
        Ok(Memory { _permit: permit })
    }

    #[cfg(test)]
    pub fn taken(&self) -> usize {
        SERVING - (self.0.available_permits() << 10)
    }
}

impl Memory {
    /// The bytes; the memory is free when they are sent.
    pub fn hold(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Held { bytes, _memory: self })
    }
}

struct Held {
    bytes: Bytes,
    _memory: Memory,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn memory_that_does_not_become_free_is_waited_for_no_longer_than_said() {
        let serving = Serving::default();
        let soon = || Instant::now() + Duration::from_millis(20);
        let bytes = serving.take(1 << 40, soon()).await.unwrap().hold(Bytes::from_static(b"x"));
        let slice = bytes.slice(..);
        drop(bytes);
        assert!(serving.take(1, soon()).await.is_err());
        drop(slice);
        assert!(serving.take(1, soon()).await.is_ok());
    }
}
