//! Processes that serve one passthrough mount, one after the other, each killed at any write to its table, at any answer, or while
//! it waits for the node plugin, which may be away. The kernel is a small model of the real one, and strict.

use super::{super::slots::death, *};
use nix::sys::stat::fstat;
use proptest::prelude::*;
use std::{
    collections::{BTreeSet, VecDeque},
    future::pending,
    os::fd::AsFd,
    pin::Pin,
};
use tokio::{runtime::Runtime, task::yield_now};

const SIZE: u64 = 100;
const INODES: u64 = 4;
/// Until everything has been forgotten that nobody uses.
const SETTLED: Duration = Duration::from_secs(200);

#[derive(Clone, Debug)]
enum Step {
    Open(u64),
    Close(prop::sample::Index),
    /// The process reads a request.
    Take,
    /// The process goes on for so many turns.
    Turns(u8),
    /// The process gives an answer.
    Answer(prop::sample::Index),
    /// The process is killed when it has written an answer to its journal, if there is one, and before it has given it.
    DieAnswering(prop::sample::Index),
    Die,
    /// After so many writes to the table from now on.
    DieWriting(u32),
    PluginGoes,
    PluginComes,
    /// A file is complete on the local disk, or has gone from there.
    Local(u64, bool),
    /// Seconds.
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        8 => (0..INODES).prop_map(Step::Open),
        5 => index().prop_map(Step::Close),
        12 => Just(Step::Take),
        8 => (1..6u8).prop_map(Step::Turns),
        8 => index().prop_map(Step::Answer),
        1 => index().prop_map(Step::DieAnswering),
        1 => Just(Step::Die),
        2 => (1..5u32).prop_map(Step::DieWriting),
        1 => Just(Step::PluginGoes),
        2 => Just(Step::PluginComes),
        2 => (0..INODES, any::<bool>()).prop_map(|(inode, is)| Step::Local(inode, is)),
        1 => (1..90u64).prop_map(Step::Pass),
    ]
}

/// Numbers of backing files, and the inodes on the disk of what they are.
#[derive(Default)]
struct Registered {
    files: BTreeMap<u32, u64>,
    highest: u32,
    plugin_is_away: bool,
    /// The plugin was killed before it could tell the number.
    untold: BTreeSet<u32>,
}

#[derive(Clone, Default)]
struct Plugin(Arc<Mutex<Registered>>);

impl Plugin {
    /// A message is on its way.
    async fn travel(&self) -> Result<(), RegisterError> {
        yield_now().await;
        if death::has_struck() {
            pending::<()>().await;
        }
        if self.0.lock().plugin_is_away { Err(RegisterError::Unreachable("away".into())) } else { Ok(()) }
    }
}

impl Backings for Plugin {
    fn register(
        &self,
        file: Arc<dyn AsFd + Send + Sync>,
    ) -> Pin<Box<dyn Future<Output = Result<u32, RegisterError>> + Send + '_>> {
        Box::pin(async move {
            self.travel().await?;
            let id = {
                let mut registered = self.0.lock();
                registered.highest += 1;
                let id = registered.highest;
                registered.files.insert(id, fstat(file.as_fd()).unwrap().st_ino);
                id
            };
            // Each of the two may be killed before the process hears of it.
            yield_now().await;
            let mut registered = self.0.lock();
            if registered.plugin_is_away {
                registered.untold.insert(id);
                return Err(RegisterError::Unreachable("killed".into()));
            }
            Ok(id)
        })
    }

    fn unregister(&self, id: u32) -> Pin<Box<dyn Future<Output = Result<(), RegisterError>> + Send + '_>> {
        Box::pin(async move {
            self.travel().await?;
            self.0.lock().files.remove(&id);
            self.travel().await
        })
    }
}

#[derive(Clone, Copy, Debug)]
enum Ask {
    Open { inode: u64 },
    Release { inode: u64, handle: u64 },
}

struct Answer {
    unique: u64,
    /// None: to a RELEASE.
    way: Option<Way>,
}

impl Answer {
    fn id(&self) -> Option<u32> {
        match &self.way {
            Some(Way::Passthrough(backing)) => Some(backing.id),
            _ => None,
        }
    }
}

/// Dropped as a killed one ends: none of its tasks goes on.
struct Process {
    runtime: Runtime,
    table: Arc<OpenTable>,
    answers: Arc<Mutex<Vec<Answer>>>,
}

struct Simulation {
    has_journal: bool,
    plugin: Plugin,
    table: File,
    files: Vec<Arc<File>>,
    is_local: [bool; INODES as usize],
    asked: u64,
    unread: VecDeque<u64>,
    unanswered: BTreeMap<u64, Ask>,
    read: BTreeSet<u64>,
    /// Answers to an OPEN in the journal.
    kept: BTreeMap<u64, Option<u32>>,
    /// Handles: the inode, and its backing file.
    open: BTreeMap<u64, (u64, Option<u32>)>,
    process: Option<Process>,
}

impl Simulation {
    fn new(has_journal: bool) -> Self {
        let file = || {
            let file = tempfile::tempfile().unwrap();
            file.set_len(SIZE).unwrap();
            Arc::new(file)
        };
        let mut simulation = Self {
            has_journal,
            plugin: Plugin::default(),
            table: Slots::file().unwrap(),
            files: (0..INODES).map(|_| file()).collect(),
            is_local: [true, true, true, false],
            asked: 0,
            unread: VecDeque::new(),
            unanswered: BTreeMap::new(),
            read: BTreeSet::new(),
            kept: BTreeMap::new(),
            open: BTreeMap::new(),
            process: None,
        };
        simulation.next();
        simulation
    }

    /// The process is killed, and the next one goes on.
    fn next(&mut self) {
        self.process = None;
        death::after(u32::MAX);
        for unique in std::mem::take(&mut self.read).into_iter().rev() {
            match self.kept.get(&unique).copied() {
                Some(id) => self.hear(unique, id),
                None if self.unanswered.contains_key(&unique) => self.unread.push_front(unique),
                None => {}
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let table = {
            let _inside = runtime.enter();
            OpenTable::start(Arc::new(self.plugin.clone()), Arc::default(), self.table.try_clone().unwrap()).unwrap()
        };
        self.process = Some(Process { runtime, table, answers: Arc::default() });
    }

    fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }

    /// The kernel takes an answer.
    fn hear(&mut self, unique: u64, id: Option<u32>) {
        // Given twice.
        let Some(ask) = self.unanswered.remove(&unique) else { return };
        let Ask::Open { inode } = ask else { return };
        if let Some(id) = id {
            let registered = self.plugin.0.lock().files.get(&id).copied();
            let file = fstat(&self.files[inode as usize]).unwrap().st_ino;
            assert_eq!(registered, Some(file), "inode {inode} is opened with {id}, which is not its file");
        }
        let mut others = self.open.values().filter(|open| open.0 == inode);
        assert!(others.all(|open| open.1 == id), "EIO: inode {inode} is open in another way than {id:?}");
        self.open.insert(unique, (inode, id));
    }

    fn ask(&mut self, ask: Ask) {
        self.asked += 2;
        self.unread.push_back(self.asked);
        self.unanswered.insert(self.asked, ask);
    }

    fn close(&mut self, handle: u64) {
        let (inode, _) = self.open.remove(&handle).unwrap();
        self.ask(Ask::Release { inode, handle });
    }

    fn take(&mut self) {
        let Some(unique) = self.unread.pop_front() else { return };
        self.read.insert(unique);
        let Process { runtime, table, answers } = self.process();
        match self.unanswered[&unique] {
            Ask::Open { inode } => {
                if let Some(way) = table.again(inode, SIZE, unique) {
                    return answers.lock().push(Answer { unique, way: Some(way) });
                }
                let (table, answers) = (Arc::clone(table), Arc::clone(answers));
                let file = self.is_local[inode as usize].then(|| Arc::clone(&self.files[inode as usize]));
                let file = async {
                    yield_now().await;
                    file
                };
                runtime.spawn(async move {
                    let way = Some(table.open(inode, unique, file, "test").await);
                    answers.lock().push(Answer { unique, way });
                });
            }
            Ask::Release { inode, handle } => {
                table.release(inode, handle);
                answers.lock().push(Answer { unique, way: None });
            }
        }
    }

    /// One of the answers that the process has ready.
    fn ready(&self, which: usize) -> Option<Answer> {
        let mut answers = self.process().answers.lock();
        let count = answers.len();
        (count > 0).then(|| answers.swap_remove(which % count))
    }

    fn answer(&mut self, which: usize) {
        if let Some(answer) = self.ready(which) {
            self.hear(answer.unique, answer.id());
            self.read.remove(&answer.unique);
        }
    }

    fn turns(&self, turns: u8) {
        self.process().runtime.block_on(async {
            for _ in 0..turns {
                yield_now().await;
            }
        });
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Open(inode) => self.ask(Ask::Open { inode }),
            Step::Close(which) => {
                let handles: Vec<u64> = self.open.keys().copied().collect();
                if !handles.is_empty() {
                    self.close(*which.get(&handles));
                }
            }
            Step::Take => self.take(),
            Step::Turns(turns) => self.turns(turns),
            Step::Answer(which) => self.answer(which.index(1000)),
            Step::DieAnswering(which) => {
                if let Some(answer) = self.ready(which.index(1000))
                    && self.has_journal
                    && answer.way.is_some()
                {
                    self.kept.insert(answer.unique, answer.id());
                }
                self.next();
            }
            Step::Die => self.next(),
            Step::DieWriting(writes) => death::after(writes),
            Step::PluginGoes => self.plugin.0.lock().plugin_is_away = true,
            Step::PluginComes => self.plugin.0.lock().plugin_is_away = false,
            Step::Local(inode, is) => self.is_local[inode as usize] = is,
            Step::Pass(seconds) => self.pass(Duration::from_secs(seconds)),
        }
        // What it did after that it did not do.
        if death::has_struck() {
            self.next();
        }
    }

    fn pass(&self, time: Duration) {
        self.process().runtime.block_on(async { tokio::time::sleep(time).await });
    }

    fn answer_all(&mut self) {
        while !self.unread.is_empty() {
            self.take();
        }
        self.pass(SETTLED);
        while !self.process().answers.lock().is_empty() {
            self.answer(0);
        }
        assert!(self.unanswered.is_empty(), "never answered: {:?}", self.unanswered);
    }

    /// Nobody dies any more, and all is closed.
    fn settle(mut self) {
        death::after(u32::MAX);
        self.plugin.0.lock().plugin_is_away = false;
        self.answer_all();
        let handles: Vec<u64> = self.open.keys().copied().collect();
        handles.into_iter().for_each(|handle| self.close(handle));
        self.answer_all();
        self.pass(SETTLED);
        {
            let registered = self.plugin.0.lock();
            let left = registered.files.keys().find(|id| !registered.untold.contains(id));
            assert_eq!(left, None, "a backing file is left");
        }
        self.next();
        self.pass(SETTLED);
        assert_eq!(self.plugin.0.lock().files, BTreeMap::new(), "backing files are left by the next process too");
        let (_, noted) = Slots::load(self.table.try_clone().unwrap()).unwrap();
        let left: Vec<_> = noted.iter().filter(|(_, entry)| !matches!(entry, Entry::Highest { .. })).collect();
        assert!(left.is_empty() && noted.len() <= 1, "{noted:?}");
    }
}

proptest! {
    #[test]
    fn whenever_processes_are_killed_what_is_open_stays_so_and_nothing_is_left_when_all_is_closed(
        has_journal: bool,
        steps in prop::collection::vec(step(), 1..100),
    ) {
        let mut simulation = Simulation::new(has_journal);
        steps.into_iter().for_each(|step| simulation.step(step));
        simulation.settle();
    }
}
