//! Readers on more and more nodes of one cluster: does each get as much as the first one did?
//!
//! ```text
//! 8 nodes, each with its eighth of the files ── links of one width ── switch
//!      └─ readers on 1, 2, 4, 8 of them: every other read is of the own share, the rest of anyone else's
//!      └─ skewed on purpose: the rest is all of one node's share
//! ```

use super::{AtLeast, AtMost, Peaks, Row, Run, Spec, folder, spec};
use crate::{
    data::{Set, Shape},
    experiment::NARROW,
    lab::{Lab, Mounter, Network, Place},
    reader::{Kind, Pass},
    rows::Verdict,
    stats::median,
};
use larder_proto::control::v1 as pb;
use std::{fs, path::PathBuf};

pub(super) const ROWS: [Spec; 6] = [
    spec("scale-2", "readers on 2 nodes, half of the reads from peers, over 2 x 1 node", "MiB/s", AtLeast(0.95)),
    spec("scale-4", "readers on 4 nodes, over 4 x 1 node", "MiB/s", AtLeast(0.95)),
    EIGHT,
    spec("scale-8-cpu", "CPU seconds per GiB with readers on 8 nodes, over 1", "CPU s/GiB", AtMost(1.15)),
    spec("scale-8-owner", "bytes that the busiest owner gave to readers on 8 nodes, over the mean", "MiB", AtMost(1.10)),
    spec("scale-skewed", "the row of 8 nodes with ownership skewed on purpose, which must miss", "MiB/s", AtMost(0.95)),
];
const EIGHT: Spec = spec("scale-8", "readers on 8 nodes, over 8 x 1 node", "MiB/s", AtLeast(0.95));
const NODES: u8 = 8;
/// Nodes with readers.
const STEPS: [u8; 4] = [1, 2, 4, NODES];
/// Of each node.
const READERS: usize = 16;
/// Of one sample.
const SECONDS: usize = 4;
/// Rounds, at least and at most: one is 20 s.
const ROUNDS: (usize, usize) = (5, 9);
/// Samples without a limit.
const CALIBRATION: u64 = 3;
/// Of what the machine moves through links without a limit: what readers on all nodes ask of those with one.
const DEMAND: f64 = 0.65;
/// A node's link lets so much more out than in: owners are not asked evenly at every moment, nor own exactly the same. Links that are
/// full both ways would show that and nothing else.
const HEADROOM: f64 = 1.25;
/// Of a link's bits those that are bytes of files: without Ethernet, IP and TCP.
pub(super) const PAYLOAD: f64 = 0.957;
/// So many that shares are even: each owner's is 1,000 ± 30.
const FILES: Shape = Shape { name: "files", files: 8_000, content: true, size: 256 << 10, per_folder: 500 };
pub(super) const MIB: f64 = (1u64 << 20) as f64;

pub(super) fn measure(run: &Run<'_>, _: &mut Peaks) -> anyhow::Result<Vec<Row>> {
    let network = Network::switch(NODES)?;
    let cluster = Cluster::start(run, &network)?;
    // The first pass connects everyone.
    let unshaped =
        (0..=CALIBRATION).map(|seed| cluster.read(NODES, &cluster.even, seed)).collect::<anyhow::Result<Vec<_>>>()?;
    let unshaped = median(&speeds(&unshaped[1..]));
    // Half of a node's bytes come over its link.
    let link = DEMAND * unshaped / f64::from(NODES) / 2.0 * MIB * 8.0 / PAYLOAD;
    for n in 0..NODES {
        network.shape_into(n, link as u64)?;
        network.shape(n, Some((link * HEADROOM) as u64))?;
    }
    let mut samples = Samples::default();
    for round in 0..ROUNDS.1 {
        samples.round(&cluster, round as u64)?;
        if round + 1 >= ROUNDS.0 && samples.are_known() {
            break;
        }
    }
    let conditions = format!(
        "{NODES} workers and mounters, TLS, each node in a network namespace; {} files of {} KiB; {READERS} readers a node for {SECONDS} s, nothing in the page cache of the mount; links of {:.0} Mbit/s in, {HEADROOM} of it out, so that 8 x 1 node is {:.2} of the {unshaped:.0} MiB/s that 8 nodes move without a limit",
        FILES.files,
        FILES.size >> 10,
        link / 1e6,
        f64::from(NODES) * median(&speeds(&samples.steps[0])) / unshaped,
    );
    cluster.stop()?;
    Ok(samples.rows(&conditions))
}

/// The nodes, with everything on their disks.
struct Cluster {
    lab: Lab,
    mounters: Vec<Mounter>,
    /// What the readers of each node read.
    even: Vec<PathBuf>,
    skewed: Vec<PathBuf>,
}

impl Cluster {
    fn start(run: &Run<'_>, network: &Network) -> anyhow::Result<Self> {
        let set = Set::make(&run.data, "scale", &[FILES])?;
        let lab = Lab::start(run, &Place::Behind(network), true)?;
        let source = folder(&set.root);
        let snapshot = lab.list(&source)?;
        lab.preload(&source, &snapshot)?;
        let shares = shares(&lab, &snapshot)?;
        let largest = shares.iter().map(Vec::len).max().unwrap_or_default() as u64 * FILES.size;
        // No room for copies of what is read from peers: the next time it is read from them again.
        lab.order(&pb::Config {
            generation: "full".to_owned(),
            source: Some(source),
            snapshot: snapshot.clone(),
            preload: true,
            quota_bytes: largest,
            ..pb::Config::default()
        })?;
        let mounters = (0..NODES).map(|n| lab.mounter(n, true)).collect::<anyhow::Result<Vec<_>>>()?;
        let all: Vec<usize> = (0..shares.len()).collect();
        let list = |name: &str, from: &dyn Fn(usize) -> Vec<usize>| -> anyhow::Result<Vec<PathBuf>> {
            let write = |node: usize| {
                let path = run.data.join(format!("{name}-{node}.names"));
                fs::write(&path, names(&shares, node, &from(node)).join("\n"))?;
                Ok(path)
            };
            all.iter().map(|node| write(*node)).collect()
        };
        let even = list("even", &|_| all.clone())?;
        // One owner for everyone; it has to ask somebody else itself.
        let skewed = list("skewed", &|node| vec![usize::from(node == 0)])?;
        let this = Self { lab, mounters, even, skewed };
        this.mounters.iter().try_for_each(|mounter| this.lab.mount(mounter, &snapshot))?;
        // Names and sizes are asked for once.
        let walk = Pass { kind: Kind::Walk, threads: 1, block: 0, count: 0, names: set.parts[0].names.clone(), to: None };
        this.mounters.iter().try_for_each(|mounter| walk.over(mounter.path(), 1).map(drop))?;
        Ok(this)
    }

    /// Reads on the first nodes at once.
    fn read(&self, nodes: u8, names: &[PathBuf], seed: u64) -> anyhow::Result<Sample> {
        let cpu = || self.lab.cpu() + self.mounters.iter().map(|m| m.daemon.cpu()).sum::<f64>();
        let (before, served_before) = (cpu(), self.lab.served()?);
        let mut sample = std::thread::scope(|scope| {
            // Each in an order of its own: else all of them ask the same owner at the same time.
            let reader = |((mounter, names), n): ((&Mounter, &PathBuf), u64)| {
                let (root, names) = (mounter.path().to_owned(), names.clone());
                let pass = Pass { kind: Kind::Again, threads: READERS, block: 0, count: SECONDS, names, to: None };
                scope.spawn(move || pass.over(&root, seed * u64::from(NODES) + n))
            };
            let readers: Vec<_> = self.mounters.iter().zip(names).zip(0..u64::from(nodes)).map(reader).collect();
            readers.into_iter().try_fold(Sample::default(), |sum, reader| {
                let took = reader.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
                anyhow::Ok(Sample {
                    mib_per_second: sum.mib_per_second + took.bytes as f64 / MIB / took.seconds,
                    bytes: sum.bytes + took.bytes,
                    cpu: sum.cpu + took.cpu,
                    served: Vec::new(),
                })
            })
        })?;
        sample.cpu += cpu() - before;
        sample.served = self.lab.served()?.iter().zip(served_before).map(|(now, before)| now - before).collect();
        Ok(sample)
    }

    fn stop(self) -> anyhow::Result<()> {
        self.mounters.into_iter().try_for_each(Mounter::stop)?;
        self.lab.stop()
    }
}

/// The files that each node owns.
fn shares(lab: &Lab, snapshot: &str) -> anyhow::Result<Vec<Vec<String>>> {
    let (catalog, members) = (lab.catalog(snapshot)?, &lab.roster().members);
    let mut shares = vec![Vec::new(); members.members.len()];
    for index in catalog.file_indices() {
        let index = index?;
        let owner = members.owner(&members.place(&catalog.object_key(index)?, 0));
        let owner = owner.and_then(|owner| members.members.iter().position(|m| m.node == owner.node));
        shares[owner.unwrap_or_default()].push(catalog.path(index)?);
    }
    Ok(shares)
}

/// What a node reads: as often of its own share as of what these owners have.
fn names(shares: &[Vec<String>], node: usize, from: &[usize]) -> Vec<String> {
    let others: Vec<&String> = from.iter().filter(|owner| **owner != node).flat_map(|owner| &shares[*owner]).collect();
    let own = shares[node].iter().cycle().take(others.len());
    own.chain(others.iter().copied()).cloned().collect()
}

/// Readers on some nodes for a while.
#[derive(Clone, Debug, Default)]
struct Sample {
    /// The sum of what each node got.
    mib_per_second: f64,
    bytes: u64,
    /// Of readers, mounters and workers, idle ones too.
    cpu: f64,
    /// Bytes that each owner gave to other nodes.
    served: Vec<u64>,
}

impl Sample {
    fn cpu_per_gib(&self) -> f64 {
        self.cpu * 1024.0 / (self.bytes as f64 / MIB)
    }

    fn busiest(&self) -> f64 {
        self.served.iter().max().map_or(f64::NAN, |most| *most as f64 / MIB)
    }

    fn mean(&self) -> f64 {
        self.peers() / self.served.len() as f64
    }

    /// MiB that came from other nodes.
    fn peers(&self) -> f64 {
        self.served.iter().sum::<u64>() as f64 / MIB
    }
}

fn of(samples: &[Sample], value: impl Fn(&Sample) -> f64) -> Vec<f64> {
    samples.iter().map(value).collect()
}

fn speeds(samples: &[Sample]) -> Vec<f64> {
    of(samples, |s| s.mib_per_second)
}

/// By round.
#[derive(Default)]
struct Samples {
    steps: [Vec<Sample>; STEPS.len()],
    skewed: Vec<Sample>,
}

impl Samples {
    /// The order changes every round.
    fn round(&mut self, cluster: &Cluster, seed: u64) -> anyhow::Result<()> {
        let mut order: Vec<usize> = (0..=STEPS.len()).collect();
        order.rotate_left(seed as usize % STEPS.len());
        for which in order {
            match STEPS.get(which) {
                Some(nodes) => self.steps[which].push(cluster.read(*nodes, &cluster.even, seed)?),
                None => self.skewed.push(cluster.read(NODES, &cluster.skewed, seed)?),
            }
        }
        Ok(())
    }

    fn are_known(&self) -> bool {
        self.rows("").iter().all(|row| row.ratio.is_some_and(|ratio| ratio.uncertainty() <= NARROW))
    }

    fn rows(&self, conditions: &str) -> Vec<Row> {
        let [one, .., eight] = &self.steps;
        let linear = |spec: Spec, nodes: u8, many: &[Sample]| {
            let shares = of(many, |s| s.peers() / (s.bytes as f64 / MIB));
            let about = format!("{conditions}; {:.2} of the bytes from peers", median(&shares));
            spec.row(of(one, |s| s.mib_per_second * f64::from(nodes)), speeds(many), about)
        };
        let owner = |spec: Spec, many: &[Sample]| {
            let about = format!("{conditions}; as the workers' metrics say; `local` is the mean of the owners");
            spec.row(of(many, Sample::mean), of(many, Sample::busiest), about)
        };
        let [two, four, eight_spec, cpu, busiest, skewed] = ROWS;
        let steps = [(two, 1), (four, 2), (eight_spec, 3)].map(|(spec, step)| linear(spec, STEPS[step], &self.steps[step]));
        let cpu = cpu.row(of(one, Sample::cpu_per_gib), of(eight, Sample::cpu_per_gib), conditions.to_owned());
        let misses = must_miss(skewed, linear(EIGHT, NODES, &self.skewed), &owner(busiest, &self.skewed));
        steps.into_iter().chain([cpu, owner(busiest, eight), misses]).collect()
    }
}

/// The row that holds when the other one, measured with ownership skewed, misses.
fn must_miss(spec: Spec, linear: Row, owner: &Row) -> Row {
    let busiest = owner.ratio.map_or(f64::NAN, |ratio| ratio.value);
    let conditions = format!(
        "{}; from peers all of one owner's, and that one's own of a second; busiest owner {busiest:.2} of the mean",
        linear.conditions
    );
    let verdict = match linear.verdict {
        Verdict::Holds => Verdict::Misses,
        Verdict::Misses => Verdict::Holds,
        Verdict::Undecided => Verdict::Undecided,
    };
    Row { verdict, ratio: linear.ratio, samples: linear.samples, ..spec.undecided(conditions) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes that get so much each, from owners that give so much.
    fn sample(nodes: u8, each: f64, served: [u64; 8]) -> Sample {
        let (bytes, served) = (u64::from(nodes) << 30, served.map(|mib| mib << 20).to_vec());
        Sample { mib_per_second: f64::from(nodes) * each, bytes, cpu: f64::from(nodes), served }
    }

    fn verdicts(samples: &Samples) -> Vec<(&'static str, Verdict)> {
        samples.rows("").iter().map(|row| (row.id, row.verdict)).collect()
    }

    #[test]
    fn a_cluster_scales_when_every_node_gets_what_one_got() {
        let even = |nodes: u8, each| vec![sample(nodes, each, [100; 8]); 5];
        let skewed = vec![sample(8, 25.0, [400, 400, 0, 0, 0, 0, 0, 0]); 5];
        let steps = [even(1, 100.0), even(2, 100.0), even(4, 94.0), even(8, 96.0)];
        let samples = Samples { steps, skewed: skewed.clone() };
        let [holds, misses] = [Verdict::Holds, Verdict::Misses];
        assert_eq!(
            verdicts(&samples),
            [
                ("scale-2", holds),
                ("scale-4", misses),
                ("scale-8", holds),
                ("scale-8-cpu", holds),
                ("scale-8-owner", holds),
                ("scale-skewed", holds),
            ]
        );
        // Skewed ownership where it must not be.
        let [one, two, four, eight] = samples.steps;
        let samples = Samples { steps: [one, two, four, skewed], skewed: eight };
        let found = verdicts(&samples);
        assert_eq!(
            found[2..],
            [("scale-8", misses), ("scale-8-cpu", holds), ("scale-8-owner", misses), ("scale-skewed", misses)]
        );
        assert_eq!(samples.rows("")[4].ratio.unwrap().value, 4.0);
    }

    #[test]
    fn half_of_what_a_node_reads_is_its_own() {
        let shares: Vec<Vec<String>> = (0..3).map(|owner| (0..4).map(|i| format!("{owner}/{i}")).collect()).collect();
        let count = |names: &[String], owner: &str| names.iter().filter(|name| name.starts_with(owner)).count();
        let even = names(&shares, 0, &[0, 1, 2]);
        assert_eq!(["0", "1", "2"].map(|owner| count(&even, owner)), [8, 4, 4]);
        let skewed = names(&shares, 1, &[0]);
        assert_eq!(["0", "1", "2"].map(|owner| count(&skewed, owner)), [4, 4, 0]);
    }
}
