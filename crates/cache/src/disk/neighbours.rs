//! Datasets of one disk: space for what comes is found in the own cache or at the neighbours', and what they are owed is given.

use super::{Disk, Inner};
use crate::{
    CacheError,
    fill::{self, Fill},
    layout, space,
};
use larder_core::{eviction::Wanted, shares::Tenant};
use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// Between looks into the ledger: what a neighbour waits for. 20 datasets take less than a thousandth of a core for it.
const LOOK: Duration = Duration::from_secs(2);
/// Between looks at the disk, while neighbours make room.
const POLL: Duration = Duration::from_millis(500);
/// Longest wait for them: some looks of theirs into the ledger, and time to remove the files. Nobody reads meanwhile.
const PATIENCE: Duration = Duration::from_secs(20);
/// A dataset whose files were all in use says so for this long, before it tries to give any again.
const FIRM: Duration = Duration::from_secs(60);

/// Bytes of a fill that has no space yet.
pub(super) struct Waiting<E: std::error::Error + Clone + Send + Sync + 'static>(Arc<Inner<E>>, u64);

impl<E: std::error::Error + Clone + Send + Sync + 'static> Drop for Waiting<E> {
    fn drop(&mut self) {
        self.0.space.end(self.1);
    }
}

/// A file that has no space now.
struct Refused {
    error: CacheError,
    /// Neighbours are going to make room.
    owed: bool,
}

impl From<CacheError> for Refused {
    fn from(error: CacheError) -> Self {
        Self { error, owed: false }
    }
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> Inner<E> {
    pub(super) fn wait(self: &Arc<Self>, size: u64) -> Waiting<E> {
        self.space.begin(size);
        Waiting(Arc::clone(self), size)
    }

    /// Makes the file of a fill, if it is not there, and space for some of it. Ahead of use it waits for neighbours to make room, and
    /// says so.
    pub(super) async fn find_space(
        self: Arc<Self>,
        fill: Arc<Fill<E>>,
        lacking: Arc<[Range<u64>]>,
        _waiting: Waiting<E>,
        wanted: Wanted,
        short: watch::Sender<Option<CacheError>>,
    ) -> Result<(), CacheError> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut turn = None;
        loop {
            let (inner, of, lacking) = (Arc::clone(&self), Arc::clone(&fill), Arc::clone(&lacking));
            let taken = self.tasks.spawn_blocking(move || inner.take_space(&of, &lacking, wanted)).await;
            let Refused { error, owed } = match taken {
                Ok(Ok(())) => {
                    short.send_if_modified(|short| short.take().is_some());
                    return Ok(());
                }
                Ok(Err(refused)) => refused,
                Err(e) => return Err(CacheError::disk("make", layout::fill(&self.dir, &fill.key))(std::io::Error::other(e))),
            };
            if !owed || wanted != Wanted::Share || tokio::time::Instant::now() >= deadline {
                return Err(error);
            }
            short.send_replace(Some(error));
            // One looks at the disk, the others wait behind it.
            let next = async {
                match turn {
                    None => turn = self.short.acquire().await.ok(),
                    Some(_) => tokio::time::sleep(POLL).await,
                }
            };
            tokio::select! {
                () = self.closed.cancelled() => return Err(CacheError::Closed { path: self.dir.clone() }),
                _ = tokio::time::timeout_at(deadline, next) => {}
            }
        }
    }

    /// Blocks.
    fn take_space(&self, fill: &Fill<E>, lacking: &[Range<u64>], wanted: Wanted) -> Result<(), Refused> {
        let mut files = fill.files.lock();
        let (dir, key) = (&self.dir, &fill.key);
        let path = layout::fill(dir, key);
        let file = if files.are_there {
            fill::open_to_write(dir, key).map_err(CacheError::disk("open", &path))?
        } else {
            fill::create(dir, key)?
        };
        let size: u64 = lacking.iter().map(|r| r.end - r.start).sum();
        let reserve = || self.space.reserve(dir, &path, &file, lacking);
        match reserve() {
            Err(error @ CacheError::DiskFull { .. }) => {
                // A copy is worth less than what anyone else has.
                let owed = wanted != Wanted::Copy && self.space.ask(&self.dir, self.tenant(), size)?;
                if self.make_room(size, wanted) < size {
                    return Err(Refused { error, owed });
                }
                reserve()?;
            }
            reserved => reserved?,
        }
        if !files.are_there {
            // Of an object that is kept in part, too: a file that is not as long as the journal says counts for nothing.
            space::lengthen(&file, fill.size).map_err(CacheError::disk("resize", &path))?;
            fill::begin(dir, key, fill.size)?;
            files.are_there = true;
        }
        Ok(())
    }

    /// What this dataset has on the disk.
    fn tenant(&self) -> Tenant {
        let gives = self.firm.lock().is_none_or(|since| since.elapsed() >= FIRM);
        let index = self.index.lock();
        let (bytes, fill_bytes) = index.bytes();
        let used = (bytes + fill_bytes).saturating_sub(self.space.waiting());
        Tenant { used, quota: index.quota(), gives, idle: index.idle() }
    }

    /// Tells the neighbours, and gives what they are owed. Blocks.
    pub(super) fn meet_neighbours(&self) -> Result<(), CacheError> {
        let claim = self.space.tell(&self.dir, self.tenant())?;
        if claim == 0 {
            return Ok(());
        }
        let freed = self.make_room(claim, Wanted::Neighbour);
        tracing::info!(claim, freed, "made room for other datasets of this disk");
        *self.firm.lock() = (freed == 0).then(Instant::now);
        if freed > 0 {
            self.common.given.send_replace(());
        }
        // Before the next look: others may give what this one cannot.
        self.space.tell(&self.dir, self.tenant()).map(drop)
    }
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> Disk<E> {
    /// Shares the disk with the datasets beside this one, until the cache is closed: each gives what it has more than its fair share
    /// when another one that has less needs it.
    pub async fn share(&self) {
        while !self.inner.closed.is_cancelled() {
            let inner = Arc::clone(&self.inner);
            match self.inner.tasks.spawn_blocking(move || inner.meet_neighbours()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "the disk is not shared"),
                Err(error) => tracing::warn!(%error, "the disk is not shared"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Bytes beyond [`Self::room`] that the neighbours would make for files of the own share. Blocks.
    ///
    /// # Errors
    /// The disk's.
    pub fn owed(&self) -> Result<u64, CacheError> {
        let owed = self.inner.space.owed(&self.inner.dir, self.inner.tenant())?;
        let left = self.inner.index.lock().free();
        Ok(owed.min(left.saturating_sub(self.room()?)))
    }
}
