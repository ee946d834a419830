//! The fault matrix: faults of daemons, pods, disks and nodes while readers of all kinds run, and what the readers saw of each.
//!
//! `target/faults/results.json` is an array of `{case, injected, errors, wrongBytes, maxStallMs, p99StallMs, leaks, holds}`. A stall is
//! the longest wait of one reader for one operation within the seconds of one fault, its usual time included; p99 and max are
//! over all readers and faults of a case, of those readers that the case is about.
//!
//! ```text
//! gpu-1   64 readers on a mount whose reads ask the mounter (`NoOpen`, pages dropped before each)
//!         16 readers on open files that the kernel reads itself (`Passthrough`)
//! cpu-1   10 readers that have everything from the workers of gpu-1 and gpu-2
//! gpu-2   where pods, workers and nodes come to harm
//! ```

mod cases;
pub(super) mod watch;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::json;

use super::larder::{BUCKET, Named, install, upload};
use crate::cluster::Node;
use crate::dataset::Manifest;
use crate::images;
use crate::lab::Lab;
use crate::report::{say, seconds, step};
use crate::tools::repository;
use cases::{CASES, Whose};
use watch::Readers;

const WAIT: Duration = Duration::from_secs(120);
/// Longest stall of readers that ask no daemon. They share the cores with all that dies and starts; who waited for something that is
/// stopped or gone would wait longer in `mounter-stopped` and `random-kills`.
const IN_KERNEL: Duration = Duration::from_secs(1);

/// The readers: node, dataset, mode of the mount, placement of the files, processes, and what they do.
const READERS: [(&str, &str, &str, &str, usize, &str); 3] = [
    // The kernel reads files that are on the disk of their reader's node.
    ("gpu-1", "faults-1", "NoOpen", "Everywhere", 64, "read,mmap,list,open,held"),
    ("gpu-1", "faults-2", "Passthrough", "Everywhere", 16, "held"),
    ("cpu-1", "faults-3", "NoOpen", "Sharded", 10, "read,mmap,list,open,held"),
];

/// What is broken, and what is asked to be short.
struct Faults<'a> {
    lab: &'a Lab,
    /// Where most readers are.
    node: &'a Node,
    /// Where there are none.
    other: &'a Node,
    quick: bool,
    through_mounter: Readers<'a>,
    in_kernel: Readers<'a>,
    remote: Readers<'a>,
}

/// One line of the results.
#[derive(Debug, Default, Serialize)]
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
    /// Why the case came to no end.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
}

impl Row {
    /// Does it hold, with stalls no longer than these?
    fn judge(&mut self, p99: Duration, max: Duration) {
        self.holds = self.errors == 0
            && self.wrong_bytes == 0
            && self.leaks.is_empty()
            && u128::from(self.p99_stall_ms) <= p99.as_millis()
            && u128::from(self.max_stall_ms) <= max.as_millis()
            && u128::from(self.passthrough_max_stall_ms) <= IN_KERNEL.as_millis();
    }

    /// What has grown over all cases: a little in each is much in the end. Stalls and errors are those of the cases.
    fn of_all(rows: &[Self], leaks: Vec<String>) -> Self {
        let injected = rows.iter().map(|row| row.injected).sum();
        Self { case: "all-cases", injected, holds: leaks.is_empty(), leaks, target: "no leaks", ..Self::default() }
    }

    fn say(&self) {
        say(format!(
            "{} {}: {} injected, {} errors, {} wrong, stall p99 {} ms, max {} ms ({} ms in the kernel), leaks {:?}; {}",
            if self.holds { "holds " } else { "MISSES" },
            self.case,
            self.injected,
            self.errors,
            self.wrong_bytes,
            self.p99_stall_ms,
            self.max_stall_ms,
            self.passthrough_max_stall_ms,
            self.leaks,
            self.target,
        ));
    }
}

/// Runs the cases whose names contain one of the parts of `only`, and writes the results after each.
///
/// # Errors
/// The readers could not be started; that a case does not hold, or comes to no end, is no error.
pub fn faults(lab: &Lab, only: &str, quick: bool) -> Result<bool> {
    install(lab)?;
    let chosen: Vec<_> = CASES.iter().filter(|case| only.split(',').any(|part| case.name.contains(part))).collect();
    ensure!(!chosen.is_empty(), "no case has {only} in its name");
    let archive = images::training_image(lab.cluster.run(), lab.cluster.tools())?;
    lab.cluster.load_image(lab.cluster.nodes(), &archive)?;
    let mut started = Vec::new();
    for (_, name, mode, placement, ..) in READERS {
        started.push(preloaded(lab, name, mode, placement)?);
    }
    let mut readers = Vec::new();
    for ((node, _, mode, _, count, kinds), (named, manifest)) in READERS.into_iter().zip(started) {
        readers.push(step(&format!("{count} readers ({kinds}) on {node}, {mode}"), || {
            Readers::start(named, lab.cluster.node(node)?, manifest, count, kinds)
        })?);
    }
    let (Some(remote), Some(in_kernel), Some(through_mounter)) = (readers.pop(), readers.pop(), readers.pop()) else {
        unreachable!("three were pushed")
    };
    let (node, other) = (lab.cluster.node("gpu-1")?, lab.cluster.node("gpu-2")?);
    let faults = Faults { lab, node, other, quick, through_mounter, in_kernel, remote };
    let folder = repository().join("target/faults");
    fs::create_dir_all(&folder).context("make target/faults")?;
    let file = folder.join(if quick { "results-quick.json" } else { "results.json" });
    let (mut rows, before) = (Vec::new(), faults.counted()?);
    for case in chosen {
        // The others are worth running all the same.
        let row = faults.run(case).unwrap_or_else(|error| {
            let failed = Some(format!("{error:#}"));
            say(format!("  {} failed: {error:#}", case.name));
            Row { case: case.name, target: case.limits.text, failed, ..Row::default() }
        });
        row.say();
        rows.push(row);
        fs::write(&file, serde_json::to_vec_pretty(&rows)?).context("write the results")?;
    }
    let row = Row::of_all(&rows, faults.leaks(&before)?);
    row.say();
    rows.push(row);
    fs::write(&file, serde_json::to_vec_pretty(&rows)?).context("write the results")?;
    for readers in faults.all() {
        readers.remove()?;
    }
    Ok(rows.iter().all(|row| row.holds))
}

/// A small dataset that is mounted and placed so, and on the disks.
pub(super) fn preloaded<'a>(lab: &'a Lab, name: &'a str, mode: &str, placement: &str) -> Result<(Named<'a>, Manifest)> {
    let named = Named { lab, namespace: name, name };
    let manifest = upload(lab, BUCKET, name, 23)?;
    lab.cluster.create_namespace(name)?;
    let placed = format!("  cache:\n    placement: {placement}\n");
    lab.cluster.apply(&named.yaml()?.replacen("  cache:\n", &placed, 1))?;
    named.set_mount(&json!({ "mode": mode }))?;
    named.wait("Preloaded", WAIT)?;
    Ok((named, manifest))
}

impl<'a> Faults<'a> {
    /// All readers, those of the report's columns in this order.
    fn all(&self) -> [&Readers<'a>; 3] {
        [&self.through_mounter, &self.in_kernel, &self.remote]
    }

    fn run(&self, case: &cases::Case) -> Result<Row> {
        let began = Instant::now();
        say(format!("  {} …", case.name));
        let before = self.counted()?;
        let mut marks = Vec::new();
        for readers in self.all() {
            marks.push(readers.mark()?);
        }
        let mut windows = [const { Vec::new() }; 3];
        let injected = (case.run)(self, &mut |faults, since| {
            // What a fault leads to is over when all readers have made some steps after it.
            let now = watch::now()?;
            for (windows, readers) in windows.iter_mut().zip(faults.all()) {
                let (_, last) = readers.settle(now)?;
                windows.push((since, last));
            }
            if windows[0].len() % 10 == 0 {
                say(format!("  {}: {} s", case.name, began.elapsed().as_secs()));
            }
            Ok(())
        })?;
        let mut seen = Vec::new();
        for ((readers, mark), windows) in self.all().into_iter().zip(marks).zip(windows) {
            seen.push(readers.seen(mark, windows.into_iter())?);
        }
        let leaks = self.leaks(&before)?;
        let (errors, wrong_bytes): (usize, usize) =
            (seen.iter().map(|seen| seen.errors).sum(), seen.iter().map(|seen| seen.wrong).sum());
        let stalls = match case.whose {
            Whose::OfTheNode => seen[0],
            Whose::Remote => seen[2],
        };
        say(format!("  {}: {injected} in {}", case.name, seconds(began.elapsed())));
        let mut row = Row {
            case: case.name,
            injected,
            errors,
            wrong_bytes,
            max_stall_ms: stalls.max,
            p99_stall_ms: stalls.p99,
            passthrough_max_stall_ms: seen[1].max,
            leaks,
            target: case.limits.text,
            ..Row::default()
        };
        row.judge(case.limits.p99, case.limits.max);
        Ok(row)
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
        // The share of the third one may grow; what was put aside because it was damaged has a limit of its own.
        for readers in [&self.through_mounter, &self.in_kernel] {
            let folder = self.node.nvme().join("larder").join(readers.named.uid()?).join("data");
            counted.insert(format!("files on the disk of the node for {}", readers.named.name), files(&folder));
        }
        let serving = self.node.processes().iter().filter(|process| process.command.contains("larder mounter")).count();
        counted.insert("processes of the mounter".to_owned(), serving);
        Ok(counted)
    }

    /// What has grown; sockets and records come and go, so a few more are none.
    fn leaks(&self, before: &BTreeMap<String, usize>) -> Result<Vec<String>> {
        let grown = |counted: &BTreeMap<String, usize>| -> Vec<String> {
            let slack = |name: &str| if name.starts_with("descriptors") || name.starts_with("files") { 8 } else { 0 };
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

/// How many files there are in a folder and below.
pub(super) fn files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| if entry.file_type().is_ok_and(|kind| kind.is_dir()) { files(&entry.path()) } else { 1 }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_reader_or_the_node_has_to_bear_is_judged() {
        let (p99, max) = (Duration::from_millis(300), Duration::from_secs(2));
        let good = || Row { p99_stall_ms: 300, max_stall_ms: 2_000, passthrough_max_stall_ms: 1_000, ..Row::default() };
        let holds = |change: fn(&mut Row)| {
            let mut row = good();
            change(&mut row);
            row.judge(p99, max);
            row.holds
        };
        assert!(holds(|_| ()));
        assert!(!holds(|row| row.errors = 1));
        assert!(!holds(|row| row.wrong_bytes = 1));
        assert!(!holds(|row| row.p99_stall_ms = 301));
        assert!(!holds(|row| row.max_stall_ms = 2_001));
        assert!(!holds(|row| row.passthrough_max_stall_ms = 1_001));
        assert!(!holds(|row| row.leaks = vec!["mounts of the node: 1 before, 2 now".to_owned()]));
        assert!(!Row::of_all(&[good()], vec!["one".to_owned()]).holds && Row::of_all(&[good()], Vec::new()).holds);
    }
}
