//! Rows of several nodes: the worker and mounter processes themselves (`crate::lab`).

mod catalog;
mod epoch;
mod peers;
mod preload;
mod scale;
mod training;

use super::{
    Bound::{AtLeast, AtMost},
    Row, Run, Spec,
};
use crate::report;
use anyhow::Context as _;
use larder_origin::testing::{BUCKET, FakeS3};
use larder_proto::control::v1::Source;
use std::{fs, path::Path};

const fn spec(id: &'static str, test: &'static str, unit: &'static str, bound: super::Bound) -> Spec {
    Spec { id, test, unit, bound }
}

/// The most that any worker and any mounter of these rows held, in bytes.
#[derive(Default)]
struct Peaks {
    worker: u64,
    mounter: u64,
}

impl Peaks {
    fn worker(&mut self, peak: Option<u64>) {
        self.worker = self.worker.max(peak.unwrap_or(0));
    }

    fn mounter(&mut self, peak: Option<u64>) {
        self.mounter = self.mounter.max(peak.unwrap_or(0));
    }
}

/// Rows that are measured together.
struct Part {
    rows: &'static [Spec],
    /// Do its daemons work hard enough for the rows on memory?
    heavy: bool,
    /// Is it left out of a quick run?
    slow: bool,
    measure: fn(&Run<'_>, &mut Peaks) -> anyhow::Result<Vec<Row>>,
}

const PARTS: [Part; 8] = [
    Part { rows: &catalog::ROWS, heavy: false, slow: false, measure: catalog::measure },
    Part { rows: &peers::PLAIN, heavy: false, slow: false, measure: peers::plain },
    Part { rows: &peers::TLS, heavy: true, slow: false, measure: peers::tls },
    Part { rows: &epoch::ROWS, heavy: true, slow: false, measure: epoch::measure },
    Part { rows: &preload::ROWS, heavy: true, slow: false, measure: preload::measure },
    Part { rows: &scale::ROWS, heavy: false, slow: true, measure: scale::measure },
    Part { rows: &training::PEERS, heavy: false, slow: true, measure: training::peers },
    Part { rows: &training::STORY, heavy: false, slow: true, measure: training::story },
];

const WORKER: Spec =
    spec("memory-worker", "peak memory of a worker under the heaviest of these, over 256 MiB", "MiB", AtMost(1.0));
const MOUNTER: Spec =
    spec("memory-mounter", "peak memory of a mounter under the heaviest of these, over 128 MiB", "MiB", AtMost(1.0));

pub(super) fn run(run: &Run<'_>, rows: &mut Vec<Row>, failures: &mut Vec<String>) {
    let (mut peaks, memory) = (Peaks::default(), [WORKER, MOUNTER].map(|spec| run.wants(spec.id)));
    for part in &PARTS {
        let wanted: Vec<&Spec> = part.rows.iter().filter(|spec| run.wants(spec.id)).collect();
        if wanted.is_empty() && !(part.heavy && memory.contains(&true)) {
            continue;
        }
        if part.slow && run.args.quick {
            rows.extend(wanted.into_iter().map(|spec| spec.undecided("not in a quick run: it takes minutes")));
            continue;
        }
        match super::fresh(run).and_then(|()| (part.measure)(run, &mut peaks)) {
            Ok(measured) => rows.extend(measured.into_iter().filter(|row| run.wants(row.id)).inspect(report::say)),
            Err(e) => {
                failures.push(format!("{}: {e:#}", part.rows[0].id));
                rows.extend(wanted.into_iter().map(|spec| spec.undecided(format!("{e:#}"))));
            }
        }
    }
    let mib = |bytes: u64| bytes as f64 / (1u64 << 20) as f64;
    for (spec, peak, target) in [(WORKER, peaks.worker, 256.0), (MOUNTER, peaks.mounter, 128.0)] {
        if !run.wants(spec.id) {
            continue;
        }
        let row = match peak {
            0 => spec.undecided("none of the rows that it is read from was measured"),
            peak => {
                let about = "of all processes of the rows peer-*, origin-once and preload-4; `local` is the target";
                spec.row(vec![target], vec![mib(peak)], about.to_owned())
            }
        };
        report::say(&row);
        rows.push(row);
    }
}

/// A folder as a source.
fn folder(root: &Path) -> Source {
    Source { uri: format!("file://{}/", root.display()), ..Source::default() }
}

/// Files beneath a folder, put into a bucket, as a source. A name that ends in a slash is a folder that may be empty.
fn s3<'a>(server: &FakeS3, root: &Path, names: impl Iterator<Item = &'a str>) -> anyhow::Result<Source> {
    for name in names {
        let path = root.join(name);
        let bytes = if name.ends_with('/') { Ok(Vec::new()) } else { fs::read(&path) };
        server.put(&format!("set/{name}"), bytes.with_context(|| format!("read {}", path.display()))?);
    }
    Ok(Source { uri: format!("s3://{BUCKET}/set/"), endpoint: server.endpoint(), anonymous: true, ..Source::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_an_id_of_its_own() {
        let mut ids: Vec<_> = PARTS.iter().flat_map(|part| part.rows).chain([&WORKER, &MOUNTER]).map(|row| row.id).collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }

    #[test]
    fn what_was_held_last_does_not_hide_what_was_held_most() {
        let mut peaks = Peaks::default();
        [Some(3), Some(7), None, Some(5)].into_iter().for_each(|peak| peaks.worker(peak));
        assert_eq!((peaks.worker, peaks.mounter), (7, 0));
    }
}
