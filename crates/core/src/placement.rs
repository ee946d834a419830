//! Which node owns an object, or a stripe of a large one: weighted rendezvous hashing.
//!
//! Everyone computes the same order from the same member list; there is no master to ask. When a member comes or goes,
//! only stripes that it gains or loses move.
//!
//! ```text
//! object, not larger than a stripe      [ 0 ]                  placed by its object key
//! larger object             [ 0 ][ 1 ][ 2 ][ 3 ]    0: by its object key, n: by a key of (object key, n)
//! ```

use crate::key::ObjectKey;
use serde::{Deserialize, Serialize};
use std::{cmp::Ordering, ops::Range};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The member list of one dataset; written by the operator only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Members {
    /// Counts changes.
    pub generation: u64,
    /// Sorted by node.
    pub members: Vec<Member>,
    /// Files larger than this are placed in stripes of this many bytes; 0: all files are placed whole.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stripe_bytes: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What a place is found by: that of an object's first stripe is its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacementKey([u8; 32]);

impl PlacementKey {
    /// Of a stripe of an object.
    #[must_use]
    pub fn of(key: &ObjectKey, stripe: u64) -> Self {
        if stripe == 0 {
            return Self(*key.as_bytes());
        }
        let mut hash = blake3::Hasher::new_derive_key("larder 2026 stripe key v1");
        hash.update(key.as_bytes()).update(&stripe.to_le_bytes());
        Self(*hash.finalize().as_bytes())
    }
}

/// One node that owns a share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Name of the Node object. Never a pod or an address: a worker that comes back finds its share valid.
    pub node: String,
    /// Relative share.
    pub weight: u32,
    /// Generation of the list that this member came with, or stayed with after all when it was leaving; tells who owned an object
    /// before it.
    #[serde(default)]
    pub since: u64,
    /// Still serves, owns nothing new.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
}

impl Members {
    /// Of a list that says no `version`, or a lower one, everything is known here.
    pub const FORMAT: u32 = 1;

    /// Where a byte of an object is placed. The object's size does not matter: no byte of one that is placed whole lies behind its
    /// first stripe.
    #[must_use]
    pub fn place(&self, key: &ObjectKey, offset: u64) -> PlacementKey {
        PlacementKey::of(key, offset.checked_div(self.stripe_bytes).unwrap_or(0))
    }

    /// Is an object of this size placed in stripes?
    #[must_use]
    pub fn is_striped(&self, size: u64) -> bool {
        self.stripe_bytes > 0 && size > self.stripe_bytes
    }

    /// Does the other list place everything where this one does?
    #[must_use]
    pub fn places_like(&self, other: &Self) -> bool {
        self.members == other.members && self.stripe_bytes == other.stripe_bytes
    }

    /// The stripe that a byte lies in, of an object that goes on behind it.
    #[must_use]
    pub fn stripe_of(&self, offset: u64) -> Range<u64> {
        let start = offset - offset.checked_rem(self.stripe_bytes).unwrap_or(offset);
        start..if self.stripe_bytes == 0 { u64::MAX } else { start.saturating_add(self.stripe_bytes) }
    }

    /// The stripes of an object of this size; all of it, if it is placed whole.
    pub fn stripes(&self, size: u64) -> impl Iterator<Item = Range<u64>> + use<> {
        let stripe = if self.is_striped(size) { self.stripe_bytes } else { size.max(1) };
        (0..size.max(1))
            .step_by(usize::try_from(stripe).unwrap_or(usize::MAX))
            .map(move |start| start..size.min(start + stripe))
    }

    /// All members, the owner first, then those who stand in for it, in the order everyone agrees on.
    /// Members that are leaving come last.
    #[must_use]
    pub fn order(&self, key: &PlacementKey) -> Vec<&Member> {
        let mut places: Vec<Place<'_>> = self.members.iter().map(|m| Place::of(key, m)).collect();
        places.sort_by(Place::cmp);
        places.into_iter().map(|p| p.member).collect()
    }

    /// Is the node among the first so many of the order: the owner, or one that keeps a replica?
    #[must_use]
    pub fn holds(&self, key: &PlacementKey, node: &str, replicas: u32) -> bool {
        let Some(own) = self.members.iter().find(|m| m.node == node).map(|m| Place::of(key, m)) else { return false };
        let before = self.members.iter().filter(|m| Place::of(key, m).cmp(&own).is_lt()).count();
        before < replicas as usize
    }

    /// Other members than `node` that owned the object before its present owner came, the last one first: whoever was the owner
    /// of an earlier list has joined before everyone that precedes it in the order. In a list that never changed there are none.
    /// Members that are leaving may have owned anything until a moment ago.
    #[must_use]
    pub fn former_owners(&self, key: &PlacementKey, node: &str) -> Vec<&Member> {
        let mut oldest = u64::MAX;
        let mut owned = |m: &&Member| {
            let first_of_a_list = m.since < oldest;
            oldest = oldest.min(m.since);
            first_of_a_list || m.leaving
        };
        self.order(key)
            .into_iter()
            .enumerate()
            .filter(|(place, m)| owned(m) && *place > 0 && m.node != node)
            .map(|(_, m)| m)
            .collect()
    }

    /// The owner, if there is any member at all.
    #[must_use]
    pub fn owner(&self, key: &PlacementKey) -> Option<&Member> {
        self.members.iter().map(|m| Place::of(key, m)).min_by(Place::cmp).map(|p| p.member)
    }
}

/// A member's place in the order of an object.
struct Place<'a> {
    score: f64,
    member: &'a Member,
}

impl<'a> Place<'a> {
    fn of(key: &PlacementKey, member: &'a Member) -> Self {
        Self { score: score(&key.0, &member.node, member.weight), member }
    }

    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b) = (self.member, other.member);
        a.leaving.cmp(&b.leaving).then(self.score.total_cmp(&other.score)).then(a.node.cmp(&b.node))
    }
}

/// Of one of several places for what has this key; the smallest wins. `-ln(u)/w` with u uniform in (0,1) gives each place a share in
/// proportion to its weight.
#[must_use]
pub fn score(key: &[u8; 32], place: &str, weight: u32) -> f64 {
    let seed = xxh3_64_with_seed(place.as_bytes(), 0);
    let h = xxh3_64_with_seed(key, seed);
    // 53 bits, the mantissa of a double, moved off zero.
    let u = ((h >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -u.ln() / f64::from(weight.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn members(weights: &[u32]) -> Members {
        Members {
            generation: 1,
            members: weights
                .iter()
                .enumerate()
                .map(|(i, w)| Member { node: format!("gpu-{i}"), weight: *w, since: 1, leaving: false })
                .collect(),
            stripe_bytes: 0,
        }
    }

    fn objects(n: u64) -> impl Iterator<Item = ObjectKey> {
        (0..n).map(|i| ObjectKey::new("s3://b/", "p", "v", i))
    }

    fn keys(n: u64) -> impl Iterator<Item = PlacementKey> {
        objects(n).map(|key| PlacementKey::of(&key, 0))
    }

    /// Of all stripes of a huge file.
    fn stripes(of: &Members, size: u64) -> Vec<PlacementKey> {
        let key = ObjectKey::new("s3://b/", "huge", "v", size);
        of.stripes(size).map(|stripe| of.place(&key, stripe.start)).collect()
    }

    fn striped(weights: &[u32]) -> Members {
        Members { stripe_bytes: 1 << 30, ..members(weights) }
    }

    #[test]
    fn the_stripes_of_one_huge_file_follow_the_weights() {
        let m = striped(&[1, 1, 2]);
        let mut count = [0u32; 3];
        for k in stripes(&m, 20_000 << 30) {
            count[m.owner(&k).unwrap().node[4..].parse::<usize>().unwrap()] += 1;
        }
        assert_eq!(count.iter().sum::<u32>(), 20_000);
        for (n, share) in count.iter().zip([0.25, 0.25, 0.5]) {
            assert!((f64::from(*n) / 20_000.0 - share).abs() < 0.02, "{count:?}");
        }
    }

    #[test]
    fn files_that_are_not_striped_and_first_stripes_are_where_they_were() {
        let (m, whole) = (striped(&[1, 2, 1]), members(&[1, 2, 1]));
        for key in objects(200) {
            for offset in [0, 1, (1 << 30) - 1] {
                assert_eq!(m.place(&key, offset), whole.place(&key, 0));
            }
            assert_eq!(whole.place(&key, 1 << 50), whole.place(&key, 0), "a list without stripes has none");
            assert_ne!(m.place(&key, 1 << 30), m.place(&key, 0));
            assert_ne!(m.place(&key, 1 << 30), m.place(&key, 2 << 30));
            assert_eq!(m.place(&key, 1 << 30), m.place(&key, (2 << 30) - 1));
        }
    }

    #[test]
    fn stripes_are_every_byte_once() {
        for (stripe, size) in [(0, 0), (0, 9), (4, 0), (4, 1), (4, 4), (4, 5), (4, 8), (4, 9), (1 << 30, 1 << 40)] {
            let m = Members { stripe_bytes: stripe, ..Members::default() };
            let all: Vec<_> = m.stripes(size).collect();
            assert_eq!(all.len() > 1, m.is_striped(size));
            assert_eq!((all[0].start, all[all.len() - 1].end), (0, size), "{stripe} {size}");
            assert!(all.iter().all(|s| (s.start..s.end).step_by(1 << 20).all(|at| m.stripe_of(at).start == s.start)));
            assert!(all.iter().all(|s| s.end == size || m.stripe_of(s.start).end == s.end));
            assert!(all.windows(2).all(|two| two[0].end == two[1].start && two[0].end % stripe == 0));
        }
    }

    #[test]
    fn shares_follow_the_weights() {
        let m = members(&[1, 1, 2]);
        let mut count = [0u32; 3];
        for k in keys(20_000) {
            let owner = m.owner(&k).unwrap();
            count[owner.node[4..].parse::<usize>().unwrap()] += 1;
        }
        for (n, share) in count.iter().zip([0.25, 0.25, 0.5]) {
            assert!((f64::from(*n) / 20_000.0 - share).abs() < 0.02, "{count:?}");
        }
    }

    #[test]
    fn a_new_member_takes_objects_only_for_itself() {
        let (before, after) = (members(&[1, 1, 1]), members(&[1, 1, 1, 1]));
        for k in keys(5_000) {
            let (a, b) = (before.owner(&k).unwrap(), after.owner(&k).unwrap());
            assert!(a.node == b.node || b.node == "gpu-3");
        }
    }

    #[test]
    fn former_owners_are_those_of_the_lists_before() {
        // gpu-0 and gpu-1 began, gpu-2 and gpu-3 came later, one after the other.
        let mut now = members(&[1, 1, 1, 1]);
        (now.members[2].since, now.members[3].since) = (2, 3);
        let list = |generation: u64| Members {
            generation,
            members: now.members.iter().filter(|m| m.since <= generation).cloned().collect(),
            stripe_bytes: 0,
        };
        let mut moved = 0;
        for k in keys(2_000) {
            let owner = now.owner(&k).unwrap();
            let mut wanted: Vec<String> = vec![];
            for generation in [2, 1] {
                let before = list(generation).owner(&k).unwrap().node.clone();
                if before != owner.node && !wanted.contains(&before) {
                    wanted.push(before);
                }
            }
            let former = now.former_owners(&k, &owner.node);
            assert_eq!(former.iter().map(|m| m.node.clone()).collect::<Vec<_>>(), wanted);
            assert!(former.iter().all(|m| now.former_owners(&k, &m.node).len() < former.len()), "nobody asks itself");
            moved += usize::from(!former.is_empty());
        }
        assert!((800..1_200).contains(&moved), "{moved}");
        assert!(keys(200).all(|k| members(&[1, 1, 1]).former_owners(&k, "gpu-0").is_empty()));
    }

    #[test]
    fn replicas_are_on_the_first_of_the_order_and_a_new_member_moves_no_other() {
        let (m, more) = (members(&[1, 1, 2, 1]), members(&[1, 1, 2, 1, 1]));
        for k in keys(500) {
            for replicas in [1, 2, u32::MAX] {
                let holders: Vec<&str> =
                    m.members.iter().map(|m| m.node.as_str()).filter(|node| m.holds(&k, node, replicas)).collect();
                let order = m.order(&k);
                assert_eq!(holders.len(), order.len().min(replicas as usize));
                assert!(order.iter().take(holders.len()).all(|m| holders.contains(&m.node.as_str())));
                // At most one holder loses it, and to the new one.
                let lost = holders.iter().filter(|node| !more.holds(&k, node, replicas)).count();
                assert_eq!(lost, usize::from(replicas != u32::MAX && more.holds(&k, "gpu-4", replicas)));
            }
        }
        assert!(!m.holds(&keys(1).next().unwrap(), "stranger", 3));
    }

    #[test]
    fn the_owner_is_the_first_of_the_order_and_leavers_are_last() {
        let mut m = members(&[1, 1, 1]);
        m.members[0].leaving = true;
        for k in keys(500) {
            let order = m.order(&k);
            assert_eq!(order[0], m.owner(&k).unwrap());
            assert_eq!(order[2].node, "gpu-0");
        }
    }

    #[derive(Clone, Debug)]
    enum Change {
        Join(usize),
        Leave(usize),
        /// It is asked to leave, or stays after all.
        Leaving(usize, bool),
        Weight(usize, u32),
    }

    fn change() -> impl Strategy<Value = Change> {
        let node = 0..8usize;
        prop_oneof![
            4 => node.clone().prop_map(Change::Join),
            3 => node.clone().prop_map(Change::Leave),
            2 => (node.clone(), any::<bool>()).prop_map(|(node, is)| Change::Leaving(node, is)),
            2 => (node, 1..5u32).prop_map(|(node, weight)| Change::Weight(node, weight)),
        ]
    }

    /// As the operator writes it next. A node that is back has the weight that it had.
    fn changed(now: &Members, change: &Change, weights: &mut [u32; 8]) -> Members {
        let mut next = Members { generation: now.generation + 1, ..now.clone() };
        let name = |node: &usize| format!("gpu-{node}");
        match change {
            Change::Join(node) if now.members.iter().all(|m| m.node != name(node)) => {
                let (weight, since) = (weights[*node], next.generation);
                next.members.push(Member { node: name(node), weight, since, leaving: false });
            }
            Change::Join(_) => {}
            Change::Leave(node) => next.members.retain(|m| m.node != name(node)),
            Change::Leaving(node, is) => {
                let generation = next.generation;
                for m in next.members.iter_mut().filter(|m| m.node == name(node) && m.leaving != *is) {
                    (m.leaving, m.since) = (*is, if *is { m.since } else { generation });
                }
            }
            Change::Weight(node, weight) => {
                weights[*node] = *weight;
                next.members.iter_mut().filter(|m| m.node == name(node)).for_each(|m| m.weight = *weight);
            }
        }
        next.members.sort_by(|a, b| a.node.cmp(&b.node));
        next
    }

    proptest! {
        #[test]
        fn whatever_members_do_only_what_must_moves_and_who_had_it_is_known(changes in prop::collection::vec(change(), 1..25)) {
            let (mut now, mut weights) = (striped(&[1, 1]), [1; 8]);
            // Objects, and the stripes of one.
            let keys = |()| keys(60).chain(stripes(&striped(&[]), 60 << 30));
            let mut lists = vec![now.clone()];
            for change in &changes {
                let next = changed(&now, change, &mut weights);
                let find = |list: &Members, node: &str| list.members.iter().find(|m| m.node == node).cloned();
                for k in keys(()) {
                    let (before, after) = (now.owner(&k).cloned(), next.owner(&k).cloned());
                    prop_assert_eq!(after.is_none(), next.members.is_empty(), "somebody can always be asked");
                    let turned: Members = Members { members: next.members.iter().rev().cloned().collect(), ..next.clone() };
                    prop_assert_eq!(turned.order(&k), next.order(&k), "all agree, in whatever order they have the list");
                    let (Some(before), Some(after)) = (before, after) else { continue };
                    if before.node != after.node {
                        let (lost, won) = (find(&next, &before.node), find(&now, &after.node));
                        let gives = lost.is_none_or(|m| (m.leaving && !before.leaving) || m.weight < before.weight);
                        let takes = won.is_none_or(|m| (m.leaving && !after.leaving) || m.weight < after.weight);
                        prop_assert!(gives || takes, "{before:?} -> {after:?}");
                    }
                }
                lists.push(next.clone());
                now = next;
            }
            let weighed = changes.iter().any(|change| matches!(change, Change::Weight(..)));
            for k in keys(()) {
                // Whoever owned it in any list and has been a member ever since has it, and is asked before the origin is.
                for list in lists.iter().filter(|_| !weighed) {
                    let Some(then) = list.owner(&k).filter(|then| now.members.iter().any(|m| (&m.node, m.since) == (&then.node, then.since))) else { continue };
                    let owner = now.owner(&k).map(|m| m.node.as_str()).unwrap_or_default();
                    let former = now.former_owners(&k, owner);
                    prop_assert!(then.node == owner || former.iter().any(|m| m.node == then.node), "{} is not asked for what it has: {former:?}", then.node);
                }
            }
        }

        #[test]
        fn a_node_that_comes_back_owns_what_it_had(weights in prop::collection::vec(1..5u32, 1..8), which: prop::sample::Index) {
            let before = members(&weights);
            let mut without = before.clone();
            let node = without.members.remove(which.index(weights.len()));
            let mut after = without.clone();
            after.members.push(Member { since: 3, ..node.clone() });
            for k in keys(60) {
                let owner = |list: &Members| list.owner(&k).map(|m| m.node.clone());
                prop_assert_eq!(owner(&before), owner(&after));
                prop_assert!(owner(&before) == owner(&without) || owner(&before).as_ref() == Some(&node.node));
            }
        }
    }
}
