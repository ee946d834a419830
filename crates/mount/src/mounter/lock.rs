//! A lock that one process of several has: the kernel gives it back when that process is dead, and not before.

use anyhow::Context as _;
use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{FOLDER_PATIENCE, FOLDER_PAUSE};

/// Waits until no other process has the file locked; none when it is to stop before that.
pub(super) async fn lock(path: &Path, shutdown: &CancellationToken) -> anyhow::Result<Option<File>> {
    while !shutdown.is_cancelled() {
        let file = open(path).await?;
        let waited = shutdown.run_until_cancelled(wait(file));
        let Some(locked) = waited.await else { return Ok(None) };
        let file = locked.with_context(|| format!("lock {}", path.display()))?;
        // The one before may have removed it: then another process may have made and locked a new one.
        let is_there = fs::metadata(path).is_ok_and(|there| file.metadata().is_ok_and(|mine| mine.ino() == there.ino()));
        if is_there {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

async fn open(path: &Path) -> anyhow::Result<File> {
    let deadline = Instant::now() + FOLDER_PATIENCE;
    loop {
        match File::options().create(true).truncate(false).write(true).open(path) {
            // The folder is the node plugin's to make.
            Err(error) if Instant::now() < deadline => {
                tracing::warn!(path = %path.display(), %error, "waiting for the folder of a lock");
                tokio::time::sleep(FOLDER_PAUSE).await;
            }
            opened => return opened.with_context(|| format!("open {}", path.display())),
        }
    }
}

async fn wait(file: File) -> io::Result<File> {
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => tracing::info!("another process serves; standing by"),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // In a thread that may stay behind when this process ends.
    let (locked, wait) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || drop(locked.send(file.lock().map(|()| file))));
    wait.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering::SeqCst},
        },
        time::Duration,
    };

    #[tokio::test]
    async fn one_has_it_and_the_next_gets_it_also_when_the_file_was_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, stop) = (dir.path().join("l"), CancellationToken::new());
        let first = lock(&path, &stop).await.unwrap().unwrap();
        let second = tokio::spawn({
            let (path, stop) = (path.clone(), stop.clone());
            async move { lock(&path, &stop).await.unwrap().unwrap() }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!second.is_finished());
        // As a mounter that ends and has no mounts; a third one comes before the second can.
        fs::remove_file(&path).unwrap();
        let third = lock(&path, &stop).await.unwrap().unwrap();
        drop(first);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!second.is_finished(), "two have it");
        drop(third);
        assert!(second.await.unwrap().try_lock().is_ok());
        stop.cancel();
        assert!(lock(&path, &stop).await.unwrap().is_none());
    }

    /// Some give up while they wait, which leaves a thread behind; some remove the file at their end, as a mounter without mounts.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_many_that_come_and_go_one_serves_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let (path, serving) = (dir.path().join("l"), Arc::new(AtomicU32::new(0)));
        let contend = |n: u64| {
            let (path, serving) = (path.clone(), Arc::clone(&serving));
            async move {
                for round in 0..60u64 {
                    let chance = (n * 60 + round).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
                    let patience =
                        if chance.is_multiple_of(4) { Duration::from_micros(chance % 500) } else { Duration::from_secs(60) };
                    let stop = CancellationToken::new();
                    let Ok(locked) = tokio::time::timeout(patience, lock(&path, &stop)).await else { continue };
                    let locked = locked.unwrap().unwrap();
                    assert_eq!(serving.fetch_add(1, SeqCst), 0, "two serve");
                    tokio::time::sleep(Duration::from_micros(chance % 300)).await;
                    serving.fetch_sub(1, SeqCst);
                    if chance.is_multiple_of(3) {
                        fs::remove_file(&path).unwrap();
                    }
                    drop(locked);
                }
            }
        };
        for contender in (0..6).map(|n| tokio::spawn(contend(n))).collect::<Vec<_>>() {
            contender.await.unwrap();
        }
    }
}
