//! A cold epoch of four nodes at once: how often does a byte leave the origin?

use super::{AtMost, Peaks, Row, Run, Spec, s3, spec};
use crate::{
    data::{Set, Shape},
    experiment::rounds,
    lab::{Lab, Place},
    reader::{Kind, Pass},
};
use anyhow::Context as _;
use larder_origin::testing::FakeS3;
use std::fs;
use tokio::runtime::Runtime;

pub(super) const ROWS: [Spec; 1] =
    [spec("origin-once", "origin body bytes over dataset bytes, cold epoch by 4 nodes at once", "bytes", AtMost(1.001))];
const NODES: u8 = 4;
/// Of each node.
const READERS: usize = 4;

pub(super) fn measure(run: &Run<'_>, peaks: &mut Peaks) -> anyhow::Result<Vec<Row>> {
    let set = Set::make(&run.data, "epoch", &[Shape::large(run.args.quick), Shape::small(true)])?;
    let mut names = String::new();
    for part in &set.parts {
        names += &fs::read_to_string(&part.names).with_context(|| format!("read {}", part.names.display()))?;
    }
    let all = run.data.join("epoch.names");
    fs::write(&all, &names)?;
    let runtime = Runtime::new()?;
    let server = runtime.block_on(FakeS3::start());
    let source = s3(&server, &set.root, names.lines())?;
    // Open, read whole, close, in a random order, as an epoch does.
    let pass = Pass { kind: Kind::Small, threads: READERS, block: 0, count: 0, names: all, to: None };
    let mut sent = Vec::new();
    for round in 0..rounds(run.args.quick).0 {
        let lab = Lab::start(run, &Place::Loopback(NODES), true)?;
        let snapshot = lab.list(&source)?;
        let mounters = (0..NODES).map(|n| lab.mounter(n, true)).collect::<anyhow::Result<Vec<_>>>()?;
        mounters.iter().try_for_each(|mounter| lab.mount(mounter, &snapshot))?;
        let before = server.seen().bytes;
        std::thread::scope(|scope| {
            let pass = &pass;
            let read = |(n, mounter): (usize, &crate::lab::Mounter)| {
                let (root, seed) = (mounter.path().to_owned(), (round * 10 + n) as u64);
                scope.spawn(move || pass.over(&root, seed))
            };
            let readers: Vec<_> = mounters.iter().enumerate().map(read).collect();
            for reader in readers {
                let took = reader.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
                anyhow::ensure!(took.bytes == set.bytes(), "a node read {} of {} bytes", took.bytes, set.bytes());
            }
            Ok(())
        })?;
        sent.push((server.seen().bytes - before) as f64);
        for mounter in mounters {
            peaks.mounter(mounter.daemon.peak_memory());
            mounter.stop()?;
        }
        peaks.worker(lab.peak_memory());
        lab.stop()?;
    }
    let conditions = format!(
        "{NODES} workers and {NODES} mounters, TLS; each node reads all {} files, {} MiB, with {READERS} readers in an order of its own; body bytes as the S3 server counts what it sends; `local` is the dataset",
        set.files(),
        set.bytes() >> 20
    );
    Ok(vec![ROWS[0].row(vec![set.bytes() as f64], sent, conditions)])
}
