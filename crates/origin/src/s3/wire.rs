//! Between object_store and its HTTP client: counts bytes, keeps what a failed request said, reads listing pages.

use super::page::{self, PageError};
use crate::Received;
use bytes::Bytes;
use http::{StatusCode, header::HeaderMap};
use http_body_util::BodyExt as _;
use object_store::{
    ClientOptions,
    client::{HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector},
};
use parking_lot::Mutex;
use std::{pin::Pin, sync::Arc, time::Duration};

/// What the last failed attempt of one request ended with. Travels with the request, because object_store keeps its own
/// error types to itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Trace(Arc<Mutex<Option<Ending>>>);

#[derive(Debug)]
pub(super) enum Ending {
    /// The origin answered with an error.
    Answer { status: StatusCode, code: String, region: Option<String>, retry_after: Option<Duration> },
    /// It answered that all is well, and sent no page.
    NoPage(PageError),
    /// There was no answer, or it broke off.
    NoAnswer(HttpErrorKind, Failing, String),
}

/// Which part of a connection failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failing {
    Dns,
    Tls,
    /// TLS too, but another CA would not help.
    Expired,
    Other,
}

impl Trace {
    pub fn take(&self) -> Option<Ending> {
        self.0.lock().take()
    }

    fn set(&self, ending: Ending) {
        *self.0.lock() = Some(ending);
    }

    fn failed(&self, error: &HttpError) {
        let (failing, text) = look(error);
        self.set(Ending::NoAnswer(error.kind(), failing, text));
    }

    /// The time for a connection covers looking the name up. So when it is over nobody has said which of both took it.
    async fn failed_to_reach(&self, error: &HttpError, host: &str) {
        let (mut failing, text) = look(error);
        if failing == Failing::Other && error.kind() == HttpErrorKind::Timeout && !has_address(host).await {
            failing = Failing::Dns;
        }
        self.set(Ending::NoAnswer(error.kind(), failing, text));
    }
}

/// Whether DNS knows the name, and says so in reasonable time.
async fn has_address(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    let lookup = tokio::time::timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((host, 0)));
    lookup.await.is_ok_and(|answer| answer.is_ok_and(|mut addresses| addresses.next().is_some()))
}

/// A name server that is well answers in milliseconds.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);

/// Longest answer that is held in memory whole: a page of 1000 keys of 1 KiB, escaped at its worst, with room.
const ANSWER: usize = 16 << 20;

#[derive(Debug)]
pub(super) struct Connector {
    received: Arc<Received>,
}

impl Connector {
    pub fn new(received: Arc<Received>) -> Self {
        Self { received }
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Service { inner, received: Arc::clone(&self.received) }))
    }
}

#[derive(Debug)]
struct Service {
    inner: HttpClient,
    received: Arc<Received>,
}

impl HttpService for Service {
    // Written as async_trait would.
    fn call<'s, 'f>(
        &'s self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(self.exchange(request))
    }
}

impl Service {
    async fn exchange(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let trace = request.extensions().get::<Trace>().cloned().unwrap_or_default();
        let listing = request.uri().query().is_some_and(|q| q.split('&').any(|p| p == "list-type=2"));
        let host = request.uri().host().unwrap_or_default().to_owned();
        let response = match self.inner.execute(request).await {
            Ok(response) => response,
            Err(error) => {
                trace.failed_to_reach(&error, &host).await;
                return Err(error);
            }
        };
        let status = response.status();
        if !status.is_success() {
            return self.refused(response, &trace).await;
        }
        if listing {
            return self.page(response, &trace).await;
        }
        let (parts, body) = response.into_parts();
        let received = Arc::clone(&self.received);
        let counted = body.map_frame(move |frame| {
            received.add_objects(frame.data_ref().map_or(0, |d| d.len() as u64));
            frame
        });
        let traced = counted.map_err(move |e| {
            trace.failed(&e);
            e
        });
        Ok(HttpResponse::from_parts(parts, object_store::client::HttpResponseBody::new(traced)))
    }

    async fn page(&self, response: HttpResponse, trace: &Trace) -> Result<HttpResponse, HttpError> {
        let (mut parts, body) = response.into_parts();
        let xml = self.whole(body).await.inspect_err(|e| trace.failed(e))?;
        let (page, rest) = match page::parse(&xml) {
            Ok(page) => page,
            Err(e) => {
                let (region, retry_after) = (region(&parts.headers), retry_after(&parts.headers));
                trace.set(match e {
                    PageError::Refused(code) => Ending::Answer { status: parts.status, code, region, retry_after },
                    e => Ending::NoPage(e),
                });
                // For object_store it is a refusal; what it was is in the trace.
                parts.status = StatusCode::BAD_REQUEST;
                return Ok(HttpResponse::from_parts(parts, Bytes::new().into()));
            }
        };
        parts.extensions.insert(page);
        // They describe the body that was read here.
        parts.headers.remove(http::header::CONTENT_LENGTH);
        Ok(HttpResponse::from_parts(parts, rest.into()))
    }

    async fn refused(&self, response: HttpResponse, trace: &Trace) -> Result<HttpResponse, HttpError> {
        let (parts, body) = response.into_parts();
        let text = self.whole(body).await.unwrap_or_default();
        let (code, region, retry_after) = (page::code(&text), region(&parts.headers), retry_after(&parts.headers));
        trace.set(Ending::Answer { status: parts.status, code, region, retry_after });
        Ok(HttpResponse::from_parts(parts, Bytes::new().into()))
    }

    async fn whole(&self, mut body: object_store::client::HttpResponseBody) -> Result<Vec<u8>, HttpError> {
        let mut whole = Vec::new();
        while let Some(frame) = body.frame().await {
            if let Some(data) = frame?.data_ref() {
                self.received.add_listings(data.len() as u64);
                if whole.len() + data.len() > ANSWER {
                    let text = format!("the answer is longer than {ANSWER} bytes");
                    return Err(HttpError::new(HttpErrorKind::Decode, std::io::Error::other(text)));
                }
                whole.extend_from_slice(data);
            }
        }
        Ok(whole)
    }
}

fn region(headers: &HeaderMap) -> Option<String> {
    headers.get("x-amz-bucket-region")?.to_str().ok().map(str::to_owned)
}

/// Seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?;
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().relaxed_weekday(true).parse_timestamp(text).ok()?;
    Some(Duration::try_from(date.duration_since(jiff::Timestamp::now())).unwrap_or_default())
}

/// Follows the chain of causes down to what failed; its last text says most.
fn look(error: &HttpError) -> (Failing, String) {
    let mut failing = Failing::Other;
    let mut text = error.to_string();
    let mut next: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(cause) = next {
        text = cause.to_string();
        if let Some(tls) = look_at_tls(cause) {
            failing = tls;
        } else if text.starts_with("dns error") || text.contains("failed to lookup address information") {
            failing = Failing::Dns;
        }
        next = cause.source();
    }
    (failing, text)
}

/// io::Error leaves what it wraps out of its chain of causes, also when it wraps another one.
fn look_at_tls(mut cause: &(dyn std::error::Error + 'static)) -> Option<Failing> {
    use rustls::CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    while let Some(inner) = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        cause = inner;
    }
    match cause.downcast_ref()? {
        rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }) => {
            Some(Failing::Expired)
        }
        rustls::Error::InvalidCertificate(_) | rustls::Error::InvalidCertRevocationList(_) => Some(Failing::Tls),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_come_again_is_seconds_or_a_date() {
        let of = |text: &str| {
            let headers = HeaderMap::from_iter([(http::header::RETRY_AFTER, text.parse().unwrap())]);
            retry_after(&headers)
        };
        assert_eq!(of("7"), Some(Duration::from_secs(7)));
        assert_eq!(of("Fri, 02 Jan 2026 03:04:05 GMT"), Some(Duration::ZERO), "long ago");
        let later = of("Thu, 02 Jan 2099 03:04:05 GMT").unwrap();
        assert!(later > Duration::from_secs(86400), "{later:?}");
        assert_eq!(of("soon"), None);
    }

    #[tokio::test]
    async fn names_that_dns_does_not_know_have_no_address() {
        for (host, expected) in
            [("localhost", true), ("127.0.0.1", true), ("[::1]", true), ("no-such-host.invalid", false), ("", false)]
        {
            assert_eq!(has_address(host).await, expected, "{host}");
        }
    }
}
