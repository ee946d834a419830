//! What Larder's data path between nodes is compared with: a range server and a client that are hyper, rustls and nothing else.
//! Tuned: answers in one piece from memory that is used again, AES-128 first, encrypted bytes in pieces of 256 KiB.

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::{
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName},
    version::TLS13,
};
use std::{
    fs::{self, File},
    io,
    net::SocketAddr,
    ops::Range,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// What the server says when it is ready.
pub(crate) const READY: &str = "listening";
const NAME: &str = "localhost";
const BUFFER: usize = 256 << 10;

/// Flags of `larder-bench serve`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder whose files are served
    #[arg(long)]
    root: PathBuf,
    /// Where
    #[arg(long)]
    listen: SocketAddr,
    /// Folder with a certificate and its key; without, there is no TLS
    #[arg(long)]
    tls: Option<PathBuf>,
}

fn certificate(folder: &Path) -> PathBuf {
    folder.join("certificate.der")
}

fn key(folder: &Path) -> PathBuf {
    folder.join("key.der")
}

/// Makes a certificate that vouches for itself.
pub(crate) fn make_certificate(folder: &Path) -> anyhow::Result<()> {
    let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).context("make a certificate")?;
    fs::create_dir_all(folder)?;
    fs::write(certificate(folder), made.cert.der())?;
    fs::write(key(folder), made.signing_key.serialize_der()).context("write a key")
}

fn provider() -> Arc<CryptoProvider> {
    let cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() })
}

/// Serves until the process is killed.
pub(crate) fn serve(args: Args) -> anyhow::Result<()> {
    let acceptor = args.tls.as_deref().map(acceptor).transpose()?;
    Runtime::new()?.block_on(async {
        let listener = TcpListener::bind(args.listen).await.with_context(|| format!("listen on {}", args.listen))?;
        eprintln!("{READY}");
        serve_on(listener, acceptor, args.root.into()).await
    })
}

async fn serve_on(listener: TcpListener, acceptor: Option<TlsAcceptor>, root: Arc<Path>) -> anyhow::Result<()> {
    loop {
        let (tcp, _) = listener.accept().await.context("accept a connection")?;
        tcp.set_nodelay(true)?;
        let (acceptor, root) = (acceptor.clone(), Arc::clone(&root));
        tokio::spawn(async move {
            // Whoever asked notices.
            match acceptor {
                None => talk(tcp, root).await.ok(),
                Some(acceptor) => match acceptor.accept_with(tcp, |c| c.set_buffer_limit(Some(BUFFER))).await {
                    Ok(tls) => talk(tls, root).await.ok(),
                    Err(_) => None,
                },
            }
        });
    }
}

fn acceptor(folder: &Path) -> anyhow::Result<TlsAcceptor> {
    let (chain, key) = (vec![CertificateDer::from(fs::read(certificate(folder))?)], fs::read(key(folder))?);
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
    let config = builder.with_no_client_auth().with_single_cert(chain, PrivatePkcs8KeyDer::from(key).into())?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn talk(stream: impl AsyncRead + AsyncWrite + Unpin, root: Arc<Path>) -> hyper::Result<()> {
    let service = service_fn(move |request| answer(Arc::clone(&root), request));
    http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
}

async fn answer(root: Arc<Path>, request: Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
    let path = root.join(request.uri().path().trim_start_matches('/'));
    let range =
        request.headers().get(header::RANGE).and_then(|value| value.to_str().ok()?.strip_prefix("bytes=")?.split_once('-'));
    let range = range.and_then(|(first, last)| Some(first.parse().ok()?..last.parse::<u64>().ok()? + 1));
    let range = range.ok_or(io::ErrorKind::InvalidInput)?;
    let read = tokio::task::spawn_blocking(move || read(&path, &range)).await.map_err(io::Error::other)??;
    let mut response = Response::new(Full::new(read));
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    Ok(response)
}

fn read(path: &Path, range: &Range<u64>) -> io::Result<Bytes> {
    let mut buffer = Reused(FREE.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default());
    buffer.0.resize((range.end - range.start) as usize, 0);
    File::open(path)?.read_exact_at(&mut buffer.0, range.start)?;
    Ok(Bytes::from_owner(buffer))
}

/// Memory that no answer needs now: new memory costs a page fault for each page.
static FREE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

struct Reused(Vec<u8>);

impl AsRef<[u8]> for Reused {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Reused {
    fn drop(&mut self) {
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut self.0));
    }
}

/// A range of a file.
pub(crate) type Wanted = (String, Range<u64>);

/// Connections that stay open, one request in flight on each. It looks at no byte of what it gets.
pub(crate) struct Client {
    connections: Vec<SendRequest<Empty<Bytes>>>,
}

impl Client {
    pub fn connect(runtime: &Runtime, server: SocketAddr, tls: Option<&Path>, connections: usize) -> anyhow::Result<Self> {
        let connector = tls.map(connector).transpose()?;
        runtime.block_on(async {
            let mut this = Self { connections: Vec::new() };
            for _ in 0..connections {
                let tcp = TcpStream::connect(server).await.with_context(|| format!("connect to {server}"))?;
                tcp.set_nodelay(true)?;
                this.connections.push(match &connector {
                    None => begin(tcp).await?,
                    Some(connector) => begin(connector.connect(ServerName::try_from(NAME)?, tcp).await?).await?,
                });
            }
            Ok(this)
        })
    }

    /// Fetches everything; each connection takes the next range that nobody has. Gives the bytes that came.
    pub fn fetch(&mut self, runtime: &Runtime, wanted: &Arc<Vec<Wanted>>) -> anyhow::Result<u64> {
        let next = Arc::new(AtomicUsize::new(0));
        let fetching = std::mem::take(&mut self.connections).into_iter().map(|mut connection| {
            let (wanted, next) = (Arc::clone(wanted), Arc::clone(&next));
            runtime.spawn(async move {
                let mut bytes = 0;
                while let Some((path, range)) = wanted.get(next.fetch_add(1, Relaxed)) {
                    bytes += get(&mut connection, path, range).await?;
                }
                anyhow::Ok((connection, bytes))
            })
        });
        let mut bytes = 0;
        for fetched in runtime.block_on(futures::future::join_all(fetching.collect::<Vec<_>>())) {
            let (connection, more) = fetched??;
            self.connections.push(connection);
            bytes += more;
        }
        Ok(bytes)
    }
}

async fn begin(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn get(connection: &mut SendRequest<Empty<Bytes>>, path: &str, range: &Range<u64>) -> anyhow::Result<u64> {
    let request = Request::get(format!("/{path}")).header(header::HOST, NAME);
    let request = request.header(header::RANGE, format!("bytes={}-{}", range.start, range.end - 1)).body(Empty::new())?;
    connection.ready().await?;
    let response = connection.send_request(request).await?;
    anyhow::ensure!(response.status() == StatusCode::PARTIAL_CONTENT, "{path}: {}", response.status());
    let (mut body, mut bytes) = (response.into_body(), 0);
    while let Some(frame) = body.frame().await {
        bytes += frame?.data_ref().map_or(0, |piece| piece.len() as u64);
    }
    Ok(bytes)
}

fn connector(folder: &Path) -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(fs::read(certificate(folder))?))?;
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
    Ok(TlsConnector::from(Arc::new(builder.with_root_certificates(roots).with_no_client_auth())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_that_is_wanted_comes_with_tls_and_without() {
        let (dir, runtime) = (tempfile::tempdir().unwrap(), Runtime::new().unwrap());
        fs::write(dir.path().join("file"), vec![7; 300_000]).unwrap();
        make_certificate(&dir.path().join("tls")).unwrap();
        let wanted = Arc::new(vec![("file".to_owned(), 0..200_000), ("file".to_owned(), 200_000..300_000)]);
        for tls in [None, Some(dir.path().join("tls"))] {
            let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
            let (address, acceptor) = (listener.local_addr().unwrap(), tls.as_deref().map(|t| acceptor(t).unwrap()));
            runtime.spawn(serve_on(listener, acceptor, dir.path().into()));
            let mut client = Client::connect(&runtime, address, tls.as_deref(), 2).unwrap();
            assert_eq!(client.fetch(&runtime, &wanted).unwrap(), 300_000);
            let beyond = Arc::new(vec![("file".to_owned(), 0..300_001)]);
            assert!(client.fetch(&runtime, &beyond).is_err());
        }
    }
}
