//! NodePublishVolume: a superblock for the identity, a shroud and a bind mount at the target.

use super::{Plugin, validate::Publish};
use crate::{
    error::CallError,
    mount,
    probe::Probe,
    state::{Record, Terms},
};
use larder_core::names;
use larder_fuse::{control, device::FS_TYPE};
use larder_proto::csi::v1::volume_capability::access_mode::Mode;
use std::{os::fd::AsFd as _, path::Path, sync::Arc, time::Duration};
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

/// Longest wait for what is missing. The pod's Event then says what, and the kubelet comes again.
const PATIENCE: Duration = Duration::from_secs(10);
/// Each question to the mounter or a mount gets at least this long, however much of [`PATIENCE`] is gone.
const AT_LEAST: Duration = Duration::from_secs(2);
/// Longest wait for a live mount to answer.
const PROBE: Duration = Duration::from_secs(5);
/// Longest wait for the keeper, which answers at once or not at all.
const HOLD: Duration = Duration::from_millis(500);
/// Longest wait for the mounter to take a descriptor over.
const SERVE: Duration = Duration::from_secs(10);

/// What answers at a target before anything is done.
enum Shown {
    /// Nothing, or the shroud, or what has ended.
    Nothing,
    /// The record's snapshot.
    Wanted,
    /// Another one of the same dataset, by its identity.
    Other(String),
}

impl Plugin {
    pub(super) async fn publish(self: Arc<Self>, request: Publish) -> Result<(), CallError> {
        let target = &request.target;
        let _target = self.locks.target(target)?;
        let deadline = Instant::now() + PATIENCE;
        self.expect_place(target).await?;
        let known = self.state.by_target(target);
        let (again, record) = (known.is_some(), self.choose(known, &request, deadline).await?);
        let lock = timeout_at(deadline, self.locks.identity(record.identity())).await;
        let _identity = lock.map_err(|_| CallError::Queue(record.identity().to_owned()))?;
        let note = || self.state.add_target(&record, target, &request.volume_id, &request.terms, request.pod.as_ref());
        match self.shown(&record, again, target).await? {
            Shown::Wanted if again => return Ok(()),
            // Its record could not be read.
            Shown::Wanted => {
                note()?;
                tracing::warn!(identity = record.identity(), target = %target.display(), "published already, and now in a record again");
                return Ok(());
            }
            Shown::Other(shown) => {
                tracing::warn!(shown, target = %target.display(), "published already, with another snapshot that no record has; left as it is");
                return Ok(());
            }
            Shown::Nothing => {}
        }
        let was_mounted = mount::top(target)?.is_some();
        let record = note()?;
        let result = self.show(&record, target, deadline).await;
        match &result {
            Ok(()) => tracing::info!(identity = record.identity(), target = %target.display(), "published"),
            Err(_) => {
                let undone = if again {
                    self.take_off(target, was_mounted).await
                } else {
                    self.withdraw(record.identity(), target).await
                };
                if let Err(error) = undone {
                    tracing::error!(identity = record.identity(), target = %target.display(), %error, "undo a failed publish");
                }
            }
        }
        result
    }

    /// After a call that failed for a target that a record had before. The record stays, as it says which snapshot the pod is to have, and
    /// so does the folder, without which the next start would forget the record. (What was not there before goes altogether: the
    /// kubelet may never come again for it.)
    async fn take_off(&self, target: &Path, was_mounted: bool) -> Result<(), CallError> {
        // A pod that uses it is to get errors, not an empty folder.
        if !was_mounted {
            let target = target.to_owned();
            spawn_blocking(move || mount::unmount_all(&target)).await??;
        }
        Ok(())
    }

    /// Before anything is made: what is in the way is somebody else's, and stays.
    async fn expect_place(&self, target: &Path) -> Result<(), CallError> {
        let (layout, at) = (self.layout.clone(), target.to_owned());
        match spawn_blocking(move || mount::obstacle(&layout, &at)).await?? {
            Some(reason) => Err(CallError::Place { target: target.to_owned(), reason }),
            None => Ok(()),
        }
    }

    /// The snapshot that the target's record has, else the newest.
    async fn choose(&self, known: Option<Record>, request: &Publish, deadline: Instant) -> Result<Record, CallError> {
        match known {
            Some(record) => expect_same(&record, request).map(|()| record),
            None => {
                let (namespace, name, uid) = (&request.dataset_namespace, &request.dataset_name, &request.dataset_uid);
                Ok(self.datasets.newest(namespace, name, uid, deadline).await?)
            }
        }
    }

    /// What a record has is shown whatever is there instead; what no record has is only replaced when it has ended.
    async fn shown(&self, record: &Record, again: bool, target: &Path) -> Result<Shown, CallError> {
        let Some(top) = mount::top(target)? else { return Ok(Shown::Nothing) };
        if top.fs_type != FS_TYPE {
            return Err(CallError::Foreign { target: target.to_owned(), fs_type: top.fs_type });
        }
        let is_wanted = mount::is_identity(&top, record.identity());
        let any_snapshot = names::mount_identity(&record.mount.dataset_uid, "");
        if !is_wanted && (again || !top.source.starts_with(&any_snapshot)) {
            return Ok(Shown::Nothing); // the shroud alone, from a call that was cut short
        }
        match self.prober.probe(top.device, target, PROBE).await {
            Probe::Alive(_) if is_wanted => Ok(Shown::Wanted),
            Probe::Alive(_) => Ok(Shown::Other(top.source)),
            Probe::Dead => Ok(Shown::Nothing),
            Probe::Hung => Err(CallError::Hung(target.to_owned())),
            Probe::Failed(source) => Err(CallError::Probe { path: target.to_owned(), source }),
        }
    }

    async fn show(&self, record: &Record, target: &Path, deadline: Instant) -> Result<(), CallError> {
        self.ensure_superblock(record, deadline).await?;
        let (layout, identity, at) = (self.layout.clone(), record.identity().to_owned(), target.to_owned());
        spawn_blocking(move || {
            mount::unmount_all(&at)?;
            mount::ensure_shroud(&layout)?;
            mount::cover(&layout, &identity, &at)
        })
        .await??;
        self.expect_alive(target).await
    }

    /// A superblock that answers, at the identity's own place.
    async fn ensure_superblock(&self, record: &Record, deadline: Instant) -> Result<(), CallError> {
        let identity = record.identity();
        let path = self.layout.superblock(identity);
        if let Some(old) = mount::top(&path)? {
            match self.prober.probe(old.device, &path, PROBE).await {
                Probe::Alive(_) if mount::is_identity(&old, identity) => return Ok(()),
                Probe::Hung => return Err(CallError::Hung(path)),
                // Everybody who held it died. Targets that show it stay dead until their pods start again.
                answer => tracing::warn!(identity, ?answer, "replacing a superblock that is not alive"),
            }
            let old = path.clone();
            spawn_blocking(move || mount::unmount_all(&old)).await??;
        }
        let patience = deadline.saturating_duration_since(Instant::now()).max(AT_LEAST);
        if let Some(permits) = &self.permits {
            permits.permit(&record.mount.dataset_uid, patience).await?;
        }
        self.mounter.prepare(&record.mount, patience).await?;
        let result = self.new_superblock(record, &path).await;
        if result.is_err() {
            let path = path.clone();
            spawn_blocking(move || mount::unmount_all(&path)).await??;
            if let Err(error) = self.mounter.forget(identity, AT_LEAST).await {
                tracing::warn!(identity, %error, "mounter keeps a catalog that nobody needs until it restarts");
            }
        }
        result
    }

    async fn new_superblock(&self, record: &Record, path: &Path) -> Result<(), CallError> {
        let (layout, identity) = (self.layout.clone(), record.identity().to_owned());
        let fuse = spawn_blocking(move || mount::new_superblock(&layout, &identity)).await??;
        self.mounter.serve(&record.mount, fuse.as_fd(), SERVE).await?;
        // The mounter has given it to the keeper, and from there this process has it too.
        if !self.held.fetch(HOLD).await {
            tracing::warn!(
                identity = record.identity(),
                "the keeper does not answer; until it does, this mount ends with its mounter"
            );
        }
        drop(fuse);
        self.expect_alive(path).await?;
        if let Some(mount) = mount::top(path)?
            && let Err(error) = control::set_read_ahead(mount.device.1, control::READ_AHEAD_KIB)
        {
            tracing::warn!(identity = record.identity(), %error, "reads of files on other nodes will be slower");
        }
        Ok(())
    }

    async fn expect_alive(&self, path: &Path) -> Result<(), CallError> {
        let Some(top) = mount::top(path)? else { return Err(CallError::Dead(path.to_owned())) };
        match self.prober.probe(top.device, path, PROBE).await {
            Probe::Alive(_) => Ok(()),
            Probe::Dead => Err(CallError::Dead(path.to_owned())),
            Probe::Hung => Err(CallError::Hung(path.to_owned())),
            Probe::Failed(source) => Err(CallError::Probe { path: path.to_owned(), source }),
        }
    }
}

/// A target that is published already may be published again as it was, and in no other way.
fn expect_same(record: &Record, request: &Publish) -> Result<(), CallError> {
    let target = &request.target;
    let other = |field, was: String| Err(CallError::Published { field, target: target.clone(), was });
    match record.volume_at(target) {
        Some(volume) if volume != request.volume_id => return other("volume_id", volume.to_owned()),
        None if record.mount.dataset_uid != request.dataset_uid => return other("volume_id", record.mount.dataset_uid.clone()),
        _ => {}
    }
    let (namespace, name) = (&record.dataset_namespace, &record.dataset_name);
    if (namespace, name) != (&request.dataset_namespace, &request.dataset_name) {
        return other("volume_context", format!("dataset {namespace}/{name}"));
    }
    let Some(Terms { readonly, access_mode, mount_flags }) = record.terms_at(target) else { return Ok(()) };
    if *readonly != request.terms.readonly {
        return other("readonly", readonly.to_string());
    }
    if (access_mode, mount_flags) != (&request.terms.access_mode, &request.terms.mount_flags) {
        let mode = Mode::try_from(*access_mode).unwrap_or_default().as_str_name();
        return other("volume_capability", format!("access mode {mode} and options {mount_flags:?}"));
    }
    Ok(())
}
