//! The disks of a dataset on one node as its users see them.
//!
//! Each object lies on one disk. A new one goes to the disk that weighted rendezvous hashing over their quotas names, so that each has
//! a part of all sizes of files, or to the next one in that order if there is no room for it there. What is somewhere stays there.
//!
//! A disk that fails gets nothing new for a minute, and its files are given to nobody who would read past this cache; what was begun
//! there begins anew on the next one. What is complete on it is still read here, and what of that turns out to be unreadable is fetched
//! again, to another disk.

use crate::{
    CacheError, Checked, Integrity, Object, Options, ReadError, Stay, Unchecked, Usage,
    disk::{Common, Disk},
};
use bytes::Bytes;
use futures::future::join_all;
use larder_core::{key::ObjectKey, placement};
use parking_lot::{Mutex, RwLock};
use std::{
    fmt,
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// A disk that failed gets nothing new for so long.
const OUT: Duration = Duration::from_secs(60);
/// What a unit of weight in the choice of a disk stands for.
const WEIGHT: u64 = 64 << 20;

/// The cache of one dataset on this node; clones are the same cache. `E` is the error of the fetchers.
pub struct Cache<E: std::error::Error + Clone + Send + Sync + 'static> {
    common: Common,
    places: Arc<RwLock<Places<E>>>,
}

type Places<E> = Arc<[Arc<Place<E>>]>;

/// A disk of it.
struct Place<E: std::error::Error + Clone + Send + Sync + 'static> {
    /// Its number in the orders.
    number: usize,
    /// By name and weight it is chosen.
    name: String,
    weight: AtomicU32,
    disk: Disk<E>,
    failed: Mutex<Option<(Instant, CacheError)>>,
}

fn weight(quota: u64) -> u32 {
    u32::try_from(quota.div_ceil(WEIGHT)).unwrap_or(u32::MAX)
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> Place<E> {
    fn is_out(&self) -> bool {
        self.failed.lock().as_ref().is_some_and(|(since, _)| since.elapsed() < OUT)
    }

    fn score(&self, key: &ObjectKey) -> f64 {
        placement::score(key.as_bytes(), &self.name, self.weight.load(Relaxed))
    }

    fn fails(&self, error: &CacheError) {
        if matches!(error, CacheError::Disk { .. }) && !error.is_full() {
            if !self.is_out() {
                tracing::error!(disk = self.name, %error, "a disk fails; it is left alone for a minute where that is possible");
            }
            *self.failed.lock() = Some((Instant::now(), error.clone()));
        }
    }

    /// Another disk is to begin anew with an object.
    async fn abandon(&self, key: &ObjectKey) {
        if let Err(error) = self.disk.abandon(key, &Stay::Nothing).await {
            tracing::debug!(disk = self.name, %key, %error, "an unfinished file stays");
        }
    }
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> Clone for Cache<E> {
    fn clone(&self) -> Self {
        Self { common: self.common.clone(), places: Arc::clone(&self.places) }
    }
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> fmt::Debug for Cache<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all().iter().map(|place| &place.disk)).finish()
    }
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> Cache<E> {
    /// Without a disk yet. `in_flight`: bytes of all fetches in flight together; a quarter is kept for reads that someone waits for.
    #[must_use]
    pub fn new(in_flight: u64) -> Self {
        Self { common: Common::new(in_flight), places: Arc::new(RwLock::new(Arc::new([]))) }
    }

    /// Scans the folder and takes it over, one process at a time. `number` is its place in the orders, see [`Self::set_quotas`].
    /// Blocks while it scans.
    ///
    /// # Errors
    /// The disk's; the others go on without it.
    pub fn add(&self, number: usize, dir: &Path, options: Options) -> Result<(), CacheError> {
        let disk = Disk::open(dir, options, &self.common)?;
        let (name, weight) = (dir.to_string_lossy().into_owned(), AtomicU32::new(weight(options.quota)));
        let place = Arc::new(Place { number, name, weight, disk, failed: Mutex::new(None) });
        let mut places = self.places.write();
        *places = places.iter().cloned().chain([place]).collect();
        Ok(())
    }

    fn all(&self) -> Places<E> {
        Arc::clone(&self.places.read())
    }

    /// Changes the quota of each disk; one that has none is left as it is. What is there already stays; nothing more comes in
    /// while it is exceeded.
    pub fn set_quotas(&self, quotas: &[u64]) {
        for place in &*self.all() {
            let Some(quota) = quotas.get(place.number) else { continue };
            place.weight.store(weight(*quota), Relaxed);
            place.disk.set_quota(*quota);
        }
    }

    /// What it holds now.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.all().iter().map(|place| place.disk.usage()).fold(Usage::default(), |sum, disk| Usage {
            files: sum.files + disk.files,
            bytes: sum.bytes + disk.bytes,
            fill_bytes: sum.fill_bytes + disk.fill_bytes,
            part_bytes: sum.part_bytes + disk.part_bytes,
        })
    }

    /// Files of which something may be here and something is missing, with their sizes.
    #[must_use]
    pub fn unfinished(&self) -> Vec<(ObjectKey, u64)> {
        self.all().iter().flat_map(|place| place.disk.unfinished()).collect()
    }

    /// Bytes that may come in now, on all disks that work: what the quotas leave, and the disks above their floors. Blocks.
    ///
    /// # Errors
    /// The disk's, if none says.
    pub fn room(&self) -> Result<u64, CacheError> {
        self.sum(Disk::room)
    }

    /// Bytes beyond [`Self::room`] that the neighbours would make for files of the own share. Blocks.
    ///
    /// # Errors
    /// The disk's, if none says.
    pub fn owed(&self) -> Result<u64, CacheError> {
        self.sum(Disk::owed)
    }

    fn sum(&self, of: impl Fn(&Disk<E>) -> Result<u64, CacheError>) -> Result<u64, CacheError> {
        let (mut sum, mut last) = (None, None);
        let places = self.all();
        for place in places.iter().filter(|place| places.len() == 1 || !place.is_out()) {
            match of(&place.disk) {
                Ok(bytes) => sum = Some(sum.unwrap_or(0u64).saturating_add(bytes)),
                Err(error) => last = Some(error),
            }
        }
        one_of(sum, last)
    }

    fn complete(&self, key: &ObjectKey) -> Option<Arc<Place<E>>> {
        self.places.read().iter().find(|place| place.disk.contains(key)).cloned()
    }

    /// Is the file complete?
    #[must_use]
    pub fn contains(&self, key: &ObjectKey) -> bool {
        self.places.read().iter().any(|place| place.disk.contains(key))
    }

    /// Is the range on a disk, so that reading it asks no one?
    #[must_use]
    pub fn has(&self, key: &ObjectKey, range: &Range<u64>) -> bool {
        self.places.read().iter().any(|place| place.disk.has(key, range))
    }

    /// A whole chunk that is on a disk, compared with the checksums it was written with. Fetches nothing and waits for nobody.
    pub async fn chunk_here(&self, key: &ObjectKey, range: &Range<u64>) -> Option<Checked> {
        for place in &*self.all() {
            if let Some(chunk) = place.disk.chunk_here(key, range).await {
                return Some(chunk);
            }
        }
        None
    }

    /// Waits until the fetch of this chunk has ended, if one is under way; begins none.
    pub async fn landed(&self, key: &ObjectKey, range: &Range<u64>) {
        for place in &*self.all() {
            place.disk.landed(key, range).await;
        }
    }

    /// As [`Self::open_complete`], if that needs no more than to open the file: it is known to be good already. Blocks for the
    /// disk only.
    #[must_use]
    pub fn open_now(&self, key: &ObjectKey) -> Option<File> {
        self.complete(key).filter(|place| !place.is_out())?.disk.open_now(key)
    }

    /// The complete file, read-only, when it is known to be good and its disk does not fail: who holds it reads past this cache,
    /// which could fetch elsewhere what the disk does not give. It is never changed again; erasing unlinks it.
    pub async fn open_complete(&self, key: &ObjectKey) -> Option<File> {
        self.complete(key).filter(|place| !place.is_out())?.disk.open_complete(key).await
    }

    /// Reads the whole file and compares it with its checksums, now. False: it is not here, or was not good and went to the
    /// quarantine.
    pub async fn verify(&self, key: &ObjectKey) -> bool {
        match self.complete(key) {
            Some(place) => place.disk.verify(key).await,
            None => false,
        }
    }

    /// A range of a complete file for someone who compares it with its checksum: it is not compared here, where that would cost as much
    /// again. `None`: for [`Self::read_range`], as are bytes that turned out to be bad.
    pub async fn read_unchecked(&self, key: &ObjectKey, range: &Range<u64>) -> Option<Unchecked> {
        self.complete(key)?.disk.read_unchecked(key, range).await
    }

    /// The CRC-32C of a range of a complete file, as it was written.
    pub async fn checksum(&self, key: &ObjectKey, range: &Range<u64>) -> Option<u32> {
        self.complete(key)?.disk.checksum(key, range).await
    }

    /// Reads a range; what is not on a disk is fetched in whole chunks and kept. The range lies inside the object. Bytes on a
    /// disk that are not what was written are fetched again.
    ///
    /// # Errors
    /// [`ReadError::Cache`]: no disk can keep or give it, the bytes can be had past them. Else the fetcher's error.
    pub async fn read_range<F, Fut>(&self, object: &Object, range: Range<u64>, fetch: F) -> Result<Checked, ReadError<E>>
    where
        F: Fn(Range<u64>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, E>> + Send + 'static,
    {
        let mut last = no_disk();
        for place in self.order(object, &range).await {
            match place.disk.read_range(object, range.clone(), fetch.clone()).await {
                Ok(read) => return Ok(read),
                Err(error) => last = self.next(&place, object, error).await?,
            }
        }
        Err(last)
    }

    /// Fetches the whole object, `parallel` chunks at once, and waits until it is complete and durable.
    ///
    /// # Errors
    /// As [`Self::read_range`]; chunks that are there stay, so that another attempt goes on.
    pub async fn fill<F, Fut>(&self, object: &Object, parallel: usize, fetch: F) -> Result<(), ReadError<E>>
    where
        F: Fn(Range<u64>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, E>> + Send + 'static,
    {
        self.fill_part(object, 0..object.size, parallel, fetch).await
    }

    /// As [`Self::fill`], of one range of an object that is kept in part, which is durable then; if nothing else of the object is missing,
    /// the object is complete.
    ///
    /// # Errors
    /// As [`Self::fill`].
    pub async fn fill_part<F, Fut>(
        &self,
        object: &Object,
        range: Range<u64>,
        parallel: usize,
        fetch: F,
    ) -> Result<(), ReadError<E>>
    where
        F: Fn(Range<u64>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, E>> + Send + 'static,
    {
        let mut last = no_disk();
        for place in self.order(object, &range).await {
            match place.disk.fill_part(object, range.clone(), parallel, fetch.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) => last = self.next(&place, object, error).await?,
            }
        }
        Err(last)
    }

    /// A disk could not keep or give an object. Gives the error back, to be told if no other disk can; as an error when no other one is
    /// to be tried.
    async fn next(&self, place: &Place<E>, object: &Object, error: ReadError<E>) -> Result<ReadError<E>, ReadError<E>> {
        match error {
            ReadError::Cache(error) if !matches!(error, CacheError::Closed { .. }) => {
                place.fails(&error);
                // What is here of an object that is kept in part stays for as long as its disk works, and the rest of it goes nowhere else.
                let stays = object.in_part && !place.is_out() && place.disk.has_part(&object.key);
                if self.all().len() < 2 || stays {
                    return Err(error.into());
                }
                place.abandon(&object.key).await;
                Ok(error.into())
            }
            error => Err(error),
        }
    }

    /// The disks to try: where the object is, where it is on its way to, then by the order of the hash those that have room for it, and
    /// those that have none.
    async fn order(&self, object: &Object, range: &Range<u64>) -> Vec<Arc<Place<E>>> {
        let (key, places) = (object.key, self.all());
        if places.len() < 2 {
            return places.to_vec();
        }
        let mut order: Vec<_> = places.iter().map(|place| (rank(place, &key), place.score(&key), Arc::clone(place))).collect();
        if order.iter().all(|(rank, ..)| *rank > ON_ITS_WAY) {
            let of = order.clone();
            let size = if object.in_part { range.end - range.start } else { object.size };
            let rooms = tokio::task::spawn_blocking(move || {
                of.iter().map(|(.., place)| place.disk.room().is_ok_and(|room| room >= size)).collect::<Vec<_>>()
            });
            for ((rank, ..), fits) in order.iter_mut().zip(rooms.await.unwrap_or_default()) {
                *rank += u8::from(!fits);
            }
        }
        order.sort_by(|(a, x, _), (b, y, _)| a.cmp(b).then(x.total_cmp(y)));
        order.into_iter().map(|(.., place)| place).collect()
    }

    /// Files removed to make room since the folders were taken over.
    #[must_use]
    pub fn evicted_files(&self) -> u64 {
        self.all().iter().map(|place| place.disk.evicted_files()).sum()
    }

    /// Removes complete files that `may_go` names, copies first, then what was not used for longest, until so many bytes are free or
    /// there are no more; none that someone has a descriptor of. Gives the bytes freed.
    ///
    /// # Errors
    /// A disk's, if no other one could.
    pub async fn make_room(
        &self,
        need: u64,
        may_go: impl Fn(&ObjectKey) -> bool + Clone + Send + 'static,
    ) -> Result<u64, CacheError> {
        let (mut freed, mut last) = (None, None);
        for place in &*self.all() {
            let before = freed.unwrap_or(0);
            match place.disk.make_room(need - before, may_go.clone()).await {
                Ok(bytes) => freed = Some(before + bytes),
                Err(error) => last = Some(error),
            }
        }
        one_of(freed, last)
    }

    /// Unlinks all files but those that are to stay, complete ones and those that nobody goes on filling; who reads one goes on
    /// reading it. What is not to stay of the latter gives its space back. Gives how many made room.
    ///
    /// # Errors
    /// The disk's, if no other one could; what was not unlinked then is found by the scan at the next start.
    pub async fn retain<S: Into<Stay>>(&self, keep: impl Fn(&ObjectKey) -> S) -> Result<u64, CacheError> {
        let (mut count, mut last) = (None, None);
        for place in &*self.all() {
            match place.disk.retain(&keep).await {
                Ok(files) => count = Some(count.unwrap_or(0) + files),
                Err(error) => last = Some(error),
            }
        }
        one_of(count, last)
    }

    /// Gives the space of an unfinished file back, but of what is to stay, and unless it is being fetched at this moment.
    ///
    /// # Errors
    /// None but a task that panics.
    pub async fn abandon(&self, key: &ObjectKey, stay: &Stay) -> Result<(), CacheError> {
        for place in &*self.all() {
            place.disk.abandon(key, stay).await?;
        }
        Ok(())
    }

    /// Files and chunks that were good in this run of the process and are not any more. Changes when something that was here was found
    /// to be bad or gone, so that whoever owns it fetches it again; also when it does not count, because it may never have been good.
    #[must_use]
    pub fn damages(&self) -> watch::Receiver<u64> {
        self.common.damages()
    }

    /// Changes when files were given to the neighbours, also such as someone may want back.
    #[must_use]
    pub fn given(&self) -> watch::Receiver<()> {
        self.common.given()
    }

    /// What was found so far.
    #[must_use]
    pub fn integrity(&self) -> Integrity {
        let disks: Vec<_> = self.all().iter().map(|place| place.disk.integrity()).collect();
        Integrity {
            damaged_files: *self.damages().borrow(),
            compared_bytes: disks.iter().map(|disk| disk.compared_bytes).sum(),
            scrubbed: disks.iter().map(|disk| disk.scrubbed).min().flatten(),
        }
    }

    /// Where bad files are put, on each disk.
    #[must_use]
    pub fn quarantines(&self) -> Vec<PathBuf> {
        self.all().iter().map(|place| place.disk.quarantine()).collect()
    }

    /// Shares a disk with the datasets beside this one, and reads all of its files against their checksums, at most so many
    /// bytes a second, again and again. Ends when the cache is closed; at once if there is no disk of this number.
    pub async fn tend(&self, number: usize, scrub: Option<u64>) {
        let Some(place) = self.all().iter().find(|place| place.number == number).cloned() else { return };
        let scrub = async {
            if let Some(bytes_per_second) = scrub {
                place.disk.scrub(bytes_per_second).await;
            }
        };
        tokio::join!(place.disk.share(), scrub);
    }

    /// Someone found that the disk with this folder cannot be written to or read.
    pub fn fails(&self, dir: &Path, error: &CacheError) {
        if let Some(place) = self.all().iter().find(|place| Path::new(&place.name) == dir) {
            place.fails(error);
        }
    }

    /// What is wrong with disks that nothing new is kept on just now.
    #[must_use]
    pub fn failing(&self) -> Vec<CacheError> {
        let recent = |(since, error): (Instant, CacheError)| (since.elapsed() < OUT).then_some(error);
        let out = |place: &Arc<Place<E>>| place.failed.lock().clone().and_then(recent);
        self.all().iter().filter_map(out).collect()
    }

    /// Numbers of the disks that it has.
    #[must_use]
    pub fn numbers(&self) -> Vec<usize> {
        self.all().iter().map(|place| place.number).collect()
    }

    /// Stops all fetches and refuses new ones, so that another process can take the folders over.
    pub async fn close(&self) {
        join_all(self.all().iter().map(|place| place.disk.close())).await;
    }

    /// Stops all fetches, removes every byte and refuses everything from then on. Gives the bytes freed on the disks.
    ///
    /// # Errors
    /// A disk's; another call goes on.
    pub async fn erase(&self) -> Result<u64, CacheError> {
        join_all(self.all().iter().map(|place| place.disk.erase())).await.into_iter().sum()
    }
}

fn no_disk<E: std::error::Error>() -> ReadError<E> {
    CacheError::Closed { path: PathBuf::new() }.into()
}

/// What the disks gave that could, if any could.
fn one_of(sum: Option<u64>, last: Option<CacheError>) -> Result<u64, CacheError> {
    match (sum, last) {
        (None, Some(error)) => Err(error),
        (sum, _) => Ok(sum.unwrap_or(0)),
    }
}

/// Places in the order of disks: smaller ones come first.
const COMPLETE: u8 = 0;
const ON_ITS_WAY: u8 = 1;
const NEW: u8 = 2;
const FAILED: u8 = 4;

fn rank<E: std::error::Error + Clone + Send + Sync + 'static>(place: &Place<E>, key: &ObjectKey) -> u8 {
    match place.is_out() {
        _ if place.disk.contains(key) => COMPLETE,
        true => FAILED,
        false if place.disk.is_filling(key) => ON_ITS_WAY,
        false => NEW,
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
