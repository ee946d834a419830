//! Asks the operator for a certificate, and for the next one long before it expires.

use crate::{Bundle, Connector, Credentials, Leaf, LeafError, connect::operator_uri, leaf::NewKey, now};
use larder_core::causes;
use larder_proto::authority::v1::{IssueRequest, MountTokenRequest, authority_client::AuthorityClient};
use rustls::pki_types::CertificateDer;
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use tonic::{
    Request,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

/// Longest wait for a connection, and again for its handshake.
const CONNECT: Duration = Duration::from_secs(2);
/// Longest wait for an answer: the operator asks the API server before it gives one.
const ANSWER: Duration = Duration::from_secs(10);
/// Pauses between attempts: doubled from the first to the second. A daemon without a certificate is of no use to anyone; one
/// that renews has a third of its certificate's life left.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// Longest sleep: clocks are set, and machines sleep.
const LOOK: Duration = Duration::from_secs(3600);

/// Why the operator gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The projected token.
    #[error("read the token of this pod in {}: {source}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// The disk's answer.
        source: io::Error,
    },
    /// The projected token is no text.
    #[error("the token of this pod in {} is none", .0.display())]
    TokenText(PathBuf),
    /// Before the operator first published its CA.
    #[error("the certificates of the operator's CA are not known yet (ConfigMap larder-authority); is the operator running?")]
    NoBundle,
    /// No connection.
    #[error("reach the operator at {address}: {reason}")]
    Away {
        /// As in the flags.
        address: String,
        /// All of the error.
        reason: String,
    },
    /// It answered, but not with what was asked for.
    #[error("the operator at {address} refused: {reason}")]
    Refused {
        /// As in the flags.
        address: String,
        /// Its words.
        reason: String,
    },
    /// What it gave is not usable.
    #[error("the certificate that the operator gave: {0}")]
    Leaf(#[from] LeafError),
}

/// The operator's Service, as Kubernetes tells pods of its namespace.
const SERVICE_HOST: &str = "LARDER_OPERATOR_SERVICE_HOST";

/// Where certificates and mount tokens come from.
#[derive(Clone, Debug)]
pub struct Issuer {
    address: String,
    token: PathBuf,
}

impl Issuer {
    /// At `<host>:<port>`, for the pod whose token is in that file.
    #[must_use]
    pub fn new(address: &str, token: &Path) -> Self {
        Self { address: address.to_owned(), token: token.to_owned() }
    }

    /// A mount token for the mounter of this node.
    ///
    /// # Errors
    /// See [`IssueError`].
    pub async fn mount_token(&self, bundle: &Bundle, dataset_uid: &str) -> Result<String, IssueError> {
        let request = self.request(MountTokenRequest { dataset_uid: dataset_uid.to_owned() })?;
        let answer = self.client(bundle).await?.mount_token(request).await;
        Ok(answer.map_err(|status| self.refused(&status))?.into_inner().token)
    }

    async fn leaf(&self, bundle: &Bundle) -> Result<Leaf, IssueError> {
        let key = NewKey::generate()?;
        let request = self.request(IssueRequest { public_key: key.public() })?;
        let answer = self.client(bundle).await?.issue(request).await;
        let certificate = answer.map_err(|status| self.refused(&status))?.into_inner().certificate;
        Ok(key.certified(CertificateDer::from(certificate))?)
    }

    /// With the token as it is now: the kubelet replaces it.
    fn request<T>(&self, message: T) -> Result<Request<T>, IssueError> {
        let text = std::fs::read_to_string(&self.token);
        let text = text.map_err(|source| IssueError::Token { path: self.token.clone(), source })?;
        let mut bearer: MetadataValue<Ascii> =
            format!("Bearer {}", text.trim()).parse().map_err(|_| IssueError::TokenText(self.token.clone()))?;
        bearer.set_sensitive(true);
        let mut request = Request::new(message);
        request.set_timeout(ANSWER);
        request.metadata_mut().insert("authorization", bearer);
        Ok(request)
    }

    /// By the address that Kubernetes gave this pod, so that mounts do not need DNS; else, or if the Service was made again since, by
    /// name.
    async fn client(&self, bundle: &Bundle) -> Result<AuthorityClient<Channel>, IssueError> {
        let given = std::env::var(SERVICE_HOST).ok().and_then(|host| with_host(&self.address, &host));
        if let Some(address) = given
            && let Ok(client) = self.client_at(bundle, &address).await
        {
            return Ok(client);
        }
        self.client_at(bundle, &self.address).await
    }

    async fn client_at(&self, bundle: &Bundle, address: &str) -> Result<AuthorityClient<Channel>, IssueError> {
        let away = |e: &dyn std::error::Error| IssueError::Away { address: address.to_owned(), reason: causes::chain(e) };
        let uri = operator_uri(address).map_err(|e| away(&e))?;
        let connector = Connector::nameless(bundle, CONNECT).map_err(|e| away(&e))?;
        let origin = http::Uri::from_static("http://larder-operator");
        let endpoint = Endpoint::from(uri).origin(origin).timeout(ANSWER);
        Ok(AuthorityClient::new(endpoint.connect_with_connector(connector).await.map_err(|e| away(&e))?))
    }

    fn refused(&self, status: &tonic::Status) -> IssueError {
        let reason = format!("{}: {}", status.code(), status.message());
        IssueError::Refused { address: self.address.clone(), reason }
    }
}

/// The same port at another host.
fn with_host(address: &str, host: &str) -> Option<String> {
    let (_, port) = address.rsplit_once(':')?;
    Some(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
}

/// Keeps a process in credentials.
#[derive(Debug)]
pub struct Enrolment {
    issuer: Issuer,
    bundle: watch::Receiver<Option<String>>,
    held: watch::Sender<Option<Arc<Credentials>>>,
    /// What failed last, and how often in a row.
    failed: Option<(String, u32)>,
}

impl Enrolment {
    pub(crate) fn new(
        issuer: Issuer,
        bundle: watch::Receiver<Option<String>>,
        stored: Option<Credentials>,
        held: watch::Sender<Option<Arc<Credentials>>>,
    ) -> Self {
        if let Some(stored) = stored {
            tracing::info!(identity = %stored.identity(), "goes on with the certificate of the process before");
            held.send_replace(Some(stored.into()));
        }
        Self { issuer, bundle, held, failed: None }
    }

    /// Runs as long as it is polled.
    pub async fn run(mut self) {
        loop {
            let wait = self.wait();
            tokio::select! {
                () = tokio::time::sleep(wait) => {
                    if self.is_due() {
                        let renewed = self.renew().await;
                        self.tell(renewed);
                    }
                }
                changed = self.bundle.changed() => match changed {
                    Ok(()) => self.trust(),
                    // Who watched it is gone, which only happens on the way down.
                    Err(_) => std::future::pending().await,
                },
            }
        }
    }

    fn is_due(&self) -> bool {
        self.held.borrow().as_ref().is_none_or(|held| held.leaf().renew_at() <= now() || !held.is_vouched_for())
    }

    fn wait(&self) -> Duration {
        if let Some((_, times)) = &self.failed {
            return (PAUSE.0 * 2u32.saturating_pow((*times - 1).min(16))).min(PAUSE.1);
        }
        if self.is_due() {
            return Duration::ZERO;
        }
        let left = self.held.borrow().as_ref().map_or(0, |held| held.leaf().renew_at() - now());
        Duration::from_secs(left.max(0).cast_unsigned()).min(LOOK)
    }

    /// The certificates of the CA as they are published; those that are held already where there is no answer.
    fn published(&self) -> Option<Bundle> {
        let text = self.bundle.borrow().clone();
        let held = || self.held.borrow().as_ref().map(|held| held.bundle().clone());
        match text.as_deref().map(Bundle::from_pem) {
            Some(Ok(bundle)) => Some(bundle),
            Some(Err(error)) => {
                tracing::warn!(%error, "ConfigMap larder-authority");
                held()
            }
            None => held(),
        }
    }

    /// Goes on with the same leaf and other CAs.
    fn trust(&mut self) {
        let Some(bundle) = self.published() else { return };
        let Some(held) = self.held.borrow().clone() else {
            // What there was to wait for.
            self.failed = None;
            return;
        };
        if *held.bundle() == bundle {
            return;
        }
        match Credentials::new(held.leaf().clone(), bundle) {
            Ok(credentials) => drop(self.held.send_replace(Some(credentials.into()))),
            Err(error) => tracing::warn!(%error, "the published certificates of the CA are not taken"),
        }
        self.failed = None;
    }

    async fn renew(&mut self) -> Result<(), String> {
        let bundle = self.published().ok_or_else(|| IssueError::NoBundle.to_string())?;
        let leaf = self.issuer.leaf(&bundle).await.map_err(|e| e.to_string())?;
        let credentials = Credentials::new(leaf, bundle).map_err(|e| e.to_string())?;
        tracing::info!(identity = %credentials.identity(), not_after = credentials.leaf().not_after(), "has a certificate");
        self.held.send_replace(Some(credentials.into()));
        Ok(())
    }

    /// Logs what is new.
    fn tell(&mut self, renewed: Result<(), String>) {
        let Err(error) = renewed else {
            self.failed = None;
            return;
        };
        let again = self.failed.take().filter(|(last, _)| *last == error).map(|(_, times)| times);
        if again.is_none() {
            tracing::warn!(error, has_certificate = self.held.borrow().is_some(), "no certificate was got; trying again");
        }
        self.failed = Some((error, again.unwrap_or(0) + 1));
    }
}

#[cfg(test)]
mod tests;
