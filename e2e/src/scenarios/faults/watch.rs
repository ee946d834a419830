//! Readers in a pod, and what they saw.

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

/// Seconds that belong to one fault.
pub(super) type Window = (u64, u64);

/// Where the log was.
#[derive(Clone, Copy)]
pub(super) struct Mark(usize);

/// Seconds since 1970, as the readers count them.
pub(super) fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs())
}

pub(super) struct Readers<'a> {
    named: Named<'a>,
}

/// A line of the readers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Second { second: u64, ops: u64, ms: Vec<u64> },
    Error { error: String, wrong: bool },
}

/// What readers saw of some faults.
pub(super) struct Seen {
    pub(super) errors: usize,
    pub(super) wrong: usize,
    /// Milliseconds.
    pub(super) p99: u64,
    pub(super) max: u64,
}

impl<'a> Readers<'a> {
    pub(super) fn start(named: Named<'a>, node: &Node, manifest: &Manifest, count: usize, kinds: &str) -> Result<Self> {
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
        named.lab.cluster.wait_ready(named.namespace, POD, WAIT)?;
        let readers = Self { named };
        readers.settle(now()?)?;
        Ok(readers)
    }

    fn lines(&self) -> Result<Vec<Line>> {
        let log = self.named.lab.cluster.logs(self.named.namespace, POD, None)?;
        // The last line may still be on its way.
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        whole.lines().map(|line| serde_json::from_str(line).with_context(|| format!("the readers say {line}"))).collect()
    }

    pub(super) fn mark(&self) -> Result<Mark> {
        Ok(Mark(self.lines()?.len()))
    }

    /// Waits until a whole second has begun after `now` in which no reader waited long; returns the seconds from now to it.
    pub(super) fn settle(&self, now: u64) -> Result<Window> {
        self.named.lab.cluster.wait_until(&format!("readers of {} to go on", self.named.name), WAIT, || {
            let lines = self.lines()?;
            let calm = lines.iter().find_map(|line| match line {
                Line::Second { second, ms, ops } if *second > now && *ops > 0 && ms.iter().all(|ms| *ms < 1000) => {
                    Some(*second)
                }
                _ => None,
            });
            let second = calm.context("some wait")?;
            Ok((now, second))
        })
    }

    /// What was seen since the mark, and the waits within the windows.
    pub(super) fn seen(&self, from: Mark, windows: impl Iterator<Item = Window>) -> Result<Seen> {
        let lines = self.lines()?;
        let lines = lines.get(from.0..).context("the readers' log was cut")?;
        let (mut errors, mut wrong, mut waits) = (0, 0, Vec::new());
        for line in lines {
            if let Line::Error { error, wrong: bytes } = line {
                say(format!("  {}: {error}", self.named.name));
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

    pub(super) fn remove(&self) -> Result<()> {
        self.named.lab.cluster.delete_and_wait("pods", Some(self.named.namespace), POD, WAIT)?;
        self.named.remove(Duration::from_secs(120))
    }
}
