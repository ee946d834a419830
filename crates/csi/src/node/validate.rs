//! Requests of the kubelet → what they mean, or INVALID_ARGUMENT.

use crate::{
    arguments::{self, dataset_uid, object_name, text},
    error::CallError,
    layout::Layout,
    state::{Pod, Terms},
};
use larder_api::labels;
use larder_core::names;
use larder_proto::csi::v1::{NodePublishVolumeRequest, VolumeCapability, volume_capability::AccessType};
use std::path::PathBuf;

/// Volume attribute that the kubelet adds (`podInfoOnMount`).
const POD_NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
/// Further ones.
const POD_NAME: &str = "csi.storage.k8s.io/pod.name";
const POD_UID: &str = "csi.storage.k8s.io/pod.uid";

/// A publish that makes sense.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Publish {
    pub(crate) target: PathBuf,
    pub(crate) volume_id: String,
    pub(crate) terms: Terms,
    pub(crate) dataset_uid: String,
    pub(crate) dataset_namespace: String,
    pub(crate) dataset_name: String,
    /// Whom to tell when the mount ends.
    pub(crate) pod: Option<Pod>,
}

pub(crate) fn publish(layout: &Layout, request: &NodePublishVolumeRequest) -> Result<Publish, CallError> {
    let dataset_uid = dataset_uid(&request.volume_id)?;
    let target = layout.target(&request.target_path).map_err(|e| CallError::invalid("target_path", e))?;
    let missing = || CallError::invalid("volume_capability", "is missing, and must not be");
    let capability = request.volume_capability.as_ref().ok_or_else(missing)?;
    arguments::capability("volume_capability", capability)?;
    let context = &request.volume_context;
    arguments::context(context)?;
    let name = |key: &str| {
        let strange = || format!("{key} is missing or no name; is the PersistentVolume one of Larder's?");
        object_name(context, key).ok_or_else(|| CallError::invalid("volume_context", strange()))
    };
    let (dataset_namespace, dataset_name) = (name(labels::DATASET_NAMESPACE)?, name(labels::DATASET_NAME)?);
    // The claim is what gives access, and claims are of one namespace. A volume made by hand must not get around that.
    match context.get(POD_NAMESPACE) {
        Some(pod) if *pod != dataset_namespace => {
            Err(CallError::Namespace { pod: pod.clone(), dataset: dataset_namespace.to_owned() })
        }
        _ => Ok(Publish {
            target,
            volume_id: request.volume_id.clone(),
            terms: terms(request.readonly, capability),
            dataset_uid: dataset_uid.to_owned(),
            dataset_namespace: dataset_namespace.to_owned(),
            dataset_name: dataset_name.to_owned(),
            pod: object_name(context, POD_NAME)
                .zip(context.get(POD_UID).filter(|uid| names::is_uid(uid)))
                .map(|(name, uid)| Pod { name: name.to_owned(), uid: uid.clone() }),
        }),
    }
}

fn terms(readonly: bool, capability: &VolumeCapability) -> Terms {
    let mount_flags = match &capability.access_type {
        Some(AccessType::Mount(mount)) => mount.mount_flags.iter().cloned().collect(),
        _ => Default::default(),
    };
    Terms { readonly, access_mode: capability.access_mode.as_ref().map_or(0, |mode| mode.mode), mount_flags }
}

/// The volume id is not looked at closely: what was never published must be possible to unpublish.
pub(super) fn unpublish(layout: &Layout, volume_id: &str, target_path: &str) -> Result<PathBuf, CallError> {
    text("volume_id", volume_id)?;
    layout.target(target_path).map_err(|e| CallError::invalid("target_path", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_proto::csi::v1::{
        VolumeCapability,
        volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode},
    };
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
    fn attributes_are_those_of_the_driver_and_of_kubernetes() {
        let with = |key: &str| {
            let mut request = mk_request();
            request.volume_context.insert(key.to_owned(), "vision".to_owned());
            code(&request)
        };
        for good in
            ["csi.storage.k8s.io/ephemeral", "csi.storage.k8s.io/not yet known", "storage.kubernetes.io/csiProvisionerIdentity"]
        {
            assert_eq!(with(good), Code::Ok, "{good}");
        }
        for bad in [
            "",
            "mountOptions",
            "-o",
            "larder.dev/dataset-name ",
            "larder.dev/path",
            "LARDER.dev/dataset-name",
            "csi.storage.k8s.io",
            "csi.storage.k8s.io/POD.namespace",
            "a\n",
            "\0",
        ] {
            assert_eq!(with(bad), Code::InvalidArgument, "{bad:?}");
        }
    }

    #[test]
    fn what_was_never_valid_can_be_unpublished() {
        let layout = Layout::new(Path::new("/kubelet"));
        assert!(unpublish(&layout, "made by hand", "/kubelet/pods/1/mount").is_ok());
        for bad in ["", "a\0b", &"x".repeat(129)] {
            assert!(unpublish(&layout, bad, "/kubelet/pods/1/mount").is_err());
        }
        assert!(unpublish(&layout, "x", "").is_err());
        assert!(unpublish(&layout, "x", "/etc").is_err());
    }
}
