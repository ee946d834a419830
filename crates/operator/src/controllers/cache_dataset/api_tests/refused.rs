//! What the API server refuses is told, and stops nothing else.

use super::super::testing::{mk_node, mk_pod_from};
use super::*;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{reflector::Store, watcher};
use larder_proto::control::v1::{
    self as pb,
    worker_server::{Worker, WorkerServer},
};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

const MEMBERS: &str = "/api/v1/namespaces/larder-system/configmaps";

fn is_daemon_set(call: &Call) -> bool {
    call.method == Method::PATCH && call.uri.contains("/daemonsets/")
}

fn conditions_in(calls: &[Call]) -> Option<&Value> {
    Some(&calls.iter().find(|c| c.is("PATCH", &format!("{DATASET}/status")))?.body["status"]["conditions"])
}

/// Status, reason and message of a condition that was written.
fn told<'a>(calls: &'a [Call], type_: &str) -> (&'a str, &'a str, &'a str) {
    let conditions = conditions_in(calls).expect("status was written").as_array().unwrap();
    let condition = conditions.iter().find(|c| c["type"] == type_).unwrap();
    let text = |field: &str| condition[field].as_str().unwrap();
    (text("status"), text("reason"), text("message"))
}

#[tokio::test]
async fn refused_workers_are_told_and_the_claim_is_made_all_the_same() {
    let (result, calls) = reconcile_with(mk_dataset(), |call| {
        if is_daemon_set(call) {
            return refusal(
                422,
                "Invalid",
                "DaemonSet.apps is invalid: requests: Invalid value: \"2\": must be less than or equal to cpu limit",
            );
        }
        cluster_with_volume(call)
    })
    .await;
    assert!(result.is_err(), "it is tried again");
    for type_ in ["WorkersReady", "Ready"] {
        let (status, reason, message) = told(&calls, type_);
        assert_eq!((status, reason), ("False", "WorkersRefused"), "{type_}: {message}");
        assert!(message.contains("must be less than or equal to cpu limit; correct spec.workers"), "{message}");
    }
    assert!(calls.iter().any(|c| c.is("POST", CLAIMS)), "{calls:?}");
}

#[tokio::test]
async fn what_may_pass_by_itself_turns_no_condition() {
    for (code, reason) in [(409, "Conflict"), (429, "TooManyRequests"), (500, "InternalError"), (504, "Timeout")] {
        let (result, calls) = reconcile_with(mk_dataset(), move |call| {
            if is_daemon_set(call) || call.is("POST", CLAIMS) {
                return refusal(code, reason, "not now");
            }
            cluster_with_volume(call)
        })
        .await;
        assert!(result.is_err(), "{code}");
        let conditions = conditions_in(&calls).unwrap().to_string();
        assert!(!conditions.contains("Refused") && !conditions.contains("not now"), "{code}: {conditions}");
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_told_if_it_stays_so() {
    let mut dataset = mk_dataset();
    dataset.spec.source.credentials.secret_ref.as_mut().unwrap().name = "my secret".into();
    let (result, calls) = reconcile_with(dataset, empty_cluster).await;
    assert!(result.is_err());
    for type_ in larder_api::conditions::types::ALL {
        let (status, reason, message) = told(&calls, type_);
        assert_eq!((status, reason), ("Unknown", "Unseen"), "{type_}: {message}");
        assert!(message.contains("get Secret my secret: "), "{message}");
    }

    for (code, is_told) in [(403, true), (503, false)] {
        let (_, calls) = reconcile_with(mk_dataset(), move |call| match call {
            c if c.uri.contains("/secrets/s3") => refusal(code, "Forbidden", "the operator may not"),
            c => empty_cluster(c),
        })
        .await;
        assert_eq!(conditions_in(&calls).is_some(), is_told, "{code}: {calls:?}");
    }
}

#[tokio::test]
async fn workers_get_their_orders_although_the_claim_is_refused() {
    let (workers, orders) = OneWorker::start(1).await;
    let (_, calls) = reconcile_among(workers, mk_dataset(), |call| {
        if call.is("POST", CLAIMS) {
            return refusal(403, "Forbidden", "persistentvolumeclaims \"imagenet\" is forbidden: exceeded quota: none");
        }
        cluster_with_volume(call)
    })
    .await;
    let (status, reason, message) = told(&calls, "Ready");
    assert_eq!((status, reason), ("False", "ClaimRefused"), "{message}");
    assert!(message.contains("exceeded quota: none") && message.contains("namespace vision"), "{message}");
    assert_eq!(told(&calls, "SnapshotTaken").1, "ListingRunning");
    assert_eq!(orders.lock().len(), 1, "the worker was told to list: {:?}", orders.lock());
}

#[tokio::test]
async fn workers_get_their_orders_although_their_own_change_is_refused() {
    let (workers, orders) = OneWorker::start(2).await;
    let (_, calls) = reconcile_among(workers, mk_dataset(), |call| {
        if is_daemon_set(call) || call.uri.starts_with(MEMBERS) && call.method == Method::PATCH {
            return refusal(422, "Invalid", "no");
        }
        empty_cluster(call)
    })
    .await;
    assert_eq!(told(&calls, "WorkersReady").1, "WorkersRefused");
    assert_eq!(orders.lock().len(), 1, "{:?}", orders.lock());
}

pub(super) type Orders = Arc<Mutex<Vec<pb::Config>>>;

/// The worker of the only node: ready, and without orders.
pub(super) struct OneWorker(Orders);

impl OneWorker {
    /// What is seen of it, and what it will have been told. All workers have the same port: each test takes an address of its own.
    pub(super) async fn start(test: u8) -> (watch::Stores, Orders) {
        let orders = Orders::default();
        let ip = IpAddr::from(Ipv4Addr::new(127, 0, 74, test));
        let address = SocketAddr::from((ip, larder_core::names::WORKER_CONTROL_PORT));
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let worker = WorkerServer::new(Self(Arc::clone(&orders)));
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(worker).serve_with_incoming(incoming));
        let pod: Pod = mk_pod_from(json!({
            "metadata": {
                "name": "worker-gpu-0", "namespace": "larder-system",
                "labels": { (larder_api::labels::DATASET_UID): super::super::testing::UID },
            },
            "spec": { "nodeName": "gpu-0", "containers": [] },
            "status": { "podIP": ip, "conditions": [{ "type": "Ready", "status": "True" }] },
        }));
        let stores = watch::Stores { nodes: seen(mk_node("gpu-0")), pods: seen(pod), ..nothing_seen() };
        (stores, orders)
    }
}

pub(super) fn seen<K>(object: K) -> Store<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + 'static,
{
    let (store, mut writer) = reflector::store();
    writer.apply_watcher_event(&watcher::Event::Apply(object));
    store
}

#[tonic::async_trait]
impl Worker for OneWorker {
    async fn configure(
        &self,
        request: tonic::Request<pb::ConfigureRequest>,
    ) -> Result<tonic::Response<pb::ConfigureResponse>, tonic::Status> {
        self.0.lock().extend(request.into_inner().config);
        Ok(tonic::Response::new(pb::ConfigureResponse {}))
    }

    async fn status(&self, _: tonic::Request<pb::StatusRequest>) -> Result<tonic::Response<pb::StatusResponse>, tonic::Status> {
        Ok(tonic::Response::new(pb::StatusResponse::default()))
    }

    async fn erase(&self, _: tonic::Request<pb::EraseRequest>) -> Result<tonic::Response<pb::EraseResponse>, tonic::Status> {
        Ok(tonic::Response::new(pb::EraseResponse::default()))
    }
}
