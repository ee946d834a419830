//! Rows that nothing measures yet. They are told, so that nobody takes a target that was not looked at for one that holds.

use super::{
    Bound::{self, AtLeast, AtMost},
    Row, Run,
};

const NO_NETWORK: &str = "not measured: no row runs readers on several nodes at once over shaped links yet";
const NO_DLIO: &str = "not measured: no row runs DLIO against peers or a slow origin yet";

#[rustfmt::skip]
const ROWS: [(&str, &str, &str, Bound, &str); 9] = [
    ("unet-peers", "DLIO unet3d, low demand, all bytes on peers: AU minus local's", "points", AtLeast(-0.5), NO_DLIO),
    ("scale-2", "readers on 2 nodes, half of the reads from peers, over 2 x 1 node", "MiB/s", AtLeast(0.95), NO_NETWORK),
    ("scale-4", "readers on 4 nodes", "MiB/s", AtLeast(0.95), NO_NETWORK),
    ("scale-8", "readers on 8 nodes", "MiB/s", AtLeast(0.95), NO_NETWORK),
    ("scale-8-cpu", "CPU seconds per GiB at 8 nodes over 1", "CPU s/GiB", AtMost(1.15), NO_NETWORK),
    ("scale-8-owner", "busiest owner over the mean", "bytes", AtMost(1.10), NO_NETWORK),
    ("story-epoch1", "origin limited to half of the demand: epoch 1 over the origin's pace", "MiB/s", AtLeast(0.95), NO_DLIO),
    ("story-epoch2", "the same: AU of epoch 2 over 98.5", "AU", AtLeast(1.0), NO_DLIO),
    ("scale-skewed", "the row of 8 nodes with ownership skewed on purpose, which must miss", "MiB/s", AtMost(0.95), NO_NETWORK),
];

pub(super) fn run(run: &Run<'_>, rows: &mut Vec<Row>, _: &mut Vec<String>) {
    let wanted = ROWS.iter().filter(|(id, ..)| run.wants(id));
    rows.extend(wanted.map(|(id, test, unit, bound, why)| Row::undecided(id, test, unit, *bound, *why)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_an_id_of_its_own() {
        let mut ids: Vec<_> = ROWS.iter().map(|(id, ..)| id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), ROWS.len());
    }
}
