//! What every daemon does before and beside its own work: logs, the TLS provider, ports, health and metrics, shutdown.
#![forbid(unsafe_code)]

pub mod admin;
pub mod listen;
pub mod metrics;

pub use admin::{Health, Page, serve_admin, serve_admin_with};
pub use metrics::{Durations, Exposition};

use std::sync::LazyLock;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// JSON: what daemons write is read by programs.
    Json,
    /// For people.
    Text,
}

/// Sets up logs (lines on stderr; `filter` as in `tracing_subscriber::EnvFilter`, RUST_LOG wins) and the process-wide TLS
/// provider, without which rustls panics at its first use when more than one is compiled in.
pub fn init(filter: &str, format: Format) {
    // A second call (tests) finds them set; that is fine.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(filter));
    let logs = tracing_subscriber::fmt().with_span_events(FmtSpan::NONE).with_env_filter(filter).with_writer(std::io::stderr);
    let _ = match format {
        Format::Json => logs.json().flatten_event(true).try_init(),
        Format::Text => logs.try_init(),
    };
}

/// A token that is cancelled by SIGTERM or SIGINT.
///
/// # Errors
/// When no signal handler can be installed.
pub fn shutdown_on_signal() -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let token = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let cancel = token.clone();
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        tracing::info!("shutting down");
        cancel.cancel();
    });
    Ok(token)
}

/// Version of this build; LARDER_VERSION at build time says more, such as the commit.
const BUILT: &str = match option_env!("LARDER_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

static VERSION: LazyLock<String> = LazyLock::new(|| std::env::var("LARDER_VERSION").unwrap_or_else(|_| BUILT.to_owned()));

/// The release that runs: what its image says in LARDER_VERSION, else that of the build.
#[must_use]
pub fn version() -> &'static str {
    &VERSION
}
