//! One request to one worker.

use super::Options;
use crate::{CRC_HEADER, ObjectRef, SOURCE_HEADER, Source};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use larder_core::{causes, checksum::Running, key::ObjectKey};
use larder_io::buffers::Buffer;
use larder_trust::{Connector, Credentials, MOUNT_TOKEN_HEADER, Security, worker_uri};
use parking_lot::RwLock;
use std::{net::SocketAddr, ops::Range, sync::Arc, time::Duration};

/// Why one worker did not give the bytes.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection, or no answer on it: the node is not asked for a moment.
    NoAnswer(String),
    /// The answer broke off.
    Broken(String),
    /// Another status than asked for, with the line of text that came with it.
    Status(StatusCode, String),
}

/// What of an object a worker is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// Its own: it fetches what it lacks.
    Owned,
    /// In the place of the owner: it fetches too.
    StandIn,
    /// Only what lies on its disk.
    OnDisk,
}

/// Makes requests, each on a connection of the pool.
#[derive(Debug)]
pub(super) struct Transport {
    options: Options,
    pool: RwLock<Arc<Pool>>,
}

/// Kept-alive connections, one request in flight on each.
#[derive(Debug)]
struct Pool {
    client: Client<Connector, Empty<Bytes>>,
    /// What they were made with. Connections that show an old certificate take no new requests: those under way end on them,
    /// long before it expires.
    credentials: Option<Arc<Credentials>>,
}

impl Pool {
    fn new(options: &Options, credentials: Option<Arc<Credentials>>) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(options.idle_per_node)
            .build(Connector::new(&options.security, options.connect));
        Self { client, credentials }
    }
}

/// Idle connections are closed after this; shorter than the server's patience, so that a reused one is seldom closed already.
const IDLE: Duration = Duration::from_secs(30);
/// Longest line of text taken from an error.
const LINE: usize = 1024;

impl Transport {
    pub(super) fn new(options: &Options) -> Self {
        Self { options: options.clone(), pool: RwLock::new(Arc::new(Pool::new(options, None))) }
    }

    /// The pool whose connections show the newest certificate.
    fn pool(&self) -> Arc<Pool> {
        let pool = Arc::clone(&self.pool.read());
        let Security::Mutual(held) = &self.options.security else { return pool };
        // Without any, the connector says so.
        let Ok(credentials) = held.now() else { return pool };
        if pool.credentials.as_ref().is_some_and(|old| Arc::ptr_eq(old, &credentials)) {
            return pool;
        }
        // Two that come at the same time make two; the later one stays, the other lives as long as its request.
        let new = Arc::new(Pool::new(&self.options, Some(credentials)));
        *self.pool.write() = Arc::clone(&new);
        new
    }

    /// A range, compared with its checksum. A worker looks at what it gives only when it is told that it was bad.
    pub(super) async fn range(
        &self,
        address: SocketAddr,
        object: &ObjectRef<'_>,
        range: &Range<u64>,
        want: Want,
    ) -> Result<(Source, Bytes), Failure> {
        for check in ["", "&check=1"] {
            if let Some(got) = self.range_once(address, object, range, want, check).await? {
                return Ok(got);
            }
        }
        Err(Failure::Broken("sent bytes that do not match their checksum".to_owned()))
    }

    /// `None`: what came does not match its checksum.
    async fn range_once(
        &self,
        address: SocketAddr,
        object: &ObjectRef<'_>,
        range: &Range<u64>,
        want: Want,
        check: &str,
    ) -> Result<Option<(Source, Bytes)>, Failure> {
        let path = format!(
            "/v1/{}/objects/{}?snapshot={}&inode={}{}{check}",
            object.dataset_uid,
            object.key,
            object.snapshot,
            object.inode,
            match want {
                Want::Owned => "",
                Want::StandIn => "&standin=1",
                Want::OnDisk => "&disk=1",
            },
        );
        let (parts, body) = self.get(address, object.dataset_uid, &path, Some(range), StatusCode::PARTIAL_CONTENT).await?;
        let source = parts.headers.get(SOURCE_HEADER).and_then(|v| Source::parse(v.as_bytes()));
        let source = source.ok_or_else(|| Failure::Broken(format!("answered without {SOURCE_HEADER}")))?;
        let crc = crc_of(&parts);
        let mut got = Running::default();
        let bytes = self.exactly(body, range, |piece| got.add(piece)).await?;
        Ok(crc.is_none_or(|crc| crc == got.crc32c()).then_some((source, bytes)))
    }

    /// A chunk from the disk of a worker, and the CRC-32C it was written with.
    pub(super) async fn copy(
        &self,
        address: SocketAddr,
        dataset_uid: &str,
        key: &ObjectKey,
        range: &Range<u64>,
        fetch: Option<(&str, u64)>,
    ) -> Result<(Bytes, u32), Failure> {
        let fetch = fetch.map_or_else(String::new, |(snapshot, inode)| format!("?snapshot={snapshot}&inode={inode}"));
        let path = format!("/v1/{dataset_uid}/copies/{key}{fetch}");
        let (parts, body) = self.get(address, dataset_uid, &path, Some(range), StatusCode::PARTIAL_CONTENT).await?;
        let crc = crc_of(&parts).ok_or_else(|| Failure::Broken(format!("answered without {CRC_HEADER}")))?;
        Ok((self.exactly(body, range, |_| ()).await?, crc))
    }

    /// Whatever it answers, it answers.
    pub(super) async fn alive(&self, address: SocketAddr, dataset_uid: &str) -> bool {
        let path = format!("/v1/{dataset_uid}/alive");
        let answer = self.get(address, dataset_uid, &path, None, StatusCode::NO_CONTENT).await;
        !matches!(answer, Err(Failure::NoAnswer(_) | Failure::Broken(_)))
    }

    /// The whole body, if it is as long as the range; `each` is shown what has come.
    async fn exactly(&self, mut body: Incoming, range: &Range<u64>, mut each: impl FnMut(&[u8])) -> Result<Bytes, Failure> {
        let len = (range.end - range.start) as usize;
        let mut buffer = Buffer::new(len);
        let mut rest = buffer.as_mut();
        while let Some(piece) = self.next(&mut body).await? {
            let (into, behind) = rest
                .split_at_mut_checked(piece.len())
                .ok_or_else(|| Failure::Broken(format!("sent more than the {len} bytes asked for")))?;
            into.copy_from_slice(&piece);
            each(into);
            rest = behind;
        }
        match rest.len() {
            0 => Ok(buffer.freeze()),
            missing => Err(Failure::Broken(format!("sent {} of the {len} bytes asked for", len - missing))),
        }
    }

    pub(super) async fn get(
        &self,
        address: SocketAddr,
        dataset_uid: &str,
        path: &str,
        range: Option<&Range<u64>>,
        expected: StatusCode,
    ) -> Result<(http::response::Parts, Incoming), Failure> {
        let broken = |e: http::Error| Failure::Broken(format!("no request can be made: {e}"));
        let mut request = Request::get(worker_uri(dataset_uid, address, path).map_err(broken)?);
        if let Some(token) = self.options.tokens.get(dataset_uid) {
            request = request.header(MOUNT_TOKEN_HEADER, token);
        }
        if let Some(range) = range {
            request = request.header(header::RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        }
        let request = request.body(Empty::new()).map_err(broken)?;
        let silence = self.options.silence;
        let answer = match tokio::time::timeout(silence, self.pool().client.request(request)).await {
            Err(_) => return Err(Failure::NoAnswer(format!("silent for {silence:?}"))),
            Ok(Err(e)) => return Err(Failure::NoAnswer(causes::chain(&e))),
            Ok(Ok(answer)) => answer,
        };
        let (parts, mut body) = answer.into_parts();
        if parts.status == expected {
            return Ok((parts, body));
        }
        let mut text = Vec::new();
        while text.len() < LINE
            && let Ok(Some(piece)) = self.next(&mut body).await
        {
            text.extend_from_slice(&piece[..piece.len().min(LINE - text.len())]);
        }
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().next().unwrap_or_default().trim();
        Err(Failure::Status(parts.status, format!("{} {line}", parts.status.as_u16())))
    }

    /// The next piece of a body; bounded by the silence.
    pub(super) async fn next(&self, body: &mut Incoming) -> Result<Option<Bytes>, Failure> {
        loop {
            match tokio::time::timeout(self.options.silence, body.frame()).await {
                Err(_) => return Err(Failure::Broken(format!("fell silent for {:?}", self.options.silence))),
                Ok(None) => return Ok(None),
                Ok(Some(Err(e))) => return Err(Failure::Broken(format!("answer broke off: {}", causes::chain(&e)))),
                Ok(Some(Ok(frame))) => {
                    if let Ok(piece) = frame.into_data() {
                        return Ok(Some(piece));
                    }
                }
            }
        }
    }
}

fn crc_of(parts: &http::response::Parts) -> Option<u32> {
    u32::from_str_radix(parts.headers.get(CRC_HEADER)?.to_str().ok()?, 16).ok()
}
