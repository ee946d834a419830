//! The port for certificates.

use super::{
    Keeper,
    review::{Proven, Refused, review},
};
use anyhow::Context as _;
use kube::Client;
use larder_proto::authority::v1::{
    IssueRequest, IssueResponse, MountTokenRequest, MountTokenResponse,
    authority_server::{Authority, AuthorityServer},
};
use larder_trust::{AuthorityError, Clients, Kept, Lifetimes, incoming};
use std::{net::SocketAddr, sync::Arc};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

impl Keeper {
    /// Serves until `shutdown`. As long as there is no CA, nobody is let in.
    pub(crate) async fn serve(&self, address: SocketAddr, shutdown: CancellationToken) -> anyhow::Result<()> {
        let listener = larder_telemetry::listen::listen(address).await.with_context(|| format!("listen on {address}"))?;
        let port = Port {
            client: self.client.clone(),
            namespace: self.settings.namespace.clone(),
            workers: self.settings.worker_service_account.clone(),
            kept: self.kept.clone(),
        };
        tonic::transport::Server::builder()
            .add_service(AuthorityServer::new(port))
            .serve_with_incoming_shutdown(incoming(listener, &self.security(), Clients::Anyone), shutdown.cancelled_owned())
            .await
            .context("serve")
    }
}

struct Port {
    client: Client,
    namespace: String,
    /// Their ServiceAccount.
    workers: String,
    kept: watch::Receiver<Option<Arc<Kept>>>,
}

impl Port {
    async fn prove<T>(&self, request: &Request<T>) -> Result<Proven, Refused> {
        let shown = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let token = shown.and_then(|text| text.strip_prefix("Bearer ")).ok_or(Refused::NoToken)?;
        review(&self.client, &self.namespace, token).await
    }

    fn kept(&self) -> Result<Arc<Kept>, Status> {
        self.kept.borrow().clone().ok_or_else(|| Status::unavailable("there is no CA yet"))
    }
}

#[tonic::async_trait]
impl Authority for Port {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        let proven = self.prove(&request).await.map_err(refused)?;
        let identity = proven.identity(&self.client, &self.namespace, &self.workers).await.map_err(refused)?;
        let public_key = request.into_inner().public_key;
        let certificate = self.kept()?.signer().issue(&identity, &public_key, &Lifetimes::default()).map_err(not_signed)?;
        tracing::info!(%identity, "certificate issued");
        Ok(Response::new(IssueResponse { certificate: certificate.to_vec() }))
    }

    async fn mount_token(&self, request: Request<MountTokenRequest>) -> Result<Response<MountTokenResponse>, Status> {
        let proven = self.prove(&request).await.map_err(refused)?;
        let node = proven.mounting_node().map_err(refused)?;
        let dataset = request.into_inner().dataset_uid;
        let token = self.kept()?.signer().mount_token(&dataset, node, &Lifetimes::default()).map_err(not_signed)?;
        tracing::info!(dataset, node, "mount token issued");
        Ok(Response::new(MountTokenResponse { token: token.as_str().to_owned() }))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn refused(refused: Refused) -> Status {
    tracing::warn!(%refused, "nothing is issued");
    match refused {
        Refused::NoToken | Refused::NotAuthenticated(_) | Refused::Audience => Status::unauthenticated(refused.to_string()),
        Refused::Unavailable { .. } => Status::unavailable(refused.to_string()),
        _ => Status::permission_denied(refused.to_string()),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn not_signed(error: AuthorityError) -> Status {
    match error {
        AuthorityError::PublicKey(_) | AuthorityError::Names { .. } => Status::invalid_argument(error.to_string()),
        _ => Status::internal(error.to_string()),
    }
}
