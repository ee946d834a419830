//! Reads of a mounted dataset while another one is fetched to the same disk and removed from it, again and again; and the same reads
//! of the files themselves, under the same load.

use super::{
    Bound::{self, AtLeast, AtMost},
    Row, Run, Samples, Verdict,
};
use crate::{
    data::{Set, Shape},
    experiment::drop_caches,
    reader::{Kind, Pass, Tails},
    report, stats,
    subject::Larder,
};
use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

type Spec = (&'static str, &'static str, &'static str, Bound, fn(&Tails) -> f64);

const ROWS: [Spec; 3] = [
    ("mixed-p99", "p99 of reads while another dataset is fetched and removed", "ms", AtMost(1.3), |t| t.p99),
    ("mixed-p999", "p99.9 of reads while another dataset is fetched and removed", "ms", AtMost(2.0), |t| t.p999),
    ("mixed-windows", "5th percentile of 1 s windows, over their median", "of the median", AtLeast(0.8), |t| t.windows),
];
/// Of 60 s each.
const ROUNDS: usize = 3;

pub(super) fn run(run: &Run<'_>, rows: &mut Vec<Row>, failures: &mut Vec<String>) {
    let wanted: Vec<&Spec> = ROWS.iter().filter(|(id, ..)| run.wants(id)).collect();
    if wanted.is_empty() {
        return;
    }
    let undecided = |why: String| {
        wanted.iter().map(|(id, test, unit, bound, _)| Row::undecided(id, test, unit, *bound, why.clone())).collect::<Vec<_>>()
    };
    if run.args.quick {
        rows.extend(undecided("not in a quick run: it takes minutes".to_owned()));
        return;
    }
    match measure(run) {
        Ok((local, mount)) => rows.extend(wanted.into_iter().map(|spec| row(spec, &local, &mount)).inspect(report::say)),
        Err(e) => {
            failures.push(format!("mixed load: {e:#}"));
            rows.extend(undecided(format!("{e:#}")));
        }
    }
}

fn measure(run: &Run<'_>) -> anyhow::Result<(Vec<Tails>, Vec<Tails>)> {
    let set = Set::make(&run.data, "read", &[Shape::large(false)])?;
    let other = Set::make(&run.data.join("other"), "other", &[Shape::large(false)])?;
    let mounted = Larder::mount(&run.larder, &run.data, &set, &["--preload"])?;
    let pass = Pass { kind: Kind::Mixed, threads: 0, block: 0, count: 60, names: set.parts[0].names.clone(), to: None };
    let (mut local, mut mount) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        for (root, tails) in [(set.root.as_path(), &mut local), (mounted.path(), &mut mount)] {
            drop_caches()?;
            tails.push(beside(run, &other, || pass.over(root, round as u64 + 1))?.tails.unwrap_or_default());
        }
    }
    mounted.unmount()?;
    Ok((local, mount))
}

/// Does the work while the other dataset comes and goes.
fn beside<T>(run: &Run<'_>, other: &Set, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let (over, data) = (AtomicBool::new(false), run.data.join("other"));
    std::thread::scope(|scope| {
        let load = scope.spawn(|| come_and_go(run, other, &data, &over));
        let done = work();
        over.store(true, Relaxed);
        load.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
        done
    })
}

fn come_and_go(run: &Run<'_>, other: &Set, data: &Path, over: &AtomicBool) -> anyhow::Result<()> {
    while !over.load(Relaxed) {
        Larder::preload(&run.larder, data, other)?;
        fs::remove_dir_all(data.join("cache"))?;
    }
    Ok(())
}

fn row((id, test, unit, bound, of): &Spec, local: &[Tails], mount: &[Tails]) -> Row {
    let mut samples =
        Samples { local: local.iter().map(of).collect(), mount: mount.iter().map(of).collect(), control: Vec::new() };
    let mut conditions = "8 readers of 256 KiB and 8 of 4 to 64 KiB for 60 s, from a cold start".to_owned();
    if *id == "mixed-windows" {
        // Against an even stream, whatever the disk itself does.
        conditions = format!("{conditions}; the disk itself: {:.3}; `local` is an even stream", stats::median(&samples.local));
        samples.local = vec![1.0];
    }
    let ratio = stats::ratio(&samples.mount, &samples.local);
    let verdict = Verdict::of(ratio, *bound);
    Row { id, test: (*test).to_owned(), unit, ratio, bound: *bound, verdict, samples, cpu_seconds: None, conditions }
}
