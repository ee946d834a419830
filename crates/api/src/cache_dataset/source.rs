//! `spec.source`: where the data is and how to get at it.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Where the data is.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!self.uri.startsWith('s3:') || has(self.credentials) && has(self.credentials.secretRef) != has(self.credentials.anonymous)")
    .message("credentials must have exactly one of secretRef and anonymous"))]
#[x_kube(validation = Rule::new("!self.uri.startsWith('file:') || !has(self.endpoint) && !has(self.region) && !has(self.ca) && !(has(self.pathStyle) && self.pathStyle) && !(has(self.credentials) && (has(self.credentials.secretRef) || has(self.credentials.anonymous)))")
    .message("a file:// source has no endpoint, region, pathStyle, ca or credentials; remove them"))]
pub struct Source {
    /// Bucket and folder, such as `s3://datasets/imagenet/`, or a folder that all nodes have, such as `file:///shared/imagenet/` on
    /// a network file system; it must lie beneath a folder that the administrator allows (chart value `fileOrigins`).
    /// Scheme and bucket cannot be changed later: make another CacheDataset.
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new(r"self.matches('^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?$') || self.matches('^file:///.+$')")
        .message("uri must be s3://<bucket>/ or s3://<bucket>/<folder>/, with a bucket name of 3 to 63 lower-case letters, digits, dots and dashes, or file:///<folder>/"))]
    #[x_kube(validation = Rule::new(r"!self.matches('^(s3|file)://.*(//|/[.]{1,2}(/|$))')")
        .message("the folder in uri must not contain empty parts, '.' or '..'"))]
    #[x_kube(validation = Rule::new("self.split('/')[0] == oldSelf.split('/')[0] && self.split('/')[2] == oldSelf.split('/')[2]")
        .message("scheme and bucket in uri cannot be changed; make another CacheDataset"))]
    pub uri: String,
    /// Address of an S3-compatible store, such as `https://s3.internal:9000`. Default: Amazon S3 of the region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    #[x_kube(validation = Rule::new(r"self.matches('^https?://[A-Za-z0-9.:\\[\\]-]+/?$')")
        .message("endpoint must be http://<host>[:<port>] or https://<host>[:<port>]"))]
    pub endpoint: Option<String>,
    /// Region of the bucket. Default `us-east-1`, which most S3-compatible stores accept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub region: Option<String>,
    /// Put the bucket into the path instead of the host name; many S3-compatible stores want it. Default false.
    #[serde(default)]
    pub path_style: bool,
    /// Certificate authority of the endpoint. Default: the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<CaRef>,
    /// How to sign in: exactly one of `secretRef` and `anonymous`; left out for `file://`.
    #[serde(default)]
    pub credentials: Credentials,
    /// Only files that match one of these globs, relative to the folder, such as `train/**`. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 1024)))]
    pub include: Vec<String>,
    /// Not the files that match one of these globs; wins over `include`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 1024)))]
    pub exclude: Vec<String>,
}

/// Certificate authority of the endpoint.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CaRef {
    /// A key of a ConfigMap in the dataset's namespace, holding PEM certificates.
    pub config_map_ref: ConfigMapKeyRef,
}

/// A key of a ConfigMap in the dataset's namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKeyRef {
    /// Name of the ConfigMap.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub name: String,
    /// Key in it. Default `ca.crt`.
    #[serde(default = "default_ca_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn default_ca_key() -> String {
    "ca.crt".into()
}

/// How to sign in at the origin.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Credentials {
    /// A Secret in the dataset's namespace with `accessKeyId`, `secretAccessKey` and, if needed, `sessionToken`
    /// (or `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`). Changes are followed within seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// `{}`: requests are not signed, for public buckets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anonymous: Option<Anonymous>,
}

/// A Secret in the dataset's namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub name: String,
}

/// Requests are not signed.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Anonymous {}

impl Source {
    /// The folder of the host that the source names, if it does.
    #[must_use]
    pub fn host_folder(&self) -> Option<&str> {
        self.uri.strip_prefix("file://").map(|folder| folder.trim_end_matches('/'))
    }

    /// The URI with its folder ended by a slash: `s3://b/p` and `s3://b/p/` are the same folder.
    #[must_use]
    pub fn folder_uri(&self) -> String {
        if self.uri.ends_with('/') { self.uri.clone() } else { format!("{}/", self.uri) }
    }
}
