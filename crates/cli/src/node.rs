//! `larder describe node NAME`: asked of the mounter there, through the API server.

use crate::describe::bytes;
use anyhow::Context as _;
use comfy_table::{Table, presets::NOTHING};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use larder_api::CacheDataset;
use larder_core::names::MOUNTER_ADMIN_PORT;
use larder_mount::mounter::{MountPage, NodePage};
use std::collections::HashMap;

const MOUNTERS: &str = "app.kubernetes.io/name=larder,app.kubernetes.io/component=mounter";

/// Prints the detail.
pub async fn describe(node: &str) -> anyhow::Result<()> {
    let client = Client::try_default().await.context("read kubeconfig")?;
    let on_node = ListParams::default().labels(MOUNTERS).fields(&format!("spec.nodeName={node}"));
    let pods = Api::<Pod>::all(client.clone()).list(&on_node).await.context("list the pods of Larder's mounters")?;
    let pod = pods.items.first().with_context(|| {
        format!(
            "no mounter of Larder runs on node {node}; is that its name, and has Larder's DaemonSet larder-mounter a pod there?"
        )
    })?;
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{MOUNTER_ADMIN_PORT}/proxy/mounts");
    let request = http::Request::get(path).body(Vec::new()).context("make the request")?;
    let page: NodePage = client.request(request).await.with_context(|| format!("ask pod {namespace}/{name} for its mounts"))?;
    let datasets = Api::<CacheDataset>::all(client).list(&ListParams::default()).await.context("list CacheDatasets")?;
    let names = datasets.items.iter().filter_map(|d| Some((d.uid()?, format!("{}/{}", d.namespace()?, d.name_any()))));
    print!("{}", text(node, &format!("{namespace}/{name}"), &page, &names.collect()));
    Ok(())
}

fn text(node: &str, mounter: &str, page: &NodePage, names: &HashMap<String, String>) -> String {
    let passthrough = match page.passthrough {
        Some(true) => "yes: the kernel reads complete local files by itself where the mode is Passthrough",
        Some(false) => "no: it needs Linux 6.9; all mounts have mode NoOpen",
        None => "not known before something is mounted",
    };
    let version = if page.version.is_empty() { "not told" } else { &page.version };
    let lines =
        [("Node", node), ("Mounter", mounter), ("Version", version), ("Kernel", &page.kernel), ("Passthrough", passthrough)];
    let mut out: String = lines.iter().map(|(k, v)| format!("{:<13} {v}\n", format!("{k}:"))).collect();
    if page.mounts.is_empty() {
        out.push_str("Mounts:       none\n");
        return out;
    }
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["  DATASET", "SNAPSHOT", "MODE", "FROM LOCAL", "FROM PEERS", "FROM ORIGIN", "FAILED READS"]);
    for mount in &page.mounts {
        let dataset = names.get(&mount.dataset_uid).unwrap_or(&mount.dataset_uid);
        table.add_row([
            format!("  {dataset}"),
            mount.snapshot.chars().take(16).collect(),
            mode(mount),
            bytes(mount.reads.local_bytes),
            bytes(mount.reads.peer_bytes),
            bytes(mount.reads.origin_bytes),
            mount.reads.failed.to_string(),
        ]);
    }
    out.push_str(&format!(
        "Mounts:\n{table}\nWhat the kernel reads by itself, from its page cache or by passthrough, is in none of the figures.\n"
    ));
    out
}

fn mode(mount: &MountPage) -> String {
    match &mount.refused {
        Some(why) => format!("{:?} (refused: {why})", mount.mode),
        None => format!("{:?}", mount.mode),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_tells_what_its_kernel_can_do_and_how_datasets_are_mounted() {
        let page = serde_json::json!({
            "version": "0.1.0", "kernel": "6.18.5", "passthrough": true,
            "mounts": [{
                "datasetUid": "u", "snapshot": "ab".repeat(32), "mode": "Passthrough", "refused": "register backing file: ELOOP",
                "reads": {"requestedBytes": 4, "localBytes": 1, "peerBytes": 2048, "originBytes": 0, "failed": 7},
            }],
        });
        let page: NodePage = serde_json::from_value(page).unwrap();
        let shown = text("gpu-0", "larder-system/m", &page, &HashMap::from([("u".to_owned(), "vision/imagenet".to_owned())]));
        for part in [
            "Version:      0.1.0",
            "6.18.5",
            "yes: the kernel",
            "vision/imagenet",
            "Passthrough (refused: register backing file: ELOOP)",
            "2.0 KiB",
            " 7",
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        let none = NodePage { version: String::new(), kernel: "5.4".into(), passthrough: Some(false), mounts: vec![] };
        assert!(text("n", "m", &none, &HashMap::new()).contains("needs Linux 6.9"));
    }
}
