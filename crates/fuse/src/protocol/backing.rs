//! Mounter → node plugin: backing files for the FUSE connections that the mounter serves. The plugin has the right to register
//! them and the mounter has the files.
//!
//! One socket connection speaks of one FUSE connection, the one that `Attach` brings. The plugin forgets it when the socket
//! closes; what was registered stays the FUSE connection's, until it or the id is forgotten.

use serde::{Deserialize, Serialize};

/// Asked of the node plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// Speak of the FUSE connection whose descriptor comes along.
    Attach {},
    /// Register the file whose descriptor comes along.
    Register {},
    /// Forget an id.
    Unregister {
        /// Which.
        id: u32,
    },
}

/// Answered by the node plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// To `Attach`.
    Attached {},
    /// To `Register`.
    Registered {
        /// For [`crate::backing::opened`].
        id: u32,
    },
    /// To `Unregister`.
    Unregistered {},
    /// To any.
    Error {
        /// The kernel's error number, or EPROTO for a request that makes no sense here.
        errno: i32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_look_as_the_design_says() {
        assert_eq!(serde_json::to_string(&Request::Attach {}).unwrap(), r#"{"attach":{}}"#);
        assert_eq!(serde_json::to_string(&Request::Register {}).unwrap(), r#"{"register":{}}"#);
        assert_eq!(serde_json::to_string(&Request::Unregister { id: 3 }).unwrap(), r#"{"unregister":{"id":3}}"#);
        assert_eq!(serde_json::to_string(&Reply::Registered { id: 3 }).unwrap(), r#"{"registered":{"id":3}}"#);
        assert_eq!(serde_json::to_string(&Reply::Error { errno: 40 }).unwrap(), r#"{"error":{"errno":40}}"#);
    }
}
