//! Mounts of a snapshot of ten million files.

use super::{AtMost, Peaks, Row, Run, Spec, spec};
use crate::{
    experiment::{drop_caches, rounds},
    lab::{self, Lab, Place},
};
use anyhow::Context as _;
use larder_origin::testing::synthetic::Synthetic;
use larder_snapshot::{Progress, take};
use std::{fs, sync::Arc, time::Instant};
use tokio::runtime::Runtime;

pub(super) const ROWS: [Spec; 2] = [
    spec("mount-10m", "mount of a 10 M-file snapshot, from the catalog's presence, over 1 s", "s", AtMost(1.0)),
    spec("mount-10m-memory", "mounter's memory then, over 64 MiB", "MiB", AtMost(1.0)),
];

pub(super) fn measure(run: &Run<'_>, _: &mut Peaks) -> anyhow::Result<Vec<Row>> {
    let origin = Synthetic { files: if run.args.quick { 1_000_000 } else { 10_000_000 }, per_folder: 1000, streams: 16 };
    let folder = lab::catalogs(run);
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let taken = Runtime::new()?.block_on(take(&origin, &folder, &Arc::new(Progress::default())))?;
    let lab = Lab::start(run, &Place::Loopback(1), true)?;
    lab.until(|s| s.snapshots.contains(&taken.digest).then_some(()))?;
    let (mut seconds, mut memory) = (Vec::new(), Vec::new());
    for _ in 0..rounds(run.args.quick).0 {
        let mounter = lab.mounter(0, true)?;
        drop_caches()?;
        let started = Instant::now();
        lab.mount(&mounter, &taken.digest)?;
        seconds.push(started.elapsed().as_secs_f64());
        memory.push(mounter.daemon.peak_memory().context("the mounter is gone")? as f64 / (1u64 << 20) as f64);
        mounter.stop()?;
    }
    lab.stop()?;
    let conditions = format!(
        "{} files, catalog of {} MiB on the node's worker; a new mounter each time, nothing in the page cache; token, catalog, mount(2), INIT and the first name of the root; `local` is the target",
        taken.files,
        taken.catalog_bytes >> 20
    );
    Ok(vec![ROWS[0].row(vec![1.0], seconds, conditions.clone()), ROWS[1].row(vec![64.0], memory, conditions)])
}
