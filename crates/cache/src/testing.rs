//! What the tests of disks and of the cache share.

use crate::{Floor, Keep, Object};
use bytes::Bytes;
use larder_core::key::ObjectKey;
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Broken(pub &'static str);

pub(crate) const NO_FLOOR: Floor = Floor { percent: 0, at_least: 0 };

pub(crate) fn key(n: u64) -> ObjectKey {
    ObjectKey::new("s3://b/", &n.to_string(), "v", n)
}

pub(crate) fn own(n: u64, size: u64) -> Object {
    Object { key: key(n), size, keep: Keep::Own, in_part: false }
}

/// Bytes that differ from place to place.
pub(crate) fn content(range: Range<u64>) -> Bytes {
    range.map(|i| (i * 31 + (i >> 8) * 7 + (i >> 20)) as u8).collect()
}

pub(crate) type Fetched = futures::future::BoxFuture<'static, Result<Bytes, Broken>>;

pub(crate) fn counted(count: &Arc<AtomicU64>) -> impl Fn(Range<u64>) -> Fetched + Clone + Send + Sync + 'static {
    let count = Arc::clone(count);
    move |range| {
        let count = Arc::clone(&count);
        Box::pin(async move {
            count.fetch_add(range.end - range.start, SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(content(range))
        })
    }
}

pub(crate) fn never(_: Range<u64>) -> Fetched {
    Box::pin(async { panic!("nothing is to be fetched") })
}
