//! Ends connections that nobody serves: a mount may be without a mounter for a while, and no reader may wait for ever.
//!
//! A connection whose mounter is dead waits for the next one, because the keeper and this process hold it. If requests wait in it
//! and no mounter serves it for as long as the limit, it is aborted: what waits fails, the mount gives ENOTCONN, and the next
//! publish makes a new superblock.

use crate::{mount, node::Plugin};
use larder_fuse::control;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(2);
/// A mounter that serves says so in less than a millisecond.
const PATIENCE: Duration = Duration::from_secs(1);

/// Since when requests wait in vain, by identity.
#[derive(Debug, Default)]
struct Waits(BTreeMap<String, Instant>);

impl Waits {
    /// Which of those that wait in vain now have done so for the limit.
    fn overdue(&mut self, in_vain: &BTreeSet<String>, now: Instant, limit: Duration) -> Vec<String> {
        self.0.retain(|identity, _| in_vain.contains(identity));
        for identity in in_vain {
            self.0.entry(identity.clone()).or_insert(now);
        }
        self.0.iter().filter(|(_, since)| now.duration_since(**since) >= limit).map(|(identity, _)| identity.clone()).collect()
    }
}

/// Never ends.
pub(crate) async fn watch(plugin: &Plugin, limit: Duration) {
    let mut waits = Waits::default();
    loop {
        tokio::time::sleep(LOOK.min(limit)).await;
        let minors = match plugin.superblocks() {
            Ok(minors) => minors,
            Err(error) => {
                tracing::warn!(%error, "look for mounts that nobody serves");
                continue;
            }
        };
        let waiting: BTreeSet<String> =
            minors.iter().filter(|(_, minor)| is_waiting(**minor)).map(|(i, _)| i.clone()).collect();
        if waiting.is_empty() && waits.0.is_empty() {
            continue;
        }
        // A mounter that does not answer serves nothing.
        let served = plugin.mounter.served(PATIENCE).await.unwrap_or_default();
        let in_vain = &waiting - &served;
        for identity in waits.overdue(&in_vain, Instant::now(), limit) {
            tracing::error!(identity, ?limit, "no mounter serves this mount and readers wait; ending it for them");
            if let Some(Err(error)) = minors.get(&identity).map(|minor| control::abort(*minor)) {
                tracing::error!(identity, %error, "end a mount that nobody serves");
            }
            plugin.metrics.aborted.inc();
        }
    }
}

/// A connection of which nothing can be learnt is left alone.
fn is_waiting(minor: u32) -> bool {
    control::waiting(minor).inspect_err(|error| tracing::debug!(minor, %error, "requests of a connection")).is_ok_and(|n| n > 0)
}

impl Plugin {
    /// The minor numbers of all superblocks there should be.
    fn superblocks(&self) -> Result<BTreeMap<String, u32>, mount::MountError> {
        let mut minors = BTreeMap::new();
        for record in self.state.all() {
            if let Some(top) = mount::top(&self.layout.superblock(record.identity()))? {
                minors.insert(record.identity().to_owned(), top.device.1);
            }
        }
        Ok(minors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_waits_in_vain_all_the_time_is_ended() {
        let (mut waits, start, limit) = (Waits::default(), Instant::now(), Duration::from_secs(10));
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(waits.overdue(&set(&["a", "b"]), at(0), limit), [""; 0]);
        assert_eq!(waits.overdue(&set(&["a"]), at(6), limit), [""; 0]);
        assert_eq!(waits.overdue(&set(&["a", "b"]), at(10), limit), ["a"]);
        assert_eq!(waits.overdue(&set(&["b"]), at(15), limit), [""; 0], "it was served in between");
        assert_eq!(waits.overdue(&set(&["b"]), at(20), limit), ["b"]);
    }
}
