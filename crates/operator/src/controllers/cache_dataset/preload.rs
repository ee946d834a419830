//! How far fetching ahead of use is, summed over the workers.

use super::snapshot::Statuses;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use larder_api::cache_dataset::{CacheStatus, PreloadStatus, SnapshotStatus, WorkerCounts};
use larder_core::placement::Members;
use larder_proto::control::v1::{Phase, Preload, Problem};

/// What the members say about one snapshot.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Progress {
    pub bytes_done: u64,
    pub bytes_total: u64,
    pub files_total: u64,
    pub files_failed: u64,
    /// Members that have counted their share.
    pub planned: usize,
    /// Requests to the origin that it takes from here on.
    pub gets: u64,
    /// Time until the last member is done; `None`: one of them does not know.
    pub eta_seconds: Option<u64>,
    /// Members that have their share.
    pub done: usize,
    /// Members whose share could not be fetched, with the first reason.
    pub failed: Vec<(String, Option<Problem>)>,
    /// Members that did not answer.
    pub silent: Vec<String>,
    pub members: usize,
}

impl Progress {
    /// Everyone has everything?
    pub(super) fn is_complete(&self) -> bool {
        self.members > 0 && self.done == self.members
    }

    /// Everyone has everything, and that is nothing at all?
    pub(super) fn is_empty(&self) -> bool {
        self.is_complete() && self.files_total == 0 && self.bytes_total == 0
    }
}

/// Sums over the members.
pub(super) fn progress(snapshot: &str, members: &Members, statuses: &Statuses) -> Progress {
    let mut sum = Progress { members: members.members.len(), eta_seconds: Some(0), ..Progress::default() };
    for member in &members.members {
        let Some(Ok(status)) = statuses.get(&member.node) else {
            sum.silent.push(member.node.clone());
            sum.eta_seconds = None;
            continue;
        };
        let Some(preload) = status.preload.as_ref().filter(|p| p.snapshot == snapshot) else {
            sum.eta_seconds = None;
            continue;
        };
        sum.planned += usize::from(preload.planned);
        sum.gets += preload.gets;
        if preload.phase() != Phase::Succeeded {
            sum.eta_seconds = sum.eta_seconds.zip(preload.eta_seconds).map(|(a, b)| a.max(b));
        }
        sum.bytes_done += preload.bytes_done;
        sum.bytes_total += preload.bytes_total;
        sum.files_total += preload.files_total;
        sum.files_failed += preload.files_failed;
        if has_failed(preload) {
            sum.failed.push((member.node.clone(), preload.problem.clone()));
        } else if preload.phase() == Phase::Succeeded {
            sum.done += 1;
        }
    }
    sum
}

fn has_failed(preload: &Preload) -> bool {
    match preload.phase() {
        Phase::Failed => true,
        Phase::Succeeded => preload.files_failed > 0,
        Phase::Running | Phase::Unspecified => false,
    }
}

/// `status.preload`. `prior` belongs to the same snapshot.
pub(super) fn status(
    sum: &Progress,
    prior: Option<&PreloadStatus>,
    snapshot: &SnapshotStatus,
    now: Timestamp,
) -> PreloadStatus {
    let started = prior.and_then(|p| p.start_time.clone()).unwrap_or(Time(now));
    // Until every member has counted its share, the snapshot's size is the better total.
    let bytes_total = if sum.planned == sum.members || sum.is_complete() { sum.bytes_total } else { snapshot.bytes };
    let done = sum.is_complete() && !sum.is_empty();
    let completion_time = done.then(|| prior.and_then(|p| p.completion_time.clone()).unwrap_or(Time(now)));
    let running = !sum.is_complete() && sum.failed.is_empty();
    PreloadStatus {
        bytes_done: sum.bytes_done,
        bytes_total,
        files_failed: sum.files_failed,
        eta: sum.eta_seconds.filter(|_| running).and_then(|s| eta(now, s)),
        start_time: Some(started),
        completion_time,
    }
}

fn eta(now: Timestamp, seconds: u64) -> Option<Time> {
    now.checked_add(jiff::SignedDuration::from_secs(i64::try_from(seconds).ok()?)).ok().map(Time)
}

/// `status.cache`.
pub(super) fn cache_status(
    snapshot: Option<&SnapshotStatus>,
    preload: Option<&Progress>,
    statuses: &Statuses,
    workers: WorkerCounts,
) -> CacheStatus {
    let answers = || statuses.values().filter_map(|s| s.as_ref().ok());
    let bytes: u64 = answers().map(|s| s.cached_bytes).sum();
    let percent = match snapshot {
        None => 0,
        Some(s) if preload.is_some_and(|p| p.is_complete() && p.bytes_total >= s.bytes) => 100,
        Some(s) if s.bytes == 0 => 100,
        // What is cached may be of an older snapshot, so that the sum alone never says "all".
        Some(s) => (u128::from(bytes) * 100 / u128::from(s.bytes)).min(if preload.is_some() { 99 } else { 100 }) as u32,
    };
    CacheStatus { bytes, files: answers().map(|s| s.cached_files).sum(), percent, workers }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{members, now, preload_of, snapshot_status};
    use super::*;
    use jiff::SignedDuration;

    #[test]
    fn shares_are_summed_and_silence_is_not_success() {
        let both = members(&["a", "b"]);
        let mut statuses: Statuses = [("a".into(), Ok(preload_of("d", Phase::Succeeded, 60, 60)))].into();
        let sum = progress("d", &both, &statuses);
        assert_eq!((sum.done, sum.silent.as_slice(), sum.is_complete()), (1, ["b".to_owned()].as_slice(), false));
        statuses.insert("b".into(), Ok(preload_of("d", Phase::Running, 10, 40)));
        let sum = progress("d", &both, &statuses);
        assert_eq!((sum.bytes_done, sum.bytes_total, sum.is_complete()), (70, 100, false));
        statuses.insert("b".into(), Ok(preload_of("d", Phase::Succeeded, 40, 40)));
        assert!(progress("d", &both, &statuses).is_complete());
        assert!(!progress("another", &both, &statuses).is_complete());
        assert!(!progress("d", &members(&[]), &statuses).is_complete());
    }

    #[test]
    fn files_that_failed_make_a_share_fail() {
        let mut status = preload_of("d", Phase::Succeeded, 50, 60);
        status.preload.as_mut().unwrap().files_failed = 2;
        let sum = progress("d", &members(&["a"]), &[("a".into(), Ok(status))].into());
        assert_eq!((sum.files_failed, sum.failed.len(), sum.is_complete()), (2, 1, false));
    }

    #[test]
    fn the_end_is_when_the_last_member_ends_and_nobody_guesses_for_one_that_does_not_know() {
        let snapshot = snapshot_status("l", "d");
        let both = members(&["a", "b"]);
        let with = |eta_seconds| {
            let mut status = preload_of("d", Phase::Running, 10, 40);
            status.preload.as_mut().unwrap().eta_seconds = eta_seconds;
            Ok(status)
        };
        let eta = |a, b| {
            let sum = progress("d", &both, &[("a".into(), a), ("b".into(), b)].into());
            status(&sum, None, &snapshot, now()).eta
        };
        let later = |s| Some(Time(now() + SignedDuration::from_secs(s)));
        assert_eq!(eta(with(Some(10)), with(Some(30))), later(30));
        assert_eq!(eta(with(Some(10)), Ok(preload_of("d", Phase::Succeeded, 40, 40))), later(10));
        assert_eq!(eta(with(Some(10)), with(None)), None);
        assert_eq!(eta(with(Some(10)), Err("away".into())), None);
    }

    #[test]
    fn the_total_is_the_snapshots_until_every_member_has_counted_its_share() {
        let snapshot = snapshot_status("l", "d");
        let total = |planned| {
            let sum = Progress { bytes_total: 70, members: 2, planned, ..Progress::default() };
            status(&sum, None, &snapshot, now()).bytes_total
        };
        // Less than all: only some paths are preloaded.
        assert_eq!((total(1), total(2)), (snapshot.bytes, 70));
    }

    #[test]
    fn the_completion_time_is_set_once() {
        let snapshot = snapshot_status("l", "d");
        let sum = Progress { bytes_done: 1000, bytes_total: 1000, members: 1, done: 1, ..Progress::default() };
        let first = status(&sum, None, &snapshot, now());
        assert_eq!(first.completion_time, Some(Time(now())));
        let second = status(&sum, Some(&first), &snapshot, now() + SignedDuration::from_secs(60));
        assert_eq!(second, first);
    }

    #[test]
    fn one_hundred_percent_means_all_of_it() {
        let snapshot = snapshot_status("l", "d");
        let percent = |bytes, preload: Option<&Progress>| {
            let mut status = preload_of("d", Phase::Running, 0, 0);
            status.cached_bytes = bytes;
            cache_status(Some(&snapshot), preload, &[("a".into(), Ok(status))].into(), WorkerCounts::default()).percent
        };
        let running = Progress { members: 1, ..Progress::default() };
        assert_eq!((percent(999, Some(&running)), percent(5000, Some(&running)), percent(5000, None)), (99, 99, 100));
        let done = Progress { members: 1, done: 1, bytes_total: 1000, ..Progress::default() };
        assert_eq!(percent(1000, Some(&done)), 100);
        let some_paths = Progress { bytes_total: 500, ..done };
        assert_eq!(percent(500, Some(&some_paths)), 50);
    }
}
