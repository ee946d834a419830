//! What the worker says about itself: listing, preload, problems.

use crate::{folder, jobs::preload::Speed};
use larder_cache::CacheError;
use larder_proto::control::v1 as pb;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Reasons that do not come from the origin. The text is part of the API.
pub(crate) mod reasons {
    pub const EMPTY_SOURCE: &str = "EmptySource";
    pub const CREDENTIALS_NOT_MOUNTED: &str = "CredentialsNotMounted";
    pub const CA_NOT_MOUNTED: &str = "CaNotMounted";
    pub const CREDENTIALS_INVALID: &str = "CredentialsInvalid";
    pub const SNAPSHOT_UNAVAILABLE: &str = "SnapshotUnavailable";
    pub const QUOTA_EXCEEDED: &str = "QuotaExceeded";
    pub const DOES_NOT_FIT: &str = "DoesNotFit";
    pub const DISK_FULL: &str = "DiskFull";
    pub const DISK_FAILED: &str = "DiskFailed";
    pub const LATER_FORMAT: &str = "LaterFormat";
    pub const DATA_CORRUPTED: &str = "DataCorrupted";
}

pub(crate) fn problem(reason: &str, message: impl Into<String>) -> pb::Problem {
    pb::Problem { reason: reason.to_owned(), message: message.into() }
}

pub(crate) fn origin_problem(e: &larder_origin::Error) -> pb::Problem {
    problem(e.reason().as_str(), e.to_string())
}

pub(crate) fn folder_problem(e: &folder::FolderError) -> pb::Problem {
    let reason = match e {
        e if e.is_later() => reasons::LATER_FORMAT,
        e if e.is_full() => reasons::DISK_FULL,
        _ => reasons::DISK_FAILED,
    };
    problem(reason, e.to_string())
}

pub(crate) fn cache_problem(e: &CacheError) -> pb::Problem {
    let reason = match e {
        CacheError::QuotaExceeded { .. } => reasons::QUOTA_EXCEEDED,
        CacheError::Removed { .. } => reasons::DISK_FULL,
        e if e.is_full() => reasons::DISK_FULL,
        CacheError::DiskFull { .. } | CacheError::Disk { .. } | CacheError::Closed { .. } => reasons::DISK_FAILED,
    };
    problem(reason, e.to_string())
}

/// What a problem keeps the worker from; at most one of each at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Topic {
    Connect,
    Snapshot,
    /// Orders and counters are in force and not on the disk.
    Store,
    Keep,
    /// A disk of several.
    Disk,
    /// Reads that nobody but the origin could answer.
    Read,
    /// Files that turned out to be bad. The last: they are fetched again, and people have time to look at the disk.
    Integrity,
}

impl Topic {
    /// What happened rather than is: it stays a problem for so long after the last time.
    fn lasts(self) -> Option<Duration> {
        match self {
            Self::Keep | Self::Read => Some(Duration::from_secs(60)),
            Self::Integrity => Some(Duration::from_secs(3600)),
            Self::Connect | Self::Snapshot | Self::Store | Self::Disk => None,
        }
    }
}

/// Files, and chunks of those that are not complete, that turned out to be bad since the worker started.
pub(crate) fn damage_problem(files: u64, quarantines: &[PathBuf]) -> pb::Problem {
    let files = if files == 1 {
        "1 cached file or part of one was".to_owned()
    } else {
        format!("{files} cached files or parts of such were")
    };
    let message = format!(
        "{files} not what had been written; they are fetched again, no wrong byte was served from them by Larder itself; check this disk (the newest complete ones are in {})",
        quarantines.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    );
    problem(reasons::DATA_CORRUPTED, message)
}

/// Progress of one preload. A new one gets a new value: fetches of an old one may still count.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub snapshot: String,
    pub bytes_total: AtomicU64,
    pub bytes_done: AtomicU64,
    pub files_total: AtomicU64,
    pub files_done: AtomicU64,
    pub files_failed: AtomicU64,
    /// Requests that it takes from the start of this attempt.
    pub gets: AtomicU64,
    /// The totals are known.
    pub planned: AtomicBool,
    speed: Arc<Speed>,
    /// Fetches that succeeded.
    pub fetches: AtomicU64,
    /// Nothing comes from the origin just now.
    stuck: AtomicBool,
    ending: Mutex<Ending>,
}

#[derive(Clone, Debug, Default)]
struct Ending {
    phase: pb::Phase,
    problem: Option<pb::Problem>,
    /// Attempts that have ended without everything, this one and those before.
    attempts: u32,
}

impl Progress {
    pub fn new(snapshot: &str) -> Arc<Self> {
        let ending = Mutex::new(Ending { phase: pb::Phase::Running, ..Ending::default() });
        Arc::new(Self { snapshot: snapshot.to_owned(), ending, ..Self::default() })
    }

    /// For the next attempt: the same counts and ending, until it has its own.
    pub fn again(&self) -> Arc<Self> {
        let copy = |n: &AtomicU64| AtomicU64::new(n.load(Relaxed));
        Arc::new(Self {
            snapshot: self.snapshot.clone(),
            bytes_total: copy(&self.bytes_total),
            bytes_done: copy(&self.bytes_done),
            files_total: copy(&self.files_total),
            files_done: copy(&self.files_done),
            files_failed: copy(&self.files_failed),
            gets: copy(&self.gets),
            planned: AtomicBool::new(self.planned.load(Relaxed)),
            speed: Arc::clone(&self.speed),
            ending: Mutex::new(self.ending.lock().clone()),
            ..Self::default()
        })
    }

    /// The origin is away: told at once, because nothing else will be for a while.
    pub fn stuck(&self, problem: pb::Problem) {
        self.stuck.store(true, Relaxed);
        self.end(pb::Phase::Failed, Some(problem));
    }

    /// An attempt has ended without everything.
    pub fn failed(&self, problem: pb::Problem) {
        self.end_with(pb::Phase::Failed, Some(problem), 1);
    }

    /// Something was fetched.
    pub fn goes_on(&self) {
        self.fetches.fetch_add(1, Relaxed);
        if self.stuck.load(Relaxed) && self.stuck.swap(false, Relaxed) {
            self.end(pb::Phase::Running, None);
        }
    }

    pub fn end(&self, phase: pb::Phase, problem: Option<pb::Problem>) {
        self.end_with(phase, problem, 0);
    }

    fn end_with(&self, phase: pb::Phase, problem: Option<pb::Problem>, attempts: u32) {
        let mut ending = self.ending.lock();
        let attempts = ending.attempts + attempts;
        if (ending.phase, &ending.problem) != (phase, &problem) {
            match &problem {
                // Each file that waits for the origin has a text of its own for the same reason.
                Some(p) if attempts == ending.attempts && ending.problem.as_ref().is_some_and(|o| o.reason == p.reason) => {}
                Some(p) => {
                    tracing::warn!(snapshot = self.snapshot, reason = p.reason, message = p.message, "preload is held up")
                }
                None => tracing::info!(snapshot = self.snapshot, bytes = self.bytes_done.load(Relaxed), ?phase, "preload"),
            }
        }
        *ending = Ending { phase, problem, attempts };
    }

    fn to_proto(&self) -> pb::Preload {
        let Ending { phase, problem, attempts } = self.ending.lock().clone();
        let bytes_total = self.bytes_total.load(Relaxed);
        // All of them are there when every file is whole and durable, not when the last byte has come.
        let most = if phase == pb::Phase::Succeeded { bytes_total } else { bytes_total.saturating_sub(1) };
        let bytes_done = self.bytes_done.load(Relaxed).min(most);
        let left =
            self.speed.left(Instant::now(), bytes_done, bytes_total - bytes_done).filter(|_| phase == pb::Phase::Running);
        pb::Preload {
            snapshot: self.snapshot.clone(),
            phase: phase.into(),
            bytes_total,
            bytes_done,
            planned: self.planned.load(Relaxed),
            gets: self.gets.load(Relaxed).saturating_sub(self.fetches.load(Relaxed)),
            // A second at least: it is not done.
            eta_seconds: left.map(|left| left.as_secs().max(1)),
            files_total: self.files_total.load(Relaxed),
            files_done: self.files_done.load(Relaxed),
            files_failed: self.files_failed.load(Relaxed),
            problem,
            attempts,
        }
    }
}

/// Shared by all jobs.
#[derive(Debug, Default)]
pub(crate) struct Report {
    listing: Mutex<Option<pb::Listing>>,
    preload: Mutex<Option<Arc<Progress>>>,
    problems: Mutex<BTreeMap<Topic, (pb::Problem, Option<Instant>)>>,
}

impl Report {
    pub fn set_listing(&self, listing: Option<pb::Listing>) {
        *self.listing.lock() = listing;
    }

    pub fn listing(&self) -> Option<pb::Listing> {
        self.listing.lock().clone()
    }

    pub fn set_preload(&self, progress: Option<Arc<Progress>>) {
        *self.preload.lock() = progress;
    }

    /// A new one for each attempt.
    #[cfg(test)]
    pub fn progress(&self) -> Option<Arc<Progress>> {
        self.preload.lock().clone()
    }

    pub fn preload(&self) -> Option<pb::Preload> {
        self.preload.lock().as_ref().map(|p| p.to_proto())
    }

    /// Sets or clears what keeps the worker from something; a change is logged.
    pub fn set(&self, topic: Topic, problem: Option<pb::Problem>) {
        let mut problems = self.problems.lock();
        let until = topic.lasts().map(|time| Instant::now() + time);
        match problem {
            Some(p) => {
                // What happens again and again names another file, or other numbers, each time; its reason is the same.
                if problems.get(&topic).is_none_or(|(old, _)| old.reason != p.reason || (until.is_none() && *old != p)) {
                    tracing::warn!(?topic, reason = p.reason, message = p.message, "problem");
                }
                problems.insert(topic, (p, until));
            }
            None => {
                if let Some((old, _)) = problems.remove(&topic) {
                    tracing::info!(?topic, reason = old.reason, "problem is over");
                }
            }
        }
    }

    pub fn get(&self, topic: Topic) -> Option<pb::Problem> {
        self.problems.lock().get(&topic).map(|(p, _)| p.clone())
    }

    pub fn problems(&self) -> Vec<pb::Problem> {
        let mut problems = self.problems.lock();
        problems.retain(|_, (_, until)| until.is_none_or(|until| Instant::now() < until));
        problems.values().map(|(p, _)| p.clone()).collect()
    }
}
