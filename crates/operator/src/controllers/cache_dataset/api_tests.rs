//! What reaches the API server, and in which order; the server is a function from request to answer.

mod refused;

use super::testing::{mk_dataset, mk_secret, settings};
use super::*;
use http::{Method, Request, Response};
use kube::{client::Body, runtime::reflector};
use serde_json::{Value, json};

type Answer = (u16, Value);

/// One request: method, path with query, body.
#[derive(Debug)]
struct Call {
    method: Method,
    uri: String,
    body: Value,
}

impl Call {
    fn is(&self, method: &str, path: &str) -> bool {
        self.method.as_str() == method && self.uri.split('?').next() == Some(path)
    }
}

/// Nothing was seen of the operator's own namespace, and no node.
fn nothing_seen() -> watch::Stores {
    watch::Stores {
        datasets: reflector::store().0,
        nodes: reflector::store().0,
        pods: reflector::store().0,
        daemon_sets: reflector::store().0,
        services: reflector::store().0,
        config_maps: reflector::store().0,
        secrets: reflector::store().0,
    }
}

/// Reconciles once against `server`; returns the result and what was asked, in order.
async fn reconcile_with(
    dataset: CacheDataset,
    server: impl FnMut(&Call) -> Answer + Send + 'static,
) -> (Result<Action, finalizer::Error<Error>>, Vec<Call>) {
    reconcile_among(nothing_seen(), dataset, server).await
}

/// The same with what was seen of other objects.
async fn reconcile_among(
    stores: watch::Stores,
    dataset: CacheDataset,
    mut server: impl FnMut(&Call) -> Answer + Send + 'static,
) -> (Result<Action, finalizer::Error<Error>>, Vec<Call>) {
    let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let client = Client::new(service, "default");
    let serve = tokio::spawn(async move {
        let mut calls = vec![];
        while let Some((request, answer)) = handle.next_request().await {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap();
            let call = Call {
                method: parts.method,
                uri: parts.uri.to_string(),
                body: serde_json::from_slice(&body).unwrap_or(Value::Null),
            };
            let (status, text) = server(&call);
            calls.push(call);
            let body = Body::from(serde_json::to_vec(&text).unwrap());
            answer.send_response(Response::builder().status(status).body(body).unwrap());
        }
        calls
    });
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), Reporter { controller: MANAGER.into(), instance: None }),
        client,
        settings: settings(),
        security: larder_trust::Security::Plain,
        stores,
        metrics: Metrics::default(),
        absent: Mutex::default(),
        erasing: Mutex::default(),
        failing: failures::Since::default(),
    });
    let work = reconcile(Arc::new(dataset), context);
    let result = tokio::time::timeout(Duration::from_secs(5), work).await.expect("the reconcile ends");
    // The client went with the context: the server sees the end.
    (result, tokio::time::timeout(Duration::from_secs(1), serve).await.expect("the server ends").unwrap())
}

fn refusal(code: u16, reason: &str, message: &str) -> Answer {
    let text = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": code });
    (code, text)
}

fn not_found() -> Answer {
    refusal(404, "NotFound", "not found")
}

/// Says yes to writes, and has nothing but the user's Secret.
fn empty_cluster(call: &Call) -> Answer {
    match call.method.as_str() {
        "GET" if call.uri.contains("/secrets/s3") => {
            (200, serde_json::to_value(mk_secret(&[("accessKeyId", "a"), ("secretAccessKey", "b")])).unwrap())
        }
        "GET" if call.uri.contains("/pods") || call.uri.contains("/events") => (200, json!({ "metadata": {}, "items": [] })),
        "GET" => not_found(),
        "PATCH" if call.uri.contains("cachedatasets") => (200, serde_json::to_value(mk_dataset()).unwrap()),
        _ => (200, if call.body.is_object() { call.body.clone() } else { json!({ "metadata": {}, "status": "Success" }) }),
    }
}

const DATASET: &str = "/apis/larder.dev/v1alpha1/namespaces/vision/cachedatasets/imagenet";
const CLAIMS: &str = "/api/v1/namespaces/vision/persistentvolumeclaims";

#[tokio::test]
async fn a_new_dataset_gets_the_finalizer_before_anything_is_made() {
    let mut dataset = mk_dataset();
    dataset.metadata.finalizers = None;
    let (result, calls) = reconcile_with(dataset, empty_cluster).await;
    result.unwrap();
    assert_eq!(calls.len(), 1, "{calls:?}");
    assert!(calls[0].is("PATCH", DATASET));
    assert_eq!(calls[0].body[1]["value"], json!(["larder.dev/cleanup"]));
}

#[tokio::test]
async fn the_first_visit_applies_with_one_manager_and_the_claim_waits_for_the_volume() {
    let (result, calls) = reconcile_with(mk_dataset(), empty_cluster).await;
    result.unwrap();
    let applied: Vec<&str> = calls
        .iter()
        .filter(|c| c.method == Method::PATCH)
        .map(|c| {
            assert!(c.uri.contains("fieldManager=larder-operator") && c.uri.contains("force=true"), "{}", c.uri);
            c.body["kind"].as_str().unwrap()
        })
        .collect();
    // No node matches: the workers are made all the same, for nodes to come. Status is last.
    assert_eq!(applied, ["Secret", "ConfigMap", "Service", "DaemonSet", "PersistentVolume", "CacheDataset"]);
    assert!(!calls.iter().any(|c| c.is("POST", CLAIMS)), "{calls:?}");
    let status = &calls.iter().find(|c| c.is("PATCH", &format!("{DATASET}/status"))).unwrap().body["status"];
    assert_eq!(status["conditions"][0]["reason"], "NoNodesMatch");
}

/// As [`empty_cluster`], with the volume there and free.
fn cluster_with_volume(call: &Call) -> Answer {
    if call.method == Method::GET && call.uri.contains("/persistentvolumes/") {
        return (200, json!({ "metadata": { "name": "larder-x" }, "status": { "phase": "Available" } }));
    }
    empty_cluster(call)
}

#[tokio::test]
async fn the_claim_is_created_once_its_volume_is_available() {
    let (result, calls) = reconcile_with(mk_dataset(), cluster_with_volume).await;
    result.unwrap();
    let created: Vec<&Call> = calls.iter().filter(|c| c.is("POST", CLAIMS)).collect();
    assert_eq!((created.len(), created[0].body["metadata"]["name"].as_str()), (1, Some("imagenet")));
}

#[tokio::test]
async fn no_secret_is_ever_listed() {
    let (_, calls) = reconcile_with(mk_dataset(), empty_cluster).await;
    for call in calls.iter().filter(|c| c.method == Method::GET && c.uri.contains("secrets")) {
        assert!(call.is("GET", "/api/v1/namespaces/vision/secrets/s3"), "{call:?}");
    }
}

#[tokio::test]
async fn a_claim_that_someone_makes_in_between_is_not_overwritten() {
    let (result, calls) = reconcile_with(mk_dataset(), |call| {
        if call.is("POST", CLAIMS) {
            return (
                409,
                json!({ "kind": "Status", "status": "Failure", "reason": "AlreadyExists", "message": "exists", "code": 409 }),
            );
        }
        cluster_with_volume(call)
    })
    .await;
    let error = larder_core::causes::chain(&result.unwrap_err());
    assert!(error.contains("create PersistentVolumeClaim imagenet"), "{error}");
    assert!(!calls.iter().any(|c| c.method == Method::PATCH && c.uri.contains("persistentvolumeclaims")));
    // Status is written although something failed.
    assert!(calls.iter().any(|c| c.is("PATCH", &format!("{DATASET}/status"))));
}

#[tokio::test]
async fn a_member_list_of_a_later_format_is_not_written_over() {
    let with = |version: u32| {
        move |call: &Call| {
            if call.method == Method::GET && call.uri.contains("-members") {
                let text = json!({ "version": version, "generation": 3, "members": [] }).to_string();
                return (200, json!({ "metadata": { "name": "m" }, "data": { larder_core::names::MEMBERS_KEY: text } }));
            }
            empty_cluster(call)
        }
    };
    reconcile_with(mk_dataset(), with(1)).await.0.unwrap();
    let (result, calls) = reconcile_with(mk_dataset(), with(2)).await;
    let error = larder_core::causes::chain(&result.unwrap_err());
    assert!(error.contains("the member list") && error.contains("format 2") && error.contains("up to 1"), "{error}");
    let written: Vec<&Call> = calls.iter().filter(|call| call.method != Method::GET).collect();
    assert!(written.iter().all(|c| c.is("PATCH", &format!("{DATASET}/status")) || c.uri.contains("/events")), "{written:?}");
    let message = written[0].body["status"]["conditions"][0]["message"].as_str().unwrap();
    assert!(message.contains("format 2"), "{message}");
}

#[tokio::test]
async fn the_copy_of_a_secret_that_is_not_asked_for_any_more_is_deleted() {
    const COPY: &str = "/api/v1/namespaces/larder-system/secrets/0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f-credentials";
    let seen = |dataset: &CacheDataset| {
        let source = mk_secret(&[("accessKeyId", "a"), ("secretAccessKey", "b")]);
        let copy = objects::credentials(&objects::Owner::of(dataset).unwrap(), &settings(), &source);
        watch::Stores { secrets: refused::seen(copy), ..nothing_seen() }
    };
    let mut dataset = mk_dataset();
    let (_, calls) = reconcile_among(seen(&dataset), dataset.clone(), empty_cluster).await;
    assert!(!calls.iter().any(|c| c.method == Method::DELETE), "{calls:?}");
    dataset.spec.source.credentials = serde_json::from_value(json!({ "anonymous": {} })).unwrap();
    let (result, calls) = reconcile_among(seen(&dataset), dataset, empty_cluster).await;
    result.unwrap();
    assert_eq!(calls.iter().filter(|c| c.is("DELETE", COPY)).count(), 1, "{calls:?}");
}

fn deleted() -> CacheDataset {
    let mut dataset = mk_dataset();
    dataset.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(super::testing::now()));
    dataset
}

#[tokio::test]
async fn deletion_waits_for_pods_that_use_the_claim_and_names_them() {
    let claim = objects::claim(&objects::Owner::of(&mk_dataset()).unwrap());
    let (result, calls) = reconcile_with(deleted(), move |call| match call {
        c if c.is("GET", &format!("{CLAIMS}/imagenet")) => (200, serde_json::to_value(&claim).unwrap()),
        c if c.is("GET", "/api/v1/namespaces/vision/pods") => (
            200,
            json!({ "metadata": {}, "items": [{
                "metadata": { "name": "train-0" },
                "spec": { "containers": [], "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "imagenet" } }] },
                "status": { "phase": "Running" },
            }] }),
        ),
        c => empty_cluster(c),
    })
    .await;
    assert!(matches!(result, Err(finalizer::Error::CleanupFailed(Error::CleanupWaits(_)))), "{result:?}");
    let deleted: Vec<&Call> = calls.iter().filter(|c| c.method == Method::DELETE).collect();
    assert_eq!(deleted.len(), 1, "{deleted:?}");
    assert!(deleted[0].is("DELETE", &format!("{CLAIMS}/imagenet")));
    let status = &calls.iter().find(|c| c.is("PATCH", &format!("{DATASET}/status"))).unwrap().body["status"];
    assert_eq!(status["conditions"][0]["reason"], "InUse");
    assert!(status["conditions"][0]["message"].as_str().unwrap().contains("train-0"));
}

#[tokio::test]
async fn the_finalizer_goes_after_everything_that_was_made() {
    let (result, calls) = reconcile_with(deleted(), empty_cluster).await;
    result.unwrap();
    let done: Vec<String> =
        calls.iter().filter(|c| c.method != Method::GET).map(|c| format!("{} {}", c.method, c.uri)).collect();
    let kinds = ["daemonsets", "services", "secrets", "configmaps", "configmaps", "persistentvolumes"];
    assert_eq!(done.len(), kinds.len() + 1, "{done:?}");
    for (line, kind) in done.iter().zip(kinds) {
        assert!(line.starts_with("DELETE") && line.contains(&format!("/{kind}/")), "{line}");
    }
    let last = calls.last().unwrap();
    assert!(last.is("PATCH", DATASET));
    assert_eq!(last.body[1], json!({ "op": "remove", "path": "/metadata/finalizers/0" }));
}

#[tokio::test]
async fn deletion_names_the_nodes_whose_workers_could_not_be_asked() {
    let (mut stores, _) = refused::OneWorker::start(3).await;
    let node = |ready: &str| {
        let status = json!({ "conditions": [{ "type": "Ready", "status": ready }] });
        super::testing::mk_node_from(json!({ "metadata": { "name": "gpu-0" }, "status": status }))
    };
    let list = objects::members(
        &objects::Owner::of(&mk_dataset()).unwrap(),
        &settings(),
        &super::testing::members(&["gpu-0", "gpu-7"]),
    );
    let server = move |call: &Call| match call {
        c if c.method == Method::GET && c.uri.contains("-members") => (200, serde_json::to_value(&list).unwrap()),
        c => empty_cluster(c),
    };
    let note = |calls: &[Call]| {
        let event = calls.iter().find(|c| c.method == Method::POST && c.uri.contains("/events")).unwrap();
        assert_eq!((&event.body["reason"], &event.body["type"]), (&json!("DataLeft"), &json!("Warning")));
        event.body["note"].as_str().unwrap().to_owned()
    };
    stores.nodes = refused::seen(node("True"));
    let (result, calls) = reconcile_among(stores, deleted(), server.clone()).await;
    result.unwrap();
    let text = note(&calls);
    assert!(
        text.contains("or could not: gpu-7; remove /mnt/nvme0/larder/0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f there"),
        "{text}"
    );

    let (mut stores, _) = refused::OneWorker::start(4).await;
    stores.nodes = refused::seen(node("Unknown"));
    let (result, calls) = reconcile_among(stores, deleted(), server).await;
    result.unwrap();
    assert!(note(&calls).contains("or could not: gpu-0, gpu-7; remove"), "{}", note(&calls));
}

#[tokio::test]
async fn deletion_leaves_a_claim_of_someone_else_alone() {
    let (result, calls) = reconcile_with(deleted(), |call| {
        if call.is("GET", &format!("{CLAIMS}/imagenet")) {
            return (200, json!({ "metadata": { "name": "imagenet", "namespace": "vision" } }));
        }
        empty_cluster(call)
    })
    .await;
    result.unwrap();
    assert!(!calls.iter().any(|c| c.method == Method::DELETE && c.uri.contains("persistentvolumeclaims")));
}
