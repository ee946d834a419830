//! What clients asked of the origin, and how much it sent them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// One request, after its answer.
#[derive(Clone, Debug, Deserialize)]
pub struct Request {
    /// When the answer was complete: seconds since 1970.
    pub time: f64,
    /// The client's address.
    pub client: String,
    /// `GET`, `PUT`, ….
    pub method: String,
    /// Path and query as they were sent.
    pub uri: String,
    /// Status of the answer.
    pub status: u16,
    /// Bytes of the answer's body that were sent, even if the client left in the middle.
    pub body: u64,
    /// The `Range` header, or empty.
    pub range: String,
    /// The `User-Agent` header.
    pub agent: String,
    /// How long it took.
    pub seconds: f64,
}

/// What was read of one object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// Successful GET requests.
    pub requests: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
}

impl Request {
    /// Bucket and key, decoded; the key is empty for a request about the bucket, a listing for instance.
    pub fn object(&self) -> (String, String) {
        let path = self.uri.split('?').next().unwrap_or_default().trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        (decode(bucket), decode(key))
    }

    /// Whether it is a listing of a bucket.
    pub fn is_listing(&self) -> bool {
        self.method == "GET" && self.object().1.is_empty() && self.uri.contains("list-type")
    }

    /// What was read of each object of a bucket.
    pub fn reads<'a>(requests: impl IntoIterator<Item = &'a Self>, bucket: &str) -> BTreeMap<String, Reads> {
        let mut reads: BTreeMap<String, Reads> = BTreeMap::new();
        for request in requests.into_iter().filter(|request| request.method == "GET" && (200..300).contains(&request.status)) {
            let (of, key) = request.object();
            if of == bucket && !key.is_empty() {
                let entry = reads.entry(key).or_default();
                entry.requests += 1;
                entry.bytes += request.body;
            }
        }
        reads
    }
}

pub(super) fn read(log: &Path) -> Result<Vec<Request>> {
    let text = std::fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
    // The last line may be half written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).with_context(|| format!("parse `{line}`"))).collect()
}

/// Percent-decoding; `+` is a plus in a path.
fn decode(text: &str) -> String {
    let (bytes, mut decoded, mut at) = (text.as_bytes(), Vec::new(), 0);
    while let Some(byte) = bytes.get(at) {
        let hex = (*byte == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(value) => {
                decoded.push(value);
                at += 3;
            }
            None => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(uri: &str, status: u16, body: u64) -> Request {
        let (client, method, range, agent) = (String::new(), "GET".into(), String::new(), String::new());
        Request { time: 0.0, client, method, uri: uri.into(), status, body, range, agent, seconds: 0.0 }
    }

    #[test]
    fn reads_are_summed_by_decoded_key_and_errors_do_not_count() {
        let log = [
            get("/b/a%20b+%25.bin", 206, 5),
            get("/b/a%20b+%25.bin", 206, 7),
            get("/b/x", 404, 100),
            get("/b/?list-type=2", 200, 9),
        ];
        let reads = Request::reads(&log, "b");
        assert_eq!(reads.into_iter().collect::<Vec<_>>(), [("a b+%.bin".to_owned(), Reads { requests: 2, bytes: 12 })]);
        assert!(log[3].is_listing());
    }
}
