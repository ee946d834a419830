//! What calls of more than one service carry: volume ids, capabilities, names of datasets.

use crate::error::CallError;
use larder_api::labels;
use larder_core::names;
use larder_proto::csi::v1::{
    VolumeCapability,
    volume_capability::{AccessType, access_mode},
};
use std::collections::{BTreeSet, HashMap};

/// Longest volume id: twice a UID and the dot.
const VOLUME_ID_LEN: usize = 36 + 1 + 36;
/// Mount options that change nothing about a mount that is always `ro,nosuid,nodev,noatime`.
const HARMLESS_FLAGS: [&str; 5] = ["ro", "nosuid", "nodev", "noatime", "relatime"];

/// Longest name and longest id, as the specification has it.
const TEXT_MAX: usize = 128;
/// Volume attributes that are Kubernetes' own: of the pod, and of who made the volume.
const KUBERNETES: [&str; 2] = ["csi.storage.k8s.io/", "storage.kubernetes.io/"];

/// The dataset of a volume id `<dataset uid>.<claim uid>`.
pub(crate) fn dataset_uid(volume_id: &str) -> Result<&str, CallError> {
    text("volume_id", volume_id)?;
    let parts = if volume_id.len() == VOLUME_ID_LEN { volume_id.split_once('.') } else { None };
    match parts {
        Some((dataset, claim)) if names::is_uid(dataset) && names::is_uid(claim) => Ok(dataset),
        _ => Err(CallError::invalid("volume_id", "is not <dataset uid>.<claim uid>; is the PersistentVolume one of Larder's?")),
    }
}

/// Fields that must not be empty.
pub(crate) fn given(field: &'static str, value: &str) -> Result<(), CallError> {
    if value.is_empty() { Err(CallError::invalid(field, "is empty, and must not be")) } else { Ok(()) }
}

/// A name, or an id that may be anybody's: any text without the characters that the specification bans.
pub(crate) fn text(field: &'static str, value: &str) -> Result<(), CallError> {
    given(field, value)?;
    if value.len() > TEXT_MAX {
        return Err(CallError::invalid(field, format!("has {} bytes; at most {TEXT_MAX} are allowed", value.len())));
    }
    if value.chars().any(|c| c.is_control() && !matches!(c, '\t' | '\n' | '\r')) {
        return Err(CallError::invalid(field, "has control characters, which are not allowed"));
    }
    Ok(())
}

/// Volume attributes: the dataset's name, what Kubernetes adds of its own, and nothing else.
pub(crate) fn context(context: &HashMap<String, String>) -> Result<(), CallError> {
    const FIELD: &str = "volume_context";
    let invalid = |key: &str, reason: &str| Err(CallError::invalid(FIELD, format!("{key:?} {reason}")));
    let ours = [labels::DATASET_NAMESPACE, labels::DATASET_NAME];
    let known = |key: &str| ours.contains(&key) || KUBERNETES.iter().any(|prefix| key.starts_with(prefix));
    // Always the same of several.
    if let Some(key) = context.keys().filter(|key| !known(key)).min() {
        return invalid(key, "is none of the driver's; remove it from the PersistentVolume's volumeAttributes");
    }
    let mut keys: Vec<_> = context.keys().collect();
    keys.sort();
    let mut seen = BTreeSet::new();
    match keys.into_iter().find(|key| !seen.insert(key.to_lowercase())) {
        Some(key) => invalid(key, "is there twice, in different case; remove one of them"),
        None => Ok(()),
    }
}

/// A file system, with options that every mount has anyway.
pub(crate) fn capability(field: &'static str, capability: &VolumeCapability) -> Result<(), CallError> {
    let invalid = |reason: &str| Err(CallError::invalid(field, reason));
    let mount = match &capability.access_type {
        Some(AccessType::Mount(mount)) => mount,
        Some(AccessType::Block(_)) => {
            return invalid("a dataset is a file system, not a block device; use volumeMode Filesystem");
        }
        None => return invalid("has no access type; use mount"),
    };
    if let Some(flag) = mount.mount_flags.iter().find(|f| !HARMLESS_FLAGS.contains(&f.as_str())) {
        return invalid(&format!("mount option {flag:?} is not supported; leave it out of mountOptions"));
    }
    if !mount.fs_type.is_empty() {
        return invalid(&format!("a dataset cannot be a file system of type {:?}; leave fsType out", mount.fs_type));
    }
    if !mount.volume_mount_group.is_empty() {
        return invalid("a dataset has the group of its CacheDataset; leave volume_mount_group out");
    }
    match capability.access_mode.as_ref().map(|m| m.mode()) {
        None | Some(access_mode::Mode::Unknown) => invalid("has no access mode that is known; use ReadOnlyMany"),
        // A dataset is mounted read-only whatever the mode, and on any number of nodes.
        Some(_) => Ok(()),
    }
}

/// A name as Kubernetes allows it: it becomes part of a URL.
pub(crate) fn object_name<'a>(map: &'a HashMap<String, String>, key: &str) -> Option<&'a str> {
    let name = map.get(key)?;
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let starts = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    (starts && name.len() <= 253 && name.bytes().all(plain)).then_some(name)
}
