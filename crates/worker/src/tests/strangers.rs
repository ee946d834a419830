//! Calls of those who are not the operator.

use super::harness::{Cluster, UID, eventually, settings};
use crate::{Listeners, metrics::Metrics, serve, worker::Worker};
use larder_fuse::fdpass::{Listener, testing};
use larder_peer::Options;
use larder_proto::control::v1::{self as pb, worker_client::WorkerClient};
use larder_telemetry::Health;
use larder_trust::{Connector, Identity, Security, testing::Ca, worker_uri};
use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code,
    transport::{Channel, Endpoint, Error},
};

const OTHER: &str = "1d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f";

fn worker(dataset: &str) -> Identity {
    Identity::Worker { dataset: dataset.into(), node: "gpu-0".into() }
}

async fn call(address: SocketAddr, security: &Security) -> Result<WorkerClient<Channel>, Error> {
    let endpoint = Endpoint::from(worker_uri(UID, address, "/").unwrap());
    let endpoint = endpoint.origin(tonic::codegen::http::Uri::from_static("http://worker"));
    Ok(WorkerClient::new(endpoint.connect_with_connector(Connector::new(security, Duration::from_secs(5))).await?))
}

/// Only the operator may call; everyone else is refused before the worker hears of it.
async fn expect_only_the_operator(ca: &Ca, address: SocketAddr) {
    let (_renew, operator) = ca.security(&Identity::Operator);
    call(address, &operator).await.unwrap().status(pb::StatusRequest {}).await.unwrap();
    for identity in [worker(UID), worker(OTHER), Identity::Mounter { node: "gpu-0".into() }] {
        let (_renew, security) = ca.security(&identity);
        let mut client = call(address, &security).await.unwrap();
        let erase = pb::EraseRequest { dataset_uid: UID.into() };
        for refused in [
            client.status(pb::StatusRequest {}).await.map(drop),
            client.configure(pb::ConfigureRequest::default()).await.map(drop),
            client.erase(erase).await.map(drop),
        ] {
            let refused = refused.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied, "{identity}: {refused}");
            assert!(refused.message().contains(&identity.to_string()), "{refused}");
        }
    }
    let (_renew, foreign) = Ca::new().security(&Identity::Operator);
    assert!(call(address, &foreign).await.is_err(), "of another CA");
    let answered = match call(address, &Security::Plain).await {
        Ok(mut client) => client.status(pb::StatusRequest {}).await.is_ok(),
        Err(_) => false,
    };
    assert!(!answered, "without a certificate");
}

fn secure(ca: &Ca, dir: &Path) -> (crate::worker::Settings, impl Sized + use<>) {
    let (renew, security) = ca.security(&worker(UID));
    (settings("gpu-0", dir, Options { security, ..Options::default() }), renew)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_takes_orders_of_the_operator_alone() {
    let (ca, dir, stop) = (Ca::new(), tempfile::tempdir().unwrap(), CancellationToken::new());
    let (settings, _renew) = secure(&ca, &dir.path().join(UID));
    let roster = watch::Sender::new(Arc::default()).subscribe();
    let opening = tokio::task::spawn_blocking(move || Worker::open(settings, roster, Metrics::default()));
    let worker = Arc::new(opening.await.unwrap().unwrap());
    let control = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = control.local_addr().unwrap();
    let data = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let local = Listener::bind(&dir.path().join("worker.sock"), &[0], 0o600).unwrap();
    let serving = tokio::spawn(serve(Arc::clone(&worker), Listeners { data, control, local }, stop.clone()));
    expect_only_the_operator(&ca, address).await;
    assert!(dir.path().join(UID).join("catalogs").exists(), "nothing was erased");

    // What it has is there for the worker after it, and goes with the dataset.
    let identity = dir.path().join(UID).join("identity.json");
    eventually("the certificate is stored", async || identity.exists()).await;
    let (_renew, operator) = ca.security(&Identity::Operator);
    call(address, &operator).await.unwrap().erase(pb::EraseRequest { dataset_uid: UID.into() }).await.unwrap();
    assert!(!identity.exists());
    stop.cancel();
    serving.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_held_up_tells_the_operator_alone() {
    let (ca, dir, stop) = (Ca::new(), tempfile::tempdir().unwrap(), CancellationToken::new());
    let (settings, _renew) = secure(&ca, &dir.path().join("no disk").join(UID));
    let control = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stopped) = (control.local_addr().unwrap(), stop.clone());
    let opening = tokio::spawn(async move {
        let roster = watch::Sender::new(Arc::default()).subscribe();
        let health = Health::default();
        crate::held_up::open(&settings, &roster, &Metrics::default(), control, &health, &stopped).await
    });
    expect_only_the_operator(&ca, address).await;
    stop.cancel();
    assert!(opening.await.unwrap().unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_sent_to_the_socket_for_the_mounter_costs_no_descriptor_and_no_other_peer() {
    let cluster = Cluster::start(1).await;
    let (socket, digest) = (&cluster.nodes[0].socket, "0".repeat(64));
    for good in [format!(r#"{{"open":{{"snapshot":"{digest}","inode":1}}}}"#), r#"{"catalog":{"digest":"../../x"}}"#.to_owned()]
    {
        testing::misbehave(socket, &good).await;
        testing::be_a_stranger(socket, &good).await;
    }
}
