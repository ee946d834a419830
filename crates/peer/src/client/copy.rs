//! Asks one worker for what lies on its disk.

use super::{Client, http::Failure};
use crate::Roster;
use bytes::Bytes;
use larder_core::key::ObjectKey;
use std::{net::SocketAddr, ops::Range};

/// A chunk from another node's disk.
#[derive(Clone, Debug)]
pub struct Copied {
    /// As many bytes as were asked for.
    pub bytes: Bytes,
    /// CRC-32C that the other node wrote them with; the caller MUST compare it: nobody has read them since.
    pub crc32c: u32,
}

impl Client {
    /// One chunk of an object, if it lies on the disk of `node`. Never makes that node fetch it, but with `fetch`, the object's
    /// snapshot and inode, if it is the owner. One attempt: whoever asks for a copy can have the bytes elsewhere, or ask again.
    pub async fn copy(
        &self,
        roster: &Roster,
        node: &str,
        dataset_uid: &str,
        key: &ObjectKey,
        range: &Range<u64>,
        fetch: Option<(&str, u64)>,
    ) -> Option<Copied> {
        let address = SocketAddr::new(*roster.addresses.get(node)?, self.inner.options.port);
        if self.inner.down.is(address) {
            return None;
        }
        // An owner that fetches answers in its own time, and says so before the silence is over.
        let whole = if fetch.is_some() { self.inner.options.silence * 2 } else { self.inner.options.copy };
        let answer = tokio::select! {
            answer = self.inner.transport.copy(address, dataset_uid, key, range, fetch) => answer,
            () = self.inner.dead(dataset_uid, address) => Err(Failure::NoAnswer("gave no sign of life".to_owned())),
            () = tokio::time::sleep(whole) => Err(Failure::Broken(format!("did not give it within {whole:?}"))),
        };
        let text = match answer {
            Ok((bytes, crc32c)) => {
                self.inner.down.answered(address);
                return Some(Copied { bytes, crc32c });
            }
            Err(Failure::NoAnswer(text)) => {
                self.inner.down.silent(address);
                text
            }
            Err(Failure::Status(_, text)) => {
                self.inner.down.answered(address);
                text
            }
            Err(Failure::Broken(text)) => text,
        };
        tracing::debug!(node, %key, "no copy: {text}");
        None
    }
}
