//! NodeUnpublishVolume: everything at the target goes, and the superblock after its last target.

use super::Plugin;
use crate::{error::CallError, mount};
use larder_core::names;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::task::spawn_blocking;

impl Plugin {
    /// Works whatever the state of the mount: alive, dead, hung, stacked, or never made.
    pub(super) async fn unpublish(self: Arc<Self>, target: PathBuf) -> Result<(), CallError> {
        let _target = self.locks.target(&target)?;
        match self.state.by_target(&target) {
            Some(record) => {
                let _identity = self.locks.identity(record.identity()).await;
                self.tell_if_ended(record.identity()).await;
                self.withdraw(record.identity(), &target).await?;
                tracing::info!(identity = record.identity(), target = %target.display(), "unpublished");
            }
            None => self.clear_target(&target).await?,
        }
        Ok(())
    }

    /// Takes a target off, and the superblock too if it was the last one. The identity must be locked.
    pub(super) async fn withdraw(&self, identity: &str, target: &Path) -> Result<(), CallError> {
        self.clear_target(target).await?;
        let left = self.state.remove_target(identity, target);
        if left.is_none_or(|record| !record.targets.is_empty()) {
            return Ok(());
        }
        // By a target whose record could not be read. The next start after that is gone takes the superblock away.
        if mount::is_shown(&self.layout, identity)? {
            self.state.remove(identity);
            return Ok(());
        }
        self.release(identity).await
    }

    async fn clear_target(&self, target: &Path) -> Result<(), CallError> {
        let (layout, target) = (self.layout.clone(), target.to_owned());
        spawn_blocking(move || mount::clear_target(&layout, &target)).await??;
        Ok(())
    }

    /// Removes a superblock that is shown nowhere. When its mounter is alive, its session ends by that.
    pub(crate) async fn release(&self, identity: &str) -> Result<(), CallError> {
        clear(&self.layout.superblock(identity)).await?;
        // The mounter does so too, if it is alive.
        self.held.remove_prefix(&format!("{}{identity}/", names::HELD_SESSIONS));
        self.state.remove(identity);
        Ok(())
    }
}

/// Unmounts everything at a path of the driver's own and removes the folder.
async fn clear(path: &Path) -> Result<(), CallError> {
    let path = path.to_owned();
    spawn_blocking(move || {
        mount::unmount_all(&path)?;
        mount::remove(&path)
    })
    .await??;
    Ok(())
}
