//! Folders that must not lie in one another: a mount that covers its own origin or cache waits for itself for ever, and a cache in the
//! origin becomes part of the dataset.

use crate::dataset::Dataset;
use larder_core::names::TIER_DIR;
use std::path::{Path, PathBuf};

/// Two folders, by the names that the user gave them.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OverlapError {
    #[error("mountpoint {} and the origin {} (spec.source.uri) lie in one another: mount somewhere else", mountpoint.display(), origin.display())]
    MountOrigin { mountpoint: PathBuf, origin: PathBuf },
    #[error("mountpoint {} and the cache {} (spec.cache.tiers[{tier}].path) lie in one another: mount somewhere else", mountpoint.display(), cache.display())]
    MountCache { mountpoint: PathBuf, tier: usize, cache: PathBuf },
    #[error("the cache {} (spec.cache.tiers[{tier}].path) and the origin {} (spec.source.uri) lie in one another: keep the cache somewhere else", cache.display(), origin.display())]
    CacheOrigin { tier: usize, cache: PathBuf, origin: PathBuf },
    #[error("spec.cache.tiers[{tier}].path {} is the folder of spec.cache.tiers[{first}].path; name each folder once", path.display())]
    SameTier { tier: usize, first: usize, path: PathBuf },
}

/// Looks, and writes nothing.
///
/// # Errors
/// The first two folders that overlap.
pub(crate) fn check(dataset: &Dataset, mountpoint: Option<&Path>) -> Result<(), OverlapError> {
    let origin = dataset.folder();
    let origin = origin.as_deref().map(|folder| (folder, canonical(folder)));
    let mountpoint = mountpoint.map(|folder| (folder, canonical(folder)));
    if let (Some((mountpoint, m)), Some((origin, o))) = (&mountpoint, &origin)
        && overlap(m, o)
    {
        return Err(OverlapError::MountOrigin { mountpoint: (*mountpoint).to_owned(), origin: (*origin).to_owned() });
    }
    let tiers: Vec<_> = dataset.disks.iter().map(|disk| canonical(&disk.tier)).collect();
    for (tier, (disk, real)) in dataset.disks.iter().zip(&tiers).enumerate() {
        if let Some(first) = tiers[..tier].iter().position(|other| other == real) {
            return Err(OverlapError::SameTier { tier, first, path: disk.tier.clone() });
        }
        // Beside it the tier's folder may hold whatever else.
        let (cache, used) = (disk.tier.join(TIER_DIR), real.join(TIER_DIR));
        if let Some((mountpoint, m)) = &mountpoint
            && overlap(m, &used)
        {
            return Err(OverlapError::MountCache { mountpoint: (*mountpoint).to_owned(), tier, cache });
        }
        if let Some((origin, o)) = &origin
            && overlap(o, &used)
        {
            return Err(OverlapError::CacheOrigin { tier, cache, origin: (*origin).to_owned() });
        }
    }
    Ok(())
}

fn overlap(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

/// Without links, also where the last parts are not there yet.
fn canonical(path: &Path) -> PathBuf {
    let real = |there: &Path| Some(there.canonicalize().ok()?.join(path.strip_prefix(there).ok()?));
    path.ancestors().find_map(real).unwrap_or_else(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Disk;
    use std::{fs, os::unix::fs::symlink};

    /// Origin, tiers, mountpoint; beneath a folder with links.
    fn checked(origin: Option<&str>, tiers: &[&str], mountpoint: Option<&str>) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["data/sub", "nvme/larder/x", "mnt"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        symlink("data", dir.path().join("link")).unwrap();
        symlink("nvme", dir.path().join("disk")).unwrap();
        let at = |name: &str| dir.path().join(name);
        let uri = origin.map_or("s3://b/".to_owned(), |o| format!("file://{}", at(o).display()));
        let disks = tiers.iter().map(|tier| Disk { tier: at(tier), quota: 1 }).collect();
        check(&Dataset { disks, ..Dataset::of_source(&uri) }, mountpoint.map(at).as_deref()).map_err(|e| e.to_string())
    }

    #[test]
    fn folders_that_lie_in_one_another_are_refused_by_name_whatever_links_say() {
        for (origin, tiers, mountpoint, says) in [
            (Some("data"), &["nvme"][..], Some("data"), "data and the origin"),
            (Some("data"), &["nvme"], Some("link/sub"), "link/sub and the origin"),
            (Some("link/sub"), &["nvme"], Some("data"), "data and the origin"),
            (None, &["nvme"], Some("nvme"), "nvme and the cache"),
            (None, &["nvme"], Some("disk/larder/x"), "disk/larder/x and the cache"),
            (None, &["mnt", "disk/new"], Some("nvme/new"), "spec.cache.tiers[1].path"),
            (Some("link"), &["data/cache"], None, "data/cache/larder (spec.cache.tiers[0].path) and the origin"),
            (Some("nvme/larder/x"), &["nvme"], None, "and the origin"),
            (None, &["nvme", "disk/../nvme"], None, "spec.cache.tiers[1].path"),
            (None, &["nvme", "disk"], None, "is the folder of spec.cache.tiers[0].path"),
            (None, &["nvme/new", "disk/new"], None, "is the folder of spec.cache.tiers[0].path"),
        ] {
            let said = checked(origin, tiers, mountpoint).unwrap_err();
            assert!(said.contains(says), "{origin:?} {tiers:?} {mountpoint:?}: {said}");
        }
        for (origin, tiers, mountpoint) in [
            (Some("data"), &["nvme", "mnt"][..], Some("mnt/other")),
            // Beside the cache on the same disk.
            (Some("nvme/data"), &["nvme"], Some("nvme/mnt")),
            (Some("data"), &["data-cache"], Some("data-mnt")),
            (None, &["nvme"], None),
        ] {
            assert_eq!(checked(origin, tiers, mountpoint), Ok(()), "{origin:?} {tiers:?} {mountpoint:?}");
        }
    }
}
