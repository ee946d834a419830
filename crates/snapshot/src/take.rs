//! From an origin to a catalog in its folder.

use crate::{
    Progress, Skips,
    collect::{Collected, Collector},
    progress::per_second,
    sorter::MEMORY,
};
use futures::StreamExt as _;
use larder_core::catalog::Written;
use larder_origin::{Item, Origin};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot};

/// Items handed over at a time, and such batches that may wait: the listing goes on while a run is written.
const BATCH: usize = 1000;
const BATCHES: usize = 32;

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// The listing failed.
    #[error(transparent)]
    Origin(#[from] larder_origin::Error),
    /// Nothing was listed that could be a file.
    #[error("no object there that could be a file")]
    Empty(Skips),
    /// The disk that the listing is sorted on, and the catalog written to.
    #[error("{action} {}: {source}", folder.display())]
    Disk {
        /// What was being done.
        action: &'static str,
        /// Where.
        folder: PathBuf,
        /// The disk's answer.
        source: io::Error,
    },
    /// The thread that sorts is gone.
    #[error("sorting the listing was interrupted by an internal error")]
    Interrupted,
}

/// A snapshot that was taken: its catalog lies in the folder under its digest.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Names the snapshot.
    pub digest: String,
    /// Files in it.
    pub files: u64,
    /// Sum of their sizes.
    pub bytes: u64,
    /// Files and folders.
    pub entries: u64,
    /// Bytes of the catalog.
    pub catalog_bytes: u64,
    /// Bytes that were sorted on the disk; 0 when the listing fitted into memory.
    pub sorted_bytes: u64,
    /// What was left out.
    pub skips: Skips,
    /// Until the last object was listed.
    pub listing: Duration,
    /// From then on.
    pub writing: Duration,
}

enum Step {
    Items(Vec<Item>),
    End,
}

/// Lists the origin and puts the catalog into the folder. Dropping the future gives up and leaves nothing behind.
///
/// # Errors
/// See [`TakeError`].
pub async fn take(origin: &dyn Origin, folder: &Path, progress: &Arc<Progress>) -> Result<Taken, TakeError> {
    take_within(MEMORY, origin, folder, progress).await
}

async fn take_within(memory: usize, origin: &dyn Origin, folder: &Path, progress: &Arc<Progress>) -> Result<Taken, TakeError> {
    let (steps, receive) = mpsc::channel(BATCHES);
    let (give, result) = oneshot::channel();
    let task = Task { folder: folder.to_owned(), uri: origin.uri().to_owned(), progress: Arc::clone(progress) };
    tokio::task::spawn_blocking(move || {
        let taken = task.run(memory, receive, || !give.is_closed());
        // Whoever gave up does not want it.
        let _ = give.send(taken);
    });
    let listed = list(origin, &steps, progress).await;
    // Without the end the thread gives up.
    drop(steps);
    let taken = result.await.unwrap_or(Err(TakeError::Interrupted));
    // A disk that failed ends the listing as well, and says why.
    listed.and(taken)
}

/// `Ok` also when nobody takes the items any more.
async fn list(origin: &dyn Origin, steps: &mpsc::Sender<Step>, progress: &Progress) -> Result<(), TakeError> {
    let mut batches = origin.list().ready_chunks(BATCH);
    while let Some(batch) = batches.next().await {
        let items = batch.into_iter().collect::<Result<Vec<_>, _>>()?;
        let (mut files, mut bytes) = (0, 0u64);
        for item in &items {
            if let Item::File(file) = item {
                files += 1;
                bytes = bytes.saturating_add(file.size);
            }
        }
        progress.listed(files, bytes);
        if steps.send(Step::Items(items)).await.is_err() {
            return Ok(());
        }
    }
    // As above.
    let _ = steps.send(Step::End).await;
    Ok(())
}

struct Task {
    folder: PathBuf,
    uri: String,
    progress: Arc<Progress>,
}

impl Task {
    /// Blocks.
    fn run(self, memory: usize, mut steps: mpsc::Receiver<Step>, wanted: impl Fn() -> bool) -> Result<Taken, TakeError> {
        let disk = |action| {
            let folder = self.folder.clone();
            move |source| TakeError::Disk { action, folder, source }
        };
        let started = Instant::now();
        let mut collector = Collector::new(&self.folder, memory);
        loop {
            match steps.blocking_recv() {
                Some(Step::Items(items)) => {
                    items.into_iter().try_for_each(|item| collector.item(item)).map_err(disk("sort the listing in"))?;
                }
                Some(Step::End) => break,
                None => return Err(TakeError::Interrupted),
            }
        }
        let listing = started.elapsed();
        let write = disk("write the catalog in");
        let file = tempfile::Builder::new().prefix(".listing-").tempfile_in(&self.folder).map_err(write.clone())?;
        let into = file.reopen().map_err(write.clone())?;
        let written = collector.write(&self.folder, &self.uri, into, &self.progress, wanted);
        let Collected { catalog, skips, sorted_bytes } = written.map_err(write.clone())?;
        let Written { sink, digest, files, bytes, entries, len } = catalog;
        if files == 0 {
            return Err(TakeError::Empty(skips));
        }
        let place = || {
            sink.sync_all()?;
            file.persist(self.folder.join(&digest)).map_err(|e| e.error)?;
            File::open(&self.folder)?.sync_all()
        };
        place().map_err(write)?;
        let taken = Taken {
            digest,
            files,
            bytes,
            entries,
            catalog_bytes: len,
            sorted_bytes,
            skips,
            listing,
            writing: started.elapsed() - listing,
        };
        tracing::info!(
            snapshot = taken.digest,
            files,
            bytes,
            entries,
            skipped = taken.skips.count,
            catalog_bytes = len,
            bytes_per_entry = len / entries,
            sorted_on_disk = sorted_bytes,
            listing = ?listing,
            writing = ?taken.writing,
            files_per_second = per_second(files, listing),
            "catalog written"
        );
        Ok(taken)
    }
}

#[cfg(test)]
mod tests;
