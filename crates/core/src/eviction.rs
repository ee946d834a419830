//! Which files go when something else needs their room.
//!
//! Within a dataset: copies before the node's own share, and of each kind those that were not used for longest. A file makes room
//! only for what is worth more than it:
//!
//! | wanted | what may go |
//! |---|---|
//! | a copy | copies that were not used for a while |
//! | the share, ahead of reads | copies |
//! | the share, and someone waits for it | copies, then own files that were not used for a while |
//! | by another dataset, as its fair share of the disk ([`crate::shares`]) | copies, then own files |
//!
//! So an epoch over more data than fits does not wash the cache out, file by file, just before each of them is needed.

use std::{collections::BinaryHeap, time::Duration};

/// Why a node keeps a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Keep {
    /// A copy of what another node owns: kept as long as nothing else needs the room.
    Copy,
    /// It belongs to the node's share.
    Own,
}

/// What the room is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A copy.
    Copy,
    /// A file of the share that nobody waits for.
    Share,
    /// A file of the share that is being read.
    Read,
    /// Files of another dataset of the disk, which is entitled to the room.
    Neighbour,
}

/// A complete file that could go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File<K> {
    /// Names it.
    pub id: K,
    /// What it frees.
    pub bytes: u64,
    /// Why it is here.
    pub keep: Keep,
    /// Since its last use.
    pub idle: Duration,
}

/// A file that was used within this time does not make room for one of its own kind: longer than most epochs, so that the files
/// of one epoch do not push each other out.
pub const FRESH: Duration = Duration::from_secs(3600);

fn may_go<K>(file: &File<K>, wanted: Wanted) -> bool {
    match (wanted, file.keep) {
        (Wanted::Neighbour, _) | (Wanted::Share | Wanted::Read, Keep::Copy) => true,
        (Wanted::Copy, Keep::Copy) | (Wanted::Read, Keep::Own) => file.idle >= FRESH,
        (Wanted::Copy | Wanted::Share, Keep::Own) => false,
    }
}

/// The files to remove so that `need` bytes become free, the first to go first; as few as will do. Less than `need` together
/// when there are no more that may go. Keeps no more in memory than it gives back.
pub fn choose<K: Ord + Copy>(files: impl IntoIterator<Item = File<K>>, need: u64, wanted: Wanted) -> Vec<(K, u64)> {
    // The largest is the last to go.
    let (mut chosen, mut bytes) = (BinaryHeap::new(), 0);
    for file in files.into_iter().filter(|f| may_go(f, wanted)) {
        bytes += file.bytes;
        chosen.push((file.keep, std::cmp::Reverse(file.idle), file.id, file.bytes));
        while chosen.peek().is_some_and(|last| bytes - last.3 >= need) {
            bytes -= chosen.pop().map_or(0, |last| last.3);
        }
    }
    chosen.into_sorted_vec().into_iter().map(|(_, _, id, bytes)| (id, bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keep() -> impl Strategy<Value = Keep> {
        prop_oneof![Just(Keep::Copy), Just(Keep::Own)]
    }

    fn wanted() -> impl Strategy<Value = Wanted> {
        prop_oneof![Just(Wanted::Copy), Just(Wanted::Share), Just(Wanted::Read), Just(Wanted::Neighbour)]
    }

    fn files() -> impl Strategy<Value = Vec<File<usize>>> {
        let file = (0..50u64, keep(), 0..7200u64);
        prop::collection::vec(file, 0..40).prop_map(|files| {
            let file = |(id, (bytes, keep, idle))| File { id, bytes, keep, idle: Duration::from_secs(idle) };
            files.into_iter().enumerate().map(file).collect()
        })
    }

    proptest! {
        #[test]
        fn what_goes_is_enough_and_no_more_and_nothing_that_is_worth_more(files in files(), need in 0..600u64, wanted in wanted()) {
            let chosen = choose(files.clone(), need, wanted);
            let bytes: u64 = chosen.iter().map(|c| c.1).sum();
            let may: Vec<_> = files.iter().filter(|f| may_go(f, wanted)).collect();
            prop_assert!(bytes >= need || chosen.len() == may.len(), "enough, or all that may go");
            if let Some((last, others)) = chosen.split_last() {
                prop_assert!(others.iter().map(|c| c.1).sum::<u64>() < need, "{last:?} was not needed");
            }
            let rank = |f: &File<usize>| (f.keep, std::cmp::Reverse(f.idle), f.id);
            let ranks: Vec<_> = chosen.iter().map(|(id, _)| rank(&files[*id])).collect();
            prop_assert!(ranks.is_sorted());
            let stays = may.iter().filter(|f| chosen.iter().all(|c| c.0 != f.id));
            prop_assert!(stays.map(|f| rank(f)).all(|r| ranks.iter().all(|c| *c < r)), "the first in the order go");
            let own_for_less = chosen.iter().any(|c| files[c.0].keep == Keep::Own) && matches!(wanted, Wanted::Copy | Wanted::Share);
            prop_assert!(!own_for_less);
        }
    }
}
