//! Answers range and catalog requests from what an [`ObjectSource`] has.

mod body;
mod connections;
mod range;

pub use connections::serve;

use crate::{CRC_HEADER, MAX_RANGE, SOURCE_HEADER, Source};
use axum::{
    Router,
    extract::{Path, Query, State},
    response::{AppendHeaders, IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use futures::stream::BoxStream;
use http::{HeaderMap, StatusCode, header};
use larder_core::{key::ObjectKey, names::is_digest};
use std::{fs::File, future::Future, io, ops::Range, sync::Arc};

/// What the server answers from: the worker.
pub trait ObjectSource: Send + Sync + 'static {
    /// The bytes of a range of an object. `request.range` is not empty and not longer than [`MAX_RANGE`]; that it lies
    /// inside the object MUST be checked here, against the catalog.
    fn object(&self, request: ObjectRequest) -> impl Future<Output = Result<ObjectReply, Refusal>> + Send;

    /// A chunk as it lies on the own disk. MUST NOT make anyone fetch it, nor wait for a fetch that may itself be waiting for
    /// a copy: two nodes would wait for each other. With `fetch`, the object's snapshot and inode, an owner fetches it first.
    fn copy(
        &self,
        dataset_uid: &str,
        key: ObjectKey,
        range: Range<u64>,
        fetch: Option<(String, u64)>,
    ) -> impl Future<Output = Result<CopyReply, Refusal>> + Send;

    /// The verified catalog file of a snapshot. `digest` is 64 hex digits.
    fn catalog(&self, dataset_uid: &str, digest: &str) -> impl Future<Output = Result<File, Refusal>> + Send;
}

/// What a peer asks for.
#[derive(Clone, Debug)]
pub struct ObjectRequest {
    /// UID of the dataset, as it came.
    pub dataset_uid: String,
    /// Digest of the snapshot.
    pub snapshot: String,
    /// Inode number: position in the catalog + 1.
    pub inode: u64,
    /// Name of the content.
    pub key: ObjectKey,
    /// Bytes of the object.
    pub range: Range<u64>,
    /// The owner did not answer: fetch from the origin in its place.
    pub stand_in: bool,
    /// Another node is asked for the same bytes: MUST NOT be fetched, only given if they are on the own disk.
    pub on_disk: bool,
    /// The bytes came and did not match their checksum: MUST be compared with it here before they are given, so that the disk's fault is
    /// found. Else whoever gets them compares them.
    pub check: bool,
}

/// The answer: exactly the bytes of the range.
#[derive(Debug)]
pub struct ObjectReply {
    /// Where they came from.
    pub source: Source,
    /// Bytes of the whole object.
    pub size: u64,
    /// CRC-32C of the range; `None`: its end is not here yet.
    pub crc32c: Option<u32>,
    /// The bytes.
    pub body: Body,
}

/// A chunk as it lies on a disk.
#[derive(Debug)]
pub struct CopyReply {
    /// Exactly the range.
    pub bytes: Bytes,
    /// CRC-32C that it was written with.
    pub crc32c: u32,
}

/// Bytes in the form in which they are at hand.
pub enum Body {
    /// In memory.
    Bytes(Bytes),
    /// In a file, at the same offsets as in the object.
    File(File),
    /// Piece by piece; an error breaks the connection off, which the client notices.
    Stream(BoxStream<'static, io::Result<Bytes>>),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bytes(_) => "Bytes",
            Self::File(_) => "File",
            Self::Stream(_) => "Stream",
        })
    }
}

/// Why an answer is not given; the text is one line for people and goes to the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Unknown dataset, snapshot or key; or not the owner and not on its disk.
    #[error("{0}")]
    NotFound(String),
    /// The object changed at the origin.
    #[error("{0}")]
    Changed(String),
    /// Not inside the object.
    #[error("the object has {size} bytes")]
    Range {
        /// Bytes of the object.
        size: u64,
    },
    /// The origin did not give the bytes.
    #[error("{0}")]
    Origin(String),
    /// The origin does not let this worker read the object, and will not before someone changes that.
    #[error("{0}")]
    OriginDenied(String),
    /// Not configured, or the own disk is full or broken.
    #[error("{0}")]
    Unavailable(String),
    /// Not yet: the origin is still being asked, or others are answered first. To be asked for here again, and nowhere else.
    #[error("{0}")]
    Later(String),
}

impl Refusal {
    /// The HTTP status that says it.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::NotFound(_) => 404,
            Self::Changed(_) => 409,
            Self::Range { .. } => 416,
            // Not 403: that is what this worker says to who may not ask it.
            Self::OriginDenied(_) => 424,
            Self::Origin(_) => 502,
            Self::Unavailable(_) => 503,
            Self::Later(_) => 504,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, one_line(&self.to_string())).into_response()
    }
}

fn one_line(text: &str) -> String {
    format!("{}\n", text.replace(['\n', '\r'], " "))
}

/// The routes of the data port.
pub fn router<S: ObjectSource>(source: Arc<S>) -> Router {
    Router::new()
        .route("/v1/{dataset}/objects/{key}", get(object::<S>))
        .route("/v1/{dataset}/copies/{key}", get(copy::<S>))
        .route("/v1/{dataset}/catalogs/{digest}", get(catalog::<S>))
        .route("/v1/{dataset}/alive", get(|| async { StatusCode::NO_CONTENT }))
        // Of a later release, or of nobody of ours.
        .fallback(|| async { (StatusCode::NOT_FOUND, "a worker of this release answers what begins with /v1/\n") })
        .with_state(source)
}

#[derive(serde::Deserialize)]
struct ObjectQuery {
    snapshot: String,
    inode: u64,
    #[serde(default)]
    standin: u8,
    #[serde(default)]
    disk: u8,
    #[serde(default)]
    check: u8,
}

async fn object<S: ObjectSource>(
    State(source): State<Arc<S>>,
    Path((dataset_uid, key)): Path<(String, String)>,
    Query(query): Query<ObjectQuery>,
    headers: HeaderMap,
) -> Response {
    let (key, range) = match asked(&key, &headers) {
        Ok(asked) => asked,
        Err(response) => return *response,
    };
    let len = range.end - range.start;
    let ObjectQuery { snapshot, inode, standin, disk, check } = query;
    let (stand_in, on_disk, check) = (standin == 1, disk == 1, check == 1);
    let request = ObjectRequest { dataset_uid, snapshot, inode, key, range: range.clone(), stand_in, on_disk, check };
    match source.object(request).await {
        Err(refusal) => refusal.into_response(),
        Ok(reply) => (
            StatusCode::PARTIAL_CONTENT,
            [
                (header::CONTENT_RANGE, format!("bytes {}-{}/{}", range.start, range.end - 1, reply.size)),
                (header::CONTENT_LENGTH, len.to_string()),
                (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
            ],
            [(SOURCE_HEADER, reply.source.as_str())],
            AppendHeaders(reply.crc32c.map(|crc| (CRC_HEADER, crc_text(crc)))),
            body::of(reply.body, range),
        )
            .into_response(),
    }
}

#[derive(serde::Deserialize)]
struct CopyQuery {
    snapshot: Option<String>,
    inode: Option<u64>,
}

async fn copy<S: ObjectSource>(
    State(source): State<Arc<S>>,
    Path((dataset_uid, key)): Path<(String, String)>,
    Query(query): Query<CopyQuery>,
    headers: HeaderMap,
) -> Response {
    let (key, range) = match asked(&key, &headers) {
        Ok(asked) => asked,
        Err(response) => return *response,
    };
    match source.copy(&dataset_uid, key, range.clone(), query.snapshot.zip(query.inode)).await {
        Err(refusal) => refusal.into_response(),
        Ok(copy) => (
            StatusCode::PARTIAL_CONTENT,
            [
                (header::CONTENT_RANGE, format!("bytes {}-{}/*", range.start, range.end - 1)),
                (header::CONTENT_LENGTH, (range.end - range.start).to_string()),
                (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
            ],
            [(CRC_HEADER, crc_text(copy.crc32c))],
            copy.bytes,
        )
            .into_response(),
    }
}

fn crc_text(crc: u32) -> String {
    format!("{crc:08x}")
}

/// The object and the range that a request is for.
fn asked(key: &str, headers: &HeaderMap) -> Result<(ObjectKey, Range<u64>), Box<Response>> {
    let key = ObjectKey::from_hex(key).ok_or_else(|| Box::new(bad("object keys are 64 lower-case hex digits")))?;
    let range = range::parse(headers.get(header::RANGE)).map_err(|text| Box::new(bad(text)))?;
    if range.end - range.start > MAX_RANGE {
        let text = format!("ask for at most {MAX_RANGE} bytes\n");
        return Err(Box::new((StatusCode::RANGE_NOT_SATISFIABLE, text).into_response()));
    }
    Ok((key, range))
}

async fn catalog<S: ObjectSource>(
    State(source): State<Arc<S>>,
    Path((dataset_uid, digest)): Path<(String, String)>,
) -> Response {
    if !is_digest(&digest) {
        return bad("digests are 64 lower-case hex digits");
    }
    let file = match source.catalog(&dataset_uid, &digest).await {
        Ok(file) => file,
        Err(refusal) => return refusal.into_response(),
    };
    match file.metadata() {
        Ok(meta) => {
            ([(header::CONTENT_LENGTH, meta.len().to_string())], body::of(Body::File(file), 0..meta.len())).into_response()
        }
        Err(e) => Refusal::Unavailable(format!("read catalog {digest}: {e}")).into_response(),
    }
}

fn bad(text: &str) -> Response {
    (StatusCode::BAD_REQUEST, one_line(text)).into_response()
}
