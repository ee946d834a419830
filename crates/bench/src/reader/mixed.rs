//! Eight readers of whole files and eight of random places, for a while: how long single reads take, and how even the stream is.

use super::{Took, timed};
use crate::stats::{Random, quantile};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

const READERS: usize = 16;
const SEQUENTIAL: usize = 256 << 10;
const PAGE: usize = 4 << 10;
/// Most pages of a random read.
const PAGES: usize = 16;
/// Buckets for each doubling of the time.
const FINE: f64 = 32.0;
const BUCKETS: usize = 1024;

/// What the mean does not show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tails {
    /// Of single reads, in milliseconds.
    pub p99: f64,
    pub p999: f64,
    /// 5th percentile of the bytes of one second, over their median.
    pub windows: f64,
}

/// How often a read took how long.
struct Histogram(Vec<u64>);

impl Histogram {
    fn add(&mut self, took: Duration) {
        let bucket = (took.as_nanos().max(1) as f64).log2() * FINE;
        self.0[(bucket as usize).min(BUCKETS - 1)] += 1;
    }

    /// Milliseconds.
    fn quantile(&self, share: f64) -> f64 {
        let rank = (self.0.iter().sum::<u64>() as f64 * share) as u64;
        let mut seen = 0;
        let bucket = self.0.iter().position(|n| {
            seen += n;
            seen > rank
        });
        ((bucket.unwrap_or(BUCKETS) as f64 + 0.5) / FINE).exp2() / 1e6
    }
}

pub(super) fn read(paths: &[PathBuf], seconds: usize, seed: u64) -> anyhow::Result<(Took, Tails)> {
    let open = |path: &PathBuf| -> anyhow::Result<(File, usize)> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let len = usize::try_from(file.metadata()?.len())?;
        anyhow::ensure!(len > PAGES * PAGE, "{} is too short", path.display());
        Ok((file, len))
    };
    let files = paths.iter().map(open).collect::<anyhow::Result<Vec<_>>>()?;
    let (all, windows) = (Mutex::new(Histogram(vec![0; BUCKETS])), (0..seconds).map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
    let started = Instant::now();
    let readers: Vec<usize> = (0..READERS).collect();
    let took = timed(&readers, READERS, |reader, buffer| {
        let (mut random, mut histogram) = (Random::new(seed * READERS as u64 + *reader as u64), Histogram(vec![0; BUCKETS]));
        let (mut file, mut at, mut bytes, mut count) = (*reader, 0, 0, 0);
        buffer.resize(SEQUENTIAL, 0);
        while let Some(window) = windows.get(started.elapsed().as_secs() as usize) {
            let (source, from, len) = if reader % 2 == 0 {
                let (source, size) = &files[file % files.len()];
                let (from, len) = (at, SEQUENTIAL.min(size - at));
                (file, at) = if from + len == *size { (file + 1, 0) } else { (file, from + len) };
                (source, from, len)
            } else {
                let (source, size) = &files[random.below(files.len())];
                let len = (1 + random.below(PAGES)) * PAGE;
                (source, random.below((size - len) / PAGE + 1) * PAGE, len)
            };
            let before = Instant::now();
            source.read_exact_at(&mut buffer[..len], from as u64).context("read")?;
            histogram.add(before.elapsed());
            window.fetch_add(len as u64, Relaxed);
            (bytes, count) = (bytes + len as u64, count + 1);
        }
        let mut all = all.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.0.iter_mut().zip(&histogram.0).for_each(|(sum, n)| *sum += n);
        Ok((bytes, count))
    })?;
    let all = all.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let windows: Vec<f64> = windows.iter().map(|w| w.load(Relaxed) as f64).collect();
    let windows = quantile(&windows, 0.05) / quantile(&windows, 0.5);
    Ok((took, Tails { p99: all.quantile(0.99), p999: all.quantile(0.999), windows }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rare_long_read_shows_in_the_tail_only() {
        let mut histogram = Histogram(vec![0; BUCKETS]);
        (0..995).for_each(|_| histogram.add(Duration::from_micros(100)));
        (0..5).for_each(|_| histogram.add(Duration::from_millis(50)));
        assert!((histogram.quantile(0.99) / 0.1 - 1.0).abs() < 0.05, "{}", histogram.quantile(0.99));
        assert!((histogram.quantile(0.999) / 50.0 - 1.0).abs() < 0.05, "{}", histogram.quantile(0.999));
    }
}
