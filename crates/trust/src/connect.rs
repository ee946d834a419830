//! Connects to workers and to the operator.

use crate::{
    Caller, NoCertificate, Security, Stream, credentials,
    verify::{OPERATOR, server_name},
};
use http::Uri;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::ClientConfig;
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio_rustls::TlsConnector;
use tower::Service;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The other end.
    #[error("connect: {0}")]
    Tcp(#[from] Box<dyn std::error::Error + Send + Sync>),
    /// Ours.
    #[error(transparent)]
    NoCertificate(#[from] NoCertificate),
    /// The URI does not say who is meant.
    #[error("{0} does not say whose certificate is expected")]
    Nobody(Uri),
    /// The two do not trust each other, or it is somebody else.
    #[error("handshake: {0}")]
    Handshake(#[from] io::Error),
    /// No answer.
    #[error("handshake: no answer within {0:?}")]
    Silent(Duration),
}

/// The URI of a path on the port of a worker of a dataset. Whose certificate is expected stands before the address, where HTTP
/// has the user's name: so connections to the same address in the name of another dataset are others in every pool.
///
/// # Errors
/// When it makes no URI.
pub fn worker_uri(dataset: &str, address: SocketAddr, path: &str) -> Result<Uri, http::Error> {
    Uri::builder().scheme("http").authority(format!("{dataset}@{address}")).path_and_query(path).build()
}

/// The URI of the operator, at `<host>:<port>`.
pub(crate) fn operator_uri(address: &str) -> Result<Uri, http::Error> {
    Uri::builder().scheme("http").authority(format!("{OPERATOR}@{address}")).path_and_query("/").build()
}

/// Makes connections for a pool or a gRPC channel.
#[derive(Clone, Debug)]
pub struct Connector {
    tcp: HttpConnector,
    means: Means,
    patience: Duration,
}

#[derive(Clone, Debug)]
enum Means {
    Security(Security),
    Nameless(Arc<ClientConfig>),
}

impl Connector {
    /// With the newest credentials at each connection; `patience` for TCP, and once more for the handshake.
    #[must_use]
    pub fn new(security: &Security, patience: Duration) -> Self {
        Self::with(Means::Security(security.clone()), patience)
    }

    /// Without a certificate of our own.
    pub(crate) fn nameless(bundle: &crate::Bundle, patience: Duration) -> Result<Self, rustls::Error> {
        Ok(Self::with(Means::Nameless(credentials::nameless_client(bundle)?), patience))
    }

    fn with(means: Means, patience: Duration) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(patience));
        tcp.set_nodelay(true);
        Self { tcp, means, patience }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<Stream>, ConnectError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        self.tcp.poll_ready(context).map_err(|e| ConnectError::Tcp(e.into()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tcp = self.tcp.call(uri.clone());
        let (means, patience) = (self.means.clone(), self.patience);
        Box::pin(async move {
            let config = match means {
                Means::Security(Security::Plain) => None,
                Means::Security(Security::Mutual(held)) => Some(held.now()?.client()),
                Means::Nameless(config) => Some(config),
            };
            let tcp = tcp.await.map_err(|e| ConnectError::Tcp(e.into()))?.into_inner();
            let Some(config) = config else { return Ok(TokioIo::new(Stream::plain(tcp))) };
            let who = uri.authority().and_then(|a| a.as_str().rsplit_once('@')).map(|(who, _)| who);
            let name = who.and_then(|who| server_name(who, uri.host()?));
            let name = name.ok_or_else(|| ConnectError::Nobody(uri))?;
            let handshake = TlsConnector::from(config).connect(name, tcp);
            let tls = tokio::time::timeout(patience, handshake).await.map_err(|_| ConnectError::Silent(patience))??;
            Ok(TokioIo::new(Stream::tls(tls, Caller::Anyone)))
        })
    }
}
