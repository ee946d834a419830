//! What calls of more than one service carry: volume ids, capabilities, names of datasets.

use crate::error::CallError;
use larder_core::names;
use larder_proto::csi::v1::{
    VolumeCapability,
    volume_capability::{AccessType, access_mode},
};
use std::collections::HashMap;

/// Longest volume id: twice a UID and the dot.
const VOLUME_ID_LEN: usize = 36 + 1 + 36;
/// Mount options that change nothing about a mount that is always `ro,nosuid,nodev,noatime`.
const HARMLESS_FLAGS: [&str; 5] = ["ro", "nosuid", "nodev", "noatime", "relatime"];

/// The dataset of a volume id `<dataset uid>.<claim uid>`.
pub(crate) fn dataset_uid(volume_id: &str) -> Result<&str, CallError> {
    given("volume_id", volume_id)?;
    let parts = if volume_id.len() == VOLUME_ID_LEN { volume_id.split_once('.') } else { None };
    match parts {
        Some((dataset, claim)) if names::is_uid(dataset) && names::is_uid(claim) => Ok(dataset),
        _ => Err(CallError::invalid("volume_id", "is not <dataset uid>.<claim uid>")),
    }
}

/// Fields that must not be empty.
pub(crate) fn given(field: &'static str, value: &str) -> Result<(), CallError> {
    if value.is_empty() { Err(CallError::invalid(field, "is empty")) } else { Ok(()) }
}

/// A file system, with options that every mount has anyway.
pub(crate) fn capability(field: &'static str, capability: &VolumeCapability) -> Result<(), CallError> {
    let invalid = |reason: &str| Err(CallError::invalid(field, reason));
    let flags = match &capability.access_type {
        Some(AccessType::Mount(mount)) => &mount.mount_flags,
        Some(AccessType::Block(_)) => {
            return invalid("a dataset is a file system, not a block device; use volumeMode Filesystem");
        }
        None => return invalid("has no access type"),
    };
    if let Some(flag) = flags.iter().find(|f| !HARMLESS_FLAGS.contains(&f.as_str())) {
        return invalid(&format!("mount option {flag:?} is not supported"));
    }
    match capability.access_mode.as_ref().map(|m| m.mode()) {
        None | Some(access_mode::Mode::Unknown) => invalid("has no access mode"),
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
