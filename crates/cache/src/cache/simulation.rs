//! A cache of two disks, which fail and come back, in processes that are killed; quotas change, and files are in use.

use super::{
    tests::{break_writes, open},
    *,
};
use crate::{
    Keep, layout,
    testing::{Broken, Fetched, content, key},
};
use proptest::prelude::*;
use std::{fs, os::unix::fs::FileExt as _};
use tokio::{runtime::Runtime, task::yield_now};

const DISKS: [&str; 2] = ["a", "b"];
const OBJECTS: u64 = 12;
/// One of each has a second chunk.
const SIZES: [u64; 6] = [0, 1, 700, 1000, 1300, crate::CHUNK + 1];

#[derive(Clone, Debug)]
enum Step {
    Read(u64, prop::sample::Index),
    Fill(u64),
    /// Only for now; may go first.
    Copy(u64),
    /// A reader who gives up before the origin answers.
    GiveUp(u64),
    /// The process is killed so many turns after it began to fill.
    FillAndDie(u64, u8),
    Open(u64),
    Close(prop::sample::Index),
    Retain(u64),
    Quotas([u64; 2]),
    Break(usize),
    Mend(usize),
    Pass,
}

fn step() -> impl Strategy<Value = Step> {
    let (object, index, disk) = (0..OBJECTS, any::<prop::sample::Index>, 0..DISKS.len());
    let quota = prop_oneof![Just(0), 0..6000u64, Just(64 * crate::CHUNK)];
    prop_oneof![
        5 => (object.clone(), index()).prop_map(|(n, at)| Step::Read(n, at)),
        5 => object.clone().prop_map(Step::Fill),
        3 => object.clone().prop_map(Step::Copy),
        1 => object.clone().prop_map(Step::GiveUp),
        2 => (object.clone(), 0..30u8).prop_map(|(n, turns)| Step::FillAndDie(n, turns)),
        3 => object.prop_map(Step::Open),
        2 => index().prop_map(Step::Close),
        1 => any::<u64>().prop_map(Step::Retain),
        2 => [quota.clone(), quota].prop_map(Step::Quotas),
        1 => disk.clone().prop_map(Step::Break),
        1 => disk.prop_map(Step::Mend),
        1 => Just(Step::Pass),
    ]
}

fn size(n: u64) -> u64 {
    SIZES[(n % SIZES.len() as u64) as usize]
}

/// No object is like another.
fn bytes(n: u64, range: Range<u64>) -> Bytes {
    content(range.start + n * 7919..range.end + n * 7919)
}

fn fetch(n: u64) -> impl Fn(Range<u64>) -> Fetched + Clone + Send + Sync + 'static {
    move |range| Box::pin(async move { Ok(bytes(n, range)) })
}

/// Complete files, their bytes, and those of unfinished ones, as they lie there.
fn on_disk(dir: &Path) -> Usage {
    let names = |folder: &Path| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let is_object = |path: &PathBuf| path.extension().is_none();
    let length = |path: &PathBuf| fs::metadata(path).map_or(0, |file| file.len());
    let complete: Vec<_> = names(&layout::data_folder(dir)).iter().flat_map(|shard| names(shard)).filter(is_object).collect();
    let unfinished = if layout::fill_folder(dir).is_dir() { names(&layout::fill_folder(dir)) } else { Vec::new() };
    Usage {
        files: complete.len() as u64,
        bytes: complete.iter().map(length).sum(),
        fill_bytes: unfinished.iter().filter(|path| is_object(path)).map(length).sum(),
        part_bytes: 0,
    }
}

struct Simulation {
    root: tempfile::TempDir,
    quotas: [u64; 2],
    broken: [bool; 2],
    /// What was on its way when the disk broke is gone, and only found so when it is wanted.
    is_unsure: [bool; 2],
    /// Descriptors that someone reads from, past the cache. None of them may be of a file that makes room.
    held: Vec<(u64, File)>,
    runtime: Runtime,
    cache: Cache<Broken>,
}

impl Simulation {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let (runtime, cache) = start(root.path(), [0; 2]);
        Self { root, quotas: [0; 2], broken: [false; 2], is_unsure: [false; 2], held: Vec::new(), runtime, cache }
    }

    fn dir(&self, disk: usize) -> PathBuf {
        self.root.path().join(DISKS[disk])
    }

    /// The process is killed, and the next one takes the folders over.
    fn next(&mut self) {
        (0..DISKS.len()).for_each(|disk| self.mend(disk));
        let spare = tokio::runtime::Builder::new_current_thread().build().unwrap();
        // Its tasks go no further than where they wait.
        drop(std::mem::replace(&mut self.runtime, spare));
        (self.runtime, self.cache) = start(self.root.path(), self.quotas);
        self.is_unsure = [false; 2];
    }

    fn mend(&mut self, disk: usize) {
        if std::mem::take(&mut self.broken[disk]) {
            let folder = layout::fill_folder(&self.dir(disk));
            fs::remove_file(&folder).unwrap();
            fs::create_dir(&folder).unwrap();
        }
    }

    fn object(n: u64, keep: Keep) -> Object {
        Object { key: key(n), size: size(n), keep, in_part: false }
    }

    fn fill(&self, n: u64, keep: Keep) {
        let filled = self.runtime.block_on(self.cache.fill(&Self::object(n, keep), 2, fetch(n)));
        self.may_be(filled);
    }

    /// An error is told only if it could be one.
    fn may_be<T>(&self, result: Result<T, ReadError<Broken>>) -> Option<T> {
        match result {
            Ok(done) => Some(done),
            Err(ReadError::Cache(error)) => {
                let may_be = self.is_unsure.contains(&true) || !self.quotas.contains(&0);
                assert!(may_be, "{error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Read(n, at) => {
                let range = if size(n) == 0 { 0..0 } else { at.index(size(n) as usize) as u64..size(n) };
                let object = Self::object(n, Keep::Own);
                let read = self.runtime.block_on(self.cache.read_range(&object, range.clone(), fetch(n)));
                if let Some(read) = self.may_be(read) {
                    assert!(read == Checked::of(bytes(n, range)), "wrong bytes of {n}");
                }
            }
            Step::Fill(n) => self.fill(n, Keep::Own),
            Step::Copy(n) => self.fill(n, Keep::Copy),
            Step::GiveUp(n) => {
                let object = Self::object(n, Keep::Own);
                let late = |_| -> Fetched {
                    Box::pin(async {
                        tokio::time::sleep(Duration::from_millis(1500)).await;
                        Err(Broken("late"))
                    })
                };
                let reading = self.cache.read_range(&object, 0..size(n), late);
                let _ = self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(1), reading).await });
            }
            Step::FillAndDie(n, turns) => {
                let cache = self.cache.clone();
                self.runtime.block_on(async {
                    tokio::spawn(async move { cache.fill(&Self::object(n, Keep::Own), 2, fetch(n)).await });
                    for _ in 0..turns {
                        yield_now().await;
                    }
                });
                self.next();
            }
            Step::Open(n) => {
                if let Some(file) = self.runtime.block_on(self.cache.open_complete(&key(n))) {
                    self.held.push((n, file));
                }
            }
            Step::Close(which) => {
                if !self.held.is_empty() {
                    self.held.swap_remove(which.index(self.held.len()));
                }
            }
            Step::Retain(mask) => {
                let keep = |k: &ObjectKey| (0..OBJECTS).any(|n| key(n) == *k && mask >> n & 1 == 1);
                // What it unlinks may be in use.
                self.held.retain(|(n, _)| mask >> n & 1 == 1);
                self.runtime.block_on(self.cache.retain(keep)).unwrap();
            }
            Step::Quotas(quotas) => {
                self.quotas = quotas;
                self.cache.set_quotas(&quotas);
            }
            Step::Break(disk) => {
                if !self.broken[disk] {
                    break_writes(&self.dir(disk));
                    (self.broken[disk], self.is_unsure[disk]) = (true, true);
                }
            }
            Step::Mend(disk) => self.mend(disk),
            Step::Pass => self.pass(2 * OUT),
        }
    }

    fn pass(&self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }

    fn usages(&self) -> Vec<Usage> {
        self.cache.all().iter().map(|place| place.disk.usage()).collect()
    }

    fn check(&self, before: &[Usage]) {
        // What ends a fill goes on when who waited for a chunk of it does not.
        self.pass(Duration::from_secs(1));
        let usages = self.usages();
        for (disk, usage) in usages.iter().enumerate() {
            let there = on_disk(&self.dir(disk));
            assert_eq!((usage.files, usage.bytes), (there.files, there.bytes), "disk {disk}");
            assert!(self.is_unsure[disk] || usage.fill_bytes == there.fill_bytes, "disk {disk}: {usage:?}, {there:?}");
            let (quota, sum) = (self.quotas[disk], |usage: &Usage| usage.bytes + usage.fill_bytes);
            assert!(quota == 0 || sum(usage) <= quota.max(sum(&before[disk])), "disk {disk}: {usage:?} of {quota}");
        }
        for (n, file) in &self.held {
            let mut all = vec![0; size(*n) as usize];
            file.read_exact_at(&mut all, 0).unwrap();
            assert!(all == bytes(*n, 0..size(*n)), "a file that is in use has changed");
            assert!(self.cache.contains(&key(*n)), "a file that is in use was removed");
        }
    }

    /// Disks are well, and there is room for all.
    fn settle(mut self) {
        self.quotas = [0; 2];
        self.next();
        let before = self.usages();
        for n in 0..OBJECTS {
            self.fill(n, Keep::Own);
            assert!(self.runtime.block_on(self.cache.verify(&key(n))), "{n} is not good");
        }
        self.check(&before);
        assert!(self.cache.failing().is_empty());
    }
}

fn start(root: &Path, quotas: [u64; 2]) -> (Runtime, Cache<Broken>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let cache = open(root, &[(DISKS[0], quotas[0]), (DISKS[1], quotas[1])]);
    (runtime, cache)
}

fn rounds() -> ProptestConfig {
    ProptestConfig::with_cases(std::env::var("PROPTEST_CASES").map_or(64, |cases| cases.parse().unwrap()))
}

proptest! {
    #![proptest_config(rounds())]

    #[test]
    fn whatever_disks_processes_and_quotas_do_bytes_are_right_and_counted_and_files_in_use_stay(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut simulation = Simulation::new();
        for step in steps {
            let before = simulation.usages();
            simulation.step(step);
            simulation.check(&before);
        }
        simulation.settle();
    }
}
