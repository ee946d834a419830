//! Passes over the subjects in turns, again and again, until it is known how they compare.

use crate::{
    reader::{Pass, Took},
    rows::{Bound, Row, Samples, Spec, Verdict},
    stats::{self, Ratio, median},
    subject::{Bind, Larder},
};
use anyhow::Context as _;
use std::{fs, path::Path};

/// Repetitions at most.
const MOST: usize = 15;
/// And at least: fewer say nothing about their spread.
const LEAST: usize = 5;
const QUICK: usize = 3;
/// Half of the interval that is narrow enough.
pub(crate) const NARROW: f64 = 0.03;

/// When a sample is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// With nothing in the page cache and no inode known.
    Cold,
    /// Right after the cold pass, which has read the same.
    Warm,
}

/// What of a sample is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    MibPerSecond,
    PerSecond,
    Seconds,
    CpuPerGib,
}

impl Measure {
    pub fn unit(self) -> &'static str {
        match self {
            Self::MibPerSecond => "MiB/s",
            Self::PerSecond => "1/s",
            Self::Seconds => "s",
            Self::CpuPerGib => "CPU s/GiB",
        }
    }

    fn of(self, took: &Took) -> f64 {
        match self {
            Self::MibPerSecond => took.bytes as f64 / (1u64 << 20) as f64 / took.seconds,
            Self::PerSecond => took.count as f64 / took.seconds,
            Self::Seconds => took.seconds,
            Self::CpuPerGib => took.cpu / (took.bytes as f64 / (1u64 << 30) as f64),
        }
    }
}

/// One row of an experiment.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub id: &'static str,
    pub test: &'static str,
    pub phase: Phase,
    pub measure: Measure,
    pub bound: Bound,
}

/// Passes that give some rows together.
pub(crate) struct Experiment<'a> {
    pub pass: Pass,
    /// Made before the warm pass, where the cold one leaves pages out.
    pub warm_up: Option<Pass>,
    pub lines: Vec<Line>,
    pub local: &'a Path,
    pub mounted: &'a Larder,
    pub control: &'a Bind,
    pub conditions: String,
    pub quick: bool,
}

/// Samples of one subject, by phase.
#[derive(Default)]
struct Subject {
    cold: Vec<Took>,
    warm: Vec<Took>,
}

impl Subject {
    fn values(&self, line: &Line) -> Vec<f64> {
        values(self.samples(line.phase), line.measure)
    }

    fn samples(&self, phase: Phase) -> &[Took] {
        match phase {
            Phase::Cold => &self.cold,
            Phase::Warm => &self.warm,
        }
    }
}

impl Experiment<'_> {
    /// Runs it; a row each.
    pub fn run(&self) -> anyhow::Result<Vec<Row>> {
        let mut subjects: [Subject; 3] = Default::default();
        let roots = [self.local, self.mounted.path(), self.control.path()];
        let (least, most) = rounds(self.quick);
        let cold = self.lines.iter().any(|l| l.phase == Phase::Cold);
        let warm = self.lines.iter().any(|l| l.phase == Phase::Warm);
        for round in 0..most {
            // Whoever comes first finds the disk in another state than who comes last.
            for i in 0..roots.len() {
                let which = (round + i) % roots.len();
                let (root, subject) = (roots[which], &mut subjects[which]);
                if cold {
                    drop_caches()?;
                    subject.cold.push(self.sample(&self.pass, root, round)?);
                }
                if warm {
                    if let Some(warm_up) = &self.warm_up {
                        warm_up.over(root, 1)?;
                    }
                    subject.warm.push(self.sample(&self.pass, root, round)?);
                }
            }
            if round + 1 >= least && self.lines.iter().all(|line| self.is_known(line, &subjects)) {
                break;
            }
        }
        Ok(self.lines.iter().map(|line| self.row(line, &subjects)).collect())
    }

    /// One pass; the CPU seconds are those of the daemon too.
    fn sample(&self, pass: &Pass, root: &Path, round: usize) -> anyhow::Result<Took> {
        let before = self.mounted.daemon.cpu();
        let took = pass.over(root, round as u64 + 1)?;
        let daemon = if root == self.mounted.path() { self.mounted.daemon.cpu() - before } else { 0.0 };
        Ok(Took { cpu: took.cpu + daemon, ..took })
    }

    fn is_known(&self, line: &Line, [local, mounted, _]: &[Subject; 3]) -> bool {
        stats::ratio(&mounted.values(line), &local.values(line)).is_some_and(|r| r.uncertainty() <= NARROW)
    }

    fn row(&self, line: &Line, [local, mounted, control]: &[Subject; 3]) -> Row {
        let (theirs, ours, null) = (local.values(line), mounted.values(line), control.values(line));
        let ratio = stats::ratio(&ours, &theirs);
        let cpu = |s: &Subject| median(&s.samples(line.phase).iter().map(|s| s.cpu).collect::<Vec<_>>());
        let null_ratio = stats::ratio(&null, &theirs)
            .map(|r| format!("; null control (bind mount) {:.3} [{:.3}, {:.3}]", r.value, r.low, r.high));
        Row {
            id: line.id,
            test: line.test.to_owned(),
            unit: line.measure.unit(),
            ratio,
            bound: line.bound,
            verdict: Verdict::of(ratio, line.bound),
            samples: Samples { local: theirs, mount: ours, control: null },
            cpu_seconds: Some([cpu(local), cpu(mounted)]),
            conditions: format!("{}{}", self.conditions, null_ratio.unwrap_or_default()),
        }
    }
}

/// Repetitions, at least and at most.
pub(crate) fn rounds(quick: bool) -> (usize, usize) {
    if quick { (QUICK, QUICK) } else { (LEAST, MOST) }
}

/// Something plain and Larder, measured in turns.
#[derive(Default)]
pub(crate) struct Pair {
    pub plain: Vec<Took>,
    pub larder: Vec<Took>,
}

impl Pair {
    /// Again and again, until all measures say how they compare. The order changes every round.
    pub fn measure(
        quick: bool,
        measures: &[Measure],
        mut plain: impl FnMut() -> anyhow::Result<Took>,
        mut larder: impl FnMut() -> anyhow::Result<Took>,
    ) -> anyhow::Result<Self> {
        let (mut this, (least, most)) = (Self::default(), rounds(quick));
        for round in 0..most {
            for which in [round % 2, (round + 1) % 2] {
                if which == 0 {
                    this.plain.push(plain()?);
                } else {
                    this.larder.push(larder()?);
                }
            }
            let known = |m: &Measure| this.ratio(*m).is_some_and(|r| r.uncertainty() <= NARROW);
            if round + 1 >= least && measures.iter().all(known) {
                break;
            }
        }
        Ok(this)
    }

    fn ratio(&self, measure: Measure) -> Option<Ratio> {
        stats::ratio(&values(&self.larder, measure), &values(&self.plain, measure))
    }

    pub fn row(&self, spec: Spec, measure: Measure, conditions: String) -> Row {
        let cpu = [&self.plain, &self.larder].map(|took| median(&took.iter().map(|t| t.cpu).collect::<Vec<_>>()));
        let (plain, larder) = (values(&self.plain, measure), values(&self.larder, measure));
        Row { cpu_seconds: Some(cpu), ..spec.row(plain, larder, conditions) }
    }
}

fn values(took: &[Took], measure: Measure) -> Vec<f64> {
    took.iter().map(|t| measure.of(t)).collect()
}

/// Everything out of the page cache, and all names and inodes that nobody uses.
pub(crate) fn drop_caches() -> anyhow::Result<()> {
    nix::unistd::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("drop the page caches (root is needed)")
}
