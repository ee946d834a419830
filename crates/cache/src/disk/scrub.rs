//! The scrub: reads all complete files and what is here of others in the background, slowly, because a bit that flips in a file that
//! nobody opens is found by nobody else.
//!
//! It reads past the page cache, whose pages may be better than the disk and are needed by others, and goes on where it was
//! after a restart.

use super::{Disk, blocking, chunk};
use crate::{
    CacheError, blocks, chunk_range, chunks,
    fill::Fill,
    index::Next,
    layout, sidecar,
    unreadable::{Unreadable, off},
};
use larder_core::key::ObjectKey;
use larder_io::replace::{PowerLoss, Readers, replace};
use nix::fcntl::OFlag;
use std::{
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant, SystemTime},
};

/// Read at once: long enough for a disk, short enough that others do not wait for it.
const PIECE: u64 = 1 << 20;
/// What O_DIRECT asks of buffers, on every disk in use.
const ALIGN: usize = 4096;
/// The scrub leaves the disk alone four times as long as each read took: whatever the rate, a busy disk slows it down first.
const IDLE_SHARE: u32 = 4;
/// From the end of one pass to the beginning of the next.
const REST: Duration = Duration::from_secs(24 * 3600);
/// Between saves of where it is.
const SAVE: Duration = Duration::from_secs(60);

/// Where the scrub is, as in the file `scrub`: the last key it has read, or a dash between two passes, and when the last pass
/// ended, in seconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    behind: Option<ObjectKey>,
    pub ended: Option<u64>,
}

fn path(dir: &Path) -> PathBuf {
    dir.join("scrub")
}

/// Removes what is known about it. Blocks.
pub(super) fn forget(dir: &Path) -> io::Result<()> {
    match fs::remove_file(path(dir)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

impl Progress {
    /// One that cannot be read begins anew. Blocks.
    pub fn load(dir: &Path) -> Self {
        let text = fs::read_to_string(path(dir)).unwrap_or_default();
        let mut words = text.split_whitespace();
        let behind = words.next().and_then(ObjectKey::from_hex);
        Self { behind, ended: words.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0) }
    }

    /// Not synced: whoever loses it reads some files once more.
    fn save(&self, dir: &Path) -> io::Result<()> {
        let (path, behind) = (path(dir), self.behind.map_or_else(|| "-".to_owned(), |key| key.to_string()));
        let text = format!("{behind} {}\n", self.ended.unwrap_or(0));
        replace(&path, text.as_bytes(), Readers::Usual, PowerLoss::MayLose)
    }

    /// Time until the next pass.
    fn rest(&self, now: u64) -> Duration {
        let since = self.ended.filter(|_| self.behind.is_none()).map(|ended| Duration::from_secs(now.saturating_sub(ended)));
        since.map_or(Duration::ZERO, |since| REST.saturating_sub(since))
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> Disk<E> {
    /// Reads all files against their checksums, one after the other, again and again, at most so many bytes a second.
    /// Ends only when the cache is closed.
    pub async fn scrub(&self, bytes_per_second: u64) {
        let endless = async {
            loop {
                let progress = *self.inner.scrubbed.lock();
                tokio::time::sleep(progress.rest(now())).await;
                self.pass(progress.behind, bytes_per_second.max(1)).await;
            }
        };
        self.inner.closed.run_until_cancelled(endless).await;
    }

    /// All files behind this one.
    pub(super) async fn pass(&self, mut behind: Option<ObjectKey>, bytes_per_second: u64) {
        let mut saved = Instant::now();
        loop {
            let next = self.inner.index.lock().next(behind.as_ref());
            let key = match next {
                None => break,
                Some(Next::Complete(key, entry)) => {
                    self.scrub_file(&key, entry.size, bytes_per_second).await;
                    key
                }
                Some(Next::Fill(fill)) => {
                    self.scrub_fill(&fill, bytes_per_second).await;
                    fill.key
                }
            };
            behind = Some(key);
            self.inner.scrubbed.lock().behind = behind;
            if saved.elapsed() > SAVE {
                saved = Instant::now();
                self.save_scrub().await;
            }
        }
        *self.inner.scrubbed.lock() = Progress { behind: None, ended: Some(now()) };
        self.save_scrub().await;
    }

    async fn save_scrub(&self) {
        let (progress, dir) = (*self.inner.scrubbed.lock(), self.inner.dir.clone());
        if let Err(error) = blocking("save", &path(&dir), move || progress.save(&dir)).await {
            tracing::warn!(%error, "where the scrub is cannot be kept; after a restart it reads some files again");
        }
    }

    async fn scrub_file(&self, key: &ObjectKey, size: u64, bytes_per_second: u64) {
        let (dir, of) = (self.inner.dir.clone(), *key);
        match self.read_slowly(move || Reader::of_complete(&dir, &of, size), bytes_per_second).await {
            Ok(()) => self.inner.index.lock().verified(key),
            Err(e) => drop::<CacheError>(self.unreadable(key, e, "scrub").await),
        }
    }

    /// What lies at rest of an unfinished file, chunk by chunk.
    async fn scrub_fill(&self, fill: &Arc<Fill<E>>, bytes_per_second: u64) {
        for n in 0..chunks(fill.size) {
            let range = chunk_range(fill.size, n);
            let Some((crcs, changes)) = fill.at_rest(&range) else { continue };
            let (dir, key, size) = (self.inner.dir.clone(), fill.key, fill.size);
            match self.read_slowly(move || Reader::of_chunk(&dir, &key, size, range, crcs), bytes_per_second).await {
                Ok(()) => chunk::good(&self.inner, fill, n, changes),
                // Given up meanwhile.
                Err(Unreadable::Disk(e)) if e.kind() == io::ErrorKind::NotFound => return,
                Err(e) if e.is_damage() => chunk::lost(&self.inner, fill, n, changes, &e).await,
                Err(error) => tracing::debug!(key = %fill.key, %error, "a chunk of an unfinished file is not compared"),
            }
        }
    }

    async fn read_slowly(
        &self,
        open: impl FnOnce() -> Result<Reader, Unreadable> + Send + 'static,
        bytes_per_second: u64,
    ) -> Result<(), Unreadable> {
        let mut reader = off(open).await?;
        while !reader.at_end() {
            let (began, from) = (Instant::now(), reader.at);
            reader = off(move || reader.step()).await?;
            let len = reader.at - from;
            self.inner.compared.fetch_add(len, Relaxed);
            let pace = Duration::from_secs_f64(len as f64 / bytes_per_second as f64);
            tokio::time::sleep(pace.saturating_sub(began.elapsed()).max(began.elapsed() * IDLE_SHARE)).await;
        }
        Ok(())
    }
}

/// One file, or a chunk of one, piece by piece.
struct Reader {
    file: File,
    /// Of the whole file.
    size: u64,
    at: u64,
    end: u64,
    /// Of the blocks of what it reads.
    crcs: Vec<u32>,
    /// Of those before `at`.
    compared: usize,
    piece: usize,
    buf: Vec<u8>,
}

/// Past the page cache, where the file system can.
fn open_direct(path: &Path) -> io::Result<File> {
    match File::options().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(path) {
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => File::open(path),
        opened => opened,
    }
}

impl Reader {
    fn of_complete(dir: &Path, key: &ObjectKey, size: u64) -> Result<Self, Unreadable> {
        let sidecar = sidecar::load(&layout::sidecar(dir, key, size))?;
        let file = open_direct(&layout::data(dir, key))?;
        if sidecar.size != size || file.metadata()?.len() != size {
            return Err(Unreadable::Length { want: size });
        }
        Ok(Self::new(file, size, 0..size, sidecar.crcs))
    }

    /// The file may have been put among the complete ones a moment ago.
    fn of_chunk(dir: &Path, key: &ObjectKey, size: u64, range: Range<u64>, crcs: Vec<u32>) -> Result<Self, Unreadable> {
        let file = match open_direct(&layout::fill(dir, key)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => open_direct(&layout::data(dir, key))?,
            opened => opened?,
        };
        Ok(Self::new(file, size, range, crcs))
    }

    fn new(file: File, size: u64, Range { start, end }: Range<u64>, crcs: Vec<u32>) -> Self {
        let piece = PIECE.max(blocks::block_size(size)) as usize;
        Self { file, size, at: start, end, crcs, compared: 0, piece, buf: vec![0; piece + ALIGN] }
    }

    fn at_end(&self) -> bool {
        self.at == self.end
    }

    fn step(mut self) -> Result<Self, Unreadable> {
        let skip = self.buf.as_ptr().align_offset(ALIGN);
        let buf = &mut self.buf[skip..skip + self.piece];
        let want = self.piece.min((self.end - self.at) as usize);
        let mut got = 0;
        while got < want {
            match self.file.read_at(&mut buf[got..], self.at + got as u64) {
                Ok(0) => return Err(Unreadable::Length { want: self.size }),
                Ok(n) => got += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        blocks::compare(self.size, self.at, &buf[..want], &self.crcs[self.compared..])?;
        self.compared += want.div_ceil(blocks::block_size(self.size) as usize);
        self.at += want as u64;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_goes_on_at_once_and_the_next_one_begins_a_day_later() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Progress::load(dir.path()).rest(now()), Duration::ZERO);
        let key = ObjectKey::new("o", "p", "v", 1);
        for progress in [
            Progress { behind: Some(key), ended: Some(77) },
            Progress { behind: Some(key), ended: None },
            Progress { behind: None, ended: Some(77) },
        ] {
            progress.save(dir.path()).unwrap();
            assert_eq!(Progress::load(dir.path()), progress);
        }
        let rest = |behind, now| Progress { behind, ended: Some(100) }.rest(now);
        assert_eq!(rest(Some(key), 101), Duration::ZERO);
        assert_eq!(rest(None, 160), REST - Duration::from_secs(60));
        assert_eq!(rest(None, 100 + REST.as_secs()), Duration::ZERO);
    }
}
