//! Every argument of every call as it must not be: the code that the specification has for it, a message that begins with the
//! field, and nothing is there afterwards that was not there before.
#![expect(clippy::unwrap_used, reason = "what a test cannot go on without")]

use crate::harness::{Lab, UID, capability};
use larder_fuse::{
    device,
    fdpass::{Conn, testing},
    mountinfo,
    protocol::mounter,
};
use larder_proto::csi::v1::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerGetVolumeRequest, ControllerModifyVolumeRequest,
    ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest, CreateSnapshotRequest, CreateVolumeRequest,
    DeleteSnapshotRequest, DeleteVolumeRequest, GetCapacityRequest, GetSnapshotRequest, ListSnapshotsRequest,
    ListVolumesRequest, NodeExpandVolumeRequest, NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, ValidateVolumeCapabilitiesRequest, VolumeCapability,
    VolumeContentSource,
    volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::{
    collections::BTreeSet,
    fs,
    os::{fd::AsFd as _, unix::fs::symlink},
    path::{Path, PathBuf},
    time::Duration,
};
use tonic::{Code, Status};

const NAMESPACE: &str = "larder.dev/dataset-namespace";
const NAME: &str = "larder.dev/dataset-name";

/// What is no volume id, and no name of an object either.
fn strange() -> Vec<String> {
    let long = "x".repeat(1 << 16);
    let texts =
        ["", "a\0b", "../../../etc", "%2e%2e%2fetc", "\u{202e}é名", "a\nb", "-o", "--", "$(id)", ".", " ", "\u{1b}[31m", &long];
    texts.map(str::to_owned).into()
}

/// What is no path for a volume on any machine.
fn no_paths(lab: &Lab) -> Vec<String> {
    let inside = |rest: &str| format!("{}/{rest}", lab.kubelet().display());
    let mut paths = strange();
    paths.extend(["/", "/etc", "/etc/x", "relative/path", "/proc/self/root/etc"].map(str::to_owned));
    let parts = ["", "pods", "../x/y", "pods/./x", "pods//x", "pods/x/", "pods/x\0", "pods/x\ny", "pods/../../x"];
    paths.extend(parts.map(inside));
    paths.extend(["plugins/csi.larder.dev", "plugins/csi.larder.dev/state/x", "plugins/csi.larder.dev/csi.sock"].map(inside));
    paths.extend([inside(&format!("pods/{}", "x".repeat(256))), inside(&"x/".repeat(4096))]);
    paths
}

/// Capabilities that a dataset does not have.
fn no_capabilities() -> Vec<VolumeCapability> {
    let mount = |volume: MountVolume| capability(AccessType::Mount(volume));
    let flags = |flag: &str| mount(MountVolume { mount_flags: vec!["ro".to_owned(), flag.to_owned()], ..Default::default() });
    let mode = |mode: i32| VolumeCapability { access_mode: Some(AccessMode { mode }), ..mount(MountVolume::default()) };
    let mut all = vec![
        VolumeCapability::default(),
        capability(AccessType::Block(BlockVolume {})),
        VolumeCapability { access_mode: None, ..mount(MountVolume::default()) },
        VolumeCapability { access_type: None, ..mount(MountVolume::default()) },
        mode(Mode::Unknown.into()),
        mode(99),
        mode(-1),
        mount(MountVolume { fs_type: "ext4".into(), ..Default::default() }),
        mount(MountVolume { volume_mount_group: "1000".into(), ..Default::default() }),
    ];
    all.extend(
        ["", "rw", "RO", "suid", "exec", "ro,fd=3", "fd=3", "-o", "--", "ro\n", "ro\0", "ro rw", &"x".repeat(1 << 16)]
            .map(flags),
    );
    all
}

enum Call {
    Publish(NodePublishVolumeRequest),
    Unpublish(NodeUnpublishVolumeRequest),
    Stats(NodeGetVolumeStatsRequest),
    Create(CreateVolumeRequest),
    Delete(DeleteVolumeRequest),
    Validate(ValidateVolumeCapabilitiesRequest),
}

impl Call {
    async fn make(self, lab: &Lab) -> Result<(), Status> {
        let (mut node, mut controller) = (lab.node().await, lab.controller("csi.sock").await);
        match self {
            Self::Publish(request) => node.node_publish_volume(request).await.map(drop),
            Self::Unpublish(request) => node.node_unpublish_volume(request).await.map(drop),
            Self::Stats(request) => node.node_get_volume_stats(request).await.map(drop),
            Self::Create(request) => controller.create_volume(request).await.map(drop),
            Self::Delete(request) => controller.delete_volume(request).await.map(drop),
            Self::Validate(request) => controller.validate_volume_capabilities(request).await.map(drop),
        }
    }
}

/// Calls that must be refused, with the code and the field.
struct Table<'a> {
    lab: &'a Lab,
    rows: Vec<(Code, &'static str, Call)>,
}

impl Table<'_> {
    fn publish(&mut self, code: Code, field: &'static str, change: impl FnOnce(&mut NodePublishVolumeRequest)) {
        let mut request = self.lab.request(&self.lab.target("new"));
        change(&mut request);
        self.rows.push((code, field, Call::Publish(request)));
    }

    fn create(&mut self, code: Code, field: &'static str, change: impl FnOnce(&mut CreateVolumeRequest)) {
        let mut request = self.lab.create_request("new");
        change(&mut request);
        self.rows.push((code, field, Call::Create(request)));
    }
}

fn publishes(table: &mut Table<'_>) {
    use Code::{FailedPrecondition, InvalidArgument, PermissionDenied};
    let lab = table.lab;
    let ids = [UID.to_owned(), format!("{UID}.{}", UID.to_uppercase()), format!("../{UID}.{}", &UID[3..]), "é.é".repeat(24)];
    for id in strange().into_iter().chain(ids) {
        table.publish(InvalidArgument, "volume_id", |r| r.volume_id = id);
    }
    let other = UID.replace('0', "1");
    table.publish(Code::NotFound, "CacheDataset", |r| r.volume_id = format!("{other}.{other}"));
    for path in no_paths(lab) {
        table.publish(InvalidArgument, "target_path", |r| r.target_path = path);
    }
    for rest in ["link", "link/x", "file", "file/x", "no/such/folder", "tmpfs", "published/mount/dir/x"] {
        let path = lab.kubelet().join("pods/odd").join(rest);
        table.publish(FailedPrecondition, "target_path", |r| r.target_path = path.to_str().unwrap().to_owned());
    }
    table.publish(InvalidArgument, "volume_capability", |r| r.volume_capability = None);
    for capability in no_capabilities() {
        table.publish(InvalidArgument, "volume_capability", |r| r.volume_capability = Some(capability));
    }
    table.publish(InvalidArgument, "volume_context", |r| r.volume_context.clear());
    let keys = [NAME.to_uppercase(), format!("{NAME} "), "mountOptions".into(), "csi.storage.k8s.io/Pod.Namespace".into()];
    for key in strange().into_iter().chain(keys) {
        table.publish(InvalidArgument, "volume_context", |r| drop(r.volume_context.insert(key, "ro,fd=3".into())));
    }
    for key in [NAME, NAMESPACE] {
        table.publish(InvalidArgument, "volume_context", |r| drop(r.volume_context.remove(key)));
        for value in strange() {
            table.publish(InvalidArgument, "volume_context", |r| drop(r.volume_context.insert(key.into(), value)));
        }
    }
    for namespace in ["", "Vision", "speech", "vision\0"] {
        let key = "csi.storage.k8s.io/pod.namespace".to_owned();
        table.publish(PermissionDenied, "the pod is in namespace", |r| drop(r.volume_context.insert(key, namespace.into())));
    }
}

fn the_rest_of_the_node(table: &mut Table<'_>) {
    let (path, id) =
        (table.lab.kubelet().join("pods/odd/published/mount").to_str().unwrap().to_owned(), format!("{UID}.{UID}"));
    for bad in ["", "a\0b", &"x".repeat(129), &"é".repeat(65)] {
        let request = NodeUnpublishVolumeRequest { volume_id: bad.into(), target_path: path.clone() };
        table.rows.push((Code::InvalidArgument, "volume_id", Call::Unpublish(request)));
    }
    for target_path in no_paths(table.lab) {
        let request = NodeUnpublishVolumeRequest { volume_id: id.clone(), target_path };
        table.rows.push((Code::InvalidArgument, "target_path", Call::Unpublish(request)));
    }
    let mut stats = |code, field, volume_id: String, volume_path: String| {
        let request = NodeGetVolumeStatsRequest { volume_id, volume_path, ..Default::default() };
        table.rows.push((code, field, Call::Stats(request)));
    };
    let missing = |text: &str| if text.is_empty() { Code::InvalidArgument } else { Code::NotFound };
    let other = format!("{UID}.{}", UID.replace('0', "1"));
    for bad in strange().into_iter().chain([other]) {
        stats(missing(&bad), "volume", bad, path.clone());
    }
    for bad in strange().into_iter().chain(["some/path".into(), format!("{path}x"), "/etc".into()]) {
        stats(missing(&bad), "volume", id.clone(), bad);
    }
}

fn the_controller(table: &mut Table<'_>, volume_id: &str) {
    use Code::{AlreadyExists, InvalidArgument, NotFound, OutOfRange};
    for name in ["", "a\0b", "\u{1b}[31m", &"x".repeat(129), &"é".repeat(65), &"x".repeat(1 << 16)] {
        table.create(InvalidArgument, "name", |r| r.name = name.into());
    }
    for (required_bytes, limit_bytes) in [(-1, 0), (0, -1), (2, 1), (i64::MIN, i64::MAX)] {
        table.create(OutOfRange, "capacity_range", |r| r.capacity_range = Some(CapacityRange { required_bytes, limit_bytes }));
    }
    table.create(InvalidArgument, "volume_capabilities", |r| r.volume_capabilities.clear());
    for capability in no_capabilities() {
        table.create(InvalidArgument, "volume_capabilities", |r| r.volume_capabilities.push(capability));
    }
    table.create(InvalidArgument, "parameters", |r| r.parameters.clear());
    for key in strange().into_iter().chain([NAME.to_uppercase(), "csi.storage.k8s.io/pvc/name".into()]) {
        table.create(InvalidArgument, "parameters", |r| drop(r.parameters.insert(key, "x".into())));
    }
    for value in strange() {
        table.create(InvalidArgument, "parameters", |r| drop(r.parameters.insert(NAME.into(), value)));
    }
    table.create(InvalidArgument, "mutable_parameters", |r| drop(r.mutable_parameters.insert("a".into(), "b".into())));
    table.create(InvalidArgument, "volume_content_source", |r| r.volume_content_source = Some(VolumeContentSource::default()));
    table.create(NotFound, "CacheDataset", |r| drop(r.parameters.insert(NAME.into(), "coco".into())));
    table.create(AlreadyExists, "name", |r| {
        r.name = "known".into();
        r.capacity_range = Some(CapacityRange { required_bytes: 1, limit_bytes: 1 });
    });
    for bad in ["", "a\0b", &"x".repeat(129), &"é".repeat(65)] {
        let delete = DeleteVolumeRequest { volume_id: bad.into(), ..Default::default() };
        table.rows.push((InvalidArgument, "volume_id", Call::Delete(delete)));
    }
    let request = || ValidateVolumeCapabilitiesRequest {
        volume_id: volume_id.to_owned(),
        volume_capabilities: vec![capability(AccessType::Mount(MountVolume::default()))],
        ..Default::default()
    };
    for bad in strange() {
        let code = if bad.is_empty() || bad.contains(['\0', '\u{1b}']) || bad.len() > 128 { InvalidArgument } else { NotFound };
        let validate = ValidateVolumeCapabilitiesRequest { volume_id: bad, ..request() };
        table.rows.push((code, "volume_id", Call::Validate(validate)));
    }
    let validate = ValidateVolumeCapabilitiesRequest { volume_capabilities: Vec::new(), ..request() };
    table.rows.push((InvalidArgument, "volume_capabilities", Call::Validate(validate)));
}

/// Every mount, and every name beneath the kubelet's folder; mounts are not looked into.
fn picture(lab: &Lab) -> BTreeSet<(PathBuf, String)> {
    let table = mountinfo::read().unwrap();
    let mounts = table.into_iter().filter(|m| m.target.starts_with(lab.kubelet()));
    let mut seen: BTreeSet<_> = mounts.map(|m| (m.target, format!("{} {}", m.fs_type, m.source))).collect();
    let mounted: BTreeSet<_> = seen.iter().map(|(target, _)| target.clone()).collect();
    let mut folders = vec![lab.kubelet()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if mounted.contains(&path) {
                continue;
            }
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_dir() {
                folders.push(path.clone());
            }
            let record = path.extension().is_some_and(|e| e == "json").then(|| fs::read_to_string(&path).unwrap());
            seen.insert((path, record.unwrap_or_else(|| format!("{kind:?}"))));
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_be_given_is_refused_by_name_and_changes_nothing() {
    let Some(lab) = Lab::start().await else { return };
    // Wrong kinds of paths, beside a volume that is published and one that is made.
    let odd = lab.kubelet().join("pods/odd");
    fs::create_dir_all(odd.join("published")).unwrap();
    fs::create_dir_all(odd.join("tmpfs")).unwrap();
    fs::create_dir_all(lab.kubelet().join("pods/new/pv")).unwrap();
    symlink("/etc", odd.join("link")).unwrap();
    fs::write(odd.join("file"), "somebody's").unwrap();
    mount(Some("odd"), &odd.join("tmpfs"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let published = odd.join("published/mount");
    lab.publish(&published).await.unwrap();
    let volume = lab.controller("csi.sock").await.create_volume(lab.create_request("known")).await.unwrap();
    let volume_id = volume.into_inner().volume.unwrap().volume_id;

    let mut table = Table { lab: &lab, rows: Vec::new() };
    publishes(&mut table);
    the_rest_of_the_node(&mut table);
    the_controller(&mut table, &volume_id);
    let rows = table.rows;
    assert!(rows.len() > 200, "{}", rows.len());
    let before = picture(&lab);
    let etc = fs::read_dir("/etc").unwrap().count();
    let mut wrong = Vec::new();
    for (number, (code, field, call)) in rows.into_iter().enumerate() {
        let answer = call.make(&lab).await;
        let good = answer.as_ref().is_err_and(|s| s.code() == code && s.message().starts_with(field) && s.details().is_empty());
        if !good {
            wrong.push(format!("row {number}: want {code:?} of {field}, got {answer:?}"));
        }
        let after = picture(&lab);
        assert_eq!(after, before, "row {number}: {field} changed something");
    }
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(fs::read_dir("/etc").unwrap().count(), etc);
    assert_eq!(fs::read(odd.join("file")).unwrap(), b"somebody's");

    umount2(&odd.join("tmpfs"), MntFlags::MNT_DETACH).unwrap();
    lab.unpublish(&published).await.unwrap();
    let delete = DeleteVolumeRequest { volume_id, ..Default::default() };
    lab.controller("csi.sock").await.delete_volume(delete).await.unwrap();
    lab.expect_clean().await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_unpublished_where_no_target_can_be() {
    let Some(lab) = Lab::start().await else { return };
    let (odd, outside) = (lab.kubelet().join("pods/odd"), lab.outside());
    for folder in ["published", "hung"] {
        fs::create_dir_all(odd.join(folder)).unwrap();
    }
    fs::create_dir(outside.join("x")).unwrap();
    fs::write(outside.join("file"), "somebody's").unwrap();
    symlink(&outside, odd.join("link")).unwrap();
    fs::write(odd.join("file"), "somebody's").unwrap();
    let published = odd.join("published/mount");
    lab.publish(&published).await.unwrap();
    // A mount whose mounter is stopped.
    let fuse = device::open().unwrap();
    device::mount(fuse.as_fd(), &odd.join("hung"), "hung").unwrap();
    let before = picture(&lab);
    for rest in [
        "link/x",
        "link/file",
        "link/x/y",
        "file/x",
        "no/x",
        "published/mount/dir/x",
        "published/mount/b",
        "hung/x",
        "hung/x/y",
    ] {
        let target = odd.join(rest);
        let unpublished = tokio::time::timeout(Duration::from_secs(20), lab.unpublish(&target)).await;
        unpublished.unwrap_or_else(|_| panic!("{rest} hangs")).unwrap();
        assert_eq!(picture(&lab), before, "{rest}");
    }
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"somebody's");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 2);
    drop(fuse);
    umount2(&odd.join("hung"), MntFlags::MNT_DETACH).unwrap();
    // The link itself may be in the way of a target.
    lab.unpublish(&odd.join("link")).await.unwrap();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 2);
    lab.unpublish(&published).await.unwrap();
    lab.expect_clean().await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_the_driver_does_not_offer_say_why_whatever_they_carry() {
    let Some(lab) = Lab::start().await else { return };
    let (mut n, mut c) = (lab.node().await, lab.controller("csi.sock").await);
    let paths = || ("../../etc".to_owned(), "a\0b".to_owned());
    let (staging_target_path, volume_id) = paths();
    let stage = NodeStageVolumeRequest { volume_id, staging_target_path, ..Default::default() };
    let (volume_path, volume_id) = paths();
    let expand = NodeExpandVolumeRequest { volume_id, volume_path, ..Default::default() };
    let (staging_target_path, volume_id) = paths();
    let unstage = NodeUnstageVolumeRequest { volume_id, staging_target_path };
    let answers = [
        n.node_stage_volume(stage).await.err(),
        n.node_unstage_volume(unstage).await.err(),
        n.node_expand_volume(expand).await.err(),
        c.controller_publish_volume(ControllerPublishVolumeRequest::default()).await.err(),
        c.controller_unpublish_volume(ControllerUnpublishVolumeRequest::default()).await.err(),
        c.list_volumes(ListVolumesRequest { max_entries: -1, starting_token: "\0".into() }).await.err(),
        c.get_capacity(GetCapacityRequest::default()).await.err(),
        c.create_snapshot(CreateSnapshotRequest::default()).await.err(),
        c.delete_snapshot(DeleteSnapshotRequest::default()).await.err(),
        c.list_snapshots(ListSnapshotsRequest::default()).await.err(),
        c.get_snapshot(GetSnapshotRequest::default()).await.err(),
        c.controller_expand_volume(ControllerExpandVolumeRequest::default()).await.err(),
        c.controller_get_volume(ControllerGetVolumeRequest::default()).await.err(),
        c.controller_modify_volume(ControllerModifyVolumeRequest::default()).await.err(),
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        let status = answer.unwrap_or_else(|| panic!("call {number} is answered"));
        assert!(status.code() == Code::Unimplemented && !status.message().is_empty(), "call {number}: {status:?}");
    }
    lab.expect_clean().await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_is_published_again_only_as_it_was() {
    let Some(mut lab) = Lab::start().await else { return };
    let target = lab.target("1");
    let good = lab.request(&target);
    lab.publish(&target).await.unwrap();
    let other = UID.replace('0', "1");
    let mut changes: Vec<(&str, NodePublishVolumeRequest)> = Vec::new();
    for id in [format!("{UID}.{other}"), format!("{other}.{other}")] {
        changes.push(("volume_id", NodePublishVolumeRequest { volume_id: id, ..good.clone() }));
    }
    changes.push(("readonly", NodePublishVolumeRequest { readonly: !good.readonly, ..good.clone() }));
    let mut named = good.clone();
    named.volume_context.insert(NAME.into(), "coco".into());
    changes.push(("volume_context", named));
    let options = MountVolume { mount_flags: vec!["noatime".into()], ..Default::default() };
    for one in [mode(Mode::SingleNodeSingleWriter), capability(AccessType::Mount(options))] {
        changes.push(("volume_capability", NodePublishVolumeRequest { volume_capability: Some(one), ..good.clone() }));
    }
    for restart in [false, true] {
        if restart {
            lab.restart_plugin().await;
        }
        let before = picture(&lab);
        for (field, request) in &changes {
            let status = Call::Publish(request.clone()).make(&lab).await.unwrap_err();
            assert_eq!((status.code(), status.message().starts_with(field)), (Code::AlreadyExists, true), "{status:?}");
        }
        lab.publish(&target).await.unwrap();
        assert_eq!(picture(&lab), before);
        assert_eq!(lab.read(&target, "b").await.unwrap(), lab.content("b"));
    }
    // Once it is free, it may be published in another way.
    lab.unpublish(&target).await.unwrap();
    Call::Publish(changes.remove(0).1).make(&lab).await.unwrap();
    lab.unpublish(&target).await.unwrap();
    lab.expect_clean().await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_for_one_pod_is_published_at_one_target() {
    let Some(mut lab) = Lab::start().await else { return };
    let (one, two) = (lab.target("1"), lab.target("2"));
    let single = |lab: &Lab, target: &Path| NodePublishVolumeRequest {
        volume_capability: Some(mode(Mode::SingleNodeSingleWriter)),
        ..lab.request(target)
    };
    Call::Publish(single(&lab, &one)).make(&lab).await.unwrap();
    for restart in [false, true] {
        if restart {
            lab.restart_plugin().await;
        }
        let before = picture(&lab);
        // The second one may not ask for more either.
        for request in [single(&lab, &two), lab.request(&two)] {
            let status = Call::Publish(request).make(&lab).await.unwrap_err();
            assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
            assert!(status.message().contains(one.to_str().unwrap()), "{status:?}");
        }
        Call::Publish(single(&lab, &one)).make(&lab).await.unwrap();
        assert_eq!(picture(&lab), before);
    }
    // Another volume of the same dataset is not concerned.
    let volume_id = format!("{UID}.{}", UID.replace('0', "1"));
    Call::Publish(NodePublishVolumeRequest { volume_id, ..single(&lab, &two) }).make(&lab).await.unwrap();
    for target in [&one, &two] {
        assert_eq!(lab.read(target, "b").await.unwrap(), lab.content("b"));
        lab.unpublish(target).await.unwrap();
    }
    Call::Publish(single(&lab, &two)).make(&lab).await.unwrap();
    lab.unpublish(&two).await.unwrap();
    lab.expect_clean().await;
    lab.stop().await;
}

fn mode(mode: Mode) -> VolumeCapability {
    let mount = capability(AccessType::Mount(MountVolume::default()));
    VolumeCapability { access_mode: Some(AccessMode { mode: mode.into() }), ..mount }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_sent_to_the_mounter_costs_no_descriptor_and_no_other_peer() {
    let Some(lab) = Lab::start().await else { return };
    let target = lab.target("1");
    lab.publish(&target).await.unwrap();
    let (socket, list) = (lab.mounter_socket(), r#"{"list":{}}"#);
    testing::misbehave(&socket, list).await;
    testing::be_a_stranger(&socket, list).await;
    let conn = Conn::connect(&socket).await.unwrap();
    let mount = |identity: &str| mounter::Mount {
        identity: identity.to_owned(),
        dataset_uid: UID.into(),
        snapshot: "a".repeat(64),
        uid: 0,
        gid: 0,
        file_mode: 0o444,
        dir_mode: 0o555,
        mode: mounter::Mode::Auto,
    };
    let file = fs::File::open("/dev/null").unwrap();
    let good = larder_core::names::mount_identity(UID, &"a".repeat(64));
    let refused = [
        (mounter::Request::Serve(mount(&good)), None, "no FUSE descriptor"),
        (mounter::Request::Serve(mount("../../x")), Some(file.as_fd()), "not valid"),
        (mounter::Request::Prepare(mount("../../x")), None, "not valid"),
        (mounter::Request::Permit { dataset_uid: "../../x".into(), token: "x\n".into() }, None, "token"),
    ];
    for (request, fd, why) in refused {
        conn.send(&request, fd).await.unwrap();
        let (reply, fd) = conn.recv::<mounter::Reply>().await.unwrap().unwrap();
        assert!(matches!(&reply, mounter::Reply::Error { message, .. } if message.contains(why)), "{why}: {reply:?}");
        assert!(fd.is_none());
    }
    assert_eq!(lab.read(&target, "b").await.unwrap(), lab.content("b"));
    lab.unpublish(&target).await.unwrap();
    lab.expect_clean().await;
    lab.stop().await;
}
