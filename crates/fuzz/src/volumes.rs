use larder_core::names::is_uid;
use larder_csi::fuzzing;
use larder_proto::csi::v1::{CreateVolumeRequest, NodePublishVolumeRequest};
use prost::Message as _;
use std::path::{Component, Path};

const KUBELET: &str = "/var/lib/kubelet";

/// Ids, paths, capabilities and attributes of volumes: calls as they come over the kubelet's socket.
pub fn volumes(data: &[u8]) {
    let publish = NodePublishVolumeRequest::decode(data).ok();
    if let Some(published) = publish.and_then(|request| fuzzing::publish(Path::new(KUBELET), &request)) {
        let beneath = published.target.strip_prefix(KUBELET).expect("a target in the kubelet's folder");
        assert!(beneath.components().all(|part| matches!(part, Component::Normal(_))), "{beneath:?}");
        assert!(!beneath.starts_with("plugins/csi.larder.dev"), "{beneath:?}");
        let [uid, namespace, name] = &published.dataset;
        assert!(is_uid(uid), "{uid:?}");
        assert!(is_name(namespace) && is_name(name), "{published:?}");
    }
    let create = CreateVolumeRequest::decode(data).ok();
    if let Some(([namespace, name], id)) = create.and_then(|request| fuzzing::create(&request)) {
        assert!(is_name(&namespace) && is_name(&name), "{namespace:?} {name:?}");
        assert!(id.split('.').all(is_uid) && id.len() == 73, "{id:?}");
    }
}

/// May it be a part of a URL?
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.')) && !text.starts_with('.')
}
