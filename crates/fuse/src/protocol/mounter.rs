//! Node plugin → mounter: prepare a snapshot, serve a FUSE descriptor.

use serde::{Deserialize, Serialize};

/// One superblock to serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Dataset and snapshot: `larder_core::names::mount_identity` of the next two.
    pub identity: String,
    /// UID of the dataset.
    pub dataset_uid: String,
    /// Digest of the snapshot.
    pub snapshot: String,
    /// Owner of files and folders.
    pub uid: u32,
    /// Their group.
    pub gid: u32,
    /// Permissions of files.
    pub file_mode: u32,
    /// Permissions of folders.
    pub dir_mode: u32,
    /// How files are opened and read.
    #[serde(default)]
    pub mode: Mode,
}

/// How the kernel opens and reads the files of a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// The mounter decides by the snapshot and by what the kernel can do.
    #[default]
    Auto,
    /// Opens are asked of the mounter; complete local files are then read by the kernel alone.
    Passthrough,
    /// Opens are not asked of anyone; reads that the page cache cannot answer are the mounter's.
    NoOpen,
}

/// Asked of the mounter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// Fetch the catalog, so that `Serve` cannot fail for want of it. Comes without a descriptor.
    Prepare(Mount),
    /// Serve the descriptor that comes along.
    Serve(Mount),
    /// Show this token to workers of the dataset from now on. Kept as long as the mounter lives.
    #[serde(rename_all = "camelCase")]
    Permit {
        /// UID of the dataset.
        dataset_uid: String,
        /// As the operator gave it.
        token: String,
    },
    /// What is served?
    List {},
    /// Drop what `Prepare` fetched, if nothing is mounted with it.
    Forget {
        /// Which mount.
        identity: String,
    },
}

/// Answered by the mounter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// To `Prepare`.
    Ready {},
    /// To `Serve`, after INIT was answered.
    Serving {},
    /// To `Permit`.
    Permitted {},
    /// To `List`.
    Mounts(Vec<Served>),
    /// To `Forget`.
    Forgotten {},
    /// To any.
    Error {
        /// May the same request succeed later?
        retry: bool,
        /// What failed, on what, and what to do.
        message: String,
    },
}

/// One superblock that is served now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Served {
    /// Dataset and snapshot.
    pub identity: String,
    /// The mode that was chosen; `Auto` only from mounters that know no modes.
    #[serde(default)]
    pub mode: Mode,
    /// What was read through this identity since the mounter started.
    pub reads: Reads,
}

/// Bytes and reads that reached the mounter; what the page cache answered is in none of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reads {
    /// Bytes asked for, cut at the end of the file.
    pub requested_bytes: u64,
    /// Bytes from the disk of this node.
    pub local_bytes: u64,
    /// Bytes from the disk of another node.
    pub peer_bytes: u64,
    /// Bytes that came from the origin for this read.
    pub origin_bytes: u64,
    /// Reads answered with an error.
    pub failed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_mount() -> Mount {
        Mount {
            identity: "i".into(),
            dataset_uid: "u".into(),
            snapshot: "s".into(),
            uid: 1,
            gid: 2,
            file_mode: 0o444,
            dir_mode: 0o555,
            mode: Mode::NoOpen,
        }
    }

    #[test]
    fn messages_look_as_the_design_says() {
        let serve = serde_json::to_value(Request::Serve(mk_mount())).unwrap();
        let expected = serde_json::json!({"serve": {"identity": "i", "datasetUid": "u", "snapshot": "s", "uid": 1, "gid": 2, "fileMode": 292, "dirMode": 365, "mode": "NoOpen"}});
        assert_eq!(serve, expected);
        // Records of an earlier plugin have no mode.
        let earlier = serde_json::json!({"identity": "i", "datasetUid": "u", "snapshot": "s", "uid": 1, "gid": 2, "fileMode": 292, "dirMode": 365});
        assert_eq!(serde_json::from_value::<Mount>(earlier).unwrap().mode, Mode::Auto);
        assert_eq!(serde_json::to_string(&Request::List {}).unwrap(), r#"{"list":{}}"#);
        let permit = serde_json::to_value(Request::Permit { dataset_uid: "u".into(), token: "t".into() }).unwrap();
        assert_eq!(permit, serde_json::json!({"permit": {"datasetUid": "u", "token": "t"}}));
        assert_eq!(serde_json::to_string(&Reply::Serving {}).unwrap(), r#"{"serving":{}}"#);
        let error = Reply::Error { retry: true, message: "m".into() };
        assert_eq!(serde_json::to_string(&error).unwrap(), r#"{"error":{"retry":true,"message":"m"}}"#);
    }

    #[test]
    fn a_node_full_of_mounts_fits_into_one_message() {
        let reads = Reads { requested_bytes: u64::MAX >> 8, local_bytes: u64::MAX >> 8, ..Reads::default() };
        let served = Served { identity: "x".repeat(53), mode: Mode::Passthrough, reads };
        let reply = Reply::Mounts(vec![served; 250]);
        assert!(serde_json::to_vec(&reply).unwrap().len() < crate::fdpass::MESSAGE_MAX);
    }
}
