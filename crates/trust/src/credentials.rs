//! Leaf and bundle as rustls wants them, and the place where the newest are.

use crate::{Bundle, Identity, Leaf, verify};
use rustls::{ClientConfig, ServerConfig, client::Resumption, server::WebPkiClientVerifier, version::TLS13};
use std::{fmt, sync::Arc};
use tokio::sync::watch;

/// Why a leaf and a bundle make no credentials.
#[derive(Clone, Debug, thiserror::Error)]
#[error("certificate of {identity} cannot be used: {reason}")]
pub struct CredentialsError {
    identity: Identity,
    reason: String,
}

/// There is no certificate yet, or not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this daemon has no certificate yet; its log says why")]
pub struct NoCertificate;

/// Sessions of one client that can be resumed: about one per worker it talks to.
const SESSIONS: usize = 1024;

/// What a process shows and what it accepts. A renewal makes new ones, so no session outlives by resumption the certificates it
/// was made with.
pub struct Credentials {
    leaf: Leaf,
    bundle: Bundle,
    mutual: Arc<ServerConfig>,
    open: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.leaf.fmt(f)
    }
}

impl Credentials {
    /// Of a leaf that one of the CAs has signed.
    ///
    /// # Errors
    /// When rustls takes key, certificate or CAs for none.
    pub fn new(leaf: Leaf, bundle: Bundle) -> Result<Self, CredentialsError> {
        let failed = |e: &dyn fmt::Display| CredentialsError { identity: leaf.identity().clone(), reason: e.to_string() };
        let chain = || vec![leaf.certificate().clone()];
        let provider = verify::provider();
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(bundle.roots()), Arc::clone(provider));
        let clients = clients.build().map_err(|e| failed(&e))?;
        let server = || {
            let builder = ServerConfig::builder_with_provider(Arc::clone(provider));
            builder.with_protocol_versions(&[&TLS13]).map_err(|e| failed(&e))
        };
        let mutual = server()?.with_client_cert_verifier(clients).with_single_cert(chain(), leaf.key());
        let open = server()?.with_no_client_auth().with_single_cert(chain(), leaf.key());
        let (mut mutual, mut open) = (mutual.map_err(|e| failed(&e))?, open.map_err(|e| failed(&e))?);
        // One connection at a time is resumed from a session; a second ticket would only cost memory.
        for config in [&mut mutual, &mut open] {
            config.send_tls13_tickets = 1;
        }
        let client = client_builder(&bundle).map_err(|e| failed(&e))?;
        let mut client = client.with_client_auth_cert(chain(), leaf.key()).map_err(|e| failed(&e))?;
        prepare(&mut client);
        Ok(Self { mutual: Arc::new(mutual), open: Arc::new(open), client: Arc::new(client), leaf, bundle })
    }

    /// Whose they are.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        self.leaf.identity()
    }

    /// Key and certificate.
    #[must_use]
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// Whom they trust.
    #[must_use]
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Would others who trust the same take our certificate?
    pub(crate) fn is_vouched_for(&self) -> bool {
        self.bundle.has_issued(self.leaf.certificate())
    }

    /// Lets in who shows a certificate, and nobody else.
    pub(crate) fn mutual(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.mutual)
    }

    /// Lets in everyone.
    pub(crate) fn open(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.open)
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }
}

fn client_builder(
    bundle: &Bundle,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::clone(verify::provider())).with_protocol_versions(&[&TLS13])?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verify::ServerVerifier(bundle.clone()))))
}

fn prepare(client: &mut ClientConfig) {
    // Our names mean nothing to anyone on the way.
    client.enable_sni = false;
    client.resumption = Resumption::in_memory_sessions(SESSIONS);
}

/// A client that has no certificate of its own yet.
pub(crate) fn nameless_client(bundle: &Bundle) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut client = client_builder(bundle)?.with_no_client_auth();
    prepare(&mut client);
    Ok(Arc::new(client))
}

/// The newest credentials of this process; clones see the same.
#[derive(Clone, Debug)]
pub struct Held(watch::Receiver<Option<Arc<Credentials>>>);

impl Held {
    /// None yet; the sender puts them in.
    #[must_use]
    pub fn new() -> (watch::Sender<Option<Arc<Credentials>>>, Self) {
        let (sender, receiver) = watch::channel(None);
        (sender, Self(receiver))
    }

    /// The newest.
    ///
    /// # Errors
    /// When there are none yet.
    pub fn now(&self) -> Result<Arc<Credentials>, NoCertificate> {
        self.0.borrow().clone().ok_or(NoCertificate)
    }

    /// Waits for the first ones.
    pub async fn ready(&self) -> Arc<Credentials> {
        let mut held = self.0.clone();
        if let Ok(found) = held.wait_for(Option::is_some).await
            && let Some(credentials) = &*found
        {
            return Arc::clone(credentials);
        }
        // Who would put them in is gone, which only happens on the way down.
        std::future::pending().await
    }

    /// Waits until they are not what they were when this clone last waited; `false` when they never will be.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

/// How daemons talk.
#[derive(Clone, Debug)]
pub enum Security {
    /// Whoever reaches a port is answered, and everyone on the way can read along.
    Plain,
    /// Everyone shows who they are.
    Mutual(Held),
}

impl Security {
    /// Returns when connections can be made and accepted.
    pub async fn ready(&self) {
        if let Self::Mutual(held) = self {
            held.ready().await;
        }
    }
}
