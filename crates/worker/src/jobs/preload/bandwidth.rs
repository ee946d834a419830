//! A cap on the bytes that are fetched ahead of use in a second.

use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// Gives out the time at which bytes may be asked for, one request after the other.
#[derive(Debug)]
pub(crate) struct Bandwidth(Mutex<Instant>);

impl Bandwidth {
    pub fn new() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    /// Waits until so many bytes may be asked for, at this many in a second; 0: at once. They are spent also when nobody waits
    /// to the end.
    pub async fn take(&self, bytes: u64, per_second: u64) {
        if per_second == 0 {
            return;
        }
        let at = {
            let mut next = self.0.lock();
            let at = (*next).max(Instant::now());
            *next = at + Duration::from_secs_f64(bytes as f64 / per_second as f64);
            at
        };
        tokio::time::sleep_until(at).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn so_many_bytes_take_so_much_time_and_without_a_cap_none() {
        let bandwidth = Bandwidth::new();
        let began = Instant::now();
        futures::future::join_all((0..1000).map(|_| bandwidth.take(1 << 30, 0))).await;
        assert!(began.elapsed() < Duration::from_millis(100));
        let began = Instant::now();
        // The first goes at once; after it, 100 KB at 1 MB/s.
        futures::future::join_all((0..11).map(|_| bandwidth.take(10_000, 1_000_000))).await;
        let took = began.elapsed();
        assert!((Duration::from_millis(95)..Duration::from_millis(300)).contains(&took), "{took:?}");
    }
}
