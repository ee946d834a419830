//! An origin that exists only as a rule: as many objects as wished for, without a server and without memory for them.

use crate::{Error, Item, Origin};
use bytes::Bytes;
use futures::{
    StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use larder_core::catalog::Listed;
use std::ops::Range;

/// Objects listed from one place before it goes on at the next, as pages are.
const PAGE: u64 = 1000;

/// Objects in folders of equal size, with sizes, times and ETags that look real and are always the same.
#[derive(Clone, Debug)]
pub struct Synthetic {
    /// How many.
    pub files: u64,
    /// In each folder.
    pub per_folder: u64,
    /// Places from which the listing is given at the same time; 1: in the order of the names.
    pub streams: u64,
}

impl Synthetic {
    /// The object with this number.
    #[must_use]
    pub fn object(&self, number: u64) -> Listed {
        let folder = number / self.per_folder.max(1);
        let hash = mix(number);
        Listed {
            path: format!("train/n{folder:08}/sample_{number:09}.jpeg"),
            size: 10_000 + hash % 190_000,
            mtime_ns: 1_700_000_000_000_000_000 + (hash % 1_000_000_000_000).cast_signed(),
            version: format!("\"{hash:016x}{:016x}\"", mix(hash)),
        }
    }

    /// The number that comes at this place of the listing.
    fn number(&self, place: u64) -> u64 {
        let streams = self.streams.max(1);
        let share = self.files / streams / PAGE * PAGE;
        // The last ones, which fill no page of every stream, come in order.
        if place >= share * streams {
            return place;
        }
        let (page, in_page) = (place / PAGE, place % PAGE);
        page % streams * share + page / streams * PAGE + in_page
    }
}

fn mix(n: u64) -> u64 {
    let n = (n ^ n >> 30).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) ^ n >> 31
}

impl Origin for Synthetic {
    fn uri(&self) -> &str {
        "s3://synthetic/"
    }

    fn list(&self) -> BoxStream<'_, Result<Item, Error>> {
        stream::iter((0..self.files).map(|place| Ok(Item::File(self.object(self.number(place)))))).boxed()
    }

    fn read_range<'a>(&'a self, _: &'a str, _: &'a str, range: Range<u64>) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async move { Ok(Bytes::from(vec![0; (range.end - range.start) as usize])) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_object_comes_once_however_many_streams_there_are() {
        for (files, streams) in [(10, 1), (2500, 2), (10_000, 3), (9_999, 7)] {
            let origin = Synthetic { files, per_folder: 10, streams };
            let numbers: BTreeSet<u64> = (0..files).map(|place| origin.number(place)).collect();
            assert_eq!(numbers, (0..files).collect(), "{files} {streams}");
        }
    }
}
