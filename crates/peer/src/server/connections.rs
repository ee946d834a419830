//! The connections of the data port, and who may ask on them.

use super::{ObjectSource, one_line, router};
use axum::{Router, response::IntoResponse as _, response::Response};
use futures::StreamExt as _;
use http::{Request, StatusCode};
use hyper::{body::Incoming as Body, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use larder_trust::{Caller, Clients, MOUNT_TOKEN_HEADER, Security, Stream, admit, incoming};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

/// How long answers may still run after the shutdown began.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves the data port until the shutdown, then lets running answers end for a few seconds.
pub async fn serve<S: ObjectSource>(
    listener: tokio::net::TcpListener,
    source: Arc<S>,
    security: &Security,
    shutdown: CancellationToken,
) {
    let mut incoming = incoming(listener, security, Clients::Known);
    let (router, running) = (router(source), TaskTracker::new());
    while let Some(Some(Ok(stream))) = shutdown.run_until_cancelled(incoming.next()).await {
        running.spawn(talk(stream, router.clone(), shutdown.clone()));
    }
    drop(incoming);
    running.close();
    // What still runs then is broken off, which its client notices.
    let _ = tokio::time::timeout(DRAIN, running.wait()).await;
}

/// Answers one request after the other; after the shutdown began, no more than the one that is being answered.
async fn talk(stream: Stream, router: Router, shutdown: CancellationToken) {
    let caller = stream.caller().clone();
    let service = service_fn(move |request| answer(caller.clone(), router.clone(), request));
    let mut connection = std::pin::pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection of a peer broke");
    }
}

async fn answer(caller: Caller, router: Router, request: Request<Body>) -> Result<Response, Infallible> {
    // One that is not text is none.
    let token = request.headers().get(MOUNT_TOKEN_HEADER).and_then(|token| token.to_str().ok());
    match admit::to_data(&caller, token) {
        Ok(()) => router.oneshot(request).await,
        Err(denied) => {
            tracing::warn!(%denied, "request refused");
            Ok((StatusCode::FORBIDDEN, one_line(&denied.to_string())).into_response())
        }
    }
}
