//! The ledger of a disk: what the workers on it tell each other, one line for each dataset.
//!
//! ```text
//! <tier>/larder/ledger:  uid used reserved quota gives last-use seen claimed [words of later releases] .
//! ```
//!
//! Bytes, and seconds since 1970. A worker writes its own line, but for `claimed`: what others want it to give. `reserved` is room
//! that it waits for and that others leave alone. All is read and written under a flock on the file, which ends with the process
//! that has it. Each line is told again every few seconds, so nothing is lost for long, whatever happens to the file: a
//! line that makes no sense counts as none, and one that is not told any more is that of a dead worker.

use larder_core::{
    names,
    shares::{self, Tenant},
};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

/// How often a line is told at least. Seldom, because each time writes to the disk.
const BEAT: u64 = 10;
/// A line that was not told for so long counts for nothing: three beats.
const DEAD: u64 = 30;
/// Longest wait for the lock: readers wait for it. Held for microseconds, unless its holder is stopped.
const LOCK_WAIT: Duration = Duration::from_millis(200);
/// A ledger that could not be had is tried again after this.
const AGAIN: Duration = Duration::from_secs(10);
/// A line has about 150 bytes; a file that is longer than thousands of them is none of ours.
const LONGEST: u64 = 1 << 20;

/// Bytes of a disk that are free, and of those, bytes to leave alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disk {
    pub free: u64,
    pub floor: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    used: u64,
    reserved: u64,
    quota: u64,
    gives: bool,
    last_use: u64,
    seen: u64,
    claimed: u64,
    /// What a worker of a later release says behind, each word after a space. Not lost when this one writes the line.
    more: String,
}

impl Line {
    fn parse(text: &str) -> Option<(&str, Self)> {
        // The full stop shows that the line is whole.
        let mut words = text.strip_suffix(" .")?.splitn(9, ' ');
        let uid = words.next().filter(|uid| names::is_uid(uid))?;
        let mut number = || words.next()?.parse::<u64>().ok();
        let (used, reserved, quota, gives) = (number()?, number()?, number()?, number()? != 0);
        let (last_use, seen, claimed) = (number()?, number()?, number()?);
        let more = words.next().map(|more| format!(" {more}")).unwrap_or_default();
        Some((uid, Self { used, reserved, quota, gives, last_use, seen, claimed, more }))
    }

    fn text(&self, uid: &str) -> String {
        let Self { used, reserved, quota, gives, last_use, seen, claimed, more } = self;
        format!("{uid} {used} {reserved} {quota} {} {last_use} {seen} {claimed}{more} .\n", u8::from(*gives))
    }
}

#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    uid: String,
    /// Since when it cannot be had.
    lost: Mutex<Option<Instant>>,
}

impl Ledger {
    /// Of the disk on which this folder lies, if it is that of a dataset.
    pub fn beside(dir: &Path) -> Option<Self> {
        let uid = dir.file_name()?.to_str().filter(|uid| names::is_uid(uid))?.to_owned();
        Some(Self { path: dir.with_file_name("ledger"), uid, lost: Mutex::new(None) })
    }

    /// Opens it for this process alone, until the page is dropped. `None`: it cannot be had; the dataset goes on as if it had the disk
    /// for itself. Blocks.
    pub fn open(&self) -> Option<Page<'_>> {
        let before = *self.lost.lock();
        if before.is_some_and(|since| since.elapsed() < AGAIN) {
            return None;
        }
        let opened = self.try_open();
        *self.lost.lock() = opened.is_err().then(Instant::now);
        if let (Err(error), None) = (&opened, before) {
            tracing::warn!(path = %self.path.display(), %error, "datasets of this disk cannot share it fairly for now");
        }
        opened.ok()
    }

    fn try_open(&self) -> io::Result<Page<'_>> {
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&self.path)?;
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
                Err(e) => return Err(e.into()),
            }
        }
        let mut text = Vec::new();
        (&file).take(LONGEST).read_to_end(&mut text)?;
        let text = String::from_utf8_lossy(&text).into_owned();
        // A dataset whose folder is gone uses nothing.
        let is_there = |uid: &str| uid == self.uid || fs::symlink_metadata(self.path.with_file_name(uid)).is_ok();
        let lines = text.lines().filter_map(Line::parse).filter(|(uid, _)| is_there(uid));
        let lines = lines.map(|(uid, line)| (uid.to_owned(), line)).collect();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Ok(Page { ledger: self, file, text, lines, now })
    }
}

/// What it says at this moment; nobody else changes it meanwhile.
pub(crate) struct Page<'a> {
    ledger: &'a Ledger,
    file: File,
    text: String,
    lines: BTreeMap<String, Line>,
    now: u64,
}

impl Page<'_> {
    /// Bytes that others wait for.
    pub fn reserved_by_others(&self) -> u64 {
        self.living().filter(|(uid, _)| **uid != self.ledger.uid).map(|(_, l)| l.reserved).fold(0, u64::saturating_add)
    }

    /// Changes what this dataset has reserved, and tells it with the next [`Self::store`].
    pub fn reserve(&mut self, bytes: impl FnOnce(u64) -> u64) {
        if let Some(line) = self.lines.get_mut(&self.ledger.uid) {
            line.reserved = bytes(line.reserved);
        }
    }

    /// Says what this dataset has.
    pub fn tell(&mut self, mine: Tenant) {
        let Tenant { used, quota, gives, idle } = mine;
        let (now, last_use) = (self.now, self.now.saturating_sub(idle.as_secs()));
        let new = Line { used, reserved: 0, quota, gives, last_use, seen: now, claimed: 0, more: String::new() };
        let line = self.lines.entry(self.ledger.uid.clone()).or_insert_with(|| new.clone());
        // Time alone is no news.
        if line.seen.abs_diff(now) >= BEAT || (line.used, line.quota, line.gives) != (used, quota, gives) {
            *line = Line { reserved: line.reserved, claimed: line.claimed, ..new };
        }
    }

    /// What this dataset may still take as its fair share.
    pub fn left(&self, disk: Disk) -> u64 {
        let Some((tenants, of, room)) = self.tenants(disk) else { return 0 };
        shares::shares(room, &tenants)[of].saturating_sub(tenants[of].used)
    }

    /// Of so many bytes, those that are not free but that others have to give.
    pub fn owed(&self, disk: Disk, need: u64) -> u64 {
        self.claims(disk, need).iter().map(|c| c.1).sum()
    }

    /// Wants others to give them.
    pub fn claim(&mut self, disk: Disk, need: u64) {
        for (uid, bytes) in self.claims(disk, need) {
            if let Some(line) = self.lines.get_mut(&uid) {
                // Asking again is not asking for more.
                line.claimed = line.claimed.max(bytes);
            }
        }
    }

    fn claims(&self, disk: Disk, need: u64) -> Vec<(String, u64)> {
        let Some((tenants, of, room)) = self.tenants(disk) else { return Vec::new() };
        let free = disk.free.saturating_sub(disk.floor).saturating_sub(self.reserved_by_others());
        let claims = shares::claims(room, &tenants, of, need.min(self.left(disk)).saturating_sub(free));
        self.living().map(|(uid, _)| uid.clone()).zip(claims).collect()
    }

    /// What this dataset has to give now: what was claimed, as long as someone waits for it, and never from its own share.
    pub fn take_claim(&mut self, disk: Disk) -> u64 {
        let Some((tenants, of, room)) = self.tenants(disk) else { return 0 };
        let over = tenants[of].used.saturating_sub(shares::shares(room, &tenants)[of]);
        let wanted = self.reserved_by_others();
        let line = self.lines.get_mut(&self.ledger.uid);
        line.map_or(0, |line| std::mem::take(&mut line.claimed)).min(over).min(wanted)
    }

    /// Writes what was changed. Lost, if the disk has no room for it: it will be told again.
    pub fn store(mut self) {
        let text: String = self.lines.iter().map(|(uid, line)| line.text(uid)).collect();
        if text == self.text {
            return;
        }
        let stored = self.file.rewind().and_then(|()| self.file.write_all(text.as_bytes()));
        if let Err(error) = stored.and_then(|()| self.file.set_len(text.len() as u64)) {
            tracing::debug!(path = %self.ledger.path.display(), %error, "the ledger is not written");
        }
    }

    /// Takes the line of this dataset away; the last one takes the ledger along.
    pub fn leave(mut self) {
        self.lines.remove(&self.ledger.uid);
        if !self.lines.is_empty() {
            return self.store();
        }
        if let Err(error) = fs::remove_file(&self.ledger.path) {
            tracing::debug!(path = %self.ledger.path.display(), %error, "the ledger is not removed");
        }
    }

    fn living(&self) -> impl Iterator<Item = (&String, &Line)> {
        self.lines.iter().filter(|(_, line)| line.seen.abs_diff(self.now) <= DEAD)
    }

    /// The datasets with a living worker, this one among them, and what they may use all together. What is on the disk
    /// beside that nobody of them can free.
    fn tenants(&self, disk: Disk) -> Option<(Vec<Tenant>, usize, u64)> {
        let of = self.living().position(|(uid, _)| *uid == self.ledger.uid)?;
        let tenant = |(_, line): (_, &Line)| {
            let idle = Duration::from_secs(self.now.saturating_sub(line.last_use));
            Tenant { used: line.used, quota: line.quota, gives: line.gives, idle }
        };
        let tenants: Vec<_> = self.living().map(tenant).collect();
        let used = tenants.iter().map(|t| t.used).fold(0, u64::saturating_add);
        Some((tenants, of, used.saturating_add(disk.free).saturating_sub(disk.floor)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(n: usize) -> String {
        format!("0d1f3a52-7c0e-4d55-9f5a-00000000000{n}")
    }

    fn ledgers<const N: usize>(tier: &Path) -> [Ledger; N] {
        std::array::from_fn(|n| {
            let dir = tier.join(uid(n));
            fs::create_dir(&dir).unwrap();
            Ledger::beside(&dir).unwrap()
        })
    }

    const FULL: Disk = Disk { free: 10, floor: 10 };

    fn change<T>(ledger: &Ledger, used: u64, change: impl FnOnce(&mut Page<'_>) -> T) -> T {
        let mut page = ledger.open().unwrap();
        page.tell(Tenant { used, quota: 0, gives: true, idle: Duration::ZERO });
        let result = change(&mut page);
        page.store();
        result
    }

    #[test]
    fn the_last_dataset_of_a_disk_takes_the_ledger_along() {
        let tier = tempfile::tempdir().unwrap();
        let [one, other] = ledgers(tier.path());
        for ledger in [&one, &other] {
            change(ledger, 5, |_| ());
        }
        one.open().unwrap().leave();
        assert_eq!(other.open().unwrap().lines.keys().collect::<Vec<_>>(), [&uid(1)]);
        other.open().unwrap().leave();
        assert!(!one.path.exists());
    }

    /// As of a worker that waits for room.
    fn ask(ledger: &Ledger, used: u64, need: u64) -> u64 {
        change(ledger, used, |page| {
            let left = page.left(FULL);
            page.reserve(|_| need.min(left));
            page.claim(FULL, need);
            page.owed(FULL, need)
        })
    }

    fn give(ledger: &Ledger, used: u64) -> u64 {
        change(ledger, used, |page| page.take_claim(FULL))
    }

    /// The last word of all lines but one was said so long ago.
    fn age(ledger: &Ledger, but: &Ledger, seconds: u64) {
        let mut page = ledger.open().unwrap();
        page.lines.iter_mut().filter(|(uid, _)| **uid != but.uid).for_each(|(_, line)| line.seen -= seconds);
        page.store();
    }

    #[test]
    fn a_dataset_gets_its_share_from_the_one_that_has_more_and_no_more_than_that() {
        let tier = tempfile::tempdir().unwrap();
        let [a, b] = ledgers(tier.path());
        assert_eq!(give(&a, 100), 0);
        assert_eq!([ask(&b, 20, 30), ask(&b, 20, 30)], [30; 2]);
        assert_eq!(a.open().unwrap().reserved_by_others(), 30, "and others leave alone what is needed");
        assert_eq!([give(&a, 100), give(&a, 70)], [30, 0], "asking again is not asking for more");
        assert_eq!(ask(&b, 50, 10), 10);
        assert_eq!([give(&a, 70), give(&a, 60)], [10, 0]);
        assert_eq!(ask(&b, 60, 10), 0, "it has its share");
        assert_eq!(ask(&a, 60, 10), 0);
    }

    #[test]
    fn a_worker_that_is_dead_gives_and_takes_nothing_and_its_claims_end_with_it() {
        let tier = tempfile::tempdir().unwrap();
        let [a, b] = ledgers(tier.path());
        give(&a, 100);
        ask(&b, 0, 50);
        age(&a, &a, DEAD + 1);
        assert_eq!(a.open().unwrap().reserved_by_others(), 0);
        assert_eq!(give(&a, 100), 0, "nobody waits for it any more");
        age(&b, &b, DEAD + 1);
        assert_eq!(ask(&b, 0, 50), 0, "nobody would answer");
        give(&a, 100);
        assert_eq!(ask(&b, 0, 50), 50, "it is back");
    }

    #[test]
    fn a_dataset_whose_folder_is_gone_counts_for_nothing() {
        let tier = tempfile::tempdir().unwrap();
        let [a, b, c] = ledgers(tier.path());
        for ledger in [&a, &b, &c] {
            give(ledger, 60);
        }
        assert_eq!(ask(&c, 0, 60), 40);
        fs::remove_dir(tier.path().join(uid(0))).unwrap();
        assert_eq!(ask(&c, 0, 60), 30);
        assert_eq!(fs::read_to_string(&a.path).unwrap().lines().count(), 2);
    }

    #[test]
    fn a_ledger_that_makes_no_sense_is_begun_anew() {
        let tier = tempfile::tempdir().unwrap();
        let [a, b] = ledgers(tier.path());
        give(&b, 90);
        let whole = fs::read_to_string(&a.path).unwrap();
        assert_eq!(whole.lines().count(), 1);
        let cut = &whole[..whole.len() - 3];
        for text in [&b"\xff\xfe"[..], cut.as_bytes(), whole.replace(" 90 ", " -1 ").as_bytes()] {
            fs::write(&a.path, text).unwrap();
            give(&a, 9);
            let written = fs::read_to_string(&a.path).unwrap();
            assert!(written.starts_with(&uid(0)) && written.lines().count() == 1, "{written}");
        }
        fs::write(&a.path, &whole).unwrap();
        give(&a, 9);
        assert_eq!(fs::read_to_string(&a.path).unwrap().lines().count(), 2);
    }

    #[test]
    fn a_line_of_a_later_release_counts_and_keeps_the_words_that_are_not_known_here() {
        let tier = tempfile::tempdir().unwrap();
        let [a, b] = ledgers(tier.path());
        give(&b, 90);
        let known = fs::read_to_string(&a.path).unwrap();
        let claimed = ask(&a, 0, 60);
        assert!(claimed > 0);
        fs::write(&a.path, known.replace(" .", " weight=3 7 .")).unwrap();
        assert_eq!(ask(&a, 0, 60), claimed, "as if the words were not there");
        let kept = known.replace(" 0 .", &format!(" {claimed} weight=3 7 ."));
        assert_eq!(fs::read_to_string(&a.path).unwrap().lines().last(), kept.lines().last());
    }

    #[test]
    fn numbers_that_no_disk_has_stop_nobody() {
        let tier = tempfile::tempdir().unwrap();
        let [a, b, c] = ledgers(tier.path());
        for ledger in [&b, &c] {
            give(ledger, u64::MAX);
            change(ledger, u64::MAX, |page| page.reserve(|_| u64::MAX));
        }
        assert_eq!(a.open().unwrap().reserved_by_others(), u64::MAX);
        assert_eq!(ask(&a, 9, 7), 7);
        assert_eq!(give(&a, 9), 0);
    }

    #[test]
    fn nobody_waits_long_for_a_worker_that_holds_the_ledger_and_does_not_go_on() {
        let tier = tempfile::tempdir().unwrap();
        let [a, b] = ledgers(tier.path());
        let held = a.open().unwrap();
        let began = Instant::now();
        assert!(b.open().is_none());
        assert!(began.elapsed() < LOCK_WAIT * 10, "{:?}", began.elapsed());
        drop(held);
        assert!(b.open().is_none(), "nor again at once");
        *b.lost.lock() = None;
        assert!(b.open().is_some());
    }

    #[test]
    fn a_line_is_written_when_it_says_something_new_and_each_beat() {
        let tier = tempfile::tempdir().unwrap();
        let [a, b] = ledgers(tier.path());
        give(&a, 5);
        let written = || fs::read_to_string(&a.path).unwrap();
        age(&a, &b, BEAT / 2);
        let before = written();
        give(&a, 5);
        assert_eq!(written(), before);
        age(&a, &b, BEAT);
        give(&a, 5);
        assert_ne!(written(), before);
    }
}
