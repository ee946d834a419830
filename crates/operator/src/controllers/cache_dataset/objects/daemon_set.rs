//! The DaemonSet of a dataset's workers.

use super::{Owner, from_template, hashed};
use crate::settings::{Settings, Tier};
use k8s_openapi::api::apps::v1::DaemonSet;
use larder_api::{
    CacheDataset,
    cache_dataset::{Resources, Source, Workers},
    labels,
};
use larder_core::names;
use serde_json::{Value, json};
use std::path::Path;

/// Where the copies of Secret and CA are mounted.
const CREDENTIALS_DIR: &str = "/etc/larder/credentials";
const CA_DIR: &str = "/etc/larder/ca";

/// The workers, on disks of these tiers.
pub(in super::super) fn daemon_set(owner: &Owner, dataset: &CacheDataset, settings: &Settings, tiers: &[&Tier]) -> DaemonSet {
    let run = format!("{}/worker", names::RUN_DIR);
    // The same path as on the host, so that what a worker says about its disk names that disk.
    let data = |tier: &Tier| format!("{}/{}", tier.path, names::TIER_DIR);
    let volume = |n: usize| if n == 0 { "data".to_owned() } else { format!("data-{n}") };
    let mut args = vec![
        "worker".to_owned(),
        format!("--dataset-uid={}", owner.uid),
        format!("--run-dir={}", names::RUN_DIR),
        format!("--credentials-dir={CREDENTIALS_DIR}"),
        format!("--ca-dir={CA_DIR}"),
    ];
    args.push(match &settings.authority {
        Some(authority) => format!("--authority={authority}"),
        None => "--plain".to_owned(),
    });
    args.extend(tiers.iter().map(|tier| format!("--dir={}/{}", data(tier), owner.uid)));
    if tiers.iter().any(|tier| tier.floor.is_some()) {
        for floor in tiers.iter().map(|tier| tier.floor.unwrap_or_default()) {
            args.push(format!("--disk-floor-percent={}", floor.percent));
            args.push(format!("--disk-floor-bytes={}", floor.bytes));
        }
    }
    let spec = &dataset.spec.workers;
    let mut container = json!({
        "name": "worker",
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "args": args,
        "env": [
            { "name": "NODE_NAME", "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "spec.nodeName" } } },
            { "name": "POD_NAME", "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.name" } } },
            { "name": "POD_NAMESPACE", "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } } },
            { "name": "LARDER_LOG", "value": settings.worker_log },
        ],
        "ports": [
            { "name": "data", "containerPort": names::WORKER_DATA_PORT, "protocol": "TCP" },
            { "name": "control", "containerPort": names::WORKER_CONTROL_PORT, "protocol": "TCP" },
            { "name": "admin", "containerPort": names::WORKER_ADMIN_PORT, "protocol": "TCP" },
        ],
        "readinessProbe": { "httpGet": { "path": "/readyz", "port": "admin" }, "periodSeconds": 2, "timeoutSeconds": 2 },
        // Restarting a worker that is only slow would make things worse: a minute of silence is not slow.
        "livenessProbe": {
            "httpGet": { "path": "/healthz", "port": "admin" },
            "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6,
        },
        "resources": resources(spec.resources.as_ref()),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        },
        "volumeMounts": [
            { "name": "run", "mountPath": run },
            { "name": "credentials", "mountPath": CREDENTIALS_DIR, "readOnly": true },
            { "name": "ca", "mountPath": CA_DIR, "readOnly": true },
        ],
    });
    let mut volumes = json!([
        { "name": "run", "hostPath": { "path": run, "type": "Directory" } },
        { "name": "credentials", "secret": { "secretName": owner.credentials_name(), "optional": true, "defaultMode": 0o440 } },
        { "name": "ca", "configMap": { "name": owner.ca_name(), "optional": true, "defaultMode": 0o444 } },
    ]);
    for (n, tier) in tiers.iter().enumerate() {
        let (name, path) = (volume(n), data(tier));
        push(&mut container["volumeMounts"], json!({ "name": name, "mountPath": path }));
        // Directory, not DirectoryOrCreate: a disk that is not mounted must be an error, not a folder on the root disk.
        push(&mut volumes, json!({ "name": name, "hostPath": { "path": path, "type": "Directory" } }));
    }
    if settings.authority.is_some() {
        push(
            &mut container["volumeMounts"],
            json!({ "name": "authority", "mountPath": names::AUTHORITY_TOKEN_DIR, "readOnly": true }),
        );
        push(&mut volumes, authority_token());
    }
    if let Some(folder) = file_origin(&dataset.spec.source, settings) {
        push(&mut container["args"], json!(format!("--file-origin={folder}")));
        // All of what the administrator allows, and the worker looks that the source stays in it: the host would follow links.
        push(
            &mut container["volumeMounts"],
            json!({ "name": "origin", "mountPath": folder, "readOnly": true, "mountPropagation": "HostToContainer" }),
        );
        push(&mut volumes, json!({ "name": "origin", "hostPath": { "path": folder, "type": "Directory" } }));
    }
    let mut pod = json!({
        "serviceAccountName": settings.worker_service_account,
        "enableServiceLinks": true, // certificates must not need DNS
        "terminationGracePeriodSeconds": 15,
        "tolerations": tolerations(spec),
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": names::WORKER_UID,
            "runAsGroup": names::WORKER_UID,
            // Owner of the Secret's files; folders of the host keep theirs.
            "fsGroup": names::WORKER_UID,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "containers": [container],
        "volumes": volumes,
    });
    if !spec.node_selector.is_empty() {
        pod["nodeSelector"] = json!(spec.node_selector);
    }
    if !settings.pull_secrets.is_empty() {
        pod["imagePullSecrets"] = settings.pull_secrets.iter().map(|s| json!({ "name": s })).collect();
    }
    hashed(from_template(json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": owner.meta(names::worker_name(&owner.uid), Some(&settings.namespace), owner.worker_labels()),
        "spec": {
            "selector": { "matchLabels": owner.worker_selector() },
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 1 } },
            "revisionHistoryLimit": 3,
            "template": {
                "metadata": {
                    "labels": owner.worker_labels(),
                    "annotations": { "kubectl.kubernetes.io/default-container": "worker" },
                },
                "spec": pod,
            },
        },
    })))
}

/// The folder that the administrator allows and that the source's lies in.
pub(in super::super) fn file_origin<'a>(source: &Source, settings: &'a Settings) -> Option<&'a str> {
    let folder = Path::new(source.host_folder()?);
    settings.file_origins.iter().find(|allowed| folder.starts_with(allowed)).map(String::as_str)
}

fn push(list: &mut Value, item: Value) {
    if let Value::Array(list) = list {
        list.push(item);
    }
}

/// The token by which the pod proves to the operator what it is.
fn authority_token() -> Value {
    let token = json!({ "audience": names::AUTHORITY_AUDIENCE, "expirationSeconds": 3600, "path": "token" });
    json!({ "name": "authority", "projected": { "defaultMode": 0o440, "sources": [{ "serviceAccountToken": token }] } })
}

fn resources(given: Option<&Resources>) -> Value {
    match given {
        Some(r) => json!(r),
        None => json!({ "requests": { "cpu": "50m", "memory": "128Mi" } }),
    }
}

/// Those of the spec, and that of the taint that waits for other daemons of ours.
fn tolerations(workers: &Workers) -> Value {
    let mut tolerations = json!(workers.tolerations);
    push(&mut tolerations, json!({ "key": labels::NOT_READY_TAINT, "operator": "Exists" }));
    tolerations
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{mk_dataset, mk_tier, settings};
    use super::*;
    use crate::settings::Floor;

    fn build(dataset: &CacheDataset) -> Value {
        let owner = Owner::of(dataset).unwrap();
        serde_json::to_value(daemon_set(&owner, dataset, &settings(), &[&mk_tier()])).unwrap()
    }

    #[test]
    fn a_worker_is_restricted_in_everything_but_host_paths() {
        let ds = build(&mk_dataset());
        let pod = &ds["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["runAsUser"], 65532);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        let container = &pod["containers"][0]["securityContext"];
        assert_eq!(container["allowPrivilegeEscalation"], false);
        assert_eq!(container["readOnlyRootFilesystem"], true);
        assert_eq!(container["capabilities"], json!({ "drop": ["ALL"] }));
        for key in ["hostNetwork", "hostPID", "hostIPC"] {
            assert!(pod.get(key).is_none(), "{key}");
        }
    }

    #[test]
    fn a_disk_that_is_not_there_is_never_made() {
        let ds = build(&mk_dataset());
        let volumes = ds["spec"]["template"]["spec"]["volumes"].as_array().unwrap();
        let paths: Vec<_> = volumes.iter().filter_map(|v| v.get("hostPath")).collect();
        for path in ["/mnt/nvme0/larder", "/var/lib/larder/run/worker"] {
            assert!(paths.contains(&&json!({ "path": path, "type": "Directory" })), "{paths:?}");
        }
        assert_eq!(paths.len(), 2);
    }

    #[test]
    fn a_source_on_the_nodes_is_mounted_read_only_with_all_that_is_allowed() {
        let mut dataset = mk_dataset();
        for (uri, allowed) in [("file:///shared/imagenet/", true), ("file:///sharedx/", false), ("file:///etc/", false)] {
            dataset.spec.source.uri = uri.into();
            let pod = build(&dataset)["spec"]["template"]["spec"].clone();
            let container = &pod["containers"][0];
            let mount =
                json!({ "name": "origin", "mountPath": "/shared", "readOnly": true, "mountPropagation": "HostToContainer" });
            let volume = json!({ "name": "origin", "hostPath": { "path": "/shared", "type": "Directory" } });
            let has = |list: &Value, item: Value| list.as_array().unwrap().contains(&item);
            assert_eq!(has(&container["volumeMounts"], mount), allowed, "{uri}");
            assert_eq!(has(&pod["volumes"], volume), allowed, "{uri}");
            assert_eq!(has(&container["args"], json!("--file-origin=/shared")), allowed, "{uri}");
        }
    }

    #[test]
    fn nodes_and_resources_come_from_the_spec() {
        let mut dataset = mk_dataset();
        let ds = build(&dataset);
        let pod = &ds["spec"]["template"]["spec"];
        assert_eq!(pod["nodeSelector"], json!({ "nvidia.com/gpu.present": "true" }));
        let not_ready = json!({ "key": "larder.dev/not-ready", "operator": "Exists" });
        assert_eq!((&pod["tolerations"][0]["key"], &pod["tolerations"][1]), (&json!("nvidia.com/gpu"), &not_ready));
        assert_eq!(pod["containers"][0]["resources"]["requests"]["memory"], "128Mi");
        dataset.spec.workers =
            Workers { node_selector: Default::default(), tolerations: vec![], resources: Some(Resources::default()) };
        let ds = build(&dataset);
        let pod = &ds["spec"]["template"]["spec"];
        assert_eq!(pod["tolerations"], json!([not_ready]));
        assert!(pod.get("nodeSelector").is_none() && pod["containers"][0]["resources"].get("requests").is_none());
    }

    #[test]
    fn the_floor_of_a_tier_reaches_the_workers() {
        let dataset = mk_dataset();
        let args = |floor| {
            let tier = Tier { floor, ..mk_tier() };
            let ds = daemon_set(&Owner::of(&dataset).unwrap(), &dataset, &settings(), &[&tier]);
            ds.spec.unwrap().template.spec.unwrap().containers.remove(0).args.unwrap()
        };
        assert!(!args(None).iter().any(|a| a.contains("floor")), "the workers' default holds");
        let args = args(Some(Floor { percent: 0, bytes: 1 << 30 }));
        assert!(
            ["--disk-floor-percent=0", "--disk-floor-bytes=1073741824"].iter().all(|a| args.iter().any(|b| b == a)),
            "{args:?}"
        );
    }

    #[test]
    fn each_disk_is_mounted_under_its_own_path_with_its_own_floor() {
        let dataset = mk_dataset();
        let other = Tier { path: "/mnt/nvme1".into(), floor: Some(Floor { percent: 1, bytes: 7 }) };
        let ds = daemon_set(&Owner::of(&dataset).unwrap(), &dataset, &settings(), &[&mk_tier(), &other]);
        let pod = ds.spec.unwrap().template.spec.unwrap();
        let args = pod.containers[0].args.clone().unwrap();
        let of = |flag: &str| args.iter().filter_map(|a| a.strip_prefix(flag)).collect::<Vec<_>>();
        let uid = Owner::of(&dataset).unwrap().uid;
        assert_eq!(of("--dir="), [format!("/mnt/nvme0/larder/{uid}"), format!("/mnt/nvme1/larder/{uid}")]);
        assert_eq!(of("--disk-floor-percent="), ["5", "1"]);
        assert_eq!(of("--disk-floor-bytes="), ["10737418240", "7"]);
        let mounts = pod.containers[0].volume_mounts.clone().unwrap();
        for (name, path) in [("data", "/mnt/nvme0/larder"), ("data-1", "/mnt/nvme1/larder")] {
            assert_eq!(mounts.iter().find(|m| m.name == name).unwrap().mount_path, path);
            let volume = pod.volumes.as_ref().unwrap().iter().find(|v| v.name == name).unwrap();
            assert_eq!(volume.host_path.as_ref().unwrap().path, path);
        }
    }

    #[test]
    fn a_worker_without_certificates_is_told_so() {
        let dataset = mk_dataset();
        let build = |authority: Option<&str>| {
            let settings = Settings { authority: authority.map(str::to_owned), ..settings() };
            let ds =
                serde_json::to_value(daemon_set(&Owner::of(&dataset).unwrap(), &dataset, &settings, &[&mk_tier()])).unwrap();
            ds["spec"]["template"]["spec"].to_string()
        };
        let (with, without) = (build(Some("larder-operator.x.svc:7480")), build(None));
        assert!(
            with.contains("--authority=larder-operator.x.svc:7480") && with.contains("larder-operator\",\"expirationSeconds")
        );
        assert!(!with.contains("--plain"));
        assert!(without.contains("--plain") && !without.contains("serviceAccountToken"), "{without}");
    }

    #[test]
    fn a_change_of_the_snapshot_or_quota_never_restarts_workers() {
        let mut dataset = mk_dataset();
        let before = build(&dataset);
        dataset.spec.cache.tiers[0].quota.0 = "7Ti".into();
        dataset.spec.source.include = vec!["train/**".into()];
        dataset.metadata.generation = Some(9);
        assert_eq!(build(&dataset), before);
    }
}
