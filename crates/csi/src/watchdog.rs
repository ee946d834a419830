//! Ends connections that nobody serves: a mount may be without a mounter for a while, and no reader may wait for ever.
//!
//! A connection whose mounter is dead waits for the next one, because the keeper and this process hold it. If requests wait in it
//! and no mounter serves it for as long as the limit, it is aborted: what waits fails, the mount gives ENOTCONN, and the next
//! publish makes a new superblock. Of that, and of mounts that ended because everybody who held them died, it tells in Events.

use crate::{
    mount,
    mounter::MounterError,
    node::Plugin,
    probe::{Device, Probe},
};
use larder_core::names;
use larder_fuse::{
    control::{self, ControlError},
    device::FS_TYPE,
    fdpass::FdPassError,
    mountinfo::Mount,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
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
/// A mount that has ended says so at once.
const DEAD: Duration = Duration::from_millis(500);

/// A superblock: identity and minor number.
pub(crate) type Connection = (String, u32);

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

/// The kernel may have a limit of its own (`fs.fuse.{default,max}_request_timeout`), after which it ends a connection without a
/// word, however near the next mounter is. This one comes before it.
fn before_the_kernel(limit: Duration, kernel: Option<Duration>) -> Duration {
    kernel.map_or(limit, |kernel| limit.min(kernel * 2 / 3))
}

fn kernel_limit() -> Option<Duration> {
    let seconds = |name: &str| -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/sys/fs/fuse/{name}_request_timeout")).ok()?;
        text.trim().parse().ok().filter(|seconds| *seconds > 0)
    };
    [seconds("default"), seconds("max")].into_iter().flatten().min().map(Duration::from_secs)
}

/// Never ends.
pub(crate) async fn watch(plugin: &Plugin, wanted: Duration) {
    let kernel = kernel_limit();
    let limit = before_the_kernel(wanted, kernel);
    if limit < wanted {
        tracing::warn!(?kernel, ?limit, ?wanted, "the kernel's limit for requests is short; readers wait less for a mounter");
    }
    let mut waits = Waits::default();
    loop {
        tokio::time::sleep(LOOK.min(limit)).await;
        plugin.state.catch_up();
        let unserved = match unserved(plugin).await {
            Ok(unserved) => unserved,
            Err(error) => {
                tracing::warn!(%error, "look for mounts that nobody serves");
                continue;
            }
        };
        plugin.ended.lock().retain(|connection| unserved.all.contains(connection));
        for connection in end(waits.overdue(&unserved.waiting, Instant::now(), limit), limit, control::abort) {
            if plugin.tell_ended(&connection, &format!("no mounter served it for {limit:?} while somebody read")) {
                plugin.metrics.aborted.inc();
            }
        }
        // One that is asked already says so when it has ended.
        for connection in unserved.idle.iter().filter(|connection| !plugin.prober.is_under_way(device(connection))) {
            plugin.tell_if_dead(connection).await;
        }
    }
}

/// Gives those that have been ended.
fn end(overdue: Vec<Connection>, limit: Duration, abort: impl Fn(u32) -> Result<(), ControlError>) -> Vec<Connection> {
    let mut ended = overdue;
    ended.retain(|(identity, minor)| {
        tracing::error!(identity, minor, ?limit, "no mounter serves this mount and readers wait; ending it for them");
        abort(*minor).inspect_err(|error| tracing::error!(identity, %error, "end a mount that nobody serves")).is_ok()
    });
    ended
}

/// FUSE has no device of its own: the major number is 0.
fn device((_, minor): &Connection) -> Device {
    (0, *minor)
}

/// Connections that no mounter serves.
struct Unserved {
    /// The others too.
    all: BTreeSet<Connection>,
    /// Requests wait in them.
    waiting: BTreeSet<Connection>,
    /// None do. Only of a mounter that is there: it serves what it can as soon as it has come.
    idle: BTreeSet<Connection>,
}

/// An error: that is not known.
async fn unserved(plugin: &Plugin) -> Result<Unserved, WatchError> {
    let all = plugin.superblocks()?;
    if all.is_empty() {
        return Ok(Unserved { waiting: BTreeSet::new(), idle: BTreeSet::new(), all });
    }
    let served = match plugin.mounter.served(PATIENCE).await {
        Ok(served) => Some(served),
        // Nobody listens, or who listens is stopped: both serve nothing.
        Err(MounterError::Away(FdPassError::Connect { .. }) | MounterError::Silent(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let unserved = all.iter().filter(|(identity, _)| !served.as_ref().is_some_and(|served| served.contains(identity)));
    let (waiting, idle): (_, BTreeSet<_>) = unserved.cloned().partition(|connection| plugin.has_readers(connection));
    Ok(Unserved { waiting, idle: if served.is_some() { idle } else { BTreeSet::new() }, all })
}

#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Mount(#[from] mount::MountError),
    #[error(transparent)]
    Mounter(#[from] MounterError),
}

/// The superblocks at their own places. What is elsewhere may be of another driver folder on this machine.
fn superblocks(table: &[Mount], folder: &Path) -> BTreeSet<Connection> {
    let places = table.iter().filter(|m| m.target.parent() == Some(folder));
    // The later of two is on top.
    let tops: BTreeMap<&Path, &Mount> = places.map(|m| (m.target.as_path(), m)).collect();
    let ours = tops.into_iter().filter(|(_, top)| top.fs_type == FS_TYPE);
    ours.filter_map(|(place, top)| Some((place.file_name()?.to_str()?.to_owned(), top.device.1))).collect()
}

impl Plugin {
    /// Does somebody wait in it, other than this process? A connection of which nothing can be learnt is left alone.
    fn has_readers(&self, connection: &Connection) -> bool {
        let (_, minor) = connection;
        let waiting = control::waiting(*minor).inspect_err(|error| tracing::debug!(minor, %error, "requests of a connection"));
        waiting.is_ok_and(|waiting| waiting > u64::from(self.prober.is_under_way(device(connection))))
    }

    /// All superblocks there are, also of records that cannot be read.
    fn superblocks(&self) -> Result<BTreeSet<Connection>, mount::MountError> {
        Ok(superblocks(&mount::table()?, &self.layout.superblocks()))
    }

    /// Tells of a mount that has ended while somebody can still know whose it was: its targets are about to go. The pod may have died of
    /// it, sooner than it was looked for.
    pub(crate) async fn tell_if_ended(&self, identity: &str) {
        let session = format!("{}{identity}/", names::HELD_SESSIONS);
        let unserved = match self.mounter.served(DEAD).await {
            Ok(served) => !served.contains(identity),
            // It may be on its way. What this process holds has not ended; what it does not hold is not the keeper's either.
            Err(_) => !self.held.keys().iter().any(|key| key.starts_with(&session)),
        };
        if unserved {
            let superblocks = self.superblocks();
            let superblocks =
                superblocks.inspect_err(|error| tracing::warn!(identity, %error, "look whether a mount has ended"));
            let superblocks = superblocks.unwrap_or_default();
            let connection = superblocks.iter().find(|connection| connection.0 == identity && !self.has_readers(connection));
            if let Some(connection) = connection {
                self.tell_if_dead(connection).await;
            }
        }
    }

    /// Nobody may be on the way who will serve it: the probe would wait in a mount that waits for its mounter.
    async fn tell_if_dead(&self, connection: &Connection) {
        let (identity, minor) = connection;
        if self.ended.lock().contains(connection) {
            return;
        }
        if let Probe::Dead = self.prober.probe(device(connection), &self.layout.superblock(identity), DEAD).await {
            tracing::error!(identity, minor, "this mount has ended");
            self.tell_ended(connection, "mounter, keeper and node plugin were gone at one moment, or the kernel ended it");
        }
    }

    /// Once, and says whether this was that time. In the background: the next mount is not to wait for the API server.
    fn tell_ended(&self, connection: &Connection, why: &str) -> bool {
        if !self.ended.lock().insert(connection.clone()) {
            return false;
        }
        let (identity, minor) = connection;
        // Nobody knows whose it was where no record can be read.
        let Some(record) = self.state.all().into_iter().find(|record| record.identity() == identity) else { return true };
        let table = mount::table().unwrap_or_default();
        let shows = |target: &&PathBuf| mount::top_in(&table, target).is_some_and(|top| top.device.1 == *minor);
        let pods: Vec<_> = record.targets.iter().filter(shows).filter_map(|target| record.pod_at(target).cloned()).collect();
        let (events, why) = (self.events.clone(), why.to_owned());
        tokio::spawn(async move { events.mount_ended(&record, &pods, &why).await });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_mount_that_could_not_be_ended_has_not_ended() {
        let overdue = vec![("a".to_owned(), 1), ("b".to_owned(), 2)];
        let refused = |minor| Err(ControlError::Abort { minor, source: io::Error::other("/sys is read-only") });
        let ended = end(overdue, Duration::ZERO, |minor| if minor == 1 { refused(minor) } else { Ok(()) });
        assert_eq!(ended, [("b".to_owned(), 2)]);
    }

    #[test]
    fn superblocks_are_those_on_top_at_their_own_places() {
        let mk_mount = |target: &str, minor, fs_type: &str| Mount {
            device: (0, minor),
            root: "/".into(),
            target: target.into(),
            read_only: true,
            fs_type: fs_type.into(),
            source: "any".into(),
        };
        let table = [
            mk_mount("/k/mounts/a", 1, FS_TYPE),
            mk_mount("/k/mounts/a", 2, FS_TYPE),
            mk_mount("/k/mounts/b", 3, FS_TYPE),
            mk_mount("/k/mounts/b", 4, "tmpfs"),
            mk_mount("/k/shroud", 5, FS_TYPE),
            mk_mount("/host/k/mounts/a", 6, FS_TYPE),
        ];
        assert_eq!(superblocks(&table, Path::new("/k/mounts")), [("a".to_owned(), 2)].into());
    }

    #[test]
    fn the_kernels_limit_is_never_reached() {
        let seconds = Duration::from_secs;
        assert_eq!(before_the_kernel(seconds(120), None), seconds(120));
        assert_eq!(before_the_kernel(seconds(120), Some(seconds(600))), seconds(120));
        assert_eq!(before_the_kernel(seconds(120), Some(seconds(30))), seconds(20));
    }

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
