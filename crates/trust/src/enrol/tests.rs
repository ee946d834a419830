//! Against an operator that issues to everyone.

use super::*;
use crate::{Authority, Clients, Held, Identity, Lifetimes, Security, incoming};
use larder_proto::authority::v1::{
    IssueResponse, MountTokenResponse,
    authority_server::{self, AuthorityServer},
};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tonic::{Response, Status};

const NODE: &str = "gpu-1";

struct Operator {
    authority: Authority,
    lifetimes: Lifetimes,
    /// Calls that were answered.
    issued: Mutex<usize>,
}

#[tonic::async_trait]
impl authority_server::Authority for Operator {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        assert_eq!(request.metadata().get("authorization").unwrap(), "Bearer of this pod");
        let identity = Identity::Mounter { node: NODE.into() };
        let certificate = self.authority.issue(&identity, &request.into_inner().public_key, &self.lifetimes);
        *self.issued.lock() += 1;
        Ok(Response::new(IssueResponse { certificate: certificate.unwrap().to_vec() }))
    }

    async fn mount_token(&self, request: Request<MountTokenRequest>) -> Result<Response<MountTokenResponse>, Status> {
        let token = self.authority.mount_token(&request.into_inner().dataset_uid, NODE, &self.lifetimes).unwrap();
        Ok(Response::new(MountTokenResponse { token: token.as_str().to_owned() }))
    }
}

impl Operator {
    fn new(leaf: Duration) -> Arc<Self> {
        let lifetimes = Lifetimes { leaf, ..Lifetimes::default() };
        let authority = Authority::generate(&lifetimes, now()).unwrap();
        Arc::new(Self { authority, lifetimes, issued: Mutex::default() })
    }

    fn bundle(&self) -> Bundle {
        Bundle::new(vec![self.authority.certificate().clone()]).unwrap()
    }

    /// Serves as whoever that is.
    async fn serve(self: &Arc<Self>, identity: Identity) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, held) = Held::new();
        let leaf = self.authority.leaf(&identity, &Lifetimes::default()).unwrap();
        sender.send_replace(Some(Credentials::new(leaf, self.bundle()).unwrap().into()));
        let incoming = incoming(listener, &Security::Mutual(held), Clients::Anyone);
        let service = AuthorityServer::from_arc(Arc::clone(self));
        tokio::spawn(async move {
            let _sender = sender;
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        address
    }
}

struct Daemon {
    held: Held,
    bundle: watch::Sender<Option<String>>,
    issuer: Issuer,
    _dir: tempfile::TempDir,
}

fn daemon(address: &str) -> Daemon {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "of this pod\n").unwrap();
    let (sender, held) = Held::new();
    let (bundle, published) = watch::channel(None);
    let issuer = Issuer::new(address, &token);
    tokio::spawn(Enrolment::new(issuer.clone(), published, None, sender).run());
    Daemon { held, bundle, issuer, _dir: dir }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("not soon enough")
}

#[tokio::test]
async fn a_daemon_waits_for_the_ca_and_then_has_a_certificate() {
    let operator = Operator::new(Lifetimes::default().leaf);
    let daemon = daemon(&operator.serve(Identity::Operator).await);
    // However long it takes: it has nobody to trust.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(daemon.held.now().is_err());
    daemon.bundle.send_replace(Some(operator.bundle().to_pem()));
    let credentials = soon(daemon.held.ready()).await;
    assert_eq!(*credentials.identity(), Identity::Mounter { node: NODE.into() });
    let token = daemon.issuer.mount_token(&operator.bundle(), "0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f").await.unwrap();
    assert!(crate::MountToken::parse(&token).is_ok());
}

#[tokio::test]
async fn a_certificate_is_renewed_long_before_it_expires() {
    // The certificate is dated back a little, which counts as life.
    let operator = Operator::new(Duration::from_secs(152));
    let mut daemon = daemon(&operator.serve(Identity::Operator).await);
    daemon.bundle.send_replace(Some(operator.bundle().to_pem()));
    let first = soon(daemon.held.ready()).await;
    assert!(daemon.held.changed().await);
    assert!(soon(daemon.held.changed()).await);
    let second = daemon.held.now().unwrap();
    assert_ne!(first.leaf(), second.leaf());
    assert!(now() < first.leaf().not_after());
    assert!(*operator.issued.lock() >= 2);
}

#[tokio::test]
async fn a_changed_ca_is_trusted_at_once_and_a_certificate_it_does_not_vouch_for_is_replaced() {
    let (old, new) = (Operator::new(Lifetimes::default().leaf), Operator::new(Lifetimes::default().leaf));
    let mut daemon = daemon(&new.serve(Identity::Operator).await);
    daemon.bundle.send_replace(Some(new.bundle().to_pem()));
    let first = soon(daemon.held.ready()).await;
    daemon.held.changed().await;
    let both = Bundle::new(vec![new.authority.certificate().clone(), old.authority.certificate().clone()]).unwrap();
    daemon.bundle.send_replace(Some(both.to_pem()));
    assert!(soon(daemon.held.changed()).await);
    let trusting = daemon.held.now().unwrap();
    assert_eq!((trusting.leaf(), trusting.bundle()), (first.leaf(), &both));
    daemon.bundle.send_replace(Some(old.bundle().to_pem()));
    assert!(soon(daemon.held.changed()).await);
    assert!(!daemon.held.now().unwrap().is_vouched_for());
    daemon.bundle.send_replace(Some(new.bundle().to_pem()));
    soon(async {
        while *new.issued.lock() < 2 && !daemon.held.now().unwrap().is_vouched_for() {
            daemon.held.changed().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_token_is_shown_to_the_operator_and_to_nobody_else() {
    let operator = Operator::new(Lifetimes::default().leaf);
    let daemon = daemon(&operator.serve(Identity::Mounter { node: "evil".into() }).await);
    daemon.bundle.send_replace(Some(operator.bundle().to_pem()));
    let error = daemon.issuer.leaf(&operator.bundle()).await.unwrap_err().to_string();
    assert!(error.contains("reach the operator") && error.contains("larder://mounter/evil"), "{error}");
    assert_eq!(*operator.issued.lock(), 0);
}

#[test]
fn the_services_address_takes_the_place_of_its_name() {
    assert_eq!(with_host("larder-operator.x.svc:7480", "10.96.0.9").as_deref(), Some("10.96.0.9:7480"));
    assert_eq!(with_host("larder-operator.x.svc:7480", "fd00::9").as_deref(), Some("[fd00::9]:7480"));
    assert_eq!(with_host("larder-operator", "10.96.0.9"), None);
}
