//! How long the origin is waited for.

use std::time::Duration;

/// Waits of a request. All tries of one end within about a minute, unless bytes come; who wants them then decides anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Longest wait for a connection. Default 5 s: an unanswered SYN is sent again after 1 s and 3 s, so two may be lost.
    pub connect: Duration,
    /// Longest silence inside an answer. Default 20 s.
    pub silence: Duration,
    /// How long a request that fails is tried again, from its first try or from when bytes last came. Default 60 s.
    pub failing: Duration,
    /// The same while there is no address or no connection. Default 10 s: people should soon hear of a wrong endpoint.
    pub nobody_there: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            silence: Duration::from_secs(20),
            failing: Duration::from_secs(60),
            nobody_there: Duration::from_secs(10),
        }
    }
}
