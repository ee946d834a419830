//! At start: records against the mount table. What a dead plugin left half done is finished or taken back.

use crate::{
    layout::Layout,
    mount::{self, MountError},
    node::Plugin,
    state::Record,
};
use larder_fuse::{device::FS_TYPE, mountinfo::Mount};
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

/// Why the start was not clean.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReconcileError {
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("list superblocks in {}: {source}", folder.display())]
    Superblocks { folder: PathBuf, source: io::Error },
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Targets that do not exist any more, with their identities.
    forget: Vec<(String, PathBuf)>,
    /// Superblocks without a target.
    release: BTreeSet<String>,
}

/// Before the first call is served.
pub(crate) fn reconcile(plugin: &Plugin) -> Result<(), ReconcileError> {
    let table = mount::table()?;
    let folders = superblock_folders(&plugin.layout)?;
    let plan = plan(&plugin.state.all(), &table, &plugin.layout, &folders, exists);
    for (identity, target) in &plan.forget {
        tracing::info!(identity, target = %target.display(), "target is gone; forgetting it");
        plugin.state.remove_target(identity, target);
    }
    for identity in &plan.release {
        tracing::info!(identity, "superblock has no target; unmounting it");
        let path = plugin.layout.superblock(identity);
        mount::unmount_all(&path)?;
        mount::remove(&path)?;
        plugin.state.remove(identity);
    }
    Ok(())
}

/// Pure. A target counts as there if something is mounted on it, or if the folder exists: then the node was rebooted, the
/// kubelet will publish again, and the record says which snapshot.
fn plan(records: &[Record], table: &[Mount], layout: &Layout, folders: &[String], exists: impl Fn(&Path) -> bool) -> Plan {
    let mounted: BTreeSet<&Path> = table.iter().map(|m| m.target.as_path()).collect();
    let mut plan = Plan::default();
    let mut used = BTreeSet::new();
    for record in records {
        // Never looks at a path that is a mount.
        let (there, gone): (Vec<_>, Vec<_>) = record.targets.iter().partition(|t| mounted.contains(t.as_path()) || exists(t));
        plan.forget.extend(gone.into_iter().map(|t| (record.identity().to_owned(), t.clone())));
        if there.is_empty() {
            plan.release.insert(record.identity().to_owned());
        } else {
            used.insert(record.identity());
        }
    }
    let superblocks = layout.superblocks();
    // What a target shows is in use, also where its record cannot be read.
    used.extend(shown(table, &superblocks).filter(|identity| !plan.release.contains(*identity)));
    let in_table = table.iter().filter(|m| m.fs_type == FS_TYPE && m.target.parent() == Some(&superblocks));
    let found = in_table.filter_map(|m| m.target.file_name()?.to_str()).chain(folders.iter().map(String::as_str));
    plan.release.extend(found.filter(|identity| !used.contains(identity)).map(str::to_owned));
    plan
}

/// Identities of superblocks that are seen elsewhere than at their own places.
fn shown<'t>(table: &'t [Mount], superblocks: &Path) -> impl Iterator<Item = &'t str> {
    let elsewhere = move |m: &&Mount| m.fs_type == FS_TYPE && m.target.parent() != Some(superblocks);
    table.iter().filter(elsewhere).map(|m| m.source.as_str())
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Names only: the folders may be mounts.
fn superblock_folders(layout: &Layout) -> Result<Vec<String>, ReconcileError> {
    let folder = layout.superblocks();
    mount::make_folder(&folder)?;
    let names = || -> io::Result<Vec<String>> {
        fs::read_dir(&folder)?.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect()
    };
    names().map_err(|source| ReconcileError::Superblocks { folder: folder.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_core::names;

    const UID: &str = "0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f";

    fn mk_record(digit: &str, targets: &[&str]) -> Record {
        let snapshot = digit.repeat(64);
        let identity = names::mount_identity(UID, &snapshot);
        let mount = larder_fuse::protocol::mounter::Mount {
            identity,
            dataset_uid: UID.into(),
            snapshot,
            uid: 0,
            gid: 0,
            file_mode: 0,
            dir_mode: 0,
            mode: larder_fuse::protocol::mounter::Mode::Auto,
        };
        let mut record = Record::new(mount, "ns", "name");
        record.targets = targets.iter().map(PathBuf::from).collect();
        record
    }

    fn mk_mount(target: &str) -> Mount {
        Mount {
            device: (0, 50),
            root: "/".into(),
            target: target.into(),
            read_only: true,
            fs_type: FS_TYPE.into(),
            source: "any".into(),
        }
    }

    fn layout() -> Layout {
        Layout::new(Path::new("/k"))
    }

    #[test]
    fn a_reboot_forgets_only_targets_that_are_gone() {
        let records = [mk_record("a", &["/k/pods/1", "/k/pods/2"]), mk_record("b", &["/k/pods/3"])];
        let plan = plan(&records, &[], &layout(), &[], |t| t == Path::new("/k/pods/1"));
        let (a, b) = (records[0].identity().to_owned(), records[1].identity().to_owned());
        assert_eq!(plan.forget, [(a, "/k/pods/2".into()), (b.clone(), "/k/pods/3".into())]);
        assert_eq!(plan.release, [b].into());
    }

    #[test]
    fn a_mounted_target_is_not_looked_at() {
        let record = mk_record("a", &["/k/pods/1"]);
        let folders = [record.identity().to_owned()];
        let plan = plan(&[record], &[mk_mount("/k/pods/1")], &layout(), &folders, |_| panic!("could hang"));
        assert_eq!(plan, Plan::default());
    }

    #[test]
    fn a_superblock_that_a_target_shows_stays_without_a_record_that_can_be_read() {
        let [own, at_a_pod] = ["/k/plugins/csi.larder.dev/mounts/damaged", "/k/pods/1"].map(mk_mount);
        let at_a_pod = Mount { source: "damaged".into(), ..at_a_pod };
        assert_eq!(plan(&[], &[own.clone(), at_a_pod], &layout(), &["damaged".into()], |_| false), Plan::default());
        assert_eq!(plan(&[], &[own], &layout(), &[], |_| false).release, ["damaged".to_owned()].into());
    }

    #[test]
    fn superblocks_of_nobody_are_released() {
        let table = [mk_mount("/k/plugins/csi.larder.dev/mounts/lost"), mk_mount("/k/plugins/csi.larder.dev/shroud")];
        let plan = plan(&[], &table, &layout(), &["empty".into()], |_| false);
        assert_eq!(plan.release, ["empty".to_owned(), "lost".to_owned()].into());
    }
}
