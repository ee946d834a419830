//! Readers in a pod, and what they saw.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::WAIT;
use crate::cluster::Node;
use crate::dataset::Manifest;
use crate::images::TRAINING;
use crate::report::say;
use crate::scenarios::larder::Named;

const PROGRAM: &str = include_str!("readers.py");
const POD: &str = "readers";

/// Errors of one case that are printed.
const SHOWN: usize = 10;

/// Seconds that belong to one fault.
pub(in crate::scenarios) type Window = (u64, u64);

/// Where the log was.
#[derive(Clone, Copy)]
pub(in crate::scenarios) struct Mark(usize);

/// Seconds since 1970, as the readers count them.
pub(in crate::scenarios) fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs())
}

pub(in crate::scenarios) struct Readers<'a> {
    pub(in crate::scenarios) named: Named<'a>,
    pub(in crate::scenarios) manifest: Manifest,
    log: RefCell<Log>,
}

/// A line of the readers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Second { second: u64, ops: u64, ms: Vec<u64> },
    Error { error: String, wrong: bool },
}

/// What the readers have said, read from their node's disk: the kubelet may be away, and asking it each time for everything would
/// cost more than the readers do.
struct Log {
    file: PathBuf,
    read: u64,
    lines: Vec<Line>,
}

impl Log {
    /// Reads on.
    fn follow(&mut self) -> Result<&[Line]> {
        let mut file = File::open(&self.file).with_context(|| format!("open {}", self.file.display()))?;
        file.seek(SeekFrom::Start(self.read)).context("find the place in the readers' log")?;
        let mut new = String::new();
        file.read_to_string(&mut new).context("read the readers' log")?;
        // The last line may still be on its way.
        let whole = new.rfind('\n').map_or(0, |end| end + 1);
        for line in new[..whole].lines() {
            // Time, stream, and whether the line goes on come before what was said.
            let said = line.splitn(4, ' ').nth(3).with_context(|| format!("no line of a container's log: {line}"))?;
            self.lines.push(serde_json::from_str(said).with_context(|| format!("the readers say {said}"))?);
        }
        self.read += whole as u64;
        Ok(&self.lines)
    }
}

/// What readers saw of some faults.
#[derive(Clone, Copy)]
pub(in crate::scenarios) struct Seen {
    pub(in crate::scenarios) errors: usize,
    pub(in crate::scenarios) wrong: usize,
    /// Milliseconds.
    pub(in crate::scenarios) p99: u64,
    pub(in crate::scenarios) max: u64,
}

impl<'a> Readers<'a> {
    pub(in crate::scenarios) fn start(
        named: Named<'a>,
        node: &Node,
        manifest: Manifest,
        count: usize,
        kinds: &str,
    ) -> Result<Self> {
        let sums: Value = manifest.iter().map(|(path, entry)| (path.clone(), json!(entry.sha256))).collect();
        let mut pod = named.pod(POD, node, &["python3", "-c", PROGRAM]);
        let container = &mut pod["spec"]["containers"][0];
        container["image"] = json!(TRAINING);
        container["env"] = json!([
            { "name": "SUMS", "value": sums.to_string() },
            { "name": "READERS", "value": count.to_string() },
            { "name": "KINDS", "value": kinds },
        ]);
        named.lab.cluster.apply(&pod.to_string())?;
        let pod = named.lab.cluster.wait_ready(named.namespace, POD, WAIT)?;
        let uid = pod["metadata"]["uid"].as_str().context("the pod has no uid")?;
        let folder = node.var_lib("log-pods").join(format!("{}_{POD}_{uid}", named.namespace)).join("reader");
        let log = RefCell::new(Log { file: folder.join("0.log"), read: 0, lines: Vec::new() });
        let readers = Self { named, manifest, log };
        readers.settle(now()?)?;
        Ok(readers)
    }

    pub(in crate::scenarios) fn mark(&self) -> Result<Mark> {
        Ok(Mark(self.log.borrow_mut().follow()?.len()))
    }

    /// Waits until a whole second has begun after `now` in which no reader waited long; returns the seconds from now to it.
    pub(in crate::scenarios) fn settle(&self, now: u64) -> Result<Window> {
        self.named.lab.cluster.wait_until(&format!("readers of {} to go on", self.named.name), WAIT, || {
            let mut log = self.log.borrow_mut();
            let calm = log.follow()?.iter().rev().find_map(|line| match line {
                Line::Second { second, ms, ops } if *second > now && *ops > 0 && ms.iter().all(|ms| *ms < 1000) => {
                    Some(*second)
                }
                _ => None,
            });
            Ok((now, calm.context("some wait")?))
        })
    }

    /// What was seen since the mark, and the waits within the windows.
    pub(in crate::scenarios) fn seen(&self, from: Mark, windows: impl Iterator<Item = Window>) -> Result<Seen> {
        let mut log = self.log.borrow_mut();
        let lines = log.follow()?.get(from.0..).context("the readers' log was cut")?;
        let (mut errors, mut wrong, mut waits) = (0, 0, Vec::new());
        for line in lines {
            if let Line::Error { error, wrong: bytes } = line {
                if errors < SHOWN {
                    say(format!("  {}: {error}", self.named.name));
                }
                errors += 1;
                wrong += usize::from(*bytes);
            }
        }
        for (first, last) in windows {
            let mut longest: Vec<u64> = Vec::new();
            for line in lines {
                let Line::Second { second, ms, .. } = line else { continue };
                if (first..=last).contains(second) {
                    longest.resize(ms.len(), 0);
                    longest.iter_mut().zip(ms).for_each(|(longest, ms)| *longest = (*longest).max(*ms));
                }
            }
            waits.extend(longest);
        }
        ensure!(!waits.is_empty(), "nothing was seen of the faults");
        waits.sort_unstable();
        let p99 = waits[(waits.len() * 99 / 100).min(waits.len() - 1)];
        Ok(Seen { errors, wrong, p99, max: waits[waits.len() - 1] })
    }

    pub(in crate::scenarios) fn remove(&self) -> Result<()> {
        self.named.lab.cluster.delete_and_wait("pods", Some(self.named.namespace), POD, WAIT)?;
        self.named.remove(Duration::from_secs(120))
    }
}
