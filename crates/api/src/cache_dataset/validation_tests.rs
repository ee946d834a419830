//! Every CEL rule, evaluated on the generated schema.

use super::CacheDataset;
use kube::CustomResourceExt;
use serde_json::{Value, json};

fn dataset() -> Value {
    json!({
        "apiVersion": "larder.dev/v1alpha1",
        "kind": "CacheDataset",
        "metadata": { "name": "imagenet", "namespace": "vision" },
        "spec": {
            "source": { "uri": "s3://datasets/imagenet/", "credentials": { "secretRef": { "name": "s3" } } },
            "cache": { "tiers": [{ "name": "nvme", "quota": "2Ti" }] },
        },
    })
}

fn schema() -> Value {
    let crd = serde_json::to_value(CacheDataset::crd()).unwrap();
    crd.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap().clone()
}

/// Messages of the rules that refuse `new`.
fn refusals(new: &Value, old: Option<&Value>) -> Vec<String> {
    match kube_cel::Validator::new().validate(&schema(), new, old) {
        Ok(()) => vec![],
        Err(errors) => errors.to_string().lines().map(str::to_owned).collect(),
    }
}

fn with(path: &str, value: Value) -> Value {
    let mut d = dataset();
    let (parent, key) = path.rsplit_once('/').unwrap();
    d.pointer_mut(parent).unwrap()[key] = value;
    d
}

fn is_refused(dataset: &Value, message: &str) {
    let found = refusals(dataset, None);
    assert!(found.iter().any(|m| m.contains(message)), "{message:?} is not in {found:?}");
}

#[test]
fn an_ordinary_dataset_is_accepted() {
    assert_eq!(refusals(&dataset(), None), Vec::<String>::new());
    assert_eq!(refusals(&dataset(), Some(&dataset())), Vec::<String>::new());
}

#[test]
fn the_name_must_fit_into_a_label() {
    assert_eq!(refusals(&with("/metadata/name", json!("n".repeat(63))), None), Vec::<String>::new());
    is_refused(&with("/metadata/name", json!("n".repeat(64))), "at most 63 characters");
}

#[test]
fn the_uri_needs_the_scheme_s3_and_a_bucket() {
    for good in ["s3://datasets", "s3://datasets/", "s3://my.bucket-1/a/b", "s3://datasets/with blank/é?#%20/"] {
        assert_eq!(refusals(&with("/spec/source/uri", json!(good)), None), Vec::<String>::new(), "{good}");
    }
    for bad in ["", "s3://", "s3:///a", "s3://UPPER/a", "s3://a/", "gs://datasets/", "/etc", "https://h/datasets"] {
        is_refused(&with("/spec/source/uri", json!(bad)), "uri must be s3://");
    }
}

#[test]
fn the_folder_has_no_parts_that_a_path_would_swallow() {
    for bad in ["s3://datasets//a", "s3://datasets/a//", "s3://datasets/../x", "s3://datasets/a/.", "s3://datasets/./"] {
        is_refused(&with("/spec/source/uri", json!(bad)), "must not contain empty parts");
    }
    for good in ["s3://datasets/..a/b../.c/", "s3://datasets/.../"] {
        assert_eq!(refusals(&with("/spec/source/uri", json!(good)), None), Vec::<String>::new(), "{good}");
    }
}

fn folder(source: Value) -> Value {
    let mut dataset = dataset();
    dataset["spec"]["source"] = source;
    dataset
}

#[test]
fn a_folder_of_the_nodes_is_absolute_and_needs_nothing_else() {
    for good in ["file:///shared/imagenet/", "file:///shared", "file:///a b/..c"] {
        let good = folder(json!({ "uri": good, "credentials": {}, "pathStyle": false }));
        assert_eq!(refusals(&good, None), Vec::<String>::new(), "{good}");
    }
    for bad in ["file://", "file:///", "file://host/shared", "file:shared"] {
        is_refused(&folder(json!({ "uri": bad })), "or file:///<folder>/");
    }
    for bad in ["file:////etc", "file:///shared/../etc", "file:///shared//a", "file:///."] {
        is_refused(&folder(json!({ "uri": bad })), "must not contain empty parts");
    }
    for (field, value) in [
        ("endpoint", json!("https://s3")),
        ("region", json!("r")),
        ("pathStyle", json!(true)),
        ("ca", json!({ "configMapRef": { "name": "ca" } })),
        ("credentials", json!({ "anonymous": {} })),
    ] {
        is_refused(&folder(json!({ "uri": "file:///shared/", field: value })), "a file:// source has no endpoint");
    }
    let found = refusals(&folder(json!({ "uri": "file:///datasets/" })), Some(&dataset()));
    assert!(found.iter().any(|m| m.contains("scheme and bucket in uri cannot be changed")), "{found:?}");
}

#[test]
fn the_bucket_cannot_be_changed_and_the_folder_can() {
    let found = refusals(&with("/spec/source/uri", json!("s3://other/imagenet/")), Some(&dataset()));
    assert!(found.iter().any(|m| m.contains("bucket in uri cannot be changed")), "{found:?}");
    assert_eq!(refusals(&with("/spec/source/uri", json!("s3://datasets/coco/")), Some(&dataset())), Vec::<String>::new());
}

#[test]
fn the_endpoint_is_a_host_with_http_or_https() {
    for good in ["http://10.89.0.1:7070", "https://s3.internal:9000/", "https://[fd00::1]:9000", "https://s3"] {
        assert_eq!(refusals(&with("/spec/source/endpoint", json!(good)), None), Vec::<String>::new(), "{good}");
    }
    for bad in ["s3.internal:9000", "ftp://s3", "https://", "https://s3/path", "https://user:pw@s3", "https://s3 "] {
        is_refused(&with("/spec/source/endpoint", json!(bad)), "endpoint must be http");
    }
}

#[test]
fn credentials_are_a_secret_or_anonymous_and_not_both() {
    assert_eq!(refusals(&with("/spec/source/credentials", json!({ "anonymous": {} })), None), Vec::<String>::new());
    is_refused(&with("/spec/source/credentials", json!({})), "exactly one of");
    is_refused(&with("/spec/source/credentials", json!({ "anonymous": {}, "secretRef": { "name": "s3" } })), "exactly one of");
}

/// One that Kubernetes gives to no object would end in the path of a request: `s3?watch=true`, `s3/x`.
#[test]
fn names_of_what_the_source_needs_are_names_of_objects() {
    let source = schema().pointer("/properties/spec/properties/source/properties").unwrap().clone();
    for field in ["/credentials/properties/secretRef", "/ca/properties/configMapRef"] {
        let pattern = source.pointer(&format!("{field}/properties/name/pattern")).and_then(Value::as_str).unwrap();
        // The API server's own regular expressions and those of CEL are the same.
        let rule = json!({ "rule": format!("self.matches(r'{pattern}')"), "message": "no name" });
        let schema = json!({ "type": "string", "x-kubernetes-validations": [rule] });
        let fits = |name: &str| kube_cel::Validator::new().validate(&schema, &json!(name), None).is_ok();
        for good in ["s3", "a", "corp-ca.v2", "0"] {
            assert!(fits(good), "{field}: {good:?}");
        }
        for bad in ["", "my secret", "x/y", "../s3", "s3?watch=true", "S3", "-a", "a-", "a..b", "s3\n", "s%33"] {
            assert!(!fits(bad), "{field}: {bad:?}");
        }
    }
}

#[test]
fn the_bandwidth_of_a_preload_is_more_than_nothing() {
    for good in [json!("500Mi"), json!(1_000_000)] {
        assert_eq!(
            refusals(&with("/spec/preload", json!({ "bandwidth": good.clone() })), None),
            Vec::<String>::new(),
            "{good}"
        );
    }
    for bad in [json!("0"), json!(0), json!("-1Mi")] {
        is_refused(&with("/spec/preload", json!({ "bandwidth": bad })), "bandwidth must be more than 0");
    }
}

#[test]
fn a_dataset_lies_on_one_to_eight_disks_each_named_once() {
    let tiers = |names: &[&str]| {
        let tiers: Vec<_> = names.iter().map(|name| json!({ "name": name, "quota": "1Gi" })).collect();
        with("/spec/cache/tiers", json!(tiers))
    };
    for good in [&["a", "b"][..], &["a", "b", "c", "d", "e", "f", "g", "h"]] {
        assert_eq!(refusals(&tiers(good), None), Vec::<String>::new(), "{good:?}");
    }
    is_refused(&tiers(&["a", "b", "a"]), "each tier may be named once");
    let schema = schema();
    let bounds = &schema["properties"]["spec"]["properties"]["cache"]["properties"]["tiers"];
    assert_eq!((&bounds["minItems"], &bounds["maxItems"]), (&json!(1), &json!(crate::cache_dataset::MAX_TIERS)));
}

#[test]
fn the_stripe_size_is_a_multiple_of_a_chunk_or_nothing() {
    for good in [json!("1Gi"), json!("4Mi"), json!("0"), json!(0), json!(8_388_608)] {
        assert_eq!(refusals(&with("/spec/cache/stripeSize", good.clone()), None), Vec::<String>::new(), "{good}");
    }
    for bad in [json!("1Mi"), json!("6Mi"), json!("1G"), json!("-4Mi"), json!(1), json!("0.5"), json!("1m")] {
        is_refused(&with("/spec/cache/stripeSize", bad), "stripeSize must be a multiple of 4Mi such as 1Gi, or 0");
    }
    is_refused(&with("/spec/cache/stripeSize", json!("much")), "spec.cache.stripeSize");
}

#[test]
fn the_quota_is_more_than_nothing() {
    for good in [json!("1"), json!("1.5Gi"), json!(4096)] {
        assert_eq!(refusals(&with("/spec/cache/tiers/0/quota", good.clone()), None), Vec::<String>::new(), "{good}");
    }
    for bad in [json!("0"), json!("-1Gi"), json!(0)] {
        is_refused(&with("/spec/cache/tiers/0/quota", bad), "quota must be more than 0");
    }
    is_refused(&with("/spec/cache/tiers/0/quota", json!("much")), "spec.cache.tiers[0].quota");
}

#[test]
fn defaults_are_in_the_schema() {
    let spec = schema().pointer("/properties/spec/properties").unwrap().clone();
    assert_eq!(spec.pointer("/workers/default/nodeSelector").unwrap(), &json!({ "nvidia.com/gpu.present": "true" }));
    assert_eq!(
        spec.pointer("/workers/properties/tolerations/default").unwrap(),
        &json!([{ "key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule" }])
    );
    assert_eq!(spec.pointer("/preload/default/policy").unwrap(), "OnCreate");
    assert_eq!(
        spec.pointer("/mount/default").unwrap(),
        &json!({ "uid": 0, "gid": 0, "fileMode": 0o444, "dirMode": 0o555, "mode": "Auto" })
    );
    let key = "/source/properties/ca/properties/configMapRef/properties/key/default";
    assert_eq!(spec.pointer(key).unwrap(), "ca.crt");
}

#[test]
fn every_field_is_documented_and_has_a_format_the_api_server_knows() {
    fn walk(path: &str, schema: &Value) {
        if let Some(format) = schema.get("format").and_then(Value::as_str) {
            assert!(["int32", "int64", "date-time"].contains(&format), "{path}: {format}");
        }
        for (name, field) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let path = format!("{path}.{name}");
            assert!(field.get("description").is_some(), "{path} has no description");
            walk(&path, field);
        }
        for under in ["items", "additionalProperties"] {
            if let Some(schema) = schema.get(under) {
                walk(&format!("{path}[]"), schema);
            }
        }
    }
    for part in ["spec", "status"] {
        walk(part, &schema()["properties"][part]);
    }
}

#[test]
fn a_file_is_kept_on_one_to_three_nodes_or_on_all() {
    let with = |replicas: u32, placement: &str, policy: &str| {
        let mut d = dataset();
        d["spec"]["cache"]["replicas"] = json!(replicas);
        d["spec"]["cache"]["placement"] = json!(placement);
        d["spec"]["preload"] = json!({ "policy": policy });
        d
    };
    for good in [with(1, "Sharded", "None"), with(3, "Sharded", "OnCreate"), with(1, "Everywhere", "OnCreate")] {
        assert_eq!(refusals(&good, None), Vec::<String>::new(), "{good}");
    }
    is_refused(&with(2, "Everywhere", "OnCreate"), "replicas is for placement Sharded");
    is_refused(&with(2, "Sharded", "None"), "need preload.policy OnCreate");
    is_refused(&with(1, "Everywhere", "None"), "need preload.policy OnCreate");
}
