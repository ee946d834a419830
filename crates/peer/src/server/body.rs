//! Bodies that are sent piece by piece.

use super::Body;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use larder_io::buffers::Buffer;
use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _, sync::Arc};

/// Read from a file at once; two of them are in memory per answer.
const PIECE: u64 = 1 << 20;

pub(super) fn of(body: Body, range: Range<u64>) -> axum::body::Body {
    match body {
        Body::Bytes(bytes) => axum::body::Body::from(bytes),
        Body::Stream(stream) => axum::body::Body::from_stream(stream.inspect_err(log)),
        Body::File(file) => axum::body::Body::from_stream(file_pieces(file, range).inspect_err(log)),
    }
}

fn log(error: &io::Error) {
    // Handled by breaking the answer off: the client sees a short body and asks elsewhere.
    tracing::warn!(%error, "answer to a peer broke off");
}

fn file_pieces(file: File, range: Range<u64>) -> impl futures::Stream<Item = io::Result<Bytes>> + Send + 'static {
    let file = Arc::new(file);
    let Range { start, end } = range;
    let starts = (start..end).step_by(PIECE as usize);
    stream::iter(starts)
        .map(move |at| {
            let file = Arc::clone(&file);
            let len = (end - at).min(PIECE) as usize;
            async move {
                let read = tokio::task::spawn_blocking(move || {
                    let mut buffer = Buffer::new(len);
                    file.read_exact_at(buffer.as_mut(), at).map(|()| buffer.freeze())
                });
                read.await.unwrap_or_else(|e| Err(io::Error::other(e)))
            }
        })
        .buffered(2)
}
