//! Processes with a journal, one after the other, each killed between any two of its steps.

use super::{
    tests::{read, request},
    *,
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

const LOOKUP: u32 = 1;

#[derive(Clone, Debug)]
enum Step {
    /// The kernel has a request.
    Ask(u32),
    /// The process reads one, and is killed before it passes it on; or not.
    Take {
        dies: bool,
    },
    /// fuser takes a request out of its socket.
    Begin,
    /// fuser answers one of them, and the process is killed after so many steps of passing that on, if it is.
    Answer {
        which: prop::sample::Index,
        steps: usize,
    },
    Die,
}

fn step() -> impl Strategy<Value = Step> {
    let operation = prop_oneof![4 => Just(LOOKUP), 4 => Just(OPEN), 1 => Just(FORGET), 1 => Just(READDIR)];
    let steps = prop_oneof![3 => Just(ANSWERING.len()), 2 => 0..ANSWERING.len()];
    prop_oneof![
        6 => operation.prop_map(Step::Ask),
        6 => prop::bool::weighted(0.1).prop_map(|dies| Step::Take { dies }),
        5 => Just(Step::Begin),
        4 => (any::<prop::sample::Index>(), steps).prop_map(|(which, steps)| Step::Answer { which, steps }),
        1 => Just(Step::Die),
    ]
}

/// What is not there is an error and not waited for.
fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap()
}

struct Process {
    ends: Ends,
    fuser: OwnedFd,
    /// Requests in its socket.
    passed: usize,
    begun: Vec<u64>,
}

struct Simulation {
    file: File,
    kernel: OwnedFd,
    fuse: OwnedFd,
    /// Not read yet.
    queue: VecDeque<u64>,
    /// What they ask for, of those that have no answer yet.
    unanswered: BTreeMap<u64, u32>,
    /// Answers of fuser's to an OPEN that the next process may know of.
    opened: BTreeMap<u64, Vec<u8>>,
    asked: u64,
    made: u64,
    process: Option<Process>,
}

impl Simulation {
    fn new() -> Self {
        let (kernel, fuse) = pair();
        let (queue, unanswered, opened) = Default::default();
        let file = crate::journal::file().unwrap();
        let mut simulation = Self { file, kernel, fuse, queue, unanswered, opened, asked: 0, made: 0, process: None };
        simulation.start();
        simulation
    }

    /// The next process, with what the one before it has left.
    fn start(&mut self) {
        self.process = None;
        let (fuser, socket) = pair();
        let (slots, left) = Slots::open(&self.file).unwrap();
        let ends = Ends { fuse: self.fuse.try_clone().unwrap(), socket, slots };
        let mut passed = 0;
        for slot in left {
            let (operation, id) = (word(&ends.slots.bytes(slot, 0, HEADER), 4), id(&ends.slots.bytes(slot, 0, HEADER)));
            let is_kept = ends.slots.kept(slot).is_some();
            ends.pass_again(slot).unwrap();
            if is_kept {
                self.hear();
            } else {
                assert!(!self.opened.contains_key(&id), "an OPEN that was answered is made again");
                passed += usize::from(operation != FORGET);
            }
        }
        self.process = Some(Process { ends, fuser, passed, begun: Vec::new() });
    }

    /// The kernel takes an answer; one to what is answered means nothing to it.
    fn hear(&mut self) {
        let answer = read(&self.kernel);
        if let Some(operation) = self.unanswered.remove(&id(&answer))
            && operation == OPEN
        {
            assert_eq!(Some(&answer), self.opened.get(&id(&answer)), "another answer than the one that was kept");
        }
    }

    fn take(&mut self, dies: bool) {
        let Some(id) = self.queue.pop_front() else { return };
        let Some(process) = &mut self.process else { return };
        let slot = process.ends.slots.free();
        process.ends.slots.read(slot, &process.ends.fuse, &mut [0; SLOT]).unwrap();
        if dies {
            return self.start();
        }
        process.ends.pass(slot).unwrap();
        process.passed += usize::from(self.unanswered.contains_key(&id));
    }

    fn begin(&mut self) {
        if let Some(process) = self.process.as_mut().filter(|process| process.passed > 0) {
            process.passed -= 1;
            process.begun.push(id(&read(&process.fuser)));
        }
    }

    fn answer(&mut self, which: usize, steps: usize) {
        let Some(process) = &mut self.process else { return };
        let id = process.begun.swap_remove(which);
        // Each that is made says something else.
        self.made += 1;
        let answer = [&24u32.to_ne_bytes()[..], &[0; 4], &id.to_ne_bytes(), &self.made.to_ne_bytes()].concat();
        ANSWERING[..steps].iter().for_each(|step| step(&process.ends, &answer));
        if steps > 0 && self.unanswered.get(&id) == Some(&OPEN) {
            self.opened.insert(id, answer);
        }
        if steps > 1 {
            self.hear();
        }
        if steps < ANSWERING.len() {
            self.start();
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Ask(operation) => {
                self.asked += 2;
                write(&self.kernel, &request(operation, self.asked, &[0; 40])).unwrap();
                self.queue.push_back(self.asked);
                if operation != FORGET {
                    self.unanswered.insert(self.asked, operation);
                }
            }
            Step::Take { dies } => self.take(dies),
            Step::Begin => self.begin(),
            Step::Answer { which, steps } => {
                let begun = self.process.as_ref().map_or(0, |process| process.begun.len());
                if begun > 0 {
                    self.answer(which.index(begun), steps);
                }
            }
            Step::Die => self.start(),
        }
    }

    /// Nobody dies any more.
    fn settle(mut self) {
        while !self.queue.is_empty() {
            self.take(false);
        }
        while self.process.as_ref().is_some_and(|process| process.passed > 0) {
            self.begin();
        }
        while self.process.as_ref().is_some_and(|process| !process.begun.is_empty()) {
            self.answer(0, ANSWERING.len());
        }
        assert!(self.unanswered.is_empty(), "never answered: {:?}", self.unanswered);
        let slots = self.process.unwrap().ends.slots;
        let state = slots.state.lock();
        assert_eq!((state.free.len(), state.of.len()), (SLOTS, 0), "a slot is not given back");
        assert!(Slots::open(&self.file).unwrap().1.is_empty(), "the next process would find what is answered");
    }
}

proptest! {
    #[test]
    fn whenever_processes_are_killed_each_request_is_answered_and_an_open_made_once(steps in prop::collection::vec(step(), 1..80)) {
        let mut simulation = Simulation::new();
        steps.into_iter().for_each(|step| simulation.step(step));
        simulation.settle();
    }
}
