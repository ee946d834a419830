//! What the fuzzers begin with, and what they once found.

use super::*;
use larder_core::catalog::{Builder, Listed};
use larder_proto::csi::v1::{
    CreateVolumeRequest, NodePublishVolumeRequest, VolumeCapability,
    volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
};
use prost::Message as _;
use std::{collections::HashMap, fs, path::Path};

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 6] =
    [("catalog", catalog), ("disk", disk), ("keeper", keeper), ("messages", messages), ("peer", peer), ("volumes", volumes)];

fn corpus(target: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

#[test]
fn the_corpus_and_all_that_is_nearly_like_it_is_taken() {
    for (name, target) in TARGETS {
        let files: Vec<_> = fs::read_dir(corpus(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!files.is_empty(), "{name}");
        for file in files {
            let bytes = fs::read(&file).unwrap();
            println!("{}", file.display());
            target(&bytes);
            // Cut and changed in some places, the same ones each time.
            for n in 1..50 {
                let at = bytes.len() * n / 50;
                target(&bytes[..at]);
                let mut changed = bytes.clone();
                changed.get_mut(at).into_iter().for_each(|byte| *byte ^= 0x81);
                target(&changed);
            }
        }
    }
}

#[test]
fn the_seeds_are_what_their_targets_take_for_good() {
    let [publish, create] = calls();
    let publish = NodePublishVolumeRequest::decode(&*publish).unwrap();
    assert!(larder_csi::fuzzing::publish(Path::new("/var/lib/kubelet"), &publish).is_some());
    assert!(larder_csi::fuzzing::create(&CreateVolumeRequest::decode(&*create).unwrap()).is_some());
    assert!(larder_core::catalog::Catalog::open(snapshot()).is_ok());
}

fn snapshot() -> Vec<u8> {
    let mut builder = Builder::new("s3://b/");
    for (n, path) in ["a", "b/c", "b/d/e", "f"].into_iter().enumerate() {
        builder.push(Listed { path: path.into(), size: 1 << (8 * n), mtime_ns: 7, version: "v".into() });
    }
    builder.finish().0
}

fn calls() -> [Vec<u8>; 2] {
    const UID: &str = "0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f";
    let text = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    let dataset = [("larder.dev/dataset-namespace", "vision"), ("larder.dev/dataset-name", "imagenet")].map(text);
    let mount = MountVolume { mount_flags: vec!["ro".into()], ..Default::default() };
    let access_mode = Some(AccessMode { mode: Mode::MultiNodeReaderOnly.into() });
    let capability = VolumeCapability { access_mode, access_type: Some(AccessType::Mount(mount)) };
    let mut volume_context: HashMap<_, _> = dataset.clone().into();
    volume_context.extend([text(("csi.storage.k8s.io/pod.namespace", "vision"))]);
    let publish = NodePublishVolumeRequest {
        volume_id: format!("{UID}.{UID}"),
        target_path: "/var/lib/kubelet/pods/1/mount".into(),
        volume_capability: Some(capability.clone()),
        volume_context,
        ..Default::default()
    };
    let create = CreateVolumeRequest {
        name: "a".into(),
        volume_capabilities: vec![capability],
        parameters: dataset.into(),
        ..Default::default()
    };
    [publish.encode_to_vec(), create.encode_to_vec()]
}

/// Writes them; they are committed, because maps and formats change.
#[test]
#[ignore = "writes files"]
fn write_the_seeds() {
    let ledger: Vec<u8> = [b'l'].into_iter().chain((1..=28u64).flat_map(u64::to_le_bytes)).collect();
    let journal = [b"j".to_vec(), vec![0; 16], (9u64 << 20).to_le_bytes().to_vec(), 2u32.to_le_bytes().to_vec(), vec![0; 72]];
    let sidecar = [b"s".to_vec(), vec![0; 16], 7u64.to_le_bytes().to_vec(), 1u32.to_le_bytes().to_vec(), vec![0; 8]];
    let key = "0a".repeat(32);
    let object = format!("/v1/u/objects/{key}?snapshot={key}&inode=7&standin=1&disk=0\nrange:bytes=5-99");
    let copy = format!("/v1/u/copies/{key}?snapshot={key}&inode=7\nrange:bytes=0-0");
    let [publish, create] = calls();
    let put = br#"{"put":{"key":"session/a","stamp":7,"value":"v"}}"#;
    let rest = br#"
{"get":{"key":"session/a"}}
{"keys":{"after":""}}
{"remove":{"key":"session/a","stamp":8}}
{"get":{"key":"session/a"}}"#;
    let digits = "1".repeat(64);
    let serve = format!(
        r#"{{"serve":{{"identity":"u-1","datasetUid":"u","snapshot":"{digits}","uid":0,"gid":0,"fileMode":292,"dirMode":365,"mode":"Auto"}}}}"#
    );
    let seeds: [(&str, &str, Vec<u8>); 14] = [
        ("catalog", "small", snapshot()),
        ("disk", "ledger", ledger),
        ("disk", "journal", journal.concat()),
        ("disk", "sidecar", sidecar.concat()),
        ("keeper", "talk", [&put[..], rest].concat()),
        ("messages", "put", [&b"\x01"[..], put].concat()),
        ("messages", "serve", [&b"\x01"[..], serve.as_bytes()].concat()),
        ("messages", "open", [&b"\0"[..], br#"{"open":{"snapshot":"d","inode":7}}"#].concat()),
        ("messages", "registered", [&b"\x02"[..], br#"{"registered":{"id":3}}"#].concat()),
        ("peer", "object", object.into()),
        ("peer", "copy", copy.into()),
        ("peer", "catalog", format!("/v1/u/catalogs/{key}").into()),
        ("volumes", "publish", publish),
        ("volumes", "create", create),
    ];
    for (target, name, bytes) in seeds {
        fs::create_dir_all(corpus(target)).unwrap();
        fs::write(corpus(target).join(name), bytes).unwrap();
    }
}
