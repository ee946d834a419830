//! One epoch of the job: what its pods say they read, what the daemons say they gave, and whether the two agree.

use anyhow::{Result, ensure};
use serde::Deserialize;

use super::Counters;
use crate::dataset::Manifest;

/// An epoch that is over.
#[derive(Clone, Debug)]
pub(crate) struct Epoch {
    /// From 1.
    pub(crate) number: u32,
    /// Page caches were dropped before it.
    pub(crate) cold: bool,
    /// What the pods say.
    pub(crate) pods: Vec<PodEpoch>,
    /// What the daemons counted meanwhile.
    pub(crate) counted: Counters,
}

/// A pod's line for an epoch.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PodEpoch {
    /// Files that were opened, read and closed.
    pub(crate) files: u64,
    /// Bytes that were read.
    pub(crate) bytes: u64,
    /// How long the epoch took.
    pub(crate) seconds: f64,
}

impl Epoch {
    /// Bytes that the pods asked for.
    pub(crate) fn asked(&self) -> u64 {
        self.pods.iter().map(|pod| pod.bytes).sum()
    }

    /// Bytes that the kernel's page cache answered; less than nothing if it asked for more than the pods.
    pub(crate) fn kernel(&self) -> i64 {
        self.asked().cast_signed() - self.counted.requested.cast_signed()
    }

    /// Whether the figures of pods, mounters, workers and origin fit together, all within 1 %.
    pub(super) fn check(&self, manifest: &Manifest, workers: usize) -> Result<()> {
        let bytes: u64 = manifest.values().map(|entry| entry.size).sum();
        let (asked, counted) = (self.asked(), &self.counted);
        let agree = |one: u64, other: u64| one.abs_diff(other) <= asked / 100;
        for pod in &self.pods {
            let whole = pod.files == manifest.len() as u64 && pod.bytes == bytes;
            ensure!(whole, "a pod read {} files, {} bytes; there are {}, {bytes}", pod.files, pod.bytes, manifest.len());
        }
        let answered = counted.local + counted.peer + counted.origin;
        ensure!(agree(answered, counted.requested), "mounters were asked for {} bytes and gave {answered}", counted.requested);
        ensure!(
            self.kernel() >= -(asked.cast_signed() / 100),
            "mounters were asked for {} bytes, the pods for {asked} only",
            counted.requested
        );
        // Of two answers to one question one is thrown away.
        let over_network = counted.peer + counted.origin;
        ensure!(
            over_network <= counted.served + asked / 100 && counted.served <= over_network + counted.hedged + asked / 100,
            "mounters had {over_network} bytes over the network and asked two nodes for {}, workers gave {}",
            counted.hedged,
            counted.served
        );
        ensure!(
            agree(counted.fetched, counted.sent),
            "workers fetched {} bytes, the origin sent {}",
            counted.fetched,
            counted.sent
        );
        ensure!(counted.sent == 0, "the origin sent {} bytes although everything was cached", counted.sent);
        if self.cold {
            ensure!(
                agree(asked, counted.requested),
                "the pods read {asked} bytes, but only {} reached the mounters although page caches were dropped",
                counted.requested
            );
            // Each file is on one of two nodes: local for the pod there, a peer's for the other, until that one has a copy.
            let first = counted.local + asked / 100 >= bytes && counted.peer > 0;
            ensure!(
                workers != 2 || if self.number == 1 { first } else { counted.peer == 0 && agree(counted.local, asked) },
                "of {asked} bytes {} were local and {} a peer's",
                counted.local,
                counted.peer
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Entry;

    fn cold() -> (Manifest, Epoch) {
        let manifest = Manifest::from([("a".to_owned(), Entry { size: 1_000, sha256: String::new() })]);
        let pods = vec![PodEpoch { files: 1, bytes: 1_000, seconds: 1.0 }; 2];
        let counted = Counters { requested: 2_000, local: 1_000, peer: 1_000, served: 1_000, ..Counters::default() };
        (manifest, Epoch { number: 1, cold: true, pods, counted })
    }

    #[test]
    fn figures_that_agree_are_accepted() {
        let (manifest, epoch) = cold();
        epoch.check(&manifest, 2).unwrap();
        let copied = Counters { requested: 2_000, local: 2_000, ..Counters::default() };
        Epoch { number: 2, counted: copied, ..epoch.clone() }.check(&manifest, 2).unwrap();
        let hedged = Counters { served: 1_030, hedged: 20, ..epoch.counted };
        Epoch { counted: hedged, ..epoch.clone() }.check(&manifest, 2).unwrap();
        let warm = Epoch { cold: false, counted: Counters::default(), ..epoch };
        warm.check(&manifest, 2).unwrap();
        assert_eq!(warm.kernel(), 2_000);
    }

    #[test]
    fn every_figure_that_lies_is_noticed() {
        let lies: [fn(&mut Epoch); 11] = [
            |epoch| epoch.number = 2,
            |epoch| epoch.pods[0].files = 0,
            |epoch| epoch.pods[0].bytes -= 1,
            |epoch| epoch.counted.requested += 30,
            |epoch| epoch.counted.requested -= 30,
            |epoch| epoch.counted.local -= 30,
            |epoch| epoch.counted.peer += 30,
            |epoch| epoch.counted.served = 0,
            |epoch| epoch.counted.served += 30,
            |epoch| epoch.counted.fetched = 30,
            |epoch| epoch.counted.sent = 1,
        ];
        for (number, lie) in lies.iter().enumerate() {
            let (manifest, mut epoch) = cold();
            lie(&mut epoch);
            assert!(epoch.check(&manifest, 2).is_err(), "lie {number}");
        }
    }
}
