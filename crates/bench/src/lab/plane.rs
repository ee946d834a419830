//! What daemons ask of Kubernetes and of the operator, answered from memory.

use super::{NAMESPACE, UID};
use anyhow::Context as _;
use axum::{
    Json, Router,
    body::Body,
    extract::State,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures::stream;
use http::Uri;
use larder_core::{
    names::{AUTHORITY, AUTHORITY_BUNDLE_KEY, MEMBERS_KEY, members_config_map},
    placement::{Member, Members},
};
use larder_peer::Roster;
use larder_proto::authority::v1::{self as pb, authority_server::AuthorityServer};
use larder_trust::{Authority, Bundle, Clients, Credentials, Held, Identity, Lifetimes, Security, incoming, now};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, runtime::Runtime};
use tonic::{Request, Response as Answer, Status};

/// How long a watch is open; shorter than clients wait for one.
const WATCH: Duration = Duration::from_secs(240);

/// An API server with one member list, and an operator's port for certificates.
pub(super) struct Plane {
    pub api: SocketAddr,
    /// `None`: daemons talk without certificates.
    pub authority: Option<(SocketAddr, Arc<Authority>)>,
    pub roster: Arc<Roster>,
}

impl Plane {
    /// Runs as long as the runtime does.
    pub fn start(runtime: &Runtime, host: IpAddr, tls: bool, nodes: BTreeMap<String, IpAddr>) -> anyhow::Result<Self> {
        let member = |node: &String| Member { node: node.clone(), weight: 1, since: 1, leaving: false };
        let members = Members { generation: 1, members: nodes.keys().map(member).collect(), ..Members::default() };
        let roster = Arc::new(Roster { members, addresses: nodes });
        let bind = || runtime.block_on(TcpListener::bind((host, 0))).with_context(|| format!("listen on {host}"));
        let listener = bind()?;
        let api = listener.local_addr()?;
        let authority = tls.then(|| Authority::generate(&Lifetimes::default(), now())).transpose()?.map(Arc::new);
        let bundle = authority.as_ref().map(|a| Bundle::new(vec![a.certificate().clone()])).transpose()?;
        let objects = Arc::new(Objects::new(&roster, bundle.as_ref()));
        runtime.spawn(async move { axum::serve(listener, Router::new().fallback(answer).with_state(objects)).await });
        let mut this = Self { api, authority: None, roster };
        if let Some(authority) = authority {
            let listener = bind()?;
            this.authority = Some((listener.local_addr()?, Arc::clone(&authority)));
            let security = this.security(&Identity::Operator)?;
            let _runtime = runtime.enter();
            let port = tonic::transport::Server::builder().add_service(AuthorityServer::new(Issues(authority)));
            runtime.spawn(port.serve_with_incoming(incoming(listener, &security, Clients::Anyone)));
        }
        Ok(this)
    }

    /// How this process talks, as someone else.
    pub fn security(&self, identity: &Identity) -> anyhow::Result<Security> {
        let Some((_, authority)) = &self.authority else { return Ok(Security::Plain) };
        let bundle = Bundle::new(vec![authority.certificate().clone()])?;
        let credentials = Credentials::new(authority.leaf(identity, &Lifetimes::default())?, bundle)?;
        let (sender, held) = Held::new();
        sender.send_replace(Some(credentials.into()));
        Ok(Security::Mutual(held))
    }
}

/// Lists, as the API server gives them.
struct Objects {
    authority: Value,
    members: Value,
    slices: Value,
}

impl Objects {
    fn new(roster: &Roster, bundle: Option<&Bundle>) -> Self {
        let list = |kind: &str, version: &str, items: Vec<Value>| json!({ "kind": kind, "apiVersion": version, "metadata": { "resourceVersion": "1" }, "items": items });
        let meta = |name: &str| {
            let labels = json!({ "larder.dev/dataset-uid": UID });
            json!({ "name": name, "namespace": NAMESPACE, "uid": name, "resourceVersion": "1", "labels": labels })
        };
        let members = json!({ MEMBERS_KEY: json!(roster.members).to_string() });
        let authority = json!({ AUTHORITY_BUNDLE_KEY: bundle.map(Bundle::to_pem).unwrap_or_default() });
        let map = |name: &str, data: Value| list("ConfigMapList", "v1", vec![json!({ "metadata": meta(name), "data": data })]);
        let endpoints: Vec<_> =
            roster.addresses.iter().map(|(node, ip)| json!({ "addresses": [ip], "nodeName": node })).collect();
        let slice = json!({ "metadata": meta("workers"), "addressType": "IPv4", "endpoints": endpoints, "ports": [] });
        Self {
            authority: map(AUTHORITY, authority),
            members: map(&members_config_map(UID), members),
            slices: list("EndpointSliceList", "discovery.k8s.io/v1", vec![slice]),
        }
    }
}

/// Nothing ever changes: a watch tells nothing until it ends.
async fn answer(State(objects): State<Arc<Objects>>, uri: Uri) -> Response {
    let query = uri.query().unwrap_or_default();
    if query.contains("watch=true") {
        let silence = stream::once(async {
            tokio::time::sleep(WATCH).await;
            Ok::<_, io::Error>(Bytes::new())
        });
        return Body::from_stream(silence).into_response();
    }
    let list = match uri.path().rsplit('/').next() {
        Some("endpointslices") => &objects.slices,
        Some("configmaps") if query.contains(AUTHORITY) => &objects.authority,
        Some("configmaps") => &objects.members,
        _ => return http::StatusCode::NOT_FOUND.into_response(),
    };
    Json(list).into_response()
}

/// Gives everyone the certificate of who they say they are: their token is their identity.
struct Issues(Arc<Authority>);

#[tonic::async_trait]
impl pb::authority_server::Authority for Issues {
    async fn issue(&self, request: Request<pb::IssueRequest>) -> Result<Answer<pb::IssueResponse>, Status> {
        let token = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let identity = token.and_then(|text| text.strip_prefix("Bearer ")).and_then(|text| text.parse().ok());
        let identity = identity.ok_or_else(|| Status::unauthenticated("the token is no identity"))?;
        let issued = self.0.issue(&identity, &request.into_inner().public_key, &Lifetimes::default());
        let certificate = issued.map_err(|e| Status::internal(e.to_string()))?.to_vec();
        Ok(Answer::new(pb::IssueResponse { certificate }))
    }

    async fn mount_token(&self, _: Request<pb::MountTokenRequest>) -> Result<Answer<pb::MountTokenResponse>, Status> {
        Err(Status::failed_precondition("there is no node plugin here that would ask"))
    }
}
