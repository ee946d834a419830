//! DLIO rows: accelerator utilisation of training loops that compute nothing and read as the real ones do.
//!
//! DLIO 2.0.0 with the MLPerf Storage v2.0 workload shapes, scaled; not an MLPerf result.

use super::{
    Bound::{self, AtLeast},
    Row, Run, Samples, Verdict,
};
use crate::{
    data::Set,
    experiment::drop_caches,
    report,
    stats::{self, median},
    subject::Larder,
};
use anyhow::Context as _;
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc::{RecvTimeoutError, channel},
    time::Duration,
};

/// From the repository, in which `make bench` runs.
const SCRIPT: &str = "crates/bench/dlio.sh";
/// What a row calls it.
pub(super) const ABOUT: &str = "DLIO 2.0.0, MLPerf Storage v2.0 workload shape, scaled, not an MLPerf result";
/// The utilisation that counts as "the accelerators do not wait".
pub(super) const GOOD: f64 = 98.5;
/// Points that a mount may be below the local disk.
const BELOW: f64 = 0.5;
/// Between two drops of the page cache, where everything must come from the disk.
const DROP: Duration = Duration::from_millis(500);

/// What is run on a folder.
#[derive(Clone, Copy)]
pub(super) struct Load {
    arguments: &'static [&'static str],
    /// Behind the folder.
    more: &'static [&'static str],
    dropping: bool,
    rounds: usize,
}

const LOW: Load = Load { arguments: &["unet"], more: &["2", "0.646"], dropping: false, rounds: 3 };
/// Low demand, and no byte of an epoch is in the page cache for the next one.
pub(super) const UNCACHED: Load = Load { dropping: true, ..LOW };
/// Seconds that a step of it computes.
pub(super) const STEP: f64 = 0.646;
/// What it asks for, in bytes a second: 2 ranks, 7 files each a step.
pub(super) const DEMAND: f64 = 2.0 * 7.0 * 14_660_062.0 / STEP;
/// Of it, and nothing else.
pub(super) const UNET: &str = "unet3d";
const SATURATED: Load = Load { arguments: &["unet"], more: &["4", "0.323"], dropping: true, rounds: 7 };
const RESNET: Load = Load { arguments: &["resnet"], more: &[], dropping: false, rounds: 3 };
const COSMOFLOW: Load = Load { arguments: &["cosmo"], more: &[], dropping: false, rounds: 3 };

/// What the utilisation is compared with.
#[derive(Clone, Copy)]
pub(super) enum Than {
    /// A share of the local one.
    Share(f64),
    /// The local one, less some points.
    Local,
    /// What counts as good, whatever the local disk gives.
    Good,
}

type Spec = (&'static str, &'static str, Than);

const WITH: [(Load, &[Spec]); 4] = [
    (
        LOW,
        &[
            ("unet-low", "DLIO unet3d, low demand: AU over 98.5", Than::Good),
            ("unet-low-local", "DLIO unet3d, low demand: AU over local, less 0.5 points", Than::Local),
        ],
    ),
    (SATURATED, &[("unet-saturated", "DLIO unet3d, saturating, pages dropped every 0.5 s: AU over local", Than::Share(0.93))]),
    (
        RESNET,
        &[("resnet50", "DLIO resnet50, full-size records at the real H100 rate: AU over local, less 0.5 points", Than::Local)],
    ),
    (COSMOFLOW, &[("cosmoflow", "DLIO cosmoflow, batch 10: AU over local, less 0.5 points", Than::Local)]),
];
const WITHOUT: [(Load, &[Spec]); 2] = [
    (LOW, &[("nopt-unet-low", "DLIO unet3d, low demand, --no-passthrough: AU over local, less 0.5 points", Than::Local)]),
    (SATURATED, &[("nopt-unet-saturated", "DLIO unet3d, saturating, --no-passthrough: AU over local", Than::Share(0.80))]),
];

pub(super) fn run(run: &Run<'_>, rows: &mut Vec<Row>, failures: &mut Vec<String>) {
    let all = || WITH.iter().chain(&WITHOUT).flat_map(|(_, specs)| specs.iter()).filter(|(id, ..)| run.wants(id));
    if all().next().is_none() {
        return;
    }
    let outcome = if run.args.quick { Ok(()) } else { measure(run, rows) };
    let why = match &outcome {
        Ok(()) => "not in a quick run: it takes minutes".to_owned(),
        Err(e) => format!("{e:#}"),
    };
    for (id, test, than) in all() {
        if rows.iter().all(|r| r.id != *id) {
            rows.push(Row::undecided(id, test, "AU", bound(*than, 100.0), &why));
        }
    }
    failures.extend(outcome.err().map(|e| format!("DLIO: {e:#}")));
}

fn measure(run: &Run<'_>, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let set = Set { name: "dlio", root: make(run, &[])?, parts: Vec::new() };
    for (flags, loads) in [(&["--preload"][..], &WITH[..]), (&["--preload", "--no-passthrough"][..], &WITHOUT[..])] {
        if !loads.iter().flat_map(|(_, specs)| specs.iter()).any(|(id, ..)| run.wants(id)) {
            continue;
        }
        let mounted = Larder::mount(&run.larder, &run.data, &set, flags)?;
        for (load, specs) in loads {
            let wanted: Vec<&Spec> = specs.iter().filter(|(id, ..)| run.wants(id)).collect();
            if wanted.is_empty() {
                continue;
            }
            let (mut local, mut mount) = (Vec::new(), Vec::new());
            for _ in 0..load.rounds {
                local.push(load.over(&set.root)?);
                mount.push(load.over(mounted.path())?);
            }
            for (id, test, than) in wanted {
                let row = row(id, test, *than, &local, &mount);
                report::say(&row);
                rows.push(row);
            }
        }
        mounted.unmount()?;
    }
    Ok(())
}

/// Makes the files of some workloads, or of all; the folder that they are in.
pub(super) fn make(run: &Run<'_>, workloads: &[&str]) -> anyhow::Result<PathBuf> {
    script(&["setup"]).context("install DLIO")?;
    let root = run.data.join("origin/dlio");
    script(&[&["gen", &root.to_string_lossy()], workloads].concat()).context("make DLIO's files")?;
    Ok(root)
}

pub(super) fn row(id: &'static str, test: &str, than: Than, local: &[f64], mount: &[f64]) -> Row {
    let local = if matches!(than, Than::Good) { &[GOOD] } else { local };
    let (ratio, bound) = (stats::ratio(mount, local), bound(than, median(local)));
    Row {
        id,
        test: test.to_owned(),
        unit: "AU",
        ratio,
        bound,
        verdict: Verdict::of(ratio, bound),
        samples: Samples { local: local.to_vec(), mount: mount.to_vec(), control: Vec::new() },
        cpu_seconds: None,
        conditions: ABOUT.to_owned(),
    }
}

/// Of the ratio.
fn bound(than: Than, local: f64) -> Bound {
    match than {
        Than::Share(share) => AtLeast(share),
        Than::Local => AtLeast((local - BELOW) / local),
        Than::Good => AtLeast(1.0),
    }
}

impl Load {
    /// Mean utilisation in percent, from a cold start.
    pub(super) fn over(&self, root: &Path) -> anyhow::Result<f64> {
        drop_caches()?;
        let root = root.to_string_lossy();
        let arguments = [self.arguments, &[&root], self.more, &["last"]].concat();
        let (done, over) = channel::<()>();
        let said = std::thread::scope(|scope| {
            if self.dropping {
                scope.spawn(move || {
                    while let Err(RecvTimeoutError::Timeout) = over.recv_timeout(DROP) {
                        // The first one worked.
                        let _ = std::fs::write("/proc/sys/vm/drop_caches", "1");
                    }
                });
            }
            let said = script(&arguments);
            drop(done);
            said
        })?;
        said.trim().parse().with_context(|| format!("utilisation {said:?}"))
    }
}

/// An epoch of the last run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Epoch {
    pub utilisation: f64,
    pub seconds: f64,
}

pub(super) fn epochs() -> anyhow::Result<Vec<Epoch>> {
    parse_epochs(&script(&["epochs", "last"])?)
}

fn parse_epochs(said: &str) -> anyhow::Result<Vec<Epoch>> {
    let epoch = |line: &str| {
        let (utilisation, seconds) = line.split_once(' ')?;
        Some(Epoch { utilisation: utilisation.parse().ok()?, seconds: seconds.parse().ok()? })
    };
    said.lines().map(epoch).collect::<Option<_>>().with_context(|| format!("epochs {said:?}"))
}

/// Runs the script; what it printed.
fn script(arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(SCRIPT).args(arguments).output().with_context(|| format!("run {SCRIPT}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{SCRIPT} {}: {}: {}", arguments.join(" "), output.status, error.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_a_utilisation_and_a_time() {
        let epoch = |utilisation, seconds| Epoch { utilisation, seconds };
        assert_eq!(parse_epochs("49.5 16.01\n99.25 8.1\n").unwrap(), [epoch(49.5, 16.01), epoch(99.25, 8.1)]);
        assert!(parse_epochs("49.5\n").is_err());
    }

    #[test]
    fn half_a_point_below_local_is_allowed_and_no_more() {
        let at = |mount| row("id", "t", Than::Local, &[99.0; 3], &[mount; 3]).verdict;
        assert_eq!(at(98.5), Verdict::Holds);
        assert_eq!(at(98.4), Verdict::Misses);
        assert_eq!(row("id", "t", Than::Good, &[50.0; 3], &[98.6; 3]).verdict, Verdict::Holds);
    }
}
