//! One call at a time for each target; one change at a time for each superblock.

use crate::error::CallError;
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};
use tokio::sync::OwnedMutexGuard;

type Identity = tokio::sync::Mutex<()>;

/// All locks of this process; none outlives it.
#[derive(Default)]
pub(crate) struct Locks {
    targets: Arc<Mutex<HashSet<PathBuf>>>,
    identities: Mutex<HashMap<String, Weak<Identity>>>,
}

/// Held while a call works on a target.
pub(super) struct TargetGuard {
    targets: Arc<Mutex<HashSet<PathBuf>>>,
    target: PathBuf,
}

impl Drop for TargetGuard {
    fn drop(&mut self) {
        self.targets.lock().remove(&self.target);
    }
}

impl Locks {
    /// A second call for the same target is a mistake of the caller's clock: it gets ABORTED and comes again.
    pub(super) fn target(&self, target: &Path) -> Result<TargetGuard, CallError> {
        if !self.targets.lock().insert(target.to_owned()) {
            return Err(CallError::Busy(target.to_owned()));
        }
        Ok(TargetGuard { targets: Arc::clone(&self.targets), target: target.to_owned() })
    }

    /// Pods of one dataset that start together wait for each other here: the first makes the superblock.
    pub(super) async fn identity(&self, identity: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut identities = self.identities.lock();
            identities.retain(|_, lock| lock.strong_count() > 0);
            let known = identities.get(identity).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::new(Identity::default());
                identities.insert(identity.to_owned(), Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_target_is_locked_once_and_an_identity_in_turns() {
        let locks = Locks::default();
        let target = locks.target(Path::new("/t")).unwrap();
        assert!(matches!(locks.target(Path::new("/t")), Err(CallError::Busy(_))));
        drop(target);
        assert!(locks.target(Path::new("/t")).is_ok());

        let first = locks.identity("i").await;
        let _other = locks.identity("other").await;
        assert!(tokio::time::timeout(Duration::from_millis(20), locks.identity("i")).await.is_err());
        drop(first);
        drop(locks.identity("i").await);
    }
}
