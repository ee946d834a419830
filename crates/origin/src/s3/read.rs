//! Reads a range of an object, in as many tries as it takes; each goes on where the one before it broke off.

use super::version::Version;
use super::{
    S3,
    classify::{self, Action},
    tries::{Again, Failure, Tries},
    wire::Trace,
};
use crate::{Error, Reason};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use object_store::{GetOptions, GetRange, ObjectStore as _, path::Path};
use std::{ops::Range, time::Duration};
use tokio::time::Instant;

/// An answer that brings less than this within the time for silence is broken off: 3 KiB/s.
const TRICKLE: u64 = 64 << 10;

struct Wanted<'a> {
    location: Path,
    key: &'a str,
    version: Version<'a>,
    range: Range<u64>,
}

impl S3 {
    pub(super) async fn read(&self, path: &str, version: &str, range: Range<u64>) -> Result<Bytes, Error> {
        let key = format!("{}{path}", self.source.prefix);
        let location = Path::parse(&key)
            .ok()
            .filter(|p| p.as_ref() == key)
            .ok_or_else(|| Error::new(Reason::ObjectNotFound, format!("{key:?} cannot be asked for; take a new snapshot")))?;
        let mut got = BytesMut::with_capacity((range.end - range.start) as usize);
        let wanted = Wanted { location, key: &key, version: Version::new(version), range };
        let mut tries = Tries::new(&self.pace, self.patience);
        loop {
            let began = tries.begin().await;
            match self.attempt(&wanted, &mut got, &mut tries).await {
                Ok(began_after) => {
                    self.pace.answered(began, began_after);
                    return Ok(got.freeze());
                }
                Err(failure) => tries.again(began, failure).await?,
            }
        }
    }

    /// Adds what is missing. Gives the time after which the answer began.
    async fn attempt(&self, wanted: &Wanted<'_>, got: &mut BytesMut, tries: &mut Tries<'_>) -> Result<Duration, Failure> {
        let asked = Instant::now();
        let what = Action::Read { key: wanted.key };
        let odd = |text: &str| Failure { error: classify::odd(&self.source, what, text), again: Again::Later };
        let trace = Trace::default();
        let mut options = GetOptions {
            if_match: wanted.version.condition(),
            range: Some(GetRange::Bounded(wanted.range.start + got.len() as u64..wanted.range.end)),
            ..GetOptions::default()
        };
        options.extensions.insert(trace.clone());
        let failed = |e: &object_store::Error| classify::failure(&self.source, what, &trace.take(), e);
        let answer = self.store.get_opts(&wanted.location, options).await.map_err(|e| failed(&e))?;
        let began_after = asked.elapsed();
        // Not every server heeds If-Match.
        let Some(e_tag) = answer.meta.e_tag.as_deref().filter(|tag| !tag.is_empty()) else {
            let text = "sent no ETag with the object, so that a change could not be noticed; a proxy may have taken it away";
            return Err(Failure { error: classify::odd(&self.source, what, text), again: Again::Never });
        };
        if !wanted.version.is(e_tag, answer.meta.size, answer.meta.last_modified.timestamp()) {
            return Err(Failure { error: classify::changed(&self.source, wanted.key), again: Again::Never });
        }
        let (before, len) = (got.len(), (wanted.range.end - wanted.range.start) as usize);
        let mut body = answer.into_stream();
        let (mut looked, mut since) = (Instant::now(), 0);
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|e| failed(&e))?;
            if got.len() + piece.len() > len {
                // Who knows which of them are the right ones.
                got.truncate(before);
                return Err(odd("sent more bytes than asked for"));
            }
            got.extend_from_slice(&piece);
            tries.have(got.len() as u64);
            since += piece.len() as u64;
            if looked.elapsed() >= self.patience.silence {
                if since < TRICKLE && got.len() < len {
                    let Failure { error, .. } = odd("sends next to nothing");
                    return Err(Failure { error, again: Again::Slower(None) });
                }
                (looked, since) = (Instant::now(), 0);
            }
        }
        if got.len() < len { Err(odd("sent fewer bytes than asked for")) } else { Ok(began_after) }
    }
}
