//! What is held, what was removed, and how both stand with the keeper.

use super::Item;
use crate::store::now;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// A removal is remembered for this long after the keeper was told; the other process needs a second to be back at the keeper.
const REMEMBERED: Duration = Duration::from_secs(600);

#[derive(Default)]
pub(super) struct State {
    items: BTreeMap<String, Entry>,
    removed: BTreeMap<String, Removal>,
    /// Comparisons that were asked for, and the last of those that were made.
    asked: u64,
    learned: u64,
}

struct Entry {
    item: Item,
    stamp: u64,
    standing: Standing,
}

/// Does the keeper hold it?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It was not told yet.
    Pending,
    /// The one of this life.
    Kept(u64),
    /// It does not want to.
    Refused,
}

struct Removal {
    stamp: u64,
    told: Option<Instant>,
}

impl State {
    pub(super) fn get(&self, key: &str) -> Option<&Item> {
        self.items.get(key).map(|entry| &entry.item)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &String> {
        self.items.keys()
    }

    /// The stamp that the item got: above all earlier ones, even if the clock was set back.
    pub(super) fn put(&mut self, key: &str, item: Item) -> u64 {
        let removed = self.removed.remove(key).map(|removal| removal.stamp);
        let earlier = self.items.get(key).map(|entry| entry.stamp).max(removed);
        let stamp = now().max(earlier.map_or(0, |stamp| stamp.saturating_add(1)));
        self.items.insert(key.to_owned(), Entry { item, stamp, standing: Standing::Pending });
        stamp
    }

    pub(super) fn remove(&mut self, key: &str) {
        let held = self.items.remove(key).map_or(0, |entry| entry.stamp);
        self.removed.insert(key.to_owned(), Removal { stamp: now().max(held), told: None });
    }

    /// None: that is not known yet.
    pub(super) fn is_kept(&self, key: &str, stamp: u64) -> Option<bool> {
        match self.items.get(key) {
            Some(entry) if entry.stamp == stamp => match entry.standing {
                Standing::Pending => None,
                Standing::Kept(_) => Some(true),
                Standing::Refused => Some(false),
            },
            // Something later took its place.
            _ => Some(false),
        }
    }

    pub(super) fn is_all_kept(&self) -> bool {
        self.items.values().all(|entry| matches!(entry.standing, Standing::Kept(_)))
    }

    /// Asks for a comparison that begins from now on.
    pub(super) fn ask(&mut self) -> u64 {
        self.asked += 1;
        self.asked
    }

    pub(super) fn asked(&self) -> u64 {
        self.asked
    }

    pub(super) fn is_learned(&self, round: u64) -> bool {
        self.learned >= round
    }

    /// All that was asked for up to this round was copied.
    pub(super) fn learned(&mut self, round: u64) {
        self.learned = round;
    }

    /// Compares with what the keeper of this life has; which keys are to be copied from it.
    pub(super) fn compare(&mut self, life: u64, listed: &BTreeMap<String, u64>) -> Vec<String> {
        self.items.retain(|key, entry| listed.contains_key(key) || entry.standing != Standing::Kept(life));
        for (key, entry) in &mut self.items {
            let kept = listed.get(key) == Some(&entry.stamp);
            entry.standing = if kept { Standing::Kept(life) } else { Standing::Pending };
        }
        for (key, removal) in &mut self.removed {
            let there = listed.get(key).is_some_and(|stamp| *stamp <= removal.stamp);
            removal.told = if there { None } else { removal.told.or_else(|| Some(Instant::now())) };
        }
        self.removed.retain(|_, removal| removal.told.is_none_or(|told| told.elapsed() < REMEMBERED));
        listed.iter().filter(|(key, stamp)| self.is_news(key, **stamp)).map(|(key, _)| key.clone()).collect()
    }

    fn is_news(&self, key: &str, stamp: u64) -> bool {
        self.items.get(key).is_none_or(|entry| entry.stamp < stamp)
            && self.removed.get(key).is_none_or(|removal| removal.stamp < stamp)
    }

    /// Takes an item of the keeper.
    pub(super) fn copy(&mut self, life: u64, key: String, stamp: u64, item: Item) {
        if self.is_news(&key, stamp) {
            self.items.insert(key, Entry { item, stamp, standing: Standing::Kept(life) });
        }
    }

    /// Keys of what the keeper does not know to be held.
    pub(super) fn unkept(&self) -> Vec<String> {
        let pending = self.items.iter().filter(|(_, entry)| entry.standing == Standing::Pending);
        pending.map(|(key, _)| key.clone()).collect()
    }

    /// Stamp and item, if the keeper still does not know.
    pub(super) fn unkept_item(&self, key: &str) -> Option<(u64, Item)> {
        let entry = self.items.get(key).filter(|entry| entry.standing == Standing::Pending)?;
        Some((entry.stamp, entry.item.clone()))
    }

    /// The keeper holds this, or does not want to.
    pub(super) fn answered(&mut self, key: &str, stamp: u64, kept_in: Option<u64>) {
        if let Some(entry) = self.items.get_mut(key).filter(|entry| entry.stamp == stamp) {
            entry.standing = kept_in.map_or(Standing::Refused, Standing::Kept);
        }
    }

    /// Keys and stamps of removals that the keeper does not know.
    pub(super) fn untold(&self) -> Vec<(String, u64)> {
        let untold = self.removed.iter().filter(|(_, removal)| removal.told.is_none());
        untold.map(|(key, removal)| (key.clone(), removal.stamp)).collect()
    }

    /// The keeper knows.
    pub(super) fn told(&mut self, key: &str, stamp: u64) {
        if let Some(removal) = self.removed.get_mut(key).filter(|removal| removal.stamp == stamp) {
            removal.told = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_item(value: &str) -> Item {
        Item { value: value.into(), fd: None }
    }

    fn listed(keys: &[(&str, u64)]) -> BTreeMap<String, u64> {
        keys.iter().map(|(key, stamp)| ((*key).to_owned(), *stamp)).collect()
    }

    fn value<'s>(state: &'s State, key: &str) -> Option<&'s str> {
        state.get(key).map(|item| item.value.as_str())
    }

    #[test]
    fn what_the_same_keeper_has_no_more_is_dropped_and_another_keeper_gets_it() {
        let mut state = State::default();
        let stamp = state.put("k", mk_item("v"));
        assert!(state.compare(1, &listed(&[])).is_empty());
        assert_eq!(state.unkept(), ["k"], "not told yet: not removed by anybody");
        state.answered("k", stamp, Some(1));
        assert!(state.unkept().is_empty());

        state.compare(2, &listed(&[]));
        assert_eq!(state.unkept(), ["k"], "another keeper");
        state.answered("k", stamp, Some(2));
        state.compare(2, &listed(&[]));
        assert!(state.get("k").is_none() && state.unkept().is_empty(), "removed by somebody else");
    }

    #[test]
    fn the_higher_stamp_wins_on_both_sides() {
        let mut state = State::default();
        let stamp = state.put("k", mk_item("mine"));
        assert!(state.compare(1, &listed(&[("k", stamp - 1)])).is_empty());
        assert_eq!(state.unkept(), ["k"], "the keeper has an earlier one");
        assert_eq!(state.compare(1, &listed(&[("k", stamp + 1)])), ["k"]);
        state.copy(1, "k".into(), stamp + 1, mk_item("theirs"));
        assert_eq!((value(&state, "k"), state.unkept().len()), (Some("theirs"), 0));
        assert!(state.put("k", mk_item("mine again")) > stamp + 1);
        state.copy(1, "k".into(), stamp + 1, mk_item("theirs"));
        assert_eq!(value(&state, "k"), Some("mine again"), "was put while the other one was copied");
    }

    #[test]
    fn a_stamp_is_above_those_of_a_clock_that_was_ahead() {
        let mut state = State::default();
        state.copy(1, "k".into(), u64::MAX / 2, mk_item("v"));
        state.remove("k");
        assert_eq!(state.untold(), [("k".to_owned(), u64::MAX / 2)]);
        assert_eq!(state.put("k", mk_item("v")), u64::MAX / 2 + 1);
        assert!(state.untold().is_empty());
    }

    #[test]
    fn what_was_removed_here_is_not_copied_and_is_removed_from_each_keeper_that_has_it() {
        let mut state = State::default();
        let stamp = state.put("k", mk_item("v"));
        state.remove("k");
        let (_, removal) = state.untold().remove(0);
        state.told("k", removal);
        assert!(state.untold().is_empty());
        // The next keeper has it from another process.
        assert!(state.compare(2, &listed(&[("k", stamp)])).is_empty());
        assert_eq!(state.untold(), [("k".to_owned(), removal)]);
        // What was put after the removal is another item.
        assert_eq!(state.compare(2, &listed(&[("k", removal + 1)])), ["k"]);
        assert!(state.untold().is_empty());
    }

    #[test]
    fn a_refused_item_is_tried_again_after_the_next_comparison() {
        let mut state = State::default();
        let stamp = state.put("k", mk_item("v"));
        state.answered("k", stamp, None);
        assert_eq!((state.is_kept("k", stamp), state.unkept().len()), (Some(false), 0));
        state.compare(1, &listed(&[]));
        assert_eq!((state.is_kept("k", stamp), state.unkept().len()), (None, 1));
    }
}
