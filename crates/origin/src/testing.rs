//! An S3 server inside the process: one bucket in memory, pages of any size, faults on demand, everything counted.
//!
//! It checks which access key signed, not the signature.

pub mod synthetic;

use axum::{
    Router,
    body::Body,
    extract::State,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures::{StreamExt as _, stream, stream::BoxStream};
use http::{HeaderMap, Method, StatusCode, Uri, header};
use parking_lot::Mutex;
use quick_xml::escape::escape;
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

/// The bucket's name.
pub const BUCKET: &str = "data";
/// The access key that is let in; any secret goes with it.
pub const ACCESS_KEY: &str = "larder";

/// What goes wrong; each fault holds until it is changed.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Answer every request with this status and code.
    pub refuse: Option<(u16, &'static str)>,
    /// What happens to the next requests for objects, one after the other.
    pub gets: VecDeque<Fault>,
    /// What happens to every request for one of these objects.
    pub keys: BTreeMap<String, Fault>,
    /// Answer 503 to requests for objects while so many others are under way, with this Retry-After.
    pub at_most: Option<(u64, Option<u32>)>,
    /// Wait before each answer with an object.
    pub delay: Duration,
    /// Ignore If-Match, as some servers do.
    pub ignore_if_match: bool,
    /// What ETags look like.
    pub e_tags: ETags,
    /// Wait before each answer with a page of a listing.
    pub list_delay: Duration,
    /// Ignore start-after, as some servers do.
    pub ignore_start_after: bool,
    /// Give the same continuation token with every page.
    pub repeat_token: bool,
    /// Give the first page again and again, each time with another token.
    pub repeat_page: bool,
    /// What the next requests for pages are answered with, one after the other, as if all were well.
    pub pages: VecDeque<String>,
}

/// What ETags look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ETags {
    /// Strong, everywhere.
    #[default]
    Strong,
    /// Weak everywhere, so that If-Match never holds.
    Weak,
    /// Strong in listings, weak in answers with objects.
    Weakened,
    /// There are none in answers with objects.
    Missing,
}

/// What goes wrong with one request for an object.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answers with this status and code.
    Status(u16, &'static str),
    /// The same with this Retry-After, in seconds.
    StatusAndRetryAfter(u16, &'static str, u32),
    /// Breaks the body off half-way.
    Cut,
    /// Sends half of the body, as if that were all.
    Short,
    /// Sends a byte too many.
    Long,
    /// Sends the bytes after those that were asked for.
    Elsewhere,
    /// Sends the whole object, whatever was asked for.
    Whole,
    /// Sends half of the body and then nothing more, without an end.
    Stall,
    /// Sends a byte in so much time.
    Trickle(Duration),
}

/// What was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Requests for objects.
    pub gets: u64,
    /// Requests for pages of listings.
    pub lists: u64,
    /// Most of them at the same time.
    pub parallel_lists: u64,
    /// Body bytes of objects sent.
    pub bytes: u64,
    /// Most requests for objects at the same time.
    pub parallel: u64,
    /// Requests for objects that were refused, because there were too many.
    pub throttled: u64,
}

#[derive(Default)]
struct Shared {
    objects: BTreeMap<String, (Bytes, String)>,
    faults: Faults,
    seen: Seen,
    running: u64,
    writes: u64,
    listing: u64,
}

/// A running server; it ends when this is dropped.
pub struct FakeS3 {
    address: SocketAddr,
    page: usize,
    shared: Arc<Mutex<Shared>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for FakeS3 {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeS3 {
    /// Starts on a free port of the loopback, with pages of 1000 keys.
    ///
    /// # Panics
    /// When there is no port.
    pub async fn start() -> Self {
        Self::with_pages_of(1000).await
    }

    /// The same with another page size.
    ///
    /// # Panics
    /// When there is no port.
    pub async fn with_pages_of(page: usize) -> Self {
        Self::on(Ipv4Addr::LOCALHOST.into(), page).await
    }

    /// The same on another address of this machine.
    ///
    /// # Panics
    /// When there is no port.
    #[expect(clippy::expect_used, reason = "a test cannot go on without it")]
    pub async fn on(address: IpAddr, page: usize) -> Self {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let listener = tokio::net::TcpListener::bind((address, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let app = Router::new().fallback(answer).with_state((Arc::clone(&shared), page));
        let task = tokio::spawn(async move {
            if let Err(e) = axum::serve(listener, app).await {
                tracing::error!(error = %e, "fake S3 ended");
            }
        });
        Self { address, page, shared, task }
    }

    /// `http://address:port`
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Keys per page.
    #[must_use]
    pub fn page(&self) -> usize {
        self.page
    }

    /// Writes an object; each write gives it a new ETag.
    pub fn put(&self, key: &str, bytes: impl Into<Bytes>) {
        let mut s = self.shared.lock();
        s.writes += 1;
        let e_tag = format!("\"e{}\"", s.writes);
        s.objects.insert(key.to_owned(), (bytes.into(), e_tag));
    }

    /// Removes an object.
    pub fn delete(&self, key: &str) {
        self.shared.lock().objects.remove(key);
    }

    /// Changes what goes wrong.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.shared.lock().faults);
    }

    /// What was asked so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.shared.lock().seen.clone()
    }
}

async fn answer(
    State((shared, page)): State<(Arc<Mutex<Shared>>, usize)>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    if method != Method::GET {
        return error(405, "MethodNotAllowed");
    }
    if let Some((status, code)) = shared.lock().faults.refuse {
        return error(status, code);
    }
    let signer = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    if signer.is_some_and(|s| !s.contains(&format!("Credential={ACCESS_KEY}/"))) {
        return error(403, "InvalidAccessKeyId");
    }
    let path = decode(uri.path().trim_start_matches('/'));
    let (bucket, key) = path.split_once('/').unwrap_or((&path, ""));
    if bucket != BUCKET {
        return error(404, "NoSuchBucket");
    }
    if key.is_empty() {
        let query: BTreeMap<String, String> = uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|p| p.split_once('='))
            .map(|(k, v)| (k.to_owned(), decode(&v.replace('+', " "))))
            .collect();
        // The others get their turn: what is asked for at the same time is seen.
        let delay = {
            let mut s = shared.lock();
            s.listing += 1;
            s.seen.parallel_lists = s.seen.parallel_lists.max(s.listing);
            s.seen.lists += 1;
            s.faults.list_delay
        };
        tokio::time::sleep(delay).await;
        shared.lock().listing -= 1;
        let text = shared.lock().faults.pages.pop_front();
        if let Some(text) = text {
            return text.into_response();
        }
        return list(&shared, page, &query);
    }
    object(&shared, key, &headers).await
}

fn list(shared: &Mutex<Shared>, page: usize, query: &BTreeMap<String, String>) -> Response {
    let s = shared.lock();
    let prefix = query.get("prefix").map_or("", String::as_str);
    let after = query.get("continuation-token").or(query.get("start-after").filter(|_| !s.faults.ignore_start_after));
    let after = after.filter(|_| !s.faults.repeat_page);
    let folder = |key: &str| {
        let at = prefix.len() + key.get(prefix.len()..)?.find('/')? + 1;
        query.contains_key("delimiter").then(|| key[..at].to_owned())
    };
    let from = after.map_or(Bound::Unbounded, |a| Bound::Excluded(a.clone()));
    let within = s.objects.range((from, Bound::Unbounded)).filter(|(k, _)| k.starts_with(prefix));
    // A folder that was told ends the page before it as its token: nothing more of it is told.
    let mut rest = within.filter(|(k, _)| folder(k).is_none_or(|f| after.is_none_or(|a| *a != f))).peekable();
    let (mut contents, mut last, mut count) = (String::new(), String::new(), 0);
    while count < page
        && let Some((key, (bytes, e_tag))) = rest.next()
    {
        count += 1;
        last.clone_from(key);
        if let Some(folder) = folder(key) {
            while rest.next_if(|(k, _)| k.starts_with(&folder)).is_some() {}
            contents.push_str(&format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escape(folder.as_str())));
            last = folder;
            continue;
        }
        contents.push_str(&format!(
            "<Contents><Key>{}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>{}</ETag><Size>{}</Size></Contents>",
            escape(key.as_str()),
            escape(if s.faults.e_tags == ETags::Weak { format!("W/{e_tag}") } else { e_tag.clone() }),
            bytes.len()
        ));
    }
    if s.faults.repeat_token {
        last = "again".to_owned();
    }
    if s.faults.repeat_page {
        last = format!("page {}", s.seen.lists);
    }
    let token = if rest.peek().is_some() {
        format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{}</NextContinuationToken>", escape(last.as_str()))
    } else {
        "<IsTruncated>false</IsTruncated>".to_owned()
    };
    format!(r#"<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>{token}{contents}</ListBucketResult>"#).into_response()
}

async fn object(shared: &Arc<Mutex<Shared>>, key: &str, headers: &HeaderMap) -> Response {
    let (delay, fault) = {
        let mut s = shared.lock();
        s.seen.gets += 1;
        if let Some((most, retry_after)) = s.faults.at_most
            && s.running >= most
        {
            s.seen.throttled += 1;
            return refused(503, "SlowDown", retry_after);
        }
        s.running += 1;
        s.seen.parallel = s.seen.parallel.max(s.running);
        (s.faults.delay, s.faults.keys.get(key).cloned().or_else(|| s.faults.gets.pop_front()))
    };
    let running = Running(Arc::clone(shared));
    tokio::time::sleep(delay).await;
    match fault {
        Some(Fault::Status(status, code)) => return error(status, code),
        Some(Fault::StatusAndRetryAfter(status, code, seconds)) => return refused(status, code, Some(seconds)),
        _ => {}
    }
    let (ignore_if_match, e_tags, found) = {
        let s = shared.lock();
        (s.faults.ignore_if_match, s.faults.e_tags, s.objects.get(key).cloned())
    };
    let Some((bytes, e_tag)) = found else { return error(404, "NoSuchKey") };
    let if_match = headers.get(header::IF_MATCH).filter(|_| !ignore_if_match);
    if if_match.is_some_and(|v| v.as_bytes() != e_tag.as_bytes() || e_tags == ETags::Weak) {
        return error(412, "PreconditionFailed");
    }
    let range = headers.get(header::RANGE).and_then(|v| v.to_str().ok()?.strip_prefix("bytes=")?.split_once('-'));
    let range = range.and_then(|(a, b)| Some((a.parse().ok()?, b.parse::<usize>().ok()? + 1)));
    let (status, start, end) = match range.filter(|_| !matches!(fault, Some(Fault::Whole))) {
        None => (StatusCode::OK, 0, bytes.len()),
        Some((start, _)) if start >= bytes.len() => return error(416, "InvalidRange"),
        Some((start, end)) => (StatusCode::PARTIAL_CONTENT, start, end.min(bytes.len())),
    };
    let (start, end) = if matches!(fault, Some(Fault::Elsewhere)) { (end, end + (end - start)) } else { (start, end) };
    let (len, body) = body(shared, bytes.slice(start.min(bytes.len())..end.min(bytes.len())), fault.as_ref());
    // A request is under way until its body is sent.
    let body = body.map(move |piece| {
        let _ = &running;
        piece
    });
    let mut response = (
        status,
        [
            (header::CONTENT_RANGE, format!("bytes {start}-{}/{}", end.saturating_sub(1), bytes.len())),
            (header::CONTENT_LENGTH, len.to_string()),
            (header::LAST_MODIFIED, "Fri, 02 Jan 2026 03:04:05 GMT".to_owned()),
        ],
        Body::from_stream(body),
    )
        .into_response();
    let e_tag = match e_tags {
        ETags::Strong => Some(e_tag),
        ETags::Weak | ETags::Weakened => Some(format!("W/{e_tag}")),
        ETags::Missing => None,
    };
    if let Some(e_tag) = e_tag.and_then(|e_tag| e_tag.parse().ok()) {
        response.headers_mut().insert(header::ETAG, e_tag);
    }
    response
}

type Pieces = BoxStream<'static, Result<Bytes, io::Error>>;

/// What the head says about its length, and the body.
fn body(shared: &Mutex<Shared>, whole: Bytes, fault: Option<&Fault>) -> (usize, Pieces) {
    let (len, half) = (whole.len(), whole.slice(..whole.len() / 2));
    let pieces = |bytes: Bytes| stream::iter([Ok(bytes)]);
    let (sent, len, body): (usize, usize, Pieces) = match fault {
        Some(Fault::Cut) => {
            // The pause lets the first half out before the connection breaks.
            let broken = stream::once(async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Err(io::Error::other("cut off on purpose"))
            });
            (half.len(), len, pieces(half).chain(broken).boxed())
        }
        Some(Fault::Short) => (half.len(), half.len(), pieces(half).boxed()),
        Some(Fault::Long) => {
            let long: Bytes = whole.iter().copied().chain([0]).collect();
            (len + 1, len + 1, pieces(long).boxed())
        }
        Some(Fault::Stall) => (half.len(), len, pieces(half).chain(stream::pending()).boxed()),
        Some(Fault::Trickle(pause)) => {
            let pause = *pause;
            let bytes = stream::iter((0..len).map(move |i| whole.slice(i..i + 1)));
            let slow = bytes.then(move |byte| async move {
                tokio::time::sleep(pause).await;
                Ok(byte)
            });
            (0, len, slow.boxed())
        }
        _ => (len, len, pieces(whole).boxed()),
    };
    shared.lock().seen.bytes += sent as u64;
    (len, body)
}

fn refused(status: u16, code: &str, retry_after: Option<u32>) -> Response {
    let mut response = error(status, code);
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

struct Running(Arc<Mutex<Shared>>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
    }
}

fn error(status: u16, code: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let text = format!("<Error><Code>{code}</Code><Message>no</Message><StringToSign>never shown</StringToSign></Error>");
    (status, text).into_response()
}

fn decode(text: &str) -> String {
    let (mut out, mut bytes) = (Vec::new(), text.bytes());
    while let Some(b) = bytes.next() {
        let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16)).unwrap_or(0) as u8;
        out.push(if b == b'%' { digit(bytes.next()) << 4 | digit(bytes.next()) } else { b });
    }
    String::from_utf8_lossy(&out).into_owned()
}
