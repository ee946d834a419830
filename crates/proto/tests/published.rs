//! Our .proto files say the same names, numbers and types as the published ones, which the tools' Go modules bring along.

use prost_types::{DescriptorProto, FileDescriptorProto};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

/// Folder of a Go module that a tool's go.sum pins.
fn go_module(tool: &str, module: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../e2e/tools").join(tool);
    let run = Command::new("go")
        .args(["mod", "download", "-json", module])
        .current_dir(&dir)
        .env("GOTOOLCHAIN", "local")
        .output()
        .expect("run go: the tests need Go");
    assert!(run.status.success(), "go mod download {module}: {}", String::from_utf8_lossy(&run.stderr));
    let json: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    PathBuf::from(json["Dir"].as_str().unwrap())
}

fn compile(file: &str, include: &Path) -> FileDescriptorProto {
    let set = protox::compile([file], [include]).unwrap();
    set.file.into_iter().find(|f| f.name().ends_with(file)).unwrap()
}

/// Every message field, enum value and method as one line.
fn facts(file: &FileDescriptorProto) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for m in &file.message_type {
        message(&mut out, file.package(), m);
    }
    for s in &file.service {
        for m in &s.method {
            let name = format!("{}.{}.{}", file.package(), s.name(), m.name());
            out.insert(name, format!("{} -> {}", m.input_type(), m.output_type()));
        }
    }
    out
}

fn message(out: &mut BTreeMap<String, String>, outer: &str, m: &DescriptorProto) {
    let name = format!("{outer}.{}", m.name());
    for f in &m.field {
        let oneof = f.oneof_index.map(|i| m.oneof_decl[i as usize].name());
        let what = format!("{} {:?} {:?} {} {oneof:?}", f.number(), f.label(), f.r#type(), f.type_name());
        out.insert(format!("{name}.{}", f.name()), what);
    }
    for e in &m.enum_type {
        for v in &e.value {
            out.insert(format!("{name}.{}.{}", e.name(), v.name()), v.number().to_string());
        }
    }
    m.nested_type.iter().for_each(|n| message(out, &name, n));
}

fn assert_same(ours: &FileDescriptorProto, published: &FileDescriptorProto, whole: bool) {
    let (ours, published) = (facts(ours), facts(published));
    assert!(ours.len() > 4);
    for (name, fact) in &ours {
        assert_eq!(Some(fact), published.get(name), "{name}");
    }
    if whole {
        assert_eq!(ours.len(), published.len());
    } else {
        // Nothing may be missing from a message that we have.
        for name in published.keys() {
            let message = name.rsplit_once('.').unwrap().0;
            let known = ours.keys().any(|k| k.rsplit_once('.').unwrap().0 == message);
            assert!(!known || ours.contains_key(name), "{name} is missing");
        }
    }
}

#[test]
fn csi_is_as_published() {
    let ours = compile("csi/v1/csi.proto", &Path::new(env!("CARGO_MANIFEST_DIR")).join("proto"));
    let dir = go_module("csi-sanity", "github.com/container-storage-interface/spec");
    assert_same(&ours, &compile("csi.proto", &dir), false);
}

#[test]
fn plugin_registration_is_as_published() {
    let ours = compile("pluginregistration/registration.proto", &Path::new(env!("CARGO_MANIFEST_DIR")).join("proto"));
    let dir = go_module("kubernetes", "k8s.io/kubelet").join("pkg/apis/pluginregistration/v1");
    assert_same(&ours, &compile("api.proto", &dir), true);
}
