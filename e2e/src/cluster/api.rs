//! The API server over plain HTTP, through a `kubectl proxy` in the same capsule.
//!
//! Waiting means asking again and again; starting kubectl each time would take a tenth of a second of CPU, this takes a
//! millisecond.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::http::exchange;

const TIMEOUT: Duration = Duration::from_secs(30);

/// A client with every right.
#[derive(Clone)]
pub struct Api {
    socket: PathBuf,
}

impl Api {
    pub(super) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// The object or list at a path such as `/api/v1/nodes`.
    ///
    /// # Errors
    /// It is not there, or the API server could not be asked.
    pub fn get(&self, path: &str) -> Result<Value> {
        serde_json::from_str(&self.text(path)?).with_context(|| format!("parse the answer to GET {path}"))
    }

    /// The object at a path, if it exists.
    ///
    /// # Errors
    /// The API server could not be asked.
    pub fn find(&self, path: &str) -> Result<Option<Value>> {
        match self.request("GET", path, "", "")? {
            (200..300, body) => serde_json::from_str(&body).map(Some).with_context(|| format!("parse {path}")),
            (404, _) => Ok(None),
            (status, body) => bail!("GET {path}: {status} {}", message(&body)),
        }
    }

    /// The plain answer at a path such as `/readyz`.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn text(&self, path: &str) -> Result<String> {
        match self.request("GET", path, "", "")? {
            (200..300, body) => Ok(body),
            (status, body) => bail!("GET {path}: {status} {}", message(&body)),
        }
    }

    /// Merges `patch` into the object at a path.
    ///
    /// # Errors
    /// The API server refused it.
    pub fn merge_patch(&self, path: &str, patch: &Value) -> Result<()> {
        match self.request("PATCH", path, "application/merge-patch+json", &patch.to_string())? {
            (200..300, _) => Ok(()),
            (status, body) => bail!("PATCH {path}: {status} {}", message(&body)),
        }
    }

    fn request(&self, method: &str, path: &str, content: &str, body: &str) -> Result<(u16, String)> {
        let stream = UnixStream::connect(&self.socket).context("connect to the API server's proxy")?;
        stream.set_read_timeout(Some(TIMEOUT)).context("set a time limit")?;
        exchange(stream, method, path, content, body)
    }
}

/// The message of a `Status` object, or the text as it is.
fn message(body: &str) -> String {
    let status: Option<Value> = serde_json::from_str(body).ok();
    status.and_then(|status| status["message"].as_str().map(str::to_owned)).unwrap_or_else(|| body.trim().to_owned())
}

/// The path of a resource (its plural name), or of one object of it.
pub fn path_of(resource: &str, namespace: Option<&str>, name: Option<&str>) -> String {
    let group = match resource {
        "controllerrevisions" | "daemonsets" | "deployments" | "replicasets" | "statefulsets" => "apis/apps/v1",
        "cronjobs" | "jobs" => "apis/batch/v1",
        "leases" => "apis/coordination.k8s.io/v1",
        "csidrivers" | "csinodes" | "storageclasses" | "volumeattachments" => "apis/storage.k8s.io/v1",
        "endpointslices" => "apis/discovery.k8s.io/v1",
        "clusterrolebindings" | "clusterroles" | "rolebindings" | "roles" => "apis/rbac.authorization.k8s.io/v1",
        "customresourcedefinitions" => "apis/apiextensions.k8s.io/v1",
        "poddisruptionbudgets" => "apis/policy/v1",
        "cachedatasets" | "cachepreloads" => "apis/larder.dev/v1alpha1",
        _ => "api/v1",
    };
    let namespace = namespace.map(|namespace| format!("/namespaces/{namespace}")).unwrap_or_default();
    let name = name.map(|name| format!("/{name}")).unwrap_or_default();
    format!("/{group}{namespace}/{resource}{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_group_namespace_and_name() {
        assert_eq!(path_of("nodes", None, None), "/api/v1/nodes");
        assert_eq!(path_of("pods", Some("vision"), Some("a")), "/api/v1/namespaces/vision/pods/a");
        assert_eq!(path_of("cachedatasets", Some("v"), None), "/apis/larder.dev/v1alpha1/namespaces/v/cachedatasets");
    }
}
