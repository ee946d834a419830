//! Small files as a data loader takes them: open, stat, read whole, close; in random order.

use super::{Took, timed};
use crate::stats::Random;
use anyhow::Context as _;
use nix::fcntl::{PosixFadviseAdvice::POSIX_FADV_DONTNEED, posix_fadvise};
use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// All of them, once.
pub(super) fn read(mut files: Vec<PathBuf>, threads: usize, seed: u64) -> anyhow::Result<Took> {
    Random::new(seed).shuffle(&mut files);
    timed(&files, threads, |path, buffer| Ok((whole(path, buffer)?.1, 1)))
}

/// One after the other and from the first again, for a while. Nothing is left in the page cache for the next time.
pub(super) fn again(mut files: Vec<PathBuf>, threads: usize, seconds: usize, seed: u64) -> anyhow::Result<Took> {
    Random::new(seed).shuffle(&mut files);
    let (next, until) = (AtomicUsize::new(0), Instant::now() + Duration::from_secs(seconds as u64));
    timed(&vec![(); threads], threads, |(), buffer| {
        let (mut bytes, mut count) = (0, 0);
        while Instant::now() < until {
            let path = &files[next.fetch_add(1, Relaxed) % files.len()];
            let (file, len) = whole(path, buffer)?;
            posix_fadvise(&file, 0, 0, POSIX_FADV_DONTNEED).with_context(|| format!("forget {}", path.display()))?;
            (bytes, count) = (bytes + len, count + 1);
        }
        Ok((bytes, count))
    })
}

fn whole(path: &Path, buffer: &mut Vec<u8>) -> anyhow::Result<(File, u64)> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let len = usize::try_from(file.metadata().with_context(|| format!("stat {}", path.display()))?.len())?;
    buffer.resize(len, 0);
    file.read_exact(buffer).with_context(|| format!("read {}", path.display()))?;
    Ok((file, len as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_again_until_the_time_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<_> = (0..3).map(|i| dir.path().join(i.to_string())).collect();
        files.iter().for_each(|file| std::fs::write(file, [1; 1000]).unwrap());
        let took = again(files, 2, 1, 1).unwrap();
        assert!(took.count > 3 && took.bytes == took.count * 1000 && took.seconds >= 1.0, "{took:?}");
    }
}
