//! Workers, of which the readers of another node have everything, and the disk under them.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{After, Faults, WAIT, each};
use crate::cluster::{Node, Process};
use crate::report::say;
use crate::scenarios::larder::{Named, SYSTEM};
use crate::scenarios::takeover::is_ready;

/// How long a worker that is slow takes for an answer, and a node is alone.
const TEN: Duration = Duration::from_secs(10);

pub(super) fn killed<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    each(faults, after, if faults.quick { 2 } else { 10 }, |_| {
        worker(&faults.remote.named, faults.other)?.signal(Signal::SIGKILL)?;
        wait_ready(&faults.remote.named, faults.other)
    })
}

/// A worker's node is alone: nothing that is sent to it arrives, and no connection ends.
pub(super) fn partitioned<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    each(faults, after, if faults.quick { 1 } else { 5 }, |_| {
        faults.other.host().cut_off()?;
        std::thread::sleep(TEN);
        faults.other.host().join()
    })
}

/// A worker takes ten seconds for whatever it is asked.
pub(super) fn slow<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    each(faults, after, if faults.quick { 2 } else { 5 }, |_| {
        let worker = worker(&faults.remote.named, faults.other)?;
        worker.signal(Signal::SIGSTOP)?;
        std::thread::sleep(TEN);
        worker.signal(Signal::SIGCONT)
    })
}

/// All files of a worker have a byte that is not theirs. What nobody asked for until then is looked at when the worker has started
/// again.
pub(super) fn garbage<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    let named = &faults.remote.named;
    let files = cached(named, faults.other)?;
    ensure!(!files.is_empty(), "{} has no files", faults.other.name());
    each(faults, after, 1, |_| {
        files.iter().try_for_each(|file| flip(file))?;
        named.wait_reason("WorkersReady", "DataCorrupted", "quarantine", WAIT)
    })?;
    worker(named, faults.other)?.signal(Signal::SIGKILL)?;
    wait_ready(named, faults.other)?;
    Ok(files.len())
}

/// Changes the byte in the middle.
fn flip(path: &Path) -> Result<()> {
    let at = fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.len() / 2;
    let file = OpenOptions::new().read(true).write(true).open(path).context("open a cached file")?;
    let mut byte = [0];
    if file.read_at(&mut byte, at).context("read a cached file")? == 1 {
        file.write_at(&[byte[0] ^ 1], at).context("change a cached file")?;
    }
    Ok(())
}

/// The files of both datasets are taken off the disk of the node while they are read there: open ones are read on, others come
/// from the other node, and the worker fetches them again.
pub(super) fn disk_pulled<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    let mut taken = 0;
    each(faults, after, 1, |_| {
        for readers in [&faults.through_mounter, &faults.in_kernel] {
            let files = cached(&readers.named, faults.node)?;
            ensure!(files.len() == readers.manifest.len(), "{} files of {}", files.len(), readers.named.name);
            for file in &files {
                fs::remove_file(file).with_context(|| format!("remove {}", file.display()))?;
            }
            taken += files.len();
            // A pod that comes now.
            readers.named.start_reader(faults.node)?;
            readers.named.check_reader(faults.node, &readers.manifest, WAIT)?;
            readers.named.remove_readers(WAIT)?;
        }
        Ok(())
    })?;
    for readers in [&faults.through_mounter, &faults.in_kernel] {
        worker(&readers.named, faults.node)?.signal(Signal::SIGKILL)?;
        wait_ready(&readers.named, faults.node)?;
        let back = Instant::now();
        faults.lab.cluster.wait_until("the files are back", WAIT, || {
            let back = cached(&readers.named, faults.node)?.len();
            ensure!(back == readers.manifest.len(), "{back} of {} are", readers.manifest.len());
            Ok(())
        })?;
        say(format!("  disk-pulled: {} has its files again after {:.1} s", readers.named.name, back.elapsed().as_secs_f64()));
    }
    Ok(taken)
}

/// The files of a dataset on the disk of a node, without those that say what is in them.
pub(super) fn cached(named: &Named<'_>, node: &Node) -> Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![node.nvme().join("larder").join(named.uid()?).join("data")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let path = entry.context("list cached files")?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_none_or(|extension| extension != "meta") {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// The pod of a dataset's worker on a node.
fn pod(named: &Named<'_>, node: &Node) -> Result<serde_json::Value> {
    let pods = named.lab.cluster.pods(SYSTEM, &format!("larder.dev/dataset-uid={}", named.uid()?))?;
    let pod = pods.into_iter().find(|pod| pod["spec"]["nodeName"] == node.name());
    pod.with_context(|| format!("{} has no worker on {}", named.name, node.name()))
}

fn worker(named: &Named<'_>, node: &Node) -> Result<Process> {
    let pod = pod(named, node)?;
    let name = pod["metadata"]["name"].as_str().context("a pod without a name")?;
    Ok(named.lab.cluster.main_process(SYSTEM, name, "worker")?.1)
}

/// Waits until a worker that was killed a moment ago is back.
pub(super) fn wait_ready(named: &Named<'_>, node: &Node) -> Result<()> {
    named.lab.cluster.wait_until("the worker is back", WAIT, || {
        worker(named, node)?;
        ensure!(is_ready(&pod(named, node)?, "worker"), "it is not ready");
        Ok(())
    })
}
