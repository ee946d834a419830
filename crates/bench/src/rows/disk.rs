//! Rows on the local disk: everything preloaded, `larder mount` beside the files themselves.

use super::{Bound, Row, Run, Spec};
use crate::{
    data::{Set, Shape},
    experiment::{Experiment, Line, Measure, Phase},
    reader::{Kind, Pass},
    stats,
    subject::{Bind, Larder},
};
use Bound::{AtLeast, AtMost};
use Measure::{CpuPerGib, MibPerSecond, PerSecond, Seconds};
use Phase::{Cold, Warm};

/// The published load of one client, in GiB/s.
const ONE_CLIENT: f64 = 3.05;
/// Bytes of memory: worker and mounter together are one process here.
const WORKER: f64 = 256.0;
const READERS: usize = 16;
const KIB: usize = 1 << 10;

/// A set, how it is mounted, and what is measured on it.
struct Stage {
    set: &'static str,
    shapes: fn(bool) -> Vec<Shape>,
    flags: &'static [&'static str],
    /// What is said of it in the conditions.
    about: &'static str,
    passes: fn(bool) -> Vec<(PassOf, Vec<Line>)>,
    /// Also the row of one client's load, and that of memory.
    absolute: bool,
}

/// A pass without its names.
#[derive(Clone, Copy)]
struct PassOf {
    kind: Kind,
    threads: usize,
    block: usize,
    count: usize,
    /// Which files of the set.
    part: usize,
}

const fn line(id: &'static str, test: &'static str, phase: Phase, measure: Measure, bound: Bound) -> Line {
    Line { id, test, phase, measure, bound }
}

const STAGES: [Stage; 6] = [
    Stage {
        set: "large",
        shapes: |quick| vec![Shape::large(quick)],
        flags: &["--preload"],
        about: "mode Auto",
        passes: large,
        absolute: true,
    },
    Stage {
        set: "small",
        shapes: |quick| vec![Shape::small(quick)],
        flags: &["--preload"],
        about: "mode Auto",
        passes: small,
        absolute: false,
    },
    Stage {
        set: "tree",
        shapes: |quick| vec![Shape::tree(quick)],
        flags: &[],
        about: "mode Auto, nothing cached but the listing",
        passes: tree,
        absolute: false,
    },
    Stage {
        set: "mixed",
        shapes: |quick| Shape::mixed(quick).into(),
        flags: &["--preload"],
        about: "mode Auto, half the bytes in small files, half in large ones",
        passes: mixed,
        absolute: false,
    },
    Stage {
        set: "large",
        shapes: |quick| vec![Shape::large(quick)],
        flags: &["--preload", "--no-passthrough"],
        about: "--no-passthrough",
        passes: large_without_passthrough,
        absolute: false,
    },
    Stage {
        set: "small",
        shapes: |quick| vec![Shape::small(quick)],
        flags: &["--preload", "--no-passthrough"],
        about: "--no-passthrough",
        passes: small_without_passthrough,
        absolute: false,
    },
];

const SEQUENTIAL: PassOf = PassOf { kind: Kind::Sequential, threads: 1, block: 1 << 20, count: 0, part: 0 };
const SIXTEEN: PassOf = PassOf { kind: Kind::Sequential, threads: READERS, block: 256 * KIB, count: 0, part: 0 };
const SMALL: PassOf = PassOf { kind: Kind::Small, threads: 1, block: 0, count: 0, part: 0 };

fn large(quick: bool) -> Vec<(PassOf, Vec<Line>)> {
    let random =
        |kind, count: usize| PassOf { kind, count: if quick { count / 4 } else { count }, block: 4 * KIB, ..SEQUENTIAL };
    vec![
        (
            SEQUENTIAL,
            vec![
                line("seq-cold", "sequential 1 MiB reads, cold", Cold, MibPerSecond, AtLeast(0.97)),
                line("seq-warm", "sequential 1 MiB reads, warm", Warm, MibPerSecond, AtLeast(0.97)),
            ],
        ),
        (
            SIXTEEN,
            vec![
                line("readers16-cold", "16 readers, 256 KiB, cold", Cold, MibPerSecond, AtLeast(0.97)),
                line("readers16-cold-cpu", "16 readers, 256 KiB, cold: CPU seconds per GiB", Cold, CpuPerGib, AtMost(1.1)),
            ],
        ),
        (random(Kind::Random, 10_000), vec![line("rand4k-cold", "random 4 KiB pread, cold", Cold, PerSecond, AtLeast(0.90))]),
        (
            random(Kind::Random, 1_000_000),
            vec![line("rand4k-warm", "random 4 KiB pread, warm", Warm, PerSecond, AtLeast(0.97))],
        ),
        (
            random(Kind::Mapped, 10_000),
            vec![line("mmap-cold", "mmap, random page touches, cold", Cold, PerSecond, AtLeast(0.90))],
        ),
    ]
}

fn small(_: bool) -> Vec<(PassOf, Vec<Line>)> {
    let test = ["open+stat+read+close of 114 KiB files, random order, cold", "the same, warm"];
    vec![(
        SMALL,
        vec![
            line("small-cold", test[0], Cold, PerSecond, AtLeast(0.70)),
            line("small-warm", test[1], Warm, PerSecond, AtLeast(0.95)),
        ],
    )]
}

fn tree(_: bool) -> Vec<(PassOf, Vec<Line>)> {
    vec![(
        PassOf { kind: Kind::Walk, threads: 1, block: 0, count: 0, part: 0 },
        vec![
            line("find-cold", "find -printf %s over 200,000 files, cold", Cold, Seconds, AtMost(1.2)),
            line("find-second", "find -printf %s over 200,000 files, the second time", Warm, Seconds, AtMost(1.3)),
        ],
    )]
}

fn mixed(_: bool) -> Vec<(PassOf, Vec<Line>)> {
    vec![
        (
            SMALL,
            vec![
                line("mixed-small-cold", "small half of a mixed snapshot, cold", Cold, PerSecond, AtLeast(0.70)),
                line("mixed-small-warm", "small half of a mixed snapshot, warm", Warm, PerSecond, AtLeast(0.95)),
            ],
        ),
        (
            PassOf { part: 1, ..SEQUENTIAL },
            vec![
                line("mixed-large-cold", "large half of a mixed snapshot, sequential, cold", Cold, MibPerSecond, AtLeast(0.97)),
                line("mixed-large-warm", "large half of a mixed snapshot, sequential, warm", Warm, MibPerSecond, AtLeast(0.97)),
            ],
        ),
    ]
}

fn large_without_passthrough(_: bool) -> Vec<(PassOf, Vec<Line>)> {
    vec![
        (
            SEQUENTIAL,
            vec![
                line("nopt-seq-cold", "sequential 1 MiB reads, cold, --no-passthrough", Cold, MibPerSecond, AtLeast(0.80)),
                line("nopt-seq-warm", "sequential 1 MiB reads, warm, --no-passthrough", Warm, MibPerSecond, AtLeast(0.90)),
            ],
        ),
        (
            SIXTEEN,
            vec![
                line("nopt-readers16-cold", "16 readers, 256 KiB, cold, --no-passthrough", Cold, MibPerSecond, AtLeast(0.80)),
                line("nopt-readers16-warm", "16 readers, 256 KiB, warm, --no-passthrough", Warm, MibPerSecond, AtLeast(0.90)),
            ],
        ),
    ]
}

fn small_without_passthrough(_: bool) -> Vec<(PassOf, Vec<Line>)> {
    vec![(
        SMALL,
        vec![
            line("nopt-small-cold", "114 KiB files, random order, cold, --no-passthrough", Cold, PerSecond, AtLeast(0.80)),
            line("nopt-small-warm", "114 KiB files, random order, warm, --no-passthrough", Warm, PerSecond, AtLeast(0.90)),
        ],
    )]
}

pub(super) fn run(run: &Run<'_>, rows: &mut Vec<Row>, failures: &mut Vec<String>) {
    let quick = run.args.quick;
    // A set that two stages use is made once.
    let mut sets: Vec<Set> = Vec::new();
    for stage in &STAGES {
        let mut passes = (stage.passes)(quick);
        passes.retain_mut(|(_, lines)| {
            lines.retain(|l| run.wants(l.id));
            !lines.is_empty()
        });
        let absolute = stage.absolute && ["readers16-warm-absolute", "memory"].into_iter().any(|id| run.wants(id));
        if passes.is_empty() && !absolute {
            continue;
        }
        let ids = passes.iter().flat_map(|(_, lines)| lines.clone()).collect::<Vec<_>>();
        let set = match sets.iter().find(|s| s.name == stage.set) {
            Some(set) => Ok(set.clone()),
            None => Set::make(&run.data, stage.set, &(stage.shapes)(quick)).inspect(|set| sets.push(set.clone())),
        };
        if let Err(e) = set.and_then(|set| measure(run, stage, &set, passes, rows)) {
            let why = format!("{e:#}");
            failures.push(format!("{} ({}): {why}", stage.set, stage.about));
            let missing = ids.into_iter().filter(|l| rows.iter().all(|r| r.id != l.id)).collect::<Vec<_>>();
            rows.extend(missing.into_iter().map(|l| Row::undecided(l.id, l.test, l.measure.unit(), l.bound, &why)));
        }
    }
}

fn measure(
    run: &Run<'_>,
    stage: &Stage,
    set: &Set,
    passes: Vec<(PassOf, Vec<Line>)>,
    rows: &mut Vec<Row>,
) -> anyhow::Result<()> {
    let mounted = Larder::mount(&run.larder, &run.data, set, stage.flags)?;
    let control = Bind::mount(&run.data, set)?;
    let mib = set.bytes() >> 20;
    let conditions =
        format!("{} files, {mib} MiB; {}; mounted within {:.2} s", set.files(), stage.about, mounted.took.as_secs_f64());
    for (of, lines) in passes {
        let pass = of.over(set);
        let whole = PassOf { block: 1 << 20, ..SEQUENTIAL }.over(set);
        let experiment = Experiment {
            warm_up: matches!(of.kind, Kind::Random | Kind::Mapped).then_some(whole),
            pass,
            lines,
            local: &set.root,
            mounted: &mounted,
            control: &control,
            conditions: conditions.clone(),
            quick: run.args.quick,
        };
        for row in experiment.run()? {
            crate::report::say(&row);
            rows.push(row);
        }
    }
    if stage.absolute {
        rows.extend(one_client(run, set, &mounted, &conditions)?);
        rows.extend(memory(run, &mounted, &conditions));
    }
    mounted.unmount()
}

impl PassOf {
    fn over(self, set: &Set) -> Pass {
        let Self { kind, threads, block, count, part } = self;
        Pass { kind, threads, block, count, names: set.parts[part].names.clone(), to: None }
    }
}

/// Against a number and not against the disk.
fn one_client(run: &Run<'_>, set: &Set, mounted: &Larder, conditions: &str) -> anyhow::Result<Option<Row>> {
    const ID: &str = "readers16-warm-absolute";
    if !run.wants(ID) {
        return Ok(None);
    }
    let pass = SIXTEEN.over(set);
    pass.over(mounted.path(), 1)?;
    let (mut speeds, mut cpu) = (Vec::new(), Vec::new());
    for seed in 0..if run.args.quick { 3 } else { 9 } {
        let before = mounted.daemon.cpu();
        let took = pass.over(mounted.path(), seed)?;
        speeds.push(took.bytes as f64 / (1u64 << 30) as f64 / took.seconds);
        cpu.push(took.cpu + mounted.daemon.cpu() - before);
    }
    let spec =
        Spec { id: ID, test: "one mount, 16 readers of 256 KiB, warm, over 3.05 GiB/s", unit: "GiB/s", bound: AtLeast(1.0) };
    let row = spec.row(vec![ONE_CLIENT], speeds, format!("{conditions}; `local` is the target"));
    Ok(Some(Row { cpu_seconds: Some([0.0, stats::median(&cpu)]), ..row }))
}

fn memory(run: &Run<'_>, mounted: &Larder, conditions: &str) -> Option<Row> {
    const ID: &str = "memory";
    let peak = mounted.daemon.peak_memory().filter(|_| run.wants(ID))? as f64 / (1u64 << 20) as f64;
    let spec = Spec {
        id: ID,
        test: "peak memory of worker and mounter together, over the 256 MiB of a worker",
        unit: "MiB",
        bound: AtMost(1.0),
    };
    let conditions = format!("{conditions}; one process here; after all passes of this set; `local` is the target");
    Some(spec.row(vec![WORKER], vec![peak], conditions))
}
