//! Takes the taint `larder.dev/not-ready` off a node once pods on it can have datasets mounted.
//!
//! ```text
//! Nodes, pods of node plugin and mounter ──watch──► both ready on a node with the taint? ──► Node without it
//! ```
//!
//! That a node plugin is registered with the kubelet and that a mounter serves is what their pods' readiness says. The administrator
//! puts the taint there, for a node that is new; nothing of ours ever puts it back. When the operator is away, such nodes wait.

use super::cache_dataset::MANAGER;
use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt as _, reflector, watcher},
};
use larder_api::labels;
use larder_core::causes;
use serde_json::json;
use std::{convert::Infallible, sync::Arc, time::Duration};

/// The daemons that a node needs, as their pods are labelled by the chart.
const DAEMONS: [&str; 2] = ["node", "mounter"];
/// What was refused is tried again after this, if nothing happens before.
const AGAIN: Duration = Duration::from_secs(5);

/// Goes on for ever.
pub(crate) async fn run(client: Client, namespace: &str) -> Infallible {
    let (nodes, writer) = reflector::store();
    let api = Api::<Node>::all(client.clone());
    let nodes_seen = watcher(api.clone(), watcher::Config::default()).default_backoff().modify(slim_node).reflect(writer);
    let (pods, writer) = reflector::store();
    let ours = watcher::Config::default().labels(&format!("{} in ({})", labels::COMPONENT, DAEMONS.join(",")));
    let pods_seen = watcher(Api::<Pod>::namespaced(client, namespace), ours).default_backoff().modify(slim).reflect(writer);
    let nodes_seen = nodes_seen.touched_objects().map(|seen| seen.map(drop));
    let pods_seen = pods_seen.touched_objects().map(|seen| seen.map(drop));
    let mut seen = std::pin::pin!(stream::select(nodes_seen, pods_seen));
    loop {
        match tokio::time::timeout(AGAIN, seen.next()).await {
            Ok(Some(Err(error))) => tracing::warn!(error = causes::chain(&error), "watch broke; beginning it again"),
            // Watches do not end.
            Ok(None) => std::future::pending().await,
            Ok(Some(Ok(()))) | Err(_) => clear(&api, &nodes.state(), &pods.state()).await,
        }
    }
}

fn slim<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// Taints are all that is asked of thousands of Nodes.
fn slim_node(node: &mut Node) {
    slim(node);
    (node.metadata.annotations, node.status) = (None, None);
}

/// Takes the taint off all nodes that are ready for pods with datasets.
async fn clear(api: &Api<Node>, nodes: &[Arc<Node>], pods: &[Arc<Pod>]) {
    for node in nodes {
        let Some(taints) = others(node, pods) else { continue };
        let name = node.name_any();
        // The version: taints are one list, and somebody else may be changing it.
        let patch = json!({ "metadata": { "resourceVersion": node.resource_version() }, "spec": { "taints": taints } });
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        match api.patch(&name, &params, &Patch::Merge(patch)).await {
            Ok(_) => {
                tracing::info!(node = name, taint = labels::NOT_READY_TAINT, "took the taint off: datasets can be mounted")
            }
            Err(kube::Error::Api(e)) if e.code == 409 || e.code == 404 => tracing::debug!(node = name, "the node has changed"),
            Err(error) => {
                let error = causes::chain(&error);
                tracing::warn!(node = name, taint = labels::NOT_READY_TAINT, error, "take the taint off; trying again");
            }
        }
    }
}

/// The other taints of a node that has ours and needs it no more.
fn others(node: &Node, pods: &[Arc<Pod>]) -> Option<Vec<Taint>> {
    let taints = node.spec.as_ref()?.taints.as_ref()?;
    let others: Vec<Taint> = taints.iter().filter(|taint| taint.key != labels::NOT_READY_TAINT).cloned().collect();
    let serves = |daemon: &str| pods.iter().any(|pod| is_ready_on(pod, &node.name_any()) && is(pod, daemon));
    (others.len() < taints.len() && DAEMONS.into_iter().all(serves)).then_some(others)
}

fn is(pod: &Pod, daemon: &str) -> bool {
    pod.labels().get(labels::COMPONENT).is_some_and(|component| component == daemon)
}

fn is_ready_on(pod: &Pod, node: &str) -> bool {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node)
        && conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Method, Request, Response};
    use kube::client::Body;
    use serde::de::DeserializeOwned;
    use serde_json::Value;

    fn mk<K: DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).unwrap()
    }

    fn mk_node(name: &str, taints: &[&str]) -> Value {
        let taints: Vec<_> = taints.iter().map(|key| json!({ "key": key, "effect": "NoSchedule" })).collect();
        json!({ "metadata": { "name": name, "resourceVersion": "7" }, "spec": { "taints": taints } })
    }

    fn mk_pod(daemon: &str, node: &str, ready: &str) -> Value {
        json!({
            "metadata": { "name": format!("{daemon}-{node}"), "labels": { (labels::COMPONENT): daemon } },
            "spec": { "nodeName": node, "containers": [] },
            "status": { "conditions": [{ "type": "Ready", "status": ready }] },
        })
    }

    fn left(node: Value, pods: &[Value]) -> Option<Vec<String>> {
        let pods: Vec<Arc<Pod>> = pods.iter().map(|pod| Arc::new(mk(pod.clone()))).collect();
        others(&mk(node), &pods).map(|taints| taints.into_iter().map(|taint| taint.key).collect())
    }

    #[test]
    fn a_node_keeps_the_taint_until_both_daemons_are_ready_on_it() {
        let node = || mk_node("a", &["nvidia.com/gpu", labels::NOT_READY_TAINT]);
        let both = [mk_pod("node", "a", "True"), mk_pod("mounter", "a", "True")];
        assert_eq!(left(node(), &both), Some(vec!["nvidia.com/gpu".to_owned()]));
        for n in 0..2 {
            for ready in ["False", "Unknown"] {
                let mut one = both.clone();
                one[n]["status"]["conditions"][0]["status"] = json!(ready);
                assert_eq!(left(node(), &one), None, "{n} {ready}");
            }
            let mut elsewhere = both.clone();
            elsewhere[n]["spec"]["nodeName"] = json!("b");
            assert_eq!(left(node(), &elsewhere), None, "{n}");
            let mut ending = both.clone();
            ending[n]["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            assert_eq!(left(node(), &ending), None, "{n}");
            assert_eq!(left(node(), &both[n..=n]), None, "{n}");
        }
        assert_eq!(left(mk_node("a", &["nvidia.com/gpu"]), &both), None, "it does not have it");
        assert_eq!(left(mk_node("a", &[]), &both), None);
        assert_eq!(left(mk_node("a", &[labels::NOT_READY_TAINT, labels::NOT_READY_TAINT]), &both), Some(vec![]));
    }

    /// Lists what is there, tells of nothing more, and refuses the first write as one of an old version.
    #[tokio::test(start_paused = true)]
    async fn the_taint_goes_from_ready_nodes_alone_and_a_refused_write_is_tried_again() {
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let client = Client::new(service, "default");
        let untainting = tokio::spawn(async move { run(client, "larder-system").await });
        let list = |items: Vec<Value>| json!({ "metadata": { "resourceVersion": "9" }, "items": items });
        let (mut watches, mut writes) = (Vec::new(), Vec::new());
        while writes.len() < 2 {
            let (request, answer) = handle.next_request().await.unwrap();
            let (parts, body) = request.into_parts();
            let (path, query) = (parts.uri.path().to_owned(), parts.uri.query().unwrap_or_default().to_owned());
            let (status, text) = match (&parts.method, path.as_str()) {
                (&Method::GET, _) if query.contains("watch=true") => {
                    watches.push(answer);
                    continue;
                }
                (&Method::GET, "/api/v1/nodes") => {
                    let taints = ["nvidia.com/gpu", labels::NOT_READY_TAINT];
                    (200, list(vec![mk_node("ready", &taints), mk_node("starting", &taints), mk_node("usual", &taints[..1])]))
                }
                (&Method::GET, "/api/v1/namespaces/larder-system/pods") => {
                    assert!(query.contains("component"), "{query}");
                    let pods = ["ready", "starting", "usual"].map(|node| mk_pod("node", node, "True")).into_iter();
                    let mounter = ["ready", "usual"].map(|node| mk_pod("mounter", node, "True"));
                    (200, list(pods.chain(mounter).collect()))
                }
                (&Method::PATCH, _) => {
                    let body: Value = serde_json::from_slice(&body.collect_bytes().await.unwrap()).unwrap();
                    writes.push((path, body));
                    match writes.len() {
                        1 => (
                            409,
                            json!({ "kind": "Status", "status": "Failure", "reason": "Conflict", "message": "", "code": 409 }),
                        ),
                        _ => (200, mk_node("ready", &["nvidia.com/gpu"])),
                    }
                }
                other => panic!("{other:?}"),
            };
            let body = Body::from(serde_json::to_vec(&text).unwrap());
            answer.send_response(Response::builder().status(status).body(body).unwrap());
        }
        for (path, body) in writes {
            assert_eq!(path, "/api/v1/nodes/ready");
            assert_eq!(body["metadata"]["resourceVersion"], "7");
            assert_eq!(body["spec"]["taints"], json!([{ "key": "nvidia.com/gpu", "effect": "NoSchedule" }]));
        }
        untainting.abort();
    }
}
