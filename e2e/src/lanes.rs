//! Tests in lanes: the same run on more than one cluster at once. Most of what a test does is waiting for others' back-offs
//! and timeouts, so two clusters on two cores take little longer than one.
//!
//! ```text
//! larder-e2e test                 owner of the queue; prints what the lanes print, adds up their tallies
//!  ├─ larder-e2e internal-lane    a run with a capsule and a cluster of its own; takes the next test when it has done one
//!  └─ larder-e2e internal-lane
//! ```
//!
//! A signal to the owner goes to the lanes, which end everything of theirs; so does the owner's death.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, getppid};
use serde::{Deserialize, Serialize};

use crate::capsule::this_program;
use crate::ci::Tally;
use crate::report::say;
use crate::run_dir::RunDir;
use crate::scenarios;
use crate::suite::Test;

/// The hidden subcommand that is a lane.
pub const STAGE: &str = "internal-lane";

/// Fewer tests than this for each lane are not worth another cluster.
const TESTS_PER_LANE: usize = 3;

/// How many lanes there are for so many tests: `LANES`, or two where there are two cores.
///
/// # Errors
/// `LANES` is not a number.
pub fn count(tests: usize) -> Result<usize> {
    let wanted = match std::env::var("LANES") {
        Ok(text) => text.parse().with_context(|| format!("LANES={text} is not a number"))?,
        Err(_) => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(2)),
    };
    Ok(wanted.min(tests / TESTS_PER_LANE).max(1))
}

/// The tests that no lane has taken yet, in a file that all lanes share.
pub struct Queue(PathBuf);

#[derive(Serialize, Deserialize)]
struct Left {
    total: usize,
    names: Vec<String>,
}

impl Queue {
    /// A queue that another process made.
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    fn create(path: PathBuf, tests: &[Test]) -> Result<Self> {
        // The next one is at the end.
        let left = Left { total: tests.len(), names: tests.iter().rev().map(|test| test.name.to_owned()).collect() };
        std::fs::write(&path, serde_json::to_vec(&left)?).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }

    /// Takes the next test; its place among all is said beside it.
    ///
    /// # Errors
    /// The file is gone: its owner has ended.
    pub fn take(&self) -> Result<Option<(Test, String)>> {
        let mut file = OpenOptions::new().read(true).write(true).open(&self.0).context("open the queue of tests")?;
        file.lock().context("lock the queue of tests")?;
        let mut text = String::new();
        file.read_to_string(&mut text).context("read the queue of tests")?;
        let mut left: Left = serde_json::from_str(&text).context("parse the queue of tests")?;
        let Some(name) = left.names.pop() else { return Ok(None) };
        let test = scenarios::ALL.iter().find(|test| test.name == name).with_context(|| format!("no test is named {name}"))?;
        rewrite(&mut file, &left)?;
        Ok(Some((*test, format!("{} of {}", left.total - left.names.len(), left.total))))
    }
}

fn rewrite(file: &mut File, left: &Left) -> Result<()> {
    file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).context("empty the queue of tests")?;
    file.write_all(&serde_json::to_vec(left)?).context("write the queue of tests")
}

/// Runs the tests in so many lanes.
///
/// # Errors
/// A lane could not be started.
pub fn run(tests: &[Test], lanes: usize) -> Result<Tally> {
    let run = RunDir::create()?;
    let queue = Queue::create(run.path("queue"), tests)?;
    let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect::<SigSet>();
    signals.thread_block().context("block signals")?;
    // From this thread, because a lane dies with the thread that started it.
    let mut children = (0..lanes).map(|_| start(&queue.0)).collect::<Result<Vec<_>>>()?;
    let pids: Vec<_> = children.iter().map(|child| Pid::from_raw(child.id().cast_signed())).collect();
    std::thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            for pid in &pids {
                let _ = kill(*pid, signal);
            }
        }
    });
    let tally = std::thread::scope(|scope| {
        let lanes: Vec<_> =
            children.iter_mut().enumerate().map(|(number, child)| scope.spawn(move || follow(number + 1, child))).collect();
        lanes.into_iter().fold(Tally::default(), |sum, lane| sum + lane.join().unwrap_or(Tally { passed: 0, failed: 1 }))
    });
    run.discard();
    Ok(tally)
}

fn start(queue: &Path) -> Result<Child> {
    let mut command = Command::new(this_program()?);
    command.arg(STAGE).arg(queue).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start a lane")
}

/// Prints what a lane prints; its last line is its tally.
fn follow(number: usize, child: &mut Child) -> Tally {
    let mut last = String::new();
    for line in child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines()).map_while(Result::ok) {
        say(format!("{number}| {line}"));
        last = line;
    }
    let ended = child.wait();
    last.parse().unwrap_or_else(|_| {
        say(format!("FAILED lane {number}: it ended without a tally ({ended:?})"));
        Tally { passed: 0, failed: 1 }
    })
}

/// Makes this process, which is a lane, end when its owner does.
///
/// # Errors
/// The kernel refuses.
pub fn follow_the_owner() -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGTERM).context("set the parent-death signal")?;
    if getppid() == Pid::from_raw(1) {
        std::process::exit(1); // the owner died before the line above took effect
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_is_taken_once_in_order() {
        let path = std::env::temp_dir().join(format!("queue-{}", std::process::id()));
        let queue = Queue::create(path.clone(), &scenarios::ALL[..3]).unwrap();
        let other = Queue::at(path.clone());
        let taken: Vec<_> = [&queue, &other, &queue].map(|queue| queue.take().unwrap().unwrap().0.name).into();
        assert_eq!(taken, scenarios::ALL[..3].iter().map(|test| test.name).collect::<Vec<_>>());
        assert!(other.take().unwrap().is_none());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_single_test_gets_a_single_lane() {
        assert_eq!(count(1).unwrap(), 1);
    }
}
