//! Asks workers for ranges and catalogs.

mod catalog;
mod copy;
mod down;
mod hedging;
mod http;
mod round;

pub use catalog::CatalogFetchError;
pub use copy::Copied;

use crate::{MAX_RANGE, ObjectRef, RosterSource, Source};
use bytes::{Bytes, BytesMut};
use down::Down;
use hedging::Hedging;
use http::Transport;
use larder_core::names::WORKER_DATA_PORT;
use larder_trust::{Security, Tokens};
use round::Round;
use std::{net::SocketAddr, ops::Range, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Waits and bounds of a client.
#[derive(Clone, Debug)]
pub struct Options {
    /// Data port of all workers. Default 7470.
    pub port: u16,
    /// Longest wait for a connection. Default 1 s.
    pub connect: Duration,
    /// Shortest wait for an answer before another node is asked too, for what is on its disk; longer when most answers take
    /// longer. Default 20 ms.
    pub hedge: Duration,
    /// How long a node may be silent before it is asked whether it is alive; after as long again it is stood in for. Default 1 s.
    pub quiet: Duration,
    /// Longest wait for the next byte of an answer of a node that is alive. Default 10 s.
    pub silence: Duration,
    /// Longest wait for a copy that a node has at hand; then whoever asks for it looks elsewhere. Default 5 s.
    pub copy: Duration,
    /// Longest time for a whole read, all attempts together. Default 60 s.
    pub whole: Duration,
    /// How long a node that did not answer is passed over; doubles up to 16 times this while it stays silent. Default 1 s.
    pub down: Duration,
    /// Idle connections kept per worker. Default 32: about what the FUSE threads and the preload of one node keep busy.
    pub idle_per_node: usize,
    /// With whose certificate workers are asked. Default: without any.
    pub security: Security,
    /// Mount tokens to show, for who is no worker. Default: none.
    pub tokens: Tokens,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            port: WORKER_DATA_PORT,
            connect: Duration::from_secs(1),
            hedge: Duration::from_millis(20),
            quiet: Duration::from_secs(1),
            silence: Duration::from_secs(10),
            copy: Duration::from_secs(5),
            whole: Duration::from_secs(60),
            down: Duration::from_secs(1),
            idle_per_node: 32,
            security: Security::Plain,
            tokens: Tokens::default(),
        }
    }
}

/// Bytes of an object, and who gave them.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Exactly the range that was asked for.
    pub bytes: Bytes,
    /// Whether the answering worker had them on its disk.
    pub source: Source,
    /// Node of the worker that answered.
    pub node: String,
    /// Was a second node asked for them too, because the first was late or silent? Both may have sent them.
    pub hedged: bool,
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The caller asked for more than one request may carry.
    #[error("read {key}: {len} bytes in one request; ask for at most {MAX_RANGE}")]
    TooLong {
        /// The object.
        key: String,
        /// Bytes asked for.
        len: u64,
    },
    /// The object at the origin is not the one in the snapshot any more, and no worker has the old bytes.
    #[error("read {key}: changed at the origin since the snapshot was taken ({detail}); take a new snapshot")]
    Changed {
        /// The object.
        key: String,
        /// What the worker said.
        detail: String,
    },
    /// The range is not inside the object: the caller's catalog and the worker's do not agree.
    #[error("read {key}: range {start}-{end} refused: {detail}")]
    Range {
        /// The object.
        key: String,
        /// First byte.
        start: u64,
        /// Behind the last byte.
        end: u64,
        /// What the worker said.
        detail: String,
    },
    /// This process may not read the dataset.
    #[error("read {key}: not allowed: {detail}")]
    Denied {
        /// The object.
        key: String,
        /// What the worker said.
        detail: String,
    },
    /// The origin does not let the workers read the object.
    #[error("read {key}: the origin denied it: {detail}")]
    OriginDenied {
        /// The object.
        key: String,
        /// What the worker said: the object's name, and the remedy.
        detail: String,
    },
    /// No member answered with the bytes in time.
    #[error("read {key}: no worker could serve it within {waited:?}; last answers: {last}")]
    Exhausted {
        /// The object.
        key: String,
        /// How long it was tried.
        waited: Duration,
        /// The last answer of each node that was asked.
        last: String,
    },
}

/// Asks workers; clones share connections and what is known about nodes that are down.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    node: String,
    options: Options,
    transport: Transport,
    down: Down,
    hedging: Hedging,
}

impl Inner {
    /// Does the node give any sign of life?
    async fn alive(&self, dataset_uid: &str, address: SocketAddr) -> bool {
        tokio::time::timeout(self.options.quiet, self.transport.alive(address, dataset_uid)).await.unwrap_or(false)
    }

    /// Ends when the node, asked for something now, has been silent and gives no sign of life.
    async fn dead(&self, dataset_uid: &str, address: SocketAddr) {
        tokio::time::sleep(self.options.quiet).await;
        if self.alive(dataset_uid, address).await {
            std::future::pending().await
        }
    }
}

/// Pause between rounds, doubled from the first to the second value.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// What the origin denies is asked for once more after this pause: its keys may be just being changed.
pub const DENIED_PAUSE: Duration = Duration::from_secs(1);

impl Client {
    /// A client on this node, with the default waits.
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self::with_options(node, Options::default())
    }

    /// A client on this node.
    #[must_use]
    pub fn with_options(node: &str, options: Options) -> Self {
        let transport = Transport::new(&options);
        let (down, hedging) = (Down::new(options.down), Hedging::new(options.hedge));
        Self { inner: Arc::new(Inner { node: node.to_owned(), options, transport, down, hedging }) }
    }

    /// Reads a range: the owner first, then the stand-ins in rendezvous order, again and again until the time is over. An answer
    /// that is late is looked for on the next node's disk too.
    ///
    /// # Errors
    /// See [`ReadError`]; each names the object.
    pub async fn read<R: RosterSource + ?Sized>(
        &self,
        rosters: &R,
        object: &ObjectRef<'_>,
        range: Range<u64>,
    ) -> Result<Fetched, ReadError> {
        self.read_until(rosters, object, range, Instant::now() + self.inner.options.whole).await
    }

    /// As [`Self::read`], until that time.
    ///
    /// # Errors
    /// See [`ReadError`]; each names the object.
    pub async fn read_until<R: RosterSource + ?Sized>(
        &self,
        rosters: &R,
        object: &ObjectRef<'_>,
        range: Range<u64>,
        deadline: Instant,
    ) -> Result<Fetched, ReadError> {
        let len = range.end.saturating_sub(range.start);
        if len == 0 {
            return Ok(Fetched { bytes: Bytes::new(), source: Source::Disk, node: self.inner.node.clone(), hedged: false });
        }
        if len > MAX_RANGE {
            return Err(ReadError::TooLong { key: object.key.to_string(), len });
        }
        let stripe = rosters.current().members.stripe_of(range.start);
        if range.end <= stripe.end {
            return self.read_stripe(rosters, object, range, deadline).await;
        }
        // Of several stripes, each is asked from its own owner.
        let mut read = Fetched { bytes: Bytes::new(), source: Source::Disk, node: String::new(), hedged: false };
        let mut bytes = BytesMut::with_capacity(usize::try_from(len).unwrap_or(0));
        let mut at = range.start;
        while at < range.end {
            let part = at..range.end.min(rosters.current().members.stripe_of(at).end);
            at = part.end;
            let Fetched { bytes: of_part, source, node, hedged } = self.read_stripe(rosters, object, part, deadline).await?;
            bytes.extend_from_slice(&of_part);
            // Named is who had to ask the origin, if anyone had.
            if read.node.is_empty() || source == Source::Origin {
                (read.source, read.node) = (source, node);
            }
            read.hedged |= hedged;
        }
        Ok(Fetched { bytes: bytes.freeze(), ..read })
    }

    async fn read_stripe<R: RosterSource + ?Sized>(
        &self,
        rosters: &R,
        object: &ObjectRef<'_>,
        range: Range<u64>,
        deadline: Instant,
    ) -> Result<Fetched, ReadError> {
        let started = Instant::now();
        let mut last = Vec::new();
        let (mut pause, mut denied) = (PAUSE.0, false);
        loop {
            let roster = rosters.current();
            let round = Round::new(&self.inner, &roster, object, &range, &mut last);
            match tokio::time::timeout_at(deadline, round.run()).await {
                Ok(Some(Err(ReadError::OriginDenied { .. }))) if !denied && Instant::now() + DENIED_PAUSE < deadline => {
                    denied = true;
                    tokio::time::sleep(DENIED_PAUSE).await;
                }
                Ok(Some(answer)) => return answer,
                Ok(None) if Instant::now() + pause < deadline => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
                Ok(None) | Err(_) => {
                    let last = if last.is_empty() { "the dataset has no members yet".to_owned() } else { last.join("; ") };
                    return Err(ReadError::Exhausted { key: object.key.to_string(), waited: started.elapsed(), last });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
