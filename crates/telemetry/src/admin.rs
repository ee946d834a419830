//! The admin server of a daemon: `/healthz` (the process answers), `/readyz` (it can do its work), `/metrics` (OpenMetrics text),
//! and what else it has to tell, as JSON.

use crate::metrics::Exposition;
use axum::{Json, Router, extract, http::StatusCode, response::IntoResponse, routing::get};
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio_util::sync::CancellationToken;

/// Is the daemon ready? Shared between its parts; starts as "no".
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<State>);

#[derive(Debug, Default)]
struct State {
    ready: AtomicBool,
    waits_for: Mutex<Option<&'static str>>,
}

impl Health {
    /// Says whether the daemon can do its work now.
    pub fn set_ready(&self, ready: bool) {
        self.0.ready.store(ready, Ordering::Relaxed);
    }
    /// Says what from outside is missing, without which it is not ready whatever else it has.
    pub fn set_waits_for(&self, what: Option<&'static str>) {
        *self.0.waits_for.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }
    /// Can it?
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.ready.load(Ordering::Relaxed) && self.waits_for().is_none()
    }

    fn waits_for(&self) -> Option<&'static str> {
        *self.0.waits_for.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why there is no admin server.
#[derive(Debug, thiserror::Error)]
#[error("serve admin endpoints on {addr}: {source}")]
pub struct AdminError {
    addr: SocketAddr,
    source: std::io::Error,
}

/// Makes a JSON page each time it is asked for.
pub type Page = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// Serves until `shutdown`.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve_admin(
    addr: SocketAddr,
    health: Health,
    exposition: Exposition,
    shutdown: CancellationToken,
) -> Result<(), AdminError> {
    serve_admin_with(addr, health, exposition, Vec::new(), shutdown).await
}

/// As [`serve_admin`], with pages of the daemon's own, by path.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve_admin_with(
    addr: SocketAddr,
    health: Health,
    exposition: Exposition,
    pages: Vec<(&'static str, Page)>,
    shutdown: CancellationToken,
) -> Result<(), AdminError> {
    let wrap = |source| AdminError { addr, source };
    let listener = crate::listen::listen(addr).await.map_err(wrap)?;
    let router = pages.into_iter().fold(router(health, exposition), |router, (path, page)| {
        router.route(path, get(move || std::future::ready(Json(page()))))
    });
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await.map_err(wrap)
}

fn router(health: Health, exposition: Exposition) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(health)
        .route("/metrics", get(metrics).with_state(Arc::new(exposition)))
}

async fn readyz(extract::State(health): extract::State<Health>) -> (StatusCode, String) {
    if health.is_ready() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let why = health.waits_for().map(|what| format!(": waits for {what}")).unwrap_or_default();
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready{why}\n"))
}

async fn metrics(extract::State(exposition): extract::State<Arc<Exposition>>) -> impl IntoResponse {
    let (status, text) = match exposition.text() {
        Ok(text) => (StatusCode::OK, text),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, String::new()),
    };
    (status, [("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
}
