//! What is left out of a snapshot.

use larder_core::catalog::Skipped;
use std::collections::BTreeSet;

/// Examples that are kept.
const EXAMPLES: usize = 10;

/// Keys that are left out: all counted, the first few by name told to people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skips {
    /// How many.
    pub count: u64,
    /// Those that come first by name, so that two listings tell the same ones.
    pub examples: BTreeSet<Skipped>,
}

impl Skips {
    pub(crate) fn add(&mut self, key: String, reason: &'static str) {
        self.count += 1;
        if self.examples.len() < EXAMPLES || self.examples.last().is_some_and(|last| key < last.key) {
            self.examples.insert(Skipped { key, reason });
            if self.examples.len() > EXAMPLES {
                self.examples.pop_last();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_counted_and_the_first_by_name_are_kept() {
        let mut skips = Skips::default();
        for i in (0..1000).rev() {
            skips.add(format!("{i:03}"), "why");
        }
        assert_eq!(skips.count, 1000);
        let keys: Vec<_> = skips.examples.iter().map(|s| s.key.as_str()).collect();
        assert_eq!(keys, ["000", "001", "002", "003", "004", "005", "006", "007", "008", "009"]);
    }
}
