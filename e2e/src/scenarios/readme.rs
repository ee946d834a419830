//! README.md, as a user follows it: its own text is run, from making the image to removing everything.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::larder::{BUCKET, SYSTEM, upload};
use crate::cluster::Node;
use crate::dataset::{self, Manifest};
use crate::images::BUSYBOX;
use crate::lab::Lab;
use crate::process::Run as _;
use crate::readme::{Block, Replacement, blocks, check_all_used, replace};
use crate::registry::{NAME as REGISTRY, Registry};
use crate::report::{say, step};
use crate::s3::{ACCESS_KEY, SECRET_KEY};
use crate::tools::repository;

/// The parts that are instructions, in their order.
const SECTIONS: [&str; 3] = ["Install on your cluster", "The first dataset", "Remove it"];

/// The dataset in the README.
const NAMESPACE: &str = "vision";
const DATASET: &str = "imagenet";

const WAIT: Duration = Duration::from_secs(120);

/// Everything in this table is different here; all the rest of the README is used as it is.
fn replacements(lab: &Lab, reader: &Reader<'_>) -> Vec<Replacement> {
    vec![
        // Made by the same program before any test began; a capsule has no network to build in.
        Replacement::new("make images ", "test -s target/images/larder.tar "),
        Replacement::new("/usr/local/bin/", format!("{}/bin/", reader.folder.display())),
        Replacement::new("accessKeyId: \"...\"", format!("accessKeyId: {ACCESS_KEY}")),
        Replacement::new("secretAccessKey: \"...\"", format!("secretAccessKey: {SECRET_KEY}")),
        Replacement::new("https://s3.corp.example", lab.s3.endpoint()),
    ]
}

pub(super) fn the_readme_works_with_images_from_a_registry(lab: &Lab) -> Result<()> {
    let registry = step("registry ready", || Registry::start(lab.cluster.run(), lab.cluster.tools(), lab.cluster.nodes()))?;
    let reader = Reader::new(lab, &registry)?;
    let manifest = upload(lab, BUCKET, DATASET, 801)?;
    let mut table = replacements(lab, &reader);
    let blocks: Vec<Block> = blocks()?.into_iter().map(|b| Block { text: replace(&b.text, &mut table), ..b }).collect();
    let [install, first, remove] = SECTIONS.map(|name| blocks.iter().filter(move |b| b.section == name).collect::<Vec<_>>());
    for node in lab.cluster.nodes() {
        ensure!(!images(node)?.contains("larder"), "{} has the image already", node.name());
    }
    let commands = |blocks: &[&Block]| -> Result<()> {
        ensure!(blocks.iter().any(|block| block.language == "sh"), "a section of README.md has no commands");
        blocks.iter().filter(|block| block.language == "sh").try_for_each(|block| reader.run(&block.text))
    };
    commands(&install)?;
    reader.write_dataset(&first)?;
    commands(&first)?;
    for node in lab.cluster.nodes() {
        let pulled = images(node)?;
        ensure!(pulled.contains(&format!("{REGISTRY}/larder:")), "{} has no image of the registry: {pulled}", node.name());
    }
    let volumes = snippet(&first, "      volumes:")?;
    for node in lab.cluster.nodes() {
        read(lab, node, volumes, &manifest)?;
    }
    commands(&remove)?;
    check_all_used(&table)?;
    nothing_is_left(lab)
}

/// Someone who reads the README in a clone, with a shell.
struct Reader<'a> {
    folder: PathBuf,
    registry: &'a Registry,
}

impl<'a> Reader<'a> {
    fn new(lab: &Lab, registry: &'a Registry) -> Result<Self> {
        let folder = lab.cluster.run().path("readme");
        let _ = fs::remove_dir_all(&folder);
        for name in ["bin", "tmp"] {
            fs::create_dir_all(folder.join(name)).context("make a folder")?;
        }
        // The clone, but for files that the README has its readers write.
        for name in ["charts", "crds", "manifests", "target"] {
            std::os::unix::fs::symlink(repository().join(name), folder.join(name)).context("link a part of the clone")?;
        }
        fs::write(folder.join("ca.crt"), lab.s3.authority()?).context("write the origin's CA")?;
        // What Debian's package puts into /etc.
        let policy = lab.cluster.run().path("home/.config/containers/policy.json");
        policy.parent().map_or(Ok(()), fs::create_dir_all).context("make a folder")?;
        fs::write(policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).context("write skopeo's policy")?;
        Ok(Self { folder, registry })
    }

    fn run(&self, script: &str) -> Result<()> {
        script.lines().for_each(|line| say(format!("    $ {line}")));
        let mut path = self.folder.join("bin").into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let output = step("commands of README.md", || {
            Command::new("bash")
                .args(["-euxo", "pipefail", "-c", script])
                .current_dir(&self.folder)
                .env("PATH", path)
                .env("TMPDIR", self.folder.join("tmp"))
                // For skopeo: the registry's CA is among those that the user's machine trusts.
                .env("SSL_CERT_FILE", self.registry.authority())
                .run()
        })?;
        output.lines().for_each(|line| say(format!("      {line}")));
        Ok(())
    }

    /// The two pieces of YAML that make the file `dataset.yaml`.
    fn write_dataset(&self, blocks: &[&Block]) -> Result<()> {
        let (yaml, private) = (snippet(blocks, "apiVersion:")?, snippet(blocks, "    endpoint:")?);
        let (head, tail) = yaml.split_once("    credentials:").context("the dataset in README.md has no credentials")?;
        let text = format!("{head}{private}    credentials:{tail}");
        fs::write(self.folder.join("dataset.yaml"), text).context("write dataset.yaml")
    }
}

/// The block of YAML that starts like this.
fn snippet<'a>(blocks: &[&'a Block], start: &str) -> Result<&'a str> {
    let mut yaml = blocks.iter().filter(|block| block.language == "yaml").map(|block| block.text.as_str());
    yaml.find(|text| text.starts_with(start)).with_context(|| format!("README.md has no YAML that starts with `{start}`"))
}

/// A pod with the volumes of the README reads every file.
fn read(lab: &Lab, node: &Node, volumes: &str, manifest: &Manifest) -> Result<()> {
    let (name, host) = (format!("reader-{}", node.name()), node.name());
    lab.cluster.apply(&format!(
        r#"apiVersion: batch/v1
kind: Job
metadata: {{ name: {name}, namespace: {NAMESPACE} }}
spec:
  template:
    metadata: {{ labels: {{ reader: {name} }} }}
    spec:
      restartPolicy: Never
      nodeSelector: {{ kubernetes.io/hostname: {host} }}
      tolerations: [{{ key: nvidia.com/gpu, operator: Exists }}]
      containers:
        - name: reader
          image: {BUSYBOX}
          imagePullPolicy: Never
          command: [find, /data, -type, f, -exec, sha256sum, "{{}}", +]
          volumeMounts: [{{ name: data, mountPath: /data }}]
{volumes}"#
    ))?;
    let pod = lab.cluster.wait_until("the reader's pod", WAIT, || {
        let pods = lab.cluster.pods(NAMESPACE, &format!("reader={name}"))?;
        let pod = pods.first().context("not there yet")?["metadata"]["name"].as_str().context("no name")?;
        Ok(pod.to_owned())
    })?;
    lab.cluster.wait_succeeded(NAMESPACE, &pod, WAIT)?;
    let sums = dataset::parse_sums(&lab.cluster.logs(NAMESPACE, &pod, None)?, "/data")?;
    dataset::compare(manifest, &sums).with_context(|| format!("what the pod on {host} read"))?;
    lab.cluster.delete_and_wait("jobs", Some(NAMESPACE), &name, WAIT)?;
    lab.cluster.delete_and_wait("pods", Some(NAMESPACE), &pod, WAIT)
}

fn images(node: &Node) -> Result<String> {
    node.ctr()?.args(["images", "list", "--quiet"]).run()
}

/// In the cluster and on the nodes: no object, no process, no mount, no file.
fn nothing_is_left(lab: &Lab) -> Result<()> {
    let cluster = &lab.cluster;
    cluster.wait_until("nothing left of Larder", WAIT, || {
        for kind in ["pods", "daemonsets", "deployments", "services", "secrets", "leases", "endpointslices"] {
            let left = cluster.list(kind, Some(SYSTEM))?;
            let left = left.first().map(|object| object["metadata"]["name"].to_string());
            ensure!(left.is_none(), "{kind} has {}", left.unwrap_or_default());
        }
        for kind in [
            "persistentvolumes",
            "csidrivers",
            "customresourcedefinitions",
            "clusterroles",
            "clusterrolebindings",
            "storageclasses",
        ] {
            let left = cluster.list(kind, None)?;
            let left = left.iter().map(|object| object["metadata"]["name"].to_string()).find(|name| name.contains("larder"));
            ensure!(left.is_none(), "{kind} has {}", left.unwrap_or_default());
        }
        for node in cluster.nodes() {
            let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", node.holder()?)).context("mounts of a node")?;
            ensure!(!mounts.contains("csi.larder.dev"), "{} has a mount", node.name());
            let places = [node.nvme().join("larder"), node.var_lib("kubelet").join("plugins"), node.var_lib("larder")];
            let sockets = node.var_lib("kubelet").join("plugins_registry");
            for place in places.into_iter().chain([sockets]) {
                let file = first_file(&place);
                ensure!(file.is_none(), "{} has {}", node.name(), file.unwrap_or_default().display());
            }
        }
        Ok(())
    })
}

/// Anything in a folder that is neither a folder nor the socket of a process that is gone.
fn first_file(folder: &Path) -> Option<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().find_map(|entry| {
        let kind = entry.file_type().ok()?;
        if kind.is_dir() { first_file(&entry.path()) } else { (!kind.is_socket()).then(|| entry.path()) }
    })
}
