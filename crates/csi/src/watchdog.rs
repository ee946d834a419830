//! Ends connections that nobody serves: a mount may be without a mounter for a while, and no reader may wait for ever.
//!
//! A connection whose mounter is dead waits for the next one, because the keeper and this process hold it. If requests wait in it
//! and no mounter serves it for as long as the limit, it is aborted: what waits fails, the mount gives ENOTCONN, and the next
//! publish makes a new superblock.

use crate::{mount, mounter::MounterError, node::Plugin};
use larder_fuse::{control, fdpass::FdPassError};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(2);
/// A mounter that serves says so in less than a millisecond; one that is short of CPU must not be taken for one that does not.
const PATIENCE: Duration = Duration::from_secs(5);

/// A mount is served when it was found so at so many looks in a row: a mounter that serves for a moment, before it dies of the same
/// request again, helps no reader.
const STEADY: u32 = 3;

/// A superblock: identity and minor number.
type Connection = (String, u32);

/// Since when requests wait in vain.
#[derive(Debug, Default)]
struct Waits(BTreeMap<Connection, Wait>);

#[derive(Debug)]
struct Wait {
    since: Instant,
    /// At the last looks in a row.
    served: u32,
}

impl Waits {
    /// `in_vain` are those in which requests wait and that nobody serves now. Which of them have been without a mounter for the
    /// limit?
    fn overdue(&mut self, in_vain: &BTreeSet<Connection>, now: Instant, limit: Duration) -> Vec<Connection> {
        for (connection, wait) in &mut self.0 {
            wait.served = if in_vain.contains(connection) { 0 } else { wait.served + 1 };
        }
        self.0.retain(|_, wait| wait.served < STEADY);
        for connection in in_vain {
            self.0.entry(connection.clone()).or_insert(Wait { since: now, served: 0 });
        }
        let overdue = self.0.iter().filter(|(c, wait)| in_vain.contains(*c) && now.duration_since(wait.since) >= limit);
        overdue.map(|(connection, _)| connection.clone()).collect()
    }
}

/// Never ends.
pub(crate) async fn watch(plugin: &Plugin, limit: Duration) {
    let mut waits = Waits::default();
    loop {
        tokio::time::sleep(LOOK.min(limit)).await;
        let in_vain = match in_vain(plugin).await {
            Ok(in_vain) => in_vain,
            Err(error) => {
                tracing::warn!(%error, "look for mounts that nobody serves");
                continue;
            }
        };
        for (identity, minor) in waits.overdue(&in_vain, Instant::now(), limit) {
            tracing::error!(identity, minor, ?limit, "no mounter serves this mount and readers wait; ending it for them");
            if let Err(error) = control::abort(minor) {
                tracing::error!(identity, %error, "end a mount that nobody serves");
            }
            plugin.metrics.aborted.inc();
        }
    }
}

/// Connections in which requests wait and that no mounter serves. An error: that is not known.
async fn in_vain(plugin: &Plugin) -> Result<BTreeSet<Connection>, WatchError> {
    let waiting: BTreeSet<Connection> = plugin.superblocks()?.into_iter().filter(|(_, minor)| is_waiting(*minor)).collect();
    if waiting.is_empty() {
        return Ok(waiting);
    }
    let served = match plugin.mounter.served(PATIENCE).await {
        Ok(served) => served,
        // Nobody listens, or who listens is stopped: both serve nothing.
        Err(MounterError::Away(FdPassError::Connect { .. }) | MounterError::Silent(_)) => BTreeSet::new(),
        Err(error) => return Err(error.into()),
    };
    Ok(waiting.into_iter().filter(|(identity, _)| !served.contains(identity)).collect())
}

#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Mount(#[from] mount::MountError),
    #[error(transparent)]
    Mounter(#[from] MounterError),
}

/// A connection of which nothing can be learnt is left alone.
fn is_waiting(minor: u32) -> bool {
    control::waiting(minor).inspect_err(|error| tracing::debug!(minor, %error, "requests of a connection")).is_ok_and(|n| n > 0)
}

impl Plugin {
    /// All superblocks there should be, as they are now.
    fn superblocks(&self) -> Result<BTreeSet<Connection>, mount::MountError> {
        let mut found = BTreeSet::new();
        for record in self.state.all() {
            if let Some(top) = mount::top(&self.layout.superblock(record.identity()))? {
                found.insert((record.identity().to_owned(), top.device.1));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_waits_in_vain_all_the_time_is_ended() {
        let (mut waits, start, limit) = (Waits::default(), Instant::now(), Duration::from_secs(10));
        let set = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), 7)).collect::<BTreeSet<_>>();
        let mut overdue = |names: &[&str], second| {
            let overdue = waits.overdue(&set(names), start + Duration::from_secs(second), limit);
            overdue.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(overdue(&["a", "b", "c"], 0), [""; 0]);
        assert_eq!(overdue(&["a"], 6), [""; 0]);
        assert_eq!(overdue(&["a", "c"], 8), [""; 0]);
        assert_eq!(overdue(&["a"], 9), [""; 0]);
        assert_eq!(overdue(&["a", "b"], 10), ["a"], "b was served at three looks in a row");
        assert_eq!(overdue(&["b", "c"], 11), ["c"], "c was so for a moment only");
        assert_eq!(overdue(&["b"], 19), [""; 0]);
        assert_eq!(overdue(&["b"], 20), ["b"]);
    }
}
