//! Reads of what lies on another node, over a link between two network namespaces, beside a bare pair of server and client.

use super::{AtLeast, AtMost, Peaks, Row, Run, Spec, folder, spec};
use crate::{
    bare, cpu,
    daemon::Daemon,
    data::{Set, Shape},
    experiment::{Measure, Pair, drop_caches},
    lab::{Lab, Network, Place, UID},
    reader::{Kind, Pass, Took},
    stats::median,
};
use larder_peer::{Client, ObjectRef};
use std::{
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

pub(super) const PLAIN: [Spec; 1] = [spec(
    "peer-cpu-plain",
    "peer read without TLS: CPU seconds per GiB, over a bare hyper pair without TLS",
    "CPU s/GiB",
    AtMost(1.3),
)];
pub(super) const TLS: [Spec; 3] = [
    spec("peer-shaped", "peer read over a link of 2 Gbit/s, of the link", "Mbit/s", AtLeast(0.95)),
    spec("peer-cpu-tls", "peer read with TLS: CPU seconds per GiB, over a bare hyper+rustls pair", "CPU s/GiB", AtMost(1.15)),
    spec(
        "peer-mount",
        "16 readers through the mount, all bytes on another node, TLS, over the bare pair",
        "MiB/s",
        AtLeast(0.80),
    ),
];

/// Of the shaped link, bits a second.
const LINK: u64 = 2_000_000_000;
/// Requests at the same time, and bytes of one: what 16 readers of a mount keep in flight.
const PARALLEL: usize = 16;
const RANGE: u64 = 1 << 20;
const PORT: u16 = 7490;
/// The published load of one client, in GiB/s.
const ONE_CLIENT: f64 = 3.03;

/// A file's name and number, and a range of it.
type Wanted = (u64, larder_core::key::ObjectKey, Range<u64>);

/// A worker that has everything, and a plain server beside it, behind the link.
struct Stage {
    set: Set,
    network: Network,
    lab: Lab,
    snapshot: String,
    client: Client,
    wanted: Arc<Vec<Wanted>>,
    server: Daemon,
    plain: bare::Client,
    plain_wanted: Arc<Vec<bare::Wanted>>,
}

pub(super) fn plain(run: &Run<'_>, peaks: &mut Peaks) -> anyhow::Result<Vec<Row>> {
    let mut stage = Stage::set(run, false)?;
    let pair = stage.unshaped(run.args.quick)?;
    let row = pair.row(PLAIN[0], Measure::CpuPerGib, stage.conditions(&pair));
    stage.strike(peaks)?;
    Ok(vec![row])
}

pub(super) fn tls(run: &Run<'_>, peaks: &mut Peaks) -> anyhow::Result<Vec<Row>> {
    let mut stage = Stage::set(run, true)?;
    let pair = stage.unshaped(run.args.quick)?;
    let cpu = pair.row(TLS[1], Measure::CpuPerGib, stage.conditions(&pair));
    let shaped = stage.shaped(run.args.quick)?;
    let mount = stage.through_the_mount(run.args.quick, peaks)?;
    stage.strike(peaks)?;
    Ok(vec![shaped, cpu, mount])
}

impl Stage {
    fn set(run: &Run<'_>, tls: bool) -> anyhow::Result<Self> {
        let set = Set::make(&run.data, "peers", &[Shape::large(run.args.quick)])?;
        let network = Network::behind()?;
        let lab = Lab::start(run, &Place::Behind(&network), tls)?;
        let source = folder(&set.root);
        let snapshot = lab.list(&source)?;
        lab.preload(&source, &snapshot)?;
        let catalog = lab.catalog(&snapshot)?;
        let (mut wanted, mut plain_wanted) = (Vec::new(), Vec::new());
        for index in catalog.file_indices() {
            let index = index?;
            let (path, key, size) = (catalog.path(index)?, catalog.object_key(index)?, catalog.entry(index)?.size());
            for start in (0..size).step_by(RANGE as usize) {
                let range = start..size.min(start + RANGE);
                wanted.push((index + 1, key, range.clone()));
                plain_wanted.push((path.clone(), range));
            }
        }
        let certificate = tls.then(|| run.data.join("tls"));
        certificate.as_deref().map(bare::make_certificate).transpose()?;
        let listen = SocketAddr::new(Network::node(0), PORT);
        let mut command = network.space(0).command(&std::env::current_exe()?);
        command.arg("serve").arg("--root").arg(&set.root).args(["--listen", &listen.to_string()]);
        command.args(certificate.iter().flat_map(|folder| ["--tls".as_ref(), folder.as_os_str()]));
        let server = Daemon::start(&mut command, &run.data.join("bare.log"), bare::READY, Duration::from_secs(10))?;
        let plain = bare::Client::connect(&lab.runtime, listen, certificate.as_deref(), PARALLEL)?;
        let (client, wanted, plain_wanted) = (lab.client()?, Arc::new(wanted), Arc::new(plain_wanted));
        Ok(Self { set, network, lab, snapshot, client, wanted, server, plain, plain_wanted })
    }

    /// One pass of the bare pair.
    fn bare(&mut self) -> anyhow::Result<Took> {
        let (started, before) = (Instant::now(), self.server.cpu() + ours());
        let bytes = self.plain.fetch(&self.lab.runtime, &self.plain_wanted)?;
        let (seconds, cpu) = (started.elapsed().as_secs_f64(), self.server.cpu() + ours() - before);
        Ok(Took { seconds, bytes, cpu, ..Took::default() })
    }

    /// One pass of Larder's client.
    fn larder(&self) -> anyhow::Result<Took> {
        let (started, before) = (Instant::now(), self.lab.cpu() + ours());
        let next = Arc::new(AtomicUsize::new(0));
        let reading = (0..PARALLEL).map(|_| {
            let (client, roster, snapshot) = (self.client.clone(), self.lab.roster(), self.snapshot.clone());
            let (wanted, next) = (Arc::clone(&self.wanted), Arc::clone(&next));
            self.lab.runtime.spawn(async move {
                let mut bytes = 0;
                while let Some((inode, key, range)) = wanted.get(next.fetch_add(1, Relaxed)) {
                    let object = ObjectRef { dataset_uid: UID, snapshot: &snapshot, inode: *inode, key: *key };
                    bytes += client.read(&roster, &object, range.clone()).await?.bytes.len() as u64;
                }
                anyhow::Ok(bytes)
            })
        });
        let mut bytes = 0;
        for read in self.lab.runtime.block_on(futures::future::join_all(reading.collect::<Vec<_>>())) {
            bytes += read??;
        }
        let (seconds, cpu) = (started.elapsed().as_secs_f64(), self.lab.cpu() + ours() - before);
        Ok(Took { seconds, bytes, cpu, ..Took::default() })
    }

    /// In turns, over a link that is as fast as it can be, everything in the page cache.
    fn unshaped(&mut self, quick: bool) -> anyhow::Result<Pair> {
        let passes = if quick { 4 } else { 2 };
        let stage = std::cell::RefCell::new(self);
        let plain = || repeated(passes, || stage.borrow_mut().bare());
        let larder = || repeated(passes, || stage.borrow().larder());
        // Connections, page cache, memory.
        plain()?;
        larder()?;
        Pair::measure(quick, &[Measure::CpuPerGib], plain, larder)
    }

    fn conditions(&self, pair: &Pair) -> String {
        let speed =
            |took: &[Took]| median(&took.iter().map(|t| t.bytes as f64 / (1u64 << 20) as f64 / t.seconds).collect::<Vec<_>>());
        format!(
            "{} files, {} MiB, in the page cache; veth between two network namespaces; {PARALLEL} ranges of 1 MiB at a time; CPU of both processes; {:.0} MiB/s, the bare pair {:.0}; `local` is the bare pair, which neither checks nor keeps what it gets",
            self.set.files(),
            self.set.bytes() >> 20,
            speed(&pair.larder),
            speed(&pair.plain)
        )
    }

    fn shaped(&mut self, quick: bool) -> anyhow::Result<Row> {
        self.network.shape(0, Some(LINK))?;
        let stage = std::cell::RefCell::new(&mut *self);
        let pair = Pair::measure(quick, &[Measure::MibPerSecond], || stage.borrow_mut().bare(), || stage.borrow().larder())?;
        self.network.shape(0, None)?;
        let mbit = |took: &Took| took.bytes as f64 * 8.0 / 1e6 / took.seconds;
        let plain = median(&pair.plain.iter().map(mbit).collect::<Vec<_>>());
        let conditions = format!(
            "{} MiB; tbf of 2 Gbit/s of frames, MTU 1500: 0.957 of it is room for TCP's bytes; the bare pair in turns with it: {plain:.0} Mbit/s; `local` is the link",
            self.set.bytes() >> 20
        );
        Ok(TLS[0].row(vec![LINK as f64 / 1e6], pair.larder.iter().map(mbit).collect(), conditions))
    }

    fn through_the_mount(&mut self, quick: bool, peaks: &mut Peaks) -> anyhow::Result<Row> {
        let mounter = self.lab.mounter(1, false)?;
        self.lab.mount(&mounter, &self.snapshot)?;
        let (kind, names) = (Kind::Sequential, self.set.parts[0].names.clone());
        let pass = Pass { kind, threads: PARALLEL, block: 256 << 10, count: 0, names, to: None };
        let stage = std::cell::RefCell::new(&mut *self);
        let plain = || {
            drop_caches()?;
            stage.borrow_mut().bare()
        };
        let larder = || {
            drop_caches()?;
            let daemons = || stage.borrow().lab.cpu() + mounter.daemon.cpu();
            let before = daemons();
            let took = pass.over(mounter.path(), 1)?;
            Ok(Took { cpu: took.cpu + daemons() - before, ..took })
        };
        let pair = Pair::measure(quick, &[Measure::MibPerSecond], plain, larder)?;
        peaks.mounter(mounter.daemon.peak_memory());
        mounter.stop()?;
        let per_gib = median(&pair.larder.iter().map(|t| t.cpu / (t.bytes as f64 / (1u64 << 30) as f64)).collect::<Vec<_>>());
        let conditions = format!(
            "{} files, {} MiB; veth; page cache dropped for both, so that both read the same disk; no worker on the reader's node; {per_gib:.2} CPU s/GiB, {:.1} cores for {ONE_CLIENT} GiB/s; `local` is the bare pair with {PARALLEL} ranges of 1 MiB at a time",
            self.set.files(),
            self.set.bytes() >> 20,
            per_gib * ONE_CLIENT
        );
        Ok(pair.row(TLS[2], Measure::MibPerSecond, conditions))
    }

    /// Ends everything.
    fn strike(mut self, peaks: &mut Peaks) -> anyhow::Result<()> {
        peaks.worker(self.lab.peak_memory());
        self.server.stop()?;
        self.lab.stop()
    }
}

/// CPU seconds of this process: the client of both.
fn ours() -> f64 {
    cpu::of_process(std::process::id())
}

/// One sample of several passes: CPU seconds are counted in hundredths.
fn repeated(passes: usize, mut pass: impl FnMut() -> anyhow::Result<Took>) -> anyhow::Result<Took> {
    let mut sum = Took::default();
    for _ in 0..passes {
        let took = pass()?;
        sum = Took { seconds: sum.seconds + took.seconds, bytes: sum.bytes + took.bytes, cpu: sum.cpu + took.cpu, ..sum };
    }
    Ok(sum)
}
