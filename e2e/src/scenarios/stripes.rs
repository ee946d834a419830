//! A file larger than one node should hold.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::larder::{BUCKET, Named, install};
use crate::cluster::Node;
use crate::dataset::Dataset;
use crate::lab::Lab;
use crate::process::Run as _;

const WAIT: Duration = Duration::from_secs(150);
const FILE: u64 = 64 << 20;

/// Two nodes have a part of it each, and every pod reads all of it. Who has read it has it whole.
pub(super) fn a_large_file_lies_in_stripes_on_all_nodes(lab: &Lab) -> Result<()> {
    install(lab)?;
    let named = Named { lab, namespace: "stripes", name: "stripes" };
    let dataset = Dataset { shards: vec![FILE], small: 0, odd_names: false, ..Dataset::small(611) };
    let manifest = dataset.write(&lab.s3.bucket(BUCKET)?.join(named.name))?;
    lab.cluster.create_namespace(named.namespace)?;
    let yaml = |size| {
        Ok::<_, anyhow::Error>(named.yaml()?.replace("quota: 5Gi }]", &format!("quota: 5Gi }}]\n    stripeSize: {size}")))
    };
    let refused = lab.cluster.apply(&yaml("7Mi")?);
    ensure!(refused.is_err_and(|e| format!("{e:#}").contains("stripeSize must be a multiple of 4Mi")), "7Mi is no stripe size");
    lab.cluster.apply(&yaml("8Mi")?)?;
    named.wait("Preloaded", WAIT)?;
    ensure!(named.origin_bytes()? == FILE, "{} bytes left the origin, the file has {FILE}", named.origin_bytes()?);

    let uid = named.uid()?;
    let nodes: Vec<&Node> = lab.cluster.gpu_nodes().collect();
    let mut sum = 0;
    for node in &nodes {
        let bytes = on_disk(node, &uid, "fill")?;
        ensure!((8 << 20..FILE).contains(&bytes), "{bytes} bytes of {FILE} are on {}", node.name());
        ensure!(on_disk(node, &uid, "data")? == 0, "{} has it whole", node.name());
        sum += bytes;
    }
    ensure!(sum < FILE + (1 << 20), "{sum} bytes of {FILE} are on all nodes together");

    named.read_everywhere(&manifest, WAIT)?;
    lab.cluster.wait_until("the nodes have the whole file, which their pods have read", WAIT, || {
        for node in &nodes {
            let bytes = on_disk(node, &uid, "data")?;
            ensure!(bytes >= FILE, "{bytes} bytes of {FILE} are on {}", node.name());
        }
        Ok(())
    })?;
    ensure!(named.origin_bytes()? == FILE, "{} bytes left the origin again", named.origin_bytes()? - FILE);
    named.read_everywhere(&manifest, WAIT)?;
    named.remove_readers(WAIT)?;
    named.remove(WAIT)
}

/// Space that files of a folder of the dataset have, without their sidecars and journals.
fn on_disk(node: &Node, uid: &str, folder: &str) -> Result<u64> {
    let folder = node.nvme().join("larder").join(uid).join(folder);
    let list = std::process::Command::new("find")
        .arg(&folder)
        .args(["-type", "f", "-not", "-name", "*.*", "-printf", "%b\n"])
        .run()?;
    Ok(list.lines().filter_map(|blocks| blocks.parse::<u64>().ok()).sum::<u64>() * 512)
}
