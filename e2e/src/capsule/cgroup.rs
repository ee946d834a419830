//! Control groups of a run: `larder-e2e/<run id>/<node>` in every hierarchy.
//!
//! They are machine-wide (no namespace contains them), so they carry the run's id, and whoever finds those of a run whose
//! owner is gone removes them. Works on cgroup v1 with its hierarchy per controller, and on v2.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::run_dir::id_is_alive;

const TOP: &str = "larder-e2e";

/// The kernel frees a cgroup only some time after its last process is gone.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(30);

/// The mount points of all hierarchies: (path, is version 2).
fn hierarchies() -> Vec<(PathBuf, bool)> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut found: Vec<(PathBuf, bool)> = mounts
        .lines()
        .filter_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [_, path, kind @ ("cgroup" | "cgroup2"), ..] => Some((PathBuf::from(path), kind == "cgroup2")),
            _ => None,
        })
        .collect();
    found.dedup();
    found
}

/// The path, from a hierarchy's root, that a node's kubelet gets as `cgroupRoot`.
pub fn node_path(run: &str, node: &str) -> String {
    format!("/{TOP}/{run}/{node}")
}

/// Makes a node's directory in every hierarchy.
///
/// # Errors
/// A hierarchy is not writable.
pub fn create(run: &str, node: &str) -> Result<()> {
    let all = hierarchies();
    let only_v2 = all.iter().all(|(_, v2)| *v2);
    for (root, v2) in all.iter().filter(|(_, v2)| !v2 || only_v2) {
        let mut folder = root.clone();
        for part in [TOP, run, node] {
            if *v2 {
                delegate(&folder);
            }
            let parent = folder.clone();
            folder.push(part);
            match fs::create_dir(&folder) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(error).with_context(|| format!("make cgroup {}", folder.display()));
                }
                _ => {}
            }
            // A new cpuset is empty, and no process may enter an empty one.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let (false, Ok(value)) = (*v2, fs::read(parent.join(file))) {
                    fs::write(folder.join(file), value).with_context(|| format!("write {file} of {}", folder.display()))?;
                }
            }
        }
    }
    Ok(())
}

/// Version 2: passes every controller on to the children.
fn delegate(folder: &Path) {
    for controller in fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default().split_whitespace() {
        // One that cannot be passed on (in use by a process here) is one the kubelet does without or complains about.
        let _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// The directory that limits the memory of a process.
///
/// # Errors
/// The process is gone, or nothing limits it.
pub fn of_memory(pid: i32) -> Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).with_context(|| format!("cgroups of process {pid}"))?;
    let hierarchies = hierarchies();
    // `4:memory:/path`, in version 2 `0::/path`.
    let folders = text.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let limits =
            |root: &Path, v2| if v2 { controllers.is_empty() } else { controllers == "memory" && root.ends_with("memory") };
        let (root, _) = hierarchies.iter().find(|(root, v2)| limits(root, *v2))?;
        Some(root.join(path.trim_start_matches('/')))
    });
    let limit = |folder: &PathBuf| LIMITS.iter().any(|file| folder.join(file).exists());
    folders.into_iter().find(limit).with_context(|| format!("nothing limits the memory of process {pid}"))
}

/// Lets a control group have so many bytes more than it uses.
///
/// # Errors
/// It takes no such limit.
pub fn limit_memory(folder: &Path, more: u64) -> Result<()> {
    let used = USAGES.iter().find_map(|file| fs::read_to_string(folder.join(file)).ok()).context("memory in use")?;
    let used: u64 = used.trim().parse().context("memory in use")?;
    let file = LIMITS.iter().map(|file| folder.join(file)).find(|file| file.exists()).context("no limit")?;
    fs::write(&file, (used + more).to_string()).with_context(|| format!("write {}", file.display()))
}

/// Files of version 1 and 2.
const LIMITS: [&str; 2] = ["memory.limit_in_bytes", "memory.max"];
const USAGES: [&str; 2] = ["memory.usage_in_bytes", "memory.current"];

/// The directories of a run that are there.
pub fn of_run(run: &str) -> Vec<PathBuf> {
    hierarchies().into_iter().map(|(root, _)| root.join(TOP).join(run)).filter(|folder| folder.exists()).collect()
}

/// Removes a run's directories, after killing whoever is still in them.
///
/// # Errors
/// Something could not be removed within half a minute.
pub fn remove(run: &str) -> Result<()> {
    remove_all(&Path::new(TOP).join(run))
}

/// Removes a node's directories, after killing whoever is still in them.
///
/// # Errors
/// Something could not be removed within half a minute.
pub fn remove_node(run: &str, node: &str) -> Result<()> {
    remove_all(&Path::new(TOP).join(run).join(node))
}

/// Removes a directory from every hierarchy.
fn remove_all(folder: &Path) -> Result<()> {
    let deadline = Instant::now() + REMOVAL_TIMEOUT;
    loop {
        let mut left = Vec::new();
        for (root, _) in hierarchies() {
            remove_tree(&root.join(folder), &mut left);
            // The common parent goes with its last run.
            let _ = fs::remove_dir(root.join(TOP));
        }
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("these cgroups could not be removed: {left:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn remove_tree(folder: &Path, left: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&entry.path(), left);
    }
    if fs::remove_dir(folder).is_ok() {
        return;
    }
    // A frozen process does not die.
    let _ = fs::write(folder.join("freezer.state"), "THAWED");
    for pid in processes_in(folder) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    left.push(folder.to_owned());
}

/// Process ids of one directory, as this process's pid namespace sees them.
fn processes_in(folder: &Path) -> Vec<i32> {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
}

/// Removes the directories of all runs whose owner is gone.
pub fn sweep() {
    for (root, _) in hierarchies() {
        let Ok(entries) = fs::read_dir(root.join(TOP)) else { continue };
        for id in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            if root.join(TOP).join(&id).is_dir() && !id_is_alive(&id) && id.contains('-') {
                let _ = remove(&id);
            }
        }
    }
}

/// The processes of a node: every one in its directories, as (pid, path within the node's directory).
pub fn processes(run: &str, node: &str) -> Vec<(i32, String)> {
    let all = hierarchies();
    // Pods are in every hierarchy alike; one is enough. On v1 that is the memory controller's.
    let Some((root, _)) = all.iter().find(|(path, v2)| (*v2 && all.len() == 1) || path.ends_with("memory")) else {
        return Vec::new();
    };
    let top = root.join(TOP).join(run).join(node);
    let mut found = Vec::new();
    collect(&top, &top, &mut found);
    found
}

fn collect(folder: &Path, top: &Path, found: &mut Vec<(i32, String)>) {
    let name = folder.strip_prefix(top).unwrap_or(folder).to_string_lossy().into_owned();
    found.extend(processes_in(folder).into_iter().map(|pid| (pid, name.clone())));
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        collect(&entry.path(), top, found);
    }
}
