//! The rows: what is compared, with the target of each. Their ids never change; docs/benchmarks.md explains them.

mod cluster;
mod disk;
mod dlio;
mod mixed;
mod nodes;
mod preload;

use crate::{
    RunArgs,
    experiment::NARROW,
    report,
    stats::{self, Ratio},
    subject,
};
use anyhow::Context as _;
use serde::{Serialize, Serializer};
use std::{fs, path::PathBuf};

/// What the ratio should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    pub fn value(self) -> f64 {
        match self {
            Self::AtLeast(v) | Self::AtMost(v) => v,
        }
    }

    /// For people: three digits.
    pub fn text(self) -> String {
        let sign = match self {
            Self::AtLeast(_) => "≥",
            Self::AtMost(_) => "≤",
        };
        format!("{sign} {}", (self.value() * 1e3).round() / 1e3)
    }

    fn admits(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(v) => ratio >= v,
            Self::AtMost(v) => ratio <= v,
        }
    }
}

/// How a row came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Verdict {
    Holds,
    Misses,
    /// The interval is too wide to say, or nothing was measured.
    Undecided,
}

impl Verdict {
    pub fn of(ratio: Option<Ratio>, bound: Bound) -> Self {
        match ratio {
            Some(r) if r.uncertainty() <= NARROW => {
                if bound.admits(r.value) {
                    Self::Holds
                } else {
                    Self::Misses
                }
            }
            _ => Self::Undecided,
        }
    }
}

/// Raw values in the order in which they were taken.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Samples {
    pub local: Vec<f64>,
    pub mount: Vec<f64>,
    /// Of the null control.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub control: Vec<f64>,
}

/// One row of the results.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub id: &'static str,
    pub test: String,
    pub unit: &'static str,
    pub ratio: Option<Ratio>,
    pub bound: Bound,
    pub verdict: Verdict,
    pub samples: Samples,
    /// Medians of one sample: local, mount.
    pub cpu_seconds: Option<[f64; 2]>,
    pub conditions: String,
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let cpu = self.cpu_seconds.map(|[local, mount]| serde_json::json!({ "local": local, "mount": mount }));
        serde_json::json!({
            "id": self.id,
            "test": self.test,
            "unit": self.unit,
            "ratio": self.ratio.map(|r| r.value),
            "low": self.ratio.map(|r| r.low),
            "high": self.ratio.map(|r| r.high),
            "target": self.bound.value(),
            "targetIs": match self.bound { Bound::AtLeast(_) => "atLeast", Bound::AtMost(_) => "atMost" },
            "verdict": self.verdict,
            "samples": self.samples,
            "cpuSeconds": cpu,
            "conditions": self.conditions,
        })
        .serialize(serializer)
    }
}

impl Row {
    /// A row that has nothing to show, and says why.
    pub fn undecided(id: &'static str, test: &str, unit: &'static str, bound: Bound, why: impl Into<String>) -> Self {
        Self {
            id,
            test: test.to_owned(),
            unit,
            ratio: None,
            bound,
            verdict: Verdict::Undecided,
            samples: Samples::default(),
            cpu_seconds: None,
            conditions: why.into(),
        }
    }
}

/// A row before it is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    pub id: &'static str,
    pub test: &'static str,
    pub unit: &'static str,
    pub bound: Bound,
}

impl Spec {
    pub fn undecided(&self, why: impl Into<String>) -> Row {
        Row::undecided(self.id, self.test, self.unit, self.bound, why)
    }

    /// From samples of both sides; `local` may be one number, the target.
    pub fn row(&self, local: Vec<f64>, mount: Vec<f64>, conditions: String) -> Row {
        let ratio = stats::ratio(&mount, &local);
        Row {
            ratio,
            verdict: Verdict::of(ratio, self.bound),
            samples: Samples { local, mount, control: Vec::new() },
            ..self.undecided(conditions)
        }
    }
}

/// What the groups of rows share.
pub(crate) struct Run<'a> {
    pub args: &'a RunArgs,
    pub data: PathBuf,
    pub larder: PathBuf,
}

impl Run<'_> {
    /// Is the row asked for?
    pub fn wants(&self, id: &str) -> bool {
        let only: Vec<&String> = self.args.only.iter().filter(|o| !o.is_empty()).collect();
        only.is_empty() || only.iter().any(|o| id.starts_with(o.as_str()))
    }
}

/// Measures all rows that are asked for, and writes what came out.
///
/// # Errors
/// A row that could not be measured; the others are measured and written all the same.
pub(crate) fn run(args: &RunArgs) -> anyhow::Result<()> {
    let absolute = |path: &PathBuf| std::path::absolute(path).with_context(|| format!("find {}", path.display()));
    let run = Run { args, data: absolute(&args.data)?, larder: absolute(&args.larder)? };
    fs::create_dir_all(&args.out).with_context(|| format!("make {}", args.out.display()))?;
    let facts = crate::machine::describe(&run.data);
    println!("{facts}");
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    for group in [disk::run, preload::run, mixed::run, dlio::run, cluster::run, nodes::run] {
        fresh(&run)?;
        group(&run, &mut rows, &mut failures);
    }
    subject::clean(&run.data)?;
    fs::remove_dir_all(&run.data).with_context(|| format!("remove {}", run.data.display()))?;
    report::write(args, &facts, &rows)?;
    anyhow::ensure!(failures.is_empty(), "could not be measured: {}", failures.join("; "));
    Ok(())
}

/// An empty folder for data, whatever an earlier run left there.
fn fresh(run: &Run<'_>) -> anyhow::Result<()> {
    subject::clean(&run.data)?;
    if run.data.exists() {
        fs::remove_dir_all(&run.data).with_context(|| format!("remove {}", run.data.display()))?;
    }
    fs::create_dir_all(&run.data).with_context(|| format!("make {}", run.data.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_interval_decides_nothing() {
        let ratio = |value, low, high| Some(Ratio { value, low, high });
        assert_eq!(Verdict::of(ratio(0.98, 0.96, 1.0), Bound::AtLeast(0.97)), Verdict::Holds);
        assert_eq!(Verdict::of(ratio(0.96, 0.95, 0.98), Bound::AtLeast(0.97)), Verdict::Misses);
        assert_eq!(Verdict::of(ratio(0.5, 0.4, 0.6), Bound::AtLeast(0.97)), Verdict::Undecided);
        assert_eq!(Verdict::of(ratio(1.1, 1.1, 1.1), Bound::AtMost(1.2)), Verdict::Holds);
        assert_eq!(Verdict::of(None, Bound::AtMost(1.2)), Verdict::Undecided);
    }

    #[test]
    fn a_row_has_the_fields_that_readers_of_results_look_for() {
        let row = Row::undecided("id", "test", "MiB/s", Bound::AtLeast(0.9), "why");
        let json = serde_json::to_value(&row).unwrap();
        for field in ["id", "test", "unit", "ratio", "low", "high", "target", "verdict", "samples", "cpuSeconds", "conditions"]
        {
            assert!(json.get(field).is_some(), "{field}");
        }
        assert_eq!(json["verdict"], "undecided");
        assert_eq!(json["samples"], serde_json::json!({ "local": [], "mount": [] }));
    }
}
