//! `helm upgrade` to another release and `helm rollback`, under load.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::faults::watch::{self, Mark, Readers};
use super::faults::{files, preloaded};
use super::larder::{BUCKET, SYSTEM, explain, install, set_value};
use super::takeover::is_ready;
use crate::cluster::Node;
use crate::images;
use crate::lab::Lab;
use crate::product;
use crate::report::{say, step};
use crate::s3::Request;

const WAIT: Duration = Duration::from_secs(120);

/// What the daemons of the other image say they are. Its binary is the same: that formats of another release are understood or
/// refused is what tests of the crates show.
const NEXT: &str = "0.2.0-next";

/// Longest wait of a reader whose files another node has: a peer that is silent is stood in for after two seconds.
const STALL: u64 = 5_000;

/// The readers: node, dataset, mode of the mount, processes, and what they do. All files are on both nodes with a worker, so that
/// nothing has a reason to be fetched again.
const READERS: [(&str, &str, &str, usize, &str); 3] = [
    ("gpu-1", "upgrade-1", "NoOpen", 20, "read,mmap,list,open,held"),
    ("gpu-1", "upgrade-2", "Passthrough", 5, "read,list,open,held"),
    ("cpu-1", "upgrade-3", "NoOpen", 10, "read,mmap,list,open,held"),
];

/// Every daemon of every node becomes one of another release, and then one of the first again: the keeper too, which is replaced when
/// its pod is deleted.
pub(super) fn readers_notice_no_upgrade_of_all_daemons_and_no_rollback(lab: &Lab) -> Result<()> {
    install(lab)?;
    let (cluster, tools) = (&lab.cluster, lab.cluster.tools());
    let training = images::training_image(cluster.run(), tools)?;
    let next = cluster.run().path("images").join("larder-next.tar");
    product::release(tools, NEXT, &next)?;
    step("images loaded on every node", || {
        [training, next].iter().try_for_each(|archive| cluster.load_image(cluster.nodes(), archive))
    })?;
    let mut readers = Vec::new();
    for (node, name, mode, count, kinds) in READERS {
        let (named, manifest) = preloaded(lab, name, mode, "Everywhere")?;
        readers.push(Readers::start(named, cluster.node(node)?, manifest, count, kinds)?);
    }
    let (mounted, sent) = (mounts(lab)?, sent(lab)?);
    ensure!(mounted.len() == READERS.len(), "mounts: {mounted:?}");
    let first = version(lab)?;

    roll(lab, &readers, NEXT, NEXT, || set_value(lab, &format!("image.tag={NEXT}")))?;
    roll(lab, &readers, product::TAG, &first, || cluster.helm(&["rollback", "larder", "--namespace", SYSTEM]).map(drop))?;

    step("a folder of a later format is refused, and its release goes on with it", || refuse_and_go_on(lab, &readers[2]))?;
    let now = mounts(lab)?;
    ensure!(now == mounted, "mounts were {mounted:?} and are {now:?}");
    let more = self::sent(lab)? - sent;
    ensure!(more == 0, "{more} bytes left the origin again although every file was on two disks");
    readers.iter().try_for_each(Readers::remove)
}

/// Has all daemons replaced by those of an image, and says what readers saw of it.
fn roll(lab: &Lab, readers: &[Readers<'_>], tag: &str, version: &str, change: impl Fn() -> Result<()>) -> Result<()> {
    let began = (Instant::now(), watch::now()?);
    let mut before = Vec::new();
    for (component, _) in DAEMONS {
        before.push(pods(lab, component)?.len());
    }
    let marks = readers.iter().map(Readers::mark).collect::<Result<Vec<Mark>>>()?;
    change()?;
    // Nobody but the administrator replaces a keeper.
    for pod in pods(lab, "keeper")? {
        let name = pod["metadata"]["name"].as_str().context("a pod without a name")?;
        lab.cluster.delete_and_wait("pods", Some(SYSTEM), name, WAIT)?;
        lab.cluster.wait_rolled_out("daemonsets", SYSTEM, "larder-keeper", WAIT)?;
    }
    lab.cluster.wait_until(&format!("every daemon is of {version}"), WAIT, || are_all_of(lab, &before, tag, version))?;
    let took = began.0.elapsed();
    for (reader, mark) in readers.iter().zip(marks) {
        let (_, last) = reader.settle(watch::now()?)?;
        let seen = reader.seen(mark, std::iter::once((began.1, last)))?;
        ensure!(seen.errors == 0, "readers of {} saw {} errors, {} wrong", reader.named.name, seen.errors, seen.wrong);
        say(format!("  to {version} in {} s: readers of {} waited {} ms", took.as_secs(), reader.named.name, seen.max));
        ensure!(seen.max <= STALL, "a reader of {} waited {} ms", reader.named.name, seen.max);
    }
    Ok(())
}

/// A worker finds that a later release has been in its folder: it leaves it alone and says so, readers have the other node, and when
/// that release is back everything is there.
fn refuse_and_go_on(lab: &Lab, reader: &Readers<'_>) -> Result<()> {
    let (named, cluster) = (&reader.named, &lab.cluster);
    let (uid, mark) = (named.uid()?, reader.mark()?);
    let folder = cluster.node("gpu-2")?.nvme().join("larder").join(&uid);
    let (format, data) = (folder.join("format"), folder.join("data"));
    let since = (watch::now()?, files(&data));
    ensure!(since.1 > 0, "{} is empty", data.display());
    let known = fs::read_to_string(&format).context("read the format of a worker's folder")?;
    fs::write(&format, "1000\n").context("raise the format of a worker's folder")?;
    let replace = || -> Result<()> {
        let workers = cluster.pods(SYSTEM, &format!("larder.dev/dataset-uid={uid}"))?;
        let worker = workers.iter().find(|pod| pod["spec"]["nodeName"] == "gpu-2").context("no worker on gpu-2")?;
        cluster.delete_and_wait("pods", Some(SYSTEM), worker["metadata"]["name"].as_str().unwrap_or_default(), WAIT)
    };
    replace()?;
    cluster.wait_until("WorkersReady names both formats", WAIT, || {
        let object = named.object()?;
        let told = explain(&object);
        ensure!(told.contains("WorkersReady") && told.contains("format 1000") && told.contains("up to 1"), "{told}");
        Ok(())
    })?;
    let (_, last) = reader.settle(watch::now()?)?;
    let seen = reader.seen(mark, std::iter::once((since.0, last)))?;
    ensure!(seen.errors == 0 && seen.max <= STALL, "{} errors, a wait of {} ms", seen.errors, seen.max);
    ensure!(files(&data) == since.1, "there were {} files in {}, and there are {}", since.1, data.display(), files(&data));
    fs::write(&format, known).context("bring the format of a worker's folder back")?;
    replace()?;
    named.wait("WorkersReady", WAIT).map(drop)
}

/// The daemons, with the containers that tell whether they are ready.
const DAEMONS: [(&str, &[&str]); 5] = [
    ("operator", &["operator"]),
    ("node", &["node"]),
    ("mounter", &["mounter", "standby"]),
    ("keeper", &["keeper"]),
    ("worker", &["worker"]),
];

fn pods(lab: &Lab, component: &str) -> Result<Vec<Value>> {
    lab.cluster.pods(SYSTEM, &format!("app.kubernetes.io/component={component}"))
}

/// Are there as many of each as before, all of them ready and of this image?
fn are_all_of(lab: &Lab, before: &[usize], tag: &str, version: &str) -> Result<()> {
    for ((component, containers), before) in DAEMONS.iter().zip(before) {
        let pods = pods(lab, component)?;
        ensure!(pods.len() == *before, "there are {} pods of {component}, and there were {before}", pods.len());
        for pod in pods {
            let name = pod["metadata"]["name"].as_str().context("a pod without a name")?;
            ensure!(pod["metadata"]["deletionTimestamp"].is_null(), "{name} is ending");
            let specs = pod["spec"]["containers"].as_array().context("a pod without containers")?;
            for spec in specs {
                ensure!(spec["image"] == format!("{}:{tag}", product::IMAGE), "{name} is of {}", spec["image"]);
            }
            ensure!(containers.iter().all(|container| is_ready(&pod, container)), "{name} is not ready");
            let mut ports = specs.iter().filter_map(|spec| spec["ports"].as_array()).flatten();
            let port = ports.find(|port| port["name"] == "admin").with_context(|| format!("{name} has no port admin"))?;
            let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{name}:{}/proxy/metrics", port["containerPort"]);
            let told = lab.cluster.api().text(&path)?;
            let is = told.lines().find(|line| line.starts_with("larder_build_info")).unwrap_or_default();
            ensure!(is.contains(&format!("version=\"{version}\"")), "{name} says {is}");
        }
    }
    let shown = lab.cluster.larder(&["describe", "node", "gpu-1"])?;
    ensure!(shown.contains(version), "`larder describe node` says {shown}");
    Ok(())
}

/// What the release that was installed says it is.
fn version(lab: &Lab) -> Result<String> {
    let said = lab.cluster.larder(&["--version"])?;
    said.split_whitespace().nth(1).map(str::to_owned).with_context(|| format!("`larder --version` says {said}"))
}

/// Superblocks of the readers' nodes: mount, device and place of each.
fn mounts(lab: &Lab) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for name in ["gpu-1", "cpu-1"] {
        found.extend(of_node(lab.cluster.node(name)?)?);
    }
    Ok(found)
}

fn of_node(node: &Node) -> Result<Vec<String>> {
    let table = fs::read_to_string(format!("/proc/{}/mountinfo", node.holder()?)).context("mounts of the node")?;
    let superblocks = table.lines().filter(|line| line.contains("/csi.larder.dev/mounts/"));
    let is = |line: &str| -> Option<String> {
        let fields: Vec<_> = line.split_whitespace().collect();
        Some(format!("{} {} {} {}", node.name(), fields.first()?, fields.get(2)?, fields.get(4)?))
    };
    superblocks.map(|line| is(line).with_context(|| format!("no line of a mount table: {line}"))).collect()
}

/// Bytes that the origin has sent for the readers' datasets.
fn sent(lab: &Lab) -> Result<u64> {
    let reads = Request::reads(&lab.s3.requests()?, BUCKET);
    let ours = |key: &str| READERS.iter().any(|(_, name, ..)| key.starts_with(&format!("{name}/")));
    Ok(reads.iter().filter(|(key, _)| ours(key)).map(|(_, reads)| reads.bytes).sum())
}
