//! A worker whose disk does not let it begin: it lives, tells the operator why, and tries again.
//!
//! Ending the process instead would say no more than "it ended", and every restart would come later than the one before.

use crate::{
    jobs::Pause,
    metrics::Metrics,
    report::reasons,
    worker::{Settings, Worker, open_problem},
};
use anyhow::Context as _;
use larder_peer::Roster;
use larder_proto::control::v1::{
    self as pb, ConfigureRequest, ConfigureResponse, EraseRequest, EraseResponse, Problem, StatusRequest, StatusResponse,
    worker_server::WorkerServer,
};
use larder_telemetry::Health;
use larder_trust::{Clients, admit, incoming};
use parking_lot::Mutex;
use std::{path::PathBuf, sync::Arc};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// Takes the dataset's folder over, however long that takes; `None` at shutdown. As long as it fails, the control port says why. The
/// pod counts as ready meanwhile, so that an update goes on; not where an update is the reason: then it ends here, and the workers that
/// are not updated yet go on serving.
pub(crate) async fn open(
    settings: &Settings,
    roster: &watch::Receiver<Arc<Roster>>,
    metrics: &Metrics,
    control: TcpListener,
    health: &Health,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<Worker>> {
    let attempt = || {
        let (settings, roster, metrics) = (settings.clone(), roster.clone(), metrics.clone());
        let opening = tokio::task::spawn_blocking(move || Worker::open(settings, roster, metrics));
        async { opening.await.context("take over the dataset's folder") }
    };
    let mut last = match attempt().await? {
        Ok(worker) => return Ok(Some(worker)),
        Err(e) => open_problem(&e),
    };
    tracing::error!(reason = last.reason, message = last.message, "cannot begin; trying again");
    let held_up = HeldUp {
        node: settings.node.clone(),
        dirs: settings.disks.iter().map(|disk| disk.dir.clone()).collect(),
        problem: Arc::new(Mutex::new(last.clone())),
        over: shutdown.child_token(),
    };
    let (told, over) = (Arc::clone(&held_up.problem), held_up.over.clone());
    let server = tonic::transport::Server::builder()
        .add_service(WorkerServer::with_interceptor(held_up, admit::control_requests))
        .serve_with_incoming_shutdown(
            incoming(control, &settings.peer.security, Clients::Known),
            over.clone().cancelled_owned(),
        );
    let server = tokio::spawn(server);
    health.set_ready(last.reason != reasons::LATER_FORMAT);
    let mut pause = Pause::new();
    let worker = loop {
        if over.run_until_cancelled(pause.wait()).await.is_none() {
            break None;
        }
        match attempt().await? {
            Ok(worker) => break Some(worker),
            Err(e) => {
                let now = open_problem(&e);
                if now != last {
                    tracing::error!(reason = now.reason, message = now.message, "cannot begin; trying again");
                }
                *told.lock() = now.clone();
                last = now;
            }
        }
    };
    health.set_ready(false);
    over.cancel();
    server.await.context("control port of a worker that is held up")?.context("serve the control port")?;
    // Erased: the folder must not be made any more.
    if worker.is_none() {
        health.set_ready(true);
        shutdown.cancelled().await;
    }
    Ok(worker)
}

/// What the control port answers meanwhile.
struct HeldUp {
    node: String,
    dirs: Vec<PathBuf>,
    problem: Arc<Mutex<Problem>>,
    over: CancellationToken,
}

#[tonic::async_trait]
impl pb::worker_server::Worker for HeldUp {
    async fn configure(&self, _: Request<ConfigureRequest>) -> Result<Response<ConfigureResponse>, Status> {
        Err(Status::unavailable(self.problem.lock().message.clone()))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let problems = vec![self.problem.lock().clone()];
        Ok(Response::new(StatusResponse { node: self.node.clone(), problems, ..StatusResponse::default() }))
    }

    async fn erase(&self, _: Request<EraseRequest>) -> Result<Response<EraseResponse>, Status> {
        if self.dirs.iter().any(|dir| dir.exists()) {
            return Err(Status::unavailable(self.problem.lock().message.clone()));
        }
        self.over.cancel();
        Ok(Response::new(EraseResponse { freed_bytes: 0 }))
    }
}
