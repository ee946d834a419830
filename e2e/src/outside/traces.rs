//! What a run has on this machine, and what of it is left.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::capsule::cgroup;
use crate::run_dir::{RunDir, id_is_alive, id_of};

/// The kinds of namespaces a capsule has.
const KINDS: [&str; 4] = ["net", "mnt", "pid", "uts"];

/// Processes and namespaces of a run, noted while it lived.
pub(super) struct Traces {
    /// As `<pid>-<start time>`, so that a later process with the same number is not taken for one of these.
    processes: BTreeSet<String>,
    /// As the kernel names them: `net:[4026532281]`.
    namespaces: BTreeSet<String>,
    datasets: usize,
}

impl Traces {
    /// Of the process `owner` and all its descendants.
    pub(super) fn of(owner: u32) -> Result<Self> {
        let all = parents();
        let mut family = BTreeSet::from([owner]);
        loop {
            let known = family.len();
            family.extend(all.iter().filter(|(_, parent)| family.contains(parent)).map(|(pid, _)| *pid).collect::<Vec<_>>());
            if family.len() == known {
                break;
            }
        }
        let own = namespaces_of(std::process::id());
        // One process for each view of the mounts.
        let view = |pid: &u32| Some((fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()?, *pid));
        let viewers: BTreeMap<_, _> = family.iter().filter_map(view).collect();
        let namespaces: BTreeSet<String> = family.iter().flat_map(|pid| namespaces_of(*pid)).collect();
        Ok(Self {
            processes: family.iter().filter_map(|pid| id_of(*pid)).collect(),
            namespaces: namespaces.difference(&own).cloned().collect(),
            datasets: viewers.values().map(|pid| dataset_mounts(*pid)).max().unwrap_or_default(),
        })
    }

    /// Whether a pod of it reads a dataset.
    pub(super) fn has_mounted_datasets(&self) -> bool {
        self.datasets > 0
    }

    /// Everything of it that is still there.
    pub(super) fn left(&self, run: &RunDir) -> Vec<String> {
        let mut left: Vec<String> =
            self.processes.iter().filter(|id| id_is_alive(id)).map(|id| format!("process {id}")).collect();
        for (pid, _) in parents() {
            let in_it = namespaces_of(pid).into_iter().find(|name| self.namespaces.contains(name));
            left.extend(in_it.map(|name| format!("namespace {name} of process {pid}")));
        }
        left.extend(cgroup::of_run(run.id()).iter().map(|folder| format!("cgroup {}", folder.display())));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        left.extend(mounts.lines().filter(|line| line.contains(run.id())).map(|line| format!("mount {line}")));
        left.extend(names("/sys/block").iter().filter_map(|device| {
            let file = fs::read_to_string(format!("/sys/block/{device}/loop/backing_file")).ok()?;
            Path::new(file.trim()).starts_with(run.root()).then(|| format!("loop device {device}"))
        }));
        left.extend(names(run.root()).into_iter().filter(|name| name != "log").map(|name| format!("file {name}")));
        left
    }
}

impl fmt::Display for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} processes, {} namespaces, {} mounts of datasets",
            self.processes.len(),
            self.namespaces.len(),
            self.datasets
        )
    }
}

/// What belongs to the machine and no run: it must be the same before and after.
#[derive(PartialEq, Debug)]
pub(super) struct Machine {
    links: BTreeSet<String>,
    named_networks: BTreeSet<String>,
    forwarding: String,
    host_name: String,
}

impl Machine {
    pub(super) fn look() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
        Ok(Self {
            links: names("/sys/class/net"),
            named_networks: names("/run/netns"),
            forwarding: read("/proc/sys/net/ipv4/ip_forward")?,
            host_name: read("/proc/sys/kernel/hostname")?,
        })
    }

    pub(super) fn compare(&self, after: &Self) -> Result<()> {
        ensure!(self == after, "the machine was {self:?} and is {after:?}");
        Ok(())
    }
}

fn names(folder: impl AsRef<Path>) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Every process of the machine with its parent.
fn parents() -> Vec<(u32, u32)> {
    let parent_of = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    names("/proc").iter().filter_map(|name| name.parse().ok()).filter_map(|pid| Some((pid, parent_of(pid)?))).collect()
}

fn namespaces_of(pid: u32) -> BTreeSet<String> {
    let link = |kind: &&str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    KINDS.iter().filter_map(link).map(|name| name.to_string_lossy().into_owned()).collect()
}

/// FUSE mounts of Larder that a process sees.
fn dataset_mounts(pid: u32) -> usize {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let ours = |line: &&str| line.contains("csi.larder.dev/mounts/") && line.contains(" - fuse");
    mounts.lines().filter(ours).count()
}
