//! A folder that all nodes have, such as a network file system, as the origin.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::larder::{Named, SHARED, install};
use crate::dataset::Dataset;
use crate::lab::Lab;
use crate::process::Run as _;

const WAIT: Duration = Duration::from_secs(120);

/// What the administrator allows is cached and read as from a bucket; nothing else of the nodes can be named, also not by a link.
pub(super) fn a_folder_that_all_nodes_share_is_a_source_too(lab: &Lab) -> Result<()> {
    install(lab)?;
    let folder = lab.cluster.run().path("shared");
    let manifest = Dataset { shards: vec![3 << 20], small: 40, ..Dataset::small(91) }.write(&folder.join("pictures"))?;
    symlink("/etc", folder.join("link")).context("make a link that leads out")?;
    let nodes = |command: &str| -> Result<()> {
        for node in lab.cluster.gpu_nodes() {
            node.command("sh")?.args(["-ec", command]).run()?;
        }
        Ok(())
    };
    nodes(&format!("mkdir -p {SHARED}; mount --bind '{}' {SHARED}", folder.display()))?;

    let named = |name| Named { lab, namespace: "folder", name };
    let (pictures, outside, link) = (named("pictures"), named("outside"), named("link"));
    lab.cluster.create_namespace(pictures.namespace)?;
    let apply = |named: &Named<'_>, source: &str| lab.cluster.apply(&yaml(named, source)).map(drop);
    apply(&pictures, &format!("{SHARED}/pictures"))?;
    apply(&outside, "/etc")?;
    apply(&link, &format!("{SHARED}/link"))?;
    pictures.wait("Ready", WAIT)?;
    pictures.wait("Preloaded", WAIT)?;
    pictures.read_everywhere(&manifest, WAIT)?;
    outside.wait_reason("WorkersReady", "FolderNotAllowed", SHARED, WAIT)?;
    link.wait_reason("SnapshotTaken", "FolderNotAllowed", "link", WAIT)?;

    // Everything is on the disks: the folder may go.
    nodes(&format!("umount -l {SHARED}"))?;
    fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    pictures.remove_readers(WAIT)?;
    pictures.read_everywhere(&manifest, WAIT)?;
    for named in [outside, link] {
        named.remove_but_namespace(WAIT)?;
    }
    pictures.remove(WAIT)?;
    nodes(&format!("umount {SHARED} 2>/dev/null || true; rmdir {SHARED}"))
}

fn yaml(Named { namespace, name, .. }: &Named<'_>, folder: &str) -> String {
    format!(
        r#"apiVersion: larder.dev/v1alpha1
kind: CacheDataset
metadata: {{ name: {name}, namespace: {namespace} }}
spec:
  source: {{ uri: "file://{folder}/" }}
  cache:
    tiers: [{{ name: nvme, quota: 1Gi }}]
"#
    )
}
