//! The fault matrix: faults of every daemon of a node while readers of all kinds run on it, and what the readers saw of each.
//!
//! `target/faults/results.json` is an array of `{case, injected, errors, wrongBytes, maxStallMs, p99StallMs, leaks, holds}`. A stall is
//! the longest wait of one reader for one operation within the seconds of one fault, its usual time included; p99 and max are
//! over all readers and faults of a case. The readers are 64 on a mount whose reads ask the mounter (`NoOpen`, pages dropped
//! before each) and 16 on open files that the kernel reads itself (`Passthrough`).

mod cases;
mod watch;

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::json;

use super::larder::{BUCKET, Named, install, upload};
use super::training::Training;
use crate::cluster::Node;
use crate::lab::Lab;
use crate::report::{say, seconds, step};
use crate::tools::repository;
use cases::CASES;
use watch::Readers;

const WAIT: Duration = Duration::from_secs(120);

/// What is broken, and what is asked to be short.
pub(super) struct Faults<'a> {
    pub(super) lab: &'a Lab,
    pub(super) node: &'a Node,
    pub(super) quick: bool,
    through_mounter: Readers<'a>,
    in_kernel: Readers<'a>,
}

/// One line of the results.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    case: &'static str,
    injected: usize,
    errors: usize,
    wrong_bytes: usize,
    max_stall_ms: u64,
    p99_stall_ms: u64,
    /// Of readers whose files the kernel reads itself.
    passthrough_max_stall_ms: u64,
    leaks: Vec<String>,
    holds: bool,
    target: &'static str,
}

/// Runs the cases whose names contain `only`, and writes the results.
///
/// # Errors
/// A case could not be run; that it does not hold is no error.
pub fn faults(lab: &Lab, only: &str, quick: bool) -> Result<bool> {
    install(lab)?;
    let node = lab.cluster.node("gpu-1")?;
    let mounts = [("faults-1", "NoOpen", 64, "read,mmap,list,open,held"), ("faults-2", "Passthrough", 16, "held")];
    let mut started = Vec::new();
    for (name, mode, readers, kinds) in mounts {
        let named = Named { lab, namespace: name, name };
        let manifest = upload(lab, BUCKET, name, 23)?;
        lab.cluster.create_namespace(name)?;
        // The kernel reads files that are on the disk of their reader's node.
        lab.cluster.apply(&named.yaml()?.replacen("  cache:\n", "  cache:\n    placement: Everywhere\n", 1))?;
        named.set_mount(&json!({ "mode": mode }))?;
        named.wait("Preloaded", WAIT)?;
        started.push((named, manifest, readers, kinds));
    }
    Training::load_image(&started[0].0)?;
    let mut readers = Vec::new();
    for (named, manifest, count, kinds) in started {
        readers.push(step(&format!("{count} readers ({kinds}) of {}", named.name), || {
            Readers::start(named, node, &manifest, count, kinds)
        })?);
    }
    let (Some(in_kernel), Some(through_mounter)) = (readers.pop(), readers.pop()) else { unreachable!("two were pushed") };
    let faults = Faults { lab, node, quick, through_mounter, in_kernel };
    let mut rows = Vec::new();
    for case in CASES.iter().filter(|case| case.name.contains(only)) {
        let row = faults.run(case).with_context(|| format!("case {}", case.name))?;
        say(format!(
            "{} {}: {} injected, {} errors, {} wrong, stall p99 {} ms, max {} ms ({} ms in the kernel), leaks {:?}; {}",
            if row.holds { "holds " } else { "MISSES" },
            row.case,
            row.injected,
            row.errors,
            row.wrong_bytes,
            row.p99_stall_ms,
            row.max_stall_ms,
            row.passthrough_max_stall_ms,
            row.leaks,
            row.target,
        ));
        rows.push(row);
    }
    ensure!(!rows.is_empty(), "no case has {only} in its name");
    let folder = repository().join("target/faults");
    fs::create_dir_all(&folder).context("make target/faults")?;
    let name = if quick { "results-quick.json" } else { "results.json" };
    fs::write(folder.join(name), serde_json::to_vec_pretty(&rows)?).context("write the results")?;
    faults.through_mounter.remove()?;
    faults.in_kernel.remove()?;
    Ok(rows.iter().all(|row| row.holds))
}

impl Faults<'_> {
    fn run(&self, case: &cases::Case) -> Result<Row> {
        let began = Instant::now();
        let before = self.counted()?;
        let (from, kernel_from) = (self.through_mounter.mark()?, self.in_kernel.mark()?);
        let mut windows = Vec::new();
        let injected = (case.run)(self, &mut |faults| {
            // What a fault leads to is over when all readers have made some steps after it.
            let now = watch::now()?;
            windows.push((faults.through_mounter.settle(now)?, faults.in_kernel.settle(now)?));
            if windows.len() % 10 == 0 {
                say(format!("  {}: {} faults", case.name, windows.len()));
            }
            Ok(())
        })?;
        let seen = self.through_mounter.seen(from, windows.iter().map(|(window, _)| *window))?;
        let kernel = self.in_kernel.seen(kernel_from, windows.iter().map(|(_, window)| *window))?;
        let leaks = self.leaks(&before)?;
        let (errors, wrong_bytes) = (seen.errors + kernel.errors, seen.wrong + kernel.wrong);
        let holds = errors == 0
            && wrong_bytes == 0
            && leaks.is_empty()
            && seen.p99 <= case.p99.as_millis() as u64
            && seen.max <= case.max.as_millis() as u64;
        say(format!("  {}: {} in {}", case.name, injected, seconds(began.elapsed())));
        Ok(Row {
            case: case.name,
            injected,
            errors,
            wrong_bytes,
            max_stall_ms: seen.max,
            p99_stall_ms: seen.p99,
            passthrough_max_stall_ms: kernel.max,
            leaks,
            holds,
            target: case.target,
        })
    }

    /// What must not grow, by name.
    fn counted(&self) -> Result<BTreeMap<String, usize>> {
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", self.node.holder()?)).context("mounts of the node")?;
        let mut counted = BTreeMap::from([("mounts of the node".to_owned(), mounts.lines().count())]);
        for process in self.node.processes() {
            let Some(daemon) = ["larder keeper", "larder node"].into_iter().find(|name| process.command.contains(name)) else {
                continue;
            };
            let open = fs::read_dir(format!("/proc/{}/fd", process.pid)).map(Iterator::count).unwrap_or_default();
            counted.insert(format!("descriptors of {daemon}"), open);
        }
        let serving = self.node.processes().iter().filter(|process| process.command.contains("larder mounter")).count();
        counted.insert("processes of the mounter".to_owned(), serving);
        Ok(counted)
    }

    /// What has grown; sockets come and go, so a few descriptors more are none.
    fn leaks(&self, before: &BTreeMap<String, usize>) -> Result<Vec<String>> {
        let grown = |counted: &BTreeMap<String, usize>| -> Vec<String> {
            let slack = |name: &str| if name.starts_with("descriptors") { 8 } else { 0 };
            let more = counted.iter().filter(|(name, now)| before.get(*name).is_some_and(|then| **now > then + slack(name)));
            more.map(|(name, now)| format!("{name}: {} before, {now} now", before[name])).collect()
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let leaks = grown(&self.counted()?);
            if leaks.is_empty() || Instant::now() > deadline {
                return Ok(leaks);
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}
