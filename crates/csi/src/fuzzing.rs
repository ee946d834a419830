//! Ways in for the fuzzer: what is read of a call before anything is done.

use crate::{controller, layout::Layout, node};
use larder_proto::csi::v1::{CreateVolumeRequest, NodePublishVolumeRequest};
use std::path::{Path, PathBuf};

/// What a publish means, if anything.
#[derive(Debug)]
pub struct Published {
    /// Where.
    pub target: PathBuf,
    /// UID, namespace and name of the dataset.
    pub dataset: [String; 3],
}

/// Reads a publish for a kubelet with this folder.
#[must_use]
pub fn publish(kubelet: &Path, request: &NodePublishVolumeRequest) -> Option<Published> {
    let publish = node::validate::publish(&Layout::new(kubelet), request).ok()?;
    let dataset = [publish.dataset_uid, publish.dataset_namespace, publish.dataset_name];
    Some(Published { target: publish.target, dataset })
}

/// Reads what a volume is to be made of: namespace and name of the dataset; and its id.
#[must_use]
pub fn create(request: &CreateVolumeRequest) -> Option<([String; 2], String)> {
    controller::read(request)
}
