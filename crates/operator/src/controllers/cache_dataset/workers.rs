//! gRPC to the workers of a dataset. Every call is bounded; a worker that does not answer is an answer too.

use super::{pods::Worker, snapshot::Statuses};
use futures::{FutureExt as _, StreamExt as _, stream};
use larder_core::{causes, names};
use larder_proto::control::v1::{Config, ConfigureRequest, EraseRequest, StatusRequest, worker_client::WorkerClient};
use larder_trust::{Connector, Security, worker_uri};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tonic::transport::{Channel, Endpoint};

/// Calls at once: a large cluster must not open a thousand connections in one moment.
const PARALLEL: usize = 32;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Unlinking the files of a dataset takes as long as the disk needs.
const ERASE_TIMEOUT: Duration = Duration::from_secs(60);

/// The workers of one dataset, and how they are talked to.
#[derive(Clone, Copy)]
pub(super) struct Workers<'a> {
    pub dataset_uid: &'a str,
    pub security: &'a Security,
}

/// Asks every ready worker what is.
pub(super) async fn statuses(of: Workers<'_>, workers: &[Worker]) -> Statuses {
    let asked = workers.iter().filter(|w| w.ready).cloned().map(|worker| {
        let call = async move {
            let answer = match worker.address {
                Some(address) => status(of, address).await,
                None => Err("its pod has no address".to_owned()),
            };
            (worker.node, answer)
        };
        call.boxed()
    });
    stream::iter(asked.collect::<Vec<_>>()).buffer_unordered(PARALLEL).collect().await
}

/// Asks every worker that is up and not ready what keeps it from that; one that says nothing is on its way.
pub(super) async fn troubles(of: Workers<'_>, workers: &[Worker]) -> BTreeMap<String, String> {
    let starting = workers.iter().filter(|w| !w.ready && w.trouble.is_none());
    let asked = starting.filter_map(|w| Some((w.node.clone(), w.address?))).map(|(node, address)| {
        let call = async move { Some((node, status(of, address).await.ok()?.problems.into_iter().next()?.message)) };
        call.boxed()
    });
    stream::iter(asked.collect::<Vec<_>>()).buffer_unordered(PARALLEL).filter_map(std::future::ready).collect().await
}

async fn status(of: Workers<'_>, address: IpAddr) -> Result<larder_proto::control::v1::StatusResponse, String> {
    let call = async { client(of, address, CALL_TIMEOUT).await?.status(StatusRequest {}).await.map_err(told) };
    bounded(CALL_TIMEOUT, call).await.map(tonic::Response::into_inner)
}

/// Gives workers their orders. Returns whom it did not reach.
pub(super) async fn configure(of: Workers<'_>, orders: &[(String, IpAddr, Config)]) -> Vec<(String, String)> {
    let calls = orders.iter().cloned().map(|(node, address, config)| {
        let call = async move {
            let request = ConfigureRequest { config: Some(config) };
            let call = async { client(of, address, CALL_TIMEOUT).await?.configure(request).await.map_err(told) };
            bounded(CALL_TIMEOUT, call).await.err().map(|error| (node, error))
        };
        call.boxed()
    });
    let results: Vec<_> = stream::iter(calls.collect::<Vec<_>>()).buffer_unordered(PARALLEL).collect().await;
    results.into_iter().flatten().collect()
}

/// Has workers remove every byte of the dataset. Returns who did, and who did not and why.
pub(super) async fn erase(of: Workers<'_>, workers: &[Worker]) -> (u64, Vec<(String, String)>) {
    let calls = workers.iter().cloned().map(|worker| {
        let request = EraseRequest { dataset_uid: of.dataset_uid.to_owned() };
        let call = async move {
            let Some(address) = worker.address else { return Err((worker.node, "its pod has no address".to_owned())) };
            let call = async { client(of, address, ERASE_TIMEOUT).await?.erase(request).await.map_err(told) };
            match bounded(ERASE_TIMEOUT, call).await {
                Ok(response) => Ok(response.into_inner().freed_bytes),
                Err(error) => Err((worker.node, error)),
            }
        };
        call.boxed()
    });
    let results: Vec<Result<u64, (String, String)>> =
        stream::iter(calls.collect::<Vec<_>>()).buffer_unordered(PARALLEL).collect().await;
    let mut failed = vec![];
    let mut freed = 0;
    for result in results {
        match result {
            Ok(bytes) => freed += bytes,
            Err(error) => failed.push(error),
        }
    }
    (freed, failed)
}

async fn client(of: Workers<'_>, address: IpAddr, timeout: Duration) -> Result<WorkerClient<Channel>, String> {
    let address = SocketAddr::from((address, names::WORKER_CONTROL_PORT));
    let endpoint = Endpoint::from(worker_uri(of.dataset_uid, address, "/").map_err(|e| causes::chain(&e))?).timeout(timeout);
    let endpoint = endpoint.origin(http::Uri::from_static("http://larder-worker"));
    let channel = endpoint.connect_with_connector(Connector::new(of.security, CONNECT_TIMEOUT)).await;
    Ok(WorkerClient::new(channel.map_err(|e| causes::chain(&e))?))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn told(status: tonic::Status) -> String {
    format!("{}: {}", status.code(), status.message())
}

async fn bounded<T>(limit: Duration, call: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())))
}
