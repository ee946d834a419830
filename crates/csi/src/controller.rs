//! CSI Controller: volumes for tools and orchestrators that speak CSI and nothing else.
//!
//! In a cluster the operator makes volumes and claims, and nobody calls this. It makes no data and asks no origin: a volume is a
//! name for a dataset that exists, and is remembered on this node only (`volumes`). Deleting one deletes nothing of the dataset.

mod validate;

use crate::{
    arguments::text,
    error::CallError,
    node::{Call, Plugin},
    volumes::Volume,
};
use larder_proto::csi::v1::{
    self as csi, ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetCapabilitiesRequest,
    ControllerGetCapabilitiesResponse, ControllerGetVolumeRequest, ControllerGetVolumeResponse, ControllerModifyVolumeRequest,
    ControllerModifyVolumeResponse, ControllerPublishVolumeRequest, ControllerPublishVolumeResponse,
    ControllerServiceCapability, ControllerUnpublishVolumeRequest, ControllerUnpublishVolumeResponse, CreateSnapshotRequest,
    CreateSnapshotResponse, CreateVolumeRequest, CreateVolumeResponse, DeleteSnapshotRequest, DeleteSnapshotResponse,
    DeleteVolumeRequest, DeleteVolumeResponse, GetCapacityRequest, GetCapacityResponse, GetSnapshotRequest,
    GetSnapshotResponse, ListSnapshotsRequest, ListSnapshotsResponse, ListVolumesRequest, ListVolumesResponse,
    ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse, controller_server,
    controller_service_capability::{self, rpc},
    validate_volume_capabilities_response::Confirmed,
};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The service; clones share the plugin.
#[derive(Clone)]
pub(crate) struct Controller(Arc<Plugin>);

impl Controller {
    pub(crate) fn new(plugin: Arc<Plugin>) -> Self {
        Self(plugin)
    }
}

impl Plugin {
    async fn create(&self, request: &CreateVolumeRequest) -> Result<Volume, CallError> {
        let wanted = validate::create(request)?;
        let volume = match self.volumes.named(wanted.name) {
            Some(volume) => volume,
            None => {
                let uid = self.datasets.uid(&wanted.dataset.namespace, &wanted.dataset.name).await?;
                self.volumes.keep(Volume::new(wanted.name, &wanted.dataset, uid, wanted.range.required))?
            }
        };
        if volume.dataset == wanted.dataset && wanted.range.holds(volume.capacity) {
            return Ok(volume);
        }
        let Volume { name, dataset, capacity, .. } = volume;
        Err(CallError::OtherArguments { name, dataset: format!("{}/{}", dataset.namespace, dataset.name), capacity })
    }

    fn delete(&self, volume_id: &str) -> Result<(), CallError> {
        text("volume_id", volume_id)?;
        if let Some(target) = self.state.target_of(volume_id) {
            return Err(CallError::InUse { volume: volume_id.to_owned(), target });
        }
        match self.volumes.by_id(volume_id) {
            Some(volume) => Ok(self.volumes.forget(&volume)?),
            None => Ok(()),
        }
    }

    fn confirm(&self, request: ValidateVolumeCapabilitiesRequest) -> Result<ValidateVolumeCapabilitiesResponse, CallError> {
        text("volume_id", &request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(CallError::invalid("volume_capabilities", "is empty, and must not be"));
        }
        let volume = self.volumes.by_id(&request.volume_id).ok_or_else(|| CallError::NoVolume(request.volume_id.clone()))?;
        // What does not fit is an answer here, no error.
        if let Err(reason) = validate::fits(&volume, &request) {
            return Ok(ValidateVolumeCapabilitiesResponse { confirmed: None, message: reason.to_string() });
        }
        let ValidateVolumeCapabilitiesRequest { volume_context, volume_capabilities, parameters, mutable_parameters, .. } =
            request;
        let confirmed = Confirmed { volume_context, volume_capabilities, parameters, mutable_parameters };
        Ok(ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message: String::new() })
    }
}

/// For the fuzzer: what a volume would be of, and its id.
pub(crate) fn read(request: &CreateVolumeRequest) -> Option<([String; 2], String)> {
    let wanted = validate::create(request).ok()?;
    let volume = Volume::new(wanted.name, &wanted.dataset, larder_core::names::uid_of_name(""), wanted.range.required);
    let id = volume.id();
    Some(([wanted.dataset.namespace, wanted.dataset.name], id))
}

fn unimplemented<T>(what: &str) -> Result<Response<T>, Status> {
    Err(Status::unimplemented(what))
}

const NO_SNAPSHOTS: &str = "the driver takes no snapshots of volumes; a dataset's own are the operator's";
const NO_PUBLISH: &str = "a dataset can be mounted on every node; there is nothing to attach";

#[tonic::async_trait]
impl controller_server::Controller for Controller {
    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let capability = |rpc: rpc::Type| ControllerServiceCapability {
            r#type: Some(controller_service_capability::Type::Rpc(controller_service_capability::Rpc { r#type: rpc.into() })),
        };
        let capabilities = [rpc::Type::CreateDeleteVolume, rpc::Type::SingleNodeMultiWriter].map(capability).into();
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_volume(&self, request: Request<CreateVolumeRequest>) -> Result<Response<CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        let call = Call::begin("CreateVolume", &request.name, "");
        let result = self.0.create(&request).await.map(|volume| {
            let volume = csi::Volume {
                capacity_bytes: volume.capacity,
                volume_id: volume.id(),
                volume_context: volume.dataset.parameters(),
                ..csi::Volume::default()
            };
            CreateVolumeResponse { volume: Some(volume) }
        });
        self.0.ended(&call, result)
    }

    async fn delete_volume(&self, request: Request<DeleteVolumeRequest>) -> Result<Response<DeleteVolumeResponse>, Status> {
        let DeleteVolumeRequest { volume_id, .. } = request.into_inner();
        let call = Call::begin("DeleteVolume", &volume_id, "");
        self.0.ended(&call, self.0.delete(&volume_id).map(|()| DeleteVolumeResponse {}))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        let call = Call::begin("ValidateVolumeCapabilities", &volume, "");
        self.0.ended(&call, self.0.confirm(request))
    }

    async fn controller_publish_volume(
        &self,
        _: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        unimplemented(NO_PUBLISH)
    }

    async fn controller_unpublish_volume(
        &self,
        _: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        unimplemented(NO_PUBLISH)
    }

    async fn list_volumes(&self, _: Request<ListVolumesRequest>) -> Result<Response<ListVolumesResponse>, Status> {
        unimplemented("no node knows the volumes of the others")
    }

    async fn get_capacity(&self, _: Request<GetCapacityRequest>) -> Result<Response<GetCapacityResponse>, Status> {
        unimplemented("a volume takes no room; the quota is the dataset's")
    }

    async fn create_snapshot(&self, _: Request<CreateSnapshotRequest>) -> Result<Response<CreateSnapshotResponse>, Status> {
        unimplemented(NO_SNAPSHOTS)
    }

    async fn delete_snapshot(&self, _: Request<DeleteSnapshotRequest>) -> Result<Response<DeleteSnapshotResponse>, Status> {
        unimplemented(NO_SNAPSHOTS)
    }

    async fn list_snapshots(&self, _: Request<ListSnapshotsRequest>) -> Result<Response<ListSnapshotsResponse>, Status> {
        unimplemented(NO_SNAPSHOTS)
    }

    async fn get_snapshot(&self, _: Request<GetSnapshotRequest>) -> Result<Response<GetSnapshotResponse>, Status> {
        unimplemented(NO_SNAPSHOTS)
    }

    async fn controller_expand_volume(
        &self,
        _: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        unimplemented("a snapshot has the size it has")
    }

    async fn controller_get_volume(
        &self,
        _: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        unimplemented("a dataset's conditions are in the CacheDataset")
    }

    async fn controller_modify_volume(
        &self,
        _: Request<ControllerModifyVolumeRequest>,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        unimplemented("a volume has nothing that can be changed; change the CacheDataset")
    }
}
