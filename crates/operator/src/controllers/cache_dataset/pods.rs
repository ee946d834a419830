//! What a worker's pod tells.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// One worker, as its pod shows it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Worker {
    pub node: String,
    pub pod: String,
    pub address: Option<IpAddr>,
    pub ready: bool,
    pub created: Option<jiff::Timestamp>,
    /// What is wrong, in words; nothing while it is on a normal way to ready.
    pub trouble: Option<String>,
}

/// Waiting reasons of a container that are steps of a normal start.
const NORMAL: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// One worker per node, sorted by node. `warnings` are the last warning Events by pod name.
pub(super) fn workers(pods: &[Arc<Pod>], warnings: &BTreeMap<String, String>) -> Vec<Worker> {
    let mut by_node: BTreeMap<String, &Pod> = BTreeMap::new();
    for pod in pods {
        // The DaemonSet's pods are bound by affinity before the scheduler sees them; without a node there is nothing to say.
        let Some(node) = pod.spec.as_ref().and_then(|s| s.node_name.clone()).or_else(|| wanted_node(pod)) else { continue };
        let newer = by_node.get(&node).is_none_or(|other| rank(pod) > rank(other));
        if newer {
            by_node.insert(node, pod);
        }
    }
    by_node.into_iter().map(|(node, pod)| worker(node, pod, warnings.get(&pod.name_any()))).collect()
}

/// The old pod on a node is still terminating while the new one starts.
fn rank(pod: &Pod) -> (bool, Option<jiff::Timestamp>) {
    (pod.metadata.deletion_timestamp.is_none(), pod.metadata.creation_timestamp.as_ref().map(|t| t.0))
}

/// A DaemonSet's pod that waits for the scheduler names its node in its affinity.
fn wanted_node(pod: &Pod) -> Option<String> {
    let required = pod
        .spec
        .as_ref()?
        .affinity
        .as_ref()?
        .node_affinity
        .as_ref()?
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let field = required.node_selector_terms.first()?.match_fields.as_ref()?.first()?;
    (field.key == "metadata.name").then(|| field.values.as_ref()?.first().cloned()).flatten()
}

fn worker(node: String, pod: &Pod, warning: Option<&String>) -> Worker {
    let status = pod.status.clone().unwrap_or_default();
    let condition = |type_: &str| status.conditions.iter().flatten().find(|c| c.type_ == type_);
    let ready = pod.metadata.deletion_timestamp.is_none() && condition("Ready").is_some_and(|c| c.status == "True");
    let address = status.pod_ip.as_deref().and_then(|ip| ip.parse().ok());
    let trouble = if ready {
        None
    } else if let Some(c) = condition("PodScheduled").filter(|c| c.status == "False") {
        Some(format!("not scheduled: {}", c.message.as_deref().unwrap_or("no reason given")))
    } else {
        container_trouble(&status).or_else(|| warning.cloned())
    };
    let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    Worker { node, pod: pod.name_any(), address, ready, created, trouble }
}

fn container_trouble(status: &k8s_openapi::api::core::v1::PodStatus) -> Option<String> {
    let container = status.container_statuses.iter().flatten().next()?;
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref().unwrap_or_default();
    if NORMAL.contains(&reason) || reason.is_empty() {
        return None;
    }
    let mut text = format!("{reason}: {}", waiting.message.as_deref().unwrap_or("no message"));
    if let Some(end) = container.last_state.as_ref().and_then(|s| s.terminated.as_ref()) {
        text.push_str(&format!(" (it ended with code {}", end.exit_code));
        if let Some(reason) = end.reason.as_deref().filter(|r| *r != "Error") {
            text.push_str(&format!(", {reason}"));
        }
        text.push(')');
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{mk_pod, mk_pod_from};
    use super::*;
    use serde_json::json;

    fn one(pod: Pod) -> Worker {
        workers(&[Arc::new(pod)], &BTreeMap::new()).remove(0)
    }

    #[test]
    fn a_ready_pod_has_its_node_and_address() {
        let w = one(mk_pod("gpu-0", true));
        assert_eq!((w.node.as_str(), w.ready, w.trouble), ("gpu-0", true, None));
        assert_eq!(w.address, Some("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn of_two_pods_on_a_node_the_one_that_stays_counts() {
        let old = mk_pod_from(json!({
            "metadata": { "name": "old", "deletionTimestamp": "2026-01-01T00:00:09Z", "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "nodeName": "gpu-0", "containers": [] },
        }));
        let new = mk_pod_from(json!({
            "metadata": { "name": "new", "creationTimestamp": "2026-01-01T00:00:01Z" },
            "spec": { "nodeName": "gpu-0", "containers": [] },
        }));
        for pods in [[old.clone(), new.clone()], [new, old]] {
            let found = workers(&pods.map(Arc::new), &BTreeMap::new());
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].pod, "new");
        }
    }

    #[test]
    fn a_pod_that_cannot_pull_its_image_says_so() {
        let w = one(mk_pod_from(json!({
            "metadata": { "name": "w" },
            "spec": { "nodeName": "gpu-0", "containers": [] },
            "status": { "containerStatuses": [{
                "name": "worker", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                "state": { "waiting": { "reason": "ErrImagePull", "message": "no such host" } },
            }] },
        })));
        assert_eq!(w.trouble.as_deref(), Some("ErrImagePull: no such host"));
    }

    #[test]
    fn a_pod_that_crashes_tells_its_exit_code() {
        let w = one(mk_pod_from(json!({
            "metadata": { "name": "w" },
            "spec": { "nodeName": "gpu-0", "containers": [] },
            "status": { "containerStatuses": [{
                "name": "worker", "image": "i", "imageID": "", "ready": false, "restartCount": 3,
                "state": { "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 40s" } },
                "lastState": { "terminated": { "exitCode": 137, "reason": "OOMKilled" } },
            }] },
        })));
        assert_eq!(w.trouble.as_deref(), Some("CrashLoopBackOff: back-off 40s (it ended with code 137, OOMKilled)"));
    }

    #[test]
    fn a_pod_that_waits_for_a_mount_shows_its_last_warning() {
        let pod = Arc::new(mk_pod_from(json!({
            "metadata": { "name": "w" },
            "spec": { "nodeName": "gpu-0", "containers": [] },
            "status": { "containerStatuses": [{
                "name": "worker", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                "state": { "waiting": { "reason": "ContainerCreating" } },
            }] },
        })));
        let warnings = [("w".to_owned(), "FailedMount: no such folder".to_owned())].into();
        assert_eq!(workers(&[Arc::clone(&pod)], &warnings)[0].trouble.as_deref(), Some("FailedMount: no such folder"));
        assert_eq!(workers(&[pod], &BTreeMap::new())[0].trouble, None);
    }

    #[test]
    fn a_pod_that_fits_nowhere_names_the_node_it_is_for() {
        let w = one(mk_pod_from(json!({
            "metadata": { "name": "w" },
            "spec": { "containers": [], "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["gpu-7"] }] }],
            } } } },
            "status": { "conditions": [
                { "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "Insufficient memory" },
            ] },
        })));
        assert_eq!((w.node.as_str(), w.trouble.as_deref()), ("gpu-7", Some("not scheduled: Insufficient memory")));
    }
}
