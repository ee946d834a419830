//! The least of HTTP: one request, one answer. HTTP/1.0, so that every answer ends with the connection and is never chunked.

use std::io::{Read, Write};

use anyhow::{Context as _, Result};

/// Sends a request over a new connection; returns the answer's status and body.
///
/// # Errors
/// The connection broke, or the answer is none.
pub(crate) fn exchange(
    mut stream: impl Read + Write,
    method: &str,
    target: &str,
    content: &str,
    body: &str,
) -> Result<(u16, String)> {
    let head = format!(
        "{method} {target} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\nContent-Type: {content}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).context("write a request")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read an answer")?;
    let answer = String::from_utf8(answer).context("read an answer as text")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("find the end of the answer's head")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("find the answer's status")?;
    Ok((status, body.to_owned()))
}

/// A text as a part of a URL.
pub(crate) fn encoded(text: &str, keep_slash: bool) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            b'/' if keep_slash => "/".to_owned(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
