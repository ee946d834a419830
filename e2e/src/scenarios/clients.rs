//! What others read their data with (docs/clients.md): a dataset that they have made, on a pod's volume and on `larder mount`.

mod root;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::json;

use self::root::Root;
use super::larder::{BUCKET, Named, install};
use super::samples;
use crate::dataset;
use crate::images;
use crate::lab::Lab;
use crate::process::Run as _;
use crate::report::{say, step};
use crate::s3::{ACCESS_KEY, REGION, SECRET_KEY};

const WAIT: Duration = Duration::from_secs(120);
/// Folder in the bucket, and name of the datasets.
const NAME: &str = "clients";

/// A mode of mounts, and a user who reads.
struct Case {
    mode: &'static str,
    namespace: &'static str,
    /// Whose the files are, too: git reads no repository of another user.
    user: u32,
}

const CASES: [Case; 2] = [
    Case { mode: "Passthrough", namespace: "clients-passthrough", user: 0 },
    Case { mode: "NoOpen", namespace: "clients-noopen", user: 1000 },
];

/// A line of clients.py.
#[derive(Debug, Deserialize)]
struct Line {
    client: String,
    version: String,
    seconds: f64,
    error: Option<String>,
}

pub(super) fn what_others_read_with_finds_every_byte_and_complains_of_nothing(lab: &Lab) -> Result<()> {
    install(lab)?;
    let root = Root::new(lab.cluster.run(), lab.cluster.tools())?;
    step("dataset made by its readers", || {
        root.python(&["make", "/made"])?;
        let manifest = dataset::copy(&root.path("made"), &lab.s3.bucket(BUCKET)?.join(NAME))?;
        fs::remove_dir_all(root.path("made")).context("remove what is in the bucket now")?;
        fs::write(root.path("SHA256SUMS"), samples::sums(&manifest)).context("write the list of sums")
    })?;
    let datasets = CASES.map(|case| (Named { lab, namespace: case.namespace, name: NAME }, case));
    for (named, Case { mode, user, .. }) in &datasets {
        named.create()?;
        named.set_mount(&json!({ "mode": mode, "uid": user, "gid": user }))?;
    }
    let node = lab.cluster.node("gpu-1")?;
    step("image of the readers", || {
        node.load_image(&images::folder_image(lab.cluster.run(), root.folder(), images::CLIENTS)?)
    })?;
    for (named, Case { mode, namespace, user }) in &datasets {
        named.wait("Preloaded", WAIT)?;
        let mut pod = named.pod(NAME, node, &["/usr/bin/python3", "/clients.py", "read", "/data", "/SHA256SUMS"]);
        pod["spec"]["containers"][0]["image"] = images::CLIENTS.into();
        pod["spec"]["securityContext"] = json!({ "runAsUser": user, "runAsGroup": user });
        lab.cluster.apply(&pod.to_string())?;
        lab.cluster.wait_succeeded(namespace, NAME, WAIT)?;
        judge(&format!("a pod of user {user}, {mode}"), &lab.cluster.logs(namespace, NAME, None)?)?;
        lab.cluster.delete_and_wait("pods", Some(namespace), NAME, WAIT)?;
    }
    for case in CASES {
        judge(&format!("larder mount, {}", case.mode), &read_standalone(lab, &root, case.mode)?)?;
    }
    datasets.iter().try_for_each(|(named, _)| named.remove(WAIT))
}

/// Reads through `larder mount`, with nothing in the cache: each byte comes from the origin when a reader first asks for it.
fn read_standalone(lab: &Lab, root: &Root, mode: &str) -> Result<String> {
    let folder = lab.cluster.run().path(format!("clients/{mode}"));
    fs::create_dir_all(&folder).context("make the folder of a cache")?;
    let (ca, file) = (folder.join("ca.crt"), folder.join("dataset.yaml"));
    fs::write(&ca, lab.s3.authority()?).context("write the authority's certificate")?;
    let text = format!(
        r"apiVersion: larder.dev/v1alpha1
kind: CacheDataset
metadata: {{ name: {NAME} }}
spec:
  source:
    uri: s3://{BUCKET}/{NAME}/
    endpoint: {endpoint}
    region: {REGION}
    pathStyle: true
    credentials: {{ secretRef: {{ name: s3 }} }}
  cache: {{ tiers: [{{ path: tier, quota: 1Gi }}] }}
  preload: {{ policy: None }}
",
        endpoint = lab.s3.endpoint(),
    );
    fs::write(&file, text).context("write the file of a dataset")?;
    let data = root.path("data");
    let larder = |arguments: &[&Path]| {
        let mut command = Command::new(crate::product::program());
        command.args(arguments).env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY).run()
    };
    let flags = ["--detach", "--mode", mode, "--ca"].map(Path::new);
    larder(&[&[Path::new("mount"), &file, &data], &flags[..], &[&ca]].concat())?;
    let read = root.python(&["read", "/data", "/SHA256SUMS"]);
    larder(&[Path::new("umount"), &data])?;
    read
}

fn judge(place: &str, output: &str) -> Result<()> {
    let lines: Vec<Line> = output
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("understand `{line}`")))
        .collect::<Result<_>>()?;
    for line in &lines {
        ensure!(line.error.is_none() && !line.version.is_empty(), "on {place}: {line:?}");
    }
    ensure!(!lines.is_empty(), "on {place}: nobody has read anything");
    let all: Vec<_> = lines.iter().map(|line| format!("{} {:.1} s", line.client, line.seconds)).collect();
    say(format!("  on {place}: {}", all.join(", ")));
    Ok(())
}
