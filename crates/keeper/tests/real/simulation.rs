//! Mounter, standby, node plugin and keeper die and come back in whatever order proptest thinks of; the clock is the test's.
//!
//! Each session is a pipe: its reading end says, as the kernel would of a connection, when nobody holds the other one any more.

use crate::lab::Lab;
use larder_keeper::client::Held;
use nix::{
    errno::Errno,
    fcntl::OFlag,
    unistd::{pipe2, read},
};
use proptest::prelude::*;
use std::{
    collections::BTreeSet,
    future::poll_fn,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::Poll,
    time::{Duration, Instant},
};
use tokio::task::{JoinHandle, yield_now};

/// Of processes that have a copy of all.
const CLIENTS: usize = 3;
const PERMIT: &str = "permit/u";
/// Longer than it takes until everyone has heard of everything.
const SETTLED: Duration = Duration::from_secs(5);
/// Of a clock that is not the test's.
const FORKED: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
enum Step {
    /// Everyone goes on for so many turns: about as many messages.
    Turns(u8),
    /// Milliseconds.
    Pass(u16),
    Begin(usize),
    End(usize, prop::sample::Index),
    /// Another value of a key that all of them know.
    Permit(usize),
    Die(usize),
    Start(usize),
    KeeperDies,
    KeeperStarts,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..12u8).prop_map(Step::Turns),
        2 => (1..2500u16).prop_map(Step::Pass),
        4 => (0..CLIENTS).prop_map(Step::Begin),
        2 => (0..CLIENTS, any::<prop::sample::Index>()).prop_map(|(who, which)| Step::End(who, which)),
        1 => (0..CLIENTS).prop_map(Step::Permit),
        2 => (0..CLIENTS).prop_map(Step::Die),
        2 => (0..CLIENTS).prop_map(Step::Start),
        1 => Just(Step::KeeperDies),
        2 => Just(Step::KeeperStarts),
    ]
}

struct Client {
    held: Held,
    /// Which process of its kind, so that another one is not taken for it.
    life: u32,
    /// Sessions that it has had.
    has: BTreeSet<usize>,
}

struct Session {
    key: String,
    kernel: OwnedFd,
    /// Which process puts it there.
    begun_by: u32,
    putting: JoinHandle<()>,
    /// Which keeper there was then, and whether it has it.
    keeper: Option<u32>,
    kept: Arc<AtomicBool>,
    ended_by: Option<(usize, u32)>,
}

impl Session {
    fn is_connected(&self) -> bool {
        match read(&self.kernel, &mut [0]) {
            Err(Errno::EAGAIN) => true,
            Ok(0) => false,
            other => panic!("{other:?}"),
        }
    }
}

struct Node {
    lab: Lab,
    keeper: Option<u32>,
    clients: [Option<Client>; CLIENTS],
    sessions: Vec<Session>,
    permit: Option<(usize, u32, String)>,
    lives: u32,
}

impl Node {
    fn new() -> Self {
        let mut node = Self {
            lab: Lab::empty(),
            keeper: None,
            clients: [const { None }; CLIENTS],
            sessions: Vec::new(),
            permit: None,
            lives: 0,
        };
        node.start_all();
        node
    }

    fn next_life(&mut self) -> u32 {
        self.lives += 1;
        self.lives
    }

    fn start_all(&mut self) {
        self.start_keeper();
        (0..CLIENTS).for_each(|who| self.start(who));
    }

    fn start_keeper(&mut self) {
        if self.keeper.is_none() {
            self.lab.start();
            self.keeper = Some(self.next_life());
        }
    }

    fn start(&mut self, who: usize) {
        if self.clients[who].is_none() {
            let life = self.next_life();
            self.clients[who] = Some(Client { held: self.lab.held(), life, has: BTreeSet::new() });
        }
    }

    fn life(&self, who: usize) -> Option<u32> {
        self.clients[who].as_ref().map(|client| client.life)
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Turns(turns) => {
                for _ in 0..turns {
                    yield_now().await;
                }
            }
            Step::Pass(time) => tokio::time::sleep(Duration::from_millis(time.into())).await,
            Step::Begin(who) => self.begin(who).await,
            Step::End(who, which) => {
                let Some(Client { held, life, has }) = &self.clients[who] else { return };
                let known: Vec<usize> = has.iter().copied().filter(|n| self.sessions[*n].ended_by.is_none()).collect();
                if !known.is_empty() {
                    let session = &mut self.sessions[*which.get(&known)];
                    held.remove(&session.key);
                    session.ended_by = Some((who, *life));
                }
            }
            Step::Permit(who) => {
                let value = format!("{}", self.next_life());
                if let Some(Client { held, life, .. }) = &self.clients[who] {
                    held.put(PERMIT, value.clone(), None);
                    self.permit = Some((who, *life, value));
                }
            }
            Step::Die(who) => {
                let Some(Client { life, .. }) = self.clients[who].take() else { return };
                self.sessions.iter().filter(|s| s.begun_by == life).for_each(|s| s.putting.abort());
            }
            Step::Start(who) => self.start(who),
            Step::KeeperDies => {
                if self.keeper.take().is_some() {
                    self.lab.kill().await;
                }
            }
            Step::KeeperStarts => self.start_keeper(),
        }
    }

    async fn begin(&mut self, who: usize) {
        let Some(client) = &mut self.clients[who] else { return };
        let (kernel, fd) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let key = format!("session/{}", self.sessions.len());
        client.has.insert(self.sessions.len());
        let kept = Arc::new(AtomicBool::new(false));
        let mut putting = Box::pin({
            let (held, key, kept) = (client.held.clone(), key.clone(), Arc::clone(&kept));
            async move { kept.store(held.put_now(&key, "", Some(fd), SETTLED).await, Relaxed) }
        });
        // What one does it has begun.
        poll_fn(|context| Poll::Ready(putting.as_mut().poll(context).is_ready())).await;
        let putting = tokio::spawn(putting);
        self.sessions.push(Session { key, kernel, begun_by: client.life, putting, keeper: self.keeper, kept, ended_by: None });
    }

    /// Whatever has happened: nobody who lives has lost a session that nobody has ended.
    fn check(&mut self) {
        let sessions = &self.sessions;
        for client in self.clients.iter_mut().flatten() {
            for (n, session) in sessions.iter().enumerate() {
                let held = client.held.get(&session.key);
                let had = held.is_none() && client.has.contains(&n) && session.ended_by.is_none();
                assert!(!had, "process {} has lost {}", client.life, session.key);
                if let Some(item) = held {
                    client.has.insert(n);
                    assert!(item.fd.is_some(), "{} came without its connection", session.key);
                }
            }
        }
        for n in 0..self.sessions.len() {
            let session = &self.sessions[n];
            assert!(session.is_connected() || !self.is_held(n), "{} is held and has ended", session.key);
        }
    }

    /// Has somebody had it who lives still, and has nobody ended it?
    fn is_held(&self, n: usize) -> bool {
        let session = &self.sessions[n];
        let kept = session.kept.load(Relaxed) && self.keeper.is_some() && session.keeper == self.keeper;
        session.ended_by.is_none() && (kept || self.clients.iter().flatten().any(|client| client.has.contains(&n)))
    }

    /// All are back, and nobody dies any more.
    async fn settle(&mut self) {
        self.start_all();
        tokio::time::sleep(SETTLED).await;
        self.check();
        let keys = self.lab.keys().await;
        for client in self.clients.iter().flatten() {
            assert_eq!(client.held.keys(), keys, "process {} and the keeper", client.life);
        }
        for (n, session) in self.sessions.iter().enumerate() {
            let is_there = keys.contains(&session.key);
            assert!(is_there || !self.is_held(n), "{} is lost", session.key);
            let remembered = session.ended_by.is_some_and(|(who, life)| self.life(who) == Some(life));
            assert!(!is_there || !remembered, "{} is back", session.key);
            // A child that another test of this program has just forked has all descriptors until it is another program.
            let until = Instant::now() + FORKED;
            while session.is_connected() != is_there && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(session.is_connected(), is_there, "the descriptor of {}", session.key);
        }
        let permits: BTreeSet<Option<String>> =
            self.clients.iter().flatten().map(|client| client.held.get(PERMIT).map(|item| item.value)).collect();
        assert_eq!(permits.len(), 1, "{permits:?}");
        if let Some((who, life, value)) = &self.permit
            && self.life(*who) == Some(*life)
        {
            assert!(permits.contains(&Some(value.clone())), "{permits:?}, and {value} was the last");
        }
    }
}

proptest! {
    #[test]
    fn whoever_dies_when_what_somebody_holds_is_held_by_all_in_the_end(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut node = Node::new();
            for step in steps {
                node.step(step).await;
                node.check();
            }
            node.settle().await;
        });
    }
}
