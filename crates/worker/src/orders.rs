//! The worker's orders, as the operator gave them and as they are stored.

use larder_core::names::is_digest;
use larder_proto::control::v1 as pb;
use serde::{Deserialize, Serialize};

/// Everything that is desired of this worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Orders {
    pub generation: String,
    pub source: Source,
    /// Of all disks together, 0: no limit.
    pub quota_bytes: u64,
    /// Of each disk; empty in orders for one disk.
    pub disk_quota_bytes: Vec<u64>,
    pub listing_id: String,
    pub snapshot: String,
    pub preload: bool,
    pub retry: u64,
    /// On how many members each file is kept; 0, of orders from before there was such a number, means 1.
    pub replicas: u32,
    /// Bytes a second, 0: no limit.
    pub preload_bandwidth: u64,
    pub preload_paths: Vec<String>,
}

impl Orders {
    /// Bytes that may be used on each disk.
    pub fn quotas(&self) -> &[u64] {
        if self.disk_quota_bytes.is_empty() { std::slice::from_ref(&self.quota_bytes) } else { &self.disk_quota_bytes }
    }
}

/// Where the data is, and which credentials and CA to wait for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Source {
    pub uri: String,
    pub endpoint: String,
    pub region: String,
    pub path_style: bool,
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    pub anonymous: bool,
    pub credentials_generation: String,
    pub ca_generation: String,
}

impl Source {
    /// For larder-origin.
    pub fn to_origin(&self) -> larder_origin::Source {
        larder_origin::Source {
            uri: self.uri.clone(),
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            path_style: self.path_style,
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            anonymous: self.anonymous,
        }
    }
}

/// What is wrong with a Configure; nothing of it is taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OrdersError {
    #[error("configure: {0} is missing")]
    Missing(&'static str),
    #[error("configure: snapshot {0:?} is no digest")]
    Snapshot(String),
}

impl TryFrom<pb::ConfigureRequest> for Orders {
    type Error = OrdersError;

    fn try_from(request: pb::ConfigureRequest) -> Result<Self, OrdersError> {
        let config = request.config.ok_or(OrdersError::Missing("config"))?;
        let s = config.source.ok_or(OrdersError::Missing("config.source"))?;
        // It becomes part of a path.
        if !config.snapshot.is_empty() && !is_digest(&config.snapshot) {
            return Err(OrdersError::Snapshot(config.snapshot));
        }
        Ok(Self {
            generation: config.generation,
            source: Source {
                uri: s.uri,
                endpoint: s.endpoint,
                region: s.region,
                path_style: s.path_style,
                include: s.include,
                exclude: s.exclude,
                anonymous: s.anonymous,
                credentials_generation: s.credentials_generation,
                ca_generation: s.ca_generation,
            },
            quota_bytes: config.quota_bytes,
            disk_quota_bytes: config.disk_quota_bytes,
            listing_id: config.listing_id,
            snapshot: config.snapshot,
            preload: config.preload,
            retry: config.retry,
            replicas: config.replicas,
            preload_bandwidth: config.preload_bandwidth,
            preload_paths: config.preload_paths,
        })
    }
}
