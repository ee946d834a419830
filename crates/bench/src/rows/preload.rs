//! `larder preload` beside a plain client that copies ranges of the same files to the same disk.

use super::{Bound, Row, Run, Samples, Verdict};
use crate::{
    data::{Set, Shape},
    experiment::{NARROW, drop_caches},
    reader::{Kind, Pass},
    report, stats,
    subject::Larder,
};
use anyhow::Context as _;
use std::{fs, io, path::Path};

const ID: &str = "preload-1";
const TEST: &str = "preload by one node from a folder, over a plain parallel range reader";
const UNIT: &str = "MiB/s";
const BOUND: Bound = Bound::AtLeast(0.90);
/// Bytes of one range, as the worker fetches them.
const RANGE: usize = 4 << 20;
/// Tuned: more or fewer of either were not faster here.
const THREADS: usize = 8;

pub(super) fn run(run: &Run<'_>, rows: &mut Vec<Row>, failures: &mut Vec<String>) {
    if !run.wants(ID) {
        return;
    }
    let row = measure(run).unwrap_or_else(|e| {
        failures.push(format!("{ID}: {e:#}"));
        Row::undecided(ID, TEST, UNIT, BOUND, format!("{e:#}"))
    });
    report::say(&row);
    rows.push(row);
}

fn measure(run: &Run<'_>) -> anyhow::Result<Row> {
    let set = Set::make(&run.data, "preload", &[Shape::large(run.args.quick)])?;
    let (copies, cache) = (run.data.join("copies"), run.data.join("cache"));
    let pass = Pass {
        kind: Kind::Copy,
        threads: THREADS,
        block: RANGE,
        count: 0,
        names: set.parts[0].names.clone(),
        to: Some(copies.clone()),
    };
    let (mut plain, mut ours, mut cpu) = (Vec::new(), Vec::new(), [Vec::new(), Vec::new()]);
    let (least, most) = if run.args.quick { (3, 3) } else { (5, 15) };
    let mib = set.bytes() as f64 / (1u64 << 20) as f64;
    for round in 0..most {
        remove(&copies)?;
        drop_caches()?;
        let took = pass.over(&set.root, round as u64)?;
        plain.push(mib / took.seconds);
        cpu[0].push(took.cpu);

        remove(&cache)?;
        drop_caches()?;
        let preload = Larder::preload(&run.larder, &run.data, &set)?;
        ours.push(mib / preload.seconds);
        cpu[1].push(preload.cpu);
        if round + 1 >= least && stats::ratio(&ours, &plain).is_some_and(|r| r.uncertainty() <= NARROW) {
            break;
        }
    }
    let ratio = stats::ratio(&ours, &plain);
    Ok(Row {
        id: ID,
        test: TEST.to_owned(),
        unit: UNIT,
        ratio,
        bound: BOUND,
        verdict: Verdict::of(ratio, BOUND),
        samples: Samples { local: plain, mount: ours, control: Vec::new() },
        cpu_seconds: Some(cpu.map(|c| stats::median(&c))),
        conditions: format!(
            "{} files, {mib:.0} MiB; origin cold; both synced; larder's time is that of the whole command, listing and checksums included; `local` is the plain client",
            set.files()
        ),
    })
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).with_context(|| format!("remove {}", folder.display())),
        _ => Ok(()),
    }
}
