//! Failed requests → reasons, with a text that says what to do.

use super::{
    page::PageError,
    tries::{Again, Failure},
    wire::{Ending, Failing},
};
use crate::{Error, Reason, source::Resolved};
use http::StatusCode;
use object_store::client::HttpErrorKind;

/// What was being done.
#[derive(Clone, Copy)]
pub(super) enum Action<'a> {
    List,
    Read { key: &'a str },
}

impl Action<'_> {
    fn text(self, s: &Resolved) -> String {
        match self {
            Self::List => format!("list {} at {}", s.uri, s.endpoint_shown),
            Self::Read { key } => format!("read s3://{}/{key} at {}", s.bucket, s.endpoint_shown),
        }
    }
}

pub(super) fn changed(s: &Resolved, key: &str) -> Error {
    let what = Action::Read { key }.text(s);
    Error::new(Reason::Changed, format!("{what}: the object changed since the snapshot was taken; take a new snapshot"))
}

pub(super) fn odd(s: &Resolved, action: Action<'_>, text: &str) -> Error {
    Error::new(Reason::OriginFailed, format!("{}: the origin {text}; see its logs", action.text(s)))
}

/// `fallback` is used only for answers that object_store did not like.
pub(super) fn failure(s: &Resolved, action: Action<'_>, ending: &Option<Ending>, fallback: &object_store::Error) -> Failure {
    Failure { error: error(s, action, ending, fallback), again: again(action, ending) }
}

fn again(action: Action<'_>, ending: &Option<Ending>) -> Again {
    match ending {
        Some(Ending::Answer { status, code, retry_after, .. }) => match (meant(*status, code), code.as_str()) {
            (429 | 503, _) => Again::Slower(*retry_after),
            (_, code) if THROTTLING.contains(&code) => Again::Slower(*retry_after),
            (408 | 500.., _) | (_, "RequestTimeout" | "InternalError") => Again::Later,
            _ => Again::Never,
        },
        Some(Ending::NoPage(PageError::BrokenOff(_))) => Again::Later,
        Some(Ending::NoPage(_)) => Again::Never,
        Some(Ending::NoAnswer(_, Failing::Tls | Failing::Expired, _)) => Again::Never,
        Some(Ending::NoAnswer(_, Failing::Dns, _) | Ending::NoAnswer(HttpErrorKind::Connect, ..)) => Again::Soon,
        Some(Ending::NoAnswer(HttpErrorKind::Timeout, ..)) => Again::Slower(None),
        // Whoever that is, it speaks no S3.
        Some(Ending::NoAnswer(HttpErrorKind::Decode, ..)) if matches!(action, Action::List) => Again::Never,
        Some(Ending::NoAnswer(..)) | None => Again::Later,
    }
}

/// The status that goes with the code: some servers begin to answer before they know, and then send an error with status 200.
fn meant(status: StatusCode, code: &str) -> u16 {
    match code {
        _ if !status.is_success() => status.as_u16(),
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => 403,
        "InternalError" => 500,
        "ServiceUnavailable" | "SlowDown" => 503,
        _ => 400,
    }
}

const THROTTLING: [&str; 5] = ["SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"];

const SLOWER: &str = "Larder asks again, and less at once; ask for a higher request rate if this lasts";

fn error(s: &Resolved, action: Action<'_>, ending: &Option<Ending>, fallback: &object_store::Error) -> Error {
    let what = action.text(s);
    let e = |reason, text: String| Error::new(reason, format!("{what}: {text}"));
    match ending {
        Some(Ending::Answer { status, code, region, .. }) => answer(s, action, *status, code, region.as_deref()),
        Some(Ending::NoPage(PageError::NoToken)) => e(
            Reason::OriginFailed,
            "the origin says that there is more than it listed, and gives no continuation token to ask for the rest with: it does not know ListObjectsV2 (list-type=2); name a server or gateway that does in source.endpoint".into(),
        ),
        Some(Ending::NoPage(broken @ PageError::BrokenOff(_))) => {
            e(Reason::OriginUnreachable, format!("the answer is not whole ({broken}); see the origin's logs, and those of proxies before it"))
        }
        Some(Ending::NoPage(not_s3)) => {
            e(Reason::OriginFailed, format!("the answer is not S3's ({not_s3}); check that source.endpoint is an S3 endpoint"))
        }
        Some(Ending::NoAnswer(_, Failing::Dns, _)) => e(
            Reason::DnsFailed,
            "the endpoint's name has no address, or DNS does not answer; check source.endpoint and the cluster's DNS".into(),
        ),
        Some(Ending::NoAnswer(_, Failing::Expired, text)) => e(
            Reason::TlsExpired,
            format!("the endpoint's certificate is expired or not valid yet ({text}); renew it, or set the clock of this node"),
        ),
        Some(Ending::NoAnswer(_, Failing::Tls, text)) => e(
            Reason::TlsUntrusted,
            format!("the endpoint's certificate is not trusted ({text}); put its CA into the ConfigMap named in source.ca"),
        ),
        Some(Ending::NoAnswer(HttpErrorKind::Decode, _, text)) => {
            e(Reason::OriginFailed, format!("the answer is not S3's ({text}); check that source.endpoint is an S3 endpoint"))
        }
        Some(Ending::NoAnswer(kind, _, text)) => {
            let how = if *kind == HttpErrorKind::Timeout { "no answer in time" } else { "no connection" };
            e(Reason::OriginUnreachable, format!("{how} ({text}); check source.endpoint, network policies and the origin"))
        }
        None => e(Reason::OriginFailed, format!("{fallback}; see the origin's logs")),
    }
}

fn answer(s: &Resolved, action: Action<'_>, status: StatusCode, code: &str, region: Option<&str>) -> Error {
    let what = action.text(s);
    let said = if code.is_empty() { status.as_u16().to_string() } else { format!("{} {code}", status.as_u16()) };
    let e = |reason, remedy: &str| Error::new(reason, format!("{what}: the origin answered {said}; {remedy}"));
    match (meant(status, code), code) {
        (_, "NoSuchBucket") => e(
            Reason::BucketNotFound,
            &format!("bucket {} does not exist there; check source.uri and source.endpoint", s.bucket),
        ),
        (301 | 307, _) | (_, "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
            let remedy = region.map_or_else(
                || format!("it wants another region than {}; set source.region", s.region),
                |r| format!("the bucket is in region {r}; set source.region to it"),
            );
            e(Reason::WrongRegion, &remedy)
        }
        (_, "RequestTimeTooSkewed") => e(Reason::AccessDenied, "set the clock of this node"),
        (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken") => {
            e(Reason::AccessDenied, "correct the keys in the Secret named in source.credentials")
        }
        (401 | 403, _) => {
            let right = if matches!(action, Action::List) { "s3:ListBucket" } else { "s3:GetObject" };
            e(
                Reason::AccessDenied,
                &format!(
                    "give these credentials {right} on bucket {}, or correct the Secret named in source.credentials",
                    s.bucket
                ),
            )
        }
        (412, _) | (416, _) => match action {
            Action::Read { key } => changed(s, key),
            Action::List => e(Reason::OriginFailed, "see the origin's logs"),
        },
        (404, _) => match action {
            Action::Read { .. } => {
                e(Reason::ObjectNotFound, "the object is gone since the snapshot was taken; take a new snapshot")
            }
            Action::List => e(
                Reason::BucketNotFound,
                &format!("check that bucket {} exists and that source.endpoint is an S3 endpoint", s.bucket),
            ),
        },
        (429, _) => e(Reason::Throttled, SLOWER),
        (_, code) if THROTTLING.contains(&code) => e(Reason::Throttled, SLOWER),
        (500.., _) => e(Reason::OriginUnreachable, "Larder asks again by itself; see the origin's logs if this lasts"),
        _ => e(Reason::OriginFailed, "see the origin's logs"),
    }
}
