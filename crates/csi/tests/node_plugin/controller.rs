//! The controller as a tool that speaks CSI alone sees it.

use crate::harness::{Lab, UID, capability};
use larder_proto::csi::v1::{
    CapacityRange, ControllerGetCapabilitiesRequest, CreateVolumeRequest, DeleteVolumeRequest, ListVolumesRequest,
    NodeGetInfoRequest, NodePublishVolumeRequest, NodeUnpublishVolumeRequest, ValidateVolumeCapabilitiesRequest, Volume,
    controller_client::ControllerClient,
    volume_capability::{AccessType, BlockVolume, MountVolume},
};
use std::fs;
use tonic::{Code, Status, transport::Channel};

const TOGETHER: &str = "csi.sock";
const ALONE: &str = "controller.sock";

async fn create(controller: &mut ControllerClient<Channel>, request: &CreateVolumeRequest) -> Result<Volume, Status> {
    Ok(controller.create_volume(request.clone()).await?.into_inner().volume.expect("a volume"))
}

async fn delete(controller: &mut ControllerClient<Channel>, volume_id: &str) -> Result<(), Status> {
    controller.delete_volume(DeleteVolumeRequest { volume_id: volume_id.into(), ..Default::default() }).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_created_volume_is_published_and_deleted_only_when_it_is_not_any_more() {
    let Some(mut lab) = Lab::start().await else { return };
    let target = lab.target("1");
    let mut controller = lab.controller(TOGETHER).await;
    let wanted = lab.create_request("job-1");
    let volume = create(&mut controller, &wanted).await.unwrap();
    assert!(volume.volume_id.starts_with(&format!("{UID}.")), "{}", volume.volume_id);
    let request = NodePublishVolumeRequest {
        volume_id: volume.volume_id.clone(),
        volume_context: volume.volume_context.clone(),
        ..lab.request(&target)
    };
    let unpublish =
        NodeUnpublishVolumeRequest { volume_id: volume.volume_id.clone(), target_path: target.to_str().unwrap().to_owned() };
    lab.node().await.node_publish_volume(request).await.unwrap();
    assert_eq!(lab.read(&target, "b").await.unwrap(), lab.content("b"));

    // Another volume of the same dataset is not in use.
    let other = create(&mut controller, &lab.create_request("job-2")).await.unwrap();
    delete(&mut controller, &other.volume_id).await.unwrap();
    // A dataset that is gone takes no volume with it, nor does a restart.
    lab.lose_dataset();
    lab.restart_plugin().await;
    let mut controller = lab.controller(ALONE).await;
    assert_eq!(create(&mut controller, &wanted).await.unwrap(), volume);
    let refused = delete(&mut controller, &volume.volume_id).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains(target.to_str().unwrap()), "{}", refused.message());
    lab.node().await.node_unpublish_volume(unpublish).await.unwrap();
    for _ in 0..2 {
        delete(&mut controller, &volume.volume_id).await.unwrap();
    }
    assert_eq!(create(&mut controller, &wanted).await.unwrap_err().code(), Code::NotFound, "the dataset");
    lab.expect_clean().await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_one_volume_whoever_asks_for_it_however_often() {
    let Some(lab) = Lab::start().await else { return };
    let (mut together, mut alone) = (lab.controller(TOGETHER).await, lab.controller(ALONE).await);
    let sized = |required_bytes, limit_bytes| CreateVolumeRequest {
        capacity_range: Some(CapacityRange { required_bytes, limit_bytes }),
        ..lab.create_request("sized")
    };
    let volume = create(&mut together, &sized(10, 10)).await.unwrap();
    assert_eq!(volume.capacity_bytes, 10);
    for range in [(10, 10), (10, 0), (1, 20), (0, 0)] {
        assert_eq!(create(&mut alone, &sized(range.0, range.1)).await.unwrap(), volume, "{range:?}");
    }
    for range in [(11, 0), (20, 20), (0, 9)] {
        let code = create(&mut alone, &sized(range.0, range.1)).await.unwrap_err().code();
        assert_eq!(code, Code::AlreadyExists, "{range:?}");
    }
    let mut of_another = sized(10, 10);
    of_another.parameters.insert("larder.dev/dataset-name".into(), "coco".into());
    assert_eq!(create(&mut alone, &of_another).await.unwrap_err().code(), Code::AlreadyExists);
    of_another.name = "of-another".into();
    let missing = create(&mut alone, &of_another).await.unwrap_err();
    assert_eq!((missing.code(), missing.message()), (Code::NotFound, "CacheDataset vision/coco does not exist"));

    // Many at once: one volume, one record.
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let (mut controller, request) = (together.clone(), lab.create_request("many"));
            tokio::spawn(async move { create(&mut controller, &request).await.unwrap() })
        })
        .collect();
    let mut ids = std::collections::BTreeSet::new();
    for call in calls {
        ids.insert(call.await.unwrap().volume_id);
    }
    assert_eq!(ids.len(), 1);
    assert_eq!(fs::read_dir(lab.csi_folder().join("volumes")).unwrap().count(), 2);
    for id in ids.iter().chain([&volume.volume_id]) {
        delete(&mut alone, id).await.unwrap();
    }
    lab.expect_clean().await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_confirmed_for_what_it_can_be_and_nothing_else() {
    let Some(lab) = Lab::start().await else { return };
    let mut controller = lab.controller(ALONE).await;
    let volume = create(&mut controller, &lab.create_request("a")).await.unwrap();
    let (mount, block) = (AccessType::Mount(MountVolume::default()), AccessType::Block(BlockVolume {}));
    let request = ValidateVolumeCapabilitiesRequest {
        volume_id: volume.volume_id.clone(),
        volume_context: volume.volume_context.clone(),
        volume_capabilities: vec![capability(mount)],
        ..Default::default()
    };
    let answer = controller.validate_volume_capabilities(request.clone()).await.unwrap().into_inner();
    let confirmed = answer.confirmed.unwrap();
    assert_eq!(confirmed.volume_capabilities, request.volume_capabilities);
    assert_eq!(confirmed.volume_context, request.volume_context);
    let mut more = request.clone();
    more.volume_capabilities.push(capability(block));
    let answer = controller.validate_volume_capabilities(more).await.unwrap().into_inner();
    assert!(answer.confirmed.is_none() && answer.message.contains("block device"), "{answer:?}");

    let asking = controller.clone();
    let code = async |change: fn(&mut ValidateVolumeCapabilitiesRequest)| {
        let mut request = request.clone();
        change(&mut request);
        asking.clone().validate_volume_capabilities(request).await.unwrap_err().code()
    };
    assert_eq!(code(|r| r.volume_id.clear()).await, Code::InvalidArgument);
    assert_eq!(code(|r| r.volume_id = "x".repeat(129)).await, Code::InvalidArgument);
    assert_eq!(code(|r| r.volume_capabilities.clear()).await, Code::InvalidArgument);
    assert_eq!(code(|r| r.volume_id = format!("{UID}.{UID}")).await, Code::NotFound);
    assert_eq!(code(|r| r.volume_id = "../../etc".into()).await, Code::NotFound);
    delete(&mut controller, &volume.volume_id).await.unwrap();
    assert_eq!(code(|_| ()).await, Code::NotFound);
    lab.expect_clean().await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_controller_refuses_leaves_nothing() {
    let Some(lab) = Lab::start().await else { return };
    let mut controller = lab.controller(ALONE).await;
    let capabilities = controller.controller_get_capabilities(ControllerGetCapabilitiesRequest {}).await.unwrap().into_inner();
    assert_eq!(capabilities.capabilities.len(), 2);
    assert_eq!(controller.list_volumes(ListVolumesRequest::default()).await.unwrap_err().code(), Code::Unimplemented);
    let info = lab.node_at(ALONE).await.node_get_info(NodeGetInfoRequest {}).await;
    assert_eq!(info.unwrap_err().code(), Code::Unimplemented, "the node service is on the other socket");

    let mut long = lab.create_request("a");
    long.parameters.insert("k".repeat(1 << 20), String::new());
    for (field, request) in [
        ("name", lab.create_request("")),
        ("name", lab.create_request("a\0b")),
        ("name", lab.create_request(&"x".repeat(1 << 20))),
        ("parameters", long),
        ("volume_capabilities", CreateVolumeRequest { volume_capabilities: Vec::new(), ..lab.create_request("a") }),
    ] {
        let status = create(&mut controller, &request).await.unwrap_err();
        assert_eq!((status.code(), status.message().starts_with(field)), (Code::InvalidArgument, true), "{status:?}");
    }
    for id in ["fake-vol-id", "../../../etc", "a.b", ".", &format!("{UID}.{UID}")] {
        delete(&mut controller, id).await.unwrap();
    }
    for id in ["", "a\0b", &"x".repeat(129)] {
        assert_eq!(delete(&mut controller, id).await.unwrap_err().code(), Code::InvalidArgument);
    }
    lab.expect_clean().await;
    lab.stop().await;
}
