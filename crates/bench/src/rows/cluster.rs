//! Rows of the test cluster, which measures them itself (`larder-e2e bench`).

use super::{Bound, Row, Run, Samples, Verdict};
use crate::stats;
use anyhow::Context as _;
use serde::Deserialize;
use std::{fs, path::Path, process::Command};

/// What the test cluster writes.
#[derive(Deserialize)]
struct Measured {
    id: String,
    samples: Both,
}

#[derive(Deserialize)]
struct Both {
    local: Vec<f64>,
    mount: Vec<f64>,
}

const ROWS: [(&str, &str, Bound); 2] = [
    ("cluster-preload", "preload by the workers of a test cluster, over s5cmd with the same parallelism", Bound::AtLeast(0.90)),
    ("cluster-read", "a pod reads its claim, over the same files on its node's disk", Bound::AtLeast(0.90)),
];
const UNIT: &str = "MiB/s";
/// Relative to the repository, in which `make bench` runs.
const E2E: &str = "target/release/larder-e2e";
const RESULTS: &str = "target/bench/cluster.json";

pub(super) fn run(run: &Run<'_>, rows: &mut Vec<Row>, failures: &mut Vec<String>) {
    let wanted: Vec<_> = ROWS.into_iter().filter(|(id, ..)| run.wants(id)).collect();
    if wanted.is_empty() {
        return;
    }
    let undecided = |why: &str| {
        let row = |(id, test, bound): &(&'static str, &'static str, Bound)| Row::undecided(id, test, UNIT, *bound, why);
        wanted.iter().map(row).collect::<Vec<_>>()
    };
    if run.args.quick {
        rows.extend(undecided("not in a quick run: it takes a cluster"));
        return;
    }
    match measure() {
        Ok(measured) => {
            for (id, test, bound) in wanted {
                let Some(both) = measured.iter().find(|m| m.id == id).map(|m| &m.samples) else { continue };
                let ratio = stats::ratio(&both.mount, &both.local);
                rows.push(Row {
                    id,
                    test: test.to_owned(),
                    unit: UNIT,
                    ratio,
                    bound,
                    verdict: Verdict::of(ratio, bound),
                    samples: Samples { local: both.local.clone(), mount: both.mount.clone(), control: Vec::new() },
                    cpu_seconds: None,
                    conditions: "test cluster on one machine; cold; `local` is the plain client or the node's disk".to_owned(),
                });
            }
        }
        Err(e) => {
            let why = format!("{e:#}");
            rows.extend(undecided(&why));
            failures.push(format!("cluster: {why}"));
        }
    }
}

fn measure() -> anyhow::Result<Vec<Measured>> {
    // An old one must not stand for this run.
    let _ = fs::remove_file(RESULTS);
    let status = Command::new(Path::new(E2E)).arg("bench").status().with_context(|| format!("run {E2E}"))?;
    anyhow::ensure!(status.success(), "{E2E} bench: {status}");
    let text = fs::read(RESULTS).with_context(|| format!("read {RESULTS}"))?;
    serde_json::from_slice(&text).with_context(|| format!("understand {RESULTS}"))
}
