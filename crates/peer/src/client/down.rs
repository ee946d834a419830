//! Nodes that did not answer, so that not every read pays the connect timeout.

use parking_lot::Mutex;
use std::{collections::HashMap, net::SocketAddr, time::Duration};
use tokio::time::Instant;

/// Keyed by address: a worker that came back elsewhere is asked at once.
#[derive(Debug)]
pub(super) struct Down {
    first: Duration,
    nodes: Mutex<HashMap<SocketAddr, Strikes>>,
}

#[derive(Debug)]
struct Strikes {
    count: u32,
    until: Instant,
}

/// Addresses remembered; beyond it the memory starts anew (addresses of pods long gone are the bulk of it).
const REMEMBERED: usize = 4096;

impl Down {
    pub(super) fn new(first: Duration) -> Self {
        Self { first, nodes: Mutex::default() }
    }

    pub(super) fn is(&self, address: SocketAddr) -> bool {
        self.nodes.lock().get(&address).is_some_and(|s| Instant::now() < s.until)
    }

    pub(super) fn silent(&self, address: SocketAddr) {
        let mut nodes = self.nodes.lock();
        if nodes.len() >= REMEMBERED {
            nodes.clear();
        }
        let now = Instant::now();
        let strikes = nodes.entry(address).or_insert(Strikes { count: 0, until: now });
        // Many reads fail together; only one of them counts.
        if now >= strikes.until {
            strikes.until = now + self.first * (1 << strikes.count.min(4));
            strikes.count += 1;
        }
    }

    pub(super) fn answered(&self, address: SocketAddr) {
        self.nodes.lock().remove(&address);
    }
}
