//! The connections of the data port, and who may ask on them.

use super::{ObjectSource, one_line, router};
use axum::{Router, response::IntoResponse as _, response::Response};
use futures::StreamExt as _;
use http::{Request, StatusCode};
use hyper::{body::Incoming as Body, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use larder_trust::{Caller, Clients, MOUNT_TOKEN_HEADER, Security, Stream, admit, incoming};
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

/// How long answers may still run after the shutdown began.
const DRAIN: Duration = Duration::from_secs(5);
/// Longest wait for a whole request. Clients close connections that are idle long before.
const REQUEST: Duration = Duration::from_secs(120);

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
        running.spawn(talk(stream, router.clone(), shutdown.clone(), REQUEST));
    }
    drop(incoming);
    running.close();
    // What still runs then is broken off, which its client notices.
    let _ = tokio::time::timeout(DRAIN, running.wait()).await;
}

/// Answers one request after the other; after the shutdown began, no more than the one that is being answered.
async fn talk(stream: Stream, router: Router, shutdown: CancellationToken, patience: Duration) {
    let (caller, told) = (stream.caller().clone(), Arc::new(AtomicBool::new(false)));
    let service = service_fn(move |request| answer(caller.clone(), Arc::clone(&told), router.clone(), request));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(patience);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
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

/// `told`: that the caller is refused was told for this connection.
async fn answer(caller: Caller, told: Arc<AtomicBool>, router: Router, request: Request<Body>) -> Result<Response, Infallible> {
    // One that is not text is none.
    let token = request.headers().get(MOUNT_TOKEN_HEADER).and_then(|token| token.to_str().ok());
    match admit::to_data(&caller, token) {
        Ok(()) => router.oneshot(request).await,
        Err(denied) => {
            if told.swap(true, Relaxed) {
                tracing::debug!(%denied, "request refused again");
            } else {
                tracing::warn!(%denied, "request refused");
            }
            Ok((StatusCode::FORBIDDEN, one_line(&denied.to_string())).into_response())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::AsyncWriteExt as _,
        net::{TcpListener, TcpStream},
    };

    #[tokio::test]
    async fn a_request_that_does_not_come_is_not_waited_for_for_ever() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = incoming(listener, &Security::Plain, Clients::Known);
        for sent in ["", "GET / HT"] {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(sent.as_bytes()).await.unwrap();
            let Some(Ok(stream)) = incoming.next().await else { unreachable!("it never ends") };
            let talk = talk(stream, Router::new(), CancellationToken::new(), Duration::from_millis(50));
            let ended = tokio::time::timeout(Duration::from_secs(10), talk).await;
            assert!(ended.is_ok(), "after {sent:?}");
        }
    }
}
