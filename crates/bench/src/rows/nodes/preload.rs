//! The preload of four nodes, each its share, beside a plain client that copies everything.

use super::{AtLeast, Peaks, Row, Run, Spec, folder, spec};
use crate::{
    data::{Set, Shape},
    experiment::{Measure, Pair, drop_caches},
    lab::{Lab, Place},
    reader::Took,
    rows::preload::{plain, remove},
};
use std::time::Instant;

pub(super) const ROWS: [Spec; 1] =
    [spec("preload-4", "preload by 4 nodes from a folder, over a plain parallel range reader", "MiB/s", AtLeast(0.90))];
const NODES: u8 = 4;

pub(super) fn measure(run: &Run<'_>, peaks: &mut Peaks) -> anyhow::Result<Vec<Row>> {
    let set = Set::make(&run.data, "preload", &[Shape::large(run.args.quick)])?;
    let preload = || {
        remove(&run.data.join("copies"))?;
        let lab = Lab::start(run, &Place::Loopback(NODES), true)?;
        let source = folder(&set.root);
        let snapshot = lab.list(&source)?;
        drop_caches()?;
        let (started, before) = (Instant::now(), lab.cpu());
        lab.preload(&source, &snapshot)?;
        let (seconds, cpu) = (started.elapsed().as_secs_f64(), lab.cpu() - before);
        peaks.worker(lab.peak_memory());
        lab.stop()?;
        Ok(Took { seconds, bytes: set.bytes(), cpu, ..Took::default() })
    };
    let pair = Pair::measure(run.args.quick, &[Measure::MibPerSecond], || plain(run, &set), preload)?;
    let conditions = format!(
        "{} files, {} MiB; one disk and two cores for all nodes; origin cold; both synced; larder's time is from the order to the last node's word that its share is on disk, checksums included, without the listing; `local` is the plain client",
        set.files(),
        set.bytes() >> 20
    );
    Ok(vec![pair.row(ROWS[0], Measure::MibPerSecond, conditions)])
}
