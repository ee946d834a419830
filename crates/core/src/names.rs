//! Names, ports, folders and ids that more than one process must agree on. Changing one breaks running installations.

/// CSI driver name; `csi-sanity` wants it to end in a letter.
pub const DRIVER: &str = "csi.larder.dev";

/// Data port of a worker: HTTP/1.1 ranges.
pub const WORKER_DATA_PORT: u16 = 7470;
/// Control port of a worker: gRPC.
pub const WORKER_CONTROL_PORT: u16 = 7471;
/// Admin port of a worker: health and metrics.
pub const WORKER_ADMIN_PORT: u16 = 7472;
/// Port of the operator's CA: gRPC.
pub const OPERATOR_AUTHORITY_PORT: u16 = 7480;
/// Admin port of the operator.
pub const OPERATOR_ADMIN_PORT: u16 = 7481;
/// Admin port of the node plugin.
pub const NODE_ADMIN_PORT: u16 = 7482;
/// Admin port of the mounter.
pub const MOUNTER_ADMIN_PORT: u16 = 7483;
/// Admin port of the keeper.
pub const KEEPER_ADMIN_PORT: u16 = 7484;

/// User id of the mounter.
pub const MOUNTER_UID: u32 = 65531;
/// User id of the workers.
pub const WORKER_UID: u32 = 65532;
/// User id of the keeper.
pub const KEEPER_UID: u32 = 65533;

/// Host folder of the sockets; one folder per daemon beneath it.
pub const RUN_DIR: &str = "/var/lib/larder/run";
/// Folder of all datasets beneath a tier's host path.
pub const TIER_DIR: &str = "larder";

/// Name of the ConfigMap with the member list of a dataset.
#[must_use]
pub fn members_config_map(dataset_uid: &str) -> String {
    format!("{dataset_uid}-members")
}
/// Key in that ConfigMap.
pub const MEMBERS_KEY: &str = "members.json";

/// Name of the operator's Service.
pub const OPERATOR_SERVICE: &str = "larder-operator";
/// Who the tokens are for by which pods prove to the operator what they are.
pub const AUTHORITY_AUDIENCE: &str = "larder-operator";
/// Folder in a pod where that token is.
pub const AUTHORITY_TOKEN_DIR: &str = "/var/run/secrets/larder.dev";
/// Name of the Secret with the keys of the CA, and of the ConfigMap with its certificates.
pub const AUTHORITY: &str = "larder-authority";
/// Key in that ConfigMap.
pub const AUTHORITY_BUNDLE_KEY: &str = "ca.crt";
/// Name of a worker's file, in the dataset's folder, with its own key and certificate.
pub const WORKER_IDENTITY: &str = "identity.json";

/// Name of the worker DaemonSet and of its headless Service.
#[must_use]
pub fn worker_name(dataset_uid: &str) -> String {
    format!("worker-{dataset_uid}")
}

/// Socket of the worker of one dataset, in the worker's run folder.
#[must_use]
pub fn worker_socket(run_dir: &std::path::Path, dataset_uid: &str) -> std::path::PathBuf {
    run_dir.join("worker").join(format!("{dataset_uid}.sock"))
}

/// Socket of the mounter, in the mounter's run folder.
#[must_use]
pub fn mounter_socket(run_dir: &std::path::Path) -> std::path::PathBuf {
    run_dir.join("mounter").join("mounter.sock")
}

/// Beginning of the keeper's keys of FUSE sessions; the mount identity follows.
pub const HELD_SESSIONS: &str = "session/";

/// Locked by the process that serves the mounts of this node.
#[must_use]
pub fn mounter_lock(run_dir: &std::path::Path) -> std::path::PathBuf {
    run_dir.join("mounter/serving.lock")
}

/// The mounter's certificate and key, for the next process.
#[must_use]
pub fn mounter_identity(run_dir: &std::path::Path) -> std::path::PathBuf {
    run_dir.join("mounter/identity.json")
}

/// Socket of the keeper, in the keeper's run folder.
#[must_use]
pub fn keeper_socket(run_dir: &std::path::Path) -> std::path::PathBuf {
    run_dir.join("keeper").join("keeper.sock")
}

/// The node plugin's socket for backing files.
#[must_use]
pub fn backing_socket(run_dir: &std::path::Path) -> std::path::PathBuf {
    run_dir.join("node").join("backing.sock")
}

/// Names one FUSE superblock on a node: dataset and snapshot.
#[must_use]
pub fn mount_identity(dataset_uid: &str, snapshot: &str) -> String {
    format!("{dataset_uid}-{}", &snapshot[..snapshot.len().min(16)])
}

/// Is it a Kubernetes UID as Larder puts it into paths and socket names (lower-case hex and dashes, 36 characters)?
///
/// Everything that comes over a socket or from a volume id passes this before it becomes part of a path.
#[must_use]
pub fn is_uid(s: &str) -> bool {
    s.len() == 36
        && s.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_digit() || (b'a'..=b'f').contains(&b),
        })
}

/// A UID for what has a name and none: the same for the same name everywhere, another for every other.
#[must_use]
pub fn uid_of_name(name: &str) -> String {
    let hex = blake3::hash(name.as_bytes()).to_hex();
    [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &hex[part]).join("-")
}

/// Is it a snapshot digest or object key (64 lower-case hex digits)?
#[must_use]
pub fn is_digest(s: &str) -> bool {
    s.len() == 64 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_cannot_leave_its_folder() {
        assert!(is_uid("0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f"));
        for bad in [
            "",
            "../../../../../../../etc/passwd-xxxx",
            "0D1F3A52-7C0E-4D55-9F5A-0A1B2C3D4E5F",
            "0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5/",
        ] {
            assert!(!is_uid(bad), "{bad}");
        }
    }

    #[test]
    fn a_uid_of_a_name_is_one_and_never_changes() {
        for name in ["", "a", "../../etc", "é\0"] {
            assert!(is_uid(&uid_of_name(name)), "{name}");
        }
        assert_eq!(uid_of_name("a"), "17762fdd-d969-a453-925d-65717ac3eea2");
    }

    #[test]
    fn a_digest_is_64_hex_digits() {
        assert!(is_digest(&"0a".repeat(32)));
        assert!(!is_digest(&"0A".repeat(32)));
        assert!(!is_digest(&"0a".repeat(31)));
        assert!(!is_digest(&"..".repeat(32)));
    }
}
