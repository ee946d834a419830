//! Requests of the kubelet → what they mean, or INVALID_ARGUMENT.

use super::error::NodeError;
use crate::layout::Layout;
use larder_api::labels;
use larder_core::names;
use larder_proto::csi::v1::{
    NodePublishVolumeRequest, VolumeCapability,
    volume_capability::{AccessType, access_mode},
};
use std::{collections::HashMap, path::PathBuf};

/// Volume attribute that the kubelet adds (`podInfoOnMount`).
const POD_NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
/// Longest volume id: twice a UID and the dot.
const VOLUME_ID_LEN: usize = 36 + 1 + 36;
/// Mount options that change nothing about a mount that is always `ro,nosuid,nodev,noatime`.
const HARMLESS_FLAGS: [&str; 5] = ["ro", "nosuid", "nodev", "noatime", "relatime"];

/// A publish that makes sense.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Publish {
    pub(super) target: PathBuf,
    pub(super) dataset_uid: String,
    pub(super) dataset_namespace: String,
    pub(super) dataset_name: String,
}

pub(super) fn publish(layout: &Layout, request: &NodePublishVolumeRequest) -> Result<Publish, NodeError> {
    let dataset_uid = dataset_uid(&request.volume_id)?;
    let target = layout.target(&request.target_path).map_err(|e| NodeError::invalid("target_path", e))?;
    capability(request.volume_capability.as_ref())?;
    let context = &request.volume_context;
    let dataset_namespace = object_name(context, labels::DATASET_NAMESPACE)?;
    let dataset_name = object_name(context, labels::DATASET_NAME)?;
    // The claim is what gives access, and claims are of one namespace. A volume made by hand must not get around that.
    match context.get(POD_NAMESPACE) {
        Some(pod) if *pod != dataset_namespace => {
            Err(NodeError::Namespace { pod: pod.clone(), dataset: dataset_namespace.to_owned() })
        }
        _ => Ok(Publish {
            target,
            dataset_uid: dataset_uid.to_owned(),
            dataset_namespace: dataset_namespace.to_owned(),
            dataset_name: dataset_name.to_owned(),
        }),
    }
}

/// The volume id is not looked at closely: what was never published must be possible to unpublish.
pub(super) fn unpublish(layout: &Layout, volume_id: &str, target_path: &str) -> Result<PathBuf, NodeError> {
    if volume_id.is_empty() {
        return Err(NodeError::invalid("volume_id", "is empty"));
    }
    layout.target(target_path).map_err(|e| NodeError::invalid("target_path", e))
}

/// The dataset of a volume handle `<dataset uid>.<claim uid>`.
pub(super) fn dataset_uid(volume_id: &str) -> Result<&str, NodeError> {
    if volume_id.is_empty() {
        return Err(NodeError::invalid("volume_id", "is empty"));
    }
    let parts = if volume_id.len() == VOLUME_ID_LEN { volume_id.split_once('.') } else { None };
    match parts {
        Some((dataset, claim)) if names::is_uid(dataset) && names::is_uid(claim) => Ok(dataset),
        _ => Err(NodeError::invalid("volume_id", "is not <dataset uid>.<claim uid>")),
    }
}

fn capability(capability: Option<&VolumeCapability>) -> Result<(), NodeError> {
    let invalid = |reason: &str| Err(NodeError::invalid("volume_capability", reason));
    let Some(capability) = capability else { return invalid("is missing") };
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
fn object_name<'a>(context: &'a HashMap<String, String>, key: &'static str) -> Result<&'a str, NodeError> {
    let name = context.get(key).map(String::as_str).unwrap_or_default();
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let starts = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if starts && name.len() <= 253 && name.bytes().all(plain) {
        return Ok(name);
    }
    Err(NodeError::invalid("volume_context", format!("{key} is missing or no name; is the PersistentVolume one of Larder's?")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_proto::csi::v1::volume_capability::{AccessMode, BlockVolume, MountVolume};
    use std::path::Path;
    use tonic::Code;

    const UID: &str = "0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f";

    fn mk_request() -> NodePublishVolumeRequest {
        NodePublishVolumeRequest {
            volume_id: format!("{UID}.{UID}"),
            target_path: "/kubelet/pods/1/mount".into(),
            volume_capability: Some(VolumeCapability {
                access_mode: Some(AccessMode { mode: access_mode::Mode::MultiNodeReaderOnly.into() }),
                access_type: Some(AccessType::Mount(MountVolume::default())),
            }),
            readonly: true,
            volume_context: [
                (labels::DATASET_NAMESPACE.to_owned(), "vision".to_owned()),
                (labels::DATASET_NAME.to_owned(), "imagenet".to_owned()),
                (POD_NAMESPACE.to_owned(), "vision".to_owned()),
            ]
            .into(),
            ..NodePublishVolumeRequest::default()
        }
    }

    fn code(request: &NodePublishVolumeRequest) -> Code {
        publish(&Layout::new(Path::new("/kubelet")), request).map_or_else(|e| e.code(), |_| Code::Ok)
    }

    #[test]
    fn a_volume_id_is_two_uids() {
        assert_eq!(code(&mk_request()), Code::Ok);
        for bad in [
            String::new(),
            UID.to_owned(),
            format!("{UID}."),
            format!("{UID}.{UID}x"),
            format!("{UID}/{UID}"),
            format!("../{UID}.{}", &UID[3..]),
            format!("{UID}.{}", UID.to_uppercase()),
            format!("{UID}\0{UID}"),
            format!("{UID}.{}", "é".repeat(18)),
            "%2e%2e".to_owned(),
            "x".repeat(4096),
        ] {
            let request = NodePublishVolumeRequest { volume_id: bad.clone(), ..mk_request() };
            assert_eq!(code(&request), Code::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn only_file_systems_with_known_options_are_mounted() {
        let with = |access_type, mode: access_mode::Mode| NodePublishVolumeRequest {
            volume_capability: Some(VolumeCapability { access_mode: Some(AccessMode { mode: mode.into() }), access_type }),
            ..mk_request()
        };
        let mount = |flags: &[&str]| {
            Some(AccessType::Mount(MountVolume {
                mount_flags: flags.iter().map(|f| (*f).to_owned()).collect(),
                ..MountVolume::default()
            }))
        };
        use access_mode::Mode::{MultiNodeMultiWriter, SingleNodeSingleWriter, Unknown};
        assert_eq!(code(&with(mount(&["ro", "noatime"]), MultiNodeMultiWriter)), Code::Ok);
        assert_eq!(code(&with(mount(&[]), SingleNodeSingleWriter)), Code::Ok);
        assert_eq!(code(&with(mount(&[]), Unknown)), Code::InvalidArgument);
        assert_eq!(code(&with(None, MultiNodeMultiWriter)), Code::InvalidArgument);
        assert_eq!(code(&with(Some(AccessType::Block(BlockVolume {})), MultiNodeMultiWriter)), Code::InvalidArgument);
        for flag in ["rw", "ro,fd=3", "-o", "--", "suid", "RO", "ro\n"] {
            assert_eq!(code(&with(mount(&[flag]), MultiNodeMultiWriter)), Code::InvalidArgument, "{flag:?}");
        }
        assert_eq!(code(&NodePublishVolumeRequest { volume_capability: None, ..mk_request() }), Code::InvalidArgument);
    }

    #[test]
    fn a_dataset_is_mounted_in_its_own_namespace_only() {
        let with = |key: &str, value: &str| {
            let mut request = mk_request();
            request.volume_context.insert(key.to_owned(), value.to_owned());
            request
        };
        assert_eq!(code(&with(POD_NAMESPACE, "speech")), Code::PermissionDenied);
        for bad in ["", "../x", "a/b", "-a", "A", "a b", "a?b"] {
            assert_eq!(code(&with(labels::DATASET_NAME, bad)), Code::InvalidArgument, "{bad:?}");
        }
        let mut request = mk_request();
        request.volume_context.clear();
        assert_eq!(code(&request), Code::InvalidArgument);
    }

    #[test]
    fn what_was_never_valid_can_be_unpublished() {
        let layout = Layout::new(Path::new("/kubelet"));
        assert!(unpublish(&layout, "made by hand", "/kubelet/pods/1/mount").is_ok());
        assert!(unpublish(&layout, "", "/kubelet/pods/1/mount").is_err());
        assert!(unpublish(&layout, "x", "").is_err());
        assert!(unpublish(&layout, "x", "/etc").is_err());
    }
}
