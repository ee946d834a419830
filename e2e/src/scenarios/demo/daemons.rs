//! What Larder's own processes cost: memory at its peak, and processor time while nothing happens.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::lab::Lab;
use crate::scenarios::larder::SYSTEM;

/// Clock ticks per second in `/proc`, on every Linux that Kubernetes runs on.
const TICKS: f64 = 100.0;

/// A process of Larder.
pub(super) struct Daemon {
    pub(super) node: String,
    /// The container's name.
    pub(super) name: String,
    /// Most memory it had so far, in bytes.
    pub(super) peak: u64,
    /// Part of a core it used while idle.
    pub(super) idle: f64,
    pid: i32,
}

/// All of them, after watching them for a while.
pub(super) fn measure(lab: &Lab, watched: Duration) -> Result<Vec<Daemon>> {
    let mut daemons = all(lab)?;
    let started = Instant::now();
    let before = daemons.iter().map(|daemon| ticks(daemon.pid)).collect::<Result<Vec<_>>>()?;
    std::thread::sleep(watched);
    for (daemon, before) in daemons.iter_mut().zip(before) {
        daemon.idle = (ticks(daemon.pid)? - before) as f64 / TICKS / started.elapsed().as_secs_f64();
        daemon.peak = peak(daemon.pid)?;
    }
    Ok(daemons)
}

fn all(lab: &Lab) -> Result<Vec<Daemon>> {
    let mut daemons = Vec::new();
    for pod in lab.cluster.list("pods", Some(SYSTEM))? {
        let node = lab.cluster.node(pod["spec"]["nodeName"].as_str().unwrap_or_default())?;
        let containers: Vec<(String, String)> = containers(&pod).collect();
        for process in node.processes() {
            if let Some((name, _)) = containers.iter().find(|(_, id)| *id == process.container_id) {
                daemons.push(Daemon { node: node.name().to_owned(), name: name.clone(), peak: 0, idle: 0.0, pid: process.pid });
            }
        }
    }
    ensure!(!daemons.is_empty(), "no process of Larder was found");
    daemons.sort_by(|one, other| (&one.name, &one.node).cmp(&(&other.name, &other.node)));
    Ok(daemons)
}

/// Names and ids of the containers that run.
fn containers(pod: &Value) -> impl Iterator<Item = (String, String)> {
    let statuses = pod["status"]["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
    statuses.iter().filter(|status| status["state"]["running"].is_object()).filter_map(|status| {
        let id = status["containerID"].as_str()?.strip_prefix("containerd://")?;
        Some((status["name"].as_str()?.to_owned(), id.to_owned()))
    })
}

fn peak(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("look at a daemon's memory")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("a daemon has no VmHWM")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().context("understand VmHWM")?;
    Ok(kibibytes << 10)
}

/// User and system time so far.
fn ticks(pid: i32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("look at a daemon's time")?;
    // The second field is the name, which may have anything in it but ends with the last parenthesis.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).and_then(|field| field.parse::<u64>().ok());
    field(14).zip(field(15)).map(|(user, system)| user + system).context("understand a daemon's time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_time_and_memory() {
        let pid = std::process::id().cast_signed();
        assert!(peak(pid).unwrap() > 1 << 20);
        let started = Instant::now();
        while ticks(pid).unwrap() == 0 {
            assert!(started.elapsed() < Duration::from_secs(10));
        }
    }
}
