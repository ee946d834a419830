//! CSI Node: what the kubelet asks for.
//!
//! Each call: validate → lock → load the record → nothing to do? → act → save. The work runs in a task of its own, so that a
//! call that the kubelet gives up on is finished or undone all the same.

mod locks;
mod publish;
mod unpublish;
pub(crate) mod validate;

use crate::{
    arguments::given,
    datasets::Datasets,
    error::{self, CallError},
    events::Events,
    layout::Layout,
    metrics::Metrics,
    mount,
    mounter::Mounter,
    permits::{self, Permits},
    probe::{Probe, Prober, Usage},
    state::{Record, State},
    volumes::Volumes,
    watchdog::Connection,
};
use larder_keeper::client::Held;
use larder_proto::csi::v1::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse,
    NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest, NodeStageVolumeResponse,
    NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, VolumeUsage,
    node_server,
    node_service_capability::{self, rpc},
    volume_usage::Unit,
};
use locks::Locks;
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tonic::{Request, Response, Status};

/// The kubelet asks for the statistics of all volumes in turn and waits for each.
const STATS_PATIENCE: Duration = Duration::from_millis(900);

/// Longest message of a status, which travels in a header; some repeat what was given.
const MESSAGE_MAX: usize = 2048;
/// Longest argument in a log: a volume id, or a path of the kubelet's.
const ARGUMENT_MAX: usize = 512;

/// Everything a call needs.
pub(crate) struct Plugin {
    pub(crate) node: String,
    pub(crate) layout: Layout,
    pub(crate) state: State,
    pub(crate) volumes: Volumes,
    pub(crate) datasets: Datasets,
    pub(crate) mounter: Mounter,
    /// FUSE connections and what the next mounter must know of them. Nothing is done with them here: as long as one of mounter,
    /// keeper and this process is alive, no mount ends.
    pub(crate) held: Held,
    /// None where nobody asks for them.
    pub(crate) permits: Option<Permits>,
    pub(crate) prober: Prober,
    pub(crate) metrics: Metrics,
    pub(crate) events: Events,
    pub(crate) locks: Locks,
    /// Mounts that have ended, of which it was told.
    pub(crate) ended: Mutex<BTreeSet<Connection>>,
}

impl Plugin {
    /// Renews the mount tokens of all datasets that are mounted here, long before they expire. Never ends.
    pub(crate) async fn keep_permitted(&self) {
        let Some(permits) = &self.permits else { return std::future::pending().await };
        loop {
            tokio::time::sleep(permits::LOOK).await;
            let datasets: BTreeSet<_> = self.state.all().into_iter().map(|r| r.mount.dataset_uid).collect();
            permits.renew(&datasets).await;
        }
    }
}

/// A call that is under way.
pub(crate) struct Call<'a> {
    method: &'static str,
    volume: &'a str,
    path: &'a str,
    began: Instant,
}

impl<'a> Call<'a> {
    pub(crate) fn begin(method: &'static str, volume: &'a str, path: &'a str) -> Self {
        Self { method, volume, path, began: Instant::now() }
    }
}

/// The service; clones share the plugin.
#[derive(Clone)]
pub(crate) struct Node(Arc<Plugin>);

impl Node {
    pub(crate) fn new(plugin: Arc<Plugin>) -> Self {
        Self(plugin)
    }
}

/// As much of an argument as is worth a place in a log.
fn brief(argument: &str) -> &str {
    &argument[..argument.floor_char_boundary(ARGUMENT_MAX)]
}

impl Plugin {
    /// Logs and counts how a call ended. Never the request: its maps may hold tokens.
    pub(crate) fn ended<T>(&self, call: &Call<'_>, result: Result<T, CallError>) -> Result<Response<T>, Status> {
        let Call { method, began, .. } = *call;
        let (volume, path) = (brief(call.volume), brief(call.path));
        let code = result.as_ref().map_or_else(CallError::code, |_| tonic::Code::Ok);
        self.metrics.call(method, code, began.elapsed());
        self.metrics.published.set(self.state.targets());
        match result {
            Ok(reply) => {
                tracing::debug!(method, volume, path, "done");
                Ok(Response::new(reply))
            }
            Err(error) => {
                let mut error = error.to_string();
                error.truncate(error.floor_char_boundary(MESSAGE_MAX));
                if code == tonic::Code::Internal {
                    tracing::error!(method, volume, path, ?code, error, "call failed");
                } else {
                    tracing::warn!(method, volume, path, ?code, error, "call refused");
                }
                Err(Status::new(code, error))
            }
        }
    }

    async fn stats(&self, volume: &str, path: &str) -> Result<Usage, CallError> {
        given("volume_id", volume)?;
        given("volume_path", path)?;
        // Whatever else they are: what was never published is not found.
        let (uid, target) = (volume.split_once('.').map(|(uid, _)| uid), PathBuf::from(path));
        let not_there = || CallError::NotPublished { volume: volume.to_owned(), target: target.clone() };
        let of_volume = |record: &Record| match record.volume_at(&target) {
            Some(published) => published == volume,
            None => Some(record.mount.dataset_uid.as_str()) == uid,
        };
        let record = self.state.by_target(&target).filter(of_volume).ok_or_else(not_there)?;
        let top = mount::top(&target)?.filter(|m| mount::is_identity(m, record.identity())).ok_or_else(not_there)?;
        match self.prober.probe(top.device, &target, STATS_PATIENCE).await {
            Probe::Alive(usage) => Ok(usage),
            Probe::Dead => Err(CallError::Dead(target)),
            Probe::Hung => Err(CallError::Hung(target)),
            Probe::Failed(source) => Err(CallError::Probe { path: target, source }),
        }
    }
}

#[tonic::async_trait]
impl node_server::Node for Node {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let (volume, path) = (request.volume_id.clone(), request.target_path.clone());
        let call = Call::begin("NodePublishVolume", &volume, &path);
        let result = match validate::publish(&self.0.layout, &request) {
            Ok(publish) => error::joined(tokio::spawn(Arc::clone(&self.0).publish(publish)).await),
            Err(e) => Err(e),
        };
        self.0.ended(&call, result.map(|()| NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let NodeUnpublishVolumeRequest { volume_id, target_path } = request.into_inner();
        let call = Call::begin("NodeUnpublishVolume", &volume_id, &target_path);
        let result = match validate::unpublish(&self.0.layout, &volume_id, &target_path) {
            Ok(target) => error::joined(tokio::spawn(Arc::clone(&self.0).unpublish(target)).await),
            Err(e) => Err(e),
        };
        self.0.ended(&call, result.map(|()| NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let NodeGetVolumeStatsRequest { volume_id, volume_path, .. } = request.into_inner();
        let call = Call::begin("NodeGetVolumeStats", &volume_id, &volume_path);
        let result = self.0.stats(&volume_id, &volume_path).await.map(|usage| {
            // A snapshot is as full as it can be.
            let entry = |total: u64, unit: Unit| {
                let total = i64::try_from(total).unwrap_or(i64::MAX);
                VolumeUsage { available: 0, total, used: total, unit: unit.into() }
            };
            let usage = vec![entry(usage.bytes, Unit::Bytes), entry(usage.inodes, Unit::Inodes)];
            NodeGetVolumeStatsResponse { usage, volume_condition: None }
        });
        self.0.ended(&call, result)
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let capability = |rpc: rpc::Type| NodeServiceCapability {
            r#type: Some(node_service_capability::Type::Rpc(node_service_capability::Rpc { r#type: rpc.into() })),
        };
        // No STAGE_UNSTAGE_VOLUME: staging knows no pod. With the second one the kubelet tells ReadWriteOnce, which several pods
        // may have, from ReadWriteOncePod.
        let capabilities = [rpc::Type::GetVolumeStats, rpc::Type::SingleNodeMultiWriter].map(capability).into();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Result<Response<NodeGetInfoResponse>, Status> {
        let node_id = self.0.node.clone();
        Ok(Response::new(NodeGetInfoResponse { node_id, max_volumes_per_node: 0, accessible_topology: None }))
    }

    async fn node_stage_volume(&self, _: Request<NodeStageVolumeRequest>) -> Result<Response<NodeStageVolumeResponse>, Status> {
        Err(Status::unimplemented("the driver does not stage volumes"))
    }

    async fn node_unstage_volume(
        &self,
        _: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        Err(Status::unimplemented("the driver does not stage volumes"))
    }

    async fn node_expand_volume(
        &self,
        _: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        Err(Status::unimplemented("a snapshot has the size it has"))
    }
}
