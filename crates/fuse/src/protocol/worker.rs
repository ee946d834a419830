//! Mounter → worker of its node: complete local files and catalogs, as descriptors.

use serde::{Deserialize, Serialize};

/// Asked of the worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// The complete and verified file, if it is on this node.
    Open {
        /// Digest of the snapshot.
        snapshot: String,
        /// Position in its catalog + 1.
        inode: u64,
    },
    /// A catalog.
    Catalog {
        /// Digest of the snapshot.
        digest: String,
    },
    /// What pods of this node have read on other nodes. Not answered; from the first one on, the worker tells on this
    /// connection what comes here ([`Reply::Arrived`]). When the connection ends, anything may have come since.
    Reads {
        /// Digest of the snapshot, the same in all reports of a connection.
        snapshot: String,
        /// Inode, and bytes of it since the last report.
        files: Vec<(u64, u64)>,
    },
}

/// Answered by the worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// Comes with a descriptor, open for reading.
    File {},
    /// Not on this node, or not complete.
    Absent {
        /// Is this node the owner, so that the file may be here soon?
        owner: bool,
    },
    /// Files of the reported snapshot that are complete on this node now.
    Arrived {
        /// Positions in its catalog + 1.
        inodes: Vec<u64>,
    },
    /// What failed.
    Error(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_look_as_the_design_says() {
        let open = Request::Open { snapshot: "d".into(), inode: 7 };
        assert_eq!(serde_json::to_string(&open).unwrap(), r#"{"open":{"snapshot":"d","inode":7}}"#);
        assert_eq!(serde_json::to_string(&Reply::File {}).unwrap(), r#"{"file":{}}"#);
        assert_eq!(serde_json::to_string(&Reply::Absent { owner: true }).unwrap(), r#"{"absent":{"owner":true}}"#);
        assert_eq!(serde_json::to_string(&Reply::Error("e".into())).unwrap(), r#"{"error":"e"}"#);
        let reads = Request::Reads { snapshot: "d".into(), files: vec![(7, 4096)] };
        assert_eq!(serde_json::to_string(&reads).unwrap(), r#"{"reads":{"snapshot":"d","files":[[7,4096]]}}"#);
        assert_eq!(serde_json::to_string(&Reply::Arrived { inodes: vec![7] }).unwrap(), r#"{"arrived":{"inodes":[7]}}"#);
    }
}
