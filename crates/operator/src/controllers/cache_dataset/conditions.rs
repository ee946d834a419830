//! What the conditions say.
//!
//! Each is decided from what was observed, never from another's text; `Ready` takes the reason of the first thing that is missing.

use super::{failures::Refusals, members::Selection, pods::Worker, preload, snapshot};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use larder_api::{
    CacheDataset, CacheDatasetStatus,
    cache_dataset::{PreloadPolicy, SnapshotStatus},
    conditions::{reasons, types},
};
use larder_proto::control::v1::{Phase, Problem};

/// At most this many nodes are named in a message.
const NAMED: usize = 3;

/// Why something is not as it should be: a reason for programs, a message for people.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cause {
    pub reason: String,
    pub message: String,
}

impl Cause {
    pub(super) fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into() }
    }
}

/// Everything the conditions depend on.
pub(super) struct Facts<'a> {
    pub dataset: &'a CacheDataset,
    pub now: Timestamp,
    /// What is wrong with the spec or with what it refers to.
    pub inputs: Option<Cause>,
    /// Can workers run in spite of `inputs`? (They have an older copy of the Secret, say.)
    pub inputs_block: bool,
    pub selection: &'a Selection,
    pub workers: &'a [Worker],
    /// Last warning of the DaemonSet: it cannot make pods.
    pub daemon_set_warning: Option<&'a str>,
    pub statuses: &'a snapshot::Statuses,
    pub snapshot: &'a snapshot::Progress,
    /// `status.snapshot` as it will be.
    pub published: Option<&'a SnapshotStatus>,
    pub preload: Option<&'a preload::Progress>,
    pub claim: Claim,
    /// What the API server does not take.
    pub refused: &'a Refusals,
    /// Were workers made for this spec or an earlier one?
    pub has_workers: bool,
}

/// The dataset's own claim.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Claim {
    Bound,
    /// Not bound yet, and why.
    Pending(String),
    /// Someone else's.
    NotOurs(String),
}

#[derive(Clone)]
enum Verdict {
    True(Cause),
    False(Cause),
    Unknown(Cause),
}

/// All conditions, in the order of [`types::ALL`].
pub(super) fn conditions(facts: &Facts<'_>) -> Vec<Condition> {
    let pods = pods(facts);
    // Ready asks for pods, not for the absence of problems: what is cached can be read while the origin is away.
    let workers = match (&pods, worker_problem(facts)) {
        (Verdict::True(_), Some(problem)) => Verdict::False(problem),
        _ => pods.clone(),
    };
    let (snapshot, preload) = (snapshot(facts), preload(facts));
    let ready = ready(facts, &pods, &snapshot, &preload);
    let old = facts.dataset.status.as_ref().map_or(&[][..], |s| &s.conditions);
    let generation = facts.dataset.metadata.generation;
    // Workers that could not be changed are those of an earlier spec: `Ready` tells of that one.
    let in_force = old.iter().find(|c| c.type_ == types::READY && facts.refused.behind && facts.has_workers);
    let in_force = in_force.map_or(generation, |c| c.observed_generation);
    [(types::READY, ready), (types::SNAPSHOT_TAKEN, snapshot), (types::WORKERS_READY, workers), (types::PRELOADED, preload)]
        .into_iter()
        .map(|(type_, verdict)| {
            let (status, cause) = match verdict {
                Verdict::True(c) => ("True", c),
                Verdict::False(c) => ("False", c),
                Verdict::Unknown(c) => ("Unknown", c),
            };
            let generation = if type_ == types::READY { in_force } else { generation };
            condition(type_, status, cause, generation, old, facts.now)
        })
        .collect()
}

/// Status while it cannot be seen what there is: nobody knows whether pods can read, the rest is as it was seen last.
pub(super) fn unseen(dataset: &CacheDataset, why: &str, now: Timestamp) -> CacheDatasetStatus {
    let mut status = dataset.status.clone().unwrap_or_default();
    let message = format!("the operator cannot see what there is, and changes nothing: {why}");
    let cause = Cause::new(reasons::ready::UNSEEN, message);
    let seen = |type_: &str| status.conditions.iter().find(|c| c.type_ == type_ && type_ != types::READY).cloned();
    let unknown =
        |type_: &str| condition(type_, "Unknown", cause.clone(), dataset.metadata.generation, &status.conditions, now);
    status.conditions = types::ALL.iter().map(|type_| seen(type_).unwrap_or_else(|| unknown(type_))).collect();
    status
}

/// One condition; its time moves only with its status.
pub(super) fn condition(
    type_: &str,
    status: &str,
    cause: Cause,
    generation: Option<i64>,
    old: &[Condition],
    now: Timestamp,
) -> Condition {
    let since = old.iter().find(|c| c.type_ == type_ && c.status == status).map(|c| c.last_transition_time.clone());
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: cause.reason,
        message: cause.message,
        observed_generation: generation,
        last_transition_time: since.unwrap_or(Time(now)),
    }
}

fn pods(f: &Facts<'_>) -> Verdict {
    if let Some(cause) = f.inputs.clone().filter(|_| f.inputs_block) {
        return Verdict::False(cause);
    }
    let desired = f.selection.nodes.len();
    let selected = || f.workers.iter().filter(|w| f.selection.nodes.contains(&w.node));
    let ready = selected().filter(|w| w.ready).count();
    if let Some(refused) = f.refused.workers.as_ref().filter(|_| desired == 0 || ready < desired) {
        return Verdict::False(refused.clone());
    }
    if desired == 0 {
        return Verdict::False(no_nodes(f));
    }
    if ready == desired {
        return Verdict::True(Cause::new(reasons::workers::ALL_READY, format!("{ready} of {desired} workers are ready")));
    }
    let mut message = format!("{ready} of {desired} workers are ready");
    let troubles: Vec<String> = selected()
        .filter_map(|w| Some(format!("worker {} on node {}: {}", w.pod, w.node, w.trouble.as_ref()?)))
        .chain(f.daemon_set_warning.map(|w| format!("the DaemonSet cannot make pods: {w}")))
        .collect();
    if troubles.is_empty() {
        let waiting = selected().filter(|w| !w.ready).map(|w| w.node.clone());
        let without = f.selection.nodes.iter().filter(|n| f.workers.iter().all(|w| &w.node != *n)).cloned();
        message.push_str(&format!("; waiting for {}", list(waiting.chain(without).collect())));
        return Verdict::False(Cause::new(reasons::workers::STARTING, message));
    }
    for trouble in troubles.iter().take(NAMED) {
        message.push_str("; ");
        message.push_str(trouble);
    }
    Verdict::False(Cause::new(reasons::workers::FAILING, message))
}

fn no_nodes(f: &Facts<'_>) -> Cause {
    let selector: Vec<String> = f.dataset.spec.workers.node_selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let message = match &f.selection.refused {
        Some((node, taint)) => format!(
            "node {node} matches spec.workers.nodeSelector ({}) and has taint {taint}, which spec.workers.tolerations does not tolerate",
            selector.join(",")
        ),
        None => format!(
            "no node has the labels of spec.workers.nodeSelector ({}); label nodes or change the selector",
            selector.join(",")
        ),
    };
    Cause::new(reasons::workers::NO_NODES_MATCH, message)
}

/// What workers that are up complain about, that they do not answer, or that they are not as the spec says.
fn worker_problem(f: &Facts<'_>) -> Option<Cause> {
    if let Some(cause) = f.inputs.as_ref().or(f.refused.workers.as_ref()) {
        return Some(cause.clone());
    }
    let silent = f.statuses.iter().find_map(|(node, s)| Some((node, s.as_ref().err()?)));
    if let Some((node, error)) = silent {
        let message = format!("the worker on node {node} is ready and does not answer the operator: {error}");
        return Some(Cause::new(reasons::workers::UNREACHABLE, message));
    }
    let mut problems = f.statuses.iter().filter_map(|(node, s)| Some((node, s.as_ref().ok()?.problems.first()?)));
    let (node, problem) = problems.next()?;
    let mut cause = reported(node, problem);
    let others = problems.filter(|(_, p)| p.reason == problem.reason).count();
    if others > 0 {
        cause.message.push_str(&format!(" (and {others} more)"));
    }
    Some(cause)
}

fn reported(node: &str, problem: &Problem) -> Cause {
    Cause::new(&problem.reason, format!("node {node}: {}", problem.message))
}

fn snapshot(f: &Facts<'_>) -> Verdict {
    let p = f.snapshot;
    if p.is_complete() {
        let taken = f.published.cloned().unwrap_or_default();
        let mut message = format!("{} files, {}", taken.files, bytes(taken.bytes));
        if taken.skipped > 0 {
            message.push_str(&format!("; {} objects left out, of which no file can be made", taken.skipped));
            let examples = p.listing.as_ref().map(|l| l.skipped_examples.join(", ")).unwrap_or_default();
            if !examples.is_empty() {
                message.push_str(&format!(": {examples}"));
            }
        }
        return Verdict::True(Cause::new(reasons::snapshot::TAKEN, message));
    }
    if p.answered == 0 {
        if let Some(cause) = f.inputs.clone().filter(|_| f.inputs_block) {
            return Verdict::Unknown(cause);
        }
        // What was taken and is held by workers that are down is not lost.
        let message = "no worker is ready; see the condition WorkersReady".to_owned();
        return Verdict::Unknown(Cause::new(reasons::snapshot::WAITING_FOR_WORKERS, message));
    }
    if p.current {
        let missing = f.statuses.iter().filter_map(|(node, s)| {
            let s = s.as_ref().ok()?;
            p.digest.as_ref().filter(|d| !s.snapshots.contains(d)).map(|_| (node.clone(), s.problems.first()))
        });
        let (nodes, problems): (Vec<String>, Vec<Option<&Problem>>) = missing.unzip();
        if let (Some(node), Some(Some(problem))) = (nodes.first(), problems.first()) {
            return Verdict::False(reported(node, problem));
        }
        let message = format!("{} of {} workers have the catalog; waiting for {}", p.holders, p.answered, list(nodes));
        return Verdict::False(Cause::new(reasons::snapshot::DISTRIBUTING, message));
    }
    listing(f)
}

fn listing(f: &Facts<'_>) -> Verdict {
    let Some(node) = &f.snapshot.lister else {
        let message = "a worker does not answer; it may be listing. See the condition WorkersReady".to_owned();
        return Verdict::Unknown(Cause::new(reasons::snapshot::WAITING_FOR_WORKERS, message));
    };
    let problem_of_worker = || f.statuses.get(node)?.as_ref().ok()?.problems.first();
    match &f.snapshot.listing {
        Some(l) => match (&l.problem, l.phase()) {
            (Some(problem), _) => Verdict::False(reported(node, problem)),
            (None, Phase::Failed) => {
                let message = format!("node {node}: the listing failed; see the log of its worker");
                Verdict::False(Cause::new(reasons::snapshot::LISTING_FAILED, message))
            }
            _ if l.entries_written > 0 => {
                let (done, files) = (l.entries_written, l.files);
                let message = format!("node {node} has listed {files} files and writes the catalog: {done} entries so far");
                Verdict::False(Cause::new(reasons::snapshot::LISTING_RUNNING, message))
            }
            _ => {
                let (size, rate) = (bytes(l.bytes), l.files_per_second);
                let message = format!("node {node} lists the origin: {} files, {size} so far, {rate} files/s", l.files);
                Verdict::False(Cause::new(reasons::snapshot::LISTING_RUNNING, message))
            }
        },
        None => match problem_of_worker() {
            Some(problem) => Verdict::False(reported(node, problem)),
            None => {
                let message = format!("node {node} begins to list the origin");
                Verdict::False(Cause::new(reasons::snapshot::LISTING_RUNNING, message))
            }
        },
    }
}

fn preload(f: &Facts<'_>) -> Verdict {
    if f.dataset.spec.preload.policy == PreloadPolicy::None {
        let message = "spec.preload.policy is None: files are cached at their first read";
        return Verdict::False(Cause::new(reasons::preload::NOT_REQUESTED, message));
    }
    let (Some(sum), Some(snapshot)) = (f.preload, f.published.filter(|_| f.snapshot.current)) else {
        let message = "there is no snapshot of the present source yet; see the condition SnapshotTaken";
        return Verdict::Unknown(Cause::new(reasons::preload::WAITING_FOR_SNAPSHOT, message));
    };
    // Of empty files there are some, and nothing to fetch.
    if sum.is_empty() && !f.dataset.spec.preload.paths.is_empty() {
        let paths: Vec<String> = f.dataset.spec.preload.paths.iter().map(|p| format!("{p:?}")).collect();
        let message = format!(
            "no file of the snapshot matches spec.preload.paths ({}); folders end in a slash, paths begin without one",
            list(paths)
        );
        return Verdict::False(Cause::new(reasons::preload::NOTHING_MATCHES, message));
    }
    if sum.is_complete() {
        let message = if f.dataset.spec.preload.paths.is_empty() {
            format!("{} files, {} are cached", snapshot.files, bytes(snapshot.bytes))
        } else {
            format!("what spec.preload.paths names, {}, is cached", bytes(sum.bytes_total))
        };
        return Verdict::True(Cause::new(reasons::preload::COMPLETE, message));
    }
    let mut failed = sum.failed.iter().map(|(node, problem)| match problem {
        Some(problem) => reported(node, problem),
        None => {
            let message = format!("node {node}: {} files could not be fetched; see the log of its worker", sum.files_failed);
            Cause::new(reasons::preload::FAILED, message)
        }
    });
    if let Some(mut cause) = failed.next() {
        // Each node names its own files.
        for other in failed.by_ref().take(NAMED - 1) {
            cause.message.push_str(&format!("; {}", other.message));
        }
        let more = failed.count();
        if more > 0 {
            cause.message.push_str(&format!("; and {more} more nodes"));
        }
        return Verdict::False(cause);
    }
    // A member that is away for a moment keeps what it has.
    let was_complete = f
        .dataset
        .status
        .as_ref()
        .filter(|s| s.snapshot.as_ref().map(|s| &s.id) == Some(&snapshot.id))
        .is_some_and(|s| s.conditions.iter().any(|c| c.type_ == types::PRELOADED && c.status == "True"));
    if was_complete && !sum.silent.is_empty() && sum.done + sum.silent.len() == sum.members {
        let message = format!("complete when {} was last heard from", list(sum.silent.clone()));
        return Verdict::True(Cause::new(reasons::preload::COMPLETE, message));
    }
    let counted = sum.planned == sum.members;
    let total = if counted { sum.bytes_total } else { snapshot.bytes };
    let mut message = format!("{} of {}", bytes(sum.bytes_done), bytes(total));
    if counted {
        message.push_str(&format!("; {} more requests to the source", sum.gets));
    }
    if !sum.silent.is_empty() {
        message.push_str(&format!("; waiting for {}", list(sum.silent.clone())));
    }
    Verdict::False(Cause::new(reasons::preload::RUNNING, message))
}

fn ready(f: &Facts<'_>, pods: &Verdict, snapshot: &Verdict, preload: &Verdict) -> Verdict {
    if let Claim::NotOurs(message) = &f.claim {
        return Verdict::False(Cause::new(reasons::ready::CLAIM_NOT_OURS, message.clone()));
    }
    // Before what passes by itself: this does not.
    if let Some(refused) = f.refused.claim.as_ref().filter(|_| f.claim != Claim::Bound) {
        return Verdict::False(refused.clone());
    }
    for needed in [pods, snapshot] {
        if let Verdict::False(cause) | Verdict::Unknown(cause) = needed {
            return Verdict::False(cause.clone());
        }
    }
    if let Claim::Pending(message) = &f.claim {
        return Verdict::False(Cause::new(reasons::ready::CLAIM_PENDING, message.clone()));
    }
    let mut message = "pods can read".to_owned();
    match preload {
        Verdict::True(_) if f.dataset.spec.preload.paths.is_empty() => message.push_str("; everything is cached"),
        Verdict::True(cause) => message.push_str(&format!("; {}", cause.message)),
        Verdict::False(cause) if cause.reason == reasons::preload::NOT_REQUESTED => {
            message.push_str("; files are cached at their first read");
        }
        Verdict::False(cause) if cause.reason == reasons::preload::RUNNING => {
            message.push_str(&format!("; preload is running: {}", cause.message));
        }
        Verdict::False(cause) | Verdict::Unknown(cause) => {
            message.push_str(&format!("; preload is not complete: {}: {}", cause.reason, cause.message));
        }
    }
    for problem in worker_problem(f).iter().chain(&f.refused.claim) {
        message.push_str(&format!("; {}: {}", problem.reason, problem.message));
    }
    Verdict::True(Cause::new(reasons::ready::READY, message))
}

/// "a, b, c and 4 more".
pub(super) fn list(mut names: Vec<String>) -> String {
    names.sort();
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    let named = names.join(", ");
    if more > 0 { format!("{named} and {more} more") } else { named }
}

/// 1234567890 → "1.1 GiB".
fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} bytes");
    }
    let power = ((63 - n.leading_zeros()) / 10) as usize;
    format!("{:.1} {}", n as f64 / (1u64 << (10 * power)) as f64, UNITS[power - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut() {
        let names = |n: usize| (0..n).map(|i| format!("n{i}")).collect::<Vec<_>>();
        assert_eq!(list(names(2)), "n0, n1");
        assert_eq!(list(names(5)), "n0, n1, n2 and 2 more");
    }

    #[test]
    fn sizes_are_for_people() {
        for (n, want) in
            [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (1_610_612_736, "1.5 GiB"), (u64::MAX, "16.0 EiB")]
        {
            assert_eq!(bytes(n), want);
        }
    }

    #[test]
    fn the_time_moves_only_with_the_status() {
        let t = |s: i64| Timestamp::from_second(s).unwrap();
        let first = condition("Ready", "False", Cause::new("A", ""), Some(1), &[], t(1));
        let same = condition("Ready", "False", Cause::new("B", ""), Some(2), std::slice::from_ref(&first), t(2));
        assert_eq!((same.last_transition_time.clone(), same.observed_generation), (Time(t(1)), Some(2)));
        let turned = condition("Ready", "True", Cause::new("C", ""), Some(2), &[same], t(3));
        assert_eq!(turned.last_transition_time, Time(t(3)));
    }
}
