//! DLIO on nodes: with every byte on another one, and from the first epoch on with an origin that is too slow.

use super::{
    AtLeast, Peaks, Row, Run, Spec, folder, s3,
    scale::{MIB, PAYLOAD},
    spec,
};
use crate::{
    lab::{Lab, Network, Place},
    rows::dlio::{self, DEMAND, GOOD, STEP, Than, UNCACHED, UNET},
    stats::median,
};
use anyhow::Context as _;
use larder_origin::testing::FakeS3;
use std::{fs, path::Path};
use tokio::runtime::Runtime;

pub(super) const PEERS: [Spec; 1] =
    [spec("unet-peers", "DLIO unet3d, low demand, all bytes on peers: AU over local, less 0.5 points", "AU", AtLeast(0.995))];
pub(super) const STORY: [Spec; 2] = [
    spec(
        "story-epoch1",
        "DLIO unet3d, origin limited to half of the demand: epoch 1 over the origin's pace",
        "MiB/s",
        AtLeast(0.95),
    ),
    spec("story-epoch2", "the same: AU of epoch 2 over 98.5", "AU", AtLeast(1.0)),
];
/// DLIO looks into it.
const EMPTY: &str = "unet3d/valid/";
/// Each half a minute for either side.
const ROUNDS: usize = 2;
/// Each from an empty disk.
const STORIES: usize = 3;

pub(super) fn peers(run: &Run<'_>, _: &mut Peaks) -> anyhow::Result<Vec<Row>> {
    let root = dlio::make(run, &[UNET])?;
    let network = Network::behind()?;
    let lab = Lab::start(run, &Place::Behind(&network), true)?;
    let source = folder(&root);
    let snapshot = lab.list(&source)?;
    lab.preload(&source, &snapshot)?;
    let mounter = lab.mounter(1, false)?;
    lab.mount(&mounter, &snapshot)?;
    let (mut local, mut mount) = (Vec::new(), Vec::new());
    let served = lab.served()?[0];
    for _ in 0..ROUNDS {
        local.push(UNCACHED.over(&root)?);
        mount.push(UNCACHED.over(mounter.path())?);
    }
    let served = (lab.served()?[0] - served) as f64;
    mounter.stop()?;
    lab.stop()?;
    let row = dlio::row(PEERS[0].id, PEERS[0].test, Than::Local, &local, &mount);
    let conditions = format!(
        "{}; a worker in another network namespace, no worker on the reader's node, TLS, pages dropped every 0.5 s for both; {:.2} of the bytes of all epochs came over the link",
        row.conditions,
        served / (2 * ROUNDS) as f64 / bytes(&root)? as f64
    );
    Ok(vec![Row { conditions, ..row }])
}

pub(super) fn story(run: &Run<'_>, _: &mut Peaks) -> anyhow::Result<Vec<Row>> {
    let root = dlio::make(run, &[UNET])?;
    let (bytes, pace) = (bytes(&root)? as f64, DEMAND / 2.0);
    let network = Network::behind()?;
    let runtime = Runtime::new()?;
    let server = runtime.block_on(FakeS3::on(Network::HOST, 1000));
    let source = s3(&server, &root, files(&root)?.iter().map(|(name, _)| name.as_str()).chain([EMPTY]))?;
    network.shape_into(0, (pace * 8.0 / PAYLOAD) as u64)?;
    let (mut first, mut whole, mut second) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..STORIES {
        let lab = Lab::start(run, &Place::Behind(&network), true)?;
        let snapshot = lab.list(&source)?;
        let mounter = lab.mounter(0, true)?;
        lab.mount(&mounter, &snapshot)?;
        UNCACHED.over(mounter.path())?;
        let epochs = dlio::epochs()?;
        let [one, two] = epochs[..] else { anyhow::bail!("two epochs, not {epochs:?}") };
        // The last step's computation begins when everything has come.
        first.push(bytes / MIB / (one.seconds - STEP));
        whole.push(bytes / MIB / one.seconds);
        second.push(two.utilisation);
        mounter.stop()?;
        lab.stop()?;
    }
    let sent = server.seen().bytes as f64 / bytes / STORIES as f64;
    let conditions = format!(
        "{}; worker and mounter in a network namespace, TLS; an S3 server behind a link that has room for {:.0} MiB/s of bytes of files, half of the demand; nothing cached before epoch 1, no preload, pages dropped every 0.5 s; epoch 1 without the computation of its last step, {STEP} s, for which nothing is left to read, with it {:.0} MiB/s; the server sent {sent:.3} of the dataset's bytes",
        dlio::ABOUT,
        pace / MIB,
        median(&whole)
    );
    let rows = [STORY[0].row(vec![pace / MIB], first, conditions.clone()), STORY[1].row(vec![GOOD], second, conditions)];
    Ok(rows.into())
}

/// Names beneath the folder and sizes of the files that are read.
fn files(root: &Path) -> anyhow::Result<Vec<(String, u64)>> {
    let folder = Path::new(UNET).join("train");
    let listed = fs::read_dir(root.join(&folder)).with_context(|| format!("list {}", root.join(&folder).display()))?;
    let file = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry?;
        Ok((folder.join(entry.file_name()).to_string_lossy().into_owned(), entry.metadata()?.len()))
    };
    listed.map(file).collect()
}

fn bytes(root: &Path) -> anyhow::Result<u64> {
    Ok(files(root)?.iter().map(|(_, size)| size).sum())
}
