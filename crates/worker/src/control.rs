//! Answers to the operator.

use crate::{orders::Orders, report, worker::Worker};
use larder_proto::control::v1::{
    self as pb, ConfigureRequest, ConfigureResponse, EraseRequest, EraseResponse, StatusRequest, StatusResponse,
};
use std::{sync::Arc, time::Duration};
use tonic::{Request, Response, Status};

/// The control port's side of a worker.
pub(crate) struct ControlPort(pub Arc<Worker>);

/// Longest wait for jobs to notice that the dataset is erased.
const JOBS_END: Duration = Duration::from_secs(10);

#[tonic::async_trait]
impl pb::worker_server::Worker for ControlPort {
    async fn configure(&self, request: Request<ConfigureRequest>) -> Result<Response<ConfigureResponse>, Status> {
        if self.0.erased.is_cancelled() {
            return Err(Status::failed_precondition(format!(
                "dataset {} was erased from node {}",
                self.0.dataset_uid, self.0.node
            )));
        }
        let orders = Orders::try_from(request.into_inner()).map_err(|e| Status::invalid_argument(e.to_string()))?;
        self.0.configure(orders).await;
        Ok(Response::new(ConfigureResponse {}))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(status(&self.0)))
    }

    async fn erase(&self, request: Request<EraseRequest>) -> Result<Response<EraseResponse>, Status> {
        let worker = &self.0;
        let asked = request.into_inner().dataset_uid;
        if asked != worker.dataset_uid {
            return Err(Status::invalid_argument(format!("this worker holds dataset {}, not {asked:?}", worker.dataset_uid)));
        }
        let failed = |problem: pb::Problem| {
            tracing::error!(reason = problem.reason, message = problem.message, "erase");
            Status::internal(problem.message)
        };
        worker.erased.cancel();
        worker.jobs.close();
        if tokio::time::timeout(JOBS_END, worker.jobs.wait()).await.is_err() {
            tracing::warn!("jobs still run while the dataset is erased");
        }
        let _writing = worker.writing.lock().await;
        let mut freed_bytes = worker.cache.erase().await.map_err(|e| failed(report::cache_problem(&e)))?;
        let rest = tokio::task::spawn_blocking({
            let worker = Arc::clone(worker);
            move || {
                let freed = worker.catalogs.erase()?;
                worker.other_folders().iter().try_for_each(|folder| folder.remove())?;
                worker.folder.remove().map(|()| freed)
            }
        });
        let rest = rest.await.map_err(|e| Status::internal(e.to_string()))?;
        freed_bytes += rest.map_err(|e| failed(report::folder_problem(&e)))?;
        worker.orders.send_replace(None);
        tracing::info!(freed_bytes, "dataset erased from this node");
        Ok(Response::new(EraseResponse { freed_bytes }))
    }
}

/// What this worker has and does now.
pub(crate) fn status(worker: &Worker) -> StatusResponse {
    let usage = worker.cache.usage();
    let snapshots = worker.catalogs.digests();
    // A listing whose catalog is gone from this disk is as good as not taken.
    let taken = worker.state.lock().listing.clone().filter(|l| snapshots.contains(&l.snapshot)).map(|l| pb::Listing {
        id: l.id,
        phase: pb::Phase::Succeeded.into(),
        files: l.files,
        bytes: l.bytes,
        snapshot: l.snapshot,
        skipped: l.skipped,
        skipped_examples: l.skipped_examples,
        time: l.time,
        ..pb::Listing::default()
    });
    StatusResponse {
        node: worker.node.clone(),
        generation: worker.orders.borrow().as_ref().map(|o| o.generation.clone()).unwrap_or_default(),
        listing: worker.report.listing().or(taken),
        snapshots,
        preload: worker.report.preload(),
        cached_bytes: usage.on_disk(),
        cached_files: worker.files(),
        origin_bytes: worker.received.objects(),
        problems: worker.report.problems(),
    }
}
