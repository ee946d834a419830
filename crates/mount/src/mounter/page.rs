//! What the admin server tells of this node's mounts at `/mounts`; `larder describe node` shows it.

use larder_fuse::protocol::mounter::{Mode, Reads};
use serde::{Deserialize, Serialize};

/// One node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePage {
    /// Release of the mounter; an older one than this field says nothing.
    #[serde(default)]
    pub version: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Does the kernel offer passthrough? Not known before something is mounted.
    pub passthrough: Option<bool>,
    /// What is mounted.
    pub mounts: Vec<MountPage>,
}

/// One superblock.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MountPage {
    /// UID of the CacheDataset.
    pub dataset_uid: String,
    /// Digest of the snapshot.
    pub snapshot: String,
    /// How files are opened.
    pub mode: Mode,
    /// Why local files are read through the mounter although the mode is `Passthrough`.
    pub refused: Option<String>,
    /// What reached the mounter.
    pub reads: Reads,
}
