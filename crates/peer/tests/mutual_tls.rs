//! Workers and who asks them, with certificates.
#![expect(clippy::unwrap_used, reason = "what a test cannot go on without")]

use bytes::Bytes;
use larder_core::{
    key::ObjectKey,
    placement::{Member, Members},
};
use larder_peer::{
    Body, Client, CopyReply, Fetched, ObjectRef, ObjectReply, ObjectRequest, ObjectSource, Options, ReadError, Refusal, Roster,
    Source,
};
use larder_trust::{Credentials, Held, Identity, MountToken, Security, Tokens, testing::Ca};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    fs::File,
    net::SocketAddr,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

const UID: &str = "0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f";
const OTHER: &str = "1d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f";
const SIZE: u64 = 8 << 20;
/// Longest read.
const WHOLE: Duration = Duration::from_millis(700);

/// Counts what it was asked for: what is refused before must never come here.
#[derive(Default)]
struct Disk {
    asked: Mutex<u64>,
}

impl ObjectSource for Disk {
    async fn object(&self, request: ObjectRequest) -> Result<ObjectReply, Refusal> {
        *self.asked.lock() += 1;
        let len = (request.range.end - request.range.start) as usize;
        Ok(ObjectReply { source: Source::Disk, size: SIZE, crc32c: None, body: Body::Bytes(Bytes::from(vec![7; len])) })
    }

    async fn copy(&self, _: &str, _: ObjectKey, _: Range<u64>, _: Option<(String, u64)>) -> Result<CopyReply, Refusal> {
        *self.asked.lock() += 1;
        Err(Refusal::NotFound("no copy".into()))
    }

    async fn catalog(&self, _: &str, _: &str) -> Result<File, Refusal> {
        *self.asked.lock() += 1;
        Err(Refusal::NotFound("no catalog".into()))
    }
}

fn worker(dataset: &str) -> Identity {
    Identity::Worker { dataset: dataset.into(), node: "gpu-1".into() }
}

fn mounter(node: &str) -> Identity {
    Identity::Mounter { node: node.into() }
}

struct Port {
    address: SocketAddr,
    disk: Arc<Disk>,
    /// Where its certificates are renewed.
    renew: watch::Sender<Option<Arc<Credentials>>>,
}

impl Port {
    async fn start(ca: &Ca, identity: &Identity) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, disk) = (listener.local_addr().unwrap(), Arc::new(Disk::default()));
        let (renew, security) = ca.security(identity);
        let source = Arc::clone(&disk);
        tokio::spawn(async move { larder_peer::serve(listener, source, &security, CancellationToken::new()).await });
        Self { address, disk, renew }
    }

    fn client(&self, security: Security, token: Option<&str>) -> Client {
        let tokens = Tokens::default();
        if let Some(token) = token {
            tokens.set(UID, token).unwrap();
        }
        let down = Duration::from_millis(50);
        let options = Options { port: self.address.port(), whole: WHOLE, down, security, tokens, ..Options::default() };
        Client::with_options("gpu-2", options)
    }

    async fn read(&self, client: &Client, dataset_uid: &str) -> Result<Fetched, ReadError> {
        let key = ObjectKey::new("s3://b/", "p", "v", SIZE);
        let member = Member { node: "gpu-1".into(), weight: 1, since: 1, leaving: false };
        let roster = Roster {
            members: Members { generation: 1, members: vec![member], ..Members::default() },
            addresses: BTreeMap::from([("gpu-1".to_owned(), self.address.ip())]),
        };
        client.read(&roster, &ObjectRef { dataset_uid, snapshot: "5nap", inode: 7, key }, 0..SIZE).await
    }

    fn asked(&self) -> u64 {
        *self.disk.asked.lock()
    }
}

async fn refused(port: &Port, client: &Client, words: &str) {
    let started = Instant::now();
    let error = port.read(client, UID).await.unwrap_err();
    if let ReadError::Denied { .. } = error {
        assert!(started.elapsed() < WHOLE / 2, "{:?}", started.elapsed());
    }
    let error = error.to_string();
    assert!(error.contains(words), "{error}");
    assert_eq!(port.asked(), 0, "{words}: the request came through");
}

#[tokio::test]
async fn workers_of_the_dataset_and_mounters_with_a_token_read() {
    let ca = Ca::new();
    let port = Port::start(&ca, &worker(UID)).await;
    let token = ca.token(UID, "cpu-1");
    for (identity, token) in [(worker(UID), None), (mounter("cpu-1"), Some(token.as_str()))] {
        let (_renew, security) = ca.security(&identity);
        let client = port.client(security, token);
        for _ in 0..3 {
            assert_eq!(port.read(&client, UID).await.unwrap().bytes.len() as u64, SIZE);
        }
    }
}

#[tokio::test]
async fn nobody_else_gets_a_byte() {
    let (ca, foreign) = (Ca::new(), Ca::new());
    let port = Port::start(&ca, &worker(UID)).await;
    let (of_other_dataset, of_other_node) = (ca.token(OTHER, "cpu-1"), ca.token(UID, "cpu-2"));
    let foreign_token = foreign.token(UID, "cpu-1");
    for (ca, identity, token, words) in [
        (&ca, worker(OTHER), None, "not allowed: 403 larder://worker/1d1f"),
        (&ca, Identity::Operator, None, "not allowed: 403 larder://operator may not"),
        (&ca, mounter("cpu-1"), None, "shows no mount token"),
        (&ca, mounter("cpu-1"), Some(&of_other_node), "for node cpu-2"),
        (&ca, mounter("cpu-1"), Some(&foreign_token), "not signed by a CA that is known"),
        (&foreign, worker(UID), None, "handshake"),
    ] {
        let (_renew, security) = ca.security(&identity);
        refused(&port, &port.client(security, token.map(MountToken::as_str)), words).await;
    }
    // The token of another dataset cannot even be kept for this one.
    assert!(Tokens::default().set(UID, of_other_dataset.as_str()).is_err());
    // A client that has no certificate yet, and two that do not speak TLS.
    refused(&port, &port.client(Security::Mutual(Held::new().1), None), "no certificate yet").await;
    refused(&port, &port.client(Security::Plain, None), "no worker could serve it").await;
    let mut tcp = TcpStream::connect(port.address).await.unwrap();
    tcp.write_all(format!("GET /v1/{UID}/catalogs/{} HTTP/1.1\r\nHost: x\r\n\r\n", "ab".repeat(32)).as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(10), tcp.read_to_end(&mut answer)).await.unwrap();
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    assert_eq!(port.asked(), 0);
}

#[tokio::test]
async fn a_client_talks_to_no_worker_of_another_dataset() {
    let ca = Ca::new();
    let port = Port::start(&ca, &worker(OTHER)).await;
    let (_renew, security) = ca.security(&worker(UID));
    refused(&port, &port.client(security.clone(), None), "larder://worker/1d1f").await;
    let evil = Port::start(&ca, &mounter("gpu-1")).await;
    refused(&evil, &evil.client(security, None), "larder://mounter/gpu-1").await;
}

/// Both ends are renewed all the time while reads run; no read may notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_seconds_are_renewed_without_a_dropped_read() {
    let ca = Ca::with_leaf(Duration::from_secs(3));
    let port = Arc::new(Port::start(&ca, &worker(UID)).await);
    let (renew, security) = ca.security(&mounter("cpu-1"));
    let tokens = Tokens::default();
    tokens.set(UID, ca.token(UID, "cpu-1").as_str()).unwrap();
    let options = Options { port: port.address.port(), security, tokens, ..Options::default() };
    let client = Client::with_options("cpu-1", options);
    let end = Instant::now() + Duration::from_secs(9);
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (port, client) = (Arc::clone(&port), client.clone());
            tokio::spawn(async move {
                let mut reads = 0;
                while Instant::now() < end {
                    port.read(&client, UID).await.unwrap();
                    reads += 1;
                }
                reads
            })
        })
        .collect();
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(700)).await;
        renew.send_replace(Some(ca.credentials(&mounter("cpu-1")).into()));
        port.renew.send_replace(Some(ca.credentials(&worker(UID)).into()));
    }
    let mut reads = 0;
    for reader in readers {
        reads += reader.await.unwrap();
    }
    assert_eq!(port.asked(), reads, "a read was begun twice");
    assert!(reads > 100, "{reads}");
}

#[tokio::test]
async fn an_expired_certificate_is_refused_on_a_connection_that_is_open() {
    let ca = Ca::with_leaf(Duration::from_secs(2));
    let port = Port::start(&ca, &worker(UID)).await;
    let (_renew, security) = ca.security(&worker(UID));
    let client = port.client(security, None);
    port.read(&client, UID).await.unwrap();
    // Certificates end with a whole second.
    tokio::time::sleep(Duration::from_millis(3100)).await;
    let error = port.read(&client, UID).await.unwrap_err().to_string();
    assert!(error.contains("its certificate has expired"), "{error}");
    assert_eq!(port.asked(), 1);
}
