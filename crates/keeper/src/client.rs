//! What this process holds, kept by the keeper too, and so by every other process that has a [`Held`] for the same keeper.
//!
//! ```text
//! mounter: Held ◄── puts, removals ──► keeper ◄── puts, removals ──► Held: node plugin
//! ```
//!
//! Every `Held` is a whole copy. What is put or removed here is with the keeper at once, and in the other copies when they next
//! compare their keys with its keys: each second, when they connect, and when [`Held::fetch`] is called. For each key:
//!
//! - Of two items, the one with the higher stamp is the later one, and replaces the other on both sides.
//! - An item that is missing here is copied, unless it was removed here. A removal is remembered for some minutes after the
//!   keeper was told: it may have ended before another process heard of it, and that one then deposits its copy with the next.
//! - An item that is missing there, but was held there before by the same process (its `life`), was removed by somebody else and
//!   is dropped. If the keeper is another one, it cannot know of the item, which is deposited.
//!
//! So a process that starts with nothing removes nothing, whoever is back first makes the keeper whole, and what one process
//! removes is nowhere after a second, whoever was away meanwhile.

mod link;
mod state;

use parking_lot::Mutex;
use state::State;
use std::{fmt, os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

/// One thing that is held.
#[derive(Clone)]
pub struct Item {
    /// As it was put; it may be a secret.
    pub value: String,
    /// As it was put, or another descriptor of the same open file.
    pub fd: Option<Arc<OwnedFd>>,
}

/// A map that outlives this process; see the [module](self). All clones are the same map. The task that talks to the keeper ends
/// with the last one; what the keeper holds, it goes on holding.
#[derive(Clone)]
pub struct Held {
    shared: Arc<Shared>,
    _task: Arc<DropGuard>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to tell or to ask the keeper.
    work: Notify,
    /// The keeper has answered.
    progress: watch::Sender<()>,
}

impl Held {
    /// Starts with nothing, and with a task that copies what the keeper has. To be called on a runtime.
    #[must_use]
    pub fn start(socket: PathBuf) -> Self {
        let (shared, stop) = (Arc::<Shared>::default(), CancellationToken::new());
        tokio::spawn(stop.clone().run_until_cancelled_owned(link::keep(Arc::clone(&shared), socket)));
        Self { shared, _task: Arc::new(stop.drop_guard()) }
    }

    /// Holds this from now on, in place of what the key had; with the keeper as soon as it answers.
    pub fn put(&self, key: &str, value: impl Into<String>, fd: Option<OwnedFd>) {
        self.put_stamped(key, value.into(), fd);
    }

    /// As [`Held::put`], and whether the keeper has it within this time.
    pub async fn put_now(&self, key: &str, value: impl Into<String>, fd: Option<OwnedFd>, patience: Duration) -> bool {
        let stamp = self.put_stamped(key, value.into(), fd);
        self.wait(patience, |state| state.is_kept(key, stamp)).await
    }

    fn put_stamped(&self, key: &str, value: String, fd: Option<OwnedFd>) -> u64 {
        let stamp = self.shared.state.lock().put(key, Item { value, fd: fd.map(Arc::new) });
        self.shared.work.notify_one();
        stamp
    }

    /// Holds this no more, and tells the keeper.
    pub fn remove(&self, key: &str) {
        self.shared.state.lock().remove(key);
        self.shared.work.notify_one();
    }

    /// Removes all that is held here under keys that begin so.
    pub fn remove_prefix(&self, prefix: &str) {
        let mut state = self.shared.state.lock();
        let keys: Vec<String> = state.keys().filter(|key| key.starts_with(prefix)).cloned().collect();
        keys.iter().for_each(|key| state.remove(key));
        self.shared.work.notify_one();
    }

    /// What is held under a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Item> {
        self.shared.state.lock().get(key).cloned()
    }

    /// All keys, in their order.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.shared.state.lock().keys().cloned().collect()
    }

    /// Copies what the keeper has now. False: not all of it came within this time.
    pub async fn fetch(&self, patience: Duration) -> bool {
        let round = self.shared.state.lock().ask();
        self.shared.work.notify_one();
        self.wait(patience, |state| state.is_learned(round).then_some(true)).await
    }

    /// Does the keeper hold all of this? Asks it, and waits no longer than this.
    pub async fn is_deposited(&self, patience: Duration) -> bool {
        self.fetch(patience).await && self.shared.state.lock().is_all_kept()
    }

    /// Waits until there is a result; false when the time is over.
    async fn wait(&self, patience: Duration, result: impl Fn(&State) -> Option<bool>) -> bool {
        let mut progress = self.shared.progress.subscribe();
        let waiting = async {
            loop {
                let result = result(&self.shared.state.lock());
                match result {
                    Some(result) => return result,
                    None if progress.changed().await.is_err() => return false,
                    None => {}
                }
            }
        };
        tokio::time::timeout(patience, waiting).await.unwrap_or(false)
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").field(&self.keys()).finish()
    }
}
