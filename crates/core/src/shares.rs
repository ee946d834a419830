//! Which dataset of a disk makes room for which other.
//!
//! Each is entitled to an equal part of what all of them may use; what a quota leaves of a part is divided among the others. What
//! one does not use others may use, until it needs it: then those who have more than their part give it back, those over
//! their quota first, then those that nobody has used for longest.

use std::time::Duration;

/// Percent of a disk that all datasets together leave free, where nobody says otherwise.
pub const FLOOR_PERCENT: u8 = 5;
/// Bytes of a disk that they leave free at least.
pub const FLOOR_BYTES: u64 = 10 << 30;

/// What one dataset has on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Bytes on the disk.
    pub used: u64,
    /// Bytes it may use; 0: no limit.
    pub quota: u64,
    /// Can it give anything, or are all of its files open?
    pub gives: bool,
    /// Since its last use.
    pub idle: Duration,
}

impl Tenant {
    fn limit(&self) -> u64 {
        if self.quota == 0 { u64::MAX } else { self.quota }
    }
}

/// The fair share of each dataset of a disk that has so much room for all of them.
#[must_use]
pub fn shares(room: u64, tenants: &[Tenant]) -> Vec<u64> {
    let mut order: Vec<usize> = (0..tenants.len()).collect();
    order.sort_by_key(|n| tenants[*n].limit());
    let (mut left, mut shares) = (room, vec![0; tenants.len()]);
    for (done, n) in order.iter().enumerate() {
        shares[*n] = (left / (tenants.len() - done) as u64).min(tenants[*n].limit());
        left -= shares[*n];
    }
    shares
}

/// What each has to give so that dataset `of` gets `need` bytes more, or as much of that as its fair share allows. Nobody falls
/// below its own share.
#[must_use]
pub fn claims(room: u64, tenants: &[Tenant], of: usize, need: u64) -> Vec<u64> {
    let (shares, mut claims) = (shares(room, tenants), vec![0; tenants.len()]);
    let mut left = need.min(shares[of].saturating_sub(tenants[of].used));
    let mut order: Vec<usize> = (0..tenants.len()).filter(|n| *n != of && tenants[*n].gives).collect();
    order.sort_by_key(|n| std::cmp::Reverse(tenants[*n].idle));
    let over_quota = |n: usize| tenants[n].used.saturating_sub(tenants[n].limit());
    let over_share = |n: usize| tenants[n].used.saturating_sub(shares[n]);
    for over in [&over_quota as &dyn Fn(usize) -> u64, &over_share] {
        for n in &order {
            let more = over(*n).saturating_sub(claims[*n]).min(left);
            claims[*n] += more;
            left -= more;
        }
    }
    claims
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tenant((used, quota, gives, idle): (u64, u64, bool, u64)) -> Tenant {
        Tenant { used, quota, gives, idle: Duration::from_secs(idle) }
    }

    fn tenants() -> impl Strategy<Value = Vec<Tenant>> {
        let one = (0..400u64, prop_oneof![Just(0), 1..300u64], prop::bool::weighted(0.8), 0..9u64);
        prop::collection::vec(one.prop_map(tenant), 1..8)
    }

    /// Byte by byte, each to the one that has least and may have more.
    fn shares_by_hand(room: u64, tenants: &[Tenant]) -> Vec<u64> {
        let mut shares = vec![0; tenants.len()];
        for _ in 0..room {
            let poorest = (0..tenants.len()).filter(|n| shares[*n] < tenants[*n].limit()).min_by_key(|n| shares[*n]);
            let Some(n) = poorest else { break };
            shares[n] += 1;
        }
        shares
    }

    /// Byte by byte, each from the one that comes first.
    fn claims_by_hand(shares: &[u64], tenants: &[Tenant], of: usize, need: u64) -> Vec<u64> {
        let mut now = tenants.to_vec();
        for _ in 0..need {
            let from = |over: &dyn Fn(usize) -> bool| {
                let givers = (0..now.len()).rev().filter(|n| *n != of && now[*n].gives && over(*n));
                givers.max_by_key(|n| now[*n].idle)
            };
            let giver = from(&|n| now[n].used > now[n].limit()).or_else(|| from(&|n| now[n].used > shares[n]));
            let Some(n) = giver.filter(|_| now[of].used < shares[of]) else { break };
            now[n].used -= 1;
            now[of].used += 1;
        }
        tenants.iter().zip(&now).map(|(before, now)| before.used.saturating_sub(now.used)).collect()
    }

    proptest! {
        #[test]
        fn shares_are_what_is_dealt_out_byte_by_byte(tenants in tenants(), room in 0..1000u64) {
            let (shares, by_hand) = (shares(room, &tenants), shares_by_hand(room, &tenants));
            prop_assert_eq!(shares.iter().sum::<u64>(), by_hand.iter().sum::<u64>());
            // Who gets the bytes that cannot be divided does not matter.
            prop_assert!(shares.iter().zip(&by_hand).all(|(a, b)| a.abs_diff(*b) <= 1), "{:?} {:?}", shares, by_hand);
        }

        #[test]
        fn claims_are_what_is_taken_byte_by_byte(tenants in tenants(), room in 0..1000u64, need in 0..300u64) {
            prop_assert_eq!(claims(room, &tenants, 0, need), claims_by_hand(&shares(room, &tenants), &tenants, 0, need));
        }

        #[test]
        fn on_a_full_disk_whoever_is_below_its_share_gets_it(tenants in tenants(), need in 0..300u64) {
            let willing: Vec<_> = tenants.into_iter().map(|t| Tenant { gives: true, ..t }).collect();
            let room = willing.iter().map(|t| t.used).sum();
            let entitled = shares(room, &willing)[0].saturating_sub(willing[0].used);
            prop_assert_eq!(claims(room, &willing, 0, need).iter().sum::<u64>(), need.min(entitled));
        }
    }

    #[test]
    fn who_is_over_its_quota_gives_first_and_who_cannot_gives_nothing() {
        let mut tenants = [(0, 0, true, 0), (70, 0, true, 9), (30, 20, true, 1)].map(tenant);
        assert_eq!(claims(100, &tenants, 0, 8), [0, 0, 8]);
        assert_eq!(claims(100, &tenants, 0, 25), [0, 15, 10]);
        assert_eq!(claims(100, &tenants, 1, 1), [0; 3], "has more than its share already");
        tenants[2].gives = false;
        assert_eq!(claims(100, &tenants, 0, 8), [0, 8, 0]);
    }
}
