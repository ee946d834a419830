//! Keys that are no paths.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::larder::{BUCKET, Named, install};
use crate::dataset::Dataset;
use crate::lab::Lab;
use crate::s3::AnyKeyServer;

const WAIT: Duration = Duration::from_secs(120);

/// They are left out, counted and named; everything beside them is read.
pub(super) fn keys_that_no_file_can_have_are_left_out_and_named(lab: &Lab) -> Result<()> {
    install(lab)?;
    let named = Named { lab, namespace: "keys", name: "keys" };
    let origin = AnyKeyServer::start(&lab.s3, BUCKET)?;
    let folder = lab.cluster.run().path("any-key");
    let files = Dataset { seed: 531, shards: vec![9 << 20], small: 30, small_bytes: 20_000, odd_names: false };
    let manifest = files.write(&folder)?;
    for path in manifest.keys() {
        let content = fs::read(folder.join(path)).with_context(|| format!("read {path}"))?;
        origin.put(&format!("keys/{path}"), &content)?;
    }
    // The last one is a file, and there are files beneath it.
    let long = format!("odd/{}", "n".repeat(256));
    let left_out = ["odd//empty-part", "..", "odd/../up", "./here", &long, "samples/class-01"];
    for key in left_out {
        origin.put(&format!("keys/{key}"), b"not served")?;
    }
    // A folder's own marker is no file and nothing that is missing.
    origin.put("keys/samples/", b"")?;

    let yaml = named.yaml()?.replace(&lab.s3.endpoint(), &origin.endpoint());
    let yaml = yaml.replace("    ca: { configMapRef: { name: corp-ca } }\n", "");
    lab.cluster.create_namespace(named.namespace)?;
    lab.cluster.apply(&yaml)?;
    let object = named.wait("Preloaded", WAIT)?;
    let snapshot = &object["status"]["snapshot"];
    let counts = [&snapshot["files"], &snapshot["skipped"]].map(|count| count.as_u64().unwrap_or_default());
    ensure!(counts == [manifest.len() as u64, left_out.len() as u64], "the snapshot says {snapshot}");
    let conditions = object["status"]["conditions"].as_array().context("no conditions")?;
    let taken = conditions.iter().find(|condition| condition["type"] == "SnapshotTaken").context("no SnapshotTaken")?;
    let message = taken["message"].as_str().unwrap_or_default();
    let told = lab.cluster.larder(&["describe", "dataset", named.name, "--namespace", named.namespace])?;
    for key in left_out {
        // A long one is cut.
        let key = &key[..key.len().min(60)];
        ensure!(message.contains(key), "the condition does not name {key}: {message}");
        ensure!(told.contains(key), "`larder describe dataset` does not name {key}:\n{told}");
    }
    named.read_everywhere(&manifest, WAIT)?;
    named.remove(WAIT)
}
