//! Which nodes own a share.
//!
//! A node enters when its worker is ready. It leaves when its Node object is gone or no longer matches, or when it had no ready
//! worker for the grace period: until then others stand in, and nothing moves. The operator is the only writer of the list.
//!
//! The first list waits for the workers that are starting (see [`GATHERING`]): a share that went to the first one ready would
//! leave the origin a second time for the next.

use super::pods::Worker;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Taint, Toleration};
use kube::ResourceExt as _;
use larder_api::{
    cache_dataset::{STRIPE_BYTES, Workers},
    labels,
};
use larder_core::placement::{Member, Members};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Taints that the DaemonSet controller tolerates for every pod it makes.
const TOLERATED_BY_DAEMON_SETS: [&str; 6] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/memory-pressure",
    "node.kubernetes.io/pid-pressure",
    "node.kubernetes.io/unschedulable",
];

/// Longest wait for all workers of a new dataset. Pods that share an image start within seconds of each other; who takes longer
/// than this has a trouble of its own, and the others go on without it.
pub(super) const GATHERING: SignedDuration = SignedDuration::from_secs(60);

/// Nodes that a dataset's workers are for.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Selection {
    /// Names of nodes that get a worker.
    pub nodes: BTreeSet<String>,
    /// A node whose labels match and whose taint is not tolerated, for the message.
    pub refused: Option<(String, String)>,
}

/// Selects nodes as the DaemonSet controller will.
pub(super) fn select(nodes: &[Arc<Node>], workers: &Workers) -> Selection {
    let mut selection = Selection::default();
    for node in nodes {
        let labelled = workers.node_selector.iter().all(|(k, v)| node.labels().get(k) == Some(v));
        if !labelled {
            continue;
        }
        let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
        match taints.filter(|t| repels(t)).find(|t| !workers.tolerations.iter().any(|toleration| tolerates(toleration, t))) {
            None => {
                selection.nodes.insert(node.name_any());
            }
            Some(taint) => {
                selection.refused.get_or_insert_with(|| (node.name_any(), format!("{}:{}", taint.key, taint.effect)));
            }
        }
    }
    selection
}

fn repels(taint: &Taint) -> bool {
    // Workers tolerate ours too: what pods will read can come while they wait.
    let tolerated = |key: &str| key == labels::NOT_READY_TAINT || TOLERATED_BY_DAEMON_SETS.contains(&key);
    taint.effect != "PreferNoSchedule" && !tolerated(&taint.key)
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let filled = |s: &Option<String>| s.clone().filter(|s| !s.is_empty());
    let exists = toleration.operator.as_deref() == Some("Exists");
    filled(&toleration.effect).is_none_or(|e| e == taint.effect)
        && match filled(&toleration.key) {
            None => exists,
            Some(key) => key == taint.key && (exists || filled(&toleration.value) == filled(&taint.value)),
        }
}

/// Does the kubelet of this node answer?
pub(super) fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// The next member list, and since when each member is without a ready worker. Of a dataset that says no stripe size a list that is in
/// force keeps its own: it may be from before there were any, and nothing shall move without anyone asking for it.
pub(super) fn next(
    current: Option<&Members>,
    stripe_bytes: Option<u64>,
    selection: &Selection,
    workers: &[Worker],
    absent_since: &BTreeMap<String, Timestamp>,
    now: Timestamp,
    grace: SignedDuration,
) -> (Members, BTreeMap<String, Timestamp>) {
    let ready: BTreeSet<&str> = workers.iter().filter(|w| w.ready).map(|w| w.node.as_str()).collect();
    let mut members: BTreeMap<String, Member> = BTreeMap::new();
    let mut absent = BTreeMap::new();
    for member in current.iter().flat_map(|c| &c.members) {
        if !selection.nodes.contains(&member.node) {
            continue;
        }
        if !ready.contains(member.node.as_str()) {
            let since = absent_since.get(&member.node).copied().unwrap_or(now);
            if now.duration_since(since) > grace {
                continue;
            }
            absent.insert(member.node.clone(), since);
        }
        members.insert(member.node.clone(), member.clone());
    }
    let first = current.is_none_or(|c| c.members.is_empty());
    let missing = selection.nodes.iter().any(|n| !ready.contains(n.as_str()));
    let oldest = workers.iter().filter_map(|w| w.created).min();
    let gathering = first && missing && oldest.is_none_or(|created| now.duration_since(created) < GATHERING);
    for node in ready.into_iter().filter(|_| !gathering) {
        if selection.nodes.contains(node) {
            let since = current.map_or(1, |c| c.generation + 1);
            members.entry(node.to_owned()).or_insert_with(|| Member {
                node: node.to_owned(),
                weight: 1,
                since,
                leaving: false,
            });
        }
    }
    let in_force = current.filter(|_| !first).map_or(STRIPE_BYTES, |c| c.stripe_bytes);
    let next = Members {
        generation: current.map_or(1, |c| c.generation),
        members: members.into_values().collect(),
        stripe_bytes: stripe_bytes.unwrap_or(in_force),
    };
    match current {
        Some(c) if !c.places_like(&next) => (Members { generation: c.generation + 1, ..next }, absent),
        _ => (next, absent),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{mk_node, mk_node_from, mk_worker, now};
    use super::*;
    use serde_json::json;

    const GRACE: SignedDuration = SignedDuration::from_mins(10);

    fn selection(nodes: &[&str]) -> Selection {
        Selection { nodes: nodes.iter().map(|n| (*n).to_owned()).collect(), refused: None }
    }

    fn names(members: &Members) -> Vec<&str> {
        members.members.iter().map(|m| m.node.as_str()).collect()
    }

    #[test]
    fn a_node_enters_when_its_worker_is_ready() {
        let workers = [mk_worker("gpu-0", true), mk_worker("gpu-1", false), mk_worker("cpu-0", true)];
        let (m, absent) = next(None, None, &selection(&["gpu-0", "gpu-1"]), &workers, &BTreeMap::new(), now(), GRACE);
        assert_eq!((names(&m), m.generation), (vec!["gpu-0"], 1));
        assert!(absent.is_empty());
    }

    #[test]
    fn the_first_list_waits_for_workers_that_are_starting_but_not_for_ever() {
        let all = selection(&["gpu-0", "gpu-1"]);
        let started = |seconds| now() - SignedDuration::from_secs(seconds);
        let workers = |seconds, second_ready| {
            let mut workers = [mk_worker("gpu-0", true), mk_worker("gpu-1", second_ready)];
            workers.iter_mut().for_each(|w| w.created = Some(started(seconds)));
            workers
        };
        let list = |current: Option<&Members>, workers: &[Worker]| {
            next(current, None, &all, workers, &BTreeMap::new(), now(), GRACE).0
        };
        let none = list(None, &workers(5, false));
        assert!(none.members.is_empty());
        assert_eq!(names(&list(Some(&none), &workers(5, true))), ["gpu-0", "gpu-1"]);
        assert_eq!(names(&list(Some(&none), &workers(61, false))), ["gpu-0"]);
        // Later a newcomer does not hold up anyone.
        let one = list(None, &workers(61, false));
        assert_eq!(names(&list(Some(&one), &workers(5, false))), ["gpu-0"]);
    }

    #[test]
    fn a_list_that_does_not_change_keeps_its_generation() {
        let all = selection(&["gpu-0", "gpu-1"]);
        let (one, _) = next(None, None, &all, &[mk_worker("gpu-0", true)], &BTreeMap::new(), now(), GRACE);
        let (same, _) = next(Some(&one), None, &all, &[mk_worker("gpu-0", true)], &BTreeMap::new(), now(), GRACE);
        assert_eq!(same, one);
        let both = [mk_worker("gpu-1", true), mk_worker("gpu-0", true)];
        let (two, _) = next(Some(&one), None, &all, &both, &BTreeMap::new(), now(), GRACE);
        assert_eq!((names(&two), two.generation), (vec!["gpu-0", "gpu-1"], 2));
        assert_eq!(two.members.iter().map(|m| m.since).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn the_stripe_size_is_in_the_list_and_changes_when_someone_says_so() {
        let all = selection(&["gpu-0"]);
        let list = |current: Option<&Members>, stripes| {
            next(current, stripes, &all, &[mk_worker("gpu-0", true)], &BTreeMap::new(), now(), GRACE).0
        };
        let new = list(None, None);
        assert_eq!((new.stripe_bytes, new.generation), (STRIPE_BYTES, 1));
        assert_eq!(list(Some(&Members::default()), None).stripe_bytes, STRIPE_BYTES, "nothing is in force yet");
        let older = Members { stripe_bytes: 0, ..new };
        assert_eq!(list(Some(&older), None), older, "of a release that knew none");
        let small = list(Some(&older), Some(8 << 20));
        assert_eq!((small.stripe_bytes, small.generation), (8 << 20, 2));
        assert_eq!(small.members, older.members, "who owns nothing else than before is no new member");
        assert_eq!(list(Some(&small), None), small);
        assert_eq!(list(Some(&small), Some(0)).stripe_bytes, 0);
    }

    #[test]
    fn a_member_without_a_ready_worker_stays_for_the_grace_period() {
        let all = selection(&["gpu-0"]);
        let (m, _) = next(None, None, &all, &[mk_worker("gpu-0", true)], &BTreeMap::new(), now(), GRACE);
        let down = [mk_worker("gpu-0", false)];
        let (kept, absent) = next(Some(&m), None, &all, &down, &BTreeMap::new(), now(), GRACE);
        assert_eq!((names(&kept), absent.get("gpu-0")), (vec!["gpu-0"], Some(&now())));
        let at_the_end = now() + GRACE;
        let (kept, absent) = next(Some(&m), None, &all, &[], &absent, at_the_end, GRACE);
        assert_eq!(names(&kept), vec!["gpu-0"]);
        let (gone, absent) = next(Some(&m), None, &all, &[], &absent, at_the_end + SignedDuration::from_secs(1), GRACE);
        assert_eq!((names(&gone), gone.generation), (vec![], 2));
        assert!(absent.is_empty());
    }

    #[test]
    fn a_worker_that_comes_back_ends_its_absence() {
        let all = selection(&["gpu-0"]);
        let (m, _) = next(None, None, &all, &[mk_worker("gpu-0", true)], &BTreeMap::new(), now(), GRACE);
        let long_ago = [("gpu-0".to_owned(), now() - SignedDuration::from_hours(5))].into();
        let (same, absent) = next(Some(&m), None, &all, &[mk_worker("gpu-0", true)], &long_ago, now(), GRACE);
        assert_eq!((same, absent), (m, BTreeMap::new()));
    }

    #[test]
    fn a_node_that_is_gone_or_no_longer_matches_leaves_at_once() {
        let (m, _) = next(None, None, &selection(&["gpu-0"]), &[mk_worker("gpu-0", true)], &BTreeMap::new(), now(), GRACE);
        let (gone, _) = next(Some(&m), None, &selection(&[]), &[mk_worker("gpu-0", true)], &BTreeMap::new(), now(), GRACE);
        assert_eq!(names(&gone), Vec::<&str>::new());
    }

    #[test]
    fn nodes_are_selected_by_labels_and_tolerated_taints() {
        let tainted = |key: &str, effect: &str| {
            Arc::new(mk_node_from(json!({
                "metadata": { "name": format!("{key}-{effect}").replace('/', "."), "labels": { "nvidia.com/gpu.present": "true" } },
                "spec": { "taints": [{ "key": key, "effect": effect }] },
            })))
        };
        let nodes = [
            Arc::new(mk_node("gpu-0")),
            Arc::new(mk_node_from(json!({ "metadata": { "name": "cpu-0" } }))),
            tainted("nvidia.com/gpu", "NoSchedule"),
            tainted("nvidia.com/gpu", "NoExecute"),
            tainted("team", "PreferNoSchedule"),
            tainted("node.kubernetes.io/unreachable", "NoExecute"),
            tainted("larder.dev/not-ready", "NoExecute"),
        ];
        let found = select(&nodes, &Workers::default());
        let want = [
            "gpu-0",
            "larder.dev.not-ready-NoExecute",
            "node.kubernetes.io.unreachable-NoExecute",
            "nvidia.com.gpu-NoSchedule",
            "team-PreferNoSchedule",
        ];
        assert_eq!(found.nodes, want.map(str::to_owned).into());
        assert_eq!(found.refused.unwrap().1, "nvidia.com/gpu:NoExecute");
    }

    #[test]
    fn tolerations_match_as_the_scheduler_does() {
        let taint = Taint { key: "k".into(), value: Some("v".into()), effect: "NoSchedule".into(), time_added: None };
        let toleration = |key: &str, operator: &str, value: &str, effect: &str| Toleration {
            key: Some(key.into()),
            operator: Some(operator.into()),
            value: Some(value.into()),
            effect: Some(effect.into()),
            toleration_seconds: None,
        };
        for (t, want) in [
            (toleration("", "Exists", "", ""), true),
            (toleration("k", "Exists", "", ""), true),
            (toleration("k", "Equal", "v", "NoSchedule"), true),
            (toleration("k", "", "v", ""), true),
            (toleration("k", "Equal", "w", ""), false),
            (toleration("k", "Exists", "", "NoExecute"), false),
            (toleration("j", "Exists", "", ""), false),
            (toleration("", "Equal", "", ""), false),
        ] {
            assert_eq!(tolerates(&t, &taint), want, "{t:?}");
        }
    }
}
