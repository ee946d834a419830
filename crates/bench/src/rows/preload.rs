//! `larder preload` beside a plain client that copies ranges of the same files to the same disk.

use super::{Bound, Row, Run, Spec};
use crate::{
    data::{Set, Shape},
    experiment::{Measure, Pair, drop_caches},
    reader::{Kind, Pass, Took},
    report,
    subject::Larder,
};
use anyhow::Context as _;
use std::{fs, io, path::Path};

const SPEC: Spec = Spec {
    id: "preload-1",
    test: "preload by one node from a folder, over a plain parallel range reader",
    unit: "MiB/s",
    bound: Bound::AtLeast(0.90),
};
/// Bytes of one range, as the worker fetches them.
const RANGE: usize = 4 << 20;
/// Tuned: more or fewer of either were not faster here.
const THREADS: usize = 8;

pub(super) fn run(run: &Run<'_>, rows: &mut Vec<Row>, failures: &mut Vec<String>) {
    if !run.wants(SPEC.id) {
        return;
    }
    let row = measure(run).unwrap_or_else(|e| {
        failures.push(format!("{}: {e:#}", SPEC.id));
        SPEC.undecided(format!("{e:#}"))
    });
    report::say(&row);
    rows.push(row);
}

fn measure(run: &Run<'_>) -> anyhow::Result<Row> {
    let set = Set::make(&run.data, "preload", &[Shape::large(run.args.quick)])?;
    let preload = || {
        remove(&run.data.join("cache"))?;
        drop_caches()?;
        Larder::preload(&run.larder, &run.data, &set)
    };
    let pair = Pair::measure(run.args.quick, &[Measure::MibPerSecond], || plain(run, &set), preload)?;
    let conditions = format!(
        "{} files, {} MiB; origin cold; both synced; larder's time is that of the whole command, listing and checksums included; `local` is the plain client",
        set.files(),
        set.bytes() >> 20
    );
    Ok(pair.row(SPEC, Measure::MibPerSecond, conditions))
}

/// What a plain client takes for the same files.
pub(super) fn plain(run: &Run<'_>, set: &Set) -> anyhow::Result<Took> {
    let copies = run.data.join("copies");
    remove(&copies)?;
    drop_caches()?;
    let (kind, names) = (Kind::Copy, set.parts[0].names.clone());
    Pass { kind, threads: THREADS, block: RANGE, count: 0, names, to: Some(copies) }.over(&set.root, 0)
}

pub(super) fn remove(folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).with_context(|| format!("remove {}", folder.display())),
        _ => Ok(()),
    }
}
