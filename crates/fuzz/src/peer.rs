use crate::block_on;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use larder_core::{checksum::crc32c, key::ObjectKey, names::is_digest};
use larder_peer::{Body, CRC_HEADER, CopyReply, MAX_RANGE, ObjectReply, ObjectRequest, ObjectSource, Refusal, Source, router};
use std::{fs::File, ops::Range, sync::Arc};
use tower::ServiceExt as _;

/// Bytes of the only object.
const SIZE: u64 = 1 << 20;

/// A request to the data port: path and query in the first line, a header in each that follows.
pub fn peer(data: &[u8]) {
    let mut lines = data.split(|b| *b == b'\n');
    let mut request = Request::get(lines.next().unwrap_or_default());
    for line in lines {
        let Some(colon) = line.iter().position(|b| *b == b':') else { continue };
        request = request.header(&line[..colon], &line[colon + 1..]);
    }
    // What is no request is refused by the HTTP library.
    let Ok(request) = request.body(String::new()) else { return };
    let router = router(Arc::new(Worker));
    block_on(async {
        let Ok(response) = router.oneshot(request).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        check(&Response::from_parts(parts, body));
    });
}

fn check(response: &Response<Bytes>) {
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap());
    match response.status() {
        StatusCode::PARTIAL_CONTENT => {
            let range = header(header::CONTENT_RANGE.as_str()).unwrap();
            let (first, last) = range.strip_prefix("bytes ").unwrap().split_once('/').unwrap().0.split_once('-').unwrap();
            let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
            assert_eq!(last + 1 - first, response.body().len() as u64);
            assert_eq!(header(CRC_HEADER).unwrap(), format!("{:08x}", crc32c(response.body())));
        }
        status => assert!(status.is_client_error() || status == StatusCode::NO_CONTENT, "{status}"),
    }
}

/// Has an object of zeros under every key, and no catalog.
struct Worker;

/// What a source may rely on.
fn bytes(range: &Range<u64>) -> Result<Bytes, Refusal> {
    assert!(range.start < range.end && range.end - range.start <= MAX_RANGE, "{range:?}");
    if range.end > SIZE {
        return Err(Refusal::Range { size: SIZE });
    }
    Ok(Bytes::from(vec![0; (range.end - range.start) as usize]))
}

impl ObjectSource for Worker {
    async fn object(&self, request: ObjectRequest) -> Result<ObjectReply, Refusal> {
        let bytes = bytes(&request.range)?;
        let crc32c = Some(crc32c(&bytes));
        Ok(ObjectReply { source: Source::Disk, size: SIZE, crc32c, body: Body::Bytes(bytes) })
    }

    async fn copy(&self, _: &str, _: ObjectKey, range: Range<u64>, _: Option<(String, u64)>) -> Result<CopyReply, Refusal> {
        let bytes = bytes(&range)?;
        Ok(CopyReply { crc32c: crc32c(&bytes), bytes })
    }

    async fn catalog(&self, _: &str, digest: &str) -> Result<File, Refusal> {
        assert!(is_digest(digest), "{digest:?}");
        Err(Refusal::NotFound("no\r\ncatalog".to_owned()))
    }
}
